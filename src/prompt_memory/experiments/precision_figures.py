"""Figures and tables of chapter 4c."""

import math

import numpy as np
from matplotlib.lines import Line2D

from prompt_memory import bounds
from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments.precision import CASES, Result
from prompt_memory.experiments.precision_protocol import FORMATS, KINDS, NO_RELU, proved_bits

LOOKS = dict(zip(KINDS, "os^", strict=True))
MADE = {1: "one number", 2: "two numbers"}


def results_table() -> figures.Table:
    """Results about short prompts in one currency: the bits that a coordinate must have."""
    d, q, N, V, b, pairs = 64, 2, 100, 50_304, 16, 10**6
    wang = pairs * math.log2(q) / (d * math.sqrt(pairs * N))  # logarithms of n and N dropped
    enough = N * (b * d / math.log2(q)) ** 2
    tokens = bounds.universality_tokens(0.01, 8, d, b)
    header = ("result", "weights", "margin", "numbers", "says", "bits a coordinate it needs")
    return figures.Table(header, [
        ("Theorem 1", "any, fixed", "none or any", "b bits", "at most b d m bits", "b"),
        ("Theorem 2", "any, Λ-Lipschitz", "2ε", "real, norm ≤ r", "at most d m log₂(1 + rΛ/ε) bits",
         "log₂(1 + rΛ/ε)"),
        ("Theorem 4c, 1", "piecewise linear, depth L", "none", "real",
         "at most (L + 1) d m log₂(e n W/(d m)) bits",
         "any; at most (L + 1) log₂(e n W/(d m)) of them are filled"),
        ("Theorem 4c, 4", "tent network, depth b", "1", "b bits", "all labelings of b queries a coordinate",
         "b, all used"),
        ("Wang and Lin, NeurIPS 2025", "constant size", "not stated in abstract", "not stated in abstract",
         "n pairs of sequences of length N with Õ(√(nN)) prompt tokens; a trade-off with generation steps",
         f"√(n/N) log₂ q / d, logarithms dropped: {wang:.2f} at n = 10⁶, N = {N}, d = {d}; above {b} from"
         f" n = {enough:.0e} on"),
        ("Petrov et al., ICLR 2024", "hand-made, width 2N in the authors' code", "of order 1/V²",
         "V values on N coordinates", "all Vᴺ outputs of N tokens from one virtual token",
         f"log₂ V on each of the N coordinates that are tuned ({math.log2(V):.1f} for V = {V:,})"),
        ("Petrov et al., ICML 2024", "one head, fixed", "error ε", "real",
         "any continuous function on a sphere, the prefix growing as ε falls",
         "at any fixed b the prefix must grow: next row"),
        ("Hu et al., ICLR 2025", "one layer, one head", "error ε", "not stated in abstract",
         "a lower bound on prompt tokens, exponential in width times length and in 1/ε, to memorise any data",
         f"compare the proposition below, k = 8, ε = 0.01, d = {d}, b = {b}: m ≥ {tokens:.1e}"),
    ])  # fmt: skip


def formats_table(result: Result) -> figures.Table:
    """Labelings held by the tent network in four number formats, around the significand."""
    beside = (-1, 0, 1, 2, 3)
    named = [f"held at p {'+' if d > 0 else '−'} {abs(d)}" if d else "held at p" for d in beside]
    rows = []
    for name, (_, p, exponent, fraction) in FORMATS.items():
        numbers = bounds.float_bits(1 - 2.0**-p, exponent=exponent, fraction=fraction)
        held = [f"{result.kept[name, p + d].mean():.3f}" for d in beside]
        rows.append((name, 1 + exponent + fraction, p, f"{numbers:.3f}", *held))
    return figures.Table(("format", "bits in all", "significand p", "numbers in (−1, 1), log₂", *named), rows)


def grids_table(result: Result) -> figures.Table:
    """Behaviours of random networks on the finest grid, beside the proved bounds."""
    settings, rows = result.settings, []
    for (name, D), counts in result.grids.by_queries.items():
        n, bits, count = settings.queries[D], D * settings.bits[D], counts[:, -1].mean()
        limit = proved_bits((KINDS | NO_RELU)[name], D, n)
        says = "" if not limit else "below bD" if limit < bits else "vacuous beside bD"
        rows.append((name, D, n, bits, f"{count:.2f}", f"{limit:.1f}" if limit else "only cited", says))
    header = ("network", "numbers D", "queries", "bits bD", "log₂ Nₙ", "bound of part 1 or 2", "that bound is")
    return figures.Table(header, rows)


