"""Theorem 2 against brute force: packings are listed, slopes are differentiated, extremal heads are built."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_memory import bounds, measure

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=60, derandomize=True)
SIZES = st.floats(1e-3, 1e3)
DOUBLE = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


# --- entropy ---------------------------------------------------------------------------------------------------------


@quick
@given(r=SIZES, constant=SIZES, eps=SIZES, m=st.integers(1, 5))
def test_on_a_line_the_entropy_is_that_of_the_longest_packing(r, constant, eps, m):
    """Points of [−r, r] further than 2ε/Λ apart: the most are ⌈rΛ/ε⌉, in every coordinate."""
    most = max(1, math.ceil(r * constant / eps))
    if most > 1:
        assert 2 * r / (most - 1) > 2 * eps / constant * (1 - 1e-12)  # they fit
    bits = bounds.entropy_bits(1, m, r, constant, eps)
    assert m * math.log2(most) <= bits * (1 + 1e-12) + 1e-12
    assert bits <= m * math.log2(most + 1) + 1e-9  # and no bound below the next whole number could hold


def greedy_packing(points, separation):
    """A maximal subset in which all distances are larger than `separation`; rows are points [d] or prompts [m, d]."""
    chosen = []
    for point in points:
        if all(np.linalg.norm(point - other, axis=-1).max() > separation for other in chosen):
            chosen.append(point)
    return np.array(chosen)


@pytest.mark.parametrize(("d", "m", "ratio"), [(2, 1, 2.0), (2, 1, 5.0), (3, 1, 2.5), (1, 2, 4.0), (2, 2, 1.6)])
def test_packings_lie_between_the_entropy_and_one_bit_a_coordinate_less(d, m, ratio):
    """A maximal packing of the product of balls at separation 2ρ, r = 1: (1/2ρ)^{dm} <= N <= (1 + 1/ρ)^{dm}."""
    rho = 1 / ratio
    steps = {1: 81, 2: 41, 3: 21, 4: 13}[d * m]
    line = np.linspace(-1, 1, steps)
    points = np.array(list(itertools.product(line, repeat=d * m))).reshape(-1, m, d)
    points = points[np.linalg.norm(points, axis=-1).max(1) <= 1]
    packing = greedy_packing(points, 2 * rho)
    bits = bounds.entropy_bits(d, m, 1.0, 3.0, 3.0 * rho)
    assert bits == pytest.approx(d * m * math.log2(1 + ratio))
    assert math.log2(len(packing)) <= bits
    finest = math.sqrt(d) / (steps - 1)  # what the grid adds to the covering radius
    assert math.log2(len(packing)) >= d * m * math.log2(1 / (2 * rho + 2 * finest))


@pytest.mark.parametrize("d", [1, 2])
def test_every_packing_is_a_memory(d):
    """The converse of Theorem 2: distances to the points of a packing memorise one labeling a point."""
    eps, constant, r = 0.3, 1.7, 1.0
    points = np.array(list(itertools.product(np.linspace(-1, 1, 61), repeat=d)))
    points = points[np.linalg.norm(points, axis=1) <= r]
    packing = greedy_packing(points, 2 * eps / constant)
    distances = np.linalg.norm(packing[:, None] - packing[None], axis=-1)
    radius = distances[distances > 0].min() / 2
    f = constant * (radius - distances)  # [prompt, query]; the logits are (f, −f)
    assert (2 * np.abs(f) > 2 * eps).all()
    assert len(np.unique(f > 0, axis=0)) == len(packing) > 2
    assert math.log2(len(packing)) <= bounds.entropy_bits(d, 1, r, constant, eps)


@pytest.mark.parametrize(("n", "q"), [(1, 2), (2, 3), (5, 2), (9, 4)])
def test_every_number_of_queries_and_classes_uses_the_packing_up_to_all_labelings(n, q):
    """Theorem 2, part 3: min{q^n, N} labelings by logits ±Λρ' at the points, extended to the plane by McShane."""
    eps, constant, d = 0.3, 1.7, 2
    grid = np.array(list(itertools.product(np.linspace(-1, 1, 41), repeat=d)))
    grid = grid[np.linalg.norm(grid, axis=1) <= 1]
    packing = greedy_packing(grid, 2 * eps / constant)
    count = min(q**n, len(packing))
    points = packing[:count]
    labels = np.array(list(itertools.islice(itertools.product(range(q), repeat=n), count)))  # [count, n]
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    radius = apart[apart > 0].min() / 2
    height = constant * radius * np.where(labels[..., None] == np.arange(q), 1, -1)  # [count, n, q]

    def F(x):  # the largest extension: min_k F(P_k) + Λ‖x − P_k‖
        return (height + constant * np.linalg.norm(x - points, axis=1)[:, None, None]).min(0)

    at = np.array([F(x) for x in points])
    assert at == pytest.approx(height)
    top = np.sort(at, axis=-1)
    assert (top[..., -1] - top[..., -2] > 2 * eps).all()
    assert len(np.unique(at.argmax(-1), axis=0)) == count == min(q**n, len(packing))
    random = np.random.default_rng(n)
    for x, y in grid[random.integers(len(grid), size=(200, 2))]:
        change = F(x) - F(y)
        spread = (change.max(-1) - change.min(-1)) / 2
        assert spread.max() <= constant * np.linalg.norm(x - y) + 1e-12


