"""Figures and tables of chapter 6."""

import numpy as np

from prompt_memory.book import figures, verdicts
from prompt_memory.book.figures import COLOURS, scientific
from prompt_memory.experiments.moments import GRID, PLACES, SHAPES, Result, shape_bits


def remainder_figure(result: Result) -> figures.Picture:
    """ρ_k against k for several B, with twice the Bessel function."""
    r, k, B = result.remainders, *np.transpose(GRID)

    def draw(figure):
        ax = figure.subplots()
        ax.set(yscale="log", ylim=(1e-16, 3), xlim=(-0.6, 18.5), xlabel="degree k", ylabel="remainder ρₖ")
        for size in np.unique(B):
            here = size == B
            falls = here & (k + 1 >= 2 * B)
            ax.plot(k[here], r.rho[here], "o", color=COLOURS["measured"])
            ax.plot(k[falls], r.bessel[falls], ":", color=COLOURS["bound"])
            last = np.flatnonzero(here & (r.rho > 1e-16))[-1]
            place = {"ha": "left", "xytext": (6, 0)} if k[last] == k.max() else {"ha": "right", "xytext": (-6, -2)}
            place |= {"textcoords": "offset points", "va": "center", "fontsize": 9}
            text = f"{size:g}" if figures.narrow(figure) and k[last] < k.max() else f"B = {size:g}"
            ax.annotate(text, (k[last], r.rho[last]), color=COLOURS["measured"], **place)
        ax.set_xticks(range(0, 17, 4))
        ax.text(0.02, 0.03, "● ρₖ   ··· 2Jₖ₊₁(B)", transform=ax.transAxes, color=COLOURS["neutral"], fontsize=9)

    return figures.show(
        draw, name="remainder", size=(7, 3.6),
        finding="The error of the best polynomial falls faster than exponentially in its degree.",
        caption="$\\rho_k$ for logits in $[-B, B]$; dotted, where $k + 1 \\ge 2B$, the limiting form of part 1.",
        alt="The remainder against the degree on a logarithmic axis for several ranges of logits. It is near one until"
        " the degree passes the range of the logits, then falls ever faster along a dotted curve.",
    )  # fmt: skip


def compression_figure(result: Result) -> figures.Picture:
    """Worst difference found and allowed, against the tokens kept."""
    r, degrees, m = result.compressions, result.settings.degrees, result.settings.tokens
    count = min(4, len(r.heads))

    def draw(figure):
        if figures.narrow(figure) or count < 4:
            axes = figures.panels(figure, count, sharey=True)
        else:
            axes = figure.subplots(2, 2, sharey=True).ravel()
        for i, ax in enumerate(axes):
            ax.set(xscale="log", yscale="log", xlim=(r.counts[i, 0] / 1.25, r.counts[i, -1] * 1.25))
            ax.set_ylim(r.worst[:count].min() / 5, 60)
            ax.plot(r.counts[i], r.allowed[i], color=COLOURS["bound"], label="bound")
            figures.forbid(ax, r.counts[i], r.allowed[i], 60, text="forbidden")
            ax.plot(r.kept[i], r.worst[i], "o", color=COLOURS["measured"], label="found")
            figures.label_line(ax, r.counts[i], r.allowed[i], "bound", colour="bound", where=0)
            ax.set_title(r.names[i])
            ax.minorticks_off()
            ticks = r.counts[i] if len(degrees) < 5 else r.counts[i, [0, 1, 3, 5, 7]]
            ax.set_xticks(ticks, [str(tick) for tick in ticks])
            ax.text(0.03, 0.05, "● worst query found", transform=ax.transAxes, color=COLOURS["measured"], fontsize=9)
            if not i % 2 or figures.narrow(figure):
                ax.set_ylabel("difference of outputs")
            if i >= count - 2:
                ax.set_xlabel("tokens kept")

    held = (r.worst <= r.allowed + 1e-12).all()
    return figures.show(
        draw, size=(7, 2.9 + 2.3 * (count > 3)), panels=count, name="compression",
        finding=f"A few weighted tokens replace {m:,}" + (": no query sees a difference above the bound." if held
                                                          else ", but some query sees more than the bound."),
        caption="Each point is one degree; the line is $2S\\rho_k$.",
        alt="For several heads, the worst difference between a long prompt and its compression, against the number of"
        " tokens kept, on logarithmic axes. All points lie below the line of the bound, and fall as fast as it.",
    )  # fmt: skip


