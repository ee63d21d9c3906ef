"""Limits against brute force: the binomial distribution is summed, not sampled."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prompt_memory import intervals

LEVELS = st.floats(1e-10, 0.4)
TRIALS = st.integers(1, 60)


def coverage_error(limits, p, trials, side):
    """Exact probability that the limit is on the wrong side of p."""
    counts = np.arange(trials + 1)
    wrong = limits > p if side == "lower" else limits < p
    return stats.binom.pmf(counts, trials, p)[wrong].sum()


@settings(deadline=None, max_examples=60)
@given(trials=TRIALS, p=st.floats(0.001, 0.999), level=LEVELS, side=st.sampled_from(["lower", "upper"]))
def test_limits_err_at_most_as_often_as_they_say(trials, p, level, side):
    counts = np.arange(trials + 1)
    exact = intervals.clopper_pearson(counts, trials, level, side)
    chernoff = intervals.kl_limit(counts / trials, trials, level, side)
    assert coverage_error(exact, p, trials, side) <= level * (1 + 1e-9)
    assert coverage_error(chernoff, p, trials, side) <= level * (1 + 1e-9)
    # The Chernoff limit knows less about the distribution, so it is the wider one.
    assert np.all(chernoff <= exact + 1e-9 if side == "lower" else chernoff >= exact - 1e-9)


@settings(deadline=None, max_examples=60)
@given(trials=TRIALS, data=st.data(), level=LEVELS)
def test_clopper_pearson_solves_its_equations(trials, data, level):
    successes = data.draw(st.integers(1, trials))
    low = intervals.clopper_pearson(successes, trials, level, "lower")
    assert stats.binom.sf(successes - 1, trials, low) == pytest.approx(level, rel=1e-6)
    high = intervals.clopper_pearson(trials - successes, trials, level, "upper")
    assert stats.binom.cdf(trials - successes, trials, high) == pytest.approx(level, rel=1e-6)
    assert intervals.clopper_pearson(successes, trials, 2 * level)[0] == pytest.approx(low)


def test_limits_at_the_ends():
    assert intervals.clopper_pearson(0, 10, 0.05, "lower") == 0
    assert intervals.clopper_pearson(10, 10, 0.05, "upper") == 1
    assert intervals.clopper_pearson(10, 10, 0.05, "lower") == pytest.approx(0.05 ** (1 / 10))
    assert intervals.kl_limit(1.0, 10, 0.05, "lower") == pytest.approx(0.05 ** (1 / 10))
    assert intervals.kl_limit(0.0, 10, 0.05, "upper") == pytest.approx(1 - 0.05 ** (1 / 10))
    assert intervals.kl_limit(0.0, 10, 0.05, "lower") == 0


@settings(deadline=None, max_examples=60)
@given(mean=st.floats(0, 1), samples=st.integers(1, 10**6), level=LEVELS)
def test_kl_limit_solves_its_equation_on_the_safe_side(mean, samples, level):
    low, high = intervals.kl_limit(mean, samples, 2 * level)
    assert 0 <= low <= mean <= high <= 1
    for limit in (low, high):
        if 1e-12 < limit < 1 - 1e-12 and limit != mean:
            assert samples * intervals.kl_bernoulli(mean, limit) >= np.log(1 / level) * (1 - 1e-6)


@settings(deadline=None, max_examples=60)
@given(bound=st.floats(0.01, 0.99), samples=st.integers(2, 5000), level=LEVELS)
def test_detectable_is_where_violations_begin(bound, samples, level):
    mean = intervals.detectable(bound, samples, level)
    if np.isnan(mean):
        assert intervals.kl_limit(1.0, samples, level, "lower") <= bound + 1e-12
    else:
        assert intervals.kl_limit(min(1.0, mean + 1e-6), samples, level, "lower") >= bound - 1e-9
        assert intervals.kl_limit(max(bound, mean - 1e-6), samples, level, "lower") <= bound + 1e-9
    below = intervals.detectable(1 - bound, samples, level, "below")
    assert np.isnan(mean) == np.isnan(below)
    assert np.isnan(mean) or 1 - below == pytest.approx(mean, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(bound=st.floats(0.01, 0.99), trials=st.integers(1, 300), level=LEVELS)
def test_detectable_frequency_is_the_first_count_that_violates(bound, trials, level):
    counts = np.arange(trials + 1)
    violating = counts[intervals.clopper_pearson(counts, trials, level, "lower") > bound]
    found = intervals.detectable_frequency(bound, trials, level)
    assert np.isnan(found) if violating.size == 0 else found == violating[0] / trials


def test_bounds_outside_the_unit_interval():
    assert np.isnan(intervals.detectable(1.5, 100, 0.01))
    assert intervals.detectable(-0.5, 100, 0.01) == 0
    assert np.isnan(intervals.detectable(-0.5, 100, 0.01, "below"))


def test_bootstrap_finds_the_mean():
    rng = np.random.default_rng(0)
    low, high = intervals.bootstrap(rng.normal(3, 1, 400), np.mean, rng)
    assert low < 3 < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intervals.clopper_pearson(11, 10, 0.05), "successes"),
        (lambda: intervals.clopper_pearson(np.nan, 10, 0.05), "successes"),
        (lambda: intervals.clopper_pearson(1, 0, 0.05), "trials"),
        (lambda: intervals.kl_limit(1.5, 10, 0.05), "mean"),
        (lambda: intervals.kl_limit(np.nan, 10, 0.05), "mean"),
        (lambda: intervals.kl_limit(0.5, 10, 0.0), "level"),
        (lambda: intervals.kl_limit(0.5, 10, 0.05, "left"), "side"),
        (lambda: intervals.detectable(np.nan, 10, 0.05), "NaN"),
        (lambda: intervals.detectable(0.5, 10, 0.05, "left"), "side"),
        (lambda: intervals.detectable_frequency(np.nan, 10, 0.05), "NaN"),
        (lambda: intervals.bootstrap([], np.mean, np.random.default_rng(0)), "at least one"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_mcdiarmid_limits_cover_the_best_recall_of_a_code():
    """The setting it is used in: the best of a few fixed tables against random labels, averaged over labelings."""
    rng = np.random.default_rng(0)
    tables = rng.integers(2, size=(16, 12))

    def mean_recall(labelings):
        labels = rng.integers(2, size=(labelings, 1, 12))
        return (tables == labels).mean(-1).max(-1).mean()

    truth = mean_recall(200_000)
    limits = [intervals.mcdiarmid_limit(mean_recall(5), 5 * 12, 0.2, "lower") for _ in range(500)]
    assert np.mean(np.array(limits) > truth) <= 0.2
    assert intervals.mcdiarmid_limit(0.5, 50, 0.1, "upper") == pytest.approx(0.5 + np.sqrt(np.log(10) / 100))
    low, high = intervals.mcdiarmid_limit(0.9, 8, 0.05)
    assert low == pytest.approx(0.9 - np.sqrt(np.log(40) / 16))
    assert high == 1.0
    with pytest.raises(ValueError, match="variables must lie"):
        intervals.mcdiarmid_limit(0.5, 0, 0.1)


def test_jackknife_is_students_interval_for_a_mean_and_welchs_for_a_difference():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=9), rng.normal(size=6)
    value, low, high = intervals.jackknife(np.mean, x)
    reach = stats.t.ppf(0.975, 8) * x.std(ddof=1) / 3
    assert (value, low, high) == pytest.approx((x.mean(), x.mean() - reach, x.mean() + reach))
    value, low, high = intervals.jackknife(lambda a, b: a.mean() - b.mean(), x, y, level=0.1)
    welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.9)
    assert (value, low, high) == pytest.approx((x.mean() - y.mean(), *welch))
    assert intervals.jackknife(np.mean, [2.0, 2.0, 2.0]) == (2, 2, 2)


def test_jackknife_covers_a_ratio_of_paired_means():
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(400):
        x = rng.normal(2, 0.3, size=8)
        pairs = np.stack([x, 3 * x + rng.normal(0, 0.3, size=8)], 1)
        _, low, high = intervals.jackknife(lambda both: both[:, 1].mean() / both[:, 0].mean(), pairs)
        covered += low <= 3 <= high
    assert covered / 400 > 0.9


@pytest.mark.parametrize("groups", [(), ([1.0],), ([1.0, float("nan")],)])
def test_jackknife_needs_two_rows(groups):
    with pytest.raises(ValueError, match="at least two rows"):
        intervals.jackknife(np.mean, *groups)


def test_bootstrap_means_and_their_simultaneous_intervals():
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(60, 3, 2))
    draws = intervals.resampled(values, rng, 4000)
    assert draws.shape == (4000, 3, 2)
    np.testing.assert_allclose(draws.std(0), values.std(0) / math.sqrt(60), rtol=0.1)
    low, high = intervals.simultaneous(draws[:, :, 0])
    single = np.quantile(draws[:, 0, 0], [0.025, 0.975])
    assert low[0] < single[0] < values[:, 0, 0].mean() < single[1] < high[0]
    together = ((draws[:, :, 0] >= low) & (draws[:, :, 0] <= high)).all(1).mean()
    assert 0.94 < together < 0.97
    low, high = intervals.simultaneous(np.array([1.0, np.inf, 2.0, np.inf] * 100))
    assert (low, high) == (1.0, np.inf)
    with pytest.raises(ValueError, match="without NaN"):
        intervals.simultaneous(np.array([[0.0], [np.nan]]))


@pytest.mark.parametrize("contexts", [7, 24, 49])
def test_a_bootstrap_of_perfect_recall_is_perfect(contexts):
    """A mean of ones above one, by rounding, would be no recall."""
    draws = intervals.resampled(np.ones((contexts, 3)), np.random.default_rng(0), 500)
    assert (draws == 1).all()
