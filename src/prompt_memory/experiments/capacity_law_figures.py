"""Figures, tables and sentences of chapter 11."""

import math

import numpy as np

from prompt_memory.book import figures, verdicts
from prompt_memory.book.figures import COLOURS, Table
from prompt_memory.experiments.capacity_law import TOLERANCE, Fit, Result
from prompt_memory.experiments.capacity_law_settings import BASE_AT, FITTED, NUMERIC, PILOT_SAMPLES, SWEEP
from prompt_memory.tune import capacity

TITLES = {
    "m": "prompt length m", "d": "width d", "H": "heads H", "d_k": "head size dₖ", "L": "depth L",
    "β": "logit scale β", "r": "radius r", "q": "classes q", "b": "bits b",
}  # fmt: skip
BOUNDS = {
    "m": "one", "d": "one, more through D_eff", "b": "one", "H": "not there", "d_k": "not there",
    "L": "at most one hidden direction a token", "β": "only through Λ", "r": "logarithm", "q": "none, in bits",
}  # fmt: skip


def letter(name: str) -> str:
    """A parameter as it is printed."""
    return name.replace("d_k", "dₖ")


def printed(value) -> str:
    """A value of a parameter: 16 for 16.0."""
    return value if isinstance(value, str) else f"{value:g}"


def named(key) -> str:
    """A kind of network in a sentence."""
    if key[0] == "base":
        return "the base network"
    name, *at = letter(key[0]).split(", ")
    return " at ".join([f"norm: {key[1]}" if name == "norm" else f"{name} = {printed(key[1])}", *at])


def intervals(samples: list) -> list[tuple[float, float, float]]:
    """Means with simultaneous intervals; unbounded ones where a mean is not positive."""
    positive = [i for i, each in enumerate(samples) if np.mean(each) > 0]
    rows = [(float(np.mean(each)), -math.inf, math.inf) for each in samples]
    if positive:
        level = 0.05 * len(positive) / len(samples)
        for i, row in zip(positive, capacity.means([samples[i] for i in positive], level), strict=True):
            rows[i] = tuple(map(float, row))
    return rows


def bar(ax, at: float, low: float, high: float, limits: tuple[float, float], *, upright: bool = False) -> None:
    """An interval inside `limits`; an arrow where it goes on."""
    ends = np.clip([low, high], *limits)
    place = ([at, at], ends) if upright else (ends, [at, at])
    ax.plot(*place, color=COLOURS["measured"], linewidth=1.5)
    for end, beyond, marker in zip(ends, (low < limits[0], high > limits[1]), "v^" if upright else "<>", strict=True):
        if beyond:
            where = (at, end) if upright else (end, at)
            ax.plot(*where, marker, color=COLOURS["measured"], markersize=6)


def rows_of(result: Result) -> tuple[list, list]:
    """(label, exponent found, forecast) of each parameter: all prompts run, and found."""
    exact, search, first = result.exact, result.search, result.settings.values("b")[:2]
    counted = [(letter(name), exact.fits[name], exact.law[name]) for name in FITTED]
    found = [(letter(name), search.fits[name], search.predicted[name]) for name in NUMERIC if name != "b"]
    found.append((f"b, {first[0]} to {first[1]}", search.b_first, search.first_law))
    return counted, found


def exponents_figure(result: Result) -> figures.Picture:
    """Exponents of capacity in each parameter beside their forecasts, counted and found."""
    sides = rows_of(result)
    every = [number for side in sides for _, fit, law in side for number in (fit.value, law)]
    limits = (min(every) - 0.7, max(every) + 0.7)

    def draw(figure):
        axes = figures.panels(figure, 2)
        titles = ("all prompts run: log₂ N", "real numbers, found: M − 1/(q − 1)")
        for ax, side, title in zip(axes, sides, titles, strict=True):
            for y, (_, fit, law) in enumerate(side):
                ax.plot([law - TOLERANCE, law + TOLERANCE], [y, y], color=COLOURS["predicted"], linewidth=9, alpha=0.35,
                        solid_capstyle="butt")  # fmt: skip
                ax.plot(law, y, "|", color=COLOURS["predicted"], markersize=12, markeredgewidth=2)
                bar(ax, y, fit.low, fit.high, limits)
                ax.plot(fit.value, y, "o", color=COLOURS["measured"])
            ax.set_yticks(range(len(side)), [label for label, *_ in side])
            ax.set_ylim(len(side) - 0.4, -0.6)
            ax.set_xlim(limits[0] - 0.08, limits[1] + 0.08)
            ax.set_title(title)
            ax.set_xlabel("exponent")
            ax.grid(axis="y", visible=False)

    known = [row for row in sides[1][:-1] if not row[1].note]
    largest = sorted(known, key=lambda row: -row[1].value)[:3]
    shown = "; ".join(f"{label} {fit.value:.2f}, forecast {law:.2f}" for label, fit, law in largest)
    finding = "The largest exponents found: " + verdicts.readable(shown) + "."
    return figures.show(
        draw, size=(7, 4.2), panels=2, name="exponents", finding=finding,
        caption="Dots: fitted, with intervals at 95 %. Bars behind them: forecasts, ±"
        f" {TOLERANCE}, left from the counting bound, right from the visible dimension (for b from the counting bound)."
        " An arrow: the interval goes on.",
        alt="Two dot plots of exponents with intervals beside forecast bars. Left, all prompts run: "
        + "; ".join(f"{label}: {fit}, forecast {law:.2f}" for label, fit, law in sides[0])
        + ". Right, found: " + "; ".join(f"{label}: {fit}, forecast {law:.2f}" for label, fit, law in sides[1]) + ".",
    )  # fmt: skip


