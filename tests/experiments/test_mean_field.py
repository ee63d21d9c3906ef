"""Chapter 7: what its experiment builds, and the sentences that it chooses from the data."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from prompt_memory.experiments import mean_field_causal as causal
from prompt_memory.experiments import mean_field_memory as memory
from prompt_memory.experiments import mean_field_slopes as slopes

torch.set_num_threads(1)


@pytest.mark.parametrize("part", [1, 2, 3, 7])
def test_two_cells_hold_as_many_histograms_as_they_can(part):
    found = memory.greedy_packing(2, 60, Fraction(1, part), 3, np.random.default_rng(0))
    assert found.points == 61
    assert found.found == part
    assert math.log2(found.found) <= found.bits


def test_separated_rows_are_further_apart_than_the_gap():
    rows = np.array([[0.0, 0.0], [0.05, 0.0], [0.0, 0.3], [0.5, 0.3], [0.5, 0.35]])
    assert memory.separated(rows, 0.1) == 3
    assert memory.separated(rows, 1.0) == 1


def test_the_sentence_on_growth_counts_networks():
    one = memory.Memory(slopes.reader(0.25), 0.1, (1.2, 2.9), [0], [1, 2, 4, 4], np.zeros(4), np.zeros(4))
    line = memory.Line([4, 8, 12, 16], {"stopped": one})
    assert line.grown("stopped") == 0
    assert line.growth() == "In each of the 1 networks run, the last quarter of lengths adds nearly nothing."
    line.memory["grows"] = replace(one, counts=[1, 2, 4, 8])
    assert line.grown("grows") == 1
    assert line.growth() == "The last quarter of lengths still adds more than 0.3 bits in 1 of 2 networks."


def made(*powers):
    """Two networks of each depth whose changes are exact powers of K, times the logarithms of the worst case."""
    blocks = (2, 4, 8, 16)
    found = causal.Causal(64, blocks, {j: [K**-1.0 for K in blocks] for j in causal.DEEP}, {})
    for depth, power in zip(causal.DEEP, powers, strict=True):
        change = np.array(blocks) ** power * found.sums(depth)
        found.errors[depth] = np.tile(change[None, :, None], (2, 1, 4))
    return found


def test_the_sentence_on_speed_follows_the_exponents():
    assert made(-1.0, -1.1).speed() == "After the logarithms the worst case has the exponent −1."
    assert made(-1.0, -1.4).speed().startswith("At depth 3 the change falls faster")
    assert made(-1.3, -1.4).speed().startswith("At depth 2 and depth 3")
    fitted = made(-1.3, -1.4).fitted()["causal-exponent"]
    np.testing.assert_allclose(fitted, [[-1.3, -1.3], [-1.4, -1.4]])
    np.testing.assert_allclose(made(-1.0, -1.0).forecast(), [-1, -1])


def test_networks_set_by_hand_come_near_the_block_error():
    rows = causal.set_by_hand(64, (2, 4))
    assert rows.shape == (12, 4)
    assert (rows[:, :2] <= rows[:, 2:3]).all()
    assert (rows[:, :2] > 0).all()
    assert (rows[:, :2] / rows[:, 2:3]).max() > 0.2
    assert (rows[:, 0] <= rows[:, 3]).all()


def test_one_layer_is_blind_to_order_and_two_are_not():
    g = torch.Generator().manual_seed(0)
    query = slopes.in_ball(g, 1, 2)
    for depth in (1, 2):
        model = slopes.random_network(g, d=2, depth=depth, causal=True)
        found = causal.reordered(model, slopes.in_ball(g, 2, 24, 2), query, 3, 2, 4, g)
        assert (max(found) < 1e-12) == (depth == 1)


def test_steps_of_the_proof_hold_for_another_seed():
    rng = np.random.default_rng(5)
    slopes.check_rounding(rng)
    slopes.check_layer(torch.Generator().manual_seed(5), rng)
