"""Attention over weighted tokens.

Tokens are rows.  One head is given by `A = KᵀQ/√d_k` [d, d] and `V` [d_v, d] (without W_O); several heads by [H, d, d]
and [H, d_v, d].  The softmax logit of token z for the query x is ⟨A x, z⟩.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Compressed(NamedTuple):
    """Which tokens are kept, and their weights: >= 0, sum 1."""

    indices: Int[np.ndarray, " a"]
    weights: Float[np.ndarray, " a"]


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused at the end
def attend(
    tokens: Float[np.ndarray, "m d"],
    queries: Float[np.ndarray, "n d"],
    A: Float[np.ndarray, "*H d d"],
    V: Float[np.ndarray, "*H d_v d"],
    *,
    weights: Float[np.ndarray, " m"] | None = None,
    own: Float[np.ndarray, " "] | float = 0.0,
    chunk: int = 4096,
) -> Float[np.ndarray, "n *H d_v"]:
    """Attention over weighted tokens, Σ_j w_j e^{⟨A x, z_j⟩} V z_j / Σ_j w_j e^{⟨A x, z_j⟩}: [n, d_v] or [n, H, d_v].

    `weights` are >= 0 and not all 0 (default: 1 for each token); `own` is the weight with which a query attends itself
    besides (0: not at all; in the units of `weights`).  Tokens are read in chunks, so memory grows with n·H·d_v only.
    ValueError if shapes do not fit, a number is not finite or a weight is negative, or if logits or values overflow.
    """
    tokens, queries, A, V, one_head = check(tokens, queries, A, V)
    m, weights = len(tokens), masses(weights, len(tokens))
    if np.ndim(own) or not np.issubdtype(np.asarray(own).dtype, np.number):
        raise ValueError(f"own, a weight, must be a finite number >= 0, not {own!r}")
    if not (weights.min() >= 0 and weights.max() < np.inf and np.isfinite(own) and own >= 0):
        raise ValueError("weights must be finite numbers >= 0")
    if not weights.max() and own == 0:
        raise ValueError("all weights are 0: there is nothing to attend to")
    if own:
        raised = np.einsum("hde,ne->hnd", A, queries)  # A x
        self_logits = np.einsum("hnd,nd->hn", raised, queries)
    peak = self_logits if own else np.full((len(A), len(queries)), -np.inf)
    total = np.full(peak.shape, float(own))
    mixed = own * np.einsum("hve,ne->hnv", V, queries)
    for start in range(0, m, chunk):
        part, w = tokens[start : start + chunk], weights[start : start + chunk]
        if not w.any():
            continue
        part, w = part[w > 0], w[w > 0]
        logits = np.einsum("hde,ne,jd->hnj", A, queries, part, optimize=True)
        higher = np.maximum(peak, logits.max(-1))  # the largest logit so far is subtracted: e^0 never overflows
        e = w * np.exp(logits - higher[..., None])
        shrink = np.exp(peak - higher)
        total = total * shrink + e.sum(-1)
        mixed = mixed * shrink[..., None] + np.einsum("hnj,hvd,jd->hnv", e, V, part, optimize=True)
        peak = higher
    result = (mixed / total[..., None]).transpose(1, 0, 2)  # [n, H, d_v]
    if not np.isfinite(result).all():
        raise ValueError("logits or values are too large for float64")
    return result[:, 0] if one_head else result


def check(tokens, queries, A, V):
    """The arrays in float64, heads in front, and whether a single head was given; ValueError if they do not fit."""
    tokens, queries, A, V = (np.asarray(a, dtype=np.float64) for a in (tokens, queries, A, V))
    for name, array in (("tokens", tokens), ("queries", queries), ("A", A), ("V", V)):
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):  # they pass on NaN
            raise ValueError(f"{name} must be finite")
    if tokens.ndim != 2 or queries.ndim != 2 or not len(tokens) or not len(queries):
        raise ValueError(
            f"tokens and queries must be non-empty lists of vectors, not of shape {tokens.shape} and {queries.shape}"
        )
    one_head = A.ndim == 2 and V.ndim == 2
    if one_head:
        A, V = A[None], V[None]
    d = tokens.shape[1]
    fits = A.ndim == V.ndim == 3 and A.shape[1:] == (d, d) and V.shape[2] == d and len(V) == len(A)
    if not fits or queries.shape[1] != d or not A.size or not V.size:
        raise ValueError(
            f"shapes do not fit: tokens {tokens.shape}, queries {queries.shape}, A {A.shape}, V {V.shape}; "
            "wanted [m, d], [n, d], [d, d] or [H, d, d], [d_v, d] or [H, d_v, d]"
        )
    return tokens, queries, A, V, one_head


def masses(weights, m: int) -> Float[np.ndarray, " m"]:
    """The weights in float64; for None ones that take no memory.  ValueError unless there are m."""
    weights = np.broadcast_to(1.0, m) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (m,):
        raise ValueError(f"there must be one weight for each of the {m} tokens, not an array of shape {weights.shape}")
    return weights


# --- how far a compressed prompt is off ----------------------------------------------------------------------------


def largest_difference(
    tokens: Float[np.ndarray, "m d"],
    short: Compressed,
    A: Float[np.ndarray, "*H d d"],
    V: Float[np.ndarray, "*H d_out d"],
    queries: Float[np.ndarray, "n d"],
    *,
    radius: float,
    steps: int = 3,
    best: int = 200,
    best_steps: int = 40,
) -> float:
    """The largest ‖Σ_h (att_h of the prompt − att_h of its compression)‖ that gradient ascent on the query finds.

    Each of the n queries, which start in the ball of this radius, climbs `steps` steps; the `best` of them then climb
    `best_steps` more.  Steps have a fixed length that shrinks, and every visited query counts.  V includes W_O, so that
    heads can be added.  ValueError as in `attend`.
    """
    tokens, queries, A, V, _ = check(tokens, queries, A, V)
    prompts = [(tokens, np.full(len(tokens), 1 / len(tokens))), (tokens[short.indices], short.weights)]
    largest = 0.0
    for last, lengths in enumerate((np.geomspace(0.3, 0.1, steps), np.geomspace(0.2, 0.005, best_steps))):
        for length in (*(radius * lengths), 0.0):
            parts = [
                _difference(prompts, A, V, queries[start : start + 1024]) for start in range(0, len(queries), 1024)
            ]
            found, slope = (np.concatenate(part) for part in zip(*parts, strict=True))
            largest = max(largest, float(found.max()))
            queries = queries + length * slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-300)
            queries = queries / np.maximum(1.0, np.linalg.norm(queries, axis=1, keepdims=True) / radius)
        if not last:
            queries = queries[np.argsort(found)[::-1][:best]]
    return largest


def _difference(prompts, A, V, queries):
    """‖Σ_h difference of two prompts' outputs‖ [n], and a multiple of its gradient in the query [n, d]."""
    weighted = []
    for tokens, weights in prompts:
        logits = np.einsum("hde,ne,jd->hnj", A, queries, tokens, optimize=True)
        attention = weights * np.exp(logits - logits.max(-1, keepdims=True))
        weighted.append(attention / attention.sum(-1, keepdims=True))
    values = [np.einsum("hvd,jd->hjv", V, tokens) for tokens, _ in prompts]
    first, second = (np.einsum("hnj,hjv->nv", p, v, optimize=True) for p, v in zip(weighted, values, strict=True))
    error = first - second
    slope = np.zeros_like(queries)
    for sign, attention, value, (tokens, _) in zip((1, -1), weighted, values, prompts, strict=True):
        along = attention * np.einsum("nv,hjv->hnj", error, value)  # p_j ⟨e, V z_j⟩
        spread = along @ tokens - along.sum(-1, keepdims=True) * (attention @ tokens)
        slope += sign * np.einsum("hnd,hde->ne", spread, A)
    return np.linalg.norm(error, axis=1), slope
