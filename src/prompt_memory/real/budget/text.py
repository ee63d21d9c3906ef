"""Budgets as text, for people."""

import decimal
import math
from collections.abc import Iterable, Sequence

from prompt_memory.real.architectures import SOURCE, found_slope
from prompt_memory.real.budget.formats import FORMATS
from prompt_memory.real.budget.forward import NOT_DETERMINED, Bound, Budget
from prompt_memory.real.budget.inverse import Least, LeastLength

FOUND = "found by tuning on text: no bound"


def table(result: Budget) -> str:
    """The budget as text: one line a bound, what was left out, what is smallest and what nobody can read off.

    Bounds have three digits, the last rounded up.
    """
    a, m = result.architecture, result.prompt_length
    shown = [bound for bound in result.bounds.values() if bound.value is not None and not bound.vacuous]
    rows = [("bound", "bits", "tokens", "theorem"), *map(_row, shown)]
    if (slope := found_slope(a)) is not None:
        rows.append((FOUND, "", f"{float(f'{m * slope:.3g}'):,.10g}", SOURCE))
    least = result.bounds[result.smallest]
    assumed = f", given {', '.join(least.needs)}" if least.needs else ""
    best = f"{least.title}, {at_most(least.bits)} bits = {at_most(least.tokens)} tokens{assumed}"
    margin = ", so they are about answers with that margin" if result.smallest == "entropy" else ""
    return "\n".join([
        *_facts(result, f"prompt of {m:,} vectors"),
        *_aligned(rows),
        *_left_out(result.bounds.values()),
        "",
        f"smallest bound on a soft prompt: {best}",
        f"length, strings and recall are counted with it{margin}",
        *_reading(result.bounds["resolution"].value),
    ])  # fmt: skip


def least_table(result: LeastLength) -> str:
    """The least prompt lengths as text.  What a vector holds is rounded up to three digits, lengths down."""
    if result.tokens is not None:
        amount = f"{result.tokens:,} random tokens"
    else:
        amount = f"{result.facts:,} facts with random labels of {result.labels:,} values"
    rows = [("bound", "bits a vector", "tokens a vector", "vectors needed", "theorem")]
    for least in result.bounds.values():
        if least.length is not None:
            length = "none is enough" if least.length == math.inf else at_least(least.length)
            rows.append((least.title, at_most(least.bits), at_most(least.tokens), length, least.theorem))
    if result.found is not None:
        length = "" if result.found.length is None else f"{result.found.length:,}"
        rows.append((FOUND, "", f"{result.found.tokens:g}", length, result.found.source))
    strictest = result.bounds[result.largest]
    assumed = f", given {', '.join(strictest.needs)}" if strictest.needs else ""
    if result.length == math.inf:
        best = f"no soft prompt can hold them ({strictest.title}{assumed})"
    else:
        best = f"a soft prompt needs at least {at_least(result.length)} vectors ({strictest.title}{assumed})"
    return "\n".join([
        *_facts(result, f"{amount}, {at_least(result.bits)} bits"),
        *_aligned(rows),
        *_left_out(result.bounds.values()),
        "",
        best,
        "that as many are enough, or that a search finds them, no bound says",
        *_reading(result.bounds["resolution"].length),
    ])  # fmt: skip


def _facts(result: Budget | LeastLength, what: str) -> list[str]:
    """What was asked and given."""
    form = FORMATS[result.precision]
    given = "".join(f", {key} {show(value)}" for key, value in result.given.items() if value is not None)
    notes = [f"note: {note}" for note in result.architecture.notes]
    return [result.architecture.describe(), *notes,
            f"{what}; {result.precision} ({form.bits} bits a number){given}", ""]  # fmt: skip


def _row(bound: Bound) -> tuple[str, ...]:
    if bound.bits is not None:
        return bound.title, at_most(bound.bits), at_most(bound.tokens), bound.theorem
    if bound.unit == "tokens":
        return bound.title, "", at_most(bound.value), bound.theorem
    unit = "" if bound.unit == "fraction" else f" {bound.unit}"
    return bound.title, f"{at_most(bound.value)}{unit}", "", bound.theorem


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first and last column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [f"{first:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(middle, widths[1:], strict=False))]
        lines.append("  ".join([*cells, last]).rstrip())
    return lines


def _left_out(bounds: Iterable[Bound | Least]) -> list[str]:
    """One line on the bounds that are in no row, each with its reason."""
    parts = []
    for bound in bounds:
        value, vacuous = (bound.length, False) if isinstance(bound, Least) else (bound.value, bound.vacuous)
        if vacuous:
            parts.append(f"{bound.title} (vacuous)")
        elif value is None:
            reason = f"needs {', '.join(bound.needs)}" if bound.needs else "not covered"
            parts.append(f"{bound.title} ({reason})")
    return ["left out: " + "; ".join(parts)] if parts else []


def _reading(apart: float | None) -> list[str]:
    """What to bear in mind when the table is read."""
    told_apart = (
        "told apart at eps: strings for which prompts at least eps apart can be chosen; others may exist, so these "
        "bits are in no other line"
    )
    return [*([] if apart is None else [told_apart]), "not in a configuration: " + "; ".join(NOT_DETERMINED)]


def at_most(value: float | int) -> str:
    """An upper bound in three digits, rounded up."""
    return _three_digits(value, decimal.ROUND_CEILING)


def at_least(value: float | int) -> str:
    """A lower bound in three digits, rounded down."""
    return _three_digits(value, decimal.ROUND_FLOOR)


def _three_digits(value: float | int, rounding: str) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:  # more than a float can hold
        return show(value)
    exact = repr(value if isinstance(value, int) else float(value))
    short = decimal.Context(prec=3, rounding=rounding).create_decimal(exact)
    if not 1e-3 <= abs(short) < 1e12 and short:
        return f"{float(short):.3g}"
    return f"{short.normalize():,f}"


def show(value: float | int | None) -> str:
    """A number for people: whole numbers up to a trillion in full, others in five digits."""
    if value is None:
        return ""
    if isinstance(value, int) and value.bit_length() > 1000:  # more than a float can hold
        return f"about 10^{math.log10(value):.0f}"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e12 else f"{value:.5g}"
