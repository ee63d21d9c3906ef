"""Figures and tables of chapter 8."""

import math

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from prompt_memory import bounds, intervals
from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments import degradation_limits
from prompt_memory.experiments.degradation import MARGINS, Model, Result
from prompt_memory.network import recall


def critical_figure(result: Result) -> figures.Picture:
    """Measured against forecast context at which recall falls to a half, one point a model."""
    judged, last = result.judged.plain, result.lengths[-1]
    found, foretold = np.minimum([m.critical for m in judged], last), np.array([m.expected for m in judged])
    caps = np.abs(np.minimum(result.interval, last) - found)
    least, most = found.min() / 1.6, found.max() * 1.6
    line = np.array([least, max(most, 1.3 * max(model.law for model in result.first))])

    def draw(figure):
        ax = figure.subplots()
        figures.agreement(ax, line)
        ax.errorbar(foretold, found, caps, fmt="none", color=COLOURS["measured"], linewidth=0.8)
        for first, face, text in ((True, "measured", "normal votes"), (False, "page", "the same, trained longer")):
            here = np.array([model.first == first for model in judged])
            if here.any():
                look = {"color": COLOURS["measured"], "mfc": COLOURS[face], "label": text}
                ax.plot(foretold[here], found[here], "o", **look)
        crosses = [model.law for model in result.first], [min(model.critical, last) for model in result.first]
        ax.plot(*crosses, "x", color=COLOURS["heuristic"], label="attention alone, no bias")
        ax.set_xlim(*line)
        ax.set_ylim(least, 2.6 * most)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_locator(NullLocator())
        ax.legend(loc="upper left")
        ax.set_xlabel("forecast critical context (facts)")
        ax.set_ylabel("measured (facts)")

    ratio, numbers = found / foretold, (result.numbers["ratio_low"], result.numbers["ratio_high"])
    right = ratio.min() >= 2 / 3 and ratio.max() <= 4 / 3
    what = "where the weights foretold it" if right else "near where the weights foretold it"
    return figures.show(
        draw, size=(7, 4.4), name="critical",
        finding=f"Recall falls to a half {what}, up to a factor between {numbers[0]} and {numbers[1]}.",
        caption="One point a model; its forecast was written down before the model was run. The band is the tolerance."
        " Crosses stand where a law that knows the attention alone puts the same models. Intervals at 95 % for all"
        " models together.",
        alt="Measured against forecast context length at which recall falls to a half, one point a model, with a band"
        " around the diagonal that is the tolerance, and crosses for the law of the attention alone.",
    )  # fmt: skip


def spread_of(result: Result, draws: Float[np.ndarray, "B L"], q: int) -> Float[np.ndarray, "2 L"]:
    """95 % bootstrap intervals over contexts of the retained bits at each length."""
    return np.quantile(result.bits(draws, q), [0.025, 0.975], axis=0)


def bits_panel(ax, result: Result, model: Model) -> None:
    """Retained bits of one model: plain recall, calibrated, and with margin 1, with the forecasts."""
    q, x = model.size.q, np.array(result.lengths)
    series = (
        ("plain", "measured", "o", model.curves[:, 0], model.draws[..., 0], model.predicted[:, 0]),
        ("margin 1", "measured", "s", model.curves[:, 1], model.draws[..., 1], model.predicted[:, 1]),
        ("calibrated", "constructed", "D", model.unbiased, model.unbiased_draws, model.calibrated),
    )
    top = 1.45 * max(spread_of(result, draws, q).max() for *_, draws, _ in series)
    fine = np.geomspace(x[0], x[-1], 200)
    figures.forbid(ax, fine, np.minimum(fine * math.log2(q), top), top)
    ax.text(0.03, 0.96, "forbidden", transform=ax.transAxes, va="top", fontsize=9, color=COLOURS["forbidden"])
    for text, colour, marker, recalled, draws, predicted in series:
        y, (low, high) = result.bits(recalled, q), spread_of(result, draws, q)
        look = {"color": COLOURS[colour], "mfc": COLOURS["page" if marker == "s" else colour], "label": text}
        ax.errorbar(
            x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt=marker, markersize=4, linewidth=1, **look
        )
        ax.plot(x, result.bits(predicted[: len(x)], q), ":", color=COLOURS["predicted"], linewidth=1.2)
    ax.set_ylim(-0.03 * top, top)
    ax.legend(loc="upper right")
    ax.set_title("Bits in all")
    ax.set_ylabel("retained bits")


