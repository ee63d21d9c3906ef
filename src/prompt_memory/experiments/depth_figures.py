"""Figures and tables of chapter 8b."""

import math

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments.depth import LAWS, MARGINS, Model, Result, bits

LAYERS = ("one layer", "two layers", "three layers")


def recall_figure(result: Result) -> figures.Picture:
    """Recall against the number of facts, with its forecasts; one panel a depth."""
    depths = sorted({model.depth for model in result.models})

    def draw(figure):
        for ax, depth in zip(figures.panels(figure, len(depths), sharey=True), depths, strict=True):
            ax.set_xscale("log", base=2)
            for model in (model for model in result.models if model.depth == depth):
                low, high = np.quantile(model.draws[..., 0], [0.025, 0.975], axis=0)
                face = COLOURS["page" if model.rotary else "measured"]
                found = model.curves[:, 0]
                ax.plot(model.lengths, model.forecast["tally"], color=COLOURS["predicted"])
                ax.plot(model.lengths, model.forecast["sum of heads"], "--", color=COLOURS["heuristic"], linewidth=1.2)
                ax.errorbar(model.lengths, found, [found - low, high - found], fmt="o", color=COLOURS["measured"],
                            mfc=face, label="rotary" if model.rotary else "no positions")  # fmt: skip
            ax.axhline(1 / 4, color=COLOURS["neutral"], linewidth=0.8)
            ax.set_ylim(0.2, 1.03)
            ax.set_title(LAYERS[depth - 1])
            ax.set_xlabel("facts in the context")
            if depth == depths[0] or figures.narrow(figure):
                ax.set_ylabel("recall")

    both = len({model.rotary for model in result.models}) > 1
    return figures.show(
        draw, size=(8.4, 3.6), panels=len(depths), name="deep-recall",
        finding=f"Recall falls near where the tally of softmax weights puts it: at most"
        f" {result.numbers['error_most']} away on average.",
        caption="Points are measured" + (" (open: rotary positions; filled: none)" if both else "") + ", with intervals"
        " at 95 %. Solid: tally of softmax weights over random values. Dashed: signal-to-noise ratios of all heads"
        " added up. The thin line is guessing.",
        alt="Recall against the number of facts in the context, one panel for each depth. Points fall from one to a"
        " quarter; for networks with rotary positions much earlier than without. A solid curve, the tally, runs"
        " through the points; a dashed one lies above them.",
    )  # fmt: skip


