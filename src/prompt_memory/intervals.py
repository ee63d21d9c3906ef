"""Confidence limits that hold at every sample size, and the bootstrap where no such limit is known.

Every `level` in this module is an *error probability*: a limit at level 1e-6 is wrong at most once in a million
repetitions of the experiment.
"""

import math

import numpy as np
from scipy import special, stats

SIDES = ("lower", "upper", "two-sided")
_BISECTIONS = 200  # halves [0, 1] until two neighbouring floats are left, whatever the limit's size


def _check(name: str, value, low: float, high: float, *, open_ends: bool = False) -> np.ndarray:
    array = np.asarray(value, dtype=float)
    inside = (array > low) & (array < high) if open_ends else (array >= low) & (array <= high)
    if not np.all(inside):  # NaN compares false and is caught here too
        raise ValueError(f"{name} must lie {'strictly ' if open_ends else ''}between {low:g} and {high:g}.")
    return array


def _check_side(side: str) -> None:
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}; got {side!r}.")


def _result(value: np.ndarray):
    """A float for scalar input, an array otherwise."""
    return float(value) if np.ndim(value) == 0 else value


def clopper_pearson(successes, trials, level: float, side: str = "two-sided"):
    """Exact limits for the success probability of `trials` independent trials (no asymptotics).

    The lower limit `p` solves `Pr[Bin(trials, p) >= successes] = level`, the upper one
    `Pr[Bin(trials, p) <= successes] = level`; two-sided, each side gets half of the level.

    Shapes: `successes` and `trials` broadcast. Returns the limit (float or array, a probability) for a one-sided
    call, the pair (lower, upper) for a two-sided one. ValueError if `successes` is not in [0, trials], if
    `trials < 1`, or if `level` is not in (0, 1). Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    _check_side(side)
    level = float(_check("level", level, 0.0, 1.0, open_ends=True))
    trials = _check("trials", trials, 1, np.inf)
    successes, trials = np.broadcast_arrays(np.asarray(successes, dtype=float), trials)
    if not np.all((successes >= 0) & (successes <= trials)):
        raise ValueError("successes must lie between 0 and trials.")
    if side == "two-sided":
        return tuple(clopper_pearson(successes, trials, level / 2, one) for one in ("lower", "upper"))
    failures = trials - successes
    with np.errstate(invalid="ignore"):  # the branch not taken has a parameter 0
        if side == "lower":
            limit = np.where(successes == 0, 0.0, special.betaincinv(successes, failures + 1, level))
        else:
            limit = np.where(failures == 0, 1.0, special.betainccinv(successes + 1, failures, level))
    return _result(limit)


def kl_bernoulli(p, x):
    """Relative entropy `KL(p || x) = p ln(p/x) + (1-p) ln((1-p)/(1-x))` of two coins, in nats; `p`, `x` broadcast."""
    p, x = np.asarray(p, dtype=float), np.asarray(x, dtype=float)
    return special.rel_entr(p, x) + special.rel_entr(1 - p, 1 - x)


def kl_limit(mean, samples, level: float, side: str = "two-sided"):
    r"""Limits for the expectation of i.i.d. variables in [0, 1], valid at every sample size.

    The Chernoff bound gives `Pr[mean of N >= a] <= exp(-N KL(a || mu))` for `a >= mu`, for every distribution on
    [0, 1]; inverted, the limit `x` beyond `mean` solves `N KL(mean || x) = ln(1/level)`.

    Shapes: `mean` (measured, in [0, 1]) and `samples` (N) broadcast. Returns the limit for a one-sided call, the
    pair (lower, upper) for a two-sided one, with half of the level on each side. ValueError on values outside their
    range. Source: Hoeffding, JASA 58 (1963), Theorem 1, first inequality.
    """
    _check_side(side)
    level = float(_check("level", level, 0.0, 1.0, open_ends=True))
    mean, samples = np.broadcast_arrays(_check("mean", mean, 0.0, 1.0), _check("samples", samples, 1, np.inf))
    if side == "two-sided":
        return tuple(kl_limit(mean, samples, level / 2, one) for one in ("lower", "upper"))
    target = np.log(1 / level) / samples
    end = np.zeros_like(mean) if side == "lower" else np.ones_like(mean)
    return _result(_bisect(lambda x: kl_bernoulli(mean, x) > target, mean.copy(), end))


def _bisect(beyond, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Where `beyond` turns true on the way from `near` to `far`; the side that is already beyond (the safe one)."""
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        out = beyond(middle)
        near, far = np.where(out, near, middle), np.where(out, middle, far)
    return far