def share_panel(ax, result: Result, model: Model) -> None:
    """Recall of one model with the smallest and the largest margin, and the ceilings of part 2."""
    x = np.array(result.lengths)
    figures.forbid(ax, x, model.ceiling[:, 0], 1.3)
    for column, marker in ((1, "s"), (3, "v")):
        bound = model.ceiling[:, column - 1]
        ax.plot(x, bound, color=COLOURS["bound"], linewidth=1.8 if column == 1 else 0.9)
        look = {"color": COLOURS["measured"], "mfc": COLOURS["page"], "label": f"margin {MARGINS[column]:.0f}"}
        ax.plot(x, model.curves[:, column], marker, markersize=4, **look)
        ax.plot(x, model.predicted[: len(x), column], ":", color=COLOURS["predicted"], linewidth=1.2)
    ax.axhline(1 / model.size.q, color=COLOURS["neutral"], linewidth=0.8)
    ax.set_ylim(-0.02, 1.3)
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.legend(loc="upper right", labelcolor=COLOURS["measured"])
    ax.set_title("Share recalled with a margin")
    ax.set_ylabel("fraction recalled")


def margins_figure(result: Result) -> figures.Picture:
    """Bits in all, and the share recalled with a margin, of one model."""
    model, x = result.shown, result.lengths

    def draw(figure):
        axes = figures.panels(figure, 2)
        bits_panel(axes[0], result, model)
        share_panel(axes[1], result, model)
        for ax in axes:
            ax.set_xscale("log", base=2)
            ax.set_xlim(x[0] / 1.3, x[-1] * 1.4)
            ax.set_xlabel("facts N in the context")

    n = result.numbers
    return figures.show(
        draw, size=(7.6, 4.2), panels=2, name="margins",
        finding=f"Plain recall retains at most {n['peak']} bits, at {n['peak_at']} facts, and {n['last_bits']} at"
        f" {n['longest']}; with a margin less is left.",
        caption="One model; forecasts are dotted, intervals at 95 %. Left: plain recall, the same with the mean vote"
        " subtracted, and recall with margin 1; no memory holds more than N log₂ q bits. Right: thick and thin"
        " lines are the ceilings of part 2 at margins 1 and 4, averaged over held-out queries; the level line is"
        " guessing.",
        alt="Left: retained bits of one model against the number of facts, for plain recall, calibrated recall and"
        " recall with margin 1, with forecasts. Right: its recall with margins 1 and 4 against the number of facts,"
        " below the ceilings of part 2, which drop to chance.",
    )  # fmt: skip


def models_table(result: Result) -> figures.Table:
    """Every kind of model: ranges, gaps, forecast and measured lengths, most bits."""
    last, rows = result.lengths[-1], []

    def facts(N):
        return f"{N:,.0f}" if last >= N else f"> {last:,}"

    for model in (model for model in result.models if model.size.copy == 0):
        h, q, trained, _ = model.size
        rows.append((
            f"{h}, {q}, {trained}{'' if model.first else ', longer'}", f"{recall.logit_range(model.reader):.1f}",
            f"{model.gap.mean:.2f}", f"{model.gap.square:.2f}", facts(model.expected), facts(model.critical),
            facts(model.critical_unbiased), *(f"{result.bits(c, q).max():.0f}" for c in model.curves.T[:2]),
            figures.scientific(model.worst, up=True),
        ))  # fmt: skip
    header = ("head, q, trained on", "Δ", "Δ₁", "Δ₂", "N* forecast", "N*", "calibrated", "most bits", "margin 1",
              "part 2, worst case")  # fmt: skip
    return figures.Table(header, rows)


def depth_table(result: Result) -> figures.Table:
    """How far one token moves the logits of networks of one to three layers, and E(N)."""
    lengths, swaps = degradation_limits.EXCHANGE_LENGTHS, result.limits.swaps
    header = ("network", f"moved, N = {lengths[0]}", *map(str, lengths[1:]), *(f"E({N})" for N in lengths))
    return figures.Table(header, [
        (name, *(f"{moved:.2g}" for moved, _ in row), *(f"{bound:.2g}" for _, bound in row))
        for name, row in swaps.items()
    ])  # fmt: skip


def enumerated_table(result: Result) -> figures.Table:
    """Cells of all contexts of each enumerated network, and what its best contexts retain."""
    counts, rows = degradation_limits.covered(int(result.numbers["enum_tokens"])), []
    for number, row in enumerate(result.limits.enumerated, 1):
        top = bounds.recall_ceiling(row.C[64], 64, 2)
        kept = (f"{n * bounds.rate(1 - row.best[n], 2):.2f}" for n in (8, 16, 64))
        rows.append((number, *(f"{c:.2f}" for c in row.grown), f"{row.best[64]:.3f}", f"{top:.3f}", *kept))
    header = ("network", "cells (bits), m ≤ 1", *(f"m ≤ {m}" for m in counts[1:]), "recall of 64", "ceiling",
              "bits of 8", "of 16", "of 64")  # fmt: skip
    return figures.Table(header, rows)


def kept_bits(found: dict[int, Float[np.ndarray, " S"]]) -> Float[np.ndarray, "3 K"]:
    """Bits retained at each number of facts, from the mean recall, and 95 % bootstrap intervals."""
    rows = []
    for n, recalled in found.items():

        def bits(values, n=n):
            return n * bounds.rate(1 - values.mean(), 2)

        rows.append((bits(recalled), *intervals.bootstrap(recalled, bits, np.random.default_rng(0), resamples=300)))
    return np.transpose(rows)


