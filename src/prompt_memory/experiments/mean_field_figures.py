"""Figures and tables of chapter 7."""

import math

import numpy as np

from prompt_memory import bounds
from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments.mean_field import Result
from prompt_memory.experiments.mean_field_causal import DEEP
from prompt_memory.experiments.mean_field_memory import COARSE, FINE


def heads_figure(result: Result) -> figures.Picture:
    """The constant of one head against the number of tokens, and what ascent found."""
    found = result.heads
    identity = np.eye(2)
    top = bounds.wasserstein_constant(max(found.ranges) * identity, identity, 1.0)

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        m = np.unique(np.round(np.geomspace(1, 4 * found.lengths[-1], 200)).astype(int))
        for B in found.ranges:
            curve = {int(k): bounds.wasserstein_constant(B * identity, identity, 1.0, tokens=int(k)) for k in m}
            at = [bounds.wasserstein_constant(B * identity, identity, 1.0, tokens=k) for k in found.lengths]
            limit = bounds.wasserstein_constant(B * identity, identity, 1.0)
            ax.plot(list(curve), list(curve.values()), color=COLOURS["bound"], label=f"constant, B = {B:g}")
            ax.axhline(limit, color=COLOURS["bound"], linestyle=":", linewidth=1)
            reached = [found.by_length[B, k] * c for k, c in zip(found.lengths, at, strict=True)]
            ax.plot(found.lengths, reached, "o", color=COLOURS["measured"], label=f"found, B = {B:g}")
            figures.label_line(ax, m, np.full(len(m), limit), f"B = {B:g}", colour="bound", xytext=(0, 3))
        ax.set_ylim(0.7, 2.2 * top)
        ax.set_xlabel("number of tokens m")
        ax.set_ylabel("steepest slope, over ‖V‖")

    least = min(found.by_length.values())
    finding = "For each number of tokens ascent reaches the constant, which levels off with the length."
    if least < 0.95:
        finding = f"Ascent finds at least {100 * least:.0f} % of the constant, which levels off with the length."
    return figures.show(
        draw, name="heads", finding=finding,
        caption="Curves: the constant of Lemma 7a, part 5, for $m$ tokens in the plane; dotted: for any number of"
        " tokens. Points: the steepest slopes that ascent found.",
        alt="Steepest slope of one head in the Wasserstein distance against the number of tokens, for "
        + ", ".join(f"B = {B:g}" for B in found.ranges)
        + ". Curves of the constant for m tokens rise from one and level off at a plateau, drawn dotted. Points found"
        " by ascent lie on or just below the curves.",
    )  # fmt: skip


def pairs_figure(result: Result) -> figures.Picture:
    """Change of logits over Λ_W against W₁, for all pairs."""
    pairs = result.networks.pairs
    names = list(result.networks.shares)
    closest = max(pairs, key=lambda pair: pair.change / pair.distance / pair.constant)

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log")
        ax.set_yscale("log")
        places = np.array([(pair.distance, max(pair.change / pair.constant, 1e-15)) for pair in pairs])
        left, right = places[:, 0].min() / 2, 4
        ax.set_xlim(left, right)
        low = places[:, 1].min()
        ax.set_ylim(low * (low / 40) ** (0.35 if figures.narrow(figure) else 0.13), 40)  # room for the legend
        figures.forbid(ax, [left, right], [left, right], 40)
        ax.plot([left, right], [left, right], color=COLOURS["bound"])
        ax.text(0.02, 0.96, "forbidden", transform=ax.transAxes, va="top", fontsize=9, color=COLOURS["forbidden"])
        for name, mark in zip(names, "*osD", strict=True):
            for kind in ("adversarial", "random"):
                at = [i for i, pair in enumerate(pairs) if (pair.network, pair.kind) == (name, kind)]
                face = COLOURS["measured"] if kind == "adversarial" else "none"
                size = 8 if mark == "*" else 4
                ax.plot(*places[at].T, mark, markersize=size, color=COLOURS["measured"], mfc=face, alpha=0.6,
                        label=name if kind == "adversarial" else "_")  # fmt: skip
        columns = 2 if figures.narrow(figure) else len(names)
        ax.legend(loc="lower right", ncols=columns, labelcolor=COLOURS["measured"], handletextpad=0.2, columnspacing=1)
        ax.set_xlabel("W₁ between the measures that are seen")
        ax.set_ylabel("change of logits, over $\\Lambda_W$")

    return figures.show(
        draw, raster=True, size=(7, 4.6), name="pairs",
        finding="Prompts of any two lengths that are close as measures give close logits.",
        caption="Filled: adversarial pairs, open: random ones. The line is part 1 of the theorem; the pair that comes"
        f" closest belongs to “{closest.network}”.",
        alt="Change of logits over the Wasserstein constant of the network against the Wasserstein distance, for pairs"
        " of prompts of equal and different lengths, before "
        + ", ".join(names) + ". All points lie below the diagonal, many of them far below.",
    )  # fmt: skip