def packing_figure(result: Result) -> figures.Picture:
    """Bits against prompt length: Theorem 2, Theorem 6, and what was found."""
    p = result.packings
    lengths = p.lengths

    def draw(figure):
        for ax, name in zip(figures.panels(figure, 2, sharey=True), p.found, strict=True):
            fine = np.geomspace(1, lengths[-1], 200)
            linear = fine * p.linear[name][0]
            best = np.minimum(linear, p.flat[name])
            ax.set(xscale="log", yscale="log", xlim=(0.85, lengths[-1] * 1.2), ylim=(1, 1500), title=name)
            ax.plot(fine, linear, color=COLOURS["bound"], linewidth=1, linestyle="--")
            ax.plot(fine, best, color=COLOURS["bound"])
            figures.forbid(ax, fine, best, 1500)
            ax.text(1.0, 700, "forbidden", color=COLOURS["forbidden"], fontsize=9, va="center")
            place = {"color": COLOURS["bound"], "fontsize": 9, "ha": "right"}
            ax.text(lengths[-1], p.flat[name] * 0.88, "Theorem 6", va="top", **place)
            where = lengths[-1] ** 0.62
            ax.text(where * 0.9, where * p.linear[name][0] * 1.25, "Theorem 2", **place)
            ax.plot(lengths, p.found[name], "o-", color=COLOURS["measured"], linewidth=1)
            place["color"] = COLOURS["measured"]
            ax.text(lengths[-1], p.found[name][-1] * 0.8, "found", va="top", **place)
            ax.set_xticks(lengths[::2], [str(length) for length in lengths[::2]])
            ax.minorticks_off()
            ax.set_xlabel("prompt tokens m")
            if ax.get_subplotspec().is_first_col():
                ax.set_ylabel("bits")

    return figures.show(
        draw, size=(7, 3.6), panels=2, name="packing",
        finding="The bound on memory stops growing with the prompt.",
        caption="What was found is a lower bound, from random prompts of at most four different tokens: it lies so far"
        " below that it tests the forecast that growth stops, not the height of the line.",
        alt="Bits against prompt length on logarithmic axes for two heads. The bound of Theorem 2 rises linearly until"
        " it meets the horizontal bound of Theorem 6; the bits found lie below both.",
    )  # fmt: skip


def compression_table(result: Result) -> figures.Table:
    """Each head at the highest degree."""
    r, k = result.compressions, result.settings.degrees[-1]
    return figures.Table((f"head, at k = {k}", "tokens kept", "worst difference", "bound"), [
        (name, r.kept[i, -1], scientific(r.worst[i, -1], up=True), scientific(r.allowed[i, -1], up=True))
        for i, name in enumerate(r.names)
    ])  # fmt: skip


def rotary_table(result: Result) -> figures.Table:
    """Moments of turned keys, and the control that does not see positions."""
    header = ("k", "tokens kept", "allowed", "worst difference", "bound", "blind to positions: tokens",
              "worst difference")  # fmt: skip
    return figures.Table(header, [
        (r.k, r.kept, r.count, scientific(r.worst, up=True), scientific(r.limit, up=True), r.blind,
         scientific(r.blind_worst, up=False))
        for r in result.rotary
    ])  # fmt: skip


def time_table(result: Result) -> figures.Table:
    """Seconds of one compression; of this machine, and no claim."""
    return figures.Table(("width", "k", "tokens", "kept", "seconds"), [
        (r.d, r.k, f"{r.tokens:,}", r.kept, f"{r.seconds:.2f}") for r in result.timed
    ])  # fmt: skip


def made_table(result: Result) -> figures.Table:
    """Bits of the prompts made for part 4 against its bound."""
    r = result.made
    header = ("B", "ε", "volume: bits", "Theorem 6", "share", "circle: bits", "Theorem 6", "share")
    return figures.Table(header, [
        (f"{B:g}", verdicts.readable(f"{eps:g}"), f"{v:.1f}", f"{i:.0f}", f"{100 * v / i:.0f} %", M, f"{c:.0f}",
         f"{100 * M / c:.0f} %")
        for (B, eps), v, i, M, c in zip(PLACES, r.volume, r.volume_bound, r.circle, r.circle_bound, strict=True)
    ])  # fmt: skip


def shape_table() -> figures.Table:
    """Where the bound of part 4 says something, for layers of growing size."""

    def short(value):
        return f"{np.ceil(value):,.0f}" if value < 1e4 else scientific(value, up=True)

    rows = []
    for d_k, d_v, heads, B, eps in SHAPES:
        bits, slope, coordinate = shape_bits(d_k, d_v, heads, B, eps)
        size = f"{bits:.1f}" if bits < 1000 else short(bits)
        rows.append((d_k, heads, f"{B:g}", f"{eps:g}", size, short(slope), short(coordinate)))
    header = ("dₖ = dᵥ", "heads", "B", "ε", "bits", "below Theorem 2 from m", "below 16 bits a coordinate from m")
    return figures.Table(header, rows)