def mcdiarmid_limit(mean, variables, level: float, side: str = "two-sided"):
    r"""Limits for the expectation of a mean that depends little on each of many independent variables.

    If changing one of the `variables` (v in all) moves the mean by at most 1/v, then
    `Pr[mean >= mu + t] <= exp(-2 v t^2)`, and the limit is `mean -+ sqrt(ln(1/level) / (2 v))`, within [0, 1].
    An average of N recalls of n labels each, with the best prompt for each labeling, has v = N n.

    Shapes: `mean` (in [0, 1]) and `variables` broadcast; returns as `kl_limit` does. ValueError on values outside their
    range. Source: McDiarmid, Surveys in Combinatorics (1989).
    """
    _check_side(side)
    level = float(_check("level", level, 0.0, 1.0, open_ends=True))
    mean, variables = np.broadcast_arrays(_check("mean", mean, 0.0, 1.0), _check("variables", variables, 1, np.inf))
    if side == "two-sided":
        return mcdiarmid_limit(mean, variables, level / 2, "lower"), mcdiarmid_limit(
            mean, variables, level / 2, "upper"
        )
    reach = np.sqrt(np.log(1 / level) / (2 * variables))
    return _result(np.clip(mean - reach if side == "lower" else mean + reach, 0.0, 1.0))


def detectable(bound, samples, level: float, side: str = "above"):
    """Smallest measured mean above `bound` (largest below it) that `kl_limit` at `level` would call a violation.

    It solves `N KL(mean || bound) = ln(1/level)`: an experiment that stays under `bound` says nothing about true
    means between `bound` and this value. Shapes: `bound` and `samples` broadcast. NaN where no measurement in
    [0, 1] could violate the bound. ValueError on NaN, on `samples < 1` and on an unknown side.
    Source: same inequality as `kl_limit`.
    """
    if side not in ("above", "below"):
        raise ValueError(f"side must be 'above' or 'below'; got {side!r}.")
    level = float(_check("level", level, 0.0, 1.0, open_ends=True))
    bound, samples = np.broadcast_arrays(np.asarray(bound, dtype=float), _check("samples", samples, 1, np.inf))
    if np.any(np.isnan(bound)):
        raise ValueError("bound must not be NaN.")
    end = np.ones_like(bound) if side == "above" else np.zeros_like(bound)
    inside = np.clip(bound, 0.0, 1.0)
    target = np.log(1 / level) / samples
    mean = _bisect(lambda m: kl_bernoulli(m, inside) > target, inside.copy(), end)
    possible = kl_bernoulli(end, inside) > target
    # A bound outside [0, 1] is either never reached or broken by every measurement.
    always = bound < 0 if side == "above" else bound > 1
    return _result(np.where(always, 1 - end, np.where(possible & (inside == bound), mean, np.nan)))


def detectable_frequency(bound, trials, level: float, side: str = "above"):
    """Like `detectable`, for a frequency judged by `clopper_pearson`: the smallest `k/trials` whose lower limit
    passes `bound` (largest `k/trials` whose upper limit falls below it). NaN where there is none.

    Shapes: `bound` and `trials` broadcast. ValueError as in `detectable`. Source: Clopper and Pearson (1934).
    """
    if side == "below":
        return _result(1 - np.asarray(detectable_frequency(1 - np.asarray(bound, float), trials, level, "above")))
    if side != "above":
        raise ValueError(f"side must be 'above' or 'below'; got {side!r}.")
    bound, trials = np.broadcast_arrays(np.asarray(bound, dtype=float), np.asarray(trials, dtype=float))
    if np.any(np.isnan(bound)):
        raise ValueError("bound must not be NaN.")
    low, high = np.full(bound.shape, -1.0), trials + 1.0  # counts: low does not violate, high does
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        limit = np.asarray(clopper_pearson(np.clip(middle, 0, trials), trials, level, "lower"))
        out = (limit > bound) | (middle > trials)
        low, high = np.where(out, low, middle), np.where(out, middle, high)
    return _result(np.where(high > trials, np.nan, high / trials))


