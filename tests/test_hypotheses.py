"""Breaking hypotheses: the packing bound and its relatives against brute force, and the memory against the network."""

import itertools
import math
from decimal import localcontext

import numpy as np
import pytest
import torch
from scipy import integrate, special

from prompt_memory import associative, bounds

ODDS = 1 / 3  # (1 − ε)/(1 + ε) at ε = 1/2


def loops(keys, values, B, copies):
    """The reading at every key, with Python loops over single tokens."""
    result = []
    for query in keys:
        tokens = [(k, u) for k, u, c in zip(keys, values, copies, strict=True) for _ in range(c)]
        weights = [math.exp(B * float(query @ k)) for k, _ in tokens]
        result.append(sum(w * u for w, (_, u) in zip(weights, tokens, strict=True)) / sum(weights))
    return np.array(result)


def every_label_held(keys, B, copies, eps):
    for labels in itertools.product((-1.0, 1.0), repeat=len(keys)):
        if not (loops(keys, labels, B, copies) * labels > eps).all():
            return False
    return True


# --- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.1, 0.5, 0.9])
def test_packing_bounds_and_their_inverse(eps):
    gap = math.log((1 + eps) / (1 - eps))
    assert bounds.pairwise_gap(eps) == pytest.approx(gap, rel=1e-14)
    assert bounds.addressed_facts(3, 7.0, eps) == pytest.approx((1 + math.sqrt(14 / gap)) ** 3)
    assert bounds.addressed_facts(3, 0.0, eps) == 1
    for facts in (1, 5, 1000):
        B = bounds.addressing_logit_range(4, facts, eps)
        assert bounds.addressed_facts(4, B, eps) == pytest.approx(facts)


def test_caps_on_the_sphere():
    gap = bounds.pairwise_gap(0.5)
    for B in (1.0, 5.0, 80.0):
        angle = math.acos(1 - gap / B)
        assert bounds.sphere_facts(2, B, 0.5) == pytest.approx(2 * math.pi / angle)
        assert bounds.sphere_facts(3, B, 0.5) == pytest.approx(2 / (1 - math.cos(angle / 2)))
        share = (
            integrate.quad(lambda t: math.sin(t) ** 4, 0, angle / 2)[0]
            / integrate.quad(lambda t: math.sin(t) ** 4, 0, math.pi)[0]
        )
        assert bounds.sphere_facts(6, B, 0.5) == pytest.approx(1 / share)
        for d_k in (2, 3, 6):  # the closed form of Proposition 9a
            closed = (d_k - 1) * special.beta((d_k - 1) / 2, 0.5) * (2 * B / gap) ** ((d_k - 1) / 2)
            assert bounds.sphere_facts(d_k, B, 0.5) <= closed
    assert bounds.sphere_facts(5, gap / 2, 0.5) == 1
    assert bounds.sphere_facts(1, 9.0, 0.5) == 2


@pytest.mark.parametrize("eps", [0.2, 0.5, 0.8])
def test_circle_facts_is_the_last_size_that_holds(eps):
    odds = (1 - eps) / (1 + eps)
    for B in (0.0, 0.3, 1.0, 4.0, 11.0, 200.0, 3e6):
        leak = [
            np.exp(-B * (1 - np.cos(2 * np.pi * np.arange(1, M) / M))).sum() < odds
            for M in range(1, 8 + int(8 * B**0.5) if B < 1e3 else 2)
        ]
        M = bounds.circle_facts(B, eps)
        if B < 1e3:
            assert leak == [True] * M + [False] * (len(leak) - M)
        else:  # the limit: π √(2/t), 2 Σ e^{−t j²} = (1 − ε)/(1 + ε)
            low, high = 0.01, 50.0
            for _ in range(80):
                t = (low + high) / 2
                low, high = (t, high) if 2 * np.exp(-t * np.arange(1, 60) ** 2).sum() > odds else (low, t)
            assert M / math.sqrt(B) == pytest.approx(math.pi * math.sqrt(2 / t), rel=2e-3)


