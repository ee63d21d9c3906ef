"""Theorem 11: formulas against sums and linear programming."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import linprog

from prompt_memory import bounds


@pytest.mark.parametrize(("bits", "q"), [(0, 2), (12, 2), (12.5, 2), (10, 3), (7, 4), (30, 50)])
def test_the_expected_length_ceiling_is_the_sum(bits, q):
    terms = math.fsum(min(1.0, 2.0 ** (bits - n * math.log2(q))) for n in range(1, 200))
    assert bounds.expected_length_ceiling(bits, q) == pytest.approx(terms, rel=1e-12)


def test_the_expected_length_ceiling_at_whole_bits():
    assert [bounds.expected_length_ceiling(bits, 2) for bits in (0, 1, 64)] == [1, 2, 65]
    assert bounds.expected_length_ceiling(3 * math.log2(5), 5) == pytest.approx(3 + 1 / 4)  # a full power of q


@pytest.mark.parametrize("D", [1, 2, 5, 20])
def test_affine_length_is_the_sum_of_the_fractions(D):
    fractions = [bounds.affine_patterns(n, D) / 2**n for n in range(1, 60 + 20 * D)]
    assert math.fsum(fractions) == pytest.approx(bounds.affine_length(D), rel=1e-9)
    assert fractions[bounds.affine_length(D) - 1] == 0.5


def test_affine_labelings_by_linear_programming():
    rng, held = np.random.default_rng(0), 0
    slopes, offsets = rng.normal(size=(6, 2)), rng.normal(size=6)
    for signs in map(np.array, itertools.product((-1, 1), repeat=6)):
        free = [(None, None)] * 2
        held += linprog(np.zeros(2), -signs[:, None] * slopes, signs * offsets - 1e-7, bounds=free).status == 0
    assert held == bounds.affine_patterns(6, 2) == 22


def test_bounds_refuse_nonsense():
    for bits, q in ((-1, 2), (math.nan, 2), (math.inf, 2), (3, 1)):
        with pytest.raises(ValueError, match=r"must be"):
            bounds.expected_length_ceiling(bits, q)
    with pytest.raises(ValueError, match="coordinates must be an integer >= 1, not 0"):
        bounds.affine_length(0)
