"""Theorem 4b: what a written network reads from its prompt, how sharp its softmax must be, and how many keys exist."""

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from prompt_memory.bounds._checks import nonnegative, positive
from prompt_memory.bounds._numerics import threshold
from prompt_memory.checks import integers


def construction_bits(d: int, d_k: int, m: int, levels: int = 2) -> float:
    """m (d − d_k) log2(levels), the bits that the construction writes into a prompt of m tokens of width d.

    d_k coordinates of each token are its key, each of the others holds one of `levels` values (Theorem 4b).
    ValueError if an argument is not an integer >= 1, or unless d_k < d.
    """
    d, d_k, m, levels = integers(d=d, d_k=d_k, m=m, levels=levels)
    return m * _value_coordinates(d, d_k) * math.log2(levels)


def fixed_key_bits(d: int, d_k: int, m: int, margin: float, amplitude: float = 1.0) -> float:
    """m (d − d_k) log2⌈2·amplitude/margin⌉, in bits: what values in [−amplitude, amplitude] can hold.

    With amplitude 1 it bounds Mem_γ of prompts whose keys are given and whose values are real numbers in [−1, 1], over
    any number of key, coordinate and threshold queries.  With amplitude 1/‖S⁻¹‖_∞ it is attained (Theorem 4b).
    `margin` is γ, the difference of the two logits.  ValueError unless 0 < margin and 0 < amplitude are finite.
    """
    levels = math.ceil(2 * positive("amplitude", amplitude) / positive("margin", margin))
    return construction_bits(d, d_k, m, levels=levels)


def softmax_leak(cosines: Float[np.ndarray, "m m"], logit_range: float, *, own_token: bool = False) -> float:
    """ρ = 1 − the least attention that a token gets from the query for its key, as a fraction.

    Logits are B times the cosine between keys, so that the weight on the right token is
    1 / (1 + Σ_{j≠i} e^{−B(1−cos_ij)}), with another e^{−2B} in the sum if the query attends to itself (Theorem 4b).
    ValueError unless `cosines` is a square matrix with ones on the diagonal and B is a finite number >= 0.
    """
    return (excess := _leak_odds(_gram(cosines), nonnegative("logit_range", logit_range), own_token)) / (1 + excess)


def code_logit_range(cosines: Float[np.ndarray, "m m"], *, leak: float = 0.25, own_token: bool = False) -> float:
    """The least B >= 0 at which keys with these cosines leak at most `leak`: inverse of `softmax_leak` (Theorem 4b).

    At most `cosine_logit_range` of the largest cosine.  ValueError as there, or if two keys are equal.
    """
    cosines, odds = _gram(cosines), _odds(leak)
    if len(cosines) > 1 and (cosines - 2 * np.eye(len(cosines))).max() >= 1 - 1e-12:
        raise ValueError("two keys are equal: no logit range tells them apart")

    def leaks(logit_range: float) -> bool:
        return _leak_odds(cosines, logit_range, own_token) > odds

    if not leaks(0.0):
        return 0.0
    high = 1.0
    while leaks(high):
        high *= 2
    return threshold(leaks, 0.0, high)  # rounded upwards: the safe side


def cosine_logit_range(m: int, cosine: float, *, leak: float = 0.25, own_token: bool = False) -> float:
    """ln((m − 1)(1 − leak)/leak) / (1 − cosine), at least 0: a logit range B that serves m keys (Theorem 4b).

    If no two keys have a larger cosine, at most `leak` of the attention goes to wrong tokens; leak = 1/4 gives the
    condition B(1 − c) >= ln(3(m − 1)).  Sharp where all cosines are equal.  A query that attends to itself counts as
    one more token.  ValueError unless m >= 1, −1 <= cosine < 1 and 0 < leak < 1.
    """
    (m,) = integers(m=m)
    if not -1 <= cosine < 1:
        raise ValueError(f"the largest cosine must lie in [-1, 1), not {cosine}")
    odds, others = _odds(leak), m - 1 + bool(own_token)
    return max(0.0, math.log(others / odds) / (1 - cosine)) if others else 0.0