@pytest.mark.parametrize(("M", "B"), [(5, 3.0), (6, 4.0), (7, 4.0), (8, 6.0)])
def test_held_means_that_every_labeling_is_recalled(M, B):
    keys, copies = associative.circle_keys(M), [1] * M
    assert every_label_held(keys, B, copies, 0.5) == (bounds.circle_facts(B, 0.5) >= M)
    assert every_label_held(keys, B, copies, 0.5) == (associative.leak_odds(keys, B) < ODDS)


def test_the_packing_bound_against_every_small_lattice():
    reached = []
    for B, d_k in itertools.product((1.5, 4.0, 9.0), (1, 2)):
        for spacing in np.linspace(0.5, 2, 16):
            keys = associative.ball_keys(d_k, spacing)
            copies = np.maximum(1, np.round(np.exp(B / 2 * (1 - (keys**2).sum(1))))).astype(int)
            if len(keys) > 7:
                continue
            if every_label_held(keys, B, copies, 0.5):
                assert len(keys) <= bounds.addressed_facts(d_k, B, 0.5)
                reached.append(len(keys) / math.floor(bounds.addressed_facts(d_k, B, 0.5)))
    assert max(reached) == 1  # attained: three facts in one dimension at B = 4


def test_several_heads_address_facts_one_head_at_a_time():
    """Wherever two heads hold their facts together, each fact has a head that holds it and packs it with its like."""
    rng = np.random.default_rng(11)
    eps, held = 0.2, 0
    for _ in range(2000):
        M, ranges, share = int(rng.integers(2, 5)), rng.uniform(1, 9, 2), rng.dirichlet((3, 3))
        x = np.sqrt(ranges)[:, None, None] * associative.random_keys(2 * M, 2, rng).reshape(2, M, 2)
        y = x + rng.normal(0, 0.2, x.shape)
        y *= np.minimum(1, np.sqrt(ranges)[:, None, None] / np.linalg.norm(y, axis=2, keepdims=True))
        s = np.exp(np.einsum("hid,hjd->hij", x, y))
        loud = share[:, None, None] * rng.uniform(0.5, 1, (2, 1, M)) * s / s.sum(2, keepdims=True)  # D^h_ij
        D = loud.sum(0)
        if not (2 * np.diag(D) - D.sum(1) > eps).all():
            continue
        held += 1
        assert bounds.several_heads_facts(2, ranges, eps) >= M
        own = np.array([2 * np.diag(part) - part.sum(1) for part in loud])  # [h, i]
        home = (own - eps * share[:, None]).argmax(0)
        assert (own[home, range(M)] > eps * share[home]).all()
        for h in range(2):
            part = np.flatnonzero(home == h)
            assert len(part) <= bounds.addressed_facts(2, ranges[h], eps)
            for i, j in itertools.permutations(part, 2):
                assert loud[h, i, i] / loud[h, i, j] > (1 + eps) / (1 - eps)
    assert held > 50
    assert bounds.several_heads_facts(3, [7.0], eps) == bounds.addressed_facts(3, 7.0, eps)
    assert bounds.several_heads_facts(3, [7.0, 2.0], eps) == pytest.approx(
        bounds.addressed_facts(3, 7.0, eps) + bounds.addressed_facts(3, 2.0, eps)
    )
    with pytest.raises(ValueError, match="at least one head"):
        bounds.several_heads_facts(3, [], eps)


def test_search_stays_under_the_packing_bound_and_finds_something():
    generator = torch.Generator().manual_seed(1)
    limit = math.floor(bounds.addressed_facts(1, 4.0, 0.5))
    options = {"restarts": 8, "steps": 200, "generator": generator}
    assert associative.search_addresses(limit, 1, 4.0, **options) < ODDS
    assert associative.search_addresses(limit + 1, 1, 4.0, **options) > ODDS


