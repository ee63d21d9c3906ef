"""Figures and tables of chapter 9."""

import numpy as np

from prompt_memory import bounds
from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS, Table
from prompt_memory.experiments.hypotheses import B0, EPS, RANGES, Result
from prompt_memory.experiments.hypotheses_escapes import FORMATS, WIDE, Escapes


def _growth(result: Result, escapes: Escapes) -> str:
    """Do the retained bits grow where a hypothesis is dropped, and stay where all are kept?"""
    bits = result.bits
    dropped = [bits["argmax"], bits["N², d_k = 2"], bits["N, d_k = 2"], result.near, escapes.without]
    kept = [bits["baseline, B = 4"], escapes.with_norm]
    grow = all(values[-1] > 1.2 * values[0] for values in map(list, dropped))
    flat = all(max(values) <= 1.2 * min(values) for values in map(list, kept))
    finding = "Each dropped hypothesis lets retained bits grow" if grow else "Not every dropped hypothesis shows growth"
    return finding + ("; kept ones hold them flat." if flat else "; with all of them kept bits are not flat.")


def all_figure(result: Result, escapes: Escapes) -> figures.Picture:
    """Retained bits against context length, for all memories of key dimension two."""
    last, bits = 2.0**result.settings.octaves, result.bits

    def draw(figure):
        small = figures.narrow(figure)
        ax = figure.subplots()
        x, top = np.array([16.0, last]), 4 * last
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set(ylim=(1.5, top), xlim=(14, last * (1.3 if small else 40)))
        figures.forbid(ax, x, result.ceiling, top)
        ax.plot(x, [result.ceiling] * 2, color=COLOURS["bound"], label="bounded logits, B = 4: no more")

        def curve(name, text, colour, marker):
            size = result.sizes[name].astype(float)
            keep = size <= last
            style = {"color": COLOURS[colour], "marker": marker, "markersize": 4, "linewidth": 1.2}
            ax.plot(size[keep], bits[name][keep], label=text, **style)
            if not small:
                note(text, (size[keep][-1], bits[name][keep][-1]), colour)

        def note(text, place, colour, up=0):
            ax.annotate(text, place, xytext=(7, up), textcoords="offset points", va="center", fontsize=9,
                        color=COLOURS[colour])  # fmt: skip

        curve("argmax", "argmax", "heuristic", "D")
        curve("N², d_k = 2", "B ∝ N²", "constructed", "s")
        curve("N, d_k = 2", "B ∝ N", "constructed", "^")
        ax.plot(2.0**result.visible, result.near, color=COLOURS["predicted"], marker="v", markersize=4, linewidth=1.2,
                label="B = log₂ N")  # fmt: skip
        curve("baseline, B = 4", "baseline", "measured", "o")
        if not small:
            note("B = log₂ N", (last, result.near[-1]), "predicted", 2)
        hollow = {"mfc": "none", "markersize": 8, "linestyle": "none"}
        ax.plot(escapes.long, escapes.without, "s", color=COLOURS["constructed"], label="network, no norm", **hollow)
        ax.plot(escapes.long, escapes.with_norm, "s", color=COLOURS["measured"], label="network, pre-norm", **hollow)
        ax.plot(escapes.exact_sizes, escapes.exact_sizes, "*", color=COLOURS["neutral"], markersize=10,
                label="exact numbers, no margin")  # fmt: skip
        if small:
            figures.legend_below(figure)
        else:
            named = ("network", "exact", "bounded")
            handles = [line for line in ax.lines if line.get_label().startswith(named)]
            ax.legend(handles=handles, loc="upper left", fontsize=8)
        ax.set(xlabel="tokens in the context, N", ylabel="bits retained")

    return figures.show(
        draw, size=(7, 4.8), panels=2, name="escapes",  # on a phone the legend needs room of its own
        finding=_growth(result, escapes),
        caption="Key dimension two. Hollow squares are networks with fixed weights that were run. The shaded region is"
        " closed to every context while logits are bounded by 4 and answers need a margin.",
        alt="Retained bits against context length for one memory of key dimension two. With all hypotheses kept it is"
        " flat. Logits scaled by log N rise very slowly; B proportional to N gives the square root of N; B"
        " proportional to N squared, argmax attention, growing prompt norms without a norm, and exact numbers without"
        f" margin grow linearly. A line marks the {result.ceiling:.0f} bits that Theorem 6 allows for bounded logits.",
    )  # fmt: skip


