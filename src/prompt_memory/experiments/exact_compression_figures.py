"""Figures and tables of chapter 5."""

import numpy as np

from prompt_memory import bounds
from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS, scientific
from prompt_memory.experiments.exact_compression import COUNTS, EVERY, LISTED, SHAPES, Result, Spiral
from prompt_memory.experiments.exact_compression_problems import on_circle


def spiral_figure(result: Result) -> figures.Picture:
    """The cloud, the few tokens that replace it, and the outputs that both give."""
    s = result.spiral

    def draw(figure):
        if figures.narrow(figure):
            ax, margin = figure.subplots(2, 1, height_ratios=[3.3, 1])
        else:
            ax, margin = figure.subplots(1, 2, width_ratios=[1.5, 1])
        margin.axis("off")
        ax.set_aspect("equal")
        ax.scatter(*s.cloud.T, s=3, color=COLOURS["neutral"], alpha=0.3, linewidth=0)
        for x, y in on_circle(LISTED):
            arrow = {"arrowstyle": "->", "color": COLOURS["heuristic"], "linewidth": 2}
            ax.annotate("", (2.15 * x, 2.15 * y), (1.75 * x, 1.75 * y), arrowprops=arrow)
        ax.scatter(*s.cloud[s.few.indices].T, s=1500 * s.few.weights, color=COLOURS["constructed"], alpha=0.75,
                   linewidth=1, edgecolor=COLOURS["page"])  # fmt: skip
        ax.scatter(*s.answers.T, marker="x", s=45, color=COLOURS["measured"], zorder=5, linewidth=2)
        notes = (("neutral", f"· a prompt of {len(s.cloud):,} tokens"),
                 ("constructed", f"● {len(s.few.indices)} of them, sized by weight"),
                 ("heuristic", f"→ directions of {len(LISTED)} queries"),
                 ("measured", "× their outputs, from both"))  # fmt: skip
        for row, (colour, text) in enumerate(notes):
            height = 0.85 - 0.28 * row if figures.narrow(figure) else 0.7 - 0.09 * row
            margin.text(0, height, text, transform=margin.transAxes, color=COLOURS[colour], fontsize=10, va="center")
        ax.set_xlim(-2.3, 2.3)
        ax.set_ylim(-2.3, 2.3)

    return figures.show(
        draw, size=(7, 4.8), panels=1.4, raster=True, name="spiral",
        finding=f"{len(s.few.indices)} weighted tokens do the work of {len(s.cloud):,}, for {len(LISTED)} queries.",
        caption="Keys and values are the points themselves, in the plane, so each query is pulled towards the tokens in"
        " its direction; its output is the mean of what it sees.",
        alt=f"A spiral cloud of {len(s.cloud)} grey points in the plane, the prompt. {len(s.few.indices)} of them are"
        f" drawn as discs sized by weight. {len(LISTED)} arrows mark the directions of the queries; crosses mark their"
        " outputs, which the discs and the cloud share.",
    )  # fmt: skip


def length_figure(result: Result) -> figures.Picture:
    """Tokens kept against prompt length, Gaussian prompts without own tokens."""
    long, settings = result.long, result.settings
    shapes, lengths = SHAPES[: settings.shapes], [*settings.lengths, settings.longest]

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log")
        ax.set_yscale("log")
        top = 2.2 * max(long.allowed)
        ax.set_ylim(2, top)
        fine = np.geomspace(lengths[0] / 1.3, lengths[-1], 200)

        def allowed(shape):
            return [bounds.caratheodory_count(*shape, tokens=round(k)) for k in fine]

        figures.forbid(ax, fine, allowed(shapes[-1]), top)
        for shape in shapes:
            here = [(case.m, k) for case, k in zip(long.cases, long.kept, strict=True)
                    if case.shape == shape and case.kind == "Gaussian" and not case.own]  # fmt: skip
            x, y = zip(*sorted(here), strict=True)
            n, H, d_v = shape
            ax.plot(fine, allowed(shape), color=COLOURS["bound"])
            ax.plot(x, y, "o", color=COLOURS["measured"])
            text = f"{n}, {H}, {d_v}" if figures.narrow(figure) else f"n={n}, H={H}, $d_v$={d_v}: {n * H * d_v + 1}"
            place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
            ax.annotate(text, (x[-1], y[-1]), color=COLOURS["bound"], **place)
        ax.set_xlim(lengths[0] / 1.3, lengths[-1] * (6 if figures.narrow(figure) else 10))
        ax.set_xticks(lengths)
        ax.minorticks_off()
        ax.text(0.02, 0.03, "● tokens kept   — bound", transform=ax.transAxes, color=COLOURS["neutral"], fontsize=9)
        ax.set_xlabel("prompt length m (tokens)")
        ax.set_ylabel("tokens kept")

    exactly = (long.kept == long.allowed).all()
    return figures.show(
        draw, size=(7, 4.4), name="tokens-kept",
        finding=f"However long the prompt, {'exactly' if exactly else 'at most'} $n H d_v + 1$ of its tokens do its"
        " work.",
        caption="Gaussian prompts; each line is labelled by $n$, $H$ and $d_v$. Prompts that are shorter than the bound"
        " are kept whole. The region above the largest bound is shaded.",
        alt="Tokens kept against prompt length, on logarithmic axes, for several numbers of queries, heads and value"
        " dimensions. Each line is flat at its bound from the smallest length that allows it on. The region above the"
        " bound of the largest shape is shaded.",
    )  # fmt: skip


