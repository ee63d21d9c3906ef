"""Theorem 6: the remainder against linear programming, counts against ranks, and the error attained."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize

from prompt_memory import bounds, compress


def monomials(points, degree):
    """All monomials of total degree <= degree, one product at a time."""
    powers = itertools.product(range(degree + 1), repeat=points.shape[1])
    return np.stack([np.prod(points**p, axis=1) for p in map(np.array, powers) if p.sum() <= degree], 1)


# --- the remainder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("B", [1e-3, 0.5, 3.0, 12.0, 20.0])
def test_remainder_of_degree_zero_is_tanh(B):
    assert bounds.softmax_remainder(0, B) == pytest.approx(math.tanh(B), rel=1e-15)


@pytest.mark.parametrize(("k", "B"), [(1, 0.3), (1, 4.0), (2, 1.0), (4, 1.5), (5, 6.0), (3, 10.0)])
def test_remainder_agrees_with_a_linear_program(k, B):
    s = B * np.cos(np.linspace(0, np.pi, 1200))  # a grid: its optimum is at most the true one, and close
    rows = np.polynomial.chebyshev.chebvander(s / B, k) * np.exp(-s)[:, None]
    one = np.ones((len(s), 1))
    program = optimize.linprog(
        np.r_[np.zeros(k + 1), 1.0],
        A_ub=np.block([[rows, -one], [-rows, -one]]),
        b_ub=np.r_[np.ones(len(s)), -np.ones(len(s))],
        bounds=[(None, None)] * (k + 1) + [(0, None)],
    )
    assert bounds.softmax_remainder(k, B) == pytest.approx(program.fun, rel=3e-5)
    assert bounds.softmax_remainder(k, B) >= program.fun * (1 - 1e-7)


@pytest.mark.parametrize(("k", "B"), [(0, 2.0), (1, 20.0), (4, 1.5), (8, 4.0), (20, 1.0), (20, 20.0)])
def test_alternation_proves_the_remainder_from_below(k, B):
    points, weights = bounds.softmax_alternation(k, B)
    assert len(points) == k + 2
    assert points[0] == -B
    assert points[-1] == B
    assert np.all(np.diff(points) > 0)
    assert np.all(weights > 0)
    assert weights.sum() == pytest.approx(1)
    signs = (-1.0) ** np.arange(k + 2)
    # annihilates polynomials, hence no polynomial does better than |Σ ± c|; all to the rounding of float64
    functional = signs * weights * np.exp(-points)
    scale = (weights * np.exp(-points)).sum()
    assert np.abs(np.polynomial.chebyshev.chebvander(points / B, k).T @ functional).max() < 1e-13 * scale
    assert abs(signs @ weights) == pytest.approx(bounds.softmax_remainder(k, B), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("k", "B"), [*itertools.product([0, 1, 3, 8, 16], [1e-6, 0.1, 1.0, 4.0, 10.0]), (40, 1e-6), (36, 10.0)]
)
def test_remainder_lies_between_its_bessel_bounds(k, B):
    rho = bounds.softmax_remainder(k, B)
    assert 0 < rho <= bounds.softmax_remainder_bound(k, B)
    if k + 1 >= B:
        assert bounds.softmax_remainder_floor(k, B) <= rho
    else:
        with pytest.raises(ValueError, match="needs k"):
            bounds.softmax_remainder_floor(k, B)
    if k > 2 * B:  # then both are close: they would catch a wrong constant
        assert bounds.softmax_remainder_bound(k, B) < 1.5 * rho
        assert bounds.softmax_remainder_floor(k, B) > 0.5 * rho


@pytest.mark.parametrize(("k", "B"), [(3, 2.0), (6, 4.0)])
def test_bessel_bounds_are_their_formulas(k, B):
    def bessel(n):  # its power series
        terms = ((-1) ** i * (B / 2) ** (n + 2 * i) / (math.factorial(i) * math.factorial(n + i)) for i in range(40))
        return abs(math.fsum(terms))

    orders = range(k + 1, k + 40)
    folded = sum(bessel(j) * B ** (j + n) / math.factorial(j + n) for j in orders for n in orders)
    tail, eta = 2 * sum(map(bessel, orders)), 2 * math.exp(B) * folded
    assert eta > 1e-3 * tail
    assert bounds.softmax_remainder_bound(k, B) == pytest.approx(tail + eta, rel=1e-9)
    floor = 4 * bessel(k + 1) - tail - eta
    assert floor > 0
    assert bounds.softmax_remainder_floor(k, B) == pytest.approx(floor, rel=1e-9)


def test_remainder_falls_with_the_degree_and_grows_with_the_range():
    table = np.array([[bounds.softmax_remainder(k, B) for k in range(9)] for B in (0.0, 0.2, 1.0, 3.0, 7.0)])
    assert np.all(np.diff(table[1:], axis=1) < 0)
    assert np.all(np.diff(table, axis=0) > 0)
    assert np.all(table[0] == 0)


@pytest.mark.parametrize(
    ("k", "B"), [(-1, 1.0), (1.5, 1.0), (True, 1.0), (41, 1.0), (3, 41.0), (3, -1.0), (3, math.nan)]
)
def test_remainder_refuses(k, B):
    with pytest.raises(ValueError, match=r"k|B"):
        bounds.softmax_remainder(k, B)


# --- counts, error, bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "k"), [(1, 0), (1, 5), (2, 3), (3, 4), (4, 2)])
def test_moment_count_counts_monomials(d, k):
    assert bounds.moment_count(d, k) == monomials(np.ones((1, d)), k + 1).shape[1]


@pytest.mark.parametrize(("d_k", "d_v", "heads", "k"), [(1, 1, 1, 3), (2, 1, 2, 2), (2, 3, 1, 1), (3, 2, 2, 0)])
def test_head_moment_count_is_the_rank_of_what_heads_read(d_k, d_v, heads, k):
    rng, columns = np.random.default_rng(0), []
    for _ in range(heads):
        u, v = rng.normal(size=(300, d_k)), rng.normal(size=(300, d_v))
        columns += [monomials(u, k) * f for f in (1, *v.T[:, :, None])]
    assert np.linalg.matrix_rank(np.concatenate(columns, 1)) == bounds.head_moment_count(k, d_k, d_v, heads)


def test_counts_of_the_book():
    assert bounds.moment_count(3, 4) == 56
    assert bounds.moment_count(4, 8) == 715
    for bad in ((0, 1), (2, -1), (2, 1.0)):
        with pytest.raises(ValueError, match="integer"):
            bounds.moment_count(*bad)


@pytest.mark.parametrize(("k", "B"), [(0, 1.0), (1, 0.5), (2, 2.0), (3, 4.0), (6, 2.0)])
def test_the_error_constant_is_attained(k, B):
    points, weights = bounds.softmax_alternation(k, B)
    signs = (-1.0) ** np.arange(k + 2)
    keys, mass = points / B, weights * np.exp(-points)
    mass /= mass.sum()
    A, V = np.array([[B, 0.0], [0.0, 0.0]]), np.array([[0.0, 1.0]])
    prompts = [np.stack([keys, sign * signs], 1) for sign in (1, -1)]
    for p, q in itertools.product(range(k + 1), (0, 1)):  # equal moments u^p v^q
        first, second = (mass @ (z[:, 0] ** p * z[:, 1] ** q) for z in prompts)
        assert first == pytest.approx(second, abs=1e-14)
    first, second = (compress.attend(z, [[1.0, 0.0]], A, V, weights=mass)[0, 0] for z in prompts)
    assert abs(first - second) == pytest.approx(bounds.moment_error(k, B, 1.0), rel=1e-10)


def test_moment_bits_by_hand():
    rho = bounds.softmax_remainder(4, 2.0)
    tau = math.tanh(math.atanh(rho) / 2)
    factor = 2 * (1 + rho) / (1 - rho) * math.exp(4.0) * 3 * 0.5 / (0.2 - 2 * 3 * 0.5 * tau)
    arguments = dict(k=4, B=2.0, scale=3.0, lipschitz=0.5, eps=0.2)
    J = 2 * (15 * 4 - 1)
    assert bounds.moment_bits(d_k=2, d_v=3, heads=2, **arguments) == pytest.approx(J * math.log2(1 + factor))
    J = math.comb(2 + 5, 5) - 1  # tokens of width 2 have fewer moments than two wide heads
    assert bounds.moment_bits(d_k=2, d_v=3, heads=2, width=2, **arguments) == pytest.approx(J * math.log2(1 + factor))


def test_moment_bits_takes_the_best_degree_and_says_which_will_do():
    arguments = dict(d_k=2, d_v=1, heads=1, B=1.0, scale=1.0, lipschitz=1.0, eps=0.05)
    fits = [bounds.moment_bits(k=k, **arguments) for k in range(2, 9)]
    assert bounds.moment_bits(k=None, **arguments) == min(fits)
    with pytest.raises(ValueError, match="take k >= 2"):
        bounds.moment_bits(k=1, **arguments)
    with pytest.raises(ValueError, match="no k <= 40"):
        bounds.moment_bits(k=None, **arguments | {"eps": 1e-70})
    with pytest.raises(ValueError, match="eps"):
        bounds.moment_bits(k=2, **arguments | {"eps": 0.0})
    assert bounds.moment_bits(k=2, **arguments | {"scale": 0.0}) == 0


@pytest.mark.parametrize("B", [0.1, 1.0])
def test_the_volume_of_readings_is_a_determinant(B):
    best = {}
    for M in range(1, 8):
        u, x = np.linspace(-1, 1, M) if M > 1 else np.zeros(1), -np.cos(np.pi * np.arange(M) / max(M - 1, 1))
        S = np.exp(B * np.outer(x, u))
        best[M] = np.linalg.slogdet(S / S.sum(1, keepdims=True))[1] / math.log(2)
    for eps in (0.2, 1e-2, 1e-3):
        wanted = max(log_det - M * math.log2(2 * eps) for M, log_det in best.items())
        assert bounds.readings_volume_bits(B, eps, most=7) == pytest.approx(wanted)
        assert bounds.readings_volume_bits(B, eps) >= wanted * (1 - 1e-12)
        arguments = dict(d_k=1, d_v=1, heads=1, B=B, scale=1.0, lipschitz=1.0, eps=eps)
        assert bounds.readings_volume_bits(B, eps) < bounds.moment_bits(k=None, **arguments)
    assert bounds.readings_volume_bits(B, 0.6) == bounds.readings_volume_bits(0.0, 0.5) == 0
    with pytest.raises(ValueError, match="eps"):
        bounds.readings_volume_bits(B, 0.0)


def test_as_many_prompts_differ_as_their_volume_says():
    """A maximal set of prompts of two tokens whose outputs differ by more than 2ε at one of two queries, chosen."""
    B, eps = 0.5, 0.02
    S = np.exp(B * np.outer([-1, 1], [-1, 1]))
    values = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), -1).reshape(-1, 2)
    left, found = values @ (S / S.sum(1, keepdims=True)).T, 0
    while len(left):
        found, left = found + 1, left[np.abs(left - left[0]).max(1) > 2 * eps]
    assert (
        2 ** bounds.readings_volume_bits(B, eps, most=2)
        <= found
        <= 2 ** bounds.moment_bits(k=None, d_k=1, d_v=1, heads=1, B=B, scale=1.0, lipschitz=1.0, eps=eps)
    )


def test_values_on_the_circle_by_an_inverse():
    for M, B in ((1, 0.5), (2, 1.0), (3, 0.3), (6, 4.0)):
        angle = 2 * np.pi * np.arange(M) / M
        S = np.exp(B * np.cos(angle[:, None] - angle))
        inverse = np.linalg.inv(S / S.sum(1, keepdims=True))
        assert bounds.circle_amplitude(M, B) == pytest.approx(1 / np.abs(inverse).sum(1).max())
    assert bounds.circle_amplitude(200, 1.0) == 0  # its least eigenvalues are rounding
    for bad in ((0, 1.0), (3, -1.0), (3, math.nan)):
        with pytest.raises(ValueError, match=r"M|B"):
            bounds.circle_amplitude(*bad)


def one_ball(B, k, points):
    """Tokens in [−1, 1], each its own key and value: max_t 2ρ(t) of exercise 4, and the farthest outputs, on a grid."""
    z = np.cos(np.linspace(0, np.pi, points))
    powers = np.polynomial.chebyshev.chebvander(z, k + 1) * np.exp(-B * z)[:, None]
    one, free = np.ones((points, 1)), [(None, None)] * (k + 3)

    def remainder(t):
        sides = np.vstack([np.hstack([powers, -one]), np.hstack([-powers, -one])])
        return optimize.linprog(np.eye(k + 3)[-1], sides, np.concatenate([z - t, t - z]), bounds=free).fun

    def farthest(ratio):  # over attentions of two prompts whose normalisers have this ratio, with equal moments
        equal = np.vstack([np.hstack([powers.T, -ratio * powers.T]), np.kron(np.eye(2), np.ones(points))])
        found = optimize.linprog(np.concatenate([-z, z]), A_eq=equal, b_eq=np.eye(k + 4)[-2] + np.eye(k + 4)[-1])
        return -found.fun if found.success else 0.0

    above = 2 * max(remainder(t) for t in np.linspace(-1, 1, 5))
    width = bounds.softmax_remainder(k + 1, B)  # normalisers of equal moments differ by a factor 1 + 2ρ_{k+1}, about
    return above, max(farthest(ratio) for ratio in np.exp(np.linspace(-2 * width, 2 * width, 41)))


@pytest.mark.parametrize(("k", "B", "slack"), [(0, 0.02, 0.03), (1, 0.1, 0.12)])
def test_one_ball_halves_the_constant(k, B, slack):
    above, below = one_ball(B, k, 121)
    half = B ** (k + 1) / (2**k * math.factorial(k + 1))
    assert half == pytest.approx(bounds.moment_error(k, B, 1.0) / 2, rel=B)
    assert half * (1 - slack) <= below <= above * (1 + 1e-6)
    assert above <= half * (1 + slack)
