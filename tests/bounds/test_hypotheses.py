"""Propositions 9a to 9f: the packing bound and its relatives against brute force."""

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy import integrate, special

from prompt_memory import bounds
from prompt_memory.network import associative
from prompt_memory.tune.associative import decimal_attention, decimal_cosines, search_addresses

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


# --- formulas --------------------------------------------------------------------------------------------------------


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
    assert search_addresses(limit, 1, 4.0, **options) < ODDS
    assert search_addresses(limit + 1, 1, 4.0, **options) > ODDS


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
            inside = Decimal(2 * t + 1) ** d_k - 1
            rate = Decimal(b)
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
        cosines, row = decimal_cosines(n), decimal_attention(n, B)
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
        (lambda: bounds.circle_gain_log2(7, 1e12), "at most 1e9"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