def others_figure(result: Result) -> figures.Picture:
    """The error of the compressed spiral at every query of length one."""
    s = result.spiral
    listed = np.isin(EVERY, LISTED)

    def draw(figure):
        ax = figure.subplots()
        ax.set_yscale("log")
        ax.set_ylim(1e-17, 30)
        ax.plot(EVERY, np.maximum(s.off, 1e-17), color=COLOURS["measured"])
        ax.plot(LISTED, np.maximum(s.off[listed], 2e-17), "o", color=COLOURS["constructed"])
        ax.axhline(s.spread, color=COLOURS["neutral"], linestyle="--", linewidth=1)
        spread = "how much outputs differ" if figures.narrow(figure) else "how much the outputs of queries differ"
        ax.text(358, s.spread * 1.5, spread, color=COLOURS["neutral"], fontsize=9, ha="right", va="bottom")
        height, text = s.off[listed].max() * 3, "● listed" if figures.narrow(figure) else "● listed queries"
        ax.text(LISTED[1] + 8, height, text, color=COLOURS["constructed"], fontsize=9, va="bottom")
        ax.text(330, 1e-5, "other\nqueries", color=COLOURS["measured"], fontsize=9, ha="center", va="top")
        ax.set_xticks(range(0, 361, 60))
        ax.set_xlabel("direction of the query (degrees)")
        ax.set_ylabel("distance of the outputs")

    kept = s.off[listed].max() < 1e-12 and np.median(s.off[~listed]) > 1e-6 * s.spread
    return figures.show(
        draw, name="other-queries",
        finding="Listed queries see no difference; their neighbours do." if kept
        else "The difference that queries see is least at the listed ones.",
        caption="Distance between the outputs of the few tokens and of the spiral, for all queries of length one.",
        alt="Difference between the outputs of the compressed and of the long prompt against the direction of the"
        f" query, on a logarithmic axis: up to {s.off.max():.2g}, and rounding error at {len(LISTED)} narrow dips, the"
        " listed queries.",
    )  # fmt: skip


def served_sentence(s: Spiral) -> str:
    """What more and more listed queries do to all the others."""
    served = np.flatnonzero(s.worst < 1e-12)
    if not len(served):
        return f"At {COUNTS[-1]} listed queries some others are still off by {scientific(s.worst[-1], up=False)}."
    first = served[0]
    return (
        f"At {COUNTS[first]} listed queries and {s.kept[first]} tokens every query of length one is answered to"
        f" {scientific(s.worst[first], up=True)}. From there on never more than {s.kept[first:].max()} tokens are kept,"
        f" up to {COUNTS[-1]} queries, where the count allows {bounds.caratheodory_count(COUNTS[-1], 1, 2)}."
    )


