"""Numerical methods that several chapters use."""

import math
from collections.abc import Callable


def log2_binomial(n: int, k: int) -> float:
    """log2 C(n, k), in bits, for integers 0 <= k <= n of any size.

    A sum of logarithms, as n may have thousands of digits, where factorials fail; Stirling's series for large k.
    """
    k = min(k, n - k)
    if k <= 10**5:
        return math.fsum(math.log2(n - i) - math.log2(i + 1) for i in range(k))
    share = k / n
    others = (1 / share - 1) * math.log1p(-share) if share > 1e-300 else -1.0  # (n − k)/k · ln(1 − k/n)
    square_root = (math.log2(n) - math.log2(n - k) - math.log2(2 * math.pi * k)) / 2
    series = (1 / n - 1 / k - 1 / (n - k)) / 12  # the next term is below 1/(360 k³)
    return k * (math.log2(n) - math.log2(k) - others / math.log(2)) + square_root + series / math.log(2)


def threshold(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The number at which `holds` stops being true on its way from low to high, rounded up to a float.

    By bisection until no float is left between; `holds` is false at what is returned, or that is `high`.
    """
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high