def test_the_entropy_at_its_ends():
    assert bounds.entropy_bits(2, 3, 0, 5, 1) == bounds.entropy_bits(2, 3, 5, 0, 1) == 0
    assert bounds.entropy_bits(2, 3, 1, math.inf, 1) == math.inf
    assert bounds.entropy_bits(1, 1, 1, 1e-20, 1) == pytest.approx(1e-20 / math.log(2))
    assert bounds.entropy_bits(1, 1, 1e200, 1e200, 1e-5) == pytest.approx(405 * math.log2(10))
    assert bounds.entropy_bits(1, 2, 1e-200, 1e-200, 1e-300) == pytest.approx(2e-100 / math.log(2))
    assert bounds.entropy_bits(np.int64(768), np.int32(20), np.float32(2), 3, 0.5) == pytest.approx(
        15360 * math.log2(13)
    )


# --- one head --------------------------------------------------------------------------------------------------------


def head(A, V, tokens, query):
    return torch.softmax(tokens @ (A @ query), 0) @ tokens @ V.T


@quick
@given(seed=st.integers(0, 10**6), d=st.integers(1, 5), m=st.integers(1, 12), B=st.floats(0, 30), far=st.booleans())
def test_no_pair_of_prompts_is_further_apart_than_the_constant_allows(seed, d, m, B, far):
    """Two prompts, not derivatives: ‖att − att'‖ over the largest move of a token."""
    A, V = normal(d, d, seed=seed + 1), normal(3, d, seed=seed + 2)
    A *= B / torch.linalg.matrix_norm(A, 2)
    first, query = (measure.into_ball(3 * normal(200, k, d, seed=seed + 3 + k), 1.0) for k in (m, 1))
    moved, turned = (
        measure.into_ball(x + (2.0 if far else 1e-3) * normal(*x.shape, seed=seed + 99), 1.0) for x in (first, query)
    )
    out = torch.func.vmap(lambda z, x: head(A, V, z, x[0]))
    rounding = 1e-13 * (1 + torch.linalg.matrix_norm(V, 2).item())
    distance = (first - moved).norm(dim=-1).amax(1)
    change = (out(first, query) - out(moved, query)).norm(dim=-1)
    assert (change <= bounds.head_lipschitz(A.numpy(), V.numpy(), 1.0, False) * distance + rounding).all()
    distance = torch.maximum(distance, (query - turned).norm(dim=-1)[:, 0])
    change = (out(first, query) - out(moved, turned)).norm(dim=-1)
    assert (change <= bounds.head_lipschitz(A.numpy(), V.numpy(), 1.0, True) * distance + rounding).all()