def more_queries_figure(result: Result) -> figures.Picture:
    """Tokens kept, and the worst error over all queries, against the number of listed queries."""
    s = result.spiral

    def draw(figure):
        left, right = figures.panels(figure, 2)
        line = [2 * n + 1 for n in COUNTS]
        figures.forbid(left, COUNTS, line, 300)
        left.plot(COUNTS, line, color=COLOURS["bound"])
        left.plot(COUNTS, s.kept, "o-", color=COLOURS["measured"])
        left.set_ylim(0, 200)
        left.set_xlim(0, 135)
        left.text(6, 182, "forbidden", color=COLOURS["forbidden"], fontsize=9)
        left.text(90, 150, "2n + 1", color=COLOURS["bound"], fontsize=9, ha="left")
        left.text(130, s.kept[-1] - 8, "tokens kept", color=COLOURS["measured"], fontsize=9, ha="right", va="top")
        left.set_xlabel("listed queries n")
        left.set_ylabel("tokens")
        right.set_yscale("log")
        right.plot(COUNTS, s.worst, "o-", color=COLOURS["measured"])
        right.set_xlabel("listed queries n")
        right.set_ylabel("worst error over all queries")

    served = np.flatnonzero(s.worst < 1e-12)
    stops = len(served) and s.kept[served[0] :].max() <= 1.25 * s.kept[served[0]]
    return figures.show(
        draw, size=(7.2, 3.6), panels=2, name="more-queries",
        finding="Tokens kept stop growing when all queries are served." if stops
        else "The more queries are listed, the less is left of the error at all others.",
        caption="The spiral again, compressed for more and more evenly spaced queries. " + served_sentence(s),
        alt="Left: tokens kept against the number of listed queries; they follow the bound 2n plus 1, then stay flat"
        " while the bound goes on. Right: the worst error over all queries of length one falls steeply to rounding"
        " error at the same number of queries.",
    )  # fmt: skip


def cost_figure(result: Result) -> figures.Picture:
    """Seconds and peak memory of one compression against the prompt's length."""
    lengths, costs = result.lengths, result.costs
    shapes = list(costs)
    first, last = costs[shapes[0]], costs[shapes[-1]]

    def draw(figure):
        for column, ax in enumerate(figures.panels(figure, 2)):
            ax.set_xscale("log")
            ax.set_yscale("log")
            for shape, values in costs.items():
                ax.plot(lengths, values[:, column], "o-", color=COLOURS["measured"])
                # Times are far apart at the right end, memory at the left end.
                place = (
                    {"ha": "left", "xytext": (7, 0)} if column == 0 else {"where": 0, "ha": "right", "xytext": (-7, 0)}
                )
                text = f"N = {8 * shape[0] * shape[1]}"
                figures.label_line(ax, lengths, values[:, column], text, colour="measured", va="center", **place)
            ax.set_xlabel("prompt length m (tokens)")
            ax.set_ylabel(("seconds", "peak memory (MiB)")[column])
            ax.set_xticks(lengths)
            ax.set_xlim(lengths[0] / (12 if column else 1.6), lengths[-1] * (1.6 if column else 12))
            low, high = ax.get_ylim()
            if column == 0:
                slope = [first[-1, 0] / lengths[-1] / 6 * m for m in lengths]
                ax.plot(lengths, slope, ":", color=COLOURS["neutral"])
                place = {"ha": "left", "va": "center", "xytext": (7, 0)}
                figures.label_line(ax, lengths, slope, "slope one", colour="neutral", **place)
            ax.set_ylim(low / 3 if column == 0 else low / 2, high * 2.5)

    time_ratio, memory_ratio = last[-1] / last[-2]
    return figures.show(
        draw, size=(7, 3.6), panels=2, name="cost",
        finding=f"{lengths[-1]:,} instead of {lengths[-2]:,} tokens take {time_ratio:.1f} times the time and"
        f" {memory_ratio:.1f} times the memory.",
        caption=f"Eight queries; $N$ is the number of conditions, {8 * shapes[-1][0] * shapes[-1][1]} in the sentence"
        " above. Memory is what one compression takes beyond its input.",
        alt="Left: seconds against prompt length on logarithmic axes, with a dotted line of slope one. Right: peak"
        " memory, which grows until a block of tokens is full.",
    )  # fmt: skip


def networks_table(result: Result) -> figures.Table:
    """Tokens kept of networks' prompts and caches, and what their weights are good for."""
    header = (f"network, prompt of {result.settings.cached} tokens, 4 queries", "bound", "kept", "logits off by",
              "the same with equal weights")  # fmt: skip
    return figures.Table(header, [
        (r.name, r.allowed, r.kept, scientific(r.error, up=True), scientific(r.unweighted, up=False))
        for r in result.networks
    ])  # fmt: skip


def polygon_table(result: Result) -> figures.Table:
    """The two-layer output: equal weights, without one corner, and the bound."""
    header = ("corners m", "output, equal weights", "least output found without one corner", "lower bound")
    return figures.Table(header, [
        (r.m, scientific(r.equal, up=True), scientific(r.found, up=False), scientific(r.floor, up=False))
        for r in result.corners
    ])  # fmt: skip