def memory_figure(result: Result) -> figures.Picture:
    """Bits memorised with a margin against prompt length, for the fine reader."""
    line, found = result.line, result.line.memory[FINE]
    lipschitz = found.constants[0]
    stops = line.grown(FINE) <= 0.3

    def draw(figure):
        ax = figure.subplots()
        top = 2000
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        m = np.unique(np.round(np.geomspace(1, 512, 120)).astype(int))
        linear = np.array([bounds.entropy_bits(1, int(k), 1.0, lipschitz, found.eps) for k in m])
        multisets = np.array([bounds.snapped_multiset_bits(1, int(k), 1.0, lipschitz, found.eps) for k in m])
        flat = np.full(len(m), found.flat)
        ax.set_xlim(1, 512)
        ax.set_ylim(0.7, top)
        figures.forbid(ax, m, np.minimum(np.minimum(linear, multisets), flat), top)
        ax.plot(m, linear, color=COLOURS["bound"], label="Theorem 2")
        ax.plot(m, multisets, "--", color=COLOURS["bound"], label="multisets of cells")
        ax.plot(m, flat, color=COLOURS["bound"], linewidth=2.5, label="Theorem 7")
        ax.plot(line.lengths, found.bits, "o-", color=COLOURS["measured"], label="counted")
        narrow = figures.narrow(figure)
        linear_text = "Theorem 2" if narrow else "Theorem 2: linear"
        figures.label_line(ax, m, linear, linear_text, colour="bound", where=0.6, xytext=(-8, 4), ha="right")
        figures.label_line(ax, m, flat, "Theorem 7: any length", colour="bound", where=0, xytext=(4, 5))
        multisets_text = "multisets" if narrow else "multisets of cells"
        figures.label_line(ax, m, multisets, multisets_text, colour="bound", xytext=(-4, -16), above=False)
        figures.label_line(ax, line.lengths, found.bits, "counted", colour="measured", xytext=(8, 0), ha="left",
                           va="center")  # fmt: skip
        ax.set_xlabel("prompt length m")
        ax.set_ylabel("bits memorised with margin 2ε")

    finding = "However long the prompt, the memory has a limit"
    finding += "; what a tiny network memorises stops growing long before." if stops else "; what a tiny network"
    finding += "" if stops else " memorises was still growing at the longest prompts that were run."
    return figures.show(
        draw, name="memory", finding=finding,
        caption="The reader with $\\varepsilon = \\Lambda/12$. Counted are the labelings that prompts on five places"
        f" memorise, of a few chosen queries. The dashed line counts multisets of cells (remark (b)). {line.growth()}",
        alt="Bits memorised with a margin against prompt length, on logarithmic axes, for a network on a line. The"
        " bound of Theorem 2 rises linearly, a count of multisets rises logarithmically, the bound of Theorem 7 is a"
        " horizontal line. Counted labelings lie far below all of them.",
    )  # fmt: skip


