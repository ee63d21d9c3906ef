"""Bounds against brute force: codebooks are enumerated, tails are fractions, ranks are measured."""

import functools
import itertools
import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_memory import bounds, measure, tasks, witness
from prompt_memory.transformer import TransformerConfig

torch.set_num_threads(1)
# torch's own forward-mode derivatives still use it
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CLASSES = st.integers(2, 40)
FRACTIONS = st.floats(0, 1)
quick = settings(deadline=None, max_examples=60, derandomize=True)


# --- counting ------------------------------------------------------------------------------------------------------


def test_counting_bits():
    assert bounds.counting_bits(768, 20, 16) == 245760
    assert bounds.counting_bits(2, 3, 5) == 30
    assert bounds.hard_prompt_bits(65536, 20) == 320
    assert 2 ** bounds.hard_prompt_bits(3, 4) == pytest.approx(len(list(itertools.product(range(3), repeat=4))))


@pytest.mark.parametrize(("d", "bits"), [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_multiset_bits_counts_unordered_prompts(d, m, bits):
    tokens = range(len(list(itertools.product(range(2**bits), repeat=d))))
    multisets = sum(1 for _ in itertools.combinations_with_replacement(tokens, m))
    assert bounds.multiset_bits(d, m, bits) == pytest.approx(math.log2(multisets), rel=1e-13)


@quick
@given(d=st.integers(1, 900), m=st.integers(1, 200), bits=st.integers(1, 32))
def test_an_unordered_prompt_has_fewer_bits(d, m, bits):
    unordered, ordered = bounds.multiset_bits(d, m, bits), bounds.counting_bits(d, m, bits)
    assert math.isfinite(unordered)
    assert unordered <= ordered * (1 + 1e-12)
    # at most m! orders of one multiset
    assert unordered >= ordered - sum(math.log2(k) for k in range(1, m + 1)) - 1e-9 * ordered
    assert bounds.multiset_bits(d, m + 1, bits) > unordered
    if m == 1:
        assert unordered == ordered


@quick
@given(d=st.integers(1, 12), m=st.integers(1, 5000))
def test_multiset_bits_is_the_logarithm_of_a_binomial(d, m):
    exact = math.log2(math.comb(2**d + m - 1, m))
    assert bounds.multiset_bits(d, m, 1) == pytest.approx(exact, rel=1e-12)


def test_a_long_unordered_prompt_is_worth_only_logarithms():
    assert bounds.multiset_bits(1, 10**5, 1) == pytest.approx(math.log2(10**5 + 1))
    assert bounds.multiset_bits(768, 20, 16) == pytest.approx(245760 - math.log2(math.factorial(20)))


def test_numpy_integers_count_like_integers():
    assert bounds.counting_bits(np.int8(100), np.int8(100), np.int8(3)) == 30000
    assert bounds.multiset_bits(np.int64(64), np.int64(2), np.int64(1)) == bounds.multiset_bits(64, 2, 1)


# --- rate and distortion -------------------------------------------------------------------------------------------


@quick
@given(q=CLASSES, x=FRACTIONS, y=FRACTIONS, share=FRACTIONS)
def test_the_rate_decreases_and_is_convex(q, x, y, share):
    between = bounds.rate(share * x + (1 - share) * y, q)
    assert between <= share * bounds.rate(x, q) + (1 - share) * bounds.rate(y, q) + 1e-12
    low, high = sorted((x, y))
    assert 0 <= bounds.rate(high, q) <= bounds.rate(low, q) + 1e-12
    assert bounds.rate(0, q) == math.log2(q)
    assert bounds.rate(1 - 1 / q, q) == bounds.rate(1, q) == 0
    assert bounds.rate((1 - 1 / q) * 0.999, q) > 0


@pytest.mark.parametrize("q", [2, 3, 5])
@pytest.mark.parametrize("slope", [0.3, 1.0, 3.0])
def test_the_rate_is_what_blahut_and_arimoto_find(q, slope):
    """Their algorithm minimises mutual information over all channels, from a start without symmetry."""
    distortion = 1 - np.eye(q)
    output = np.arange(1.0, q + 1) / sum(range(1, q + 1))
    for _ in range(4000):
        channel = output * np.exp(-slope * distortion)
        channel /= channel.sum(1, keepdims=True)
        output = channel.mean(0)
    information = (channel * np.log2(channel / output)).sum(1).mean()
    assert bounds.rate((channel * distortion).sum(1).mean(), q) == pytest.approx(information, abs=1e-9)


@quick
@given(q=st.integers(2, 4), data=st.data())
def test_no_channel_beats_the_rate(q, data):
    weights = data.draw(st.lists(st.floats(0.001, 1), min_size=q * q, max_size=q * q))
    channel = np.array(weights).reshape(q, q) + data.draw(st.floats(0, 20)) * np.eye(q)
    channel /= channel.sum(1, keepdims=True)
    information = (channel * np.log2(channel / channel.mean(0))).sum(1).mean()
    assert bounds.rate(1 - np.trace(channel) / q, q) <= information + 1e-12


@quick
@given(q=CLASSES, n=st.integers(1, 10**6), fraction=st.floats(1e-6, 0.999))
def test_the_recall_ceiling_inverts_the_rate(q, n, fraction):
    bits = fraction * n * math.log2(q)
    ceiling = bounds.recall_ceiling(bits, n, q)
    assert 1 / q < ceiling < 1
    assert n * bounds.rate(1 - ceiling, q) == pytest.approx(bits, rel=1e-6)
    assert bounds.recall_ceiling(1.01 * bits, n, q) > ceiling
    assert bounds.recall_ceiling(bits, n + 1, q) <= ceiling
    pinsker = bounds.pinsker_recall_ceiling(bits, n, q)
    assert ceiling <= pinsker + 1e-12
    assert pinsker == pytest.approx(min(1, 1 / q + math.sqrt(bits * math.log(2) / (2 * n))))


@pytest.mark.parametrize("q", [2, 3, 50257])
def test_the_ends_of_the_recall_ceiling(q):
    assert bounds.recall_ceiling(0, 10, q) == 1 / q
    assert bounds.recall_ceiling(10 * math.log2(q), 10, q) == 1
    assert bounds.recall_ceiling(math.inf, 10, q) == 1
    assert bounds.recall_ceiling(1e-9, 10, q) == pytest.approx(1 / q, rel=1e-2)


# --- bounds for codebooks that are enumerated ----------------------------------------------------------------------


def agreements(codebook, n, q):
    """How many labels the best row of the codebook has right, for each of the q^n labelings."""
    labelings = np.array(list(itertools.product(range(q), repeat=n)))
    return (labelings[:, None, :] == np.asarray(codebook)[None]).sum(-1).max(1)


def check_codebook(codebook, n, q):
    codebook = np.unique(codebook, axis=0)
    bits = math.log2(len(codebook))
    best = agreements(codebook, n, q)
    slack = 1e-9
    assert best.mean() / n <= bounds.recall_ceiling(bits, n, q) + slack
    assert best.mean() / n <= bounds.best_recall_ceiling(bits, n, q) + slack
    for k in range(n + 1):
        assert (best >= k).mean() <= 2 ** bounds.recall_tail_bits(bits, n, q, k / n) * (1 + slack)


def linear_code(generators):
    generators = np.array(generators)
    return np.array(list(itertools.product(range(2), repeat=len(generators)))) @ generators % 2


HAMMING = linear_code([[1, 0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]])
CODEBOOKS = {
    "one word": (np.zeros((1, 8), int), 2),
    "one word of four letters": (np.zeros((1, 5), int), 4),
    "repetition, two letters": (np.repeat([[0], [1]], 9, axis=1), 2),
    "repetition, three letters": (np.repeat([[0], [1], [2]], 6, axis=1), 3),
    "Hamming": (HAMMING, 2),
    "its dual": (linear_code([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0, 1]]), 2),
    "even weight": (linear_code(np.eye(7, 8, dtype=int) + np.eye(8, dtype=int)[7]), 2),
    "tetracode": (
        np.array([[a, b, (a + b) % 3, (a - b) % 3] for a in range(3) for b in range(3)]),
        3,
    ),
    "a ball": (np.vstack([np.zeros((1, 8), int), np.eye(8, dtype=int)]), 2),
    "everything": (np.array(list(itertools.product(range(3), repeat=5))), 3),
    "all but one letter": (np.array(list(itertools.product(range(2), repeat=6))), 3),
}


@pytest.mark.parametrize("name", CODEBOOKS)
def test_no_classical_code_recalls_more_than_allowed(name):
    codebook, q = CODEBOOKS[name]
    check_codebook(codebook, codebook.shape[1], q)


@quick
@given(shape=st.sampled_from([(1, 2), (2, 2), (4, 2), (8, 2), (3, 3), (5, 3), (4, 4), (3, 6)]), data=st.data())
def test_no_random_codebook_recalls_more_than_allowed(shape, data):
    n, q = shape
    row = st.lists(st.integers(0, q - 1), min_size=n, max_size=n)
    check_codebook(data.draw(st.lists(row, min_size=1, max_size=min(40, q**n))), n, q)


def test_the_tail_is_attained_by_one_word_and_by_a_perfect_code():
    for n, q in ((6, 2), (5, 3)):
        best = agreements(np.zeros((1, n), int), n, q)
        for k in range(n + 1):
            assert 2 ** bounds.recall_tail_bits(0, n, q, k / n) == pytest.approx((best >= k).mean(), rel=1e-12)
        assert bounds.best_recall_ceiling(0, n, q) == pytest.approx(1 / q, rel=1e-12)
    # the balls of radius 1 around the 16 words of the Hamming code fill the space
    best = agreements(HAMMING, 7, 2)
    assert 2 ** bounds.recall_tail_bits(4, 7, 2, 1.0) == pytest.approx((best == 7).mean(), rel=1e-12)
    assert bounds.recall_tail_bits(4, 7, 2, 6 / 7) == pytest.approx(0, abs=1e-12)
    assert best.min() == 6
    assert bounds.best_recall_ceiling(4, 7, 2) == pytest.approx(best.mean() / 7, rel=1e-12)


# --- sharp tails in exact arithmetic -------------------------------------------------------------------------------


@functools.cache
def tail_counts(n, q):
    """How many of the q^n labelings agree with one row in at least k places, for k = 0 … n."""
    counts = [math.comb(n, k) * (q - 1) ** (n - k) for k in range(n + 1)]
    return list(itertools.accumulate(reversed(counts)))[::-1]


def check_tail(bits, n, q, hits):
    wanted = min(0.0, bits + math.log2(tail_counts(n, q)[hits]) - n * math.log2(q))
    assert bounds.recall_tail_bits(bits, n, q, hits / n) == pytest.approx(wanted, rel=1e-10, abs=1e-10)
    closed = bits - n * bounds.rate(1 - hits / n, q)
    if hits / n >= 1 / q:
        assert bounds.recall_tail_bits(bits, n, q, hits / n) <= closed + 1e-8


@quick
@given(q=st.integers(2, 30), n=st.integers(1, 120), data=st.data())
def test_the_tail_is_exact_and_below_its_closed_form(q, n, data):
    hits = data.draw(st.integers(0, n))
    check_tail(data.draw(st.floats(0, 1.2)) * n * math.log2(q), n, q, hits)
    if hits:  # between two counts the next one decides
        inside = bounds.recall_tail_bits(0, n, q, (hits - 0.5) / n)
        assert inside == bounds.recall_tail_bits(0, n, q, hits / n)


@pytest.mark.parametrize(("n", "q"), [(1500, 2), (2500, 2), (700, 50)])
def test_the_tail_is_exact_where_probabilities_underflow(n, q):
    for hits in (n // q, n // 2 + n // 4, n - 1, n):
        for bits in (0.0, 0.9 * n * math.log2(q), 2 * n * math.log2(q)):
            check_tail(bits, n, q, hits)


def check_best_recall(bits, n, q):
    """2^bits is an integer here, so that the sum of minima is a fraction."""
    total = sum(min(q**n, 2**bits * count) for count in tail_counts(n, q)[1:])
    assert bounds.best_recall_ceiling(float(bits), n, q) == pytest.approx(float(Fraction(total, n * q**n)), rel=1e-10)


@quick
@given(q=st.integers(2, 10), n=st.integers(1, 60), bits=st.integers(0, 250))
def test_the_best_recall_ceiling_is_its_exact_sum(q, n, bits):
    check_best_recall(bits, n, q)
    ceiling = bounds.best_recall_ceiling(bits, n, q)
    assert 1 / q - 1e-12 <= ceiling <= min(1.0, bounds.best_recall_ceiling(bits + 1, n, q)) + 1e-12


@pytest.mark.parametrize("bits", [0, 600, 1100, 1199, 1300])
def test_the_best_recall_ceiling_where_probabilities_underflow(bits):
    check_best_recall(bits, 1200, 2)


@pytest.mark.parametrize(("n", "q", "words"), [(3, 2, 1), (3, 2, 3), (2, 3, 2), (1, 4, 3), (2, 2, 5)])
def test_random_code_recall_is_the_mean_over_all_codes(n, q, words):
    codes = itertools.product(itertools.product(range(q), repeat=n), repeat=words)
    mean = np.mean([agreements(code, n, q).mean() for code in codes]) / n
    assert bounds.random_code_recall(math.log2(words), n, q) == pytest.approx(mean, rel=1e-12)


@quick
@given(q=st.integers(2, 10), n=st.integers(1, 3000), fraction=st.floats(0, 2))
def test_a_random_code_is_below_the_ceiling(q, n, fraction):
    bits = fraction * n * math.log2(q)
    recall = bounds.random_code_recall(bits, n, q)
    assert 1 / q - 1e-9 <= recall <= bounds.best_recall_ceiling(bits, n, q) + 1e-9
    assert bounds.random_code_recall(bits + 1, n, q) >= recall - 1e-12


def test_everything_can_be_recalled_with_enough_bits():
    for n, q in ((1, 2), (50, 3), (3000, 2), (20000, 2)):
        assert bounds.best_recall_ceiling(2.0 * n * math.log2(q), n, q) == pytest.approx(1)
        assert bounds.recall_tail_bits(2.0 * n * math.log2(q), n, q, 1.0) == 0


# --- many labelings, other labels, extremes ------------------------------------------------------------------------


def total_hits(codebook, n, q, samples):
    """The distribution of the best hits of `samples` labelings together, all q^(n·samples) of them counted."""
    counts = Counter(agreements(codebook, n, q).tolist())
    totals = Counter({0: 1})
    for _ in range(samples):
        added = Counter()
        for (total, ways), (hits, more) in itertools.product(totals.items(), counts.items()):
            added[total + hits] += ways * more
        totals = added
    return totals


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("samples", [1, 3, 12])
def test_the_mean_recall_of_many_labelings_stays_below_its_quantile(name, samples):
    codebook, q = CODEBOOKS[name]
    n = codebook.shape[1]
    bits = math.log2(len(np.unique(codebook, axis=0)))
    totals = total_hits(codebook, n, q, samples)
    for log2_probability in (-0.1, -1.0, -5.0, -20.0, -60.0):
        quantile = bounds.mean_recall_quantile(bits, n, q, samples, log2_probability)
        above = sum(ways for total, ways in totals.items() if total / (n * samples) > quantile + 1e-12)
        assert Fraction(above, q ** (n * samples)) <= 2**log2_probability


def test_the_quantile_of_a_mean_is_that_of_one_labeling_and_tends_to_the_ceiling():
    for bits, n, q in ((0, 10, 2), (3, 12, 2), (16, 64, 2), (5, 9, 3)):
        one = bounds.mean_recall_quantile(bits, n, q, 1, -33.0)
        assert one == bounds.recall_quantile(bits, n, q, -33.0)
        few, many = (bounds.mean_recall_quantile(bits, n, q, samples, -33.0) for samples in (30, 30_000))
        ceiling = bounds.best_recall_ceiling(bits, n, q)
        assert ceiling < many < few <= one
        assert many - ceiling < 0.01
        # as one code of S·bits bits on S·n labels, the other limit
        assert few <= bounds.recall_quantile(30 * bits, 30 * n, q, -33.0)


@quick
@given(data=st.data(), n=st.integers(1, 5), words=st.integers(1, 12), q=st.integers(2, 3))
def test_labels_with_other_probabilities(data, n, words, q):
    """Independent labels, each with its own distribution: every labeling is weighed with its probability."""
    weights = st.lists(st.integers(0, 5), min_size=q, max_size=q).filter(any)
    shares = [[Fraction(weight, sum(row)) for weight in row] for row in (data.draw(weights) for _ in range(n))]
    chances = [float(max(row)) for row in shares]
    answers = st.lists(st.integers(0, q - 1), min_size=n, max_size=n)
    codebook = np.array(data.draw(st.lists(answers, min_size=words, max_size=words)))
    bits = math.log2(len(np.unique(codebook, axis=0)))
    recalled, tail = np.zeros(n), np.zeros(n + 1)
    for labels in itertools.product(range(q), repeat=n):
        probability = float(math.prod(row[label] for row, label in zip(shares, labels, strict=True)))
        right = codebook == np.array(labels)
        best = right[right.sum(1).argmax()]
        recalled += probability * best
        tail[: best.sum() + 1] += probability
    spent = sum(bounds.binary_divergence(min(1.0, a), p) for a, p in zip(recalled, chances, strict=True))
    assert spent <= bits + 1e-9
    for k in range(n + 1):
        assert tail[k] <= 2 ** bounds.independent_tail_bits(bits, chances, k) + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_labels_that_depend_on_earlier_ones_are_bounded_by_the_number_of_prompts(seed):
    # teacher forcing: a prompt answers a query that contains the labels before it
    rng, n = np.random.default_rng(seed), 6
    chances = rng.uniform(0.5, 0.95, n)
    share = [rng.uniform(1 - p, p, 2**i) for i, p in enumerate(chances)]  # of label 1, after each history
    for i, p in enumerate(chances):
        share[i][rng.random(2**i) < 0.6] = p
    prompts = 5
    answers = [rng.random((prompts, 2**i)) < 0.5 for i in range(n)]
    answers = [np.vstack([a, s > 0.5]) for a, s in zip(answers, share, strict=True)]
    recalled, tail = np.zeros(n), np.zeros(n + 1)
    for labels in itertools.product((0, 1), repeat=n):
        history, probability, hits = 0, 1.0, []
        for i, label in enumerate(labels):
            probability *= share[i][history] if label else 1 - share[i][history]
            hits.append(answers[i][:, history] == label)
            history = 2 * history + label
        best = np.array(hits).T[np.sum(hits, axis=0).argmax()]
        recalled += probability * best
        tail[: best.sum() + 1] += probability
    bits = math.log2(prompts + 1)
    spent = sum(bounds.binary_divergence(min(1.0, a), p) for a, p in zip(recalled, chances, strict=True))
    assert 0 < spent <= bits
    for k in range(n + 1):
        assert tail[k] <= 2 ** bounds.independent_tail_bits(bits, chances, k) + 1e-9


def test_the_bounds_for_other_labels_are_attained():
    # one answer for all: it recalls every label with its chance, and the number of hits is the sum of the coins
    chances = [0.5, 0.9, 0.3, 1.0]
    coins = list(itertools.product((0, 1), repeat=4))
    weights = [math.prod(p if hit else 1 - p for p, hit in zip(chances, each, strict=True)) for each in coins]
    for k in range(5):
        exact = sum(weight for weight, each in zip(weights, coins, strict=True) if sum(each) >= k)
        assert 2 ** bounds.independent_tail_bits(0, chances, k) == pytest.approx(exact, rel=1e-12)
    # half of the labels known for sure: each costs −log2 of its chance
    assert 3 * bounds.binary_divergence(1.0, 0.25) == 6
    assert bounds.binary_divergence(0.2, 0.4) == bounds.binary_divergence(1.0, 1.0) == 0


@pytest.mark.parametrize(
    ("recall", "chance", "bits"),  # from 1400 digits
    [
        (1.0, 1e-310, 1029.7977094151),
        (0.5, 1e-310, 513.89885470754),
        (0.5, 1e-289, 479.01860971122),
        (1e-12, 1e-300, 9.5527259628667e-10),
        (2e-310, 1e-310, 5.5730495911103e-311),
    ],
)
def test_the_divergence_from_a_tiny_chance_is_finite(recall, chance, bits):
    assert bounds.binary_divergence(recall, chance) == pytest.approx(bits, rel=1e-12)


@quick
@given(q=CLASSES, n=st.integers(1, 200), bits=st.floats(0, 300), data=st.data())
def test_uniform_labels_are_a_special_case(q, n, bits, data):
    hits = data.draw(st.integers(0, n))
    uniform = bounds.recall_tail_bits(bits, n, q, hits / n)
    assert bounds.independent_tail_bits(bits, [1 / q] * n, hits) == pytest.approx(uniform, abs=1e-9)
    recall = data.draw(FRACTIONS)
    assert bounds.binary_divergence(recall, 1 / q) == pytest.approx(bounds.rate(1 - recall, q), abs=1e-12)


@quick
@given(a=FRACTIONS, b=FRACTIONS, p=st.floats(0.01, 1), r=st.floats(0.01, 1), share=FRACTIONS)
def test_the_divergence_is_jointly_convex(a, b, p, r, share):
    mixed = bounds.binary_divergence(share * a + (1 - share) * b, share * p + (1 - share) * r)
    assert mixed <= share * bounds.binary_divergence(a, p) + (1 - share) * bounds.binary_divergence(b, r) + 1e-12


@pytest.mark.parametrize("q", [2, 3, 50257])
@pytest.mark.parametrize("advantage", [1e-12, 1e-9, 1e-7])
def test_the_rate_near_chance_does_not_cancel(q, advantage):
    """Against the power series of (1 + x) ln(1 + x) − x in fractions, at x = qδ and at −qδ/(q − 1)."""
    u = Fraction(advantage) * q
    series = [sum((-x) ** k / (k * (k - 1)) for k in range(2, 12)) for x in (u, -u / (q - 1))]
    wanted = float(series[0] + (q - 1) * series[1]) / q / math.log(2)
    assert bounds._rate_above_chance(advantage, q) == pytest.approx(wanted, rel=1e-12)
    assert bounds.rate(0.5 - 2**-53, 2) == pytest.approx(2 * 4.0**-53 / math.log(2))


def test_the_tail_of_very_many_labels_is_a_bound_still():
    for n in (10**12, 10**13, 10**15, 10**17):
        recall = 0.5 + 20 / math.sqrt(n)
        tail = bounds.recall_tail_bits(5.0, n, 2, recall)
        # 40 standard deviations: log2 Φ(−40) = −1160.8, and the closed form is −(40²/2)/ln 2 = −1154.2
        assert -1161 + 5 <= tail <= -1154 + 5


@pytest.mark.parametrize(("n", "k"), [(250_000, 120_000), (10**7, 150_000)])
def test_large_binomials_agree_with_gamma_functions(n, k):
    exact = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    assert bounds._log2_binomial(n, k) == pytest.approx(exact, rel=1e-12)


def test_large_binomials_continue_the_small_ones():
    for v in (2**17, 2**40, 2**2000):
        below, above = (bounds._log2_binomial(v + m - 1, m) for m in (10**5, 10**5 + 1))
        assert above - below == pytest.approx(math.log2(v + 10**5) - math.log2(10**5 + 1), rel=1e-3)
    assert bounds.multiset_bits(1, 10**9, 32) > bounds.multiset_bits(1, 10**9 - 1, 32)


# --- effective dimension -------------------------------------------------------------------------------------------


def measured_rank(config, m, tuning, read, own_token, *, n, seed):
    """rank DΦ at a random prompt of a random network, for more queries than coordinates unless `n` is given."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = config.d if tuning == "soft" else config.depth * config.heads * (config.d_k + config.d_v)
    n = n or 2 * m * coordinates + 8
    model, prompt, queries = tasks.generic_instance(config, m, n, tuning=tuning, read=read, generator=generator)
    if read == "moving" and seed % 2:  # another token before the one that is read
        queries = torch.cat([torch.randn(queries.shape, generator=generator), queries], 1)
    if config.d - (config.norm == "layer") == 1 and config.norm != "none" and config.norm_eps == 0:
        # all that a layer reads is a sign, and a rank relative to rounding errors means nothing
        assert measure.prompt_jacobian(model, prompt, queries, own_token=own_token).abs().max() < 1e-9
        return 0
    return measure.jacobian_rank(model, prompt, queries, own_token=own_token)


def assert_rank(wanted, config, m, tuning="soft", read="moving", own_token=True, *, n=None, seed=0, draws=8):
    """The rank is `wanted` at some prompt and never above; returns how many draws it took.

    A rank below the maximum happens on a set of measure zero, but near it, where a softmax saturates, the smallest
    singular values drown in rounding.  Then another network is drawn.
    """
    for draw in range(draws):
        rank = measured_rank(config, m, tuning, read, own_token, n=n, seed=seed + 10**6 * draw)
        assert rank <= wanted, (config, m, tuning, read, own_token)
        if rank == wanted:
            return draw + 1
    raise AssertionError(f"rank {rank}, never {wanted}: {(config, m, tuning, read, own_token)}")


WIDE = TransformerConfig(d=5, q=6, depth=1, heads=2, d_k=3, d_v=3, mlp=7)
TABLE = [
    # what is changed, and D_eff / m for soft prompts of width 5
    ({}, 5),
    ({"depth": 2}, 5),
    ({"heads": 1, "d_k": 1, "d_v": 2}, 3),
    ({"heads": 1, "d_k": 1, "d_v": 2, "mlp": 0}, 3),
    ({"norm": "rms", "norm_eps": 0.0}, 4),
    ({"norm": "rms", "norm_eps": 0.0, "depth": 2}, 5),
    ({"norm": "rms", "norm_eps": 0.1}, 5),
    ({"norm": "rms", "norm_eps": 0.1, "depth": 2}, 5),
    ({"norm": "layer", "norm_eps": 0.0}, 3),
    ({"norm": "layer", "norm_eps": 0.0, "depth": 2}, 4),
    ({"norm": "layer", "norm_eps": 0.1}, 4),
    ({"norm": "layer", "norm_eps": 0.1, "depth": 2}, 4),
    ({"norm": "rms", "norm_eps": 0.0, "depth": 2, "causal": True, "positions": "learned"}, 5),
    ({"norm": "rms", "norm_eps": 0.0, "positions": "rotary", "d_k": 2}, 4),
    ({"norm": "layer", "norm_eps": 0.0, "depth": 2, "mlp": 0}, 4),
    ({"causal": True, "depth": 2, "heads": 1, "d_k": 1, "d_v": 1}, 4),
    ({"causal": True, "depth": 3, "heads": 1, "d_k": 1, "d_v": 1}, 5),
]


@pytest.mark.parametrize(("changes", "per_token"), TABLE, ids=str)
def test_the_table_of_soft_prompts(changes, per_token):
    config = replace(WIDE, **changes)
    for m in (1, 2, 3):
        assert bounds.effective_dimension(config, m) == per_token * m
        assert_rank(per_token * m, config, m)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_the_table_of_prefixes(norm):
    for depth, heads, d_k, d_v, m in ((1, 1, 2, 3, 2), (1, 2, 1, 2, 2), (2, 1, 2, 2, 1), (2, 2, 1, 1, 2)):
        config = TransformerConfig(d=5, q=6, depth=depth, heads=heads, d_k=d_k, d_v=d_v, norm=norm, norm_eps=0.0)
        wanted = depth * m * heads * (d_k + d_v)
        assert bounds.effective_dimension(config, m, tuning="prefix") == wanted
        assert_rank(wanted, config, m, "prefix")


@pytest.mark.parametrize("tuning", ["soft", "prefix"])
def test_one_layer_read_at_one_fixed_token(tuning):
    for heads, d_v in ((1, 2), (2, 1), (2, 2)):
        config = TransformerConfig(d=5, q=6, heads=heads, d_k=2, d_v=d_v)
        wanted = heads * (1 + d_v)
        for m in (3, 4):
            assert bounds.effective_dimension(config, m, tuning=tuning, read="fixed") == wanted
            assert_rank(wanted, config, m, tuning, "fixed", True)
            # without own tokens only the ratios of the sums are seen
            assert bounds.effective_dimension(config, m, tuning=tuning, read="fixed", own_token=False) == heads * d_v
            assert_rank(heads * d_v, config, m, tuning, "fixed", False)


def random_architecture(rng):
    positions = rng.choice(["none", "learned", "rotary"])
    causal = rng.random() < 0.5
    d = rng.randint(3, 6)  # exponentials of one real number are told apart only beyond float64
    config = TransformerConfig(
        d=d,
        q=d + 1,
        depth=rng.choice([1, 1, 2, 3]),
        heads=rng.choice([1, 1, 2, 3]),
        d_k=rng.choice([2, 4] if positions == "rotary" else [1, 2, 3]),
        d_v=rng.choice([1, 2, 3, 6]),
        mlp=rng.choice([0, 0, 8]),
        activation=rng.choice(["gelu", "relu"]),
        norm=rng.choice(["none", "rms", "layer"]),
        norm_eps=rng.choice([0.0, 0.1]),
        causal=causal,
        positions=positions,
        inverse_temperature=rng.choice([1.0, 1.7]),
        context_scaling=rng.choice(["none", "none", "log"]) if not causal else "none",
    )
    options = (rng.choice(["soft", "prefix"]), rng.choice(["fixed", "moving"]), rng.random() < 0.6)
    return config, rng.randint(1, 3), options


def test_a_fixed_token_asks_for_few_directions_in_the_last_layer():
    """Without an MLP its query spans its embedding and what the layers before have written, here 1 + 1 dimensions."""
    narrow = TransformerConfig(d=9, q=10, depth=2, d_k=4, d_v=1, causal=True)
    for tuning, read, per_token in (
        ("soft", "moving", 9),
        ("soft", "fixed", (4 + 1) + (2 + 1)),
        ("prefix", "moving", 2 * (4 + 1)),
        ("prefix", "fixed", (4 + 1) + (2 + 1)),
    ):
        for m in (1, 2):
            assert bounds.effective_dimension(narrow, m, tuning=tuning, read=read) == per_token * m
            assert_rank(per_token * m, narrow, m, tuning, read)


def test_a_norm_that_leaves_a_sign_shows_no_prompt():
    for d, norm in ((1, "rms"), (2, "layer")):
        for depth in (1, 2):
            config = TransformerConfig(d=d, q=d + 1, depth=depth, norm=norm, norm_eps=0.0)
            assert bounds.effective_dimension(config, 2) == 0
            assert_rank(0, config, 2)
            assert bounds.effective_dimension(replace(config, norm_eps=0.1), 2) == 2
            assert_rank(2, replace(config, norm_eps=0.1), 2)


def test_the_effective_dimension_is_the_rank_of_every_architecture():
    rng = random.Random(1)
    seen, options_seen = Counter(), Counter()
    for seed in range(300):
        config, m, options = random_architecture(rng)
        tuning, read, own_token = options
        seen["drawn"] += 1
        try:
            wanted = bounds.effective_dimension(config, m, tuning=tuning, read=read, own_token=own_token)
        except ValueError:
            continue  # not proved; that at most a fifth is refused is checked below
        seen["measured"] += 1
        options_seen[options] += 1
        seen["repeated"] += assert_rank(wanted, config, m, *options, seed=seed) > 1
    assert seen["measured"] >= max(240, 0.8 * seen["drawn"]), seen
    assert seen["repeated"] <= 0.05 * seen["measured"], seen
    assert len(options_seen) == 8
    assert min(options_seen.values()) >= 10, options_seen


def test_few_queries_show_n_times_c_coordinates():
    rng = random.Random(2)
    limited = 0
    for seed in range(50):
        config, m, _ = random_architecture(rng)
        config = replace(config, depth=max(2, config.depth), q=rng.choice([2, 3, config.d + 1]))
        if config.d - (config.norm == "layer") < 2:
            continue
        try:
            dimension = bounds.effective_dimension(config, m)
        except ValueError:
            continue
        for n in (1, 2, 3):
            shown = n * bounds.outputs_per_query(config, config.q)
            limited += shown < dimension
            assert_rank(min(dimension, shown), config, m, seed=seed, n=n)
    assert limited >= 40


def test_a_wide_key_needs_more_queries_than_the_count_of_outputs_suggests():
    """One layer and n queries see a key only through n logits, so that min(D_eff, n·c) is a bound and not the rank."""
    config = TransformerConfig(d=4, q=4, d_k=4, d_v=4)
    assert bounds.effective_dimension(config, 1, tuning="prefix") == 8
    assert bounds.outputs_per_query(config, 4) == 4
    for n, rank in ((1, 4), (2, 6), (3, 7), (4, 8)):
        assert_rank(rank, config, 1, "prefix", n=n)


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
def test_few_outputs_of_one_plain_layer_show_fewer_coordinates(positions):
    rng, smaller = random.Random(3), 0
    for seed in range(40):
        d, heads = rng.randint(1, 9), rng.choice([1, 1, 2])
        config = TransformerConfig(
            d=d, q=rng.randint(1, min(d, 3)), heads=heads, d_k=2, d_v=rng.randint(1, 6), positions=positions
        )
        m = rng.randint(1, 3)
        wanted = m * min(d, heads * (min(2, d) + min(config.d_v, config.q)))
        assert bounds.effective_dimension(config, m) == wanted
        smaller += wanted < bounds.effective_dimension(config, m, rank_checked=True)
        n, generator = 2 * d * m + 8, torch.Generator().manual_seed(seed)
        assert witness.generic_rank(config, m, n, enough=wanted, draws=10, generator=generator).rank == wanted
    assert smaller >= 5


def test_few_outputs_are_refused_unless_they_are_enough_or_checked():
    deep = replace(WIDE, depth=2, q=2)
    with pytest.raises(ValueError, match="with q = 2 outputs, fewer than the 5 that a query has"):
        bounds.effective_dimension(deep, 2)
    assert bounds.effective_dimension(deep, 2, rank_checked=True) == 10
    assert bounds.effective_dimension(replace(deep, norm="layer", q=4), 2) == 8
    for q in (1, 3, 9):  # without own tokens and with a fixed token all queries return one vector
        assert bounds.effective_dimension(replace(WIDE, q=q), 4, read="fixed", own_token=False) == min(q, 5)
        assert_rank(min(q, 5), replace(WIDE, q=q), 4, "soft", "fixed", False)


def test_as_many_outputs_as_a_query_has_lose_nothing():
    rng, measured = random.Random(4), 0
    for seed in range(120):
        config, m, (tuning, read, own_token) = random_architecture(rng)
        outputs = bounds.outputs_per_query(config)
        if not 1 <= outputs < config.d or config.activation != "gelu" or config.norm == "none":
            continue
        config = replace(config, q=outputs)
        try:
            wanted = bounds.effective_dimension(config, m, tuning=tuning, read=read, own_token=own_token)
        except ValueError:
            continue
        measured += 1
        assert_rank(wanted, config, m, tuning, read, own_token, seed=seed)
    assert measured >= 10


def test_the_ceiling_of_the_table_is_above_the_count_and_mostly_the_count():
    rng, seen = random.Random(5), Counter()
    for _ in range(600):
        config, m, (tuning, read, own_token) = random_architecture(rng)
        options = dict(tuning=tuning, read=read, own_token=own_token)
        try:
            count = bounds.effective_dimension(config, m, **options)
        except ValueError:
            with pytest.raises(ValueError, match="established"):
                bounds.dimension_ceiling(config, m, **options)
            continue
        ceiling = bounds.dimension_ceiling(config, m, **options)
        assert count <= ceiling
        seen[count == ceiling] += 1
    assert seen[True] > 2 * seen[False] > 0


def test_the_table_of_part_3_line_by_line():
    at = bounds.dimension_ceiling
    assert at(WIDE, 2) == 10
    assert at(replace(WIDE, norm="rms", norm_eps=0.0), 2) == 8
    assert at(replace(WIDE, norm="layer", norm_eps=0.0), 2) == 6
    assert at(replace(WIDE, norm="layer", norm_eps=0.0, depth=2), 2) == at(replace(WIDE, norm="layer"), 2) == 8
    assert at(replace(WIDE, heads=1, d_k=1, d_v=2), 3) == 9
    assert at(replace(WIDE, heads=1, d_k=1, d_v=1, depth=2, causal=True), 3) == 12
    assert at(WIDE, 3, tuning="prefix") == 36
    assert at(WIDE, 3, tuning="prefix", own_token=False) == 30
    assert at(WIDE, 9, read="fixed") == at(WIDE, 9, tuning="prefix", read="fixed") == 8


def test_a_random_target_is_rarely_near_a_curve():
    """One coordinate, two outputs: p ↦ (Λp, triangle wave of slope Λ) for |p| <= 1."""
    lipschitz, rng = 3.0, np.random.default_rng(0)
    p = np.linspace(-1, 1, 3001)
    curve = np.stack([lipschitz * p, np.abs((lipschitz * p + 1) % 4 - 2) - 1], 1)
    targets = rng.uniform(-1, 1, (1000, 2))
    distance = np.full(len(targets), np.inf)
    for part in np.array_split(curve, 20):
        distance = np.minimum(distance, np.abs(targets[:, None] - part).max(-1).min(1))
    for eps in (0.3, 0.1, 0.03, 0.01):
        bound = 2 ** bounds.within_log2_probability(1, 1, 1.0, lipschitz, eps, 2)
        assert (distance <= eps - 1e-3).mean() <= bound
        assert bound == pytest.approx(min(1, (1 + 2 * lipschitz / eps) * (2 * eps) ** 2))
    falls = [bounds.within_log2_probability(2, 3, 1.0, 5.0, 2.0**-k, 9) for k in (30, 31)]
    assert falls[0] - falls[1] == pytest.approx(9 - 6, abs=1e-6)
    assert bounds.within_log2_probability(2, 3, 1.0, 0.0, 0.25, 4) == -4
    assert bounds.within_log2_probability(2, 3, 1.0, 5.0, 0.9, 4) == 0
    assert type(bounds.within_log2_probability(2, 3, 1.0, 5.0, 0.9, 4)) is float


def test_outputs_per_query():
    config = TransformerConfig(d=6, q=9, d_k=2, d_v=8)
    assert bounds.outputs_per_query(config) == 6
    assert bounds.outputs_per_query(config, 4) == 4
    assert bounds.outputs_per_query(replace(config, norm="rms", norm_eps=0.0)) == 5
    assert bounds.outputs_per_query(replace(config, norm="rms")) == 6
    assert bounds.outputs_per_query(replace(config, norm="layer", norm_eps=0.0)) == 4
    assert bounds.outputs_per_query(replace(config, norm="layer")) == 5
    assert bounds.outputs_per_query(replace(config, d_v=2)) == 2
    assert bounds.outputs_per_query(replace(config, d_v=2, depth=2)) == 4


# --- types and bad input -------------------------------------------------------------------------------------------


def test_scalars_are_floats_and_dimensions_integers():
    for value in (
        bounds.counting_bits(2, 2, 2),
        bounds.multiset_bits(2, 2, 2),
        bounds.hard_prompt_bits(4, 2),
        bounds.rate(0, 4),
        bounds.rate(0.1, 4),
        bounds.rate(1, 4),
        bounds.recall_ceiling(0, 4, 2),
        bounds.recall_ceiling(2, 4, 2),
        bounds.recall_ceiling(8, 4, 2),
        bounds.recall_tail_bits(0, 4, 2, 0),
        bounds.recall_tail_bits(1, 4, 2, 1),
        bounds.best_recall_ceiling(1, 4, 2),
        bounds.random_code_recall(1, 4, 2),
        bounds.pinsker_recall_ceiling(1, 4, 2),
    ):
        assert type(value) is float
    assert type(bounds.effective_dimension(WIDE, 2)) is int
    assert type(bounds.outputs_per_query(WIDE)) is int


NARROW = TransformerConfig(d=8, q=9, depth=2, heads=1, d_k=1, d_v=1)
NAN = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.counting_bits(0, 1, 1), "d must be an integer >= 1, not 0"),
        (lambda: bounds.counting_bits(1, -1, 1), "m must be an integer >= 1, not -1"),
        (lambda: bounds.counting_bits(1, 1, 1.5), r"bits_per_coordinate must be an integer >= 1, not 1\.5"),
        (lambda: bounds.counting_bits(True, 1, 1), "d must be an integer >= 1, not True"),
        (lambda: bounds.multiset_bits(2, 0, 1), "m must be an integer >= 1, not 0"),
        (lambda: bounds.multiset_bits("2", 1, 1), "d must be an integer >= 1, not '2'"),
        (lambda: bounds.hard_prompt_bits(0, 1), "vocabulary must be an integer >= 1, not 0"),
        (lambda: bounds.hard_prompt_bits(2, 0), "m must be an integer >= 1, not 0"),
        (lambda: bounds.rate(-0.1, 2), "between 0 and 1"),
        (lambda: bounds.rate(1.1, 2), "between 0 and 1"),
        (lambda: bounds.rate(NAN, 2), "between 0 and 1, not nan"),
        (lambda: bounds.rate(0.1, 1), "q, the number of classes, must be an integer >= 2, not 1"),
        (lambda: bounds.rate(0.1, 2.0), "q, the number of classes"),
        (lambda: bounds.recall_ceiling(-1, 2, 2), "bits must be a number >= 0, not -1"),
        (lambda: bounds.recall_ceiling(NAN, 2, 2), "bits must be a number >= 0, not nan"),
        (lambda: bounds.recall_ceiling(1, 0, 2), "n must be an integer >= 1"),
        (lambda: bounds.recall_ceiling(1, 2, 1), "q, the number of classes"),
        (lambda: bounds.recall_tail_bits(1, 2, 2, 1.5), "recall is a fraction"),
        (lambda: bounds.recall_tail_bits(1, 2, 2, NAN), "recall is a fraction"),
        (lambda: bounds.recall_tail_bits(-1, 2, 2, 1), "bits must be"),
        (lambda: bounds.recall_tail_bits(1, -2, 2, 1), "n must be"),
        (lambda: bounds.recall_tail_bits(1, 2, True, 1), "q, the number of classes"),
        (lambda: bounds.best_recall_ceiling(-1, 2, 2), "bits must be"),
        (lambda: bounds.best_recall_ceiling(1, 2.5, 2), "n must be"),
        (lambda: bounds.best_recall_ceiling(1, 2, 0), "q, the number of classes"),
        (lambda: bounds.random_code_recall(NAN, 2, 2), "bits must be"),
        (lambda: bounds.random_code_recall(1, 0, 2), "n must be"),
        (lambda: bounds.random_code_recall(1, 2, 1), "q, the number of classes"),
        (lambda: bounds.pinsker_recall_ceiling(-1, 2, 2), "bits must be"),
        (lambda: bounds.pinsker_recall_ceiling(1, 0, 2), "n must be"),
        (lambda: bounds.pinsker_recall_ceiling(1, 2, 1), "q, the number of classes"),
        (lambda: bounds.best_recall_ceiling(5, 10**8, 2), "n = 100000000 exceeds ten million"),
        (lambda: bounds.mean_recall_quantile(5, 10, 2, 0, -1.0), "samples must be an integer >= 1"),
        (lambda: bounds.mean_recall_quantile(5, 10, 2, 3, 0.0), "log2_probability must be a number < 0"),
        (lambda: bounds.mean_recall_quantile(5, 10, 2, 3, -math.inf), "log2_probability must be a number < 0"),
        (lambda: bounds.binary_divergence(1.5, 0.5), "recall must be a probability"),
        (lambda: bounds.binary_divergence(0.5, NAN), "chance must be a probability, not nan"),
        (lambda: bounds.binary_divergence(0.5, 0), "chance must be above 0"),
        (lambda: bounds.independent_tail_bits(-1, [0.5], 1), "bits must be"),
        (lambda: bounds.independent_tail_bits(1, [], 0), "1 to 20,000 probabilities"),
        (lambda: bounds.independent_tail_bits(1, [0.5, NAN], 0), "1 to 20,000 probabilities"),
        (lambda: bounds.independent_tail_bits(1, [0.5], 2), "hits must be at most 1"),
        (lambda: bounds.effective_dimension(WIDE, 0), "m must be an integer >= 1, not 0"),
        (lambda: bounds.effective_dimension(WIDE, 1, tuning="lora"), "tuning must be one of soft, prefix, not 'lora'"),
        (lambda: bounds.effective_dimension(WIDE, 1, read="last"), "read must be one of fixed, moving, not 'last'"),
        (lambda: bounds.within_log2_probability(1, 1, 1.0, 1.0, 0.0, 1), "eps must be a finite number > 0"),
        (lambda: bounds.within_log2_probability(1, 1, -1.0, 1.0, 0.1, 1), "radius must be a finite number >= 0"),
        (lambda: bounds.within_log2_probability(1, 1, 1.0, NAN, 0.1, 1), "lipschitz must be a finite number >= 0"),
        (lambda: bounds.within_log2_probability(1, 1, 1.0, 1.0, 0.1, 0), "numbers must be an integer >= 1"),
        (lambda: bounds.dimension_ceiling(WIDE, 0), "m must be an integer >= 1, not 0"),
        (lambda: bounds.effective_dimension(NARROW, 2), "heads so narrow"),
        (lambda: bounds.effective_dimension(NARROW, 2, own_token=False), "without own tokens"),
        (lambda: bounds.effective_dimension(NARROW, 2, tuning="prefix", own_token=False), "only for mlp >= d"),
        (
            lambda: bounds.effective_dimension(replace(NARROW, d=2, norm="layer", norm_eps=0.0), 2, tuning="prefix"),
            "only a sign",
        ),
        (
            lambda: bounds.effective_dimension(replace(NARROW, d=3, d_k=4, positions="rotary"), 2, tuning="prefix"),
            "d_k <= d",
        ),
        (
            lambda: bounds.effective_dimension(replace(NARROW, depth=1, d_k=2, positions="rotary"), 2, own_token=False),
            "heads \\* d_v >= d",
        ),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("bits", "n", "q"), [(0, 10, 2), (3, 12, 2), (5, 9, 3), (40, 200, 4)])
def test_the_recall_quantile_is_the_last_recall_that_is_not_too_rare(bits, n, q):
    k = round(bounds.recall_quantile(bits, n, q, -10.0) * n)
    assert bounds.recall_tail_bits(bits, n, q, k / n) > -10
    assert k == n or bounds.recall_tail_bits(bits, n, q, (k + 1) / n) <= -10
    with pytest.raises(ValueError, match="log2_probability must be a number < 0"):
        bounds.recall_quantile(bits, n, q, 0.5)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize(("depth", "heads", "width"), [(1, 1, 1), (1, 2, 3), (2, 1, 1), (3, 2, 2)])
def test_visible_coordinates_are_what_theorem_3_counts_where_layers_are_alike(norm, depth, heads, width):
    for d in (2, 5, 9, 40):
        narrow = min(width, d - 1)
        config = TransformerConfig(d=d, q=d, depth=depth, heads=heads, d_k=narrow, d_v=narrow, mlp=d, norm=norm,
                                   norm_eps=1e-5, causal=True, positions="none")  # fmt: skip
        cached = depth * heads * (config.d_k + config.d_v)
        found = bounds.visible_coordinates(d - (norm == "layer"), cached, 3)
        assert found == bounds.effective_dimension(config, 3)
    assert bounds.visible_coordinates(7, None, 2) == 14
    assert bounds.visible_coordinates(0, 4, 2) == 0
    for wrong in ((-1, 3, 1), (3, -1, 1), (3, 3, 0), (3.0, 3, 1)):
        with pytest.raises(ValueError, match="must be an integer"):
            bounds.visible_coordinates(*wrong)
