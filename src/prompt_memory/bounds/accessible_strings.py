"""Theorem 4: how many strings some prompt can unlock."""

import math

import numpy as np
from jaxtyping import Float

from prompt_memory.bounds._checks import labels


def accessible_fraction(bits: float, n: int, vocabulary: int) -> float:
    """min(1, 2^bits / V^n): the largest fraction of all strings of n tokens that 2^bits prompts can yield (Theorem 4).

    `bits` is log2 of the number of allowed prompts, or of a packing number of their outputs.  ValueError if bits < 0
    or NaN, n < 1 or the vocabulary has fewer than two tokens.
    """
    n, vocabulary = labels(bits, n, vocabulary)
    return 2.0 ** min(0.0, bits - n * math.log2(vocabulary))


def critical_length(bits: float, vocabulary: int) -> float:
    """(bits + 1)/log2 V, in tokens: beyond it fewer than half of all strings are accessible (Theorem 4).

    Linear in the bits, hence in the prompt length.  ValueError as in `accessible_fraction`.
    """
    _, vocabulary = labels(bits, 1, vocabulary)
    return (bits + 1) / math.log2(vocabulary)


def source_ceiling(log2_probabilities: Float[np.ndarray, " K"], bits: float) -> float:
    """The mass of the 2^bits likeliest strings: a ceiling on the probability that a string of the source is accessible.

    `log2_probabilities` are those of *all* strings of the length in question (Theorem 4).  ValueError if they do not
    add up to one within 1e-9, or if bits < 0 or NaN.
    """
    labels(bits, 1, 2)
    mass = np.sort(np.exp2(np.asarray(log2_probabilities, dtype=float)))[::-1]
    if not abs(mass.sum() - 1) < 1e-9:
        raise ValueError(f"the probabilities of all strings add up to one, not to {mass.sum():.6g}")
    return min(1.0, float(mass[: int(min(len(mass), 2.0**bits))].sum()))


def mimo_bits(singular_values: Float[np.ndarray, " k"], radius: float, eps: float) -> float:
    """Σ_i log2(1 + r σ_i/ε), in bits: the prompt as a linear channel with singular values σ_i.  A heuristic, no bound.

    A linear map of a box of half-side r has about that many outputs a distance ε apart.  ValueError unless radius and
    eps are positive and the singular values nonnegative.
    """
    sigma = np.asarray(singular_values, dtype=float)
    if not (radius > 0 and eps > 0 and np.all(sigma >= 0)):
        raise ValueError("radius and eps must be > 0 and singular values >= 0")
    return float(np.log2(1 + radius * sigma / eps).sum())
