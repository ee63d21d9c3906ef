"""Theorem 5: a few weighted tokens on which attention from given queries is exactly what it was."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg

from prompt_memory.checks import integers
from prompt_memory.compress.attention import Compressed, attend, check, masses
from prompt_memory.compress.elimination import fewer


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
    given = masses(weights, m)
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
        kept, mass = fewer(partial(_sums, rows), rows.shape[1], np.concatenate([mass, new_mass[seen]]), negligible)
        indices, rows = np.concatenate([indices, part[seen]])[kept], rows[kept]
    if not len(indices):
        if keep_mass:  # every query looks at itself only: any token may stay
            indices = np.array([np.argmax(layer.given)])
            return CompressedWithOwn(indices, np.ones(1), layer.own / layer.given[indices[0]])
        return _compress(layer, True, block, negligible)  # no token is needed, yet weights are to sum to 1
    logs = _polish(layer, indices, np.log(mass) - layer.rows(indices)[1])
    weights = np.exp(logs - logs.max())
    return CompressedWithOwn(indices, weights / weights.sum(), layer.own * np.exp(-logs.max()) / weights.sum())


def _sums(rows, which, mass, edges):
    return np.add.reduceat(mass[:, None] * rows[which], edges[:-1], axis=0)


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