def lines_of(result: Result, name: str):
    """(values, means with intervals, grid, forecast line) of one parameter; the line starts at the base network."""
    settings, search = result.settings, result.search
    values = settings.values(name)
    rows = [intervals([search.found[name, v]])[0] for v in values]
    slope = search.first_law if name == "b" else search.predicted[name]
    start = values.index(BASE_AT[name]) if BASE_AT.get(name) in values else 0
    if rows[start][0] <= 0:
        start = int(np.argmax([row[0] for row in rows]))
    grid = np.geomspace(values[0], values[-1], 20)
    line = max(rows[start][0], 0.01) * (grid / values[start]) ** slope
    return values, rows, grid, np.minimum(line, max(search.real.mean(), 0.01)) if name == "b" else line


def capacity_figure(result: Result) -> figures.Picture:
    """Capacity found against each parameter, with the power law that was forecast."""
    lines = {name: lines_of(result, name) for name in NUMERIC}
    heights = [row[0] for _, rows, *_ in lines.values() for row in rows if row[0] > 0]
    heights += [y for *_, line in lines.values() for y in (min(line), max(line))]
    limits = (min(heights) / 1.5, max(heights) * 1.5)
    lost = [f"{letter(name)} = {v:g}" for name, (values, rows, *_) in lines.items()
            for v, row in zip(values, rows, strict=True) if row[0] <= 0]  # fmt: skip

    def draw(figure):
        small = figures.narrow(figure)
        axes = figure.subplots(*((5, 2) if small else (3, 3)), sharey=True).flatten()
        for ax in axes[len(NUMERIC) :]:
            ax.set_axis_off()
        for ax, name in zip(axes, NUMERIC, strict=False):
            values, rows, grid, line = lines[name]
            ax.plot(grid, line, "--", color=COLOURS["predicted"], linewidth=1.5)
            for v, (mean, low, high) in zip(values, rows, strict=True):
                if mean > 0:
                    bar(ax, v, low, high, limits, upright=True)
                    ax.plot(v, mean, "o", color=COLOURS["measured"])
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.set_xticks(values, [f"{v:g}" for v in values])
            ax.yaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
            ax.set_title(TITLES[name])
        axes[0].set_ylim(limits[0] / 1.2, limits[1] * 1.2)
        for ax in axes[: len(NUMERIC) : 2 if small else 3]:
            ax.set_ylabel("bits")

    values = result.settings.values("m")
    few, many, *ends = values[0], values[-1], *(result.search.found["m", v].mean() for v in (values[0], values[-1]))
    exponents = ", ".join(f"{letter(name)} {result.search.fits[name].value:.2f}" for name in NUMERIC)
    return figures.show(
        draw, size=(7, 6.6), panels=3, name="capacities",
        finding=verdicts.readable(f"From {few} to {many} tokens the capacity found goes from {ends[0]:.1f} to"
                                  f" {ends[1]:.1f} bits."),
        caption="Capacity found beyond guessing, with intervals at 95 %, and the forecast power law through one of the"
        " points (dashed; for bits the counting law, up to the capacity of real numbers). An arrow: the interval goes"
        " on." + (f" No more than guessing, and not shown: {', '.join(lost)}." if lost else ""),
        alt="Nine small log-log panels of the capacity found, in bits beyond guessing, against prompt length, width,"
        " heads, head dimension, depth, logit scale, radius, classes and bits a coordinate, with intervals, each with"
        " the power law that was forecast. Exponents found: "
        + verdicts.readable(exponents) + ".",
    )  # fmt: skip


