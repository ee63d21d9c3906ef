"""Figures and tables of chapter 13."""

import numpy as np
import torch

from prompt_memory import bounds
from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS, Table, scientific
from prompt_memory.experiments import single_layer, single_layer_labelings

MARKERS = ("o", "s", "^")  # of the three texts
LEAST = 1e-31  # errors that are drawn


def triangle_figure(result: single_layer.Result) -> figures.Picture:
    """Answers to three texts, without a prompt and behind five."""
    F, copies = result.triangle, result.copies

    def draw(figure):
        ax = figure.subplots()
        for points, colour, width in [(F, "text", 2.2), *((copy, "measured", 1.3) for copy in copies)]:
            closed = torch.cat([points, points[:1]])
            ax.plot(closed[:, 0], closed[:, 1], color=COLOURS[colour], linewidth=width)
            for point, marker in zip(points, MARKERS, strict=True):
                ax.plot(*point, marker, color=COLOURS[colour])
        ax.annotate("without a prompt", F[F[:, 1].argmin()], xytext=(0, -9), textcoords="offset points", ha="center",
                    va="top", fontsize=9)  # fmt: skip
        ax.annotate("behind a prompt", copies[0][copies[0][:, 1].argmax()], xytext=(0, 8), textcoords="offset points",
                    ha="center", fontsize=9, color=COLOURS["measured"])  # fmt: skip
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.14)
        ax.set_xlabel("logit of class 1")
        ax.set_ylabel("logit of class 2")

    return figures.show(
        draw, size=(7, 4.6), name="triangles",
        finding="Behind five prompts the answers are five smaller copies of the same triangle: no two trade places.",
        caption="Outputs of a random layer of one head for three texts with a common last token and equal masses; the"
        " marker tells the text.",
        alt="Answers of one layer to three texts as points in the plane of two logits: a triangle without a prompt, and"
        " five smaller triangles of the same shape and orientation behind five prompts.",
    )  # fmt: skip


def swap_figure(result: single_layer.Result) -> figures.Picture:
    """Error of a swap against prompt length: one layer, two layers, and a rank-one update."""
    lengths = np.array(result.settings.lengths, dtype=float)
    one, two = result.found["swap, one head"].min((0, 2)), result.two_layers.min(1)

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(lengths[0] / 1.6, lengths[-1] * 1.6)
        ax.set_ylim(1e-34, 1e3)
        region = figures.forbid(ax, np.array(ax.get_xlim()), 1e-34, 1)
        region.set_label("below the floor: no prompt of one layer")
        ax.axhline(1, color=COLOURS["bound"])
        ax.plot(lengths, one, "o", color=COLOURS["measured"], label="one layer: best prompt found")
        ax.plot(lengths, np.maximum(two, LEAST), "s", color=COLOURS["heuristic"], label="two layers: best prompt found")
        ax.axhline(max(result.rank_one, LEAST), color=COLOURS["constructed"], linestyle="--",
                   label="one layer: rank-one update")  # fmt: skip
        ax.set_xticks(lengths, [f"{length:g}" for length in lengths])
        ax.minorticks_off()
        ax.set_xlabel("prompt length m")
        ax.set_ylabel("squared error (1: both alike)")
        figure.legend(loc="outside lower center", ncols=1 if figures.narrow(figure) else 2)

    worst, rank_one = one.max(), scientific(result.rank_one, up=True)
    return figures.show(
        draw, size=(7, 4.4), name="swap",
        finding=f"Prompts of one layer end at the error of answering alike, up to a factor {worst:.4f}; the rank-one"
        f" update ends at {rank_one} of it.",
        caption=f"Two texts are to swap their answers. Two layers: best of {result.two_layers.shape[1]} starts in one"
        " network; the floor does not hold there.",
        alt="Squared error of swapping the answers of two texts against prompt length. In one layer no prompt can be"
        f" below the floor; the best found lie at up to {worst:.4f} times it. The rank-one update ends at {rank_one}."
        f" In two layers the best start ends between {scientific(two.min(), up=False)} and"
        f" {scientific(two.max(), up=True)}.",
    )  # fmt: skip


