"""The follow-up's bound against its definition, brute force and numbers that its authors' notebook prints."""

import math

import numpy as np
import pytest

from prompt_memory import bounds


def greedy_packing(points, separation):
    kept = []
    for point in points:
        if all(np.abs(point - other).max() >= separation for other in kept):
            kept.append(point)
    return len(kept)


@pytest.mark.parametrize(("d", "steps"), [(1, 7), (2, 4), (3, 2)])
def test_the_cube_packs_exactly_that_many_points(d, steps):
    radius, eps = 1.5, 3.0 / steps
    lattice = np.array(np.meshgrid(*[np.linspace(-radius, radius, steps + 1)] * d)).reshape(d, -1).T
    assert greedy_packing(lattice, eps - 1e-9) == (steps + 1) ** d
    assert bounds.accessible_slope(d, 2, radius, eps) == pytest.approx(d * math.log2(steps + 1))
    random = np.random.default_rng(0).uniform(-radius, radius, size=(3000, d))
    assert greedy_packing(random, eps) <= (1 + 2 * radius / eps) ** d


# (d, vocabulary, measured slope, printed ratio): printed in th_bounds_estimation.ipynb of the authors' repository
PRINTED = [(2048, 50304, 261.4, 6.019802), (2560, 50304, 197.9, 9.939214), (4096, 50304, 283.55, 11.099110)]


@pytest.mark.parametrize(("d", "vocabulary", "slope", "ratio"), PRINTED)
@pytest.mark.parametrize("radius", [1.0, 59.90625])
def test_the_authors_printed_ratios(d, vocabulary, slope, ratio, radius):
    bound = bounds.accessible_slope(d, vocabulary, radius, radius * 2**-11)
    assert bound / slope == pytest.approx(ratio, abs=1e-6)


def test_it_is_homogeneous_and_monotone():
    at = bounds.accessible_slope
    assert at(64, 1000, 3.0, 0.1) == pytest.approx(2 * at(32, 1000, 3.0, 0.1))
    assert at(32, 1000, 30.0, 1.0) == pytest.approx(at(32, 1000, 3.0, 0.1))
    assert at(32, 1000, 3.0, 0.05) > at(32, 1000, 3.0, 0.1)
    assert at(32, 1000**2, 3.0, 0.1) == pytest.approx(at(32, 1000, 3.0, 0.1) / 2)
    assert at(1, 3, 1.0, 1.0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 10, 1.0, 0.1), "d must be an integer >= 1, not 0"),
        ((4, 1, 1.0, 0.1), "a vocabulary of one token carries no information"),
        ((4, 10, 0.0, 0.1), "radius must be a finite number > 0, not 0.0"),
        ((4, 10, 1.0, -1.0), "eps must be a finite number > 0, not -1.0"),
        ((4, 10, 1.0, math.nan), "eps must be a finite number > 0, not nan"),
        ((4, 10, math.inf, 1.0), "radius must be a finite number > 0, not inf"),
    ],
)
def test_mistakes_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        bounds.accessible_slope(*arguments)
