"""Figures and tables of chapter 12."""

import math

import numpy as np

from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS, Table, scientific
from prompt_memory.experiments import pilots
from prompt_memory.experiments.other_tunings import FAMILIES, LARGE, LEAST, PAIRS, SMALL, Result

MARKER = {"soft prompt": "o", "prefix": "s", "LoRA": "^", "all weights": "D"}


def found_figure(result: Result) -> figures.Picture:
    """Bits found against trained numbers, with what float32 would allow."""
    D, per = result.numbers_of, result.per
    found = {t: per.get(t, pilots.chosen(t).bits if t in LARGE else 0.0) * D[t] for t in D}

    def draw(figure):
        ax = figure.subplots()
        small = figures.narrow(figure)
        x = np.array([60.0, 60_000.0])
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(*x)
        ax.set_ylim(4, 4e6)
        figures.forbid(ax, x, 32 * x, [4e6, 4e6])
        ax.plot(x, 32 * x, color=COLOURS["bound"], label="32 bits a number")
        ax.plot(x, x, color=COLOURS["neutral"], linewidth=1, label="1 bit a number")
        ax.text(0.04, 0.95, "forbidden above 32 bits a number", transform=ax.transAxes, va="top", fontsize=9,
                color=COLOURS["bound"])  # fmt: skip
        ax.text(0.96, 0.66, "1 bit a number", transform=ax.transAxes, ha="right", fontsize=9, color=COLOURS["neutral"])
        for t in SMALL:
            ends = [max(4.0, end * D[t]) for end in result.ends[t]]
            ax.plot([D[t]] * 2, ends, color=COLOURS["measured"], label=str(t))
            ax.plot(D[t], max(4.0, found[t]), MARKER[t.kind], color=COLOURS["measured"], label=str(t))
        for t in LARGE:
            ax.plot(D[t], found[t], MARKER[t.kind], color=COLOURS["measured"], mfc="none", label=str(t))
        for numbers in sorted(set(D.values())):  # labels beside the points, apart from each other
            here = [t for t in D if D[t] == numbers]
            wished = [math.log10(max(4.0, found[t])) for t in here]
            left = numbers > (1_000 if small else 10_000)
            for t, height in zip(here, figures.spread(wished, 0.5 if small else 0.34), strict=True):
                ax.annotate(str(t), (numbers, 10**height), xytext=(-9 if left else 9, 0), textcoords="offset points",
                            ha="right" if left else "left", va="center", fontsize=8 if small else 9,
                            color=COLOURS["measured"])  # fmt: skip
        ax.set_xlabel("trained numbers D")
        ax.set_ylabel("bits found")

    low, high = min(per.values()), max(per.values())
    return figures.show(
        draw, size=(7, 4.6), name="tunings",
        finding=f"From {low:.2f} to {high:.2f} bits are found a trained number after {result.steps:,} steps; float32"
        " would allow 32.",
        caption="Bars: intervals at 95 %. Hollow: pilot runs, one table each.",
        alt="Bits found against the number of trained numbers on logarithmic axes, for " + ", ".join(map(str, D))
        + f"; between {low:.2f} and {high:.2f} bits a number, with a line at one. The theorem forbids what lies above"
        " 32 bits a number, far above all points.",
    )  # fmt: skip


def doubling(curves: dict) -> dict:
    """By how much the last doubling of the steps changed what each tuning is found to hold."""
    changed = {}
    for t, curve in curves.items():
        ratio = curve[-1].bits / max(LEAST, curve[-2].bits)
        changed[t] = ratio ** (1 / math.log2(curve[-1].steps / curve[-2].steps)) - 1
    return changed


def steps_figure() -> figures.Picture:
    """Bits found against steps, in the pilot runs."""
    curves = {t: pilots.curve(t) for t in [*SMALL, *LARGE]}
    curves = {t: curve for t, curve in curves.items() if len(curve) > 1}
    changed = doubling(curves)

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log")
        last = max(curve[-1].steps for curve in curves.values())
        ax.set_xlim(
            min(curve[0].steps for curve in curves.values()) / 1.2, last * (14 if figures.narrow(figure) else 6)
        )
        for t, curve in curves.items():
            ax.plot([p.steps for p in curve], [p.bits for p in curve], marker=MARKER[t.kind], color=COLOURS["measured"],
                    linewidth=1, label=str(t))  # fmt: skip
        heights = figures.spread([curve[-1].bits for curve in curves.values()], 0.085)
        for t, height in zip(curves, heights, strict=True):
            ax.text(last * 1.15, height, str(t), color=COLOURS["measured"], fontsize=9, va="center")
        ax.set_ylim(bottom=0)
        ticks = sorted({p.steps for curve in curves.values() for p in curve})
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45 if figures.narrow(figure) else 0)
        ax.minorticks_off()
        ax.set_xlabel("steps of Adam (pilot runs)")
        ax.set_ylabel("bits found a number")

    low, high = min(changed.values()), max(changed.values())
    return figures.show(
        draw, name="tuning-steps",
        finding=f"The last doubling of the steps changes what is found by {100 * low:+.0f} to {100 * high:+.0f} %.",
        caption="For each tuning: " + ", ".join(f"{t} {100 * value:+.0f} %" for t, value in changed.items())
        + ". A pilot run has one or two tables; for the shortest prompts one label more or less is several per cent.",
        alt="Bits found a trained number against the steps of Adam in pilot runs, one curve for each tuning: "
        + "; ".join(f"{t} from {curve[0].bits:.2f} at {curve[0].steps} to {curve[-1].bits:.2f} at {curve[-1].steps}"
                    for t, curve in curves.items()) + ".",
    )  # fmt: skip