def extremal(A, V, m, radius):
    """Tokens ±r·u in equal number, with u a top right singular vector of V across from A x: Lemma 2a, sharpness."""
    left, _, right = torch.linalg.svd(A)
    query, seen = radius * right[0], left[:, 0]
    u = torch.linalg.svd(V).Vh[0]
    if (V.mT @ V - (V.mT @ V)[0, 0] * torch.eye(len(A), dtype=DOUBLE)).abs().max() < 1e-12:
        u = left[:, 1]
    else:  # then A is a multiple of an orthogonal matrix, and any query will do
        seen = torch.linalg.svd(u[None]).Vh[1]
        query = radius * torch.linalg.solve(A, seen) / torch.linalg.solve(A, seen).norm()
    tokens = radius * torch.stack([u, -u]).repeat(m // 2, 1)
    if m % 2:
        tokens = torch.cat([tokens, torch.zeros(1, len(A), dtype=DOUBLE)])
    direction = V @ u
    return tokens, query, direction / direction.norm()


def orthogonal(d, seed):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


@pytest.mark.parametrize("m", [2, 4, 10])
@pytest.mark.parametrize("d", [2, 3, 6])
@pytest.mark.parametrize("which", ["V ∝ I", "A ∝ orthogonal", "both"])
def test_the_constants_are_attained(m, d, which):
    A = 2.3 * orthogonal(d, 1) if which != "V ∝ I" else normal(d, d, seed=1)
    V = 0.7 * orthogonal(d, 2) if which != "A ∝ orthogonal" else normal(d + 1, d, seed=2)
    tokens, query, direction = (x[None] for x in extremal(A, V, m, 1.5))
    fixed = bounds.head_lipschitz(A.numpy(), V.numpy(), 1.5, False)
    assert measure.head_slope(A, V, tokens, query, direction).item() == pytest.approx(fixed, rel=1e-12)
    if which == "both":
        moving = bounds.head_lipschitz(A.numpy(), V.numpy(), 1.5, True)
        assert measure.head_slope(A, V, tokens, query, direction, "both").item() == pytest.approx(moving, rel=1e-12)


def test_odd_prompts_come_close_and_single_tokens_do_not():
    A, V = 3 * orthogonal(3, 5), torch.eye(3, dtype=DOUBLE)
    B = 3.0
    for m in (3, 7, 101):
        tokens, query, direction = (x[None] for x in extremal(A, V, m, 1.0))
        wanted = (1 - 1 / m) * math.hypot(1, B) + 1 / m
        assert measure.head_slope(A, V, tokens, query, direction).item() == pytest.approx(wanted, rel=1e-12)
    single = measure.head_slope(A, V, normal(50, 1, 3), normal(50, 3), normal(50, 3), "both")
    assert torch.allclose(single, normal(50, 3).norm(dim=-1), rtol=1e-12)


def test_a_query_among_the_tokens_approaches_the_constant_of_a_moving_one():
    A, V, u = 2 * orthogonal(3, 7), torch.eye(3, dtype=DOUBLE), torch.tensor([1.0, 0, 0], dtype=DOUBLE)
    query = torch.linalg.solve(A, torch.linalg.svd(u[None]).Vh[1])
    query /= query.norm()
    constant = bounds.head_lipschitz(A.numpy(), V.numpy(), 1.0, True)
    ratios = []
    for pairs in (1, 10, 1000, 20000):
        tokens = torch.cat([query[None], torch.stack([u, -u]).repeat(pairs, 1)])
        ratios.append(measure.head_slope(A, V, tokens[None], query[None], u[None], "self").item() / constant)
    assert ratios == sorted(ratios)
    assert 1 - 1e-3 < ratios[-1] < 1


def test_separate_radii():
    A, V = np.diag([2.0, 1.0]), np.eye(2)
    assert bounds.head_lipschitz(A, V, 3.0, False, query_radius=0.5) == pytest.approx(math.hypot(1, 3))
    assert bounds.head_lipschitz(A, V, 3.0, True, query_radius=0.5) == pytest.approx(18 + math.hypot(1, 3))
    assert bounds.head_lipschitz(A, V, 3.0, True) == bounds.head_lipschitz(A, V, 3.0, True, query_radius=3.0)
    assert type(bounds.head_lipschitz(A, V, 3, np.bool_(True))) is float
    # tokens on a sphere of radius 3, a query of length 1/2: the first is attained
    A, x = torch.eye(2, dtype=DOUBLE) * 2, torch.tensor([[0.5, 0]], dtype=DOUBLE)
    tokens = torch.tensor([[[0, 3.0], [0, -3.0]]], dtype=DOUBLE)
    up = torch.tensor([[0, 1.0]], dtype=DOUBLE)
    for moves, moving in (("prompt", False), ("both", True)):
        slope = measure.head_slope(A, torch.eye(2, dtype=DOUBLE), tokens, x, up, moves).item()
        assert slope == pytest.approx(bounds.head_lipschitz(A.numpy(), V, 3.0, moving, query_radius=0.5), rel=1e-12)


# --- all tokens, Frobenius norm --------------------------------------------------------------------------------------


def all_tokens_jacobian(A, V, tokens):
    def outputs(z):
        return torch.softmax(z @ A.T @ z.T, -1) @ z @ V.T

    return torch.autograd.functional.jacobian(outputs, tokens).reshape(tokens.shape[0] * V.shape[0], tokens.numel())


@quick
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 9), d=st.integers(1, 3), B=st.floats(0, 8), spread=st.floats(0.1, 9)
)
def test_no_derivative_in_the_frobenius_norm_passes_its_bound(seed, n, d, B, spread):
    A, V = normal(d, d, seed=seed), normal(2, d, seed=seed + 1)
    A *= B / torch.linalg.matrix_norm(A, 2)
    tokens = measure.into_ball(spread * normal(n, d, seed=seed + 2), 1.0)
    found = torch.linalg.matrix_norm(all_tokens_jacobian(A, V, tokens), 2).item()
    assert found <= bounds.frobenius_lipschitz(A.numpy(), V.numpy(), 1.0, n) * (1 + 1e-9)


