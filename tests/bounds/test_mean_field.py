"""Theorem 7: Wasserstein constants, counts of histograms, causal blocks, against independent computations."""

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import optimize

from prompt_memory import bounds, compress, measure
from prompt_memory.bounds._layers import measure_slope
from prompt_memory.network.transformer import Transformer, TransformerConfig

I2 = np.eye(2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ball(rng, *shape, radius=1.0):
    x = rng.normal(size=shape)
    return x * np.minimum(1, radius / np.linalg.norm(x, axis=-1, keepdims=True))


def network(seed=0, **architecture):
    model = Transformer(TransformerConfig(**{"q": 3, **architecture}), generator=generator(seed)).double()
    return model, measure.numpy_weights(model)


# --- one head --------------------------------------------------------------------------------------------------------


def test_wasserstein_constant_is_its_formula():
    A, V = np.array([[0.3, 0.1], [-0.2, 0.5]]), np.array([[1.0, 2.0]])
    B = np.linalg.svd(A)[1][0] * 0.8**2
    assert bounds.wasserstein_constant(A, V, 0.8) == pytest.approx(math.sqrt(5) * math.exp(2 * B) * (1 + 2 * B))
    B = np.linalg.svd(A)[1][0] * 0.8 * 3
    found = bounds.wasserstein_constant(A, V, 0.8, query_radius=3.0)
    assert found == pytest.approx(math.sqrt(5) * math.exp(2 * B) * (1 + 2 * B))
    assert bounds.wasserstein_constant(400 * I2, I2, 1.0) == math.inf
    assert bounds.wasserstein_constant(400 * I2, 0 * I2, 1.0) == 0


@pytest.mark.parametrize("B", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("d", [1, 3])
def test_the_measures_of_the_proof_attain_the_constant(d, B):
    e = np.eye(d)[:1]
    weights, step = np.array([1 - 1e-6, 1e-6]), 1e-3
    first, second = np.concatenate([-e, e]), np.concatenate([-e, (1 - step) * e])
    out = [compress.attend(z, e, B * np.eye(d), np.eye(d), weights=weights) for z in (first, second)]
    # nothing but the small atom moves, so W₁ is its weight times the step
    ratio = np.linalg.norm(out[0] - out[1]) / (1e-6 * step)
    assert 0.99 < ratio / bounds.wasserstein_constant(B * np.eye(d), np.eye(d), 1.0) < 1


@pytest.mark.parametrize("m", [20, 200])
def test_the_constant_for_m_tokens_is_attained_and_tends_to_the_general_one(m):
    B, e, step = 1.0, np.array([[0.0, 1.0]]), 1e-6
    first = np.concatenate([e, np.repeat(-e, m - 1, 0)])
    second = np.concatenate([(1 - step) * e, first[1:]])
    out = [compress.attend(z, e, B * I2, I2) for z in (first, second)]
    constant = bounds.wasserstein_constant(B * I2, I2, 1.0, tokens=m)
    assert np.linalg.norm(out[0] - out[1]) / (step / m) == pytest.approx(constant, rel=1e-4)
    assert bounds.wasserstein_constant(B * I2, I2, 1.0, tokens=10**9) == pytest.approx(3 * math.e**2, rel=1e-6)
    assert bounds.wasserstein_constant(0.4 * I2, I2, 1.0, tokens=1) == pytest.approx(1.0)
    assert bounds.wasserstein_constant(3 * I2, I2, 1.0, tokens=1) == pytest.approx(1.0)


def slope_of_one_token(z, x, A, V):
    """m · s_j‖V^T w + c_j a‖, the largest over tokens j and unit w, written out: z [m, d], x [d]."""
    a, m = A @ x, len(z)
    s = np.exp(z @ a - (z @ a).max())
    s /= s.sum()
    matrices = [share * (V + np.outer(V @ (z_j - s @ z), a)) for share, z_j in zip(s, z, strict=True)]
    return m * max(np.linalg.norm(matrix, 2) for matrix in matrices)


@pytest.mark.parametrize("B", [0.3, 1.0, 2.0, 6.0])
@pytest.mark.parametrize("m", [2, 3, 7])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_constant_for_m_tokens_is_exact(d, m, B):
    rng, eye = np.random.default_rng(m), np.eye(d)
    constant = bounds.wasserstein_constant(B * eye, eye, 1.0, tokens=m)
    for _ in range(100):  # tokens anywhere, many of them on the sphere or together
        z = ball(rng, m, d, radius=1.0) * rng.choice([1, 5])
        z = (z / np.maximum(1, np.linalg.norm(z, axis=1, keepdims=True)))[rng.integers(0, m, m)]
        assert slope_of_one_token(z, ball(rng, d), B * eye, eye) <= constant * (1 + 1e-12)
    # the tokens of the proof: all but one at the opposite point, the query at an angle (on a line: less far apart)
    found = 0.0
    for share in np.linspace(0, 1, 801):
        if d == 1:
            z, x = np.full((m, 1), -share), eye[0]
            z[0] = share
        else:
            z, x = np.repeat(-eye[:1], m, 0), share * eye[0] + math.sqrt(1 - share**2) * eye[1]
            z[0] = eye[0]
        found = max(found, slope_of_one_token(z, x, B * eye, eye))
    assert found == pytest.approx(constant, rel=2e-5)


def test_constants_for_few_tokens_of_the_book():
    on_line, in_plane = (
        [bounds.wasserstein_constant(B * np.eye(d), np.eye(d), 1.0, tokens=2) for B in (2.0, 4.0)] for d in (1, 2)
    )
    root = optimize.brentq(lambda x: x * math.tanh(x / 2) - 2, 1, 4)  # of two tokens on a line, for every B >= root/2
    assert on_line == pytest.approx([root / (1 + math.exp(-root))] * 2)
    assert in_plane == pytest.approx([2.6188835, 4.2690366])


def test_prompts_of_m_tokens_stay_under_their_constant():
    rng = np.random.default_rng(1)
    for d, m in itertools.product((1, 2), (2, 3, 5)):
        A, V = rng.normal(size=(2, d, d)) * 1.5
        constant = bounds.wasserstein_constant(A, V, 1.0, tokens=m)
        for _ in range(20):
            x, (first, second) = ball(rng, 1, d), ball(rng, 2, m, d)
            change = compress.attend(first, x, A, V) - compress.attend(second, x, A, V)
            assert np.linalg.norm(change) <= constant * measure.wasserstein(first, second) + 1e-12


def test_pairs_of_measures_stay_under_the_constant():
    rng = np.random.default_rng(0)
    for _ in range(40):
        A, V = rng.normal(size=(2, 2, 2))
        a, b = rng.integers(1, 6, 2)
        x, z, y, u = ball(rng, 1, 2), ball(rng, a, 2), ball(rng, b, 2), ball(rng, 1, 2)
        p, q = rng.dirichlet(np.full(a, 0.3)), rng.dirichlet(np.full(b, 0.3))
        distance = measure.wasserstein(z, y, p, q)
        constant = bounds.wasserstein_constant(A, V, 1.0)
        first, second = compress.attend(z, x, A, V, weights=p), compress.attend(y, x, A, V, weights=q)
        assert np.linalg.norm(first - second) <= constant * distance + 1e-12
        moved = compress.attend(y, u, A, V, weights=q)  # a query that moves no further costs nothing
        assert np.linalg.norm(first - moved) <= constant * max(distance, np.linalg.norm(x - u)) + 1e-12


@pytest.mark.parametrize("speeds", [(1, 0), (1, 1), (1, 40), (0, 1), (0.3, 2)])
def test_the_parabola_of_the_proof(speeds):
    a, keys, query = 0.7, 1.5, 0.4
    B, y, (k, xi) = a * keys * query, np.linspace(0, 1, 100001), speeds
    density = math.exp(B) * (math.cosh(B) + y * math.sinh(B))
    values = k * density * (1 + B + B * y) + xi * a * keys**2 * (1 - y**2)
    assert measure_slope(a, keys, query, k, xi) == pytest.approx(values.max(), rel=1e-8)


def test_steepest_measure_reaches_the_constant_and_measure_slope_is_a_derivative():
    A, V = torch.eye(2).double(), torch.eye(2).double()
    found, *_ = measure.steepest_measure(A, V, 1.0, restarts=6, steps=200, generator=generator())
    assert 0.97 < found / bounds.wasserstein_constant(I2, I2, 1.0) <= 1 + 1e-12
    rng = np.random.default_rng(1)
    A, V = rng.normal(size=(2, 2, 2))
    z, x, w = ball(rng, 3, 2), ball(rng, 1, 2), np.array([0.7, 0.2, 0.1])
    direction, steps, slopes = np.array([0.6, -0.8]), 1e-6, []
    for j, angle in itertools.product(range(3), np.linspace(0, 2 * math.pi, 400)):
        moved = z.copy()
        moved[j] += steps * np.array([math.cos(angle), math.sin(angle)])
        change = compress.attend(moved, x, A, V, weights=w) - compress.attend(z, x, A, V, weights=w)
        slopes.append(float(change[0] @ direction) / (w[j] * steps))
    t = torch.from_numpy
    slope = measure.measure_slope(t(A), t(V), t(z)[None], t(w)[None], t(x), t(direction)[None])
    assert float(slope) == pytest.approx(max(slopes), rel=1e-3)


# --- networks --------------------------------------------------------------------------------------------------------


def test_network_wasserstein_of_one_and_two_layers_by_hand():
    model, W = network(d=2, depth=2, inverse_temperature=0.4)
    r, k, x = 1.0, 1.0, 0.0
    for layer in range(2):
        q, key, v, o = (W[f"blocks.{layer}.{name}"] for name in ("query", "key", "value", "output"))
        a, s = np.linalg.norm(0.4 * key @ q.T / math.sqrt(2), 2), np.linalg.norm(v @ o, 2)
        B = a * r**2
        kappa = math.exp(2 * B) * (1 + 2 * B)
        k, x, r = k * (1 + s * (kappa + B)), x + s * kappa * k, r * (1 + s)
        if layer == 0:
            one, read = x, np.linalg.norm(W["unembedding"], axis=0).max()
    found = bounds.network_wasserstein(model.config, W, radius=1.0, query_radius=1.0)
    assert found == pytest.approx(read * x)
    single = TransformerConfig(d=2, q=3, inverse_temperature=0.4)
    assert bounds.network_wasserstein(single, W, radius=1.0, query_radius=1.0) == pytest.approx(read * one)
    halves = bounds.network_wasserstein(model.config, W, radius=1.0, query_radius=1.0, differences=True)
    assert halves <= found


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_prompts_of_different_lengths_stay_under_the_network_constant(norm, own):
    model, W = network(d=2, depth=2, norm=norm, norm_eps=0.3, mlp=3, heads=2, inverse_temperature=0.3)
    constant = bounds.network_wasserstein(model.config, W, radius=1.0, query_radius=1.0)
    rng = np.random.default_rng(3)
    for _ in range(10):
        first, second, query = ball(rng, rng.integers(1, 9), 2), ball(rng, rng.integers(1, 9), 2), ball(rng, 1, 2)
        seen = [np.concatenate([z, query]) if own else z for z in (first, second)]
        logits = [model(torch.from_numpy(z)[None], torch.from_numpy(query), own_token=own) for z in (first, second)]
        assert float((logits[0] - logits[1]).abs().max()) <= constant * measure.wasserstein(*seen) + 1e-12


def test_local_wasserstein_is_a_slope_between_nearby_prompts():
    model, W = network(d=2, depth=2, inverse_temperature=0.3)
    prompt, query = torch.randn(1, 4, 2, generator=generator()).double() / 2, torch.full((1, 1, 2), 0.3).double()
    slope, found = float(measure.local_wasserstein(model, prompt, query)), 0.0
    for j, angle in itertools.product(range(4), np.linspace(0, 2 * math.pi, 200)):
        moved = prompt.clone()
        moved[0, j] += 1e-6 * torch.tensor([math.cos(angle), math.sin(angle)])
        change = (model(moved, query) - model(prompt, query)).flatten()
        found = max(found, float(change.max() - change.min()) / 2 / (1e-6 / 5))
    assert slope == pytest.approx(found, rel=1e-3)
    assert slope <= bounds.network_wasserstein(model.config, W, radius=2.0, query_radius=2.0, differences=True)


def test_what_is_not_a_map_of_measures_is_refused():
    model, W = network(d=2, positions="rotary")
    with pytest.raises(ValueError, match="rotary"):
        bounds.network_wasserstein(model.config, W, radius=1.0, query_radius=1.0)
    model, W = network(d=2, context_scaling="log")
    with pytest.raises(ValueError, match="scaled with the context"):
        bounds.network_wasserstein(model.config, W, radius=1.0, query_radius=1.0)
    model, W = network(d=2, norm="rms", norm_eps=0.0)
    assert bounds.network_wasserstein(model.config, W, radius=1.0, query_radius=1.0) == math.inf


def test_learned_positions_enlarge_the_ball():
    model, W = network(d=2, positions="learned", context=8, inverse_temperature=0.1)
    longest = np.linalg.norm(W["position"], axis=1).max()
    plain = SimpleNamespace(**{**vars(model.config), "positions": "none"})
    enlarged = bounds.network_wasserstein(plain, W, radius=1 + longest, query_radius=1 + longest)
    assert bounds.network_wasserstein(model.config, W, radius=1.0, query_radius=1.0) == pytest.approx(enlarged)


@pytest.mark.parametrize("own", [True, False])
def test_added_positions_tie_the_constant_to_one_length(own):
    """Six tokens that with their positions are three tokens, each twice: the same measure, another place to read."""
    model, W = network(d=2, depth=2, positions="learned", context=8, inverse_temperature=0.3)
    how = dict(radius=4.0, query_radius=1.0)
    rng, place = np.random.default_rng(2), W["position"]
    short, query = ball(rng, 3, 2), ball(rng, 1, 2)
    long = np.tile(short + place[:3], (2, 1)) - place[:6]
    seen = [z + place[: len(z)] for z in (short, long)]
    if own:
        seen = [np.concatenate([z, query + place[len(z)]]) for z in seen]
    distance = measure.wasserstein(*seen)
    assert own or distance < 1e-12
    logits = [model(torch.from_numpy(z)[None], torch.from_numpy(query), own_token=own) for z in (short, long)]
    change = float((logits[0] - logits[1]).abs().max())
    apart = np.linalg.norm(place[3] - place[6])
    assert own or change > 0.01 + bounds.network_wasserstein(model.config, W, **how) * distance
    constant = bounds.network_wasserstein(model.config, W, **how, moving_query=True)
    assert change <= constant * max(distance, apart)
    assert constant > bounds.network_wasserstein(model.config, W, **how)


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_histogram_bits_is_a_ratio_of_volumes_integrated_exactly(n):
    def volume(a, b):  # of aΔ − bΔ, in pieces by the number of negative coordinates
        total = (a - b) ** n / Fraction(math.factorial(n))
        for k in range(1, n + 1):
            for i in range(n - k + 1):
                integral = math.comb(n - k, i) * (a - b) ** (n - k - i) * b ** (k + i) / Fraction(k + i)
                total += math.comb(n + 1, k) * integral / (math.factorial(k - 1) * math.factorial(n - k))
        return total

    for tau in (Fraction(1, 2), Fraction(1, 7)):
        ratio = volume(1 + tau / 2, tau / 2) / volume(tau / 2, tau / 2)
        assert bounds.histogram_bits(n + 1, float(tau)) == pytest.approx(math.log2(ratio))


@pytest.mark.parametrize(("cells", "grid", "tau"), [(2, 50, 0.1), (3, 10, 0.25), (4, 5, 0.3)])
def test_no_packing_of_histograms_is_larger(cells, grid, tau):
    points = [h for h in itertools.product(range(grid + 1), repeat=cells) if sum(h) == grid]
    chosen = []
    for h in points:
        if all(sum(map(abs, np.subtract(h, other))) / (2 * grid) > tau + 1e-12 for other in chosen):
            chosen.append(h)
    assert 1 < len(chosen) <= 2 ** bounds.histogram_bits(cells, tau)
    if cells == 2:
        assert 2 ** bounds.histogram_bits(2, tau) == pytest.approx(1 + 1 / tau)  # the truth is ⌈1/τ⌉


def test_histogram_bits_far_out_is_an_upper_bound_that_fits_on():
    near, beyond = bounds.histogram_bits(2001, 0.01), bounds.histogram_bits(2002, 0.01)
    each = 2 * math.log2((1 + math.sqrt(201)) / 2)
    assert near < beyond < near + each + 8
    assert bounds.histogram_bits(1, 0.1) == bounds.histogram_bits(50, 1.0) == 0
    assert bounds.histogram_bits(math.inf, 0.1) == math.inf
    with pytest.raises(ValueError, match="cells"):
        bounds.histogram_bits(0, 0.1)


def test_mean_field_bits_is_its_formula_and_its_logarithm():
    how = dict(d=2, radius=0.5, lipschitz=3.0, wasserstein=7.0, eps=0.25)
    by_hand = (1 + 4 * 0.5 * 3 / 0.25) ** 2 * math.log2(math.e * (1 + 0.5 * 7 / 0.25))
    assert bounds.mean_field_bits(**how) == pytest.approx(by_hand)
    assert 10 ** bounds.mean_field_log10_bits(**how) == pytest.approx(by_hand)
    huge = how | {"d": 1000}
    assert bounds.mean_field_bits(**huge) == math.inf
    assert bounds.mean_field_log10_bits(**huge) == pytest.approx(
        1000 * math.log10(25) + math.log10(math.log2(math.e * 15))
    )
    assert bounds.mean_field_bits(**how | {"lipschitz": 0.0}) == 0
    for bad in ({"d": 0}, {"eps": 0.0}, {"radius": math.inf}, {"lipschitz": -1.0}, {"wasserstein": math.nan}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            bounds.mean_field_bits(**how | bad)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("eps", [0.01, 0.3, 1.0, 3.0])
def test_the_sharp_count_is_never_above_the_closed_form(d, eps):
    how = dict(d=d, radius=1.0, lipschitz=1.5, wasserstein=4.0, eps=eps)
    sharp = bounds.mean_field_packing_bits(**how)
    assert 0 <= sharp <= bounds.mean_field_bits(**how)
    assert (sharp == 0) == (eps >= 1.5)
    assert bounds.mean_field_packing_bits(**how | {"lipschitz": math.inf}) == math.inf


@pytest.mark.parametrize("eps", ["0.2", "0.4", "1.9", "0.7", "0.1"])
def test_the_count_on_a_line_where_the_ratio_is_an_integer_but_for_rounding(eps):
    radii, constants = ("1.0", "2.4", "3.8", "2.8", "1.5"), ("1.5", "3.8", "0.6", "3.0", "2.4")
    for radius, lipschitz in itertools.product(radii, constants):
        exact = [Fraction(x) for x in (radius, lipschitz, eps)]
        r, slope, margin, W = *exact, 2 * exact[1]
        if r * slope <= margin:
            continue
        start, best = math.floor(r * slope / margin) + 1, math.inf
        for M in range(start, start + 5 * start + 100):
            K = math.ceil((M - 1) * r * W / (M * margin - r * slope))
            best = min(best, math.lgamma(M + K - 1) - math.lgamma(M) - math.lgamma(K))
        how = dict(d=1, radius=float(r), lipschitz=float(slope), wasserstein=float(W), eps=float(margin))
        found, closed = bounds.mean_field_packing_bits(**how), bounds.mean_field_bits(**how)
        assert 0.5 < found <= min(1.02 * best / math.log(2) + 1e-6, closed)
        assert found >= min(best / math.log(2), closed / 10) - 1e-6


def test_counts_of_numbers_that_overflow_are_infinite_and_never_zero():
    how = dict(d=1, radius=1.0, eps=1.0)
    assert bounds.mean_field_packing_bits(**how, lipschitz=1e17, wasserstein=1e17) > 1e17
    assert bounds.mean_field_packing_bits(**how | {"radius": 1e10}, lipschitz=1.0, wasserstein=1e308) == math.inf
    assert bounds.histogram_bits(3, 1e-320) == math.inf
    assert bounds.wasserstein_constant(1e308 * I2, I2, 1e10, tokens=5) == math.inf
    for bad in (("3", 0.1), (3, None), (math.nan, 0.1)):
        with pytest.raises(ValueError, match="must be a number"):
            bounds.histogram_bits(*bad)


def test_the_count_on_a_line_enumerates_monotone_sequences():
    lipschitz, wasserstein, eps = 2.5, 4.0, 1.0
    counts = []
    for M in (3, 4, 5, 6):  # more than rΛ/ε
        K = math.ceil((M - 1) * wasserstein / (M * eps - lipschitz))
        sequences = itertools.product(range(K), repeat=M - 1) if K ** (M - 1) < 10**6 else ()
        counts.append(sum(all(a <= b for a, b in itertools.pairwise(s)) for s in sequences) or math.inf)
    found = bounds.mean_field_packing_bits(d=1, radius=1.0, lipschitz=lipschitz, wasserstein=wasserstein, eps=eps)
    assert found == pytest.approx(math.log2(min(counts)))


def test_prompts_on_a_line_in_one_class_differ_by_at_most_two_eps():
    """The classes of part 3, built: a linear functional with the given constants must not tell them apart."""
    rng = np.random.default_rng(4)
    lipschitz, wasserstein, eps, M = 1.0, 2.0, 0.3, 6
    K = math.ceil((M - 1) * wasserstein / (M * eps - lipschitz))
    classes = {}
    for _ in range(3000):
        z = np.sort(rng.uniform(-1, 1, rng.integers(1, 4)))
        levels = np.searchsorted(z, np.linspace(-1, 1, M + 1)[1:-1]) / len(z)
        classes.setdefault(tuple(np.minimum((K * levels).astype(int), K - 1)), []).append(z)
    largest = 0.0
    for members in classes.values():
        for first, second in itertools.islice(itertools.combinations(members, 2), 30):
            centres = [(np.floor((z + 1) * M / 2).clip(max=M - 1) + 0.5) * 2 / M - 1 for z in (first, second)]
            moved = max(abs(first - centres[0]).max(), abs(second - centres[1]).max())
            largest = max(
                largest,
                2 * lipschitz * moved + wasserstein * measure.wasserstein(centres[0][:, None], centres[1][:, None]),
            )
    assert 0.5 * eps < largest <= 2 * eps + 1e-12


def test_snapped_multisets():
    assert bounds.snapped_multiset_bits(1, 5, 1.0, 2.5, 1.0) == pytest.approx(math.log2(math.comb(3 + 4, 5)))
    assert bounds.snapped_multiset_bits(2, 3, 1.0, 1.0, 1.0) == pytest.approx(math.log2(math.comb(9 + 2, 3)))
    assert bounds.snapped_multiset_bits(1000, 3, 1.0, 1.0, 1.0) == math.inf
    with pytest.raises(ValueError, match="eps"):
        bounds.snapped_multiset_bits(1, 3, 1.0, 1.0, 0.0)


# --- causal networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["none", "learned"])
@pytest.mark.parametrize("norm", ["none", "rms"])
def test_block_error_bounds_the_sorted_prompts(norm, positions):
    how = dict(positions=positions, context=61)
    model, W = network(d=2, depth=2, causal=True, norm=norm, norm_eps=1.0, inverse_temperature=0.2, **how)
    prompts = measure.into_ball(torch.randn(3, 60, 2, generator=generator()).double(), 1.0)
    prompts = prompts.gather(1, prompts[..., :1].argsort(1).expand_as(prompts))
    query = torch.full((3, 1, 2), 0.4).double()
    for K in (1, 2, 7, 60):
        change = measure.blockwise(model, prompts, query, K) - model(prompts, query[:1])[:, 0]
        assert float(change.abs().max()) <= bounds.block_error(model.config, W, K, radius=1.0, query_radius=1.0)


def test_mixing_a_share_of_tokens_in_costs_no_more_than_total_variation():
    rng = np.random.default_rng(5)
    for _ in range(200):
        A, V, share = rng.normal(size=(2, 2)), rng.normal(size=(2, 2)), rng.random()
        x, z = ball(rng, 1, 2), ball(rng, 7, 2)
        B, weights = np.linalg.norm(A, 2), np.r_[np.full(4, (1 - share) / 4), np.full(3, share / 3)]
        mixed = compress.attend(z, x, A, V, weights=weights) - compress.attend(z[:4], x, A, V)
        assert np.linalg.norm(mixed) <= 2 * np.linalg.norm(V, 2) * math.exp(2 * B) * share + 1e-12


def test_block_error_is_the_limit_of_its_recursion_token_by_token():
    model, W = network(d=2, depth=3, causal=True, inverse_temperature=0.2)
    K, N = 8, 4000
    m = K * N
    t = np.arange(1, m + 1)
    e, x, r = np.zeros(m), 0.0, 1.0
    for layer in range(3):
        q, key, v, o = (W[f"blocks.{layer}.{name}"] for name in ("query", "key", "value", "output"))
        B, s = np.linalg.norm(0.2 * key @ q.T / math.sqrt(2), 2) * r**2, np.linalg.norm(v @ o, 2)
        kappa, added, mean = s * math.exp(2 * B) * (1 + 2 * B), s * math.exp(2 * B), np.cumsum(e) / t
        x += kappa * mean[-1]
        e = e + kappa * mean + added * 2 * r * np.minimum(1, N / t)
        r *= 1 + s
    read = np.linalg.norm(W["unembedding"], axis=0).max()
    found = bounds.block_error(model.config, W, K, radius=1.0, query_radius=1.0)
    assert found == pytest.approx(read * x, rel=1e-2)
    assert found >= read * x * (1 - 1e-12)


def test_block_error_vanishes_for_one_layer_and_falls_with_the_blocks():
    model, W = network(d=2, causal=True)
    assert bounds.block_error(model.config, W, 3, radius=1.0, query_radius=1.0) == 0
    model, W = network(d=2, depth=3, causal=True, inverse_temperature=0.2)
    errors = [bounds.block_error(model.config, W, K, radius=1.0, query_radius=1.0) for K in (1, 2, 3, 10, 100, 10**6)]
    assert all(a > b for a, b in itertools.pairwise(errors))
    model, W = network(d=2, depth=2, causal=True, positions="rotary")
    with pytest.raises(ValueError, match="rotary positions"):
        bounds.block_error(model.config, W, 3, radius=1.0, query_radius=1.0)
    with pytest.raises(ValueError, match="blocks"):
        measure.blockwise(network(d=2)[0], torch.zeros(1, 3, 2), torch.zeros(1, 1, 2), 2)
    with pytest.raises(ValueError, match="blocks must be an integer"):
        measure.blockwise(network(d=2, causal=True)[0], torch.zeros(1, 3, 2), torch.zeros(1, 1, 2), 0)
    model, W = network(d=2, depth=2)
    with pytest.raises(ValueError, match="causal"):
        bounds.block_error(model.config, W, 3, radius=1.0, query_radius=1.0)


def test_causal_bits_are_k_times_the_bits_at_half_the_margin():
    how = dict(d=2, radius=0.5, lipschitz=3.0, wasserstein=7.0, eps=0.25)
    by_hand = 5 * (1 + 8 * 0.5 * 3 / 0.25) ** 2 * math.log2(math.e * (1 + 2 * 0.5 * 7 / 0.25))
    assert bounds.causal_mean_field_bits(**how, blocks=5) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="blocks"):
        bounds.causal_mean_field_bits(**how, blocks=0)
