"""What chapter 10 says in words: gains of remedies where recall has fallen, and where it has not."""

import math

import numpy as np
import pytest

from prompt_memory.experiments import long_contexts
from prompt_memory.network import recall


def model(critical: dict[str, float]) -> long_contexts.Model:
    found = {"look up first": np.array([[1.0, 0.8], [0.5, 0.5]])}
    every = dict.fromkeys(long_contexts.REMEDIES, 100.0) | critical
    return long_contexts.Model(0, recall.Member(8, 4, 8, 0), None, None, None, found, every)


def result(*criticals: dict[str, float]) -> long_contexts.Result:
    return long_contexts.Result([16, 1000], [model(critical) for critical in criticals])


def test_gains_where_recall_has_not_fallen_are_told_as_at_least():
    found = result({"sharper": 200.0}, {"sharper": 300.0}, {"sharper": math.inf})
    assert found.gains("sharper").tolist() == [2, 3, 10]
    assert found.open("sharper") == 1
    assert long_contexts.median_gain(found, "sharper") == "3.0"
    assert long_contexts.median_gain(result({"sharper": math.inf}), "sharper") == "at least 10.0"


def test_the_best_of_remedies_that_are_beyond_is_the_one_with_more_models():
    found = result(*(3 * [{"sharper": math.inf, "say it again": math.inf}]), {"say it again": math.inf})
    assert long_contexts.best_remedy(found) == "say it again"
    assert found.middle is found.models[2]


def test_an_index_that_misses_lets_the_model_guess():
    assert long_contexts.imperfect_index(model({})) == pytest.approx([0.9 * 0.9 + 0.1 / 4, 0.9 * 0.5 + 0.1 / 4])