def star(n, k, B):
    """k tokens at e and n − k at −e, with A = −B·I: everybody looks at the few."""
    places = torch.tensor([[[1.0, 0], [-1.0, 0]]], dtype=DOUBLE)
    counts = torch.tensor([[k, n - k]], dtype=DOUBLE)
    eye = torch.eye(2, dtype=DOUBLE)
    return measure.cluster_slope(-B * eye, eye, places, counts).item()


def test_the_frobenius_bound_grows_and_saturates_as_the_norm_does():
    B, eye = 3.0, np.eye(2)
    bound = [bounds.frobenius_lipschitz(B * eye, eye, 1.0, n) for n in (10, 40, 10**5, 10**9)]
    assert bound[1] / bound[0] > 1.7  # √4, and a constant
    assert bound[3] < B + math.hypot(1, B) * math.exp(B) < 1.001 * bound[3]
    assert star(40, 1, B) / star(10, 1, B) > 1.7
    n = 10**9
    found = star(n, round(n * math.exp(-2 * B)), B)
    assert 0.5 * (1 + B) * math.exp(B) < found * (1 + 1e-3)  # the lower bound of Proposition 2c
    assert found < bound[3] < 2.2 * found
    assert bounds.frobenius_lipschitz(B * eye, eye, 1.0, 1) == bounds.head_lipschitz(B * eye, eye, 1.0, True)


def test_the_search_over_clusters_stays_below_and_finds_the_star():
    A = -2 * torch.eye(2, dtype=DOUBLE)
    found = measure.steepest_clusters(A, -A, 50, 1.0, restarts=4, steps=150, generator=seeded(0))
    assert 2 * star(50, 1, 2.0) <= found * 1.001
    assert found <= bounds.frobenius_lipschitz(A.numpy(), -A.numpy(), 1.0, 50)
    with pytest.raises(ValueError, match="at least two tokens, not 1"):
        measure.steepest_clusters(A, A, 1, 1.0, generator=seeded(0))


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.entropy_bits(0, 1, 1, 1, 1), "d must be an integer >= 1, not 0"),
        (lambda: bounds.entropy_bits(1, 1.5, 1, 1, 1), r"m must be an integer >= 1, not 1\.5"),
        (lambda: bounds.entropy_bits(1, 1, -1, 1, 1), "radius must be a finite number >= 0, not -1"),
        (lambda: bounds.entropy_bits(1, 1, math.inf, 1, 1), "radius must be a finite number >= 0, not inf"),
        (lambda: bounds.entropy_bits(1, 1, 1, -1, 1), "lipschitz must be a number >= 0, not -1"),
        (lambda: bounds.entropy_bits(1, 1, 1, math.nan, 1), "lipschitz must be a number >= 0, not nan"),
        (lambda: bounds.entropy_bits(1, 1, 1, 1, 0), "eps must be a finite number > 0, not 0"),
        (lambda: bounds.entropy_bits(1, 1, 1, 1, math.nan), "eps must be a finite number > 0, not nan"),
        (lambda: bounds.entropy_bits(1, 1, 1, 1, "1"), "eps must be a finite number > 0, not '1'"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.ones((2, 3)), 1, False), "A must be square and V have as many"),
        (lambda: bounds.head_lipschitz(np.ones((2, 3)), np.eye(3), 1, False), "A must be square"),
        (lambda: bounds.head_lipschitz(np.ones(3), np.eye(3), 1, False), r"A must be a matrix, not an array of sha"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.ones((0, 2)), 1, False), "V must be a matrix"),
        (lambda: bounds.head_lipschitz(math.nan * np.eye(2), np.eye(2), 1, False), "A holds NaN or infinite entries"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.inf * np.ones((2, 2)), 1, True), "V holds NaN or infinite"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.eye(2), math.nan, True), "radius must be a finite number"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.eye(2), 1, True, query_radius=-1), "query_radius must be"),
        (lambda: bounds.frobenius_lipschitz(np.eye(2), np.eye(2), 1, 0), "tokens must be an integer >= 1, not 0"),
        (lambda: bounds.frobenius_lipschitz(np.eye(2), np.eye(3), 1, 4), "A must be square"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