def escaping(result: Result, escapes: Escapes) -> dict[str, str]:
    """Which escapes pass the line of bounded logits at these contexts, and which are still below."""
    ends = {
        "argmax": result.bits["argmax"], "B ∝ N²": result.bits["N², d_k = 2"],
        "growing prompt vectors without a norm": escapes.without, "B ∝ N": result.bits["N, d_k = 2"],
        "B = log₂ N": result.near,
    }  # fmt: skip
    passing = [name for name, values in ends.items() if max(values) > result.ceiling]
    return {"passing": ", ".join(passing) or "none",
            "not_passing": ", ".join(name for name in ends if name not in passing) or "none"}  # fmt: skip


def packing_figure(result: Result) -> figures.Picture:
    """Facts held at bounded logits, and the packing bounds."""
    fine = np.geomspace(2, 64, 60)

    def draw(figure):
        for ax, names in zip(figures.panels(figure, 2), (("interval",), ("circle", "disc")), strict=True):
            d_k = len(names)
            top = 1.25 * bounds.addressed_facts(d_k, 64, EPS)
            limit = np.array([bounds.addressed_facts(d_k, B, EPS) for B in fine])
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.set_ylim(0.9, top)
            figures.forbid(ax, fine, limit, top)
            ax.plot(fine, limit, color=COLOURS["bound"], label="9a, part 1")
            if d_k == 2:
                sphere = [bounds.sphere_facts(2, B, EPS) for B in fine]
                ax.plot(fine, sphere, "--", color=COLOURS["bound"], linewidth=1.2, label="part 2, for the circle")
            for name, marker in zip(names, "os", strict=False):
                facts, face = result.facts(name), COLOURS["page"] if marker == "s" else None
                label = name if name == "circle" else f"{name}, repeated tokens"
                ax.plot(
                    RANGES[facts > 1], facts[facts > 1], marker, color=COLOURS["constructed"], mfc=face, label=label
                )
            ax.legend(loc="lower right", fontsize=8)
            ax.set_title(f"d_k = {d_k}")
            ax.set_xlabel("largest logit B")
            ax.set_ylabel("facts held")

    n = result.numbers
    return figures.show(
        draw, size=(7, 3.6), panels=2, name="packing",
        finding=f"At the largest logits the circle fills its bound to {n['circle_share']} %, the interval to"
        f" {n['interval_share']} %.",
        caption="Facts of which every labeling is held. Repeating inner tokens makes them as loud as the rim.",
        alt="Facts held against the largest logit on logarithmic axes. Left, keys on an interval: built memories and"
        " the packing bound, with slope one half. Right, circle with slope one half and lattice in a disc with slope"
        " one, and their bounds.",
    )  # fmt: skip


def logarithm_figure(result: Result) -> figures.Picture:
    """Bits of the two logarithmic memories against log N."""
    octaves = np.arange(4, 65, 4)

    def draw(figure):
        axes = figures.panels(figure, 2)
        for ax, d_k, slope in zip(axes, (2, 3), ("½", "1"), strict=True):
            bits = result.bits[f"log, d_k = {d_k}"]
            limit = np.array([bounds.sphere_facts(d_k, B, EPS) for B in octaves])
            straight = bits[-1] * (octaves / 64) ** ((d_k - 1) / 2)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.plot(octaves, limit, color=COLOURS["bound"], label="9a, part 2 (facts held)")
            ax.plot(octaves, straight, color=COLOURS["predicted"], linewidth=1.2, label=f"slope {slope}")
            ax.plot(octaves, bits, "o", color=COLOURS["measured"], label="measured")
            ax.legend(loc="upper left", fontsize=8)
            ax.set_title(f"d_k = {d_k}")
            ax.set_ylim(top=4 * limit[-1])
            ax.set_xlabel("log₂ N = B")
            ax.set_ylabel("bits retained")

    n = result.numbers
    return figures.show(
        draw, size=(7, 3.6), panels=2, name="logarithm",
        finding=f"Logits scaled by $\\log N$ buy a power of $\\log N$: exponents {n['log_2']} and {n['log_3']}.",
        caption="Contexts up to $2^{64}$ tokens, which is possible because repeated tokens are weights.",
        alt="Bits retained with logits scaled by log N against log N up to 64, both axes logarithmic. For key dimension"
        " two the points follow slope one half, for three slope one; both lie below the packing bounds.",
    )  # fmt: skip


