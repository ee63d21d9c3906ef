"""Theorem 2 against brute force: packings are listed, slopes are differentiated, extremal networks are built."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_memory import bounds, construct, measure
from prompt_memory.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=60, derandomize=True)
SIZES = st.floats(1e-3, 1e3)
DOUBLE = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


# --- entropy -------------------------------------------------------------------------------------------------------


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


# --- one head ------------------------------------------------------------------------------------------------------


def head(A, V, tokens, query):
    return torch.softmax(tokens @ (A @ query), 0) @ tokens @ V.T


def slope_by_autograd(A, V, tokens, query, direction, moves):
    tokens, query = tokens.clone().requires_grad_(), query.clone().requires_grad_()
    seen = tokens[0] if moves == "self" else query
    (direction @ head(A, V, tokens, seen)).backward()
    total = tokens.grad.norm(dim=-1).sum()
    return total + query.grad.norm() if moves == "both" else total


@pytest.mark.parametrize("moves", ["prompt", "both", "self"])
@pytest.mark.parametrize(("d", "out", "m"), [(1, 1, 2), (2, 3, 1), (4, 2, 5), (3, 3, 17)])
def test_the_slope_of_a_head_is_its_derivative(moves, d, out, m):
    A, V, tokens, query, direction = normal(d, d), normal(out, d), normal(6, m, d), normal(6, d), normal(6, out)
    query = tokens[:, 0] if moves == "self" else query
    found = measure.head_slope(A, V, tokens, query, direction, moves)
    for run in range(6):
        wanted = slope_by_autograd(A, V, tokens[run], query[run], direction[run], moves)
        assert found[run].item() == pytest.approx(wanted.item(), rel=1e-12)


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


@pytest.mark.parametrize("moves", ["prompt", "both", "self"])
def test_the_search_finds_what_it_reports(moves):
    A, V = 2 * orthogonal(2, 3), orthogonal(2, 4)
    value, *place = measure.steepest_head(A, V, 4, 1.5, moves, restarts=6, steps=150, generator=seeded(1))
    assert measure.head_slope(A, V, *(x[None] for x in place), moves).item() == pytest.approx(value, rel=1e-9)
    constant = bounds.head_lipschitz(A.numpy(), V.numpy(), 1.5, moves != "prompt")
    assert (0.6 if moves == "self" else 0.97) * constant < value <= constant * (1 + 1e-12)
    assert place[0].norm(dim=-1).max() <= 1.5 + 1e-12
    assert place[1].norm() <= 1.5 + 1e-12


# --- all tokens, Frobenius norm ------------------------------------------------------------------------------------


def all_tokens_jacobian(A, V, tokens):
    def outputs(z):
        return torch.softmax(z @ A.T @ z.T, -1) @ z @ V.T

    return torch.autograd.functional.jacobian(outputs, tokens).reshape(tokens.shape[0] * V.shape[0], tokens.numel())


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_clusters_of_one_give_the_whole_derivative(n):
    A, V, tokens = normal(3, 3), normal(2, 3, seed=1), normal(n, 3, seed=2)
    found = measure.cluster_slope(A, V, tokens[None], torch.ones(1, n, dtype=DOUBLE)).item()
    assert found == pytest.approx(torch.linalg.matrix_norm(all_tokens_jacobian(A, V, tokens), 2).item(), rel=1e-12)


def test_clusters_are_tokens_at_the_same_place():
    A, V, places = normal(2, 2), normal(2, 2, seed=1), normal(2, 2, seed=2)
    counts = torch.tensor([3, 4])
    J = all_tokens_jacobian(A, V, places.repeat_interleave(counts, 0)).reshape(7, 2, 7, 2)
    together = torch.zeros(7, 2, dtype=DOUBLE)
    together[:3, 0], together[3:, 1] = 3**-0.5, 0.5
    reduced = torch.einsum("iojk,jb->iobk", J, together).reshape(14, 4)
    found = measure.cluster_slope(A, V, places[None], counts[None].double()).item()
    assert found == pytest.approx(torch.linalg.matrix_norm(reduced, 2).item(), rel=1e-12)


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


# --- norms and activations -----------------------------------------------------------------------------------------


def test_the_slope_of_gelu():
    x = torch.linspace(-6, 6, 200_001, dtype=DOUBLE, requires_grad=True)
    torch.nn.functional.gelu(x).sum().backward()
    assert x.grad.max().item() == pytest.approx(bounds.GELU_LIPSCHITZ, abs=1e-9)
    assert x.grad.min().item() == pytest.approx(1 - bounds.GELU_LIPSCHITZ, abs=1e-9)
    assert 1.128 < bounds.GELU_LIPSCHITZ < 1.129


@quick
@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), eps=st.floats(0, 1), scale=st.floats(1e-3, 1e3))
def test_a_norm_contracts_by_the_length_of_the_shorter_vector(seed, d, eps, scale):
    """The step that needs no convexity: ‖n(x) − n(y)‖ <= ‖x − y‖ / √(min(‖x‖, ‖y‖)²/d + ε₀)."""
    x, y = (normal(500, d, seed=seed + k) * scale * normal(500, 1, seed=seed + 9 + k).exp() for k in (0, 1))
    out = [v / (v.square().mean(-1, keepdim=True) + eps).sqrt() for v in (x, y)]
    least = torch.minimum(x.norm(dim=-1), y.norm(dim=-1))
    allowed = (x - y).norm(dim=-1) / (least**2 / d + eps).sqrt()
    assert ((out[0] - out[1]).norm(dim=-1) <= allowed * (1 + 1e-9) + 1e-12).all()


# --- whole networks ------------------------------------------------------------------------------------------------


def constant(model, **options):
    options = {"radius": 1.0, "query_radius": 1.0} | options
    return bounds.network_lipschitz(model.config, measure.numpy_weights(model), **options)


def random_network(rng):
    norm = str(rng.choice(["none", "rms", "layer"]))
    positions = str(rng.choice(["none", "none", "learned", "rotary"]))
    config = TransformerConfig(
        d=int(rng.integers(2, 5)), q=int(rng.integers(2, 5)), depth=int(rng.integers(1, 4)),
        heads=int(rng.integers(1, 4)), d_k=2, d_v=int(rng.integers(1, 4)), mlp=int(rng.choice([0, 0, 1, 6])),
        activation=str(rng.choice(["gelu", "relu"])), norm=norm, norm_eps=float(rng.choice([1e-3, 0.3])),
        causal=bool(rng.integers(2)), positions=positions, context=8,
        inverse_temperature=float(rng.choice([0.3, 1.0, 4.0])),
        context_scaling=str(rng.choice(["none", "none", "log"])),
    )  # fmt: skip
    model = Transformer(config, generator=seeded(int(rng.integers(10**6)))).double()
    for name, weight in model.named_parameters():
        if name.endswith(("gain", "bias")):
            weight.copy_(normal(*weight.shape, seed=int(rng.integers(10**6))))
        elif rng.random() < 0.3:
            weight.mul_(float(rng.choice([0.1, 3.0])))
    return model


@pytest.mark.parametrize("seed", range(40))
def test_no_network_is_steeper_than_its_constant(seed):
    """Finite differences of any size, derivatives, and all options of the architecture at once."""
    rng = np.random.default_rng(seed)
    model = random_network(rng)
    c, m, R, T = model.config, int(rng.integers(1, 4)), 40, int(rng.integers(1, 3))
    r, r_x = float(rng.choice([0.2, 1.0, 5.0])), float(rng.choice([0.2, 1.0, 5.0]))
    first, moved = (measure.into_ball(2 * r * normal(R, m, c.d, seed=seed + k), r) for k in (1, 2))
    near = measure.into_ball(first + 1e-5 * normal(R, m, c.d, seed=seed + 3), r)
    queries = measure.into_ball(2 * r_x * normal(5, T, c.d, seed=seed + 4), r_x)
    own = bool(rng.integers(2))
    options = {"radius": r, "query_radius": r_x, "keys": m + T}
    whole, half = (constant(model, differences=d, **options) for d in (False, True))
    assert 0 < half <= whole * (1 + 1e-12) < math.inf
    for second in (moved, near):
        change = model(first, queries, own_token=own) - model(second, queries, own_token=own)  # [R, n, q]
        move = (first - second).norm(dim=-1).amax(1)[:, None]
        assert (change.abs().amax(-1) / move).max() <= whole * (1 + 1e-6)
        spread = (change.amax(-1) - change.amin(-1)) / 2
        assert (spread / move).max() <= half * (1 + 1e-6)
    for differences, bound in ((False, whole), (True, half)):
        local = measure.local_lipschitz(model, first[:5], queries, own_token=own, differences=differences)
        assert local.max() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("seed", range(6))
def test_a_least_norm_bounds_the_slope_at_each_prompt(norm, seed):
    config = TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=6, norm=norm, norm_eps=1e-6, causal=bool(seed % 2))
    model = Transformer(config, generator=seeded(seed)).double()
    for run in range(10):
        prompt, query = normal(1, 3, 4, seed=run), normal(1, 1, 4, seed=run + 50)
        bound = constant(model, least_norm=measure.shortest_norm_input(model, prompt, query))
        assert slope(model, prompt, query) <= bound * (1 + 1e-9)
        assert bound < 1e-3 * constant(model)
        assert not any(part._forward_pre_hooks for part in model.modules())


def test_the_shortest_norm_input_of_one_layer():
    model = Transformer(TransformerConfig(d=3, norm="layer", norm_eps=0.1)).double()
    prompts, queries = 9 * normal(5, 2, 3), normal(4, 1, 3, seed=1)
    last = queries[3] = queries[3] * 1e-3 + 7
    assert measure.shortest_norm_input(model, prompts, queries) == pytest.approx((last - last.mean()).norm().item())


def slope(model, prompt, query, *, own_token=True, differences=False):
    J = torch.autograd.functional.jacobian(lambda p: model(p, query, own_token=own_token)[0, 0], prompt)[:, 0]
    J = torch.stack([(a - b) / 2 for a, b in itertools.combinations(J, 2)]) if differences else J
    return J.norm(dim=-1).sum(-1).max().item()


def reader(d, *, q=None, norm="none", **architecture):
    """One head that writes the mean of what it sees into the residual stream, and reads every coordinate."""
    config = TransformerConfig(d=d, q=q or d, d_k=2, d_v=d, norm=norm, **architecture)
    model = Transformer(config).double()
    for block in model.blocks:
        block.query.zero_(), block.key.zero_()
        block.value.copy_(torch.eye(d).repeat(1, config.heads))
        block.output.copy_(torch.eye(d).repeat(config.heads, 1))
    model.unembedding.copy_(torch.eye(d)[:, : config.q])
    return model


def test_built_networks_attain_the_constant():
    """Each factor of the constant is needed: in these networks, where it is exact, a smaller one would be wrong."""
    zero, one = torch.zeros(1, 1, 2, dtype=DOUBLE), torch.ones(1, 1, 2, dtype=DOUBLE) / 2

    def exact(model, prompt, query, **options):
        found = measure.local_lipschitz(model, prompt, query, own_token=False, **options).item()
        return found, constant(model, **options)

    for depth, slope_ in ((1, 1), (2, 3), (3, 7)):  # p doubles, x collects
        found, bound = exact(reader(2, depth=depth), one, zero)
        assert found == pytest.approx(slope_) == bound
    found, bound = exact(reader(2, heads=3), one, zero)
    assert found == pytest.approx(3) == bound
    for norm in ("rms", "layer"):  # at the origin a norm is steepest: once for the prompt, once at the end
        model = reader(2, norm=norm, norm_eps=0.01)
        model.blocks[0].norm1.gain.mul_(3)
        model.norm.gain.mul_(2)
        centred = (1 - 0.5) ** 0.5 if norm == "layer" else 1  # the length of a unit vector without its mean
        found, bound = exact(model, zero, zero)
        assert found == pytest.approx(6 * 100 * centred)
        assert bound == pytest.approx(6 * 100 * centred)
    model = reader(1, mlp=1)
    model.blocks[0].up.fill_(2), model.blocks[0].down.fill_(1.5)
    model.blocks[0].up_bias.fill_(math.sqrt(2))
    origin = torch.zeros(1, 1, 1, dtype=DOUBLE)
    found, bound = exact(model, origin, origin)
    assert found == pytest.approx(1 + 3 * bounds.GELU_LIPSCHITZ) == bound
    model = reader(1, mlp=1, norm="rms", norm_eps=0.01)  # three norms, each at its steepest
    model.blocks[0].norm2.gain.mul_(4)
    model.blocks[0].up.fill_(2), model.blocks[0].down.fill_(1.5)
    model.blocks[0].up_bias.fill_(math.sqrt(2))
    model.blocks[0].down_bias.fill_(-1.5 * torch.nn.functional.gelu(torch.tensor(2.0, dtype=DOUBLE).sqrt()).item())
    found, bound = exact(model, origin, origin)
    assert found == pytest.approx(10 * (1 + 10 * 4 * 3 * bounds.GELU_LIPSCHITZ) * 10) == bound
    model = reader(1, depth=2, mlp=1, activation="relu")  # p: 2·4, x: 4 and then (4 + 8)·4
    for block in model.blocks:
        block.up.fill_(2), block.down.fill_(1.5)
    found, bound = exact(model, origin + 1, origin)
    assert found == pytest.approx(48) == bound
    model = reader(2, q=2)
    model.unembedding.copy_(torch.tensor([[1.0, -1], [0, 2]]))
    found, bound = exact(model, one, zero)
    assert found == pytest.approx(math.sqrt(5)) == bound
    found, bound = exact(model, one, zero, differences=True)
    assert found == pytest.approx(math.sqrt(8) / 2) == bound


def test_two_layers_by_hand():
    """Every number that enters the constant of a network without norms, from diagonal weights; the query is longer."""
    a, v, r, r_x, up, down = 0.3, 0.5, 1.0, 2.0, 0.7, 0.4
    model, eye = reader(2, depth=2, mlp=2, activation="relu"), torch.eye(2, dtype=DOUBLE)
    for block in model.blocks:
        block.query.copy_(a * math.sqrt(2) * eye), block.key.copy_(eye), block.value.mul_(v)
        block.up.copy_(up * eye), block.down.copy_(down * eye)
        block.up_bias.copy_(torch.tensor([3.0, 4])), block.down_bias.copy_(torch.tensor([0.0, 2]))
    p, x = 1.0, 0.0
    for _ in range(2):
        longest, key = max(r, r_x), max(p, x)
        p, x = (
            own + v * (math.sqrt(1 + (a * longest * reach) ** 2) * key + a * longest**2 * own)
            for own, reach in ((p, r), (x, r_x))
        )
        p, x = (own * (1 + up * down) for own in (p, x))
        r, r_x = ((reach + v * longest) * (1 + up * down) + 5 * down + 2 for reach in (r, r_x))
    assert constant(model, query_radius=2.0) == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_heads_together_are_bounded_by_their_sum_or_better(seed):
    """max over unit w of Σ_h κ_h ‖M_hᵀ w‖, by a scan of the circle."""
    M = list(normal(3, 2, 2, seed=seed).numpy())
    slopes = list(np.random.default_rng(seed).uniform(0, 3, 3))
    angle = np.linspace(0, np.pi, 2001)
    w = np.stack([np.cos(angle), np.sin(angle)])
    scanned = sum(k * np.linalg.norm(each.T @ w, axis=0) for k, each in zip(slopes, M, strict=True)).max()
    total = sum(k * np.linalg.norm(each, 2) for k, each in zip(slopes, M, strict=True))
    assert scanned * (1 - 1e-12) <= bounds._over_heads(slopes, M) < total
    apart = [np.diag([2.0, 0]), np.diag([0, 2.0]), np.zeros((2, 2))]  # |w_1| + |w_2| is at most √2
    assert bounds._over_heads([3.0, 3.0, 9.0], apart) == pytest.approx(6 * math.sqrt(2))
    assert bounds._over_heads([3.0], M[:1]) == pytest.approx(3 * np.linalg.norm(M[0], 2))


def test_attention_behind_a_norm_sees_tokens_of_length_root_d():
    """Tokens across from their own direction: all of the constant but the 1 under the root is attained."""
    R, B = 5.0, 8.0
    config = TransformerConfig(d=3, q=3, d_k=3, d_v=3, norm="rms", norm_eps=1e-9)
    model = Transformer(config).double()
    block = model.blocks[0]
    block.query.copy_(B / 3 * math.sqrt(3) * torch.eye(3)), block.key.copy_(torch.eye(3))
    block.value.copy_(torch.eye(3).roll(1, 1)), block.output.copy_(torch.eye(3))  # e2 is written as e3
    model.unembedding.copy_(torch.eye(3))
    e1, e2, _ = R * torch.eye(3, dtype=DOUBLE)
    found = measure.local_lipschitz(model, torch.stack([e2, -e2])[None], e1[None, None], own_token=False).item()
    assert found == pytest.approx(3 / R**2 * B, rel=1e-6)
    assert constant(model, least_norm=R) == pytest.approx(3 / R**2 * math.hypot(1, B), rel=1e-6)


@pytest.mark.parametrize("d", [2, 4])
def test_a_built_head_inside_a_network_attains_the_constant(d):
    model = Transformer(TransformerConfig(d=d, q=2, d_k=d, d_v=d, inverse_temperature=1.7)).double()
    block = model.blocks[0]
    block.query.copy_(3 * orthogonal(d, 1)), block.key.copy_(orthogonal(d, 2))
    block.value.copy_(2 * orthogonal(d, 3)), block.output.copy_(orthogonal(d, 4))
    A = (block.key @ block.query.T) * 1.7 / math.sqrt(d)
    M = (block.value @ block.output).T
    seen = torch.zeros(d, dtype=DOUBLE)
    seen[0] = 1
    u = torch.zeros(d, dtype=DOUBLE)
    u[1] = 1
    model.unembedding.copy_(torch.stack([M @ u, -(M @ u)], 1))
    query = 0.5 * torch.linalg.solve(A, seen) / torch.linalg.solve(A, seen).norm()
    prompt = 2 * torch.stack([u, -u])[None]
    found = measure.local_lipschitz(model, prompt, query[None, None], own_token=False).item()
    assert found == pytest.approx(constant(model, radius=2.0, query_radius=0.5), rel=1e-12)
    assert found == pytest.approx(4 * math.hypot(1, 3 * 1.7 / math.sqrt(d)), rel=1e-12)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize(("mlp", "activation"), [(0, "relu"), (4, "relu"), (6, "gelu")])
def test_without_softmax_logits_the_constant_is_attained_at_every_depth(norm, depth, mlp, activation):
    """Lemma 2b, part 5: every inequality of part 4 is an equality at the origin."""
    config = TransformerConfig(
        d=4, q=3, depth=depth, heads=2, d_k=3, d_v=5, mlp=mlp, activation=activation, norm=norm, norm_eps=0.1
    )
    model = construct.steep_network(config, generator=seeded(depth))
    origin = torch.zeros(1, 3, 4, dtype=DOUBLE)
    assert model(origin, origin[:, :1], own_token=False).abs().max() < 1e-14 * constant(model)  # all stays at 0
    for differences in (False, True):
        found = slope(model, origin, origin[:, :1], own_token=False, differences=differences)
        assert found == pytest.approx(constant(model, differences=differences), rel=1e-12)
    # one token or many; a query that also sees itself moves less
    assert slope(model, origin[:, :1], origin[:, :1], own_token=False) == pytest.approx(constant(model), rel=1e-12)
    assert slope(model, origin, origin[:, :1]) < 0.99 * constant(model)


def test_rotary_positions_are_steeper_and_their_constant_is_attained():
    """Positions 22 and 44 before the query are turned by almost π and 0: A x points away from one, to the other."""
    m, B = 44, 8.0
    config = TransformerConfig(d=2, q=2, d_k=2, d_v=2, positions="rotary", inverse_temperature=B * math.sqrt(2))
    model = Transformer(config).double()
    block = model.blocks[0]
    for weight in (block.query, block.key, block.value, block.output, model.unembedding):
        weight.copy_(torch.eye(2))
    up = torch.tensor([1.0, 0], dtype=DOUBLE)
    turns = m - torch.arange(m)  # relative positions
    angle = turns.double()
    prompt = -torch.stack([angle.cos(), angle.sin()], 1)  # nobody is looked at …
    prompt[turns == 44], prompt[turns == 22] = up, -up  # … but these
    found = measure.local_lipschitz(model, prompt[None], up[None, None], own_token=False).item()
    assert math.hypot(1, B) < 0.98 * (1 + B) < found <= constant(model) == pytest.approx(1 + B)


def test_the_constant_of_a_long_context():
    model = Transformer(TransformerConfig(d=2, context_scaling="log")).double()
    assert constant(model, keys=1) < constant(model, keys=10) < constant(model, keys=1000)


def test_the_constant_grows_with_everything_it_should():
    model = Transformer(TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8)).double()
    assert constant(model) < constant(model, radius=1.1)
    assert constant(model) < constant(model, query_radius=1.1)
    normed = Transformer(TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8, norm="rms", norm_eps=0.01)).double()
    assert constant(normed) == constant(normed, radius=100.0, query_radius=50.0)  # a norm hides the radius
    assert constant(normed, least_norm=0.5) < constant(normed)
    learned = Transformer(TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8, positions="learned")).double()
    longest = learned.position.norm(dim=-1).max().item()
    learned.position.zero_()
    shifted = constant(learned, radius=1 + longest, query_radius=1 + longest)
    learned = Transformer(TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8, positions="learned")).double()
    assert constant(learned) == pytest.approx(shifted, rel=1e-12)


def test_a_norm_that_may_divide_by_zero_has_no_constant():
    model = Transformer(TransformerConfig(d=4, norm="rms", norm_eps=0.0)).double()
    assert constant(model) == math.inf
    assert constant(model, least_norm=0.1) < math.inf
    deep = Transformer(TransformerConfig(d=4, depth=40, mlp=16)).double()
    assert constant(deep) == math.inf  # larger than any float: no bound, and no exception


def test_local_lipschitz_is_a_supremum_of_differences():
    model = Transformer(TransformerConfig(d=3, q=4, depth=2, mlp=5, norm="layer", norm_eps=0.1)).double()
    prompt, query = normal(1, 4, 3), normal(1, 2, 3, seed=1)
    for differences in (False, True):
        local = measure.local_lipschitz(model, prompt, query, differences=differences).item()
        J = torch.autograd.functional.jacobian(lambda p: model(p, query)[0, 0], prompt)[:, 0]  # [q, m, d]
        pairs = [(J[a] - J[b]) / 2 for a, b in itertools.combinations(range(4), 2)] if differences else list(J)
        steepest = max(pairs, key=lambda g: g.norm(dim=-1).sum())
        step = 1e-6 * steepest / steepest.norm(dim=-1, keepdim=True)
        change = (model(prompt + step, query) - model(prompt - step, query))[0, 0] / 2e-6
        size = (change.max() - change.min()) / 2 if differences else change.abs().max()
        assert size.item() == pytest.approx(local, rel=1e-6)
        random = normal(50, 4, 3, seed=2)
        random = 1e-6 * random / random.norm(dim=-1, keepdim=True)
        moved = (model(prompt + random, query) - model(prompt - random, query))[:, 0] / 2e-6
        sizes = (moved.amax(-1) - moved.amin(-1)) / 2 if differences else moved.abs().amax(-1)
        assert sizes.max() <= local * (1 + 1e-6)


def test_the_search_over_networks_stays_below_and_finds_more_than_chance():
    model = Transformer(TransformerConfig(d=4, q=3, mlp=8, norm="rms", norm_eps=0.1)).double()
    found, prompt, query = measure.steepest_network(model, 3, 1.0, 1.0, restarts=4, steps=60, generator=seeded(0))
    assert found == pytest.approx(slope(model, prompt[None], query[None]), rel=1e-9)
    prompts, queries = (measure.into_ball(normal(200, k, 4), 1.0) for k in (3, 1))
    assert measure.local_lipschitz(model, prompts, queries).max() < found <= constant(model)
    assert prompt.norm(dim=-1).max() <= 1 + 1e-12


def test_the_search_over_networks_looks_at_the_origin_of_norms():
    config = TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8, norm="rms", norm_eps=1e-6, positions="learned")
    model = Transformer(config, generator=seeded(1)).double()
    model.position.mul_(0.2)  # the origins lie in the ball
    arguments = dict(restarts=2, steps=20, generator=seeded(0))
    found, prompt, query = measure.steepest_network(model, 2, 1.0, 1.0, **arguments)
    assert found == pytest.approx(slope(model, prompt[None], query[None]), rel=1e-9)
    assert (prompt + model.position[:2]).norm(dim=-1).max() < 0.02
    random = [measure.into_ball(normal(2000, k, 4), 1.0) for k in (2, 1)]
    assert found > 20 * measure.local_lipschitz(model, *random).max()
    kept, *places = measure.steepest_network(model, 2, 1.0, 1.0, least_norm=0.5, **arguments)
    assert min(x.norm(dim=-1).min() for x in places) >= 0.5 - 1e-9
    assert kept <= found


# --- margins -------------------------------------------------------------------------------------------------------


def test_best_margins_lists_every_labeling_once():
    model = Transformer(TransformerConfig(d=2, q=3)).double()
    prompts, queries = normal(50, 1, 2), normal(3, 1, 2, seed=1)
    labels, gaps = measure.labels_and_gaps(model, prompts, queries, chunk=7)
    margins = measure.best_margins(labels, gaps)
    logits = model(prompts, queries)
    best = {}
    for row in logits:
        top = row.sort(-1, descending=True).values
        label = tuple(row.argmax(-1).tolist())
        best[label] = max(best.get(label, 0), (top[:, 0] - top[:, 1]).min().item())
    assert len(margins) == len(best) > 1
    assert margins == pytest.approx(sorted(best.values(), reverse=True), rel=1e-12)
    assert gaps.shape == labels.shape == (50, 3)


def test_chosen_queries_memorise_more_than_one_alone_and_stop_in_time():
    """Three thresholds on a line: the outer two leave no room at the margin, so that greed must leave one out."""
    prompts = np.linspace(-1, 1, 201)
    slopes = prompts[:, None] - np.array([-0.4, 0.0, 0.05, 0.6, 5.0])
    labels, gaps = (slopes > 0).astype(np.uint8), np.abs(slopes)
    chosen = measure.choose_queries(labels, gaps, 0.15)
    assert sorted(chosen) in ([0, 1, 3], [0, 2, 3])
    assert (measure.best_margins(labels[:, chosen], gaps[:, chosen]) > 0.15).sum() == 4
    assert len(measure.choose_queries(labels, gaps, 0.15, most=2)) == 2
    assert measure.choose_queries(labels, gaps, 9.0) == []


# --- bad input -----------------------------------------------------------------------------------------------------

NAN = math.nan
SMALL = Transformer(TransformerConfig(d=2, norm="rms", mlp=3, positions="learned", context=4))
WEIGHTS = measure.numpy_weights(SMALL)


def network(weights=WEIGHTS, config=SMALL.config, **options):
    return bounds.network_lipschitz(config, weights, **({"radius": 1.0, "query_radius": 1.0} | options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.entropy_bits(0, 1, 1, 1, 1), "d must be an integer >= 1, not 0"),
        (lambda: bounds.entropy_bits(1, 1.5, 1, 1, 1), r"m must be an integer >= 1, not 1\.5"),
        (lambda: bounds.entropy_bits(1, 1, -1, 1, 1), "radius must be a finite number >= 0, not -1"),
        (lambda: bounds.entropy_bits(1, 1, math.inf, 1, 1), "radius must be a finite number >= 0, not inf"),
        (lambda: bounds.entropy_bits(1, 1, 1, -1, 1), "lipschitz must be a number >= 0, not -1"),
        (lambda: bounds.entropy_bits(1, 1, 1, NAN, 1), "lipschitz must be a number >= 0, not nan"),
        (lambda: bounds.entropy_bits(1, 1, 1, 1, 0), "eps must be a finite number > 0, not 0"),
        (lambda: bounds.entropy_bits(1, 1, 1, 1, NAN), "eps must be a finite number >= 0, not nan"),
        (lambda: bounds.entropy_bits(1, 1, 1, 1, "1"), "eps must be a finite number >= 0, not '1'"),
        (lambda: construct.steep_network(SMALL.config, generator=seeded(0)), "other than learned ones, d_v >= d"),
        (
            lambda: construct.steep_network(
                TransformerConfig(d=2, q=2, d_v=2, norm="rms", norm_eps=0.0), generator=seeded(0)
            ),
            "norms with norm_eps = 0 are not defined at the origin",
        ),
        (lambda: bounds.head_lipschitz(np.eye(2), np.ones((2, 3)), 1, False), "A must be square and V have as many"),
        (lambda: bounds.head_lipschitz(np.ones((2, 3)), np.eye(3), 1, False), "A must be square"),
        (lambda: bounds.head_lipschitz(np.ones(3), np.eye(3), 1, False), r"A must be a matrix, not an array of sha"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.ones((0, 2)), 1, False), "V must be a matrix"),
        (lambda: bounds.head_lipschitz(NAN * np.eye(2), np.eye(2), 1, False), "A holds NaN or infinite entries"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.inf * np.ones((2, 2)), 1, True), "V holds NaN or infinite"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.eye(2), NAN, True), "radius must be a finite number"),
        (lambda: bounds.head_lipschitz(np.eye(2), np.eye(2), 1, True, query_radius=-1), "query_radius must be"),
        (lambda: bounds.frobenius_lipschitz(np.eye(2), np.eye(2), 1, 0), "tokens must be an integer >= 1, not 0"),
        (lambda: bounds.frobenius_lipschitz(np.eye(2), np.eye(3), 1, 4), "A must be square"),
        (lambda: network(radius=-1), "radius must be"),
        (lambda: network(query_radius=math.inf), "query_radius must be"),
        (lambda: network(least_norm=-0.1), "least_norm must be"),
        (lambda: network(WEIGHTS | {"position": np.ones((3, 2))}), r"position must have the shape \[4, 2\], not \[3,"),
        (lambda: network({}), "the weight blocks.0.query is missing"),
        (lambda: network(WEIGHTS | {"unembedding": np.full((2, 2), NAN)}), "unembedding holds NaN or infinite"),
        (lambda: network(config=replace(SMALL.config, context_scaling="log")), "give keys"),
        (lambda: network(config=replace(SMALL.config, context_scaling="log"), keys=0), "keys must be an integer >= 1"),
        (
            lambda: measure.head_slope(*(normal(1, 1),) * 2, normal(1, 1, 1), *(normal(1, 1),) * 2, "query"),
            "moves must be one of prompt, both, self, not 'query'",
        ),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
