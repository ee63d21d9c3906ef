"""Theorem 11: how many random labels in a row are memorised on average."""

import math

from prompt_memory.bounds._checks import classes, nonnegative
from prompt_memory.checks import integers


def expected_length_ceiling(bits: float, q: int) -> float:
    """Σ_{n >= 1} min(1, 2^bits q^{−n}): how many of a sequence of random labels 2^bits prompts memorise on average.

    For labels uniform in q classes, the expectation of the longest beginning that some prompt memorises is at most
    this: k + 2^bits q^{−k}/(q − 1), k = ⌊bits/log2 q⌋; bits + 1 for q = 2 and whole bits (Theorem 11, part 1).
    Returns a number of labels.  ValueError unless bits >= 0 and q >= 2.
    """
    q = classes(q)
    bits = nonnegative("bits", bits)
    whole = math.floor(bits / math.log2(q) + 1e-12)
    return whole + 2.0 ** (bits - whole * math.log2(q)) / (q - 1)


def affine_length(coordinates: int) -> int:
    """2D + 1: the expected longest beginning of random labels that D real coordinates memorise if logits are affine.

    For two classes and logit differences that are affine in D coordinates, in general position; it is also the number
    of labels at which exactly half of all labelings are memorised (Theorem 11, part 2; after Cover, 1965).
    ValueError unless D is an integer >= 1.
    """
    (D,) = integers(coordinates=coordinates)
    return 2 * D + 1
