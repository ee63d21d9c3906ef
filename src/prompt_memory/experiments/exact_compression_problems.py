"""The problems of chapter 5 (prompts, queries and heads), and a judge that shares no code with what compresses them."""

from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from prompt_memory import bounds, compress

KINDS = ("Gaussian", "clusters", "words")  # of prompts
WORDS = 64  # rows of the embedding table that hard prompts are made of


class Problem(NamedTuple):
    """A prompt, and the queries and heads that read it."""

    tokens: Float[np.ndarray, "m d"]
    queries: Float[np.ndarray, "n d"]
    A: Float[np.ndarray, "H d d"]
    V: Float[np.ndarray, "H d_v d"]


def direct(tokens, queries, A, V, weights=None, own: float = 0.0) -> Float[np.ndarray, "n H d_v"]:
    """Softmax attention with ln(weight) added to the logits, written out a second time: the judge of compression."""
    with np.errstate(divide="ignore"):
        bias = np.log(np.append(np.ones(len(tokens)) if weights is None else weights, own))
    seen = (np.vstack([tokens, x]) for x in queries)
    return np.array([
        [special.softmax(z @ (a @ x) + bias) @ (z @ v.T) for a, v in zip(A, V, strict=True)]
        for x, z in zip(queries, seen, strict=True)
    ])  # fmt: skip


def conditions(tokens, queries, A, V, own: float = 0.0) -> tuple[Float[np.ndarray, "N m"], Float[np.ndarray, " N"]]:
    """The vectors a_j as columns and the right side b, both divided by each row's largest entry of the a_j."""
    o = direct(tokens, queries, A, V, own=own)
    values, own_values = np.einsum("hvd,jd->jhv", V, tokens), np.einsum("hvd,nd->nhv", V, queries)
    e = np.exp(np.einsum("hde,ne,jd->jnh", A, queries, tokens))[..., None] * (values[:, None] - o)  # [m, n, H, d_v]
    b = -own * np.exp(np.einsum("hde,ne,nd->nh", A, queries, queries))[..., None] * (own_values - o)
    size = np.abs(e).max(0)
    return (e / size).reshape(len(tokens), -1).T, (b / size).ravel()


def random_problem(rng, m: int, n: int, heads: int, d_v: int, kind: str = "Gaussian", d: int = 16) -> Problem:
    """A prompt of one of the `KINDS`, random heads with attention neither flat nor sharp, Gaussian queries."""
    if kind == "Gaussian":
        tokens = rng.normal(size=(m, d))
    elif kind == "clusters":
        tokens = rng.normal(size=(12, d))[rng.integers(12, size=m)] + 0.1 * rng.normal(size=(m, d))
    else:  # a hard prompt
        tokens = rng.normal(size=(WORDS, d))[rng.integers(WORDS, size=m)]
    A, V = rng.normal(size=(heads, d, d)), rng.normal(size=(heads, d_v, d))
    return Problem(tokens, rng.normal(size=(n, d)), A / (2 * np.sqrt(d)), V / np.sqrt(d))


def sharp_example(n: int, heads: int, d_v: int, own: bool, beta: float = 6.0) -> Problem:
    """The prompt of part 3 that no smaller set replaces; coordinates are keys, queries, then values."""
    N, groups = n * heads * d_v, n * heads
    m = N if own else N + 1
    size, first = d_v + (not own), d_v
    d = m + n + d_v
    tokens, queries, A, V = np.zeros((m, d)), np.zeros((n, d)), np.zeros((heads, d, d)), np.zeros((heads, d_v, d))
    tokens[:, :m] = np.eye(m)
    for t in range(m):
        if t % size < d_v:
            tokens[t, m + n + t % size] = 1
    queries[:, m : m + n] = np.eye(n)
    V[:, :, m + n :] = np.eye(d_v)
    for g, (i, h) in zip(range(groups), product(range(n), range(heads)), strict=True):
        A[h, g * first : g * first + size, m + i] = beta  # the tokens of the group
        A[h, m + i, m + i] = beta  # the query itself, where it is seen
    return Problem(tokens, queries, A, V)


def least_residual(a, b, places) -> float:
    """min ‖Σ w_j a_j − b‖ over w >= 0 on these places, of sum one if b = 0."""
    a, b = (a[:, places], b) if b.any() else (np.vstack([a[:, places], np.ones(len(places))]), np.append(b, 1.0))
    weights = optimize.nnls(a, b)[0]
    return np.linalg.norm(a @ weights - b)  # the residual that nnls returns is 0 for square systems, without rounding


def polygon(m: int) -> Float[np.ndarray, "m 2"]:
    """The corners of a regular polygon."""
    angle = 2 * np.pi * np.arange(m) / m
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def two_layers(z: Float[np.ndarray, "m 2"], weights, beta: float) -> float:
    """Ψ(w), the output of both layers of Proposition 5b, by weighted attention."""
    c = bounds.polygon_constant(len(z), beta)
    g = compress.attend(z, z, beta * np.eye(2), np.eye(2), weights=weights)  # the tokens read each other
    hidden = ((g - c * z) ** 2).sum(1, keepdims=True)  # the token-wise map: one number a token
    return compress.attend(hidden, np.zeros((1, 1)), np.zeros((1, 1)), np.eye(1), weights=weights)[0, 0]


def on_circle(degrees) -> Float[np.ndarray, "n 2"]:
    """Vectors of length one in these directions."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)


HEAD = (1.5 * np.eye(2)[None], np.eye(2)[None])  # A and V of the head that reads the spiral


def spiral_cloud(rng, m: int = 4000) -> Float[np.ndarray, "m 2"]:
    """A noisy spiral in the plane."""
    turn = rng.uniform(size=m)
    angle = 3.5 * np.pi * turn
    arm = np.stack([np.cos(angle), np.sin(angle)], 1) * (0.25 + 1.2 * turn)[:, None]
    return arm + 0.07 * rng.normal(size=(m, 2))