def test_shells_serve_any_code():
    rng = np.random.default_rng(0)
    for d_k, keys in (
        (2, associative.circle_keys(300)),
        (3, associative.fibonacci_keys(500)),
        (3, associative.random_keys(40, 3, rng)),
        (5, associative.random_keys(300, 5, rng)),
    ):
        distances = np.linalg.norm(keys[:, None] - keys[None], axis=-1) + 9 * np.eye(len(keys))
        B = bounds.shell_logit_range(d_k, distances.min(), 0.5)
        assert associative.leak_odds(keys, B) < ODDS
    b = bounds.shell_logit_range(3, 0.2, 0.5) * 0.2**2 / 2
    t = np.arange(2, 400.0)
    total = (((2 * t + 1) ** 3 - 1) * (np.exp(-b * (t - 1) ** 2) - np.exp(-b * t**2))).sum()
    assert total == pytest.approx(ODDS, rel=1e-9)
    assert bounds.shell_logit_range(3, 0.1, 0.5) == pytest.approx(4 * bounds.shell_logit_range(3, 0.2, 0.5))


@pytest.mark.parametrize(("d_k", "B"), [(2, 0.7), (3, 5.0), (8, 5.0), (64, 20.0), (400, 3.0)])
def test_expected_odds_by_integration(d_k, B):
    def density(t):
        return math.sin(t) ** (d_k - 2)

    top = integrate.quad(lambda t: math.exp(-B * (1 - math.cos(t))) * density(t), 0, math.pi)[0]
    mean = top / integrate.quad(density, 0, math.pi)[0]
    assert bounds.expected_leak_odds(11, d_k, B) == pytest.approx(10 * mean, rel=1e-7)
    assert bounds.expected_leak_odds(11, d_k, B) <= 10 * math.exp(-B + B * B / (2 * d_k)) * (1 + 1e-12)


@pytest.mark.parametrize("d_k", [91, 120, 1000])
def test_shells_in_many_dimensions(d_k):
    """(2t + 1)^{d_k} overflows there; the sum again, in numbers that do not."""
    b = bounds.shell_logit_range(d_k, 1.0, 0.5) / 2
    terms = []
    for t in range(2, 40):
        with localcontext() as context:
            context.prec = 40
            inside = associative.Decimal(2 * t + 1) ** d_k - 1
            rate = associative.Decimal(b)
            terms.append(inside * ((-rate * (t - 1) ** 2).exp() - (-rate * t * t).exp()))
    assert float(sum(terms)) == pytest.approx(ODDS, rel=1e-9)


