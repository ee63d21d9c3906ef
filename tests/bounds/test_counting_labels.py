"""Theorem 1, part 6: labels that are not uniform, or not independent, against sums over all labelings."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_memory import bounds

FRACTIONS = st.floats(0, 1)
quick = settings(deadline=None, max_examples=60, derandomize=True)


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
@given(q=st.integers(2, 40), n=st.integers(1, 200), bits=st.floats(0, 300), data=st.data())
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.binary_divergence(1.5, 0.5), "recall must be a probability"),
        (lambda: bounds.binary_divergence(0.5, math.nan), "chance must be a probability, not nan"),
        (lambda: bounds.binary_divergence(0.5, 0), "chance must be above 0"),
        (lambda: bounds.independent_tail_bits(-1, [0.5], 1), "bits must be"),
        (lambda: bounds.independent_tail_bits(1, [], 0), "1 to 20,000 probabilities"),
        (lambda: bounds.independent_tail_bits(1, [0.5, math.nan], 0), "1 to 20,000 probabilities"),
        (lambda: bounds.independent_tail_bits(1, [0.5], 2), "hits must be at most 1"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