def half_figure(result: Result) -> figures.Picture:
    """Measured against forecast half lengths, by law."""
    looks = {"tally": ("o", "measured", "tally"), "sum of heads": ("s", "heuristic", "sum over heads"),
             LAWS[-1]: ("x", "neutral", f"from contexts of {result.numbers['most']} facts")}  # fmt: skip
    known = [model for model in result.models if math.isfinite(model.critical)]
    found = np.array([model.critical for model in known])
    most = max(model.expected[LAWS[-1]] for model in known if math.isfinite(model.expected[LAWS[-1]]))
    line = np.array([found.min() / 1.6, found.max() * 2])

    def draw(figure):
        ax = figure.subplots()
        figures.agreement(ax, line)
        for law, (marker, colour, text) in looks.items():
            forecast = np.array([model.expected[law] for model in known])
            here = np.isfinite(forecast)
            ax.plot(forecast[here], found[here], marker, color=COLOURS[colour], label=text)
        ax.set_xlim(line[0], most * 1.6)
        ax.set_ylim(line[0], line[1] * 2.5)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1,) if axis is ax.xaxis else (1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_locator(NullLocator())
        ax.set_xlabel("forecast half length (facts)")
        ax.set_ylabel("measured (facts)")
        figures.legend_below(figure)

    numbers = result.numbers
    return figures.show(
        draw, size=(7, 4.4), name="half-lengths",
        finding=f"Measured half lengths are {numbers['ratio']} times those of the tally,"
        f" and {numbers['sum']} times those of the sum over heads.",
        caption="One point a network and law. The band is the tolerance of the tally. A law that reads softmax weights"
        " in short contexts only promises far too much.",
        alt="Measured against forecast half lengths on logarithmic axes. Points of the tally lie near the diagonal,"
        " squares of the sum over heads to its right, crosses of the forecast from short contexts far to the right.",
    )  # fmt: skip


def shown(result: Result) -> list[Model]:
    """The deepest network of either kind of positions."""
    kinds = [[model for model in result.models if model.rotary == turned] for turned in (False, True)]
    return [max(group, key=lambda model: model.depth) for group in kinds if group]


def bits_figure(result: Result) -> figures.Picture:
    """Retained bits against the number of facts, with and without a margin."""
    pair = shown(result)
    looks = ((0, "measured", "o-", "largest logit wins"), (1, "constructed", "s--", "by more than 1 nat"),
             (2, "bound", "^:", "by more than 2 nats"))  # fmt: skip

    def draw(figure):
        for ax, model in zip(figures.panels(figure, len(pair)), pair, strict=True):
            ax.set_xscale("log", base=2)
            for row, colour, look, text in looks:
                low, high = np.quantile(bits(model, model.draws[..., row]), [0.025, 0.975], axis=0)
                ax.fill_between(model.lengths, low, high, color=COLOURS[colour], alpha=0.15, linewidth=0)
                ax.plot(model.lengths, bits(model, model.curves[:, row]), look, color=COLOURS[colour],
                        label=text if model is pair[0] else "")  # fmt: skip
            ax.set_ylim(bottom=0)
            ax.set_title(model.name)
            ax.set_xlabel("facts in the context")
        figure.axes[0].set_ylabel("retained bits")
        handles = [line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
        figures.legend_below(figure, handles)

    ends = [bits(model, model.curves[:, 2])[-1] / bits(model, model.curves[:, 2]).max() for model in result.models]
    left = f"at most {math.ceil(100 * max(ends))} %" if max(ends) > 0 else "none"
    return figures.show(
        draw, size=(7.4, 4), panels=len(pair), name="margin-bits",
        finding=f"With a margin of {MARGINS[2]:.0f} nats {left} of the most retained bits are left at the longest"
        " context.",
        caption=r"$N R_4(1 - a)$ for recall $a$ at $N$ facts. Bands at 95 %.",
        alt="Retained bits against the number of facts for a network without positions and one with rotary positions."
        " With a margin the bits rise, and then fall to nothing; without one they fall later.",
    )  # fmt: skip


def number(value: float, model: Model) -> str:
    """A half length as text."""
    return f"{value:,.0f}" if math.isfinite(value) else f"more than {model.lengths[-1]:,}"


def laws_table(result: Result) -> figures.Table:
    """Half lengths: measured, and by every law."""
    intervals = dict(zip([model.name for model in result.judged["tally"]], zip(*result.interval, strict=True),
                         strict=True))  # fmt: skip
    rows = []
    for model in result.models:
        found = number(model.critical, model)
        if model.name in intervals:
            low, high = intervals[model.name]
            found += f" ({low:,.0f} to {high:,.0f})" if math.isfinite(high) else f" (at least {low:,.0f})"
        rows.append((model.name, found, *(number(model.expected[law], model) for law in LAWS)))
    return figures.Table(("network", "measured half length", *LAWS), rows)


def layers_table(result: Result) -> figures.Table:
    """Which layer looks at the asked fact, and what is lost without it."""
    rows = []
    for model in result.models:
        heads = model.member.config.heads
        for layer, averaged in model.averaged.items():
            part = slice(layer * heads, (layer + 1) * heads)
            rows.append((
                model.name, f"{layer + 1}", " and ".join(f"{100 * share:.0f} %" for share in model.share[part]),
                f"{model.alone[part].max():.2f}", f"{averaged.mean():.2f}", f"{model.whole.mean():.2f}",
            ))  # fmt: skip
    header = ("network", "layer", "attention on the asked fact (each head)", "forecast recall of its best head alone",
              "recall, layer averaged", "recall")  # fmt: skip
    return figures.Table(header, rows)