def encoder_figure(result: Result) -> figures.Picture:
    """The bound for any encoder, tuned contexts and facts one a token, for a model with keys on a circle."""
    each = max(result.limits.circle, key=lambda circle: circle.C)
    series = (
        (each.tuned, "D", "constructed", "tuned contexts of 64 tokens"),
        (each.facts, "o", "measured", "one fact per token"),
    )

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_yscale("symlog", linthresh=1)
        x, top = np.array(list(each.facts)), 30 * each.C
        fine = np.geomspace(x[0], x[-1], 400)
        bound = np.minimum(fine, each.C)
        figures.forbid(ax, fine, bound, top, text="forbidden")
        ax.plot(fine, bound, color=COLOURS["bound"])
        figures.label_line(ax, fine, bound, f"C = {each.C:,.0f} bits", colour="bound", xytext=(0, -5), va="top")
        for found, marker, colour, text in series:
            y, low, high = kept_bits(found)
            caps = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
            ax.errorbar(list(found), y, caps, fmt=marker, color=COLOURS[colour], label=text)
        ax.set_ylim(-0.2, top)
        ax.legend(loc="upper left")
        ax.set_xlabel("facts N")
        ax.set_ylabel("bits retained with the margin")

    most = max(kept_bits(found)[0].max() for found, *_ in series)
    return figures.show(
        draw, name="encoder",
        finding=f"The bound for any encoder is flat at {each.C:,.0f} bits; the most that was found is {most:.1f}.",
        caption="A model with keys on a circle, margin one half; no context of any length passes the line. Tokens may"
        " be any pair of a key and a code in unit balls. Intervals at 95 % of the mean over contexts.",
        alt="Bits retained with a margin against the number of facts, for a model with keys on a circle. The bound"
        " rises and is then flat. Diamonds are tuned contexts, dots facts in tokens of their own; both stay far below.",
    )  # fmt: skip


def moments_table(result: Result) -> figures.Table:
    """C from moments for the trained models, one of each head size."""
    rows, heads = [], sorted({model.size.head for model in result.first})
    for model in (next(model for model in result.first if model.size.head == head) for head in heads):
        (B, S), (h, q, *_) = recall.swing(model.reader), model.size
        try:
            C = bounds.moment_bits(k=None, d_k=h, d_v=q - 1, heads=1, B=B, scale=S, lipschitz=1.0, eps=0.25)
            text = figures.scientific(C, up=True)
        except ValueError:
            text = "beyond the tables of ρ_k"
        rows.append((h, q, f"{B:.1f}", f"{S:.0f}", text, f"{result.bits(model.curves[:, 1], q).max():.0f}"))
    return figures.Table(("head", "q", "B", "S", "C (bits, margin 1)", "most bits measured"), rows)


def scaled_figure(result: Result) -> figures.Picture:
    """Retained bits with logits as trained, and with logits that grow with ln N, for one model."""
    model, x = result.shown, np.array(result.lengths)
    q = model.size.q
    series = (
        (model.with_log, 0, "constructed", "times ln N, plain"),
        (model.with_log, 1, "constructed", "times ln N, margin 1"),
        (model.curves, 0, "measured", "as trained, plain"),
        (model.curves, 1, "measured", "as trained, margin 1"),
    )

    def draw(figure):
        ax = figure.subplots()
        top = 40 * x[-1] * math.log2(q)
        ax.set_xscale("log", base=2)
        ax.set_yscale("symlog", linthresh=10)
        figures.forbid(ax, x, x * math.log2(q), top, text="forbidden")
        ax.plot(x, x * math.log2(q), color=COLOURS["bound"], linewidth=1.2)
        for curve, column, colour, text in series:
            look = {"color": COLOURS[colour], "mfc": COLOURS["page" if column else colour], "label": text}
            ax.plot(x, result.bits(curve[:, column], q), "os"[column] + "-", linewidth=1, markersize=4, **look)
        ax.set_ylim(-1, top)
        ax.legend(loc="upper left")
        ax.set_xlabel("facts N in the context")
        ax.set_ylabel("retained bits")

    ends = [result.bits(curve[:, column], q)[-1] for curve, column, *_ in series]
    return figures.show(
        draw, name="scaled",
        finding=f"At {x[-1]:,} facts this model retains {ends[0]:,.0f} bits if its logits grow with ln N, and"
        f" {ends[2]:,.0f} as trained.",
        caption=f"With margin 1: {ends[1]:,.0f} and {ends[3]:,.0f} bits. The model was not trained for it. The bound is"
        " perfect recall, N log₂ q bits.",
        alt="Retained bits against the number of facts for one model, with logits as trained and with logits multiplied"
        " by the logarithm of the context's length, plain and with margin 1, below the line of perfect recall.",
    )  # fmt: skip