def same_figure(result: Result) -> figures.Picture:
    """Capacities of networks that every bound in d, m, r, b and q treats alike."""
    exact, search = result.exact, result.search
    top = result.settings.bits
    highest = 1.6 * max(each.mean() for each in search.alike.values())
    sides = (
        (exact.same, "all prompts run", "log₂ N (bits)", top),
        (search.alike, "real numbers, found", "bits beyond guessing", highest),
    )

    def draw(figure):
        axes = figures.panels(figure, 2)
        for ax, (table, title, label, end) in zip(axes, sides, strict=True):
            keys = sorted(table, key=lambda key: table[key].mean())
            # log₂ N is at most the bound: an interval that reaches it goes no further
            for y, (value, low, high) in enumerate(intervals([table[key] for key in keys])):
                bar(
                    ax, y, low, min(high, top) if table is exact.same else high, (0, end)
                )  # log₂ N is at most the bound
                ax.plot(value, y, "o", color=COLOURS["measured"])
            labels = ["base" if name == "base" else f"{letter(name)} {printed(v)}" for name, v in keys]
            ax.set_yticks(range(len(keys)), labels)
            ax.set_xlim(-0.04 * end, 1.06 * end)
            ax.set_title(title)
            ax.set_xlabel(label)
            ax.grid(axis="y", visible=False)
        axes[0].axvline(top, color=COLOURS["bound"])

    ratios = [
        f"{fit.value:.2f} times" if math.isfinite(fit.value) else "infinitely many times"
        for fit in (exact.spread, search.spread)
    ]
    return figures.show(
        draw, size=(7, 4.8), panels=2, name="same",
        finding=f"Of networks that no such bound tells apart, the most hold {ratios[0]} as many bits as the"
        f" least (counted), and {ratios[1]} (found).",
        caption=f"Left, the bound of {top} bits is the same for all (line). Intervals hold for all points of a panel at"
        " once: if all held equally much, one vertical line could pass through all. An arrow: the interval goes on.",
        alt="Two dot plots of capacities of networks with the same width, prompt length, radius, precision and classes,"
        f" with simultaneous intervals. Left with all prompts run, right found by search. The largest is {ratios[0]}"
        f" and {ratios[1]} the smallest; the bound is the same for all.",
    )  # fmt: skip


def several(values) -> str:
    return ", ".join(values)


def exact_table(result: Result) -> Table:
    """Behaviours and capacity of all enumerated networks."""
    settings, exact = result.settings, result.exact
    header = ("parameter", "values", "bits bdm", "log₂ N, mean", "its exponent", "M − 1, mean", "its exponent",
              "exponent of bdm")  # fmt: skip
    rows = []
    for name in settings.exact_sweep():
        values, fits = settings.exact_values(name), name in FITTED
        rows.append((
            letter(name), several(map(printed, values)), several(str(exact.room[name, v]) for v in values),
            several(f"{exact.bits[name, v].mean():.2f}" for v in values), exact.fits[name] if fits else "–",
            several(f"{exact.beyond[name, v].mean():.2f}" for v in values), exact.beyond_fits[name] if fits else "–",
            f"{exact.law[name]:.0f}" if fits else "–",
        ))  # fmt: skip
    return Table(header, rows)


def found_table(result: Result) -> Table:
    """Capacity found at every point, and exponents beside their forecasts."""
    settings, search = result.settings, result.search
    header = ("parameter", "values", "D_eff", "capacity found, bits", "exponent found", "forecast", "verdict")
    rows = []
    for name in SWEEP:
        values = settings.values(name)
        rows.append((
            letter(name), several(map(printed, values)), several(str(search.dimension[name, v]) for v in values),
            several(f"{search.found[name, v].mean():.1f}" for v in values), search.fits.get(name, "–"),
            f"{search.predicted[name]:.2f}" if name in NUMERIC and name != "b" else "–",
            result.verdicts.get(f"found-{name}", "–"),
        ))  # fmt: skip
    first = settings.values("b")[:2]
    rows += [
        (f"b, {first[0]} to {first[1]}", "", "", "", search.b_first, f"{search.first_law:.2f}",
         result.verdicts["found-b-first"]),
        ("ratio, real over largest b", "", "", "", search.b_last, "1", result.verdicts["found-b-last"]),
    ]  # fmt: skip
    return Table(header, rows)


