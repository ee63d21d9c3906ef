"""Figures and tables of chapter 2, from what `metric_entropy.run` and `metric_entropy_labelings.run` return."""

import math

import numpy as np

from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments.metric_entropy import EPS, FORMAT, MOVES, NORMS, SHARP, TEMPERATURES, Result, bits
from prompt_memory.experiments.metric_entropy_labelings import Labelings


def heads_figure(result: Result) -> figures.Picture:
    """Steepest head found over its constant, against the number of tokens."""
    B, lengths = 2.0, result.lengths
    ends = (0.7, 1.6 * lengths[-1])
    sharp = min(result.heads[SHARP[0], B, moves, 2] for moves in ("prompt", "both"))

    def draw(figure):
        axes = figures.panels(figure, 3, sharey=True)
        for ax, moves in zip(axes, MOVES, strict=True):
            ax.set_xscale("log")
            ax.set_ylim(0, 1.12)
            ax.set_xlim(*ends)
            figures.forbid(ax, ends, 1, 1.12)
            ax.axhline(1, color=COLOURS["bound"])
            for name, marker, label in ((SHARP[0], "o", "A orthogonal"), ("random", "s", "random A and V")):
                ratios = [result.heads[name, B, moves, m] for m in lengths]
                face = COLOURS["measured"] if marker == "o" else COLOURS["page"]
                ax.plot(lengths, ratios, marker, color=COLOURS["measured"], mfc=face, label=label)
            single = 1 / result.constants[B, moves]
            ax.plot([0.7, 1.4], [single, single], ":", color=COLOURS["bound"], linewidth=1.2)
            ax.set_title(MOVES[moves])
            ax.set_xlabel("tokens")
            ax.set_ylabel("steepest found / constant")
            ax.label_outer()
        axes[0].legend(loc="lower right")

    finding = "No head is found steeper than its constant"
    finding += "; with a query of its own, two tokens reach it." if sharp > 0.99 else "."
    return figures.show(
        draw, size=(7, 3.4), panels=3, name="heads", finding=finding,
        caption="The largest slope that ascent finds, over the constant of Lemma 2a, for $B = 2$. Dotted: one token"
        " is as steep as $\\|V\\|$.",
        alt="Steepest head found over its constant, against the number of tokens, in three panels: query fixed, query"
        " moving too, query being one of the tokens. With V the identity and A orthogonal it is one from two tokens on"
        " in the first two panels, and approaches one slowly in the third. Random matrices stay lower. With a single"
        " token the ratio is the norm of V over the constant.",
    )  # fmt: skip


def networks_figure(result: Result) -> figures.Picture:
    """Constants and slopes of networks against depth, a panel for each norm."""
    depths = result.depths
    top = 10 * max(each.proved for found in (*result.networks.values(), list(result.steep.values())) for each in found)
    growth = {norm: result.mean(norm, depths[-1]).proved / result.mean(norm, 1).proved for norm in NORMS}

    def draw(figure):
        axes = figures.panels(figure, 3, sharey=True)
        for ax, norm in zip(axes, NORMS, strict=True):
            ax.set_yscale("log")
            ax.set_ylim(0.1, top)
            ax.set_xlim(depths[0] - 0.4, depths[-1] + 0.4)
            ax.set_xticks(depths)
            ax.axhspan((2**FORMAT - 1) * EPS, top, color=COLOURS["neutral"], alpha=0.12, linewidth=0)
            mean = [result.mean(norm, L) for L in depths]
            ax.plot(
                depths, [each.proved for each in mean], "o-", color=COLOURS["bound"], label="constant, random weights"
            )
            ax.plot(depths, [each.found for each in mean], "o:", color=COLOURS["measured"], label="random: found")
            steep = [result.steep[norm, L] for L in depths]
            ax.plot(depths, [each.found for each in steep], "s", color=COLOURS["constructed"], mfc=COLOURS["page"],
                    label="built, A = 0: found")  # fmt: skip
            ax.plot(depths, [each.proved for each in steep], "+", color=COLOURS["bound"], markersize=9,
                    label="built, A = 0: constant")  # fmt: skip
            ax.set_title(NORMS[norm])
            ax.set_xlabel("layers")
            ax.set_ylabel("logit per unit of prompt")
            ax.label_outer()
        axes[0].text(0.04, 0.96, "here 16 bits a\ncoordinate are better", transform=axes[0].transAxes, va="top",
                     fontsize=9, color=COLOURS["neutral"])  # fmt: skip
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center",
                      ncols=1 if figures.narrow(figure) else 2)  # fmt: skip

    return figures.show(
        draw, size=(7, 4.2), panels=3, name="networks",
        finding=f"From 1 to {depths[-1]} layers constants grow by factors of"
        f" {figures.scientific(min(growth.values()), up=False)} and more; networks built with A = 0 attain theirs.",
        caption="Constants of Lemma 2b and the steepest slopes found, for prompts and queries in the unit ball. In the"
        " grey region a format of 16 bits a coordinate gives the better bound, for $\\varepsilon = r/10$.",
        alt="Proved Lipschitz constant and steepest slope found, on a logarithmic axis against depth, for networks"
        " without norm, with RMSNorm and with LayerNorm. The constants grow by orders of magnitude with every layer."
        " Slopes found in random networks lie far below; networks built with A = 0 lie on their own constants.",
    )  # fmt: skip


