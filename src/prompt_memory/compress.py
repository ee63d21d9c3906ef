"""Prompts to fewer weighted tokens.

A long prompt acts through its empirical measure, and a few weighted atoms can stand for it.

Everything here is in float64 numpy: what is compressed is checked to rounding.  Tokens are rows.  One head is given by
`A = KᵀQ/√d_k` [d, d] and `V` [d_v, d] (without W_O); several heads by [H, d, d] and [H, d_v, d].  The softmax logit of
token z for the query x is ⟨A x, z⟩.
"""

import math
from collections import Counter
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import linalg

from prompt_memory.checks import integers
from prompt_memory.transformer import Transformer


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
    m, weights = len(tokens), _masses(weights, len(tokens))
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


def _masses(weights, m: int) -> Float[np.ndarray, " m"]:
    """The weights in float64; for None ones that take no memory.  ValueError unless there are m."""
    weights = np.broadcast_to(1.0, m) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (m,):
        raise ValueError(f"there must be one weight for each of the {m} tokens, not an array of shape {weights.shape}")
    return weights


# --- Theorem 5: exact compression ----------------------------------------------------------------------------------


class CompressedWithOwn(NamedTuple):
    """Which tokens are kept, their weights (>= 0, sum 1), and the weight of the query's own token in the same units."""

    indices: Int[np.ndarray, " a"]
    weights: Float[np.ndarray, " a"]
    own: float


