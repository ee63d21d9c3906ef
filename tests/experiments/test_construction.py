"""Chapter 4b: formulas of the protocol, and sentences that depend on what was measured."""

import itertools
import math

import pytest
import torch

from prompt_memory import bounds
from prompt_memory.experiments import construction
from prompt_memory.experiments import construction_protocol as protocol
from prompt_memory.network import construct


@pytest.mark.parametrize(("m", "B"), [(3, 0.2), (4, 0.0), (7, 0.9), (7, 3.0)])
def test_binomial_error_is_the_tail_of_a_sum_of_signs(m, B):
    sums = [sum(signs) for signs in itertools.product((-1, 1), repeat=m - 1)]
    tie = [math.isclose(x, math.exp(B)) for x in sums]
    wrong = sum(0.5 if t else float(x > math.exp(B)) for x, t in zip(sums, tie, strict=True))
    assert protocol.binomial_error(m, B) == pytest.approx(wrong / 2 ** (m - 1))


def test_the_worst_table_has_the_margin_of_the_leak():
    code = construct.circle_code(5)
    memory = construct.build_memory(code, 4, 1.7, dtype=torch.float64)
    margins = protocol.margins(memory, 5, False, 3, torch.Generator().manual_seed(0))
    assert margins.shape == (5, 10)
    assert margins.min() == pytest.approx(2 * (1 - 2 * bounds.softmax_leak(protocol.gram(code), 1.7)))


def test_the_sentence_about_the_gap_follows_the_numbers():
    assert "not filled" in construction.gap_says(1.15, 9.0)
    assert "more than half" in construction.gap_says(6.0, 9.0)
