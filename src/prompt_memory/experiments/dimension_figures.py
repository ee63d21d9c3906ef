"""Figures and the table of chapter 3, from what `dimension.run` returns."""

import numpy as np

from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments.dimension import SOLVED_BEYOND, Result, certified


def families_table(result: Result) -> figures.Table:
    """Ranks and counts of the listed architectures, family by family."""
    header = ("family", "cases", "exceptions", "ranks", "below the trained numbers", "count proved from above",
              "smallest singular value used")  # fmt: skip
    rows = []
    for name, found in result.families.items():
        ranks = [each.rank for each in found]
        rows.append((
            name, len(found), sum(each.rank != each.count for each in found), f"{min(ranks)} to {max(ranks)}",
            sum(each.count < each.trained for each in found), sum(each.count == each.ceiling for each in found),
            figures.scientific(min(each.smallest for each in found), up=False),
        ))  # fmt: skip
    return figures.Table(header, rows)


def ranks_figure(result: Result) -> figures.Picture:
    """Certified rank against the numbers trained, for every architecture."""
    every = certified(result)
    wrong = [each for each in every if each.rank != each.count]
    less = sum(each.rank < each.trained for each in every)
    proved = [each for each in every if each.count == each.ceiling and each not in wrong]
    refined = [each for each in every if each.count < each.ceiling and each not in wrong]

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ends = np.array([1, 1.2 * max(each.trained for each in every)])
        ax.set_xlim(2, ends[1])
        ax.set_ylim(1, ends[1])
        ax.plot(ends, ends, color=COLOURS["bound"], linewidth=1.2)
        figures.forbid(ax, ends, ends, ends[1])
        ax.text(0.03, 0.95, "more than is trained", transform=ax.transAxes, va="top", fontsize=9,
                color=COLOURS["forbidden"])  # fmt: skip
        blue = COLOURS["measured"]
        for cases, face, label in ((proved, blue, "count proved by part 3"),
                                   (refined, COLOURS["page"], "count by a refinement")):  # fmt: skip
            points = np.array([(each.trained, each.rank) for each in cases]).reshape(-1, 2)
            ax.plot(*points.T, "o", color=blue, mfc=face, markersize=4, label=label)
        if wrong:
            points = [(each.trained, each.rank) for each in wrong]
            ax.plot(*np.transpose(points), "x", color=COLOURS["bound"], markersize=8, label="another rank")
        ax.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
        ax.set_xlabel("numbers trained")
        ax.set_ylabel("certified rank")

    agree = f"all {len(every)}" if not wrong else f"{len(every) - len(wrong)} of {len(every)}"
    finding = f"The rank is the count in {agree} architectures; in {less} it is less than the numbers trained."
    return figures.show(
        draw, name="ranks", finding=finding,
        caption="Each point is an architecture, listed or drawn at random; points may coincide. The count $D_{\\mathrm"
        "{eff}}$ comes from the architecture alone, the rank is certified, rounding included.",
        alt="Certified rank against the numbers trained, for every architecture, on logarithmic axes. No point lies"
        " above the line on which all trained numbers are visible; many lie below it.",
    )  # fmt: skip


def reach(result: Result) -> float:
    """The largest n/D_eff up to which every table of every network is solved; 0 if none is."""
    reached = []
    for case in result.cliffs.values():
        solved = np.cumprod(case.solved == 1).astype(bool)
        reached.append(max([0.0, *(case.sizes[solved] / case.dimension)]))
    return min(reached)