def kinds_of_networks() -> list[Line2D]:
    """The legend of `grids_figure`: a marker for each kind, filled for one tuned number and open for two."""
    dots = {"linestyle": "", "color": COLOURS["measured"]}
    handles = [Line2D([], [], marker=marker, label=kind, **dots) for kind, marker in LOOKS.items()]
    handles.append(Line2D([], [], marker="o", label="filled: one number tuned", **dots))
    return [*handles, Line2D([], [], marker="o", label="open: two", mfc=COLOURS["page"], **dots)]


def grids_figure(result: Result) -> figures.Picture:
    """Behaviours of random networks against bits a coordinate and against queries."""
    grids, settings = result.grids, result.settings
    top = max(counts.max() for counts in grids.by_bits.values()) * 1.2

    def by_bits(ax):
        bits = np.linspace(0, settings.bits[1], 200)
        figures.forbid(ax, bits, np.minimum(2 * bits, top), top)
        for D, height in ((1, 0.9), (2, 0.6)):
            line = np.array([0, top / D])
            ax.plot(line, D * line, color=COLOURS["bound"])
            ax.annotate(f"bD, D = {D}", (height * top / D, height * top), color=COLOURS["bound"], fontsize=9,
                        ha="right", va="bottom", xytext=(-3, 3), textcoords="offset points")  # fmt: skip
        for (kind, D), counts in grids.by_bits.items():
            ax.plot(np.arange(counts.shape[1]), counts.mean(0), marker=LOOKS[kind], color=COLOURS["measured"],
                    mfc=COLOURS["page"] if D == 2 else None, linewidth=0.8)  # fmt: skip
        ax.set_xlim(0, settings.bits[1] + 0.5)
        ax.set_title("All queries")
        ax.set_xlabel("bits a coordinate, b")
        ax.set_ylabel("log₂ of behaviours (bits)")

    def by_queries(ax):
        for kind, D in CASES:
            counts = grids.by_queries[kind, D]
            ax.plot(2 ** np.arange(2, 2 + counts.shape[1]), counts.mean(0), marker=LOOKS[kind], linewidth=0.8,
                    color=COLOURS["measured"], mfc=COLOURS["page"] if D == 2 else None)  # fmt: skip
        ax.set_xscale("log", base=2)
        last = settings.queries[1]
        for D, n, low in ((1, np.array([last / 8, last]), 0.1 * top), (2, np.array([4, 8]), 0.55 * top)):
            level = low + D * np.log2(n / n[0])
            ax.plot(n, level, "--", color=COLOURS["predicted"], linewidth=1.5)
            up = {"xytext": (0, 5)} if D == 2 else {"xytext": (4, -12)}
            ax.annotate(f"slope {D}", (n[D - 1], level[D - 1]), textcoords="offset points", fontsize=9, **up,
                        color=COLOURS["predicted"])  # fmt: skip
        ax.set_title("Finest grid")
        ax.set_xlabel("queries n")

    def draw(figure):
        left, right = figures.panels(figure, 2, sharey=True)
        left.set_ylim(0, top)
        by_bits(left)
        by_queries(right)
        figures.legend_below(figure, kinds_of_networks())

    coarse, fine = (np.mean([x / D for x, (_, D) in zip(found, CASES, strict=True)])
                    for found in (result.coarse, result.fine))  # fmt: skip
    return figures.show(
        draw, size=(7, 4.8), panels=2, name="grids",
        finding=f"The first two bits of a tuned number bring {coarse:.2f} bits of behaviours each; on the finest grid"
        f" a doubling of the queries brings {fine:.2f} a number.",
        caption="Means over random networks of each kind, the last of which reads one prompt token alone. Every value"
        " of the tuned numbers is run, on queries that some prompts answer differently. The shaded region is closed to"
        " two numbers of $b$ bits.",
        alt="Left: bits of behaviours against bits a coordinate for three kinds of random network with one and two"
        " tuned numbers, beside the counting lines: they follow the lines for a few bits and level off. Right: at the"
        " finest grid, bits of behaviours against the number of queries, beside lines of slope one and two.",
    )  # fmt: skip


