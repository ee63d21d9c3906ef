"""Claims: every quantitative statement of the book, with its bound, its measurement and a verdict.

Three kinds. A *theorem* claim compares a measurement with a proved bound: one violated claim fails the build. A
*prediction* is written down before it is measured and is then hit, missed or undecided. A *timing* is only shown.

A claim that could not have failed is not a claim: each says what its measurement could have shown (`possible`), points
at which that could not pass the bound do not count, and a claim without any other point is refused.

A chapter makes one `Recorder` and every claim is on disk the moment it is recorded.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prompt_memory import intervals
from prompt_memory.book.verdicts import Lines, Verdicts
from prompt_memory.files import plain, write_json

# A sampled claim is judged at this level over the whole book: the book as a whole raises a false alarm with
# probability at most LEVEL, provided that it makes at most FAMILY sampled comparisons (the collection checks it).
LEVEL = 1e-6
FAMILY = 10_000

INTERVAL_LEVEL = 0.05  # of the intervals of sampled claims, which are shown and not judged by
ROUNDING = 1e-9  # a measurement may pass what is possible by this much of it

RELATIONS = {
    "<=": lambda measured, bound: bound - measured,
    "<": lambda measured, bound: bound - measured,
    ">=": lambda measured, bound: measured - bound,
    "==": lambda measured, bound: -np.abs(measured - bound),
}


def settings(profiles: Mapping, profile: str):
    """A copy of the settings of one profile; ValueError for a name that the table does not have."""
    if profile not in profiles:
        raise ValueError(f"Unknown profile {profile!r}: choose one of {', '.join(profiles)}.")
    return copy.copy(profiles[profile])


def _numbers(name: str, value) -> np.ndarray:
    array = np.asarray(value, dtype=float)
    if array.size == 0:
        raise ValueError(f"{name} is empty: a claim about nothing cannot hold.")
    if np.any(np.isnan(array)):
        raise ValueError(f"{name} contains NaN.")
    return array


def _broadcast(**values) -> list[np.ndarray]:
    arrays = [_numbers(name, value) for name, value in values.items()]
    try:
        return list(np.broadcast_arrays(*arrays))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(values, arrays, strict=True))
        raise ValueError(f"These shapes do not broadcast: {shapes}.") from None


def _possible(possible, relation: str, values: np.ndarray, *, measured: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(least, largest) at each point, from what the caller gave; ValueError if a measurement lies outside."""
    if relation == "==":
        if not (isinstance(possible, tuple | list) and len(possible) == 2):
            raise ValueError("possible must be a pair (least, largest).")
        least, largest = possible
    else:
        least, largest = (possible, np.inf) if relation == ">=" else (-np.inf, possible)
    least, largest, _ = _broadcast(possible=least, **{"possible, largest": largest}, measured=values)
    if np.any(least > largest):
        raise ValueError("possible has a least value above its largest.")
    slack = ROUNDING * np.maximum(1, np.abs(values))
    if measured and np.any((values > largest + slack) | (values < least - slack)):
        raise ValueError("A measurement lies outside what is said to be possible: the protocol is understood wrongly.")
    return least, largest


def _check_power(powered: np.ndarray) -> None:
    if not powered.any():
        raise ValueError("This could not have failed at any point: it is no claim.")


def _closeness(measured: np.ndarray, bound: np.ndarray, relation: str, powered: np.ndarray) -> np.ndarray:
    """measured/bound (bound/measured for >=) at the points that can fail and where it says something; NaN elsewhere."""
    over, under = (bound, measured) if relation == ">=" else (measured, bound)
    says = powered & (over >= 0) & (under > 0) & (relation != "==")
    return np.divide(over, under, out=np.full(over.shape, np.nan), where=says)


def _first(order: np.ndarray, size: np.ndarray) -> int:
    """The flat index of the least `order`; among points as low, that of the largest `size`, which says most."""
    lowest = order.min()
    near = order <= lowest + ROUNDING * max(1.0, abs(lowest)) if math.isfinite(lowest) else order == lowest
    return int(np.argmax(np.where(near, np.where(np.isfinite(size), size, 0), -1)))


def _largest(closeness: np.ndarray) -> float | None:
    return None if np.isnan(closeness).all() else float(np.nanmax(closeness))