def caratheodory(
    tokens: Float[np.ndarray, "m d"],
    queries: Float[np.ndarray, "n d"],
    A: Float[np.ndarray, "*H d d"],
    V: Float[np.ndarray, "*H d_v d"],
    *,
    weights: Float[np.ndarray, " m"] | None = None,
    own: float = 0.0,
    tolerance: float = 1e-12,
    block: int | None = None,
) -> Compressed | CompressedWithOwn:
    """A few weighted tokens of the prompt on which attention from these n queries gives the same outputs.

    With o_ih the output of head h at query i, the weights solve Σ_j w_j e^{⟨A_h x_i, z_j⟩}(V_h z_j − o_ih) = 0, which
    are n·H·d_v linear conditions.  At most n·H·d_v + 1 indices are returned (fewer if the conditions are dependent),
    ascending, with weights that sum to 1.  `weights` are those of the prompt (default: 1 each).

    With own > 0 each query also attends itself, with the weight `own` in the units of `weights`.  The conditions then
    fix the scale of the weights too, and n·H·d_v tokens are enough: what is returned has a third part, `own`, the own
    weight in the units in which the returned weights sum to 1.  (Where every output is the query's own value, no token
    is needed, and where own tokens are lost in rounding, the scale of the weights is not seen; then the prompt is
    compressed as without `own`, to one token more.)  In both cases

        attend(tokens[c.indices], queries, A, V, weights=c.weights, own=c.own)

    gives the outputs of the long prompt.  This is verified before returning: the largest difference is at most
    `tolerance` times the head's own largest |coordinate of V z| (or 1/100 of that of |V||z|, where V z is lost in
    rounding).  Tokens to which no query gives more than 2^−104 of its attention
    do not take part.  Tokens are read in blocks of `block` (default: as many as make 64 MiB), and groups of them are
    compressed round after round (Maalouf, Jubran and Feldman 2019): time is linear in m, and memory beyond the tokens
    does not depend on m (Theorem 5).  ValueError as in `attend`, or, with the condition number, if verification fails.
    """
    tokens, queries, A, V, _ = check(tokens, queries, A, V)
    m, n, heads, d_v = len(tokens), len(queries), len(A), V.shape[1]
    given = _masses(weights, m)
    target = attend(tokens, queries, A, V, weights=given, own=own)  # [n, H, d_v]; it also checks weights and own
    if not given.max():
        raise ValueError("all weights are 0: there is no prompt to compress")
    conditions = n * heads * d_v
    (block,) = integers(block=max(2**23 // conditions, 16 * conditions) if block is None else block)
    layer = _Conditions(tokens, queries, A, V, given, float(own), target)
    for negligible in (1e-14, 0.0):  # relative size of what counts as rounding: the second try counts everything
        found = _compress(layer, own == 0, block, negligible)
        error = np.abs(attend(tokens[found.indices], queries, A, V, weights=found.weights, own=found.own) - target)
        miss = (error.max((0, 2)) / layer.value_scale).max()
        if miss <= tolerance:
            return found if own else Compressed(found.indices, found.weights)
    raise ValueError(
        f"the compressed prompt is off by {miss:.1e} of the values, more than the tolerance {tolerance:.1e}: "
        f"the {conditions} conditions on its weights have the condition number {layer.condition(found):.1e}"
    )


class _Conditions:
    """The linear conditions on the weights of the tokens, one for each head, query and coordinate of a value."""

    def __init__(self, tokens, queries, A, V, given, own, target):
        self.tokens, self.V, self.given, self.own = tokens, V, given, own
        self.raised = np.einsum("hde,ne->hnd", A, queries)  # A x
        self.target = target.transpose(1, 0, 2)  # o: [H, n, d_v]
        own_values = np.einsum("hve,ne->hnv", V, queries)
        self.own_logits = np.einsum("hnd,nd->hn", self.raised, queries) + (math.log(own) if own else -np.inf)
        # level: log of Σ_j u_j e^{s_j} + own·e^{s_own}, the normaliser; value_scale: a head's largest coordinate, [H]
        self.level, self.value_scale = self.own_logits, np.abs(own_values).max((1, 2)) if own else np.zeros(len(V))
        chunks = [slice(start, start + 4096) for start in range(0, len(tokens), 4096)]
        for part in chunks:
            logits = self.logits(part) + self.log_given(part)[:, None, None]
            self.level = np.logaddexp(self.level, np.logaddexp.reduce(logits, axis=0))
            summands = np.einsum("hvd,jd->jhv", np.abs(V), np.abs(tokens[part]), optimize=True)
            for sizes in (np.abs(self.values(part)), summands / 100):  # not below what rounding may leave of 0
                self.value_scale = np.maximum(self.value_scale, sizes.max((0, 2)))
        self.value_scale = np.where(self.value_scale > 0, self.value_scale, 1.0)
        # spread: mean |V z − o| under each query's attention, in units of value_scale
        self.own_terms = (own_values - self.target) / self.value_scale[:, None, None]
        self.spread = np.exp(self.own_logits - self.level)[..., None] * np.abs(self.own_terms)
        farthest = np.zeros(self.level.shape)
        for part in chunks:
            attention = np.exp(self.logits(part) - self.level + self.log_given(part)[:, None, None])
            distance = np.abs(self.terms(part))
            self.spread += np.einsum("khn,khnv->hnv", attention, distance)
            farthest = np.maximum(farthest, distance.max((0, 3)))
        self.visible = self.spread > 1e-13
        self.lost = ~self.visible.any(-1) & (farthest > 1e-13)  # [H, n]

    def logits(self, which) -> Float[np.ndarray, "k H n"]:
        return np.einsum("hnd,jd->jhn", self.raised, self.tokens[which], optimize=True)

    def log_given(self, which) -> Float[np.ndarray, " k"]:
        with np.errstate(divide="ignore"):
            return np.log(self.given[which])

    def values(self, which) -> Float[np.ndarray, "k H d_v"]:
        return np.einsum("hvd,jd->jhv", self.V, self.tokens[which], optimize=True)

    def terms(self, which) -> Float[np.ndarray, "k H n d_v"]:
        """V z − o in units of the values."""
        return (self.values(which)[:, :, None] - self.target) / self.value_scale[:, None, None]

    def rows(self, which):
        """e^{s}(V z − o) of these tokens, [k, H·n·d_v], over the largest attention of each token; and its log, [k].

        Conditions are in units of their spread.  Where that is lost in rounding (a query that sees one value out of
        several), they cannot be read off; the query's attention to the prompt as a whole is kept in their place.
        """
        logs = self.logits(which) - self.level
        peak = logs.max((1, 2))
        attention = np.exp(logs - peak[:, None, None])[..., None]  # [k, H, n, 1]
        rows = attention * self.terms(which) * (self.visible / np.where(self.visible, self.spread, 1.0))
        rows[..., :1] += attention * self.lost[..., None]
        rows = rows.reshape(len(peak), -1)
        largest = np.maximum(np.abs(rows).max(1), 1.0)
        return rows / largest[:, None], peak + np.log(largest)

    def relative(self, which, log_weights):
        """What each token contributes to each output, [H·n·d_v, k], and by how much all of it misses zero."""
        logs = self.logits(which) + log_weights[:, None, None]
        level = np.logaddexp(np.logaddexp.reduce(logs, axis=0), self.own_logits)
        rows = np.exp(logs - level)[..., None] * self.terms(which)
        own = np.exp(self.own_logits - level)[..., None] * self.own_terms
        return rows.reshape(len(logs), -1).T, (rows.sum(0) + own).ravel()

    def condition(self, found: CompressedWithOwn) -> float:
        """Largest over smallest singular value of `relative`, the direction of a common factor left out without own."""
        log_own = np.log(self.own / found.own) if self.own else 0.0
        matrix, _ = self.relative(found.indices, np.log(found.weights) + log_own)
        singular = np.linalg.svd(matrix, compute_uv=False)[: max(1, len(found.indices) - (self.own == 0))]
        return float(singular[0] / singular[-1]) if singular[-1] else np.inf


def _compress(layer: _Conditions, keep_mass: bool, block: int, negligible: float) -> CompressedWithOwn:
    """Stream over the tokens, keep what the conditions (and the total mass) need, polish the weights of what is left.

    The mass of a token is its weight times its largest attention, in which `rows` are counted.
    """
    m = len(layer.tokens)
    indices, mass, rows = np.zeros(0, int), np.zeros(0), np.zeros((0, layer.target.size + keep_mass))
    for start in range(0, m, block):
        part = np.arange(start, min(m, start + block))
        new, peak = layer.rows(part)
        new_mass = np.exp(layer.log_given(part) + peak)
        if keep_mass:
            new = np.concatenate([new, np.ones((len(part), 1))], 1)
        seen = new_mass > 2.0**-104
        rows = np.concatenate([rows, new[seen]])
        kept, mass = _fewer(rows, np.concatenate([mass, new_mass[seen]]), negligible)
        indices, rows = np.concatenate([indices, part[seen]])[kept], rows[kept]
    if not len(indices):
        if keep_mass:  # every query looks at itself only: any token may stay
            indices = np.array([np.argmax(layer.given)])
            return CompressedWithOwn(indices, np.ones(1), layer.own / layer.given[indices[0]])
        return _compress(layer, True, block, negligible)  # no token is needed, yet weights are to sum to 1
    logs = _polish(layer, indices, np.log(mass) - layer.rows(indices)[1])
    weights = np.exp(logs - logs.max())
    return CompressedWithOwn(indices, weights / weights.sum(), layer.own * np.exp(-logs.max()) / weights.sum())


def _fewer(rows: Float[np.ndarray, "k D"], mass: Float[np.ndarray, " k"], negligible: float):
    """Positions [a] and positive masses [a] of at most rank(rows) rows with the same sum Σ mass·row.

    While there are more than 2D rows, 2D groups of them are replaced by their centres of mass: what is left of the
    centres says which groups stay, and by how much their masses grow.
    """
    kept = np.arange(len(mass))
    while len(kept):
        groups = min(len(kept), 2 * rows.shape[1])
        edges = np.linspace(0, len(kept), groups + 1).astype(int)
        total = np.add.reduceat(mass, edges[:-1])
        centres = np.add.reduceat(mass[:, None] * rows[kept], edges[:-1], axis=0) / total[:, None]
        factor = np.repeat(_eliminate(centres, total, negligible) / total, np.diff(edges))
        done = groups == len(kept)
        kept, mass = kept[factor > 0], (mass * factor)[factor > 0]
        if done:
            break
    return kept, mass


def _eliminate(rows: Float[np.ndarray, "k D"], mass: Float[np.ndarray, " k"], negligible: float):
    """Masses [k] >= 0 with the same sum Σ mass·row, at most rank(rows) of them positive.

    Walks along changes of the masses that leave the sum as it is, each time straight to the nearest face {mass_t = 0}:
    of all coordinates that one vanishes first.  The changes left over are those with no component t; a reflection
    keeps their basis orthonormal, so rounding errors do not grow.
    """
    basis_and_rest, R, _ = linalg.qr(rows, pivoting=True)
    size = np.abs(np.diag(R))
    rank = int((size > negligible * size.max(initial=0.0)).sum())
    basis = np.asfortranarray(basis_and_rest[:, rank:])  # of the changes: [k, k − rank]
    reach = np.einsum("kp,kp->k", basis, basis)  # squared: how fast a unit step can change this mass
    mass, alive = mass.copy(), np.ones(len(mass), bool)
    while basis.shape[1]:
        t = int(np.argmin(np.where(alive & (reach > 1e-20), mass, np.inf) / np.sqrt(np.maximum(reach, 1e-20))))
        row = basis[t].copy()
        size = np.sqrt(row @ row)
        along = basis @ row / size  # the unit step to the face
        mass = np.maximum(mass - mass[t] / size * along, 0.0)
        mass[t], alive[t] = 0.0, False
        turn = np.copysign(size, row[0])  # reflect the row onto the first axis, in place
        mirrored = along * size + turn * basis[:, 0]
        row[0] += turn
        basis = linalg.blas.dger(-2 / (row @ row), mirrored, row, a=basis, overwrite_a=True)[:, 1:]
        basis[t] = 0.0
        reach -= along**2
        near = alive & (reach < 1e-6)  # cancellation: once more
        reach[near] = np.einsum("kp,kp->k", basis[near], basis[near])
    return mass


def _polish(layer: _Conditions, indices, log_weights):
    """Logarithms of the weights, corrected until the conditions hold to rounding in units of the values."""
    best, least = log_weights, np.inf
    for _ in range(5):
        matrix, missing = layer.relative(indices, log_weights)
        if (size := np.abs(missing).max()) >= least:
            break
        best, least = log_weights, size
        change = linalg.lstsq(matrix, -missing, cond=1e-15)[0]
        if not (change > -1).all():
            break
        log_weights = log_weights + np.log1p(change)
    return best


def prompt_cache(model: Transformer, prompt: Float[torch.Tensor, "m d"]) -> Float[np.ndarray, "m D"]:
    """What a network holds of a prompt, as one vector a token: its keys and values in every layer and head.

    D = L·H·(2 d_k + d_v); a layer and head has d_k zeros (room for a query), the key, turned to its position, and the
    value.  With `cache_heads` and the second result of `read_cache`, these are tokens, maps and queries of L·H heads of
    one layer, so `attend` and `caratheodory` apply to networks of any depth whose prompt does not see the query.
    ValueError unless the network is causal or has one layer, and does not scale its logits by the context.
    """
    c = model.config
    if (c.depth > 1 and not c.causal) or c.context_scaling != "none":
        raise ValueError("only a causal or one-layer network without context scaling has a cache that no query changes")
    model._prompt_length(prompt[None])
    p = prompt.to(model.embedding.dtype)[None, None]  # [1, 1, m, d]
    p = p + model.position[: len(prompt)] if c.positions == "learned" else p
    past = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril() if c.depth > 1 else None
    parts = []
    for layer, block in enumerate(model.blocks):
        q, k, v = model.heads(block, p, 0)
        parts.append(torch.cat([torch.zeros_like(q), k, v], -1)[0, 0])  # [H, m, 2 d_k + d_v]
        if layer + 1 < c.depth:
            p = block.token_wise(p + block.attend(q, [k], [v], [past]))
    return torch.cat(parts).transpose(0, 1).flatten(1).double().numpy()


def cache_heads(config) -> tuple[Float[np.ndarray, "LH D D"], Float[np.ndarray, "LH d_v D"]]:
    """A and V of all layers and heads of a network, for the tokens of `prompt_cache`."""
    c, heads = config, config.depth * config.heads
    size = 2 * c.d_k + c.d_v
    A, V = np.zeros((heads, heads * size, heads * size)), np.zeros((heads, c.d_v, heads * size))
    for head in range(heads):
        query, key = (head * size + shift + np.arange(c.d_k) for shift in (0, c.d_k))
        A[head, key, query] = c.inverse_temperature / math.sqrt(c.d_k)
        V[head, np.arange(c.d_v), head * size + 2 * c.d_k + np.arange(c.d_v)] = 1.0
    return A, V


def read_cache(
    model: Transformer,
    cache: Float[np.ndarray, "a D"],
    queries: Float[torch.Tensor, "n d"],
    *,
    position: int,
    weights: Float[np.ndarray, " a"] | None = None,
    own: float = 1.0,
) -> tuple[Float[np.ndarray, "n q"], Float[np.ndarray, "n D"]]:
    """Logits of queries of one token that read a weighted cache, and what they ask of it as vectors.

    With the cache of a whole prompt, `position` its length and own = 1 (0: `own_token=False`), these are the network's
    own logits.  The second result holds queries (and own keys and values) of each layer and head: the queries to
    compress the cache for.
    """
    c = model.config
    A, V = cache_heads(c)
    x = model.embed(queries.to(model.embedding.dtype))[None]  # [1, n, 1, d]
    x = x + model.position[position] if c.positions == "learned" else x
    readers = np.zeros((len(queries), cache.shape[1]))
    size = c.heads * (2 * c.d_k + c.d_v)
    for layer, block in enumerate(model.blocks):
        asked = torch.cat(model.heads(block, x, position), -1)[0, :, :, 0]  # [n, H, 2 d_k + d_v]
        here = slice(layer * size, (layer + 1) * size)
        readers[:, here] = asked.flatten(1).double().numpy()
        part = slice(layer * c.heads, (layer + 1) * c.heads)
        mixed = attend(cache, readers, A[part], V[part], weights=weights, own=own)  # [n, H, d_v]
        mixed = torch.from_numpy(mixed).to(x.dtype).flatten(1) @ block.output
        x = block.token_wise(x + mixed[None, :, None])
    return (model.norm(x) @ model.unembedding)[0, :, 0].double().numpy(), readers


# --- Theorem 6: moments --------------------------------------------------------------------------------------------


def moments(
    tokens: Float[np.ndarray, "m d"],
    degree: int,
    *,
    weights: Float[np.ndarray, " m"] | None = None,
    tolerance: float = 1e-12,
) -> Compressed:
    """A few weighted tokens of the prompt with the same mean of every polynomial of total degree at most `degree`.

    At most C(r + degree, degree) indices are returned, ascending, where r <= d is the number of dimensions that the
    tokens span (`spanned`; fewer if polynomials are dependent on the tokens, as on a sphere), with weights >= 0 that
    sum to 1; at degree >= 1 a prompt of r + 1 tokens is returned as it is.  With degree k + 1 they stand for the prompt
    in every head and at every query, up to `bounds.moment_error` (Theorem 6).  `weights` are those of the prompt
    (default: equal ones).

    Polynomials are products of Chebyshev polynomials in coordinates along the principal axes, scaled to [−1, 1], and
    orthogonalised by QR.  Before returning their means are compared with those of the whole prompt: they differ by at
    most `tolerance`.  Tokens are streamed: they are merged to twice as many groups as there are polynomials,
    half of the groups are eliminated, and so on, so time and memory are linear in m with a small constant.
    ValueError if an argument is not finite or does not fit, for more than 3000 polynomials in as many tokens or more,
    or, with the condition number, if verification fails.
    """
    polynomials = _Polynomials("tokens", tokens, degree)
    return _match(polynomials, polynomials.count, len(polynomials.points), weights, tolerance)


def spanned(tokens: Float[np.ndarray, "m d"], degree: int = 1) -> int:
    """The dimension r <= min(m − 1, d) of the smallest plane that holds all tokens, up to rounding.

    `moments` keeps at most C(r + degree, degree) tokens: if that is m or more, few or none are saved.  With r = m − 1
    nothing is saved at any degree >= 1, for the mean of the tokens leaves one choice of weights.
    ValueError as in `moments`, for this degree.
    """
    return _Polynomials("tokens", tokens, degree).points.shape[1]


def head_moments(
    keys: Float[np.ndarray, "*H m d_k"],
    values: Float[np.ndarray, "*H m d_v"],
    degree: int,
    *,
    weights: Float[np.ndarray, " m"] | None = None,
    tolerance: float = 1e-12,
) -> Compressed:
    """A few weighted tokens with the same means of p(u) and p(u) v_i in each head, for polynomials p up to `degree`.

    u are keys and v values as attention uses them, that is, with rotary positions the *turned* keys.  At most
    `bounds.head_moment_count(degree, d_k, d_v, H)` indices are returned, ascending, with weights >= 0 that sum to 1.
    Everything else is as in `moments` (Theorem 6, part 3, first form); values are measured in units of the largest one.
    """
    keys, values = np.asarray(keys, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if keys.ndim == values.ndim == 2:
        keys, values = keys[None], values[None]
    if keys.ndim != 3 or values.ndim != 3 or keys.shape[:2] != values.shape[:2] or not len(keys):
        raise ValueError(f"keys and values must be [H, m, d_k] and [H, m, d_v], not {keys.shape} and {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite")
    heads = [_Polynomials("keys", head, degree) for head in keys]
    values = values / (np.abs(values).max(axis=(1, 2), keepdims=True, initial=0.0) + np.finfo(float).tiny)
    d_v = values.shape[2]

    def features(which):
        rows = [np.ones((len(which), 1))]
        for head, value in zip(heads, values, strict=True):
            powers = head(which)
            rows += [powers[:, 1:], *(powers * value[which, i, None] for i in range(d_v))]
        return np.concatenate(rows, 1)

    count = 1 + sum(head.count * (1 + d_v) - 1 for head in heads)
    return _match(features, count, keys.shape[1], weights, tolerance)


class _Polynomials:
    """Products of Chebyshev polynomials, total degree at most `degree`, on points scaled to [−1, 1]; 1 is first."""

    def __init__(self, name: str, points, degree: int):
        points = np.asarray(points, dtype=np.float64)
        if points.ndim != 2 or not points.size:
            raise ValueError(f"{name} must be a non-empty list of vectors, not of shape {points.shape}")
        if not np.isfinite(points).all():
            raise ValueError(f"{name} must be finite")
        (degree,) = integers(0, degree=degree)
        size = np.abs(points).max() or 1.0
        scaled = points / size  # squares must not overflow
        centred = scaled - scaled.mean(0)
        if len(points) <= points.shape[1]:
            axes = np.linalg.svd(centred, full_matrices=False)[2].T
        else:
            axes = np.linalg.eigh(centred.T @ centred / len(points))[1]
        turned = scaled @ axes
        low, high = turned.min(0), turned.max(0)
        reach = (high - low) / 2
        thick = reach > 1e-13 * (reach.max() + np.abs(turned).max())  # other directions are rounding
        scale = np.maximum(reach, 1e-4 * reach.max())  # thin ones are not blown up
        self.points = ((turned - (low + high) / 2) / np.where(thick, scale, np.inf))[:, thick]  # [m, r]
        r = self.points.shape[1]
        self.count = math.comb(r + degree, r)
        _affordable(self.count, len(points))
        # of each product: its factors, as axes and degrees [count, most factors]; degree 0 is no factor
        terms = [Counter(term) for k in range(degree + 1) for term in combinations_with_replacement(range(r), k)]
        self.axes, self.degrees = np.zeros((2, self.count, min(r, degree)), int)
        for row, term in enumerate(terms):
            self.axes[row, : len(term)], self.degrees[row, : len(term)] = list(term), list(term.values())

    def __call__(self, which) -> Float[np.ndarray, "b count"]:
        x = self.points[which]
        chebyshev = [np.ones_like(x), x]
        while len(chebyshev) <= self.degrees.max(initial=0):
            chebyshev.append(2 * x * chebyshev[-1] - chebyshev[-2])
        table = np.stack(chebyshev)  # [degree + 1, b, r]
        rows = np.ones((len(x), self.count))
        for axes, degrees in zip(self.axes.T, self.degrees.T, strict=True):
            rows *= table[degrees, :, axes].T
        return rows


def _affordable(count: int, m: int) -> None:
    """Refuse what a factorisation of min{m, 2·count} points would take too long for, or too much memory."""
    if count > 3000 and count * min(m, 2 * count) > 2 * 3000**2:
        raise ValueError(f"{count} moments are too many to match in float64 here: at most 3000; take a lower degree")


def _match(features, count: int, m: int, weights, tolerance: float) -> Compressed:
    """At most `count` of m weighted points with the same mean of `features(which)` [b, count], verified."""
    _affordable(count, m)
    given = _masses(weights, m)
    if not (np.isfinite(given).all() and (given >= 0).all() and given.any()):
        raise ValueError("weights must be finite numbers >= 0, not all of them 0")
    given = given / given.max()
    given = given / given.sum()
    starts = np.flatnonzero(given)
    target = _sums(features, count, starts, given[starts], np.array([0, len(starts)]))[0]
    for negligible in (1e-14, 0.0):  # relative size of what counts as rounding: the second try counts everything
        kept, mass = starts, given[starts]
        while True:
            groups = min(len(kept), 2 * count)
            edges = np.linspace(0, len(kept), groups + 1).astype(int)
            total = np.add.reduceat(mass, edges[:-1])
            centres = _sums(features, count, kept, mass, edges) / total[:, None]
            factor = np.repeat(_eliminate(centres, total, negligible) / total, np.diff(edges))
            kept, mass = kept[factor > 0], (mass * factor)[factor > 0]
            if len(edges) == len(factor) + 1:  # every group was a single token
                break
        mass = mass / mass.sum()
        rows = features(kept)
        miss = np.abs(mass @ rows - target).max()
        if len(kept) <= count and miss <= tolerance:
            return Compressed(kept, mass)
    raise ValueError(
        f"the compressed prompt misses a moment by {miss:.1e}, more than the tolerance {tolerance:.1e}: the {count} "
        f"moments are too close to dependent (condition number {np.linalg.cond(rows):.1e})"
    )


def _sums(features, count: int, kept, mass, edges) -> Float[np.ndarray, "groups count"]:
    """Σ mass·features over each group of consecutive tokens, reading about 4096 tokens at a time."""
    sums = np.zeros((len(edges) - 1, count))
    for start in range(0, len(kept), 4096):
        stop = min(len(kept), start + 4096)
        rows = features(kept[start:stop]) * mass[start:stop, None]
        first = np.searchsorted(edges, start, side="right") - 1
        last = np.searchsorted(edges, stop, side="left")  # groups first … last − 1 meet this chunk
        sums[first:last] += np.add.reduceat(rows, np.maximum(edges[first:last] - start, 0), axis=0)
    return sums


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