def gain(fit: Fit) -> str:
    """A ratio as a percentage of growth."""
    return f"{100 * (fit.value - 1):.1f} %" if not fit.note else "–"


def effort_table(result: Result) -> Table:
    """What every stage of the search finds."""
    settings, search = result.settings, result.search
    header = ("parameter", "capacity found after each stage, bits", "added by the last stage",
              "exponent after each stage", "change by the last stage")  # fmt: skip
    rows = []
    for name in SWEEP:
        values, stages = settings.values(name), range(len(settings.steps))
        found = "; ".join(
            f"{printed(v)}: " + several(f"{search.bits_found((name, v), stage=s).mean():.1f}" for s in stages)
            for v in values
        )
        fits = ("–", "–")
        if name in NUMERIC:
            fits = (
                several("–" if fit.note else f"{fit.value:.2f}" for fit in search.stage_fits[name]),
                search.bend[name],
            )
        rows.append((letter(name), found, several(gain(search.gains[name, v]) for v in values), *fits))
    return Table(header, rows)


def summary_table(result: Result) -> Table:
    """Exponents of every parameter: in the bounds, counted, found."""
    exact, search = result.exact, result.search
    found = {name: str(search.fits[name]) for name in NUMERIC}
    found["b"] = f"{search.b_first} at first"
    header = ("parameter", "exponent in the bounds", "counted, of log₂ N", "found, of M − 1/(q − 1)")
    return Table(header, [
        (letter(name), BOUNDS[name], exact.fits.get(name, "–"), found[name])
        for name in ("d", "m", "b", "d_k", "β", "H", "L", "r", "q")
    ])  # fmt: skip


def ends_of(table: dict, digits: int) -> tuple[str, str]:
    """The kinds that hold least and most, for a sentence."""
    keys = min(table, key=lambda key: table[key].mean()), max(table, key=lambda key: table[key].mean())
    return tuple(f"{table[key].mean():.{digits}f} bits ({named(key)})" for key in keys)


def forecasts(result: Result, keys: list[str]) -> str:
    """How many of these forecasts hit, missed, and are undecided."""
    found = [result.verdicts[key] for key in keys]
    return f"{found.count('hit')} hit, {found.count('missed')} missed and {found.count('undecided')} undecided"


def numbers(result: Result) -> dict[str, str]:
    """Numbers for the sentences of the chapter."""
    settings, exact, search = result.settings, result.exact, result.search
    exact_least, exact_most = ends_of(exact.same, 2)
    least, most = ends_of(search.alike, 1)
    base = next(key for key in search.points if search.points[key] == search.middle)
    base_D = search.dimension[base]
    values = {
        "exact_queries": settings.exact_queries, "exact_networks": sum(map(len, exact.counts.values())),
        "exact_kinds": len(exact.same), "exact_bound": f"{settings.bits} bits", "exact_least": exact_least,
        "exact_most": exact_most, "exact_spread": exact.spread,
        "exact_forecasts": forecasts(result, [f"exact-{name}" for name in FITTED]),
        "pilot_samples": PILOT_SAMPLES, "base_bits": f"{search.real.mean():.1f}", "base_D": base_D,
        "per_number": f"{search.real.mean() / base_D:.2f}", "found_kinds": len(search.alike), "fewest": least,
        "largest": most, "found_spread": search.spread,
        "found_forecasts": forecasts(result, [f"found-{name}" for name in NUMERIC if name != "b"]),
        "found_m": search.fits["m"], "flat_m": search.fits["m, β = 1/2"],
        "affine_D": several(map(str, settings.affine)),
        "affine_found": several(map(str, search.affine)), "one_bit": search.one_bit,
        "stages": several(map(str, settings.steps)),
    }  # fmt: skip
    for tag, table in (("gain", search.gains), ("doubled", search.doubled)):
        known = {key: fit for key, fit in table.items() if not fit.note} or table
        low, high = (pick(known, key=lambda key: known[key].value) for pick in (min, max))
        values[f"{tag}_base"] = gain(table[base])
        values[f"{tag}_range"] = f"{gain(known[low])} ({named(low)}) to {gain(known[high])} ({named(high)})"
    bent = {name: fit for name, fit in search.bend.items() if not fit.note} or search.bend
    most_bent = max(bent, key=lambda name: abs(bent[name].value))
    values["most_bent"] = f"{bent[most_bent]} in {letter(most_bent)}"
    return {name: verdicts.readable(str(value)) for name, value in values.items()}
