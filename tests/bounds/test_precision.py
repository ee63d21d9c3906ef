"""Bounds on labels without a margin, against brute force."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from prompt_memory import bounds


def line_patterns(slopes, offsets):
    """Patterns of [a t + b > 0] along the real line: all points where one changes, and between and beyond them."""
    roots = np.sort(-offsets[slopes != 0] / slopes[slopes != 0])
    points = np.concatenate([[roots[0] - 1], (roots[1:] + roots[:-1]) / 2, [roots[-1] + 1], roots])
    return {tuple(row) for row in (np.outer(points, slopes) + offsets > 1e-12)}


def test_patterns_on_a_line_are_counted():
    rng = np.random.default_rng(0)
    for k in (1, 2, 5, 9):
        assert len(line_patterns(rng.normal(size=k), rng.normal(size=k))) == bounds.affine_patterns(k, 1) == k + 1


def test_patterns_in_the_plane_are_counted():
    """Regions of lines in general position: one vertex a region, beside those that are unbounded below."""
    rng = np.random.default_rng(1)
    for k in (1, 2, 3, 6):
        normals, offsets = rng.normal(size=(k, 2)), rng.normal(size=k)
        points = []
        for i, j in itertools.combinations(range(k), 2):
            vertex = np.linalg.solve(normals[[i, j]], -offsets[[i, j]])
            points += [vertex + 1e-7 * np.array([math.cos(a), math.sin(a)]) for a in np.linspace(0, 2 * np.pi, 400)]
        points += [1e7 * np.array([math.cos(a), math.sin(a)]) for a in np.linspace(0, 2 * np.pi, 4000)]
        patterns = {tuple(row) for row in (np.array(points) @ normals.T + offsets > 0)}
        assert len(patterns) == bounds.affine_patterns(k, 2)


@pytest.mark.parametrize(("k", "dimension", "regions"), [(0, 3, 1), (3, 2, 7), (4, 3, 15), (5, 3, 26), (2, 7, 4)])
def test_known_numbers_of_regions(k, dimension, regions):
    assert bounds.affine_patterns(k, dimension) == regions


def relu_network_behaviours(seed, n, widths, points=20_001):
    """Different sign tables of n random ReLU networks of one input on a fine grid."""
    rng = np.random.default_rng(seed)
    t = np.linspace(-8, 8, points)
    table = []
    for _ in range(n):
        x = t[None]
        for width in widths:
            x = np.maximum(0, rng.normal(size=(width, len(x))) @ x + rng.normal(size=(width, 1)))
        table.append(rng.normal(size=len(x)) @ x + rng.normal() > 0)
    return len(np.unique(np.array(table).T, axis=0))


@pytest.mark.parametrize("widths", [[1], [3], [2, 2], [4, 3, 2]])
def test_relu_networks_of_one_input_stay_below(widths):
    for seed, n in itertools.product(range(3), (1, 3, 12)):
        assert math.log2(relu_network_behaviours(seed, n, widths)) <= bounds.piecewise_linear_bits(n, 1, widths) + 1e-12


def test_piecewise_linear_bits_by_hand():
    # no ReLU: n affine functions of D coordinates
    assert bounds.piecewise_linear_bits(10, 2, []) == pytest.approx(math.log2(1 + 10 + 45))
    # one ReLU, one coordinate: two pieces, so 1 + 2 functions a query; or (n + 1)^2 patterns
    assert bounds.piecewise_linear_bits(100, 1, [1]) == pytest.approx(math.log2(301))
    # few queries: all labelings; three classes: three comparisons
    assert bounds.piecewise_linear_bits(2, 5, [50, 50]) == 2
    assert bounds.piecewise_linear_bits(10**6, 1, [], q=3) == pytest.approx(math.log2(1 + 3 * 10**6))
    # many coordinates: the count that goes round by round is the smaller one
    D, n, W = 50, 10_000, 40
    jointly = 3 * math.log2(bounds.affine_patterns(n * W, D)) + math.log2(bounds.affine_patterns(n, D))
    assert bounds.piecewise_linear_bits(n, D, [W] * 3) == pytest.approx(jointly)


def test_density_is_the_number_of_coordinates():
    for D in (1, 3):
        few, many = (bounds.piecewise_linear_bits(2**k, D, [6, 6]) for k in (60, 61))
        assert many - few == pytest.approx(D, abs=1e-6)


def exponential_zeros(rng, exponents):
    """Sign changes of Σ (a_k + b_k t) e^{s_k t}, constant for exponent 0, found on a fine grid."""
    t = np.linspace(-6, 6, 40_001)
    value = sum((rng.normal() + (s != 0) * rng.normal() * t) * np.exp(s * t) for s in exponents)
    return int((np.diff(np.sign(value)) != 0).sum())


@pytest.mark.parametrize("heads", [1, 2])
def test_zeros_of_exponential_polynomials(heads):
    rng = np.random.default_rng(2)
    found = []
    for _ in range(400):
        slopes = rng.normal(size=heads)
        exponents = [sum(chosen) for chosen in itertools.product(*[(0.0, s) for s in slopes])]
        found.append(exponential_zeros(rng, exponents))
    zeros = 2 ** (heads + 1) - 2
    assert max(found) <= zeros
    assert heads > 1 or max(found) == zeros  # sharp for one head
    assert bounds.one_coordinate_bits(1000, heads, 0) == pytest.approx(math.log2(1 + 1000 * zeros))


def test_one_coordinate_bits_by_hand():
    assert bounds.one_coordinate_bits(64, 1, 8) == pytest.approx(math.log2(1 + 64 * 17 * 2))
    assert bounds.one_coordinate_bits(5, 2, 8) == 5
    assert bounds.one_coordinate_bits(10**6, 1, 0, tokens=3) == pytest.approx(math.log2(1 + 6 * 10**6))


# --- universality --------------------------------------------------------------------------------------------------


def test_universality_counts_bumps():
    assert bounds.universality_tokens(0.1, 1, 1, 1) == 4  # cells must be wider than 0.2
    assert bounds.universality_tokens(0.25, 2, 3, 1) == 1
    assert bounds.universality_tokens(0.01, 3, 10, 16) == math.ceil(49**3 / 160)
    assert bounds.universality_tokens(0.01, 200, 10, 16) > 10**300  # exact integers, no overflow
    assert bounds.universality_tokens(5e-324, 2, 1, 1) > 10**600


def test_universality_is_exact_for_the_float_that_is_given():
    # the float 1/6 is below a sixth, so three cells of width 1/3 > 2 eps fit; at 1/4 exactly, one of two does not
    assert Fraction(1 / 6) < Fraction(1, 6)
    assert bounds.universality_tokens(1 / 6, 1, 1, 1) == 3
    assert bounds.universality_tokens(0.25, 1, 1, 1) == 1
    for eps in np.random.default_rng(0).uniform(1e-4, 0.5, 200):
        cells = bounds.universality_tokens(float(eps), 1, 1, 1)
        assert Fraction(1, cells) > 2 * Fraction(float(eps)) >= Fraction(1, cells + 1)


def test_bumps_that_no_prompt_can_share():
    """The functions of the proof: bounded by 1/2, 1-Lipschitz, and more than 2 eps apart somewhere."""
    eps, k = 0.09, 2
    cells = bounds.universality_tokens(eps, 1, 1, 1)
    rng = np.random.default_rng(1)
    points = rng.random((4000, k))
    index = (points * cells).astype(int)
    heights = np.maximum(0, 0.5 / cells - np.abs(points - (index + 0.5) / cells).max(1))
    signs = rng.choice([-1, 1], size=(cells, cells))
    values = signs[tuple(index.T)] * heights
    assert abs(values).max() <= 0.5
    a, b = rng.integers(4000, size=(2, 20_000))
    assert (abs(values[a] - values[b]) <= abs(points[a] - points[b]).max(1) + 1e-12).all()
    assert 1 / cells > 2 * eps  # the distance of two functions with another sign at one centre


# --- number formats ------------------------------------------------------------------------------------------------

WIDTHS = {"float16": dict(exponent=5, fraction=10), "bfloat16": dict(exponent=8, fraction=7)}


def finite_numbers(name):
    patterns = np.arange(2**16, dtype=np.uint16)
    upper_half = (patterns.astype(np.uint32) << 16).view(np.float32)
    values = {"float16": patterns.view(np.float16), "bfloat16": upper_half}[name]
    return values[np.isfinite(values)].astype(float)


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("radius", [0, 1e-45, 3e-6, 6.1e-5, 0.3, 1, 63.62, 65504, 1e5, 3.4e38, math.inf])
def test_numbers_of_a_format_are_counted(name, radius):
    values = finite_numbers(name)
    expected = len(np.unique(values[abs(values) <= radius]))
    assert bounds.float_bits(radius, **WIDTHS[name]) == pytest.approx(math.log2(expected), abs=1e-12)


def test_numbers_of_long_formats():
    below_one = bounds.float_bits(float(np.nextafter(np.float32(1), np.float32(0))), exponent=8, fraction=23)
    assert below_one == pytest.approx(math.log2(2 * (127 * 2**23 - 1) + 1))
    assert bounds.float_bits(math.inf, exponent=11, fraction=52) == pytest.approx(math.log2(2**64 - 2**53 - 1))
    assert bounds.float_bits(1.7976931348623157e308, exponent=11, fraction=52) == bounds.float_bits(
        math.inf, exponent=11, fraction=52
    )


def interpolation(numbers, answers):
    """A layer of ReLUs, one for each number but the last, that has these answers at these numbers, in fractions."""
    slopes = [(b - a) / (y - x) for x, y, a, b in zip(numbers, numbers[1:], answers, answers[1:], strict=False)]
    steps = [slope - before for slope, before in zip(slopes, [0, *slopes], strict=False)]
    return lambda x: answers[0] + sum(step * max(0, x - at) for step, at in zip(steps, numbers, strict=False))


def test_a_wide_layer_holds_as_many_free_labels_as_a_format_has_numbers():
    """Two significant bits: the tent network holds 2 labels in these 16 numbers, a wide layer 4, Theorem 1 no more."""
    numbers = sorted(sign * Fraction(k, 2**e) for sign in (-1, 1) for k in (2, 3) for e in (2, 3, 4, 5))
    assert len(set(numbers)) == 16
    queries = math.floor(math.log2(len(numbers)))
    labelings = list(itertools.product((-1, 1), repeat=queries))
    networks = [interpolation(numbers, [labels[i] for labels in labelings]) for i in range(queries)]
    shown = {tuple(network(x) for network in networks) for x in numbers}
    assert shown == set(labelings)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bounds.affine_patterns(-1, 2), "functions must be an integer >= 0, not -1"),
        (lambda: bounds.affine_patterns(3, 0), "dimension must be an integer >= 1, not 0"),
        (lambda: bounds.piecewise_linear_bits(3, 1, [0]), "width must be an integer >= 1, not 0"),
        (lambda: bounds.piecewise_linear_bits(3, 1, [2], q=1), "must be an integer >= 2, not 1"),
        (lambda: bounds.one_coordinate_bits(3, 1, -1), "mlp must be an integer >= 0, not -1"),
        (lambda: bounds.universality_tokens(0.5, 1, 1, 1), "eps must lie strictly between 0 and 1/2, not 0.5"),
        (lambda: bounds.float_bits(-1, exponent=5, fraction=10), "radius must be a number >= 0, not -1"),
        (lambda: bounds.float_bits(1, exponent=12, fraction=10), "wider than double precision"),
    ],
)
def test_mistakes_are_named(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