def stored_figure(result: Result) -> figures.Picture:
    """Bits that one coordinate stores against the bits it has: made for it, random, and tuned."""
    grids, tuned = result.grids, result.tuned
    curve = np.array([[b, *value] for (b, name), value in tuned.bits.items() if name == "float32"])
    most = max(bits[0] for bits in tuned.bits.values())
    full = max(f.significand for name, f in FORMATS.items() if result.kept[name, f.significand].all())

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_xlim(0.9, 75)
        ax.set_ylim(min(0.2, 0.8 * curve[:, 2].min()), 110)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
        line = np.array([0.9, 75])
        figures.forbid(ax, line, line, 110)
        ax.text(0.03, 0.96, "forbidden: more bits\nthan the number has", transform=ax.transAxes, va="top", fontsize=9,
                color=COLOURS["forbidden"])  # fmt: skip
        ax.plot(line, line, color=COLOURS["bound"], label="all bits used")
        unfolded = np.array([(x.b, x.counted) for x in result.unfolded if x.K == 1])
        ax.plot(*unfolded.T, "D", color=COLOURS["constructed"], markersize=4, label="tent network")
        for name, f in FORMATS.items():
            ax.plot(f.significand, f.significand, "D", color=COLOURS["constructed"], mfc=COLOURS["page"], markersize=7)
            if f.significand > 20 or not figures.narrow(figure):
                ax.annotate(f"{name} {f.significand}", (f.significand,) * 2, xytext=(-8, 3), ha="right", fontsize=9,
                            textcoords="offset points", color=COLOURS["constructed"])  # fmt: skip
        for D, marker in ((1, "o"), (2, "s")):
            counts = np.mean([grids.by_bits[kind, D].mean(0) for kind in KINDS], 0)[1:] / D
            ax.plot(np.arange(1, len(counts) + 1), counts, marker, color=COLOURS["measured"], linestyle="-",
                    linewidth=0.8, mfc=None if D == 1 else COLOURS["page"],
                    label=f"random networks, {MADE[D]}")  # fmt: skip
        ends = [curve[:, 1] - curve[:, 2], curve[:, 3] - curve[:, 1]]
        ax.errorbar(curve[:, 0], curve[:, 1], ends, fmt="^-", color=COLOURS["heuristic"], linewidth=0.8,
                    label="tuned prompts, retained")  # fmt: skip
        ax.set_xlabel("bits of a number (of a float: of its significand)")
        ax.set_ylabel("bits a number stores")
        figures.legend_below(figure)

    return figures.show(
        draw, size=(7, 5), name="stored",
        finding=f"A network made for it stores every bit of the significand, up to {full}; tuned prompts retain at most"
        f" {most:.2f} bits a number.",
        caption="Both axes are logarithmic. Small diamonds: every prompt of the tent network run; open ones: number"
        " formats, all labelings drawn are held. Intervals at 95 % of the mean over labelings.",
        alt="Bits that one coordinate of a prompt stores, against the bits it has, both on logarithmic axes. The tent"
        " network lies on the counting line up to 24 bits in float32 and 53 bits in float64. Behaviours of random"
        " networks with one or two tuned numbers follow the line for a few bits and level off; tuned prompts level off"
        " lower.",
    )  # fmt: skip


def tuned_table(result: Result) -> figures.Table:
    """Recall and retained bits at each precision, and the best of all prompts where all were run."""
    tuned = result.tuned
    header = ("bits a coordinate", "arithmetic", "recall, tuned", "retained bits a coordinate", "interval",
              "best of all prompts")  # fmt: skip
    return figures.Table(header, [
        (b, name, f"{tuned.recalls[b, name].mean():.3f}", f"{value:.2f}", f"{low:.2f} to {high:.2f}",
         f"{tuned.best_bits[b][0]:.2f}" if b in tuned.best_bits else "–")
        for (b, name), (value, low, high) in tuned.bits.items()
    ])  # fmt: skip
