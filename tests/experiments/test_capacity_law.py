"""Chapter 11: what is said where a capacity is not above guessing, and what a reader is told about it."""

import math

import numpy as np
import pytest

from prompt_memory.book import claims
from prompt_memory.experiments import capacity_law, capacity_law_figures
from prompt_memory.tune import capacity

GOOD = [np.array([1.0, 1.2]), np.array([2.0, 2.4]), np.array([4.0, 4.4])]
BAD = [np.array([0.5, 0.5]), np.array([-0.5, -0.25]), np.array([1.5, 2.5])]


def test_positive_capacities_are_fitted_as_ever():
    assert capacity_law.fitted([1, 2, 4], GOOD)[:3] == capacity.exponent([1, 2, 4], GOOD)
    assert capacity_law.fitted([1, 2, 4], GOOD, before=GOOD)[:3] == capacity.exponent([1, 2, 4], GOOD, before=GOOD)
    assert capacity_law.quotient(*GOOD[:2], paired=True)[:3] == capacity.ratio(*GOOD[:2], paired=True)
    assert capacity_law.widest(GOOD)[:3] == capacity.spread(GOOD)[:3]


@pytest.mark.parametrize("samples", [BAD, BAD[1:], [BAD[1]] * 3])
def test_a_capacity_at_or_below_guessing_decides_nothing_and_is_named(samples):
    record = claims.Recorder("11_capacity_law", profile="smoke", seed=1)
    anything = (-math.inf, math.inf)
    record.predict("e", theorem="t", statement="s", predicted=1.0, absolute=0.15, possible=anything)
    fit = capacity_law.fitted([2**i for i in range(len(samples))], samples)
    record.measure("e", fit.value, interval=fit[1:3])
    assert record.records["e"]["verdict"] == "undecided"
    assert "no more than guessing at" in str(fit)


def test_the_exponent_beside_a_lost_point_is_that_of_the_others():
    fit = capacity_law.fitted([1, 2, 4], BAD)
    assert fit.value == pytest.approx(1.0)
    assert fit[1:3] == (-math.inf, math.inf)
    assert fit.note == "no more than guessing at 2"
    assert capacity_law.fitted([1, 2, 4], BAD, before=GOOD).note == fit.note
    assert capacity_law.fitted([1, 2, 4], GOOD, before=BAD).note == fit.note


def test_ratios_and_spreads_with_a_lost_point_reach_infinity():
    assert capacity_law.quotient(BAD[1], BAD[0])[:3] == (0.0, 0.0, math.inf)
    assert capacity_law.quotient(BAD[0], BAD[1])[:3] == (math.inf, 0.0, math.inf)
    fit = capacity_law.widest(BAD)
    assert (fit.value, fit.high) == (math.inf, math.inf)
    assert fit.low == capacity.spread([BAD[0], BAD[2]])[1]


def test_intervals_of_means_keep_their_level_beside_a_lost_point():
    rows = capacity_law_figures.intervals(BAD)
    assert rows[1] == (-0.375, -math.inf, math.inf)
    assert rows[0] == pytest.approx(capacity.means([BAD[0]], 0.05 / 3)[0])
    assert rows[2] == pytest.approx(capacity.means([BAD[2]], 0.05 / 3)[0])