def test_bounds_that_leave_floating_point_are_infinite_or_right():
    assert bounds.addressed_facts(10_000, 100.0, 0.5) == math.inf
    assert bounds.sphere_facts(5000, 100.0, 0.5) == math.inf
    assert bounds.expected_leak_odds(2, 3, 1e12) == pytest.approx(5e-13)  # (1 − e^{−2B})/(2B) in three dimensions
    for n, B in ((5, 3e3), (200, 1e5)):  # the attention row has no underflow there, and the gain is not small
        row = np.exp(-2 * B * np.sin(np.pi * np.arange(n) / n) ** 2)
        gain = np.fft.fft(row / row.sum()).real.min()
        assert bounds.circle_gain_log2(n, B) == pytest.approx(math.log2(gain), rel=1e-9, abs=1e-12)
    with localcontext() as context:  # far below, from the attention in many digits
        context.prec = 900
        n, B = 90, 0.25
        cosines, row = associative.decimal_cosines(n), associative.decimal_attention(n, B)
        gain = sum(c * w for c, w in zip((cosines[n // 2 * j % n] for j in range(n)), row, strict=True))
        assert bounds.circle_gain_log2(n, B) == pytest.approx(float(gain.log10()) / math.log10(2), rel=1e-12)


def test_expected_odds_where_bessel_functions_underflow():
    assert bounds.expected_leak_odds(2, 2000, 1.0) == pytest.approx(math.exp(-1 + 1 / 4000), rel=1e-6)
    assert bounds.expected_leak_odds(1, 4, 3.0) == 0


@pytest.mark.parametrize(("n", "B"), [(1, 2.0), (2, 0.5), (7, 4.0), (12, 4.0), (16, 30.0), (24, 4.0)])
def test_circle_gain_is_the_least_eigenvalue(n, B):
    row = np.exp(B * np.cos(2 * np.pi * np.arange(n) / n))
    S = np.stack([np.roll(row, i) for i in range(n)]) / row.sum()
    assert 2 ** bounds.circle_gain_log2(n, B) == pytest.approx(np.linalg.eigvalsh(S).min(), rel=1e-6)


def test_circle_gain_far_below_floating_point():
    # 2 (eB/n)^{n/2} up to polynomial factors
    n, B = 4000, 4.0
    assert -bounds.circle_gain_log2(n, B) == pytest.approx(n / 2 * math.log2(n / (math.e * B)), rel=2e-3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bounds.pairwise_gap(1.0), "strictly between 0 and 1"),
        (lambda: bounds.addressed_facts(0, 1.0, 0.5), "integer >= 1"),
        (lambda: bounds.addressed_facts(2, math.inf, 0.5), "finite number >= 0"),
        (lambda: bounds.shell_logit_range(2, 0.0, 0.5), "separation"),
        (lambda: bounds.expected_leak_odds(3, 1, 1.0), "d_k >= 2"),
        (lambda: bounds.circle_gain_log2(3, 0.0), "B must be > 0"),
        (lambda: associative.readings(np.ones((3, 2)), np.ones((1, 4)), 1.0), "do not fit"),
        (lambda: associative.readings(np.ones((3, 2)), np.ones((1, 3)), math.nan), ">= 0"),
        (lambda: associative.circle_readings(np.ones((1, 3)), math.inf), "finite"),
        (lambda: associative.ball_keys(3, 0.5), "d_k = 1 and 2"),
        (lambda: associative.growth([2, 4], [1, 1]), "six sizes"),
        (lambda: bounds.circle_gain_log2(7, 1e12), "at most 1e9"),
        (lambda: associative.readings(np.full((2, 2), np.nan), np.ones((1, 2)), 1.0), "finite"),
        (lambda: associative.readings(np.ones((2, 2)), np.ones((1, 2)), 1.0, weights=[1, math.inf]), "finite"),
        (lambda: associative.circle_readings(np.ones(3), 1.0), "table"),
        (lambda: associative.head_prompt(np.eye(2), np.ones((1, 3))), "do not fit"),
        (lambda: associative.poisson_recall(0.0, eps=0.5, samples=9, rng=np.random.default_rng(0)), "kappa"),
        (lambda: associative.search_addresses(1, 2, 4.0, restarts=1, steps=1, generator=None), "facts"),
        (
            lambda: associative.best_load(
                5, abs, associative.circle_readings, eps=0.5, trials=2, rng=np.random.default_rng(0), most=0
            ),
            "most",
        ),
        (lambda: associative.head_network(2, 0.0), "scale"),
        (lambda: associative.compensated_values(np.zeros((1, 3)), 4.0), "-1 and 1"),
        (lambda: associative.compensated_values(np.ones((1, 64)), 4.0, digits=40), "digits"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


# --- the memory ----------------------------------------------------------------------------------------------------


def test_readings_with_repeated_tokens_by_loops():
    rng = np.random.default_rng(1)
    keys, values, copies = associative.random_keys(6, 3, rng), rng.uniform(-1, 1, (4, 6)), [1, 3, 2, 1, 5, 1]
    read = associative.readings(keys, values, 2.3, weights=copies, chunk=4)
    expected = [loops(keys, row, 2.3, copies) for row in values]
    np.testing.assert_allclose(read, expected, rtol=0, atol=1e-13)


def test_the_convolution_is_the_head():
    values = associative.signs((3, 33), np.random.default_rng(2))
    for B in (0.0, 4.0, 1e5):
        np.testing.assert_allclose(
            associative.circle_readings(values, B),
            associative.readings(associative.circle_keys(33), values, B),
            atol=1e-9,
        )


def test_argmax_recalls_random_distinct_keys():
    rng = np.random.default_rng(3)
    keys, values = associative.random_keys(2000, 2, rng), associative.signs((2, 2000), rng)
    assert (associative.readings(keys, values, math.inf) == values).all()
    tie = associative.readings(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, -1.0]]), math.inf)
    assert (tie == 0).all()  # equal keys share


@pytest.mark.parametrize(("n", "d_k", "B"), [(2, 2, 1.0), (30, 3, 8.0), (60, 8, 9.0)])
def test_random_recall_is_that_of_whole_tables(n, d_k, B):
    rng, eps, tables = np.random.default_rng(4), 0.5, 3000
    recalled = []
    for _ in range(tables):
        keys, labels = associative.random_keys(n, d_k, rng), associative.signs((1, n), rng)
        recalled.append(associative.recalled(associative.readings(keys, labels, B), labels, eps)[0])
    trials = 20_000
    found = associative.random_recall(n, d_k, B, eps=eps, trials=trials, rng=rng, chunk=1000 * n) / trials
    error = math.hypot(np.std(recalled) / math.sqrt(tables), 0.5 / math.sqrt(trials))
    assert abs(found - np.mean(recalled)) < 5 * error
    assert 0.02 < found < 0.98
    with pytest.raises(ValueError, match="d_k >= 2"):
        associative.random_recall(n, 1, B, eps=eps, trials=2, rng=rng)


def test_codes():
    for n in (1, 2, 50):
        np.testing.assert_allclose(np.linalg.norm(associative.fibonacci_keys(n), axis=1), 1)
    keys = associative.fibonacci_keys(1000)
    nearest = np.sort(np.linalg.norm(keys[:, None] - keys[None], axis=-1), axis=1)[:, 1]
    assert nearest.min() > 2.7 / math.sqrt(1000)  # the best codes have √(8π/√3) = 3.81
    for d_k, spacing in ((1, 0.4), (2, 0.3)):
        lattice = associative.ball_keys(d_k, spacing)
        apart = np.linalg.norm(lattice[:, None] - lattice[None], axis=-1) + 9 * np.eye(len(lattice))
        assert apart.min() == pytest.approx(spacing)
        assert np.linalg.norm(lattice, axis=1).max() <= 1 + 1e-9
    assert len(associative.ball_keys(1, 0.4)) == 6
    assert len(associative.ball_keys(2, 1.0)) == 7


@pytest.mark.parametrize("context_scaling", ["none", "log"])
def test_the_network_is_the_memory(context_scaling):
    rng = np.random.default_rng(4)
    keys, labels = associative.random_keys(5, 3, rng), associative.signs((2, 5), rng)
    network = associative.head_network(3, 1.7, context_scaling=context_scaling)
    prompt = associative.head_prompt(keys, labels, length=0.8, copies=4)
    logits = network(prompt, associative.head_queries(keys), own_token=False)
    B = 1.7 * 0.8 * (math.log(20) if context_scaling == "log" else 1)
    read = associative.readings(keys, labels, B)
    np.testing.assert_allclose(logits.numpy(), np.stack([read, -read], -1), atol=1e-13)


def test_behind_a_norm_the_length_of_the_prompt_is_gone():
    """The formula of Proposition 9e, part 3, in numpy: logits κd·ρ/√(ρ²+1), values √d u/√(ρ²+1)."""
    rng = np.random.default_rng(5)
    keys, labels, d, kappa = associative.circle_keys(5), associative.signs((3, 5), rng), 3, 1.3
    network = associative.head_network(2, kappa, norm="rms")
    for rho in (0.3, 1.0, 50.0):
        logits = network(
            associative.head_prompt(keys, labels, length=rho), associative.head_queries(keys), own_token=False
        ).numpy()
        stretch = math.sqrt(rho**2 + 1)
        read = associative.readings(keys, labels, kappa * d * rho / stretch) * math.sqrt(d) / stretch
        np.testing.assert_allclose(logits[..., 0], math.sqrt(d) * read / np.sqrt(1 + read**2), atol=1e-12)
        margins = logits[..., 0] - logits[..., 1]
        threshold = 1 / math.sqrt(4 * d - 1)
        assert ((np.abs(margins) > 1) == (np.abs(read) > threshold)).all()


def test_best_load_finds_what_an_exhaustive_search_finds():
    """Exact recall of every M up to 12 at B = 4 by enumerating labels, against the sampled search."""
    exact = {}
    for M in range(1, 13):
        labels = np.array(list(itertools.product((-1.0, 1.0), repeat=M)))
        recall = associative.recalled(associative.circle_readings(labels, 4.0), labels, 0.5).mean()
        exact[M] = associative.retained_bits(recall, M)
    rng = np.random.default_rng(6)
    load = associative.best_load(100, lambda n: 4.0, associative.circle_readings, eps=0.5, trials=64, rng=rng)
    assert load.facts == max(exact, key=exact.get) == 6
    assert load.bits == pytest.approx(6)
    # the temperature is that of the tokens used: 3 facts on 5 tokens make 3 tokens, not 5
    seen = []
    associative.best_load(
        5, lambda n: seen.append(n) or 1.0, associative.circle_readings, eps=0.5, trials=2, rng=rng, most=3
    )
    assert set(seen) == {5, 4, 3}


def test_retained_bits_and_recall():
    labels = np.array([[1.0, 1, -1, -1]])
    read = np.array([[0.6, 0.5, -0.7, 0.9]])
    assert associative.recalled(read, labels, 0.5) == pytest.approx([0.5])  # 0.5 is not above 0.5
    assert associative.retained_bits(1.0, 9) == 9
    assert associative.retained_bits(0.5, 9) == 0
    assert associative.retained_bits(0.75, 4) == pytest.approx(
        4 * (1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    )


def test_growth_tells_the_laws_apart():
    sizes = 2.0 ** np.arange(4, 20)
    power = associative.growth(sizes, 3 * sizes**0.7)
    assert power.power == pytest.approx(0.7)
    assert power.better == "power"
    assert power.held_power < 1e-9
    log = associative.growth(sizes, 2 * np.log(sizes) ** 1.5)
    assert log.polylog == pytest.approx(1.5)
    assert log.better == "polylog"
    # the last quarter of the octaves is hidden: what happens there changes no fitted line
    bent = 2 * np.log(sizes) ** 1.5
    bent[-1] *= 2
    assert associative.growth(sizes, bent).held_polylog == pytest.approx(math.log(2) / 4)


def test_poisson_limit_against_a_long_circle():
    rng = np.random.default_rng(7)
    limit = associative.poisson_recall(0.5, eps=0.5, samples=40_000, rng=rng)
    found = []
    for _ in range(20):
        keys, labels = associative.random_keys(500, 2, rng), associative.signs((1, 500), rng)
        found.append(associative.recalled(associative.readings(keys, labels, 0.5 * 500**2), labels, 0.5).mean())
    assert np.mean(found) == pytest.approx(limit, abs=0.02)  # standard error below 0.005


# --- no margin -----------------------------------------------------------------------------------------------------


def test_decimal_cosines():
    with localcontext() as context:
        context.prec = 50
        cosines = associative.decimal_cosines(12)
        root = sum(c * c for c in cosines)
        assert abs(root - 6) < 1e-47
        assert abs(cosines[1] * cosines[1] - associative.Decimal(3) / 4) < 1e-47
    np.testing.assert_allclose([float(c) for c in cosines], np.cos(2 * np.pi * np.arange(12) / 12), atol=1e-15)


def test_compensated_values_against_linear_algebra():
    labels = associative.signs((4, 10), np.random.default_rng(8)).astype(int)
    values, amplitudes = associative.compensated_values(labels, 4.0)
    u = np.array(values, dtype=float)
    S = associative.readings(associative.circle_keys(10), np.eye(10), 4.0).T  # column j: token j alone
    solved = np.linalg.solve(S, labels.T).T
    np.testing.assert_allclose(u, solved / np.abs(solved).max(1, keepdims=True), atol=1e-10)
    np.testing.assert_allclose(
        associative.circle_readings(u, 4.0), labels * np.array(amplitudes, float)[:, None], atol=1e-14
    )


def test_amplitudes_lie_where_the_proposition_says():
    for M in (5, 8):
        labels = np.array(list(itertools.product((-1, 1), repeat=M)))
        _, amplitudes = associative.compensated_values(labels, 4.0)
        least, gain = float(min(amplitudes)), 2 ** bounds.circle_gain_log2(M, 4.0)
        assert gain / math.sqrt(M) <= least <= gain * (1 + 1e-12)
