"""Theorem 5: the count of tokens.  That so many are enough, and fewer are not, is tested with the compression."""

import math

import numpy as np
import pytest
from scipy import special

from prompt_memory import bounds


def test_the_count():
    assert bounds.caratheodory_count(8, 2, 4) == 65
    assert bounds.caratheodory_count(8, 2, 4, own=True) == 64
    assert bounds.caratheodory_count(8, 2, 4, tokens=65) == bounds.caratheodory_count(8, 2, 4, tokens=66) == 65
    assert bounds.caratheodory_count(8, 2, 4, own=True, tokens=63) == 63
    for bad in ((0, 1, 1), (1, 0, 1), (1, 1, 1.5), (True, 1, 1)):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            bounds.caratheodory_count(*bad)
    with pytest.raises(ValueError, match="tokens must be an integer"):
        bounds.caratheodory_count(1, 1, 1, tokens=0)


def two_layers(weights, beta):
    """Ψ(w) of Proposition 5b written out, one corner after the other."""
    m = len(weights)
    z = np.exp(2j * np.pi * np.arange(m) / m)
    with np.errstate(divide="ignore"):
        read = [special.softmax(beta * (z * each.conjugate()).real + np.log(weights)) @ z for each in z]
    return np.array(weights) @ np.abs(np.array(read) - bounds.polygon_constant(m, beta) * z) ** 2 / np.sum(weights)


@pytest.mark.parametrize(("m", "beta"), [(3, 0.5), (4, 2.0), (5, 2.0), (7, 1.0)])
def test_no_weights_on_fewer_corners_come_below_the_floor(m, beta):
    assert two_layers(np.ones(m), beta) < 1e-28
    random = np.random.default_rng(0)
    least = min(two_layers(np.append(random.dirichlet(np.ones(m - 1)), 0), beta) for _ in range(300))
    assert least > bounds.polygon_floor(m, beta) > 0


def test_the_constant_of_a_triangle_by_hand():
    e = np.exp(1.0), np.exp(-0.5)
    assert bounds.polygon_constant(3, 1.0) == pytest.approx((e[0] - e[1]) / (e[0] + 2 * e[1]))
    for bad in ((2, 1.0), (3, 0.0), (3, np.inf), (3.5, 1.0)):
        with pytest.raises(ValueError, match=r"m |beta"):
            bounds.polygon_floor(*bad)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_floor_of_a_triangle_by_hand(beta):
    near, far = math.exp(beta), math.exp(-beta / 2)
    c = (near - far) / (near + 2 * far)
    eigenvalue = near * (1 - c) + far * (0.5 + c)  # of vectors with sum zero; that of equal entries is 0
    assert bounds.polygon_constant(3, beta) == pytest.approx(c)
    assert bounds.polygon_floor(3, beta) == pytest.approx((eigenvalue * math.exp(-beta) / 6) ** 2)
