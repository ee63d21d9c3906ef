"""Values that make up for the leaks of attention, in many digits, against linear algebra."""

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from prompt_memory import bounds, tasks
from prompt_memory.network import associative
from prompt_memory.tune.associative import compensated_values, decimal_cosines, search_addresses


def test_decimal_cosines():
    with localcontext() as context:
        context.prec = 50
        cosines = decimal_cosines(12)
        root = sum(c * c for c in cosines)
        assert abs(root - 6) < 1e-47
        assert abs(cosines[1] * cosines[1] - Decimal(3) / 4) < 1e-47
    np.testing.assert_allclose([float(c) for c in cosines], np.cos(2 * np.pi * np.arange(12) / 12), atol=1e-15)


def test_compensated_values_against_linear_algebra():
    labels = tasks.signs((4, 10), np.random.default_rng(8)).astype(int)
    values, amplitudes = compensated_values(labels, 4.0)
    u = np.array(values, dtype=float)
    S = associative.readings(associative.circle_keys(10), np.eye(10), 4.0).T  # column j: token j alone
    solved = np.linalg.solve(S, labels.T).T
    np.testing.assert_allclose(u, solved / np.abs(solved).max(1, keepdims=True), atol=1e-10)
    np.testing.assert_allclose(
        associative.circle_readings(u, 4.0), labels * np.array(amplitudes, float)[:, None], atol=1e-14
    )


def test_amplitudes_lie_where_the_proposition_says():
    for M in (5, 8):
        labels = np.array(list(itertools.product((-1, 1), repeat=M)))
        _, amplitudes = compensated_values(labels, 4.0)
        least, gain = float(min(amplitudes)), 2 ** bounds.circle_gain_log2(M, 4.0)
        assert gain / math.sqrt(M) <= least <= gain * (1 + 1e-12)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: search_addresses(1, 2, 4.0, restarts=1, steps=1, generator=None), "facts"),
        (lambda: compensated_values(np.zeros((1, 3)), 4.0), "-1 and 1"),
        (lambda: compensated_values(np.ones((1, 64)), 4.0, digits=40), "digits"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
