"""Numerical methods that several chapters use, against gamma functions and each other."""

import math

import pytest

from prompt_memory import bounds
from prompt_memory.bounds._numerics import log2_binomial, threshold


@pytest.mark.parametrize(("n", "k"), [(250_000, 120_000), (10**7, 150_000)])
def test_large_binomials_agree_with_gamma_functions(n, k):
    exact = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    assert log2_binomial(n, k) == pytest.approx(exact, rel=1e-12)


def test_large_binomials_continue_the_small_ones():
    for v in (2**17, 2**40, 2**2000):
        below, above = (log2_binomial(v + m - 1, m) for m in (10**5, 10**5 + 1))
        assert above - below == pytest.approx(math.log2(v + 10**5) - math.log2(10**5 + 1), rel=1e-3)
    assert bounds.multiset_bits(1, 10**9, 32) > bounds.multiset_bits(1, 10**9 - 1, 32)


@pytest.mark.parametrize("target", [1e-300, 0.1, 1.0, 2.0**0.5, 3.0])
def test_a_threshold_is_the_next_float(target):
    assert threshold(lambda x: x < target, 0.0, 4.0) == target
    below = math.nextafter(target, 0)
    assert threshold(lambda x: x <= below, 0.0, 4.0) == target
    assert threshold(lambda x: True, 0.0, 4.0) == 4
    assert threshold(lambda x: False, 1.0, 4.0) == math.nextafter(1.0, 2)
