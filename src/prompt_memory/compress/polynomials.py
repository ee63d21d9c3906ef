"""Theorem 6: a few weighted tokens with the same means of all polynomials up to a degree, for every query at once."""

import math
from collections import Counter
from itertools import combinations_with_replacement

import numpy as np
from jaxtyping import Float

from prompt_memory.checks import integers
from prompt_memory.compress.attention import Compressed, masses
from prompt_memory.compress.elimination import fewer


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
    given = masses(weights, m)
    if not (np.isfinite(given).all() and (given >= 0).all() and given.any()):
        raise ValueError("weights must be finite numbers >= 0, not all of them 0")
    given = given / given.max()
    given = given / given.sum()
    starts = np.flatnonzero(given)
    target = _sums(features, count, starts, given[starts], np.array([0, len(starts)]))[0]
    for negligible in (1e-14, 0.0):  # relative size of what counts as rounding: the second try counts everything
        kept, mass = fewer(
            lambda which, mass, edges: _sums(features, count, starts[which], mass, edges),
            count, given[starts], negligible,
        )  # fmt: skip
        kept, mass = starts[kept], mass / mass.sum()
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