def bootstrap(values, statistic, rng: np.random.Generator, level: float = 0.05, resamples: int = 2000):
    """Percentile bootstrap interval of `statistic(values)`: (lower, upper) at error probability `level`.

    Approximate: right only for many samples and smooth statistics, so it decorates figures and judges no theorem.
    Shapes: rows of `values` are resampled with replacement; `statistic` maps an array of that shape to a float.
    ValueError on an empty or NaN sample or a level outside (0, 1). Source: Efron, Annals of Statistics 7 (1979).
    """
    level = float(_check("level", level, 0.0, 1.0, open_ends=True))
    values = np.asarray(values, dtype=float)
    if values.size == 0 or np.any(np.isnan(values)):
        raise ValueError("bootstrap needs at least one value and no NaN.")
    draws = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(resamples)]
    lower, upper = np.quantile(draws, [level / 2, 1 - level / 2])
    return float(lower), float(upper)


def jackknife(statistic, *groups, level: float = 0.05):
    """(value, lower, upper): `statistic(*groups)` and an interval for what it estimates, at error probability `level`.

    The rows of each group are independent repetitions; the groups are independent of each other, what belongs together
    stands in one row.  Student's interval with the delete-one variances v_g = (n_g − 1)/n_g Σ_i (s_(−i) − mean)² of the
    groups added, and (Σ v_g)²/Σ v_g²/(n_g − 1) degrees of freedom (Welch).  It is exact for the mean of normal rows
    and an approximation for smooth statistics; like the bootstrap it judges no theorem.
    ValueError for a group with fewer than two rows, for NaN, or a level outside (0, 1).
    Source: Tukey, Annals of Mathematical Statistics 29 (1958); Efron and Stein, Annals of Statistics 9 (1981).
    """
    level = float(_check("level", level, 0.0, 1.0, open_ends=True))
    groups = [np.asarray(group, dtype=float) for group in groups]
    if not groups or min(len(group) for group in groups) < 2 or any(np.isnan(group).any() for group in groups):
        raise ValueError("jackknife needs groups of at least two rows and no NaN.")
    value, variances = float(statistic(*groups)), []
    for number, group in enumerate(groups):
        left = np.array(
            [statistic(*groups[:number], np.delete(group, i, 0), *groups[number + 1 :]) for i in range(len(group))]
        )
        variances.append((len(group) - 1) / len(group) * ((left - left.mean()) ** 2).sum())
    if not sum(variances) > 0:
        return value, value, value
    freedom = sum(variances) ** 2 / sum(v**2 / (len(g) - 1) for v, g in zip(variances, groups, strict=True))
    reach = float(stats.t.ppf(1 - level / 2, freedom) * np.sqrt(sum(variances)))
    return value, value - reach, value + reach


def resampled(values, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Bootstrap means of `values`: its rows are drawn with replacement, the same rows for all entries.

    Shapes: `values` [C, …] with C independent rows; returns [resamples, …].
    Source: Efron, Annals of Statistics 7 (1979).
    """
    values = np.asarray(values, float)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    return np.tensordot(counts, values, 1) / len(values)  # in this order no mean of ones exceeds one


def simultaneous(draws, *, level: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals (lower, upper) of bootstrap draws, at `level` for all points together (Bonferroni).

    Shapes: `draws` [B, …], infinities allowed; each limit is one of the draws, [ … ].  ValueError for NaN.
    """
    draws = np.sort(np.asarray(draws, float), axis=0)  # infinities: quantiles would turn them into NaN
    if np.isnan(draws).any():
        raise ValueError("An interval needs draws without NaN.")
    tail = level / (2 * max(1, draws[0].size)) * (len(draws) - 1)
    return draws[math.floor(tail)], draws[len(draws) - 1 - math.floor(tail)]
