"""Chapter 5: sentences chosen from the data, and the judge of compression against one query by hand."""

import dataclasses

import numpy as np
import pytest

from prompt_memory import compress
from prompt_memory.experiments import exact_compression as exact
from prompt_memory.experiments import exact_compression_problems as problems
from prompt_memory.experiments.exact_compression_figures import served_sentence


def test_the_sentence_on_more_queries_follows_the_data():
    steps = len(exact.COUNTS)
    found = exact.Spiral(
        cloud=np.zeros((9, 2)), few=compress.Compressed(np.arange(1), np.ones(1)), answers=np.zeros((4, 2)),
        off=np.zeros(len(exact.EVERY)), spread=1.0, kept=np.arange(steps) + 3, worst=np.full(steps, 1e-3),
    )  # fmt: skip
    assert "still off by 10⁻³" in served_sentence(found)
    worst = np.where(np.arange(steps) < 5, 1e-3, 1e-15)
    served = served_sentence(dataclasses.replace(found, worst=worst))
    assert f"At {exact.COUNTS[5]} listed queries and 8 tokens" in served
    assert f"never more than {steps + 2} tokens" in served


def test_direct_attention_by_hand():
    tokens, queries = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[1.0, 0.0]])
    A, V = np.eye(2)[None], np.array([[[0.0, 1.0]]])
    e = np.e
    assert problems.direct(tokens, queries, A, V)[0, 0, 0] == pytest.approx(1 / (1 + e))
    assert problems.direct(tokens, queries, A, V, weights=[3, 1])[0, 0, 0] == pytest.approx(3 / (3 + e))
    assert problems.direct(tokens, queries, A, V, own=2.0)[0, 0, 0] == pytest.approx(1 / (1 + 3 * e))


def test_the_sharp_prompt_determines_its_weights():
    a, b = problems.conditions(*problems.sharp_example(2, 1, 2, own=False))
    assert a.shape == (4, 5)
    assert np.linalg.matrix_rank(a) == 4
    np.testing.assert_allclose(a.sum(1), b, atol=1e-12)  # equal weights solve them