def rounded_figure(result: Result) -> figures.Picture:
    """Bits retained after rounding against the bits that describe the rounded adaptation."""
    D, after = result.numbers_of, result.after

    def draw(figure):
        ax = figure.subplots()
        top = 1.25 * max(value.max() for value in after.values())
        ax.set_xlim(0, 14 if figures.narrow(figure) else 11)
        ax.set_ylim(0, top)
        figures.forbid(ax, [0, top], [0, top], [top, top])
        ax.plot([0, top], [0, top], color=COLOURS["bound"], label="bound")
        ax.text(top + 0.15, 0.92 * top, "forbidden", fontsize=9, color=COLOURS["bound"])
        for t in SMALL:
            ax.plot(result.described[t] / D[t], after[t], marker=MARKER[t.kind], color=COLOURS["measured"], linewidth=1,
                    markersize=4, label=str(t))  # fmt: skip
        heights = figures.spread([after[t][-1] for t in SMALL], (0.07 if figures.narrow(figure) else 0.05) * top)
        for t, height in zip(SMALL, heights, strict=True):
            ax.text(8.65, height, str(t), va="center", fontsize=8, color=COLOURS["measured"])
        ax.set_xlabel("bits a number that describe the rounded adaptation")
        ax.set_ylabel("bits retained a number")

    low = result.numbers["six_low"]
    return figures.show(
        draw, name="rounded", finding=f"Six bits a number keep at least {low} of what was found.",
        caption="Scales are included in the description. The theorem forbids what lies above the diagonal.",
        alt="Bits retained a trained number against the bits a number that are left after rounding, for each tuning,"
        f" far below the diagonal that the theorem forbids to pass. At six bits at least {low} of what was found is"
        " left.",
    )  # fmt: skip


def ranks_table(result: Result) -> Table:
    """Ranks of small networks beside the count of visible numbers."""
    header = ("tuning", "trained", "visible at most", "rank found", "least singular value counted", "largest not")
    return Table(header, [
        (t, trained, visible, rank, scientific(least, up=False), scientific(rest, up=True) if rest else "none")
        for t, trained, visible, rank, least, rest in result.ranks
    ])  # fmt: skip


def settings_table() -> Table:
    """What was tried in pilot runs, and what was chosen."""
    rows = []
    for t in [*SMALL, *LARGE]:
        best = pilots.chosen(t)
        tried = [pilot for pilot in pilots.read() if pilot.tuning == t and pilot.steps == pilots.STEPS]
        rows.append((
            t, len(tried), ", ".join(f"{rate:g}" for rate in sorted({pilot.learning_rate for pilot in tried})),
            f"{best.learning_rate:g}", f"{best.scale:g}", f"{best.load:g}", f"{np.mean(best.recalls):.2f}",
            f"{best.bits:.2f}",
        ))  # fmt: skip
    header = ("tuning", "pilot runs", "rates tried", "rate", "scale of the start", "load", "recall", "bits a number")
    return Table(header, rows)


def found_table(result: Result) -> Table:
    """Bits found by each tuning."""
    header = ("tuning", "trained numbers", "keys", "mean recall", "bits found", "bits a number, 95 % interval",
              "strings, bits a number", "left after rounding to 8 bits")  # fmt: skip
    eights = result.judged["eight-bits"].value
    return Table(header, [
        (t, f"{result.numbers_of[t]:,}", result.labels[t][0].K, f"{result.recalls(t).mean():.2f}",
         f"{result.per[t] * result.numbers_of[t]:.0f}",
         f"{result.per[t]:.2f} [{result.ends[t][0]:.2f}, {result.ends[t][1]:.2f}]", f"{result.text_per[t]:.2f}",
         f"{100 * eights[i]:.0f} %")
        for i, t in enumerate(SMALL)
    ])  # fmt: skip


def compared_table(result: Result) -> Table:
    """Differences of pairs and exponents, with simultaneous intervals."""
    names = [f"{a} against {b}: (first − second)/(first + second)" for a, b in PAIRS]
    names += [f"exponent from {a} to {b}" for a, b in FAMILIES]
    parts = [result.judged[key] for key in ("order", "linear")]
    values = [row for part in parts for row in zip(part.value, part.low, part.high, strict=True)]
    return Table(("compared", "found", "simultaneous 95 % interval"), [
        (name, f"{value:.2f}", f"[{low:.2f}, {high:.2f}]")
        for name, (value, low, high) in zip(names, values, strict=True)
    ])  # fmt: skip


def many_table(result: Result) -> Table:
    """How often the best of 1024 adaptations recalls at least j labels."""
    draws = result.settings.draws
    return Table(("at least", "bound", *map(str, result.counts)), [
        (j, f"{c:.4f}", *(f"{n[i] / draws:.4f}" for n in result.counts.values()))
        for i, (j, c) in enumerate(zip(result.at_least, result.ceiling, strict=True))
    ])  # fmt: skip
