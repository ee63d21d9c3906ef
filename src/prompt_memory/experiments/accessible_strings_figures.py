"""Chapter 4, figures and tables."""

import math

import numpy as np

from prompt_memory import bounds
from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments.accessible_strings_protocol import (
    COORDINATES,
    NATURAL,
    RANDOM,
    SOURCE,
    TOKENS,
    WRITTEN,
    Result,
)  # fmt: skip

STYLE = {  # colour and marker
    RANDOM: ("measured", "o"), SOURCE: ("constructed", "s"), WRITTEN: ("heuristic", "^"), NATURAL: ("predicted", "D"),
}  # fmt: skip


def counted_figure(result: Result) -> figures.Picture:
    """Different strings of each length, every prompt of a small, a middle and the largest set run."""
    bits, per_token = result.settings.bits, math.log2(result.vocabulary)
    shown = [result.enumerated[1, b] for b in (bits[0], bits[len(bits) // 2], bits[-1])]
    n = np.arange(1, TOKENS + 1)
    top = bits[-1] + 4

    def draw(figure):
        ax = figure.subplots()
        ax.set_ylim(0, top)
        fine = np.linspace(0, TOKENS, 200)
        figures.forbid(ax, fine, np.minimum(bits[-1], fine * per_token), top)
        ax.plot(fine, np.minimum(top, fine * per_token), color=COLOURS["neutral"], linestyle="--", linewidth=1.2)
        ax.text(1 / per_token + 0.25, 1, "all strings (dashed)", va="center", fontsize=9, color=COLOURS["neutral"])
        ax.text(TOKENS - 0.1, 0.98 * top, "forbidden", ha="right", va="top", fontsize=9, color=COLOURS["forbidden"])
        for found, marker in zip(shown, "^so", strict=True):
            ax.plot([found.bits / per_token, TOKENS], [found.bits] * 2, color=COLOURS["bound"], linewidth=1.4)
            ax.plot(n, np.log2(found.counts), marker, color=COLOURS["measured"], linestyle=":", linewidth=1)
            figures.label_line(ax, n, [found.bits] * len(n), f"{2**found.bits:,} prompts", colour="bound", above=True,
                               xytext=(0, 5))  # fmt: skip
        ax.set_xlabel("tokens n of a string")
        ax.yaxis.get_major_locator().set_params(integer=True)
        ax.set_ylabel("log₂ of the number of strings (bits)")

    largest = shown[-1]
    full = 2 ** (math.log2(largest.counts[-1]) - largest.bits)
    return figures.show(
        draw, name="counted", size=(7, 4),
        finding=f"A prompt writes one string: {2**largest.bits:,} prompts write {int(largest.counts[-1]):,} strings of"
        f" {TOKENS} tokens.",
        caption="Points: different strings of n tokens that the prompts of a set write, all of them run. Levels: the"
        " number of prompts. Dashed: the number of all strings. The forbidden region is that of the largest set:"
        f" it writes {100 * full:.0f} % as many strings as it has prompts.",
        alt="Bits of the number of different strings against their length, for three sets of prompts of one vector. The"
        " points rise more slowly than the dashed line of all strings and flatten at or below the level of their number"
        " of prompts; the region above the largest set's level is shaded as forbidden.",
    )  # fmt: skip


def half_figure(result: Result) -> figures.Picture:
    """Tokens at which half of all strings are unlocked, against the bits of the prompt set."""
    V, bits = result.vocabulary, np.array(result.settings.bits, float)
    one_bit = list(result.searched[RANDOM].values())
    sub = np.array([COORDINATES * f.m for f in one_bit], float)
    end = max(bits[-1], sub[-1])
    line = np.array([min(bits[0], sub[0]), end])
    bound = [bounds.critical_length(b, V) for b in line]
    exact = np.array([result.enumerated[1, b].half for b in result.settings.bits])
    found = np.array([f.half for f in one_bit])
    top = 1.25 * bound[-1]

    def draw(figure):
        ax = figure.subplots()
        ax.set_ylim(0, top)
        figures.forbid(ax, line, bound, top)
        ax.plot(line, bound, color=COLOURS["bound"], label="theorem")
        ax.plot(bits, exact, "o", color=COLOURS["constructed"], label="every prompt run")
        ax.plot(sub, found, "s", color=COLOURS["measured"], label="search, one bit a coordinate")
        ax.legend(loc="upper left")
        ax.set_xlabel("bits of the set of prompts, B")
        ax.set_ylabel("tokens at which half is unlocked")

    worst = (
        max([result.enumerated[1, b].ratio for b in result.settings.bits]),
        max(bounds.critical_length(b, V) / f for b, f in zip(sub, found, strict=True)),
    )
    return figures.show(
        draw, name="half",
        finding=f"With bits counted, theory and measurement differ by a factor of at most {max(worst):.2f}:"
        f" {worst[0]:.2f} where every prompt is run, {worst[1]:.2f} where one searches.",
        caption="Beyond the line fewer than half of all strings can be unlocked. Circles count all strings that prompts"
        " of one vector write; squares are searched for, on a sample of strings.",
        alt="Tokens at which half of all strings are unlocked against the bits of the prompt set. The theorem's"
        " straight line bounds a forbidden region; circles"
        " of the complete enumeration and squares of the search stand against it.",
    )  # fmt: skip


def crammed_figure(result: Result) -> figures.Picture:
    """Tokens crammed into prompts of floats, against their number of vectors."""
    ms = np.array(result.settings.lengths, float)
    top = 1.08 * max(f.interval[1] for by_m in result.crammed.values() for f in by_m.values())

    def draw(figure):
        ax = figure.subplots()
        ax.set_ylim(0, top)
        shifts = 0.04 * (np.arange(len(result.crammed)) - (len(result.crammed) - 1) / 2) * (ms[-1] - ms[0])
        for (kind, by_m), shift in zip(result.crammed.items(), 0.4 * shifts, strict=True):
            colour, marker = STYLE[kind]
            y = np.array([f.n50 for f in by_m.values()])
            low, high = np.transpose([f.interval for f in by_m.values()])
            ax.errorbar(ms + shift, y, [np.maximum(0, y - low), np.maximum(0, high - y)], fmt=marker,
                        color=COLOURS[colour], label=kind)  # fmt: skip
            ax.plot(ms, np.polyval(result.lines[kind], ms), color=COLOURS[colour], linewidth=1.2)
        figure.legend(loc="outside upper left", ncols=2 if figures.narrow(figure) else 4, fontsize=9)
        ax.set_xticks(ms)
        ax.set_xlabel("prompt vectors m (floats)")
        ax.set_ylabel("tokens crammed, n50")

    random, written = (result.crammed[kind][int(ms[-1])].n50 for kind in (RANDOM, WRITTEN))
    longer = "longer" if written > random else "shorter"
    return figures.show(
        draw, name="crammed",
        finding=f"A prompt of {int(ms[-1])} vectors holds {random:.0f} random tokens, and {longer} strings of what the"
        f" model itself might write: {written:.0f}.",
        caption="Bars: 95 % of resamples of the strings; the spread of the search is not in them. The lines are fitted"
        " to the points.",
        alt="Tokens crammed against the number of prompt vectors, for several kinds of strings, each with a straight"
        " line through its points.",
    )  # fmt: skip


def enumerated_table(result: Result) -> figures.Table:
    """Every set that was run completely."""
    header = ("bits B", "m", "half accessible at n =", "bound", "ratio", f"different strings of 2, 4, {TOKENS} tokens")
    return figures.Table(header, [
        (bits, m, f"{e.half:.2f}", f"{e.bound:.2f}", f"{e.ratio:.2f}",
         ", ".join(f"{e.counts[n - 1]:,}" for n in (2, 4, TOKENS)))
        for (m, bits), e in result.enumerated.items()
    ])  # fmt: skip


def crammed_table(result: Result) -> figures.Table:
    """n50 of every kind and prompt length."""
    header = ("strings", *(f"n50, m = {m}" for m in result.settings.lengths), "tokens per vector",
              "rise over larger / smaller m")  # fmt: skip
    rows = []
    for kind, by_m in result.crammed.items():
        cells = [f"{f.n50:.1f} [{f.interval[0]:.1f}, {f.interval[1]:.1f}]" for f in by_m.values()]
        bend = "–"
        if kind in result.bend:
            ratio, (low, high) = result.bend[kind]
            bend = f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        rows.append((kind, *cells, f"{result.lines[kind][0]:.2f}", bend))
    return figures.Table(header, rows)


def ratios_table(result: Result) -> figures.Table:
    """Bound over measurement, each for its own set of prompts."""
    header = ("allowed prompts", "bound", "ratio", "tokens found", "tokens, bound", "bits")
    return figures.Table(header, [
        (r.prompts if r.margin is None else f"{r.prompts}, 2ε = {r.margin:g}", r.theorem, f"{r.bound / r.found:.1f}",
         f"{r.found:.2f}", f"{r.bound:,.1f}", "–" if r.bits is None else f"{r.bits:,.0f}")
        for r in result.ratios
    ])  # fmt: skip
