"""Chapter 4e: the table of costs against numbers worked out by hand."""

import math

import numpy as np
import pytest

from prompt_memory.experiments import prior_mass


def costs(bits, n=2, vocabulary=4):
    return prior_mass.Costs(1, n, vocabulary, np.array(bits, dtype=float), 0)


def test_a_perfect_code_has_the_ratio_of_one_bit_more():
    """Where every string costs its surprise h, the theorem's length is (h + 1)/h times the length."""
    perfect = costs([[4.0, 4.0]] * 5)
    assert perfect.surprise == perfect.median == 4
    assert perfect.ratio == pytest.approx(5 / 4)
    assert perfect.apart == 0


def test_the_median_is_of_the_first_estimates_and_the_second_ones_repeat_them():
    found = costs([[4, 5], [8, 6], [12, 15]])
    assert (found.median, found.apart) == (8, 2)
    assert found.ratio == pytest.approx((8 + 1) / math.log2(4) / 2)
