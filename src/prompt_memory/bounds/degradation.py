"""Theorem 8: in long contexts every fact gets less attention, and recall falls."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy import special

from prompt_memory.bounds._checks import classes, nonnegative, positive
from prompt_memory.bounds._layers import network_constants
from prompt_memory.bounds._numerics import threshold
from prompt_memory.bounds.coverage import require
from prompt_memory.checks import integers


def dilution(n: int, logit_range: float) -> float:
    """1/(1 + (n − 1)e^{−Δ}), the largest attention that one of n tokens can get, as a fraction.

    For softmax logits in an interval of length Δ = `logit_range`; attained by one token at its top and all others at
    its bottom (Theorem 8, part 1).  ValueError unless n is an integer >= 1 and Δ is finite and >= 0.
    """
    (n,) = integers(n=n)
    return 1 / (1 + (n - 1) * math.exp(-nonnegative("logit_range", logit_range)))


def dilution_range(n: int, share: float) -> float:
    """ln(n − 1) + ln(w/(1 − w)), the least range of logits at which one of n tokens can get the share w of attention.

    The inverse of `dilution` for a share above 1/n; 0 for a smaller one, which equal logits give (Theorem 8, part 1).
    ValueError unless n is an integer >= 1 and 0 < share < 1.
    """
    (n,) = integers(n=n)
    if not 0 < share < 1:
        raise ValueError(f"share must lie strictly between 0 and 1, not {share!r}")
    return max(0.0, math.log(n - 1) + math.log(share / (1 - share))) if n > 1 else 0.0


def dilution_length(logit_range: float, spread: float, eps: float) -> float:
    """1 + e^Δ (D/(4ε) − 1), at least 1: in contexts of at least so many facts, recall with margin 2ε is chance.

    One token holds one fact, and D = `spread` bounds what a fact's token adds to the difference of two outputs more
    than another token would, attention being equal (Theorem 8, part 2).  A number of facts.
    ValueError unless Δ and D are finite and >= 0 and eps is finite and > 0.
    """
    return max(1.0, 1 + math.exp(nonnegative("logit_range", logit_range)) * (_diluted(spread, eps) - 1))


def diluted_recall_ceiling(n: int, q: int, *, mean: float, square: float, spread: float, eps: float) -> float:
    """1/q + (1 − 1/q) exp(−θ²(n − 1)μ²/(2 m₂)), with θ = 1 − (D/(4ε) − 1)/((n − 1)μ): recall with margin 2ε.

    The n − 1 other facts are independent and alike; of each, e^{s − s*} has the mean μ and the mean square m₂, where s*
    is the largest softmax logit that the fact in question can have.  D as in `dilution_length`; 1/q if D <= 4ε, 1 if
    θ < 0 (Theorem 8, part 2).  ValueError unless 0 < μ² <= m₂, n >= 1, q >= 2, D >= 0 and eps > 0.
    """
    n, q = *integers(n=n), classes(q)
    if not 0 < mean**2 <= square * (1 + 1e-9):
        raise ValueError(f"mean and mean square must satisfy 0 < mean² <= square, not {mean} and {square}")
    total, needed = (n - 1) * mean, _diluted(spread, eps) - 1
    if needed <= 0:  # whatever the others say
        return 1 / q
    if total <= needed:
        return 1.0
    theta = 1 - needed / total
    return 1 / q + (1 - 1 / q) * math.exp(-(theta**2) * total * mean / (2 * square))


def exchange_effect(
    config,
    weights: Mapping[str, Float[np.ndarray, "..."]],
    n: int,
    *,
    radius: float,
    query_radius: float,
    change: float | None = None,
    least_norm: float = 0.0,
    differences: bool = True,
) -> float:
    """How much the logits of a whole network move, at most, if one of n prompt tokens is exchanged for another.

    The two tokens are `change` apart (default: 2·radius); the network may be causal or bidirectional, of any depth,
    with any number of heads, norms, and no, learned or rotary positions.  The bound is Σ_k x_k 𝒜_k·change, where 𝒜_k is
    1/n for a bidirectional network and h_{k−1}(1, 1/2, …, 1/n)/n for a causal one, with h the complete symmetric
    polynomial, at most Σ_{i<k} (ln n)^i / (i! n); the coefficients x_k follow from the constants of Lemma 7a layer by
    layer (Theorem 8, part 5).  Where half the largest difference of two logits moves by at most 2ε, at most one value
    of the token's fact is recalled with margin 2ε.  Arguments as in `network_wasserstein`, in logits; decreases with n;
    infinite if it overflows or a norm may divide by zero.  ValueError as there, but for rotary positions, or unless n
    is an integer >= 1 and change >= 0.
    """
    (n,) = integers(n=n)
    moved = 2 * nonnegative("radius", radius) if change is None else nonnegative("change", change)
    require("Theorem 8, part 5", config)
    layers, reading, slope = network_constants(
        config, weights, radius, query_radius, least_norm=least_norm, differences=differences
    )
    # coefficients of `_exchanged_means`: of a token, at first the exchanged one alone, and of the token that reads
    e, x = np.zeros(config.depth + 1), np.zeros(config.depth + 1)
    e[0] = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in layers:
            own = slope * layer.moved_by_query()
            mean = np.concatenate([[0.0], e[:-1]])  # one mean more
            x = layer.token_wise * ((1 + own) * x + slope * layer.moved_by_measure(layer.query) * mean)
            e = layer.token_wise * ((1 + own) * e + slope * layer.moved_by_measure(layer.keys) * mean)
        effect = reading * slope * moved * float(x @ _exchanged_means(n, config.depth, config.causal))
    return math.inf if math.isnan(effect) else effect


def _exchanged_means(n: int, depth: int, causal: bool) -> list[float]:
    """0 and 𝒜_1 … 𝒜_depth: of a move of one token of n by 1, the mean, the mean of the means at all tokens, and so on.

    Each is 1/n if all tokens see each other; causal, h_{k−1}(1, 1/2, …, 1/n)/n by Newton's identities.
    """
    if not causal:
        return [0.0] + [1 / n] * depth
    powers = [float(special.digamma(n + 1) + np.euler_gamma)]  # power sums of 1, 1/2, …, 1/n
    powers += [float(special.zeta(i) - special.zeta(i, n + 1)) for i in range(2, depth + 1)]
    means = [0.0, 1 / n]
    for k in range(1, depth):
        means.append(sum(p * mean for p, mean in zip(powers, means[:0:-1], strict=False)) / k)
    return means


def argmax_recall_ceiling(n: int, q: int, *, spread: float, deviation: float) -> float:
    """1/q + ¾ (q − 1) ρ/(σ√(n − 1)), at most 1: recall without a margin among n facts, one per token.

    The other facts are independent and alike.  For two values y ≠ y' a fact's token adds X = e^s (f_y − f_y' + b_y −
    b_y') to the comparison, s being its softmax logit and f its votes; ρ = `spread` is the length of an interval that
    holds X for all tokens that facts may have, σ = `deviation` the standard deviation of X, and ρ/σ the largest of any
    pair of values.  Numbers that depend on the query and on n only may be subtracted from a comparison (Theorem 8,
    part 4).
    ValueError unless 0 < deviation <= spread/2 are finite, n >= 1 and q >= 2.
    """
    n, q = *integers(n=n), classes(q)
    if not 0 < deviation <= nonnegative("spread", spread) / 2 * (1 + 1e-9):
        raise ValueError(f"the deviation must be > 0 and at most half the spread {spread}, not {deviation!r}")
    return min(1.0, 1 / q + 0.75 * (q - 1) * spread / (deviation * math.sqrt(n - 1))) if n > 1 else 1.0


def gaussian_recall(snr: float, q: int) -> float:
    """∫ φ(g) Φ(g + √snr)^{q−1} dg: how often a signal is the largest of q independent normal numbers, as a fraction.

    `snr` is the square of the signal over the variance.  1/q at snr = 0.  ValueError unless snr >= 0 and q >= 2.
    """
    q, signal = classes(q), math.sqrt(nonnegative("snr", snr))
    points = np.linspace(-12, 12, 4801)  # trapezoids: the integrand and its derivatives vanish at the ends
    weights = np.exp(-(points**2) / 2)
    return float((weights * special.ndtr(points + signal) ** (q - 1)).sum() / weights.sum())


def critical_snr(q: int, recall: float = 0.5) -> float:
    """The signal-to-noise ratio at which `gaussian_recall` is `recall`.  ValueError unless 1/q < recall < 1."""
    q = classes(q)
    if not 1 / q < recall < 1:
        raise ValueError(f"recall must lie strictly between 1/q = {1 / q:g} and 1, not {recall}")

    def weak(snr: float) -> bool:
        return gaussian_recall(snr, q) < recall

    high = 1.0
    while weak(high):
        high *= 2
    return threshold(weak, 0.0, high)


def argmax_length(q: int, gap: float, recall: float = 0.5) -> float:
    """q e^{2Δ}/ρ with ρ = `critical_snr`: the number of facts at which argmax recall falls to `recall`; a heuristic.

    `gap` is Δ = ln(E e^{s_target}/√(E e^{2s})).  Sums of attention over the facts of each value are taken for
    independent normal numbers of equal variance (N/q) E e^{2s} and equal mean, votes for symmetric.  Not a bound.
    ValueError as in `critical_snr`, or unless gap is finite.
    """
    if not math.isfinite(gap):
        raise ValueError(f"gap must be a finite number, not {gap}")
    return classes(q) * math.exp(2 * gap) / critical_snr(q, recall)


def argmax_plateau_bits(q: int, gap: float) -> float:
    """M_q² q e^{2Δ}/(2 ln 2 (q − 1)), in bits: the limit of N R_q(1 − recall) under the law of `argmax_length`.

    M_q is the mean of the largest of q standard normal numbers; recall exceeds 1/q by (M_q/q)√(q e^{2Δ}/N).
    A heuristic.  ValueError unless q >= 2 and gap is finite.
    """
    q = classes(q)
    if not math.isfinite(gap):
        raise ValueError(f"gap must be a finite number, not {gap}")
    points = np.linspace(-12, 12, 4801)
    mass = np.exp(-(points**2) / 2) * special.ndtr(points) ** (q - 1)
    largest = float((points * mass).sum() / mass.sum())
    return largest**2 * q * math.exp(2 * gap) / (2 * math.log(2) * (q - 1))


def _diluted(spread: float, eps: float) -> float:
    """D/(4ε), checked."""
    return nonnegative("spread", spread) / (4 * positive("eps", eps))