def frobenius_figure(result: Result) -> figures.Picture:
    """The steepest map of all tokens in the Frobenius norm, and its bound."""
    tokens = np.array(result.tokens)
    finding = "In the Frobenius norm self-attention steepens with the number of tokens, at $B = 3$ like"
    finding += f" $k^{{{result.exponent:.2f}}}$ up to 128 tokens"
    finding += "; at $B = 1$ it has stopped by 60." if result.flat < 1.1 else "."

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_ylim(0.7, 2 * max(result.limits[TEMPERATURES[-1]]))
        ax.set_xlim(tokens[0] * 0.8, tokens[-1] * 8)
        for B in TEMPERATURES:
            first = TEMPERATURES[0] == B
            ax.plot(tokens, result.limits[B], color=COLOURS["bound"], label="bound" if first else None)
            ax.plot(tokens, result.frobenius["A = −I", B], "o", color=COLOURS["measured"],
                    label="steepest found, A = −‖A‖ I" if first else None)  # fmt: skip
            ax.annotate(f"B = {B:.0f}", (tokens[-1], result.limits[B][-1]), xytext=(7, 0), textcoords="offset points",
                        va="center", fontsize=9, color=COLOURS["bound"])  # fmt: skip
        ax.legend(loc="lower right")
        ax.set_xlabel("tokens k")
        ax.set_ylabel("Lipschitz constant, ‖V‖ = 1")

    return figures.show(
        draw, name="frobenius",
        finding=finding,
        caption="Both axes are logarithmic; the bounds stop growing at about $e^{2B}$ tokens.",
        alt="Bound and steepest map found of all tokens in the Frobenius norm against the number of tokens, both axes"
        " logarithmic, for three values of B. Bounds and findings rise like the square root and level off near e to the"
        " 2B tokens.",
    )  # fmt: skip


def labelings_figure(result: Labelings) -> figures.Picture:
    """Bits memorised with a margin, per trained number, against rΛ/ε."""
    digits = 8
    end = 2 ** math.ceil(math.log2(max(each.resolution for each in result.counted)) + 0.3)
    over = max((each.bits - each.bound) / each.size for each in result.counted)
    missing = max(each.bound - each.bits for each in result.of("reader, d = 1"))
    kinds = (
        ("built, one number", "o", "constructed", ["reader, d = 1"]),
        ("built, two numbers", "s", "constructed", ["reader, d = 2"]),
        ("networks nobody built", "^", "measured", list(result.grids)),
    )

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        x, top = np.geomspace(1, end, 80), digits + (8 if figures.narrow(figure) else 4.4)
        ax.set_ylim(0, top)
        ax.set_xlim(1, end)
        figures.forbid(ax, x, np.minimum(np.log2(1 + x), digits), top)
        ax.text(1.3, 4.4, "forbidden", fontsize=9, color=COLOURS["forbidden"])
        ax.plot(x, np.log2(1 + x), color=COLOURS["bound"], label="Theorem 2")
        ax.axhline(digits, color=COLOURS["bound"], linestyle="--", linewidth=1.2, label="Theorem 1, 8 bits a number")
        for label, marker, colour, names in kinds:
            points = [(each.resolution, each.bits / each.size) for name in names for each in result.of(name)]
            face = COLOURS["page"] if marker == "^" else COLOURS[colour]
            ax.plot(*np.transpose(points), marker, color=COLOURS[colour], mfc=face, label=label)
        ax.legend(loc="upper left", ncols=1 if figures.narrow(figure) else 2)
        ax.set_xlabel("rΛ/ε: radius times steepness over half the margin")
        ax.set_ylabel("bits memorised, per trained number")

    finding = "No network memorises more than the margin allows" if over <= 0 else "A network passes the bound"
    return figures.show(
        draw, name="labelings", finding=finding + f"; a built one misses it by at most {missing:.3f} bits.",
        caption="All prompts of a fine grid are run; a labeling counts if a prompt shows it with margin"
        " $2\\varepsilon$. The forbidden region lies above both theorems.",
        alt="Bits memorised per trained number against radius times Lipschitz constant over epsilon. The bound of"
        " Theorem 2 rises logarithmically and is cut off by the bits of the number format. A built network of one"
        " number lies on the bound, one of two numbers slightly below; random networks lie further down. The region"
        " above both bounds is forbidden.",
    )  # fmt: skip


def networks_table(result: Result) -> figures.Table:
    """Constants and slopes found, and what both are worth in bits at ε = r/10."""
    header = ("network", "layers", "constant Λ", "steepest found", "found / Λ", "bits a coordinate", "at least, any Λ",
              f"best with {FORMAT} bits")  # fmt: skip
    rows = []
    for norm, depth in result.networks:
        mean = result.mean(norm, depth)
        rows.append((
            {"built": "built"}.get(norm) or NORMS[norm], depth, f"{mean.proved:.3g}", f"{mean.found:.3g}",
            f"{mean.found / mean.proved:.2g}", f"{bits(mean.proved):.1f}", f"{bits(mean.found):.1f}",
            f"{min(FORMAT, bits(mean.proved)):.1f}",
        ))  # fmt: skip
    return figures.Table(header, rows)


def trained_table(result: Result) -> figures.Table:
    """Theorem 2 for the trained bit reader, in three readings."""
    header = ("set of prompts", "Λ", "bits a coordinate (Theorem 2)", "memorised", "number format")
    return figures.Table(header, [
        (name, f"{slope:.3g}", f"{worth:.1f}", f"{memorised:.2f}", "1")
        for name, slope, worth, memorised in result.trained
    ])  # fmt: skip
