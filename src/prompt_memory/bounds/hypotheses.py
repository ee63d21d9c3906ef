"""Propositions 9a to 9f: how many facts a head can address, and what it costs to break a hypothesis of Theorem 8."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import special

from prompt_memory.bounds._checks import nonnegative
from prompt_memory.bounds._numerics import threshold
from prompt_memory.checks import integers


def pairwise_gap(eps: float) -> float:
    """Δ = ln((1 + ε)/(1 − ε)), in nats: how much louder a fact must be than any other one at its own query.

    Values lie in [−1, 1] and a fact is recalled with margin 2ε (Proposition 9a).  ValueError unless 0 < ε < 1.
    """
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie strictly between 0 and 1, not {eps!r}")
    return math.log1p(eps) - math.log1p(-eps)


def addressed_facts(d_k: int, B: float, eps: float) -> float:
    """(1 + √(2B/Δ))^{d_k}: how many facts one head with keys of d_k coordinates can address, whatever the context.

    B is the product of the largest lengths of queries and keys, so that softmax logits lie in [−B, B]; keys do not
    depend on labels, values lie in [−1, 1] and move with their own label only; all 2^M labelings of the M facts are
    recalled with margin 2ε; Δ = `pairwise_gap`(ε).  Any number of tokens, of any multiplicity (Proposition 9a, part 1);
    inf above e^700.  ValueError unless d_k >= 1, B >= 0 is finite and 0 < ε < 1.
    """
    (d_k,) = integers(d_k=d_k)
    base = 1 + math.sqrt(2 * nonnegative("B", B) / pairwise_gap(eps))
    return base**d_k if d_k * math.log(base) < 700 else math.inf


def several_heads_facts(d_k: int, B: Sequence[float], eps: float) -> float:
    """Σ_h (1 + √(2B_h/Δ))^{d_k}: how many facts several heads can address together, whatever the context.

    B holds, for each head, the product of the largest lengths of its queries and keys.  The reading is the sum of what
    the heads read; a fact's label moves it towards itself in every head, the values of head h lie in [−β_h, β_h] with
    Σ_h β_h = 1, and the rest is as in `addressed_facts` (Proposition 9a, part 3).  ValueError as there, or without a
    head.
    """
    if not len(B):
        raise ValueError("give the largest softmax logit of at least one head")
    return sum(addressed_facts(d_k, each, eps) for each in B)


def addressing_logit_range(d_k: int, facts: int, eps: float) -> float:
    """½ Δ (M^{1/d_k} − 1)², the least B at which `addressed_facts` is M (Proposition 9a, part 1).

    ValueError unless d_k >= 1, facts >= 1 and 0 < ε < 1.
    """
    d_k, M = integers(d_k=d_k, facts=facts)
    return pairwise_gap(eps) / 2 * (M ** (1 / d_k) - 1) ** 2


def sphere_facts(d_k: int, B: float, eps: float) -> float:
    """1/σ(φ/2) with cos φ = 1 − Δ/B: how many facts fit if each is asked with its own key and keys are unit vectors.

    Logits are B times cosines, and B(1 − cos) > Δ between any two keys; σ(ψ) = ½ I_{sin²ψ}((d_k−1)/2, ½) is the
    fraction of the sphere within the angle ψ of a point.  1 if 2B <= Δ; for d_k = 1 there are two keys.  Grows like
    B^{(d_k−1)/2} (Proposition 9a, part 2).  ValueError as in `addressed_facts`.
    """
    (d_k,) = integers(d_k=d_k)
    gap = pairwise_gap(eps)
    if 2 * nonnegative("B", B) <= gap:
        return 1.0
    if d_k == 1:
        return 2.0
    share = float(special.betainc((d_k - 1) / 2, 0.5, gap / (2 * B)))
    return 2 / share if share > 1e-300 else math.inf


def circle_facts(B: float, eps: float) -> int:
    """The largest M for which M evenly spaced keys on a circle hold every labeling with margin 2ε, at this B; exact.

    That is Σ_{j=1}^{M−1} e^{−B(1−cos(2πj/M))} < (1−ε)/(1+ε): the worst labeling opposes one fact with all others.
    Grows like √B (Proposition 9b).  ValueError unless B >= 0 is finite and 0 < ε < 1.
    """
    odds, B = math.exp(-pairwise_gap(eps)), nonnegative("B", B)

    def holds(M: int) -> bool:
        near = min(M // 2, 1 + math.ceil(M * math.sqrt(20 / max(B, 1e-300)))) if B else M // 2
        j = np.arange(1, min(near, M // 2) + 1)  # beyond, at sin² >= 80/B, a term is at most e^−160
        apart = np.exp(-2 * B * np.sin(math.pi * j / M) ** 2)
        return 2 * apart.sum() - (apart[-1] if len(j) and 2 * j[-1] == M else 0.0) < odds

    low, high = 1, 2
    while holds(high):  # more keys lie closer together: the sum grows with M
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def shell_logit_range(d_k: int, separation: float, eps: float) -> float:
    """A logit range B that serves *any* number of unit keys at distances >= s = `separation`, with margin 2ε.

    B = 2b/s², where b solves Σ_{t>=2} ((2t+1)^{d_k} − 1)(e^{−b(t−1)²} − e^{−bt²}) = (1−ε)/(1+ε): a ball of radius ts
    holds at most (2t+1)^{d_k} points at distances >= s (Proposition 9c).  Without the logarithm of the number of keys,
    which `cosine_logit_range` has.  ValueError unless d_k >= 1, 0 < separation <= 2 and 0 < ε < 1.
    """
    (d_k,) = integers(d_k=d_k)
    if not 0 < separation <= 2:
        raise ValueError(f"separation is a distance of unit vectors, above 0 and at most 2, not {separation!r}")
    odds, t = math.exp(-pairwise_gap(eps)), np.arange(2, 200 + 10 * d_k, dtype=float)
    inside = d_k * np.log(2 * t + 1) + np.log1p(-((2 * t + 1) ** -float(d_k)))  # logarithms: the powers overflow

    def leaked(b: float) -> float:
        with np.errstate(over="ignore"):  # inf is far above the odds
            return float((np.exp(inside - b * (t - 1) ** 2) * -np.expm1(-b * (2 * t - 1))).sum())

    low, high = 0.0, 0.1
    while leaked(high) > odds:
        low, high = high, 2 * high
    return 2 * threshold(lambda b: leaked(b) > odds, low, high) / separation**2


def expected_leak_odds(n: int, d_k: int, B: float) -> float:
    """(n − 1) e^{−B} ₀F₁(; d_k/2; B²/4): mean of Σ_{j≠i} e^{−B(1−cos_ij)} over independent uniform unit keys.

    At most (n − 1) e^{−B + B²/(2d_k)}.  By Markov's inequality a fact is then recalled with margin 2ε, whatever the
    labels, with probability at least 1 − odds·(1+ε)/(1−ε) (Proposition 9b).
    ValueError unless n >= 1, d_k >= 2 and B >= 0 is finite.
    """
    n, d_k = integers(n=n, d_k=d_k)
    if d_k < 2:
        raise ValueError("uniform keys need d_k >= 2")
    B, order = nonnegative("B", B), d_k / 2 - 1
    if n == 1 or B == 0:
        return float(n - 1)
    # ₀F₁(; ν+1; B²/4) = Γ(ν+1) (2/B)^ν I_ν(B), with the exponential factor taken out
    scaled = float(special.ive(order, B))
    if not math.isfinite(scaled):  # scipy gives NaN for B of 10^10 or so; there this is exact to rounding
        scaled = 1 / math.sqrt(2 * math.pi) / math.sqrt(B)
    if scaled > 0:
        return (n - 1) * math.exp(math.lgamma(order + 1) + order * math.log(2 / B) + math.log(scaled))
    return (n - 1) * math.exp(-B) * float(special.hyp0f1(order + 1, B * B / 4))


def circle_gain_log2(n: int, B: float) -> float:
    """log2 of the least eigenvalue of the attention matrix of n evenly spaced keys on a circle, <= 0.

    The matrix is a circulant with eigenvalues Σ_{k∈Z} I_{l+kn}(B) / Σ_{k∈Z} I_{kn}(B), l = 0 … n − 1, all positive;
    the least has l = ⌊n/2⌋ and is about 2 (eB/n)^{n/2} for even n.  Values that make every label readable shrink
    the margin by about this factor (Proposition 9f).  ValueError unless n >= 1 and 0 < B <= 10^9.
    """
    (n,) = integers(n=n)
    if not 0 < nonnegative("B", B) <= 1e9:
        raise ValueError(f"B must be > 0 and at most 1e9, not {B!r}")

    def log_sum(first: int) -> float:
        reach = math.ceil((60 * math.sqrt(B) + 200) / n) + 1  # I_j(B)/I_0(B) is about e^{−j²/2B} or less
        order = np.abs(first + n * np.arange(-reach, reach + 1)).astype(float)
        scaled = special.ive(order, B)  # e^{−B} I
        if scaled.max() > 1e-250:
            return B + math.log(scaled.sum())
        order = order[order <= 2 * order.min() + 1]  # log I_j is concave in j: others are below 1e−500
        log_bessel = order * math.log(B / 2) - special.gammaln(order + 1) + _log_hyp0f1(order + 1, 2 * math.log(B / 2))
        return float(special.logsumexp(log_bessel))

    return (log_sum(n // 2) - log_sum(0)) / math.log(2)


def _log_hyp0f1(c: Float[np.ndarray, " k"], log_x: float) -> Float[np.ndarray, " k"]:
    """ln ₀F₁(; c; x) for c >= 1 and x > 0, given by its logarithm, by the series of positive terms."""
    j = np.arange(0, 60 + math.ceil(6 * math.exp(log_x / 2)))[:, None]  # beyond √x terms fall faster than (√x/j)^2j
    terms = j * log_x - special.gammaln(j + 1) - special.gammaln(c + j) + special.gammaln(c)
    return special.logsumexp(terms, axis=0)
