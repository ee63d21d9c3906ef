"""Claims: every quantitative statement of the book, with its bound, its measurement and a verdict.

Three kinds. A *theorem* claim compares a measurement with a proved bound: one violated claim fails the build. A
*prediction* is written down before it is measured and is then hit, missed or undecided. A *timing* is only shown.

A claim that could not have failed is not a claim: each says what its measurement could have shown (`possible`), points
at which that could not pass the bound do not count, and a claim without any other point is refused.

A chapter makes one `Recorder` and every claim is on disk the moment it is recorded.
"""

import html
import json
import math
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prompt_memory import intervals

# A sampled claim is judged at this level over the whole book: the book as a whole raises a false alarm with
# probability at most LEVEL, provided that it makes at most FAMILY sampled comparisons (the collection checks it).
LEVEL = 1e-6
FAMILY = 10_000

DIGITS = 12  # significant digits kept in a record; the rest is rounding noise of the machine
INTERVAL_LEVEL = 0.05  # of the intervals of sampled claims, which are shown and not judged by
ROUNDING = 1e-9  # a measurement may pass what is possible by this much of it

RELATIONS = {
    "<=": lambda measured, bound: bound - measured,
    "<": lambda measured, bound: bound - measured,
    ">=": lambda measured, bound: measured - bound,
    "==": lambda measured, bound: -np.abs(measured - bound),
}
# In the order in which a reader should see them.
VERDICTS = ("violated", "pending", "missed", "undecided", "not refuted", "holds", "hit")
SYMBOLS = {"<=": "≤", "<": "<", ">=": "≥", "==": "="}


def settings(profiles: Mapping[str, Mapping], profile: str) -> dict:
    """The settings of one profile as a new dictionary; ValueError for a name that the table does not have."""
    if profile not in profiles:
        raise ValueError(f"Unknown profile {profile!r}: choose one of {', '.join(profiles)}.")
    return dict(profiles[profile])


def plain(value):
    """A JSON value with floats rounded to 12 significant digits; infinities become the strings "inf", "-inf".

    ValueError for NaN and for anything that JSON cannot hold.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("A claim must not hold NaN.")
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(f"A claim holds numbers, strings and lists of them, not {type(value).__name__}.")


def write_json(path: Path, content) -> None:
    """Write deterministic JSON (sorted keys) as a whole file."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file so that a reader sees the old one or the whole new one, whoever else writes it; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.writing")
    try:
        partial.write_bytes(content)
        return partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
        tightest = int(np.argmin(np.where(powered, order, np.inf)))
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
        worst = int(np.argmin(np.where(outside.any() & ~outside, np.inf, margin)))
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

    def verdicts(self) -> "Verdicts":
        """The verdict box: what has been recorded so far, as an object that notebooks display."""
        return Verdicts(self.content()["claims"])

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


def number(value) -> str:
    """A number for a table: whole numbers below a million in full, else four significant digits; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "−∞"}.get(value, value)
    if isinstance(value, list):
        return f"[{', '.join(map(number, value))}]" if len(value) <= 2 else f"{len(value)} values"
    whole = float(value).is_integer() and abs(value) < 1e6
    return readable(f"{int(value):,}" if whole else f"{value:.4g}")


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """10⁻⁵ for −5."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def readable(text: str) -> str:
    """Text with powers of ten and minus signs as a book prints them: 3.1e-05 as 3.1·10⁻⁵."""
    text = re.sub(r"(?<=\d)e([+-]\d+)\b", lambda power: "·" + power_of_ten(int(power[1])), text)
    return re.sub(r"(?<![\w.)\]])-(?=\d)", "−", text)


