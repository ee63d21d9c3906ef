"""Theorem 4e: what strings cost under a law on prompts that was fixed before them."""

import math

from prompt_memory.bounds._checks import nonnegative


def least_cost_bits(surprise_bits: float, error: float) -> float:
    """max(0, h − log2(1/error)), in bits: what strings cost at least, with probability at least 1 − error.

    h = −log2 of the probability of what the source wrote: n log2 V for a uniform string of n tokens, the sum for
    independent strings.  Their cost is −log2 of the prior mass of the prompts that write them (the sum for several
    strings), or of an estimate of it whose mean is no larger (Theorem 4e, part 4).
    ValueError unless h is finite and >= 0 and 0 < error <= 1.
    """
    surprise_bits = nonnegative("surprise_bits", surprise_bits)
    if not 0 < error <= 1:
        raise ValueError(f"error must lie in (0, 1], not {error!r}")
    return max(0.0, surprise_bits + math.log2(error))
