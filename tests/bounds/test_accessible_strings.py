"""Theorem 4: fractions of strings against counts, and the excess by brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_memory import bounds


@given(st.floats(0, 40), st.integers(1, 30), st.integers(2, 50))
def test_accessible_fraction_is_the_count_of_prompts_over_the_count_of_strings(bits, n, V):
    assert bounds.accessible_fraction(bits, n, V) == pytest.approx(min(1, 2**bits / V**n), rel=1e-9)


def test_at_the_critical_length_half_of_all_strings_are_left():
    for bits, V in ((10, 2), (33, 7), (2048, 96)):
        n = bounds.critical_length(bits, V)
        assert bits - n * math.log2(V) == pytest.approx(-1)
    assert bounds.critical_length(20, 4) - bounds.critical_length(10, 4) == pytest.approx(5)


def test_source_ceiling_is_the_best_set_of_that_size():
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(7))
    for bits in (0, 1, 2, 3.0, 9):
        size = min(7, int(2**bits))
        best = max(sum(chosen) for chosen in itertools.combinations(p, size))
        assert bounds.source_ceiling(np.log2(p), bits) == pytest.approx(best)


def test_mimo_bits_of_independent_levels():
    # 2^b − 1 steps of ε on each side: log2(1 + rσ/ε) = b
    assert bounds.mimo_bits(np.array([3.0, 0.0, 7.0]), 1.0, 1.0) == pytest.approx(5.0)


@pytest.mark.parametrize("seed", range(4))
def test_no_set_of_prompts_reaches_surprising_beginnings_more_often_than_the_excess_allows(seed):
    """Theorem 4, part 3, by brute force: any 2^B strings of a source of all strings of five letters."""
    random = np.random.default_rng(seed)
    V, N, bits = 3, 5, 3
    strings = np.array(list(itertools.product(range(V), repeat=N)))
    source = random.dirichlet(np.full(V**N, 0.3))
    surprise = np.array([[-np.log2(source[(strings[:, :n] == t[:n]).all(1)].sum()) for n in range(1, N + 1)]
                         for t in strings])  # fmt: skip
    for accessible in (random.choice(V**N, 2**bits, replace=False), np.argsort(source)[-(2**bits) :]):
        reach = np.zeros((V**N, N), dtype=bool)  # is this beginning of the string one of an accessible string?
        for i in accessible:
            reach |= (strings == strings[i]).cumprod(1).astype(bool)
        assert source[reach[:, -1]].sum() <= bounds.source_ceiling(np.log2(source), bits) + 1e-12
        for s in np.linspace(0, 4, 9):
            broken = (reach & (surprise > bits + s)).any(1)
            assert source[broken].sum() <= 2**-s + 1e-12
    # strings of equal probability: one prompt each attains it as the excess approaches their surprise
    s = N * math.log2(V) - bits
    assert 2**bits * V**-N == pytest.approx(2**-s)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bounds.accessible_fraction(-1, 3, 4), "bits"),
        (lambda: bounds.critical_length(3, 1), ">= 2"),
        (lambda: bounds.source_ceiling(np.log2([0.5, 0.4]), 1), "add up to one"),
        (lambda: bounds.mimo_bits(np.array([-1.0]), 1, 1), "singular values"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_the_linear_channel_by_hand():
    assert bounds.mimo_bits(np.array([0.5, 1.5, 0.0]), 2.0, 1.0) == pytest.approx(1 + 2)
