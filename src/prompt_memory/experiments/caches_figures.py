"""Figures and tables of chapter 6b."""

import numpy as np

from prompt_memory.book import figures, verdicts
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments.caches import CHAIN, PLACES, TOKENS, Result


def chain_figure(result: Result) -> figures.Picture:
    """What a query sees of caches made to attain part 1, and the bound, against depth, for each degree at B = 1."""
    depths, degrees = sorted({depth for *_, depth in CHAIN}), sorted({k for k, *_ in CHAIN})
    chosen = np.array([B == 1.0 for _, B, _ in CHAIN])
    measured, bound = np.moveaxis(result.attained[chosen].reshape(len(degrees), len(depths), 2), 2, 0)
    ratio = measured / bound

    def draw(figure):
        ax = figure.subplots()
        ax.set(yscale="log", xlabel="layers", ylabel="half spread", xlim=(0.8, depths[-1] + 0.75))
        ax.set_xticks(depths)
        for k, seen, allowed in zip(degrees, measured, bound, strict=True):
            ax.plot(depths, allowed, color=COLOURS["bound"], label="bound" if not k else "_")
            ax.plot(depths, seen, "o", color=COLOURS["measured"], label="found" if not k else "_")
            ax.annotate(f"k = {k}", (depths[-1], allowed[-1]), xytext=(8, 0), textcoords="offset points", va="center",
                        fontsize=9, color=COLOURS["text"])  # fmt: skip
        figures.legend_below(figure)

    least = np.floor(1000 * ratio[3:].min()) / 10
    return figures.show(
        draw, name="chain", size=(7, 3.6),
        finding=f"Each layer can double what a query sees, and here it does: at least {least:.1f} % of the bound is"
        " reached for $k \\ge 3$, at every depth.",
        caption="Two caches whose moments up to degree $k$ agree, $B = 1$; each later layer may multiply by two."
        " Where a difference is no longer small (top) the later layers saturate.",
        alt="Half spread against the number of layers on a logarithmic axis, one rising line for each degree from 0 to"
        " 6. Dots of what was found lie on the lines, and below them for the two lowest degrees.",
    )  # fmt: skip


def compression_figure(result: Result) -> figures.Picture:
    """Worst half spread found, drawn positions and two bounds against the positions kept in each layer."""
    found, m = result.compressions, result.settings.tokens
    low = min(f.worst[:, 0].min() for f in found.values()) / 10
    high = 10 * max(f.from_weights.max() for f in found.values())

    def draw(figure):
        for ax, (name, f) in zip(figures.panels(figure, 2, sharey=True), found.items(), strict=True):
            kept = f.kept[:, 0]
            ax.set(xscale="log", yscale="log", ylim=(low, high), title=f"{name} network")
            ax.set_xlabel("positions kept in each layer")
            if ax.get_subplotspec().is_first_col():
                ax.set_ylabel("half spread")
            ax.axhline(f.most, color=COLOURS["neutral"], linewidth=1, label="all that logits can differ by")
            ax.plot(kept, f.from_weights, "--", color=COLOURS["bound"], label="bound, from weights alone")
            ax.plot(kept, f.bound, color=COLOURS["bound"], label="bound, at the logits that occur")
            ax.plot(kept, f.drawn, "x", color=COLOURS["heuristic"], label="as many positions, drawn")
            ax.plot(kept, f.worst[:, 0], "o", color=COLOURS["measured"], label="equal moments")
            ax.set_xticks(kept, [str(each) for each in kept])
            ax.minorticks_off()
        figures.legend_below(figure, figure.axes[0].get_legend_handles_labels()[0])

    better = all((f.worst[:, 0] < f.drawn).all() for f in found.values())
    return figures.show(
        draw, name="compressed-caches", size=(7, 4.2), panels=2,
        finding=f"A few positions in each layer stand for {m:,} tokens of a causal network with rotary positions"
        + ("; as many drawn at random do not." if better else ", though not always better than drawn ones."),
        caption="Worst query found, against positions, degrees $k$ from 0 on. A bound above the grey line says"
        " nothing.",
        alt="Two panels, half spread against positions kept on logarithmic axes. Dots of compressed caches fall steeply"
        " with the degree; crosses of drawn positions stay flat. The two bounds fall in parallel far above the dots;"
        " in the gentle network they pass below the grey line, in the ordinary one they stay above it.",
    )  # fmt: skip


def depth_figure(result: Result) -> figures.Picture:
    """Bits that three theorems allow against depth."""
    rows = result.compared
    depths = [row.depth for row in rows]
    series = {
        "Theorem 7, without mask and positions": ([10.0**row.mean_field_log10 for row in rows], "neutral", "s--"),
        f"Theorem 2 at {TOKENS:,} tokens": ([row.linear for row in rows], "predicted", "^--"),
        "Theorem 6b, any length": ([row.caches for row in rows], "bound", "o-"),
    }

    def draw(figure):
        ax = figure.subplots()
        ax.set(yscale="log", xlabel="layers", ylabel="bits")
        ax.set_xticks(depths)
        for label, (bits, colour, style) in series.items():
            ax.plot(depths, bits, style, color=COLOURS[colour], label=label)
        figures.legend_below(figure)

    below = all(row.caches < row.linear for row in rows)
    return figures.show(
        draw, name="depth", size=(7, 3.8),
        finding="Followed along the query, the bits of any prompt grow by a factor with each layer"
        + (f", and stay below the linear bound of {TOKENS:,} tokens." if below else "."),
        caption="Random networks with RMSNorm, two heads of dimension 2, width 4, $\\varepsilon$ = 1/2; Theorem 7 for"
        " the same weights without mask and positions.",
        alt="Bits against the number of layers on a logarithmic axis. Theorem 7 rises steeply over many orders of"
        " magnitude, Theorem 2 lies in the thousands and rises slowly, Theorem 6b rises slowly too.",
    )  # fmt: skip


def positions_table(result: Result) -> figures.Table:
    """Positions kept and the worst difference in the ordinary network, for both ways of part 2."""
    f = result.compressions["ordinary"]
    header = ("k", "kept in each layer", "worst half spread", "the same in all layers", "worst half spread")
    return figures.Table(header, [
        (k, kept[0], figures.scientific(worst[0], up=True), kept[1], figures.scientific(worst[1], up=True))
        for k, kept, worst in zip(result.settings.degrees, f.kept, f.worst, strict=True)
    ])  # fmt: skip


def circles_table(result: Result) -> figures.Table:
    """Labels memorised in one and more layers, and the bits allowed in the deepest."""
    depths = sorted({depth for *_, depth in PLACES})
    rows = result.circles.reshape(-1, len(depths), 2)
    header = ("B", "ε", *(f"{depth} layer{'s' if depth > 1 else ''}" for depth in depths), "allowed in the last")
    return figures.Table(header, [
        (f"{B:g}", verdicts.readable(f"{eps:g}"), *(f"{labels:.0f}" for labels, _ in row), f"{row[-1, 1]:,.0f}")
        for (B, eps, _), row in zip(PLACES[:: len(depths)], rows, strict=True)
    ])  # fmt: skip


def time_table(result: Result) -> figures.Table:
    """Seconds and memory of one compression; of this machine, and no claim."""
    header = ("rows of the cache", "kept in each layer", "MiB of the cache", "seconds", "MiB besides")
    return figures.Table(header, [
        (f"{rows:,}", kept, f"{size:.1f}", f"{seconds:.2f}", f"{memory:.1f}")
        for rows, kept, size, seconds, memory in result.timed
    ])  # fmt: skip
