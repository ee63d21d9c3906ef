"""Recall of random facts, measured with every value at once, against the transformer one value at a time."""

import itertools
import math

import numpy as np
import pytest
import torch
from recalling import TINY, facts_of, outputs, trained

from prompt_memory import bounds
from prompt_memory.measure import fact_recall
from prompt_memory.network import recall

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return trained()


@pytest.mark.parametrize("member", [0, 3])
def test_measured_recall_is_that_of_the_transformer_with_every_value(family, member):
    N, n, margins = 40, 6, (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    found = fact_recall.measure_recall(
        family, N, 1, n, margins, generator=torch.Generator().manual_seed(7), members=[member]
    )
    _h, q, *_ = family.members[member]
    keys, labels = facts_of(family, member, N, seed=7)
    right, attention, excess, counts = np.zeros((n, q, 6)), 0, -np.inf, np.zeros((n, 6))
    r = recall.reader(family, member)
    spread = recall.vote_spread(r, keys[:n].double())
    for i in range(n):
        F, w = [], []
        for y in range(q):
            swapped = labels.clone()
            swapped[i] = y
            logits = outputs(family, member, keys, swapped, keys[i : i + 1])[0].double()
            lead = logits[y] - torch.cat([logits[:y], logits[y + 1 :]]).max()
            right[i, y] = [lead > margin for margin in margins]
            F.append(logits)
            w.append(r.scores(keys[i : i + 1].double(), keys.double(), swapped).softmax(-1)[0, i])
        s = r.scores(keys[i : i + 1].double(), keys.double(), labels)[0]
        attention = max(attention, s.softmax(0).max() / bounds.dilution(N, float(s.max() - s.min())))
        effect = max(F[y][y] - F[y][z] + F[z][z] - F[z][y] for y, z in itertools.permutations(range(q), 2))
        excess = max(excess, float(effect - spread[i] * max(w)))
        counts[i] = [spread[i] * max(w) <= 2 * margin for margin in margins]
    np.testing.assert_allclose(found.recall[0, 0], right.mean((0, 1)), atol=1e-6)
    assert found.attention[0] == pytest.approx(float(attention), abs=1e-5)
    assert found.excess[0] == pytest.approx(excess, abs=1e-3)
    assert found.diluted[0].tolist() == counts.sum(0).tolist()
    assert 0 < counts.mean() < 1
    assert len(set(found.diluted[0].tolist())) > 2


def test_sharper_logits_are_larger_keys_and_calibration_removes_a_bias(family):
    doubled, biased = recall.Recaller(TINY), recall.Recaller(TINY)
    doubled.load_state_dict(family.state_dict())
    doubled.key *= 2
    arguments = (100, 5, 20, (0.0, 0.3))
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    sharp = fact_recall.measure_recall(family, *arguments, generator=generators[0], sharpen=np.full(4, 2.0))
    keyed = fact_recall.measure_recall(doubled, *arguments, generator=generators[1])
    np.testing.assert_allclose(sharp.recall, keyed.recall, atol=0.02)
    np.testing.assert_allclose(sharp.excess, keyed.excess, atol=1e-3)
    assert (
        np.abs(sharp.recall - fact_recall.measure_recall(family, *arguments, generator=generators[2]).recall).max()
        > 0.02
    )
    biased.load_state_dict(family.state_dict())
    biased.unembedding[:, :, 0] *= 1.5  # facts with value 0 cast heavier votes
    generator = torch.Generator().manual_seed(4)
    long = fact_recall.measure_recall(biased, 300, 40, 30, (0.0,), generator=generator)
    assert (long.calibrated.mean(1) > long.recall.mean((1, 2)) + 0.004).all()


def test_diluted_questions_recall_one_value_at_most(family):
    found = fact_recall.measure_recall(family, 400, 5, 20, (0.5, 4.0), generator=torch.Generator().manual_seed(3))
    assert (found.diluted > 0).any()
    assert (found.values <= 1).all()
    assert (found.excess <= 1e-4).all()
    assert (found.tight > 0.3).any()


def test_critical_length_interpolates_in_the_logarithm():
    assert fact_recall.critical_length([8, 32, 128], [0.9, 0.6, 0.4]) == pytest.approx(64)
    assert fact_recall.critical_length([8, 32], [0.9, 0.6]) == math.inf  # open ends
    assert fact_recall.critical_length([8, 32], [0.4, 0.3]) == pytest.approx(8)
    many = fact_recall.critical_length([8, 32, 128], [[[0.9, 0.6, 0.4], [1, 1, 1]], [[0.5, 0.9, 0.1], [0.7, 0.3, 0.6]]])
    np.testing.assert_allclose(many, [[64, np.inf], [8, 16]])


def test_retained_bits_of_arrays():
    lengths, curve = [2, 10, 50, 100], np.array([[1.0, 0.7, 0.26, 0.1], [0.99, 0.4, 0.25, 0.0]])
    for q in (2, 4, 7):
        wanted = [[N * bounds.rate(1 - a, q) for N, a in zip(lengths, row, strict=True)] for row in curve]
        np.testing.assert_allclose(fact_recall.retained(lengths, curve, q), wanted, atol=1e-12)


def test_intervals_of_critical_lengths_are_open_at_both_ends():
    ends = np.array([[8.0, np.inf], [9.0, 40.0], [8.0, np.inf]])
    low, high = fact_recall.critical_interval(ends, [8, 16, 32])
    assert low.tolist() == [0.0, 32.0]
    assert high.tolist() == [9.0, np.inf]