def cliff_figure(result: Result) -> figures.Picture:
    """Best error of every planted table against n/D_eff, a panel for each network."""
    lowest = 1e-34

    def draw(figure):
        shape = (4, 1) if figures.narrow(figure) else (2, 2)
        axes = figure.subplots(*shape, sharex=True, sharey=True).ravel()
        for ax, (name, case) in zip(axes, result.cliffs.items(), strict=True):
            ax.set_yscale("log")
            ax.set_ylim(lowest, 1)
            ax.set_xlim(0.15, 1.6)
            figures.forbid(ax, [1, 1.6], lowest, SOLVED_BEYOND)
            ax.axvline(1, color=COLOURS["bound"], linewidth=1.2)
            x = np.repeat(case.sizes / case.dimension, case.errors.shape[1])
            ax.plot(x, np.maximum(case.errors.ravel(), 1e-33), "o", color=COLOURS["measured"], alpha=0.5, markersize=4)
            ax.set_title(f"{name}: {case.dimension} of {case.config.d * case.m}")
            ax.set_yticks([1, 1e-8, 1e-16, 1e-24, 1e-32])
        axes[0].text(0.98, 0.06, "forbidden", transform=axes[0].transAxes, ha="right", fontsize=9,
                     color=COLOURS["forbidden"])  # fmt: skip
        figure.supxlabel(r"numbers asked for, over $D_\mathrm{eff}$", fontsize=10)
        figure.supylabel("best mean squared error of a table", fontsize=10)

    share = 100 * reach(result)
    above = min(case.errors[case.sizes > case.dimension].min() for case in result.cliffs.values())
    visible = "$D_{\\mathrm{eff}}$"
    finding = f"Every table is fitted up to {share:.0f} % of {visible}"
    finding = finding if share else f"Some tables are not fitted, even well below {visible}"
    finding += ", and none beyond it." if above > SOLVED_BEYOND else ", but one beyond it, too."
    return figures.show(
        draw, size=(7, 4.8), panels=3, name="cliff", finding=finding,
        caption="A point is the best fit of one planted table, of all starts; the titles say how many of the trained"
        " numbers are visible. Errors left of the line are either rounding or a failure of the search; right of it no"
        " start, not even the planted prompt, comes near.",
        alt="Best mean squared error of planted tables against the number of targets over the effective dimension, for"
        f" four networks. Beyond one no error is below {figures.scientific(above, up=False)}.",
    )  # fmt: skip


def density_figure(result: Result) -> figures.Picture:
    """Behaviours of sampled prompts against queries, with the slope of the visible coordinates."""
    found = result.densities
    off = max(abs(each.exponent - each.visible) for each in found.values())
    nearer = all(
        abs(each.exponent - each.visible) < abs(each.exponent - each.config.d * each.m) for each in found.values()
    )

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        for (name, each), marker in zip(found.items(), "osDv", strict=True):
            x, y = each.sizes[each.shown], each.mean[each.shown]
            face = COLOURS["measured"] if name.startswith("RMS") else COLOURS["page"]
            ax.plot(each.sizes, each.mean, marker, color=COLOURS["measured"], mfc=face, alpha=0.35)
            label = f"{name}: {each.visible} of {each.config.d * each.m} visible"
            ax.plot(x, y, marker, color=COLOURS["measured"], mfc=face, label=label)
            middle = len(x) // 2
            line = y[middle] * (each.sizes / x[middle]) ** each.visible
            ax.plot(each.sizes, line, ":", color=COLOURS["predicted"], linewidth=1.2)
        top = max(each.mean.max() for each in found.values())
        ax.set_ylim(2, (2 if not figures.narrow(figure) else 64) * top)
        ax.legend(loc="upper left")
        ax.set_xlabel("number of queries n")
        ax.set_ylabel("behaviours found")

    finding = "Without a margin behaviours grow as a power of $n$"
    finding += ", nearer to the visible than to the trained numbers" if nearer else ""
    return figures.show(
        draw, name="density", finding=finding + f": the exponents miss the visible ones by at most {off:.2f}.",
        caption="Dotted: the slope of the visible coordinates. Pale points are left out of the fit: there the sample of"
        " prompts is too small for the number of behaviours.",
        alt="Behaviours found among sampled real prompts against the number of queries, on logarithmic axes, for four"
        " networks with two to six trained and one to two visible numbers. The points rise like straight lines with"
        " about the slope of the visible numbers.",
    )  # fmt: skip