def causal_figure(result: Result) -> figures.Picture:
    """Change of logits by reordering inside K blocks."""
    found = result.causal
    falls = all((found.typical(depth)[:, -1] < found.typical(depth)[:, 0] / 2).all() for depth in DEEP)

    def draw(figure):
        axes = figures.panels(figure, 2, sharey=True)
        K = np.array(found.blocks)
        for ax, depth in zip(axes, DEEP, strict=True):
            orders, shuffles = found.typical(depth)
            shape = np.exp(np.mean([np.log(found.averages[j]) for j in range(2, depth + 1)], axis=0))
            model = shape * np.exp(np.log(orders / shape).mean())
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.plot(K, model, color=COLOURS["heuristic"], linewidth=1.2, label="repeated averages")
            ax.plot(K, orders, "o", color=COLOURS["measured"], label="sorted blocks")
            ax.plot(K, shuffles, "o", color=COLOURS["measured"], mfc="none", linestyle=":", linewidth=1,
                    label="random shuffles")  # fmt: skip
            ax.set_title(f"depth {depth}")
            ax.set_xlabel("number of blocks K")
        low = min(found.typical(depth).min() for depth in DEEP)
        axes[0].set_ylim(low / 12, None)
        axes[0].set_ylabel("change of logits")
        axes[0].legend(loc="lower left", labelcolor="linecolor")

    finding = "The more blocks, the less the order inside them matters."
    if not falls:
        finding = "What the order inside blocks does to the logits, for few blocks and for many."
    return figures.show(
        draw, size=(7, 3.8), panels=2, name="causal", finding=finding,
        caption="Geometric means over networks. Sorted blocks: the largest change between sorting every block one way"
        f" and the other. Lines: a model in which each layer only averages, scaled to fit. {found.speed()}",
        alt="Change of logits when tokens are reordered inside K blocks, against K, for causal networks of depth two"
        " and three, on logarithmic axes. Sorted blocks change them most; random shuffles change them less. Beside"
        " them the lines of repeated averages.",
    )  # fmt: skip


def scale_figure(result: Result) -> figures.Picture:
    """Decimal digits of the bound against the width; the bound in the plane against the margin."""
    found = result.scale
    useful = bool((found.sharp[found.linear > 1] < found.linear[found.linear > 1]).any())

    def draw(figure):
        left, right = figures.panels(figure, 2)
        d = np.array([each.d for each in found.layers])
        digits = np.array([each.digits for each in found.layers])
        million = np.log10([each.linear * 1e6 for each in found.layers])
        left.set_xscale("log", base=2)
        left.set_yscale("log")
        left.plot(d, digits, "o-", color=COLOURS["bound"], label="Theorem 7, any length")
        left.plot(d, million, "s--", color=COLOURS["bound"], mfc="none", label="Theorem 2, a million tokens")
        left.axhline(80, color=COLOURS["neutral"], linewidth=1, linestyle=":")
        left.text(d[0], 88, "atoms in the universe", fontsize=9, color=COLOURS["neutral"])
        left.set_ylim(None, 12 * digits.max())
        left.legend(loc="upper left", labelcolor=COLOURS["bound"])
        left.set_title("By the width")
        left.set_xlabel("width d")
        left.set_ylabel("decimal digits of the bits")
        right.set_xscale("log")
        right.set_yscale("log")
        some = found.sharp > 0
        right.plot(found.margins, found.simple, ":", color=COLOURS["bound"], label="first form")
        right.plot(found.margins[some], found.sharp[some], color=COLOURS["bound"], linewidth=2.5, label="sharper form")
        right.plot(found.margins, found.linear, "--", color=COLOURS["bound"], label="Theorem 2, m = 1000")
        right.set_ylim(1, None)
        right.legend(loc="upper right", labelcolor=COLOURS["bound"])
        right.set_title("In the plane")
        right.set_xlabel("half margin ε, over rΛ")
        right.set_ylabel("bound in bits")

    finding = "The bound is astronomical for wide networks"
    finding += "; it says something for two dimensions and a wide margin." if useful else "."
    return figures.show(
        draw, size=(7, 4), panels=2, name="scale", finding=finding,
        caption="Left: decimal digits of the number of bits, for random layers with $r = \\varepsilon = 1$. Right: part"
        " 2 in both forms, for $d = 2$ and $\\Lambda_W = 2.4\\, \\Lambda$, the ratio of the reader (no such network"
        " was run).",
        alt="Left: decimal digits of the bound of Theorem 7 in bits against the width; it passes eighty digits, the"
        " atoms in the universe, at a few dozen dimensions, where Theorem 2 at a million tokens has under ten digits."
        " Right: for two dimensions the bound against the margin; the sharper form lies below the first one.",
    )  # fmt: skip