class Verdicts:
    """What became of a list of claims: a box in a notebook (HTML), a table in text (Markdown)."""

    HEADER = (
        "verdict", "claim", "bound or prediction", "measured", "interval", "reported from", "closest",
        "points that can fail",
    )  # fmt: skip

    def __init__(self, claims: list[dict]):
        self.claims = claims

    def counts(self) -> dict[str, int]:
        """How many claims have each verdict; verdicts that do not occur are left out."""
        found = [claim["verdict"] for claim in self.claims]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}

    def summary(self) -> str:
        """One line, such as `3 hold, 1 not refuted, 1 hit`."""
        words = {"holds": "hold" if self.counts().get("holds", 0) > 1 else "holds"}
        counted = [f"{count} {words.get(verdict, verdict)}" for verdict, count in self.counts().items()]
        return f"{len(self.claims)} claim{'' if len(self.claims) == 1 else 's'}: " + (", ".join(counted) or "none yet")

    def parts(self) -> list[tuple[str, str]]:
        """What a reader wants to know: are the theorems intact, and, apart from that, were the forecasts right?"""
        theorems = [claim for claim in self.claims if claim["kind"] == "theorem"]
        forecasts = [claim["verdict"] for claim in self.claims if claim["kind"] == "prediction"]
        exact = sum(claim["evidence"] == "exact" for claim in theorems)
        against = sum(claim["verdict"] == "violated" for claim in theorems)
        parts = []
        if theorems:
            checks = f"{exact} exact, {len(theorems) - exact} sampled, {against or 'none'} against"
            parts.append(("Checks of theorems", f"{checks} {'them' if len(theorems) > 1 else 'it'}"))
        if forecasts:
            counted = [f"{forecasts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in forecasts]
            parts.append(("Forecasts, written down before the measurement", ", ".join(counted)))
        return parts or [("Verdict", "no claims yet")]

    @staticmethod
    def row(claim: dict) -> tuple[str, ...]:
        """The cells of one claim, as text, in the order of `HEADER`."""
        if claim["kind"] == "prediction":
            percent = claim["tolerance_kind"] == "relative"
            tolerance = f"{100 * claim['tolerance']:.4g} %" if percent else number(claim["tolerance"])
            bound = f"{number(claim['predicted'])} ± {tolerance}"
        else:
            bound = f"{SYMBOLS[claim['relation']]} {number(claim['bound'])}"
            if claim.get("tolerance"):
                bound += f" (tolerance {number(claim['tolerance'])})"
        points = number(claim["points"])
        if claim["points"] < claim["points_total"]:
            points += f" of {number(claim['points_total'])}"
        if claim.get("violated_points"):
            points += f", {claim['violated_points']} fail"
        if claim.get("undecided_points"):
            points += f", {claim['undecided_points']} undecided"
        closest = claim.get("closest")
        return (
            claim["verdict"],
            f"{claim['theorem']}: {claim['statement']}",
            bound,
            number(claim.get("measured")),
            number(claim.get("interval")),
            number(claim.get("detectable")),
            "–" if closest is None else f"{100 * closest:.3g} %",
            points,
        )

    def _repr_markdown_(self) -> str:
        return f"**{self.summary()}**\n\n" + markdown_table(self.HEADER, [self.row(claim) for claim in self.claims])

    def _repr_html_(self) -> str:
        shown = sorted(self.claims, key=lambda claim: (VERDICTS.index(claim["verdict"]), claim["key"]))
        worst = "violated" if "violated" in self.counts() else "good"
        head = "".join(f"<th>{cell}</th>" for cell in self.HEADER)
        body = ""
        for claim in shown:
            verdict, text, *rest = self.row(claim)
            css = verdict.replace(" ", "-")
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
            mark = f'<td><span class="verdict verdict-{css}">{verdict}</span></td>'
            body += f"<tr>{mark}<td>{_mathjax(html.escape(text))}</td>{cells}</tr>"
        parts = "".join(f"<p><strong>{name}.</strong> {text}.</p>" for name, text in self.parts())
        return (
            f'<div class="verdict-box verdict-box-{worst} mathjax_process">'
            f"{parts}"
            f"<details><summary>Every claim of this chapter</summary>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            "</details></div>"
        )

    def __repr__(self) -> str:
        return self.summary()


def _mathjax(text: str) -> str:
    """Turn $...$ into the delimiters that MathJax reads in raw HTML."""
    pieces = text.split("$")
    if len(pieces) % 2 == 0:  # an unpaired dollar is a dollar
        return text
    return "".join(rf"\({piece}\)" if index % 2 else piece for index, piece in enumerate(pieces))


def markdown_table(header, rows) -> str:
    """A Markdown table; bars and line breaks inside cells are made harmless."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
                     for line in lines)  # fmt: skip