class Recorder:
    """Collects the claims of one chapter.

    `chapter` is the notebook's name (`01_counting`), `profile` and `seed` its parameters. With `path` every record is
    written at once to that JSON file (timings to `<stem>.timings.json` beside it); with `None` it stays in memory.
    Keys are unique within a chapter. All methods take scalars or arrays that broadcast; an array claim holds if it
    holds at every point.

    Power. `possible` is what the measurement could have shown at each point whatever the theorem says, from the
    protocol alone: the largest value for <= and < (`math.inf` for an error without a limit), the least for >=, the pair
    (least, largest) for == and for predictions. Only points at which it lies beyond the bound can fail; the record
    counts those (`points`, out of `points_total`), and keeps

    - `detectable`, the measured value from which on a violation would have been reported;
    - `closest`, the largest measured/bound (bound/measured for >=) of these points, where both are positive: a bound
      smaller by that factor would have been refuted;
    - the point that came closest (`tightest`, its flat index), with its measurement and bound.

    `searched=True` marks values that come out of an iterative search in floating point: they move beyond the last
    digits from processor to processor, which comparisons between machines allow for.
    """

    def __init__(self, chapter: str, *, profile: str, seed: int, path: str | Path | None = None):
        self.chapter, self.profile, self.seed = chapter, profile, int(seed)
        self.path = None if path is None else Path(path)
        self.records: dict[str, dict] = {}
        self.timings: dict[str, dict] = {}
        self.comparisons = 0  # sampled ones that could fail, counted against FAMILY
        self._save()

    def theorem(
        self, key, *, theorem, statement, measured, bound, possible,
        relation="<=", tolerance=0.0, parameters=None, tail=False, searched=False,
    ):  # fmt: skip
        """Record a comparison without sampling error: enumerated, deterministic, or a property of one run.

        Holds if `measured relation bound` at every point, up to the absolute `tolerance` (recorded; rounding only).
        `relation` is one of <=, <, >=, ==. With `tail=True` the bound itself holds only with probability at least
        1 − LEVEL/FAMILY at each point (a quantile): the points are then counted as sampled comparisons.
        ValueError on NaN, on a used key, on an unknown relation, if no point could fail, and if a measurement lies
        beyond what is said to be `possible`.
        """
        self._new(key)
        if relation not in RELATIONS:
            raise ValueError(f"relation must be one of {', '.join(RELATIONS)}; got {relation!r}.")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError("tolerance must be a finite number >= 0.")
        measured, bound = _broadcast(measured=measured, bound=bound)
        if np.any(np.isinf(measured)):
            raise ValueError("measured must be finite.")
        least, largest = _possible(possible, relation, measured)
        margin = RELATIONS[relation](measured, bound)
        violated = margin + tolerance <= 0 if relation == "<" else margin + tolerance < 0
        # The limits of `possible` carry rounding errors of their own: a point counts if they pass the bound by more.
        slack = tolerance + ROUNDING * np.maximum(1, np.abs(np.where(np.isfinite(bound), bound, 0)))
        high, low = largest > bound + slack, least < bound - slack
        powered = violated | {"<=": high, "<": largest >= bound + tolerance, ">=": low, "==": high | low}[relation]
        _check_power(powered)
        closest = _closeness(measured, bound, relation, powered)
        order = margin if violated.any() or relation == "==" or np.isnan(closest[powered]).any() else -closest
        tightest = _first(np.where(powered, order, np.inf), np.abs(bound))
        from_there = {">=": -tolerance}.get(relation, tolerance)
        self._add(
            key, "theorem", theorem, statement, parameters,
            evidence="tail" if tail else "exact", relation=relation, tolerance=float(tolerance),
            measured=measured.flat[tightest], bound=bound.flat[tightest], margin=margin.flat[tightest],
            detectable=bound.flat[tightest] + from_there, closest=_largest(closest),
            points=int(powered.sum()), points_total=measured.size,
            violated_points=int(violated.sum()), tightest=tightest, searched=bool(searched),
            verdict="violated" if violated.any() else "not refuted" if tail else "holds",
        )  # fmt: skip

    def sampled(
        self, key, *, theorem, statement, mean, samples, bound,
        relation="<=", parameters=None, successes=None, variables=None, searched=False,
    ):  # fmt: skip
        """Record a comparison of a bound with the expectation of i.i.d. variables in [0, 1], estimated by sampling.

        `mean` is the measured mean of `samples` variables. The limits are Chernoff's; exact binomial ones if the mean
        is a frequency and `successes` (counts) are given; McDiarmid's if the mean depends on `variables` independent
        variables, v of them, by at most 1/v each. Violated only if the one-sided limit at level LEVEL/FAMILY passes the
        bound; every point that can fail counts as one comparison. The record keeps that limit, an interval at 95 % for
        the eye, and `detectable`, the measured mean from which on a violation would have been reported; where no mean
        in [0, 1] would, the point cannot fail.
        ValueError on NaN, means outside [0, 1], successes that do not belong to the mean, a used key, and if no point
        could fail.
        """
        self._new(key)
        if relation not in ("<=", ">="):
            raise ValueError(f"relation of a sampled claim must be <= or >=; got {relation!r}.")
        mean, samples, bound = _broadcast(mean=mean, samples=samples, bound=bound)
        level = LEVEL / FAMILY
        towards, side = ("lower", "above") if relation == "<=" else ("upper", "below")
        if variables is not None:
            variables, _ = _broadcast(variables=variables, mean=mean)
            limit = np.asarray(intervals.mcdiarmid_limit(mean, variables, level, towards))
            interval = intervals.mcdiarmid_limit(mean, variables, INTERVAL_LEVEL)
            reach = np.sqrt(np.log(1 / level) / (2 * variables)) * (1 if relation == "<=" else -1)
            detectable = np.where((bound + reach >= 0) & (bound + reach <= 1), bound + reach, np.nan)
        elif successes is None:
            limit = np.asarray(intervals.kl_limit(mean, samples, level, towards))
            interval = intervals.kl_limit(mean, samples, INTERVAL_LEVEL)
            detectable = np.asarray(intervals.detectable(bound, samples, level, side))
        else:
            successes, _ = _broadcast(successes=successes, mean=mean)
            if not np.allclose(successes / samples, mean, rtol=0, atol=1e-9):
                raise ValueError("successes / samples is not the mean.")
            limit = np.asarray(intervals.clopper_pearson(successes, samples, level, towards))
            interval = intervals.clopper_pearson(successes, samples, INTERVAL_LEVEL)
            detectable = np.asarray(intervals.detectable_frequency(bound, samples, level, side))
        margin = RELATIONS[relation](limit, bound)
        violated = margin < 0
        powered = violated | ~np.isnan(detectable)
        _check_power(powered)
        away = np.where(powered, np.abs(detectable - mean), np.inf)
        tightest = int(np.argmin(margin if violated.any() else away))
        at = [float(np.asarray(array).flat[tightest]) for array in (*interval, detectable)]
        self._add(
            key, "theorem", theorem, statement, parameters,
            evidence="sampled", relation=relation, level=level, samples=int(samples.flat[tightest]),
            measured=mean.flat[tightest], bound=bound.flat[tightest], limit=limit.flat[tightest],
            margin=margin.flat[tightest], interval=at[:2], detectable=None if math.isnan(at[2]) else at[2],
            closest=_largest(_closeness(mean, bound, relation, powered)),
            points=int(powered.sum()), points_total=mean.size,
            violated_points=int(violated.sum()), tightest=tightest, searched=bool(searched),
            verdict="violated" if violated.any() else "not refuted",
        )  # fmt: skip

    def predict(
        self, key, *, theorem, statement, predicted, possible,
        relative=None, absolute=None, parameters=None, searched=False,
    ):  # fmt: skip
        """Write down a prediction before it is measured, with one tolerance: `relative` or `absolute`.

        `possible` is the pair (least, largest) of values that the measurement can take; a prediction that it cannot
        miss is refused. ValueError if the key has been predicted (or measured) before, on NaN, or unless exactly one
        tolerance >= 0 is given.
        """
        self._new(key)
        if (relative is None) == (absolute is None):
            raise ValueError("A prediction states exactly one tolerance: relative=... or absolute=...")
        tolerance = absolute if relative is None else relative
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError("The tolerance of a prediction must be a finite number >= 0.")
        predicted = _numbers("predicted", predicted)
        if np.any(np.isinf(predicted)):
            raise ValueError("predicted must be finite.")
        least, largest = _possible(possible, "==", predicted, measured=False)
        allowed = tolerance * (1.0 if relative is None else np.abs(predicted))
        _check_power((largest > predicted + allowed) | (least < predicted - allowed))
        self._add(
            key, "prediction", theorem, statement, parameters,
            predicted=predicted, tolerance=float(tolerance), possible=[least, largest], searched=bool(searched),
            points=predicted.size, points_total=predicted.size,
            tolerance_kind="absolute" if relative is None else "relative", verdict="pending",
        )  # fmt: skip

    def measure(self, key, measured, interval=None):
        """Complete the prediction `key` with its measurement.

        Without `interval` the number itself is judged: "hit" if every point lies within the stated tolerance, else
        "missed". With `interval`, a pair (lower, upper) at every point, simultaneous if there are several: "hit" if
        all intervals lie within the tolerance, "missed" if one lies wholly outside, else "undecided". A missed
        prediction does not fail the build. ValueError if nothing was predicted, if it was measured already, on NaN, or
        if the measurement lies outside what was said to be possible.
        """
        record = self.records.get(key)
        if record is None or record["kind"] != "prediction":
            raise ValueError(f"{key!r} was not predicted: record the prediction before its measurement.")
        if record["verdict"] != "pending":
            raise ValueError(f"{key!r} has been measured already.")
        measured, predicted = _broadcast(measured=measured, predicted=record["predicted"])
        least, largest = _possible(record["possible"], "==", measured)
        allowed = record["tolerance"] * (np.abs(predicted) if record["tolerance_kind"] == "relative" else 1.0)
        margin = allowed - np.abs(measured - predicted)
        lower, upper = measured, measured
        if interval is not None:
            lower, upper, _ = _broadcast(lower=interval[0], upper=interval[1], measured=measured)
            if np.any(lower > upper):
                raise ValueError("The lower end of an interval lies above its upper end.")
        inside = (lower >= predicted - allowed) & (upper <= predicted + allowed)
        outside = (lower > predicted + allowed) | (upper < predicted - allowed)
        worst = _first(np.where(outside.any() & ~outside, np.inf, margin), np.abs(predicted))
        if interval is not None:
            record["interval"] = plain([lower.flat[worst], upper.flat[worst]])
        record |= plain(
            {
                "predicted": predicted.flat[worst],
                "measured": measured.flat[worst],
                "margin": margin.flat[worst],
                "points": int(((largest > predicted + allowed) | (least < predicted - allowed)).sum()),
                "points_total": measured.size,
                "violated_points": int(outside.sum()),
                "undecided_points": int((~inside & ~outside).sum()),
                "tightest": worst,
            }
        )
        del record["possible"]
        record["verdict"] = "missed" if outside.any() else "hit" if inside.all() else "undecided"
        self._save()

    def timing(self, key, *, statement, value, unit):
        """Record a run time or another figure of this machine; it is shown, never judged, and kept out of claims."""
        self._new(key)
        self.timings[key] = plain({"key": key, "statement": statement, "value": float(value), "unit": unit})
        self._save()

    def verdicts(self) -> Verdicts:
        """The verdict box: what has been recorded so far, as an object that notebooks display.

        What is kept in no file is on no scoreboard, and has no link to it.
        """
        return Verdicts(self.content()["claims"], linked=self.path is not None)

    def lines(self, *keys: str) -> Lines:
        """One line for each of these claims, to stand below the figure that shows it. KeyError for an unknown key."""
        return Lines([dict(self.records[key]) for key in keys], linked=self.path is not None)

    def content(self) -> dict:
        """Everything recorded, as it is written to the claims file: claims sorted by key."""
        return {
            "chapter": self.chapter,
            "profile": self.profile,
            "seed": self.seed,
            "comparisons": self.comparisons,
            "claims": [dict(self.records[key]) for key in sorted(self.records)],
        }

    def _new(self, key) -> None:
        if not isinstance(key, str) or not key or any(letter in key for letter in " |\n"):
            raise ValueError(f"A key is a non-empty string without spaces or bars; got {key!r}.")
        if key in self.records or key in self.timings:
            raise ValueError(f"The key {key!r} is used already in this chapter.")

    def _add(self, key, kind, theorem, statement, parameters, **rest) -> None:
        record = {"key": key, "kind": kind, "chapter": self.chapter, "theorem": theorem, "statement": statement}
        record |= {"parameters": parameters or {}, "seed": self.seed, "profile": self.profile}
        self.records[key] = plain(record | rest)
        self.comparisons += rest["points"] if rest.get("evidence") in ("sampled", "tail") else 0
        self._save()

    def _save(self) -> None:
        if self.path is not None:
            write_json(self.path, self.content())
            write_json(self.path.with_suffix(".timings.json"), [self.timings[key] for key in sorted(self.timings)])