def precision_figure(escapes: Escapes) -> figures.Picture:
    """Facts recalled without a margin against precision."""
    M = np.arange(4, 141, 2)
    cost = np.array([-bounds.circle_gain_log2(int(k), B0) for k in M])
    x = escapes.precisions
    top = [bounds.moment_bits(k=None, d_k=2, d_v=1, heads=1, B=B0, scale=1.0, lipschitz=1.0, eps=2.0**-p) for p in x]

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_ylim(2, 2**15)
        figures.forbid(ax, x, top, 2**15)
        ax.plot(x, top, color=COLOURS["bound"], label="Theorem 6 at margin 2·2⁻ᵖ")
        ax.plot(cost, M, color=COLOURS["predicted"], label="9f: λ_min = 2⁻ᵖ")
        bits = [p for _, p in FORMATS.values()]
        ax.plot(bits, escapes.found, "o", color=COLOURS["measured"], label="number formats")
        ax.plot([-a for a in escapes.amplitudes], escapes.exact_sizes, "s", color=COLOURS["constructed"],
                mfc=COLOURS["page"], label="exact arithmetic: margin 2·2⁻ᵖ")  # fmt: skip
        for name, p, k in zip(FORMATS, bits, escapes.found, strict=True):
            ax.annotate(name, (p, k), xytext=(3, -9), textcoords="offset points", fontsize=8, va="top",
                        color=COLOURS["measured"], rotation=-35)  # fmt: skip
        figures.legend_below(figure)
        ax.set_xlabel("p: significant bits, or −log₂ of half the margin")
        ax.set_ylabel("facts recalled, all of them")

    return figures.show(
        draw, name="precision", finding="Without a margin a bounded head holds what its precision pays for.",
        caption=f"Facts recalled at $B = 4$: {escapes.numbers['formats']}.",
        alt="Facts recalled without margin by a bounded head, against bits of precision, on logarithmic axes. Number"
        " formats and exact arithmetic follow the predicted curve, which grows almost linearly in precision; the bound"
        " of Theorem 6 lies far above.",
    )  # fmt: skip


def search_table(result: Result) -> Table:
    """The most facts that a search holds, and the bound."""
    header = ("d_k", "B", "most facts found by search", "bound of 9a")
    return Table(header, [(d_k, f"{B:.0f}", M, f"{limit:.2f}") for d_k, B, M, limit in result.attacked])


def growth_table(result: Result) -> Table:
    """Bits and exponents of the seven memories."""
    header = ("memory", "largest N", "bits there (95 %)", "exponent of N", "exponent of ln N", "power of N off by",
              "power of ln N off by")  # fmt: skip
    return Table(header, result.lines)


def crowd_table(result: Result) -> Table:
    """Bits with one fact a token."""
    return Table(("N, one fact per token", *result.soft[:2]), result.crowded)


def wide_table(escapes: Escapes) -> Table:
    """Bits a fact with random keys in many dimensions."""
    header = ("N", *(f"bits per fact, d_k = {d_k}" for d_k in WIDE))
    rows = enumerate(escapes.wide_sizes)
    return Table(header, [(f"{N:,}", *(f"{value:.2f}" for value in escapes.wide_bits[:, i])) for i, N in rows])
