"""What a context does to the outputs of any network: one token exchanged, or all contexts enumerated."""

import itertools
import math

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.network.transformer import Transformer


def exchanged(
    model: Transformer, prompt: Float[Tensor, "m d"], token: Float[Tensor, " d"], queries: Tensor, place: int = 0, **how
) -> float:
    """How far half the largest difference of two logits moves, at most over queries, if one token is replaced."""
    other = prompt.clone()
    other[place] = token
    moved = model(other[None], queries, **how) - model(prompt[None], queries, **how)
    return float((moved.amax(-1) - moved.amin(-1)).max()) / 2


def all_contexts(
    model: Transformer, queries: Float[Tensor, "n 1 d"], longest: int
) -> tuple[Float[np.ndarray, "P n"], Int[np.ndarray, "P v"]]:
    """Outputs for every context of at most `longest` tokens of the vocabulary, and how often each has each token.

    For one layer with one head, without norm, positions or token-wise network, that does not see the order and whose
    queries see the context only; the output is half the difference of the first two logits, in float64.
    """
    v, block, c = model.config.q, model.blocks[0], model.config
    steps = itertools.combinations_with_replacement(range(v + 1), longest)  # the last kind of token is no token
    counts = np.array([np.bincount(kinds, minlength=v + 1)[:v] for kinds in steps if kinds[0] < v])
    z, x = model.embedding, queries[:, 0]
    scores = (x @ block.query) @ (z @ block.key).T * (c.inverse_temperature / math.sqrt(c.d_k))
    unembedding = (model.unembedding[:, 1] - model.unembedding[:, 0]) / 2
    e, votes = scores.double().exp().numpy(), (z @ block.value @ block.output @ unembedding).double().numpy()
    return counts @ (e * votes).T / (counts @ e.T) + (x @ unembedding).double().numpy(), counts


def cells(table: Float[np.ndarray, "P n"], eps: float) -> int:
    """How many of the rows a greedy search needs so that every row is within eps of one, in the largest coordinate.

    An upper bound on the covering number of the rows at eps.
    """
    table = np.asarray(table)
    left, first, count = np.arange(len(table)), table[:, 0], 0  # the rows that are left, and their first coordinate
    while len(left):
        centre = table[left[len(left) // 2]]
        near = np.flatnonzero(np.abs(first - centre[0]) <= eps)  # most rows are too far in one coordinate already
        keep = np.ones(len(left), dtype=bool)
        keep[near[(np.abs(table[left[near]] - centre) <= eps).all(1)]] = False
        left, first, count = left[keep], first[keep], count + 1
    return count