def necessary_logit_range(m: int, amplitude: float) -> float:
    """½ ln((m − 1) g²/(1 − g²)), at least 0: a logit range B that no choice of m keys and m key queries can do without.

    If values in [−1, 1] behind given keys can make the m read-outs of a coordinate have any pattern of signs, each
    with modulus >= g = `amplitude`, and logits lie in [−B, B], then B is at least this (Theorem 4b).
    ValueError unless m >= 1 and 0 < amplitude < 1.
    """
    (m,) = integers(m=m)
    if not 0 < amplitude < 1:
        raise ValueError(f"amplitude must lie between 0 and 1, not {amplitude}")
    return max(0.0, math.log((m - 1) * amplitude**2 / (1 - amplitude**2)) / 2) if m > 1 else 0.0


def amplitude_ceiling(m: int, logit_range: float) -> float:
    """1/√(1 + (m − 1)e^{−2B}), inverse of `necessary_logit_range`: no m keys and key queries reach a larger amplitude.

    Readings of one coordinate that take every pattern of m signs, from values in [−1, 1] behind given keys and with
    logits in [−B, B], cannot all have moduli above it (Theorem 4b, part 5).  A number in (0, 1].
    ValueError unless m >= 1 and B is a finite number >= 0.
    """
    (m,) = integers(m=m)
    return 1 / math.sqrt(1 + (m - 1) * math.exp(-2 * nonnegative("logit_range", logit_range)))


def code_size_bits(d_k: int, cosine: float, *, signs: bool = False) -> float:
    """log2 of a number of keys with pairwise cosine <= `cosine` that exist in R^{d_k}, in bits.

    A code that cannot be enlarged covers the sphere with its caps, so it has at least ⌈1/σ⌉ words, where σ is the
    fraction of the sphere at a larger cosine than c from a point: ½ I_{1−c²}((d_k−1)/2, ½), at most
    ½ (1−c²)^{(d_k−1)/2} for c >= 0.  With `signs` the keys are vectors of ±1 (over √d_k), and σ is the probability that
    fewer than d_k(1−c)/2 fair coins fall on one side, at most e^{−c²d_k/2} (Theorem 4b, part 4).
    ValueError unless d_k >= 1 (with real keys 2) and 0 <= cosine < 1.
    """
    (d_k,) = integers(d_k=d_k)
    if not 0 <= cosine < 1:
        raise ValueError(f"the largest cosine must lie in [0, 1), not {cosine}")
    if signs:
        near = math.ceil(d_k * (1 - cosine) / 2 - 1e-9)  # words at distances 0 … near − 1 are too close
        ball = sum(math.comb(d_k, h) for h in range(near))
        return math.log2(-(-(2**d_k) // ball))
    if d_k == 1:
        raise ValueError("real keys need d_k >= 2: on a line there are only two unit vectors")
    cap = float(special.betainc((d_k - 1) / 2, 0.5, 1 - cosine**2)) / 2
    if cap > 1e-290:
        return math.log2(math.ceil(1 / cap - 1e-9))
    return 1 - (d_k - 1) / 2 * math.log2(1 - cosine**2)


def _value_coordinates(d: int, d_k: int) -> int:
    if d_k >= d:
        raise ValueError(f"keys of d_k = {d_k} coordinates leave none of d = {d} for values: give d_k < d")
    return d - d_k


def _gram(cosines: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    cosines = np.asarray(cosines, dtype=float)
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1] or not cosines.size:
        raise ValueError(f"cosines must be a square matrix, not of shape {list(cosines.shape)}")
    if not (np.allclose(np.diag(cosines), 1, rtol=0, atol=1e-6) and np.abs(cosines).max() <= 1 + 1e-6):
        raise ValueError("cosines must lie in [-1, 1], with ones on the diagonal: normalise the keys")
    return cosines


def _leak_odds(cosines: Float[np.ndarray, "m m"], logit_range: float, own_token: bool) -> float:
    """The largest ratio of wrong to right attention, max_i Σ_{j≠i} e^{−B(1−cos_ij)}."""
    apart = np.exp(-logit_range * (1 - np.minimum(cosines, 1)))
    return float((apart.sum(1) - np.diag(apart)).max()) + bool(own_token) * math.exp(-2 * logit_range)


def _odds(leak: float) -> float:
    if not 0 < leak < 1:
        raise ValueError(f"leak is a fraction between 0 and 1, not {leak}")
    return leak / (1 - leak)
