"""What chapter 8 adds to the package: exact recall without a margin, tempered models, how lengths beyond are told."""

import itertools
import math

import pytest
from recalling import trained

from prompt_memory.experiments import degradation, degradation_limits
from prompt_memory.network import recall


@pytest.mark.parametrize(("up", "N"), list(itertools.product((1, 2), (1, 2, 5, 8))))
def test_exact_recall_is_that_of_all_labelings(up, N):
    hits = 0
    for labels in itertools.product((up, -1), repeat=N):  # the first fact is asked for
        hits += sum(labels) > 0 if labels[0] == up else sum(labels) < 0
    assert degradation_limits.exact_recall(up, N) == pytest.approx(hits / 2**N)


def test_a_tempered_model_has_no_more_bits_than_asked_for():
    reader = recall.reader(trained(), 0)
    B, C = degradation_limits.circle_bits(reader)
    same, factor = degradation_limits.tempered(reader, C)
    assert factor == 1
    assert same.by_key.equal(reader.by_key)
    soft, factor = degradation_limits.tempered(reader, 0.9 * C)
    assert 0 < factor < 1
    lower, fewer = degradation_limits.circle_bits(soft)
    assert fewer <= 0.9 * C
    assert lower == pytest.approx(factor * B)


def test_ends_say_that_a_length_is_beyond_those_run():
    assert degradation.ends([1234.4, 2.0], 0) == ("2", "1,234")
    assert degradation.ends([2.0, math.inf], 1, "more than 9") == ("2.0", "more than 9")
