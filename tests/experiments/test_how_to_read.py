"""Chapter 0: its formulas against enumeration."""

import itertools

import numpy as np
import pytest

from prompt_memory.experiments import how_to_read as chapter


def test_expected_recall_of_the_best_of_two_tables_of_two_labels():
    tables = list(itertools.product((0, 1, 2), repeat=2))
    best = [max((a == y) + (b == z), (c == y) + (d == z)) / 2
            for (a, b), (c, d), (y, z) in itertools.product(tables, repeat=3)]  # fmt: skip
    assert chapter.expected_recall(np.array([2]), 2, 3)[0] == pytest.approx(np.mean(best))


def test_the_whole_list_recalls_everything_and_one_table_half():
    sizes, recall = chapter.every_labeling(np.random.default_rng(0))
    assert recall[0] == pytest.approx(0.5)
    assert recall[-1] == 1
    assert (recall <= chapter.ceilings(sizes, chapter.FEW, 2) + 1e-12).all()


def test_sampled_recall_agrees_with_the_forecast():
    sizes = np.array([1, 4, 16])
    recalls = chapter.best_recalls(np.random.default_rng(0), 2000, 12, 4, sizes)
    assert recalls.shape == (2000, 3)
    assert recalls.mean(0) == pytest.approx(chapter.expected_recall(sizes, 12, 4), abs=0.02)