def exponents_table(result: Result) -> figures.Table:
    """Forecast and fitted exponents of K, at depths 2 and 3: means over networks."""
    found, names = result.causal, ("sorted blocks, logarithms divided out", "sorted blocks", "random shuffles")
    forecasts = ([-1.0, -1.0], found.forecast(), [-0.5, -0.5])
    header = ("exponent of K", "forecast, depth 2", "found, depth 2", "forecast, depth 3", "found, depth 3")
    return figures.Table(header, [
        (name, *(f"{x:.2f}" for pair in zip(forecast, rows.mean(1), strict=True) for x in pair))
        for name, forecast, rows in zip(names, forecasts, found.fitted().values(), strict=True)
    ])  # fmt: skip


def power(digits: float) -> str:
    """10^digits with one digit behind the point, also where the number itself overflows."""
    return f"{10 ** (digits % 1):.1f}e{math.floor(digits):+}"


def histograms_table(result: Result) -> figures.Table:
    """Histograms found pairwise further apart than τ, and both forms of the bound."""
    header = ("cells M", "τ", "histograms found", "volume bound", "simple bound")
    return figures.Table(header, [
        (each.cells, each.tau, each.found, f"{2**each.bits:.1f}",
         f"{(math.e * (1 + 1 / (2 * float(each.tau))))**each.cells:.0f}")
        for each in result.histograms
    ])  # fmt: skip


def memory_table(result: Result) -> figures.Table:
    """Labelings counted and certified, and the bound, for each network on the line."""
    header = (
        "network", "Λ_W/Λ", "queries", "labelings counted", "at most, any length", "bound, bits",
        "below Theorem 2 from m =",
    )  # fmt: skip
    rows = []
    for name, each in result.line.memory.items():
        vacuous = " (vacuous)" if each.flat >= len(each.queries) else ""
        rows.append((
            name, f"{each.constants[1] / each.constants[0]:.2g}", len(each.queries), max(each.counts),
            each.certified if name == COARSE else "–", f"{each.flat:.1f}{vacuous}", each.overtakes,
        ))  # fmt: skip
    return figures.Table(header, rows)


def scale_table(result: Result) -> figures.Table:
    """Constants and bounds of random layers, by width."""
    header = ("width d", "Λ", "Λ_W", "Theorem 2, bits a token", "Theorem 7, bits", "below Theorem 2 from m =")
    return figures.Table(header, [
        (each.d, power(math.log10(each.lipschitz)), power(math.log10(each.wasserstein)), f"{each.linear:.0f}",
         power(each.digits), power(each.overtakes))
        for each in result.scale.layers
    ])  # fmt: skip


def blocks_table(result: Result) -> figures.Table:
    """Part 4 for a causal network on a line."""
    header = ("ε/Λ", "blocks K", "part 4, bits")
    return figures.Table(header, [(each.eps, each.blocks, power(each.digits)) for each in result.scale.causal])
