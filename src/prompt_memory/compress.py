"""Prompts to fewer weighted tokens.

A long prompt acts through its empirical measure, and a few weighted atoms can stand for it.

Everything here is in float64 numpy: what is compressed is checked to rounding.  Tokens are rows.  One head is given by
`A = KᵀQ/√d_k` [d, d] and `V` [d_v, d] (without W_O); several heads by [H, d, d] and [H, d_v, d].  The softmax logit of
token z for the query x is ⟨A x, z⟩.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Compressed(NamedTuple):
    """Which tokens are kept, and their weights: >= 0, sum 1."""

    indices: Int[np.ndarray, " a"]
    weights: Float[np.ndarray, " a"]


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
    ValueError if shapes do not fit, a number is not finite or a weight is negative.
    """
    tokens, queries, A, V, one_head = check(tokens, queries, A, V)
    m = len(tokens)
    weights = np.ones(m) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (m,):
        raise ValueError(f"there must be one weight for each of the {m} tokens, not an array of shape {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and np.isfinite(own) and own >= 0):
        raise ValueError("weights must be finite numbers >= 0")
    if not weights.any() and own == 0:
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
    return result[:, 0] if one_head else result


def check(tokens, queries, A, V):
    """The arrays in float64, heads in front, and whether a single head was given; ValueError if they do not fit."""
    tokens, queries, A, V = (np.asarray(a, dtype=np.float64) for a in (tokens, queries, A, V))
    for name, array in (("tokens", tokens), ("queries", queries), ("A", A), ("V", V)):
        if not np.isfinite(array).all():
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
    if not fits or queries.shape[1] != d:
        raise ValueError(
            f"shapes do not fit: tokens {tokens.shape}, queries {queries.shape}, A {A.shape}, V {V.shape}; "
            "wanted [m, d], [n, d], [d, d] or [H, d, d], [d_v, d] or [H, d_v, d]"
        )
    return tokens, queries, A, V, one_head