def labelings_figure(result: single_layer_labelings.Result) -> figures.Picture:
    """Bits of labelings against the number of texts, two classes."""
    most, found, others = result.most, result.found, result.others

    def draw(figure):
        ax = figure.subplots()
        n = np.arange(2, most + 1)
        line = np.linspace(1.8, most + 0.2, 100)
        ax.set_xlim(line[0], line[-1])
        ax.set_ylim(0, most + 0.5)
        region = figures.forbid(ax, line, np.log2(line + 1), line)
        region.set_label("out of reach of one head")
        ax.plot(line, line, ":", color=COLOURS["neutral"], label="all labelings")
        ax.plot(line, np.log2(line + 1), color=COLOURS["bound"], label="one head: bound")
        ax.plot(n, np.log2([found[k, 2] for k in n]), "o", color=COLOURS["measured"], label="one head: found")
        ax.plot(n, np.log2([others["two layers", k] for k in n]), "s", color=COLOURS["heuristic"],
                label="two layers: found")  # fmt: skip
        ax.plot(n, np.log2([others["two heads", k] for k in n]), "D", color=COLOURS["heuristic"], mfc="none",
                markersize=10, label="two heads: found")  # fmt: skip
        ax.set_xticks(n)
        ax.set_xlabel("texts n, two classes")
        ax.set_ylabel("log₂ of labelings, bits")
        figure.legend(loc="outside lower center", ncols=2 if figures.narrow(figure) else 3)

    return figures.show(
        draw, size=(7, 4.4), name="labelings",
        finding=f"Of {2**most} labelings of {most} texts, one head is found to reach {found[most, 2]}, two heads"
        f" {others['two heads', most]} and two layers {others['two layers', most]}.",
        caption="The theorem gives one head $\\log_2 (n + 1)$ bits on texts with a common last token, however long its"
        " prompts.",
        alt="Bits of memorisable labelings against the number of texts with a common last token. The bound for one head"
        f" grows logarithmically, and written prompts reach it. At {most} texts, of {2**most} labelings, search finds"
        f" {found[most, 2]} in one head, {others['two heads', most]} in two heads and {others['two layers', most]} in"
        " two layers.",
    )  # fmt: skip


def floors_table(result: single_layer.Result) -> Table:
    """Floors, the best token written down, and what search found."""
    header = ("data", "floor (first network)", "one token, written down", "best found, over the floor",
              "median found, over the floor")  # fmt: skip
    rows = []
    for name, found in result.found.items():
        excess = max((ratio - 1 for ratio in result.ratios.get(name, [])), key=abs, default=None)
        rows.append((
            name, f"{result.problems[name][0].floor:.4g}",
            "–" if excess is None else f"1 ± {scientific(abs(excess), up=True)}",
            f"{found.min(2).max():.6f}", f"{np.median(found):.6f}",
        ))  # fmt: skip
    return Table(header, rows)


def updates_table(result: single_layer.Result) -> Table:
    """What value updates of each rank leave, over the error without one."""
    header = ("data", "rank", "numbers trained", "floor for this rank", "found", "floor for every prompt")
    return Table(header, [
        (name, rank, 20 * rank, *(f"{abs(x):.4f}" for x in (floor, found, prompts)))
        for name, rank, floor, found, prompts in result.updates
    ])  # fmt: skip


def labelings_table(result: single_layer_labelings.Result) -> Table:
    """How many labelings are allowed, written and found."""
    names = list(single_layer_labelings.OTHERS)
    header = ("texts", "classes", "labelings", "one head: bound", "written", "found", *(f"{n}: found" for n in names))
    return Table(header, [
        (n, q, q**n, bounds.shared_token_labelings(n, q), result.written[n, q], result.found[n, q],
         *(result.others.get((name, n), "–") if q == 2 else "–" for name in names))
        for n, q in result.found
    ])  # fmt: skip
