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


def strings_with_cells(shown, step, eps):
    """Strings that some point of a line leads to together with all points of the line closer than eps/2."""
    reach = math.ceil(eps / 2 / step - 1e-9) - 1  # grid points closer than eps/2
    around = [set(shown[max(0, i - reach) : i + reach + 1].tolist()) for i in range(len(shown))]
    return {strings.pop() for strings in around if len(strings) == 1}


@pytest.mark.parametrize("eps", [0.25, 0.5, 1.0])
def test_strings_with_cells_are_few_and_the_nearest_lattice_point_attains_the_count(eps):
    radius, step = 1.0, 1 / 512
    line = np.arange(-512, 513) * step
    room = 2 ** bounds.accessible_slope(1, 2, radius, eps)
    nearest = np.rint((line + radius) / eps).astype(int)
    assert len(strings_with_cells(nearest, step, eps)) == round(room)
    rng = np.random.default_rng(0)
    for _ in range(200):  # intervals of random lengths, some far below eps: those strings do not count
        cuts = np.sort(rng.integers(0, len(line), rng.integers(2, 60)))
        found = strings_with_cells(np.searchsorted(cuts, np.arange(len(line))), step, eps)
        assert len(found) <= room


@pytest.mark.parametrize("lipschitz", [0.5, 3.0])
def test_a_margin_gives_a_cell_of_the_same_count(lipschitz):
    """Theorem 4, part 2, and the proposition are one count: a margin 2ε' keeps cells of radius ε'/Λ."""
    margin_eps, radius, d, m = 0.2, 1.5, 3, 2
    eps = 2 * margin_eps / lipschitz
    bits = m * bounds.accessible_slope(d, 2, radius, eps)
    assert bits == pytest.approx(bounds.entropy_bits(d, m, radius, lipschitz, margin_eps))
