"""Theorem 1 against brute force: codebooks are enumerated, tails are fractions."""

import functools
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_memory import bounds
from prompt_memory.bounds import counting

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


# --- many labelings, extremes --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("q", [2, 3, 50257])
@pytest.mark.parametrize("advantage", [1e-12, 1e-9, 1e-7])
def test_the_rate_near_chance_does_not_cancel(q, advantage):
    """Against the power series of (1 + x) ln(1 + x) − x in fractions, at x = qδ and at −qδ/(q − 1)."""
    u = Fraction(advantage) * q
    series = [sum((-x) ** k / (k * (k - 1)) for k in range(2, 12)) for x in (u, -u / (q - 1))]
    wanted = float(series[0] + (q - 1) * series[1]) / q / math.log(2)
    assert counting._rate_above_chance(advantage, q) == pytest.approx(wanted, rel=1e-12)
    assert bounds.rate(0.5 - 2**-53, 2) == pytest.approx(2 * 4.0**-53 / math.log(2))


def test_the_tail_of_very_many_labels_is_a_bound_still():
    for n in (10**12, 10**13, 10**15, 10**17):
        recall = 0.5 + 20 / math.sqrt(n)
        tail = bounds.recall_tail_bits(5.0, n, 2, recall)
        # 40 standard deviations: log2 Φ(−40) = −1160.8, and the closed form is −(40²/2)/ln 2 = −1154.2
        assert -1161 + 5 <= tail <= -1154 + 5


@pytest.mark.parametrize(("bits", "n", "q"), [(0, 10, 2), (3, 12, 2), (5, 9, 3), (40, 200, 4)])
def test_the_recall_quantile_is_the_last_recall_that_is_not_too_rare(bits, n, q):
    k = round(bounds.recall_quantile(bits, n, q, -10.0) * n)
    assert bounds.recall_tail_bits(bits, n, q, k / n) > -10
    assert k == n or bounds.recall_tail_bits(bits, n, q, (k + 1) / n) <= -10
    with pytest.raises(ValueError, match="log2_probability must be a number < 0"):
        bounds.recall_quantile(bits, n, q, 0.5)


# --- types and bad input -------------------------------------------------------------------------------------------


def test_scalars_are_floats():
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
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
