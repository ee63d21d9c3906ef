"""Figures and tables of chapter 4b."""

import math

import numpy as np

from prompt_memory import bounds
from prompt_memory.book import figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.experiments.construction import Result
from prompt_memory.experiments.construction_protocol import WIDTH


def codes_table(result: Result) -> figures.Table:
    """Each code with its ranges, bits and least margins."""
    header = ("keys", "d", "key width", "m", "largest cosine", "bits", "B, condition", "margin",
              "least B", "margin")  # fmt: skip
    return figures.Table(header, [
        (w.name, w.d, w.d_k, w.m, f"{w.cosine:.2f}", f"{w.bits:.0f}", f"{w.condition:.2f}", f"{min(w.smallest):.3f}",
         f"{w.least:.2f}", f"{w.exact:.3f}")
        for w in result.written
    ])  # fmt: skip


def signs_table(result: Result) -> figures.Table:
    """Sign prompts that were all run: bits written, counted and granted."""
    header = ("m", "constructed bits", "behaviours counted, log₂", "unordered prompts", "d·m")
    return figures.Table(header, [(row.m, *(f"{value:.2f}" for value in row[1:])) for row in result.signs])


def signs_figure(result: Result) -> figures.Picture:
    """Bits a token of sign prompts of width 32 with all sign vectors as keys."""
    m = 2 ** np.arange(1, 11)
    top = np.array([bounds.multiset_bits(WIDTH, int(k), 1) / k for k in m])
    gap = (top - (WIDTH - np.log2(m))).max()
    run = np.array([k for k, margin in result.hypercube.items() if margin >= 1 - 1e-4])

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_ylim(21, 34)
        figures.forbid(ax, m, top, 34)
        ax.plot(m, np.full(len(m), WIDTH), "--", color=COLOURS["bound"], linewidth=1.2)
        ax.plot(m, top, color=COLOURS["bound"])
        ax.plot(m, WIDTH - np.log2(m), color=COLOURS["constructed"])
        ax.plot(run, WIDTH - np.log2(run), "o", color=COLOURS["constructed"])
        figures.label_line(ax, m, np.full(len(m), WIDTH), "ordered sign prompts: d", colour="bound")
        figures.label_line(ax, m, top, "unordered", colour="bound", where=0.45, xytext=(12, 6), ha="left")
        ax.text(0.03, 0.06, "constructed: d − log₂ m\n(● built and run)", transform=ax.transAxes, fontsize=9,
                color=COLOURS["constructed"])  # fmt: skip
        ax.set_xlabel("prompt length m")
        ax.set_ylabel("bits a token (d = 32)")

    return figures.show(
        draw, name="sign-prompts",
        finding=f"What the keys cost is, up to {math.ceil(100 * gap) / 100:.2f} bits a token, what the lost order"
        " costs.",
        caption="Prompts of signs, all sign vectors of $d_k = \\log_2 m$ coordinates as keys. The shaded region is"
        " closed to any network that does not see the order of its prompt.",
        alt="Bits a token against prompt length for prompts of signs of width 32. The construction falls like 32 minus"
        " log m; the bound for unordered prompts runs less than one and a half bits above it; ordered prompts would"
        " have 32 bits.",
    )  # fmt: skip


def below_figure(result: Result) -> figures.Picture:
    """Worst margins and error rates below the condition."""
    orthogonal = result.below["orthogonal"]
    m, lowest = len(orthogonal.code), min(min(below.compensated) for below in result.below.values())

    def worst(ax):
        B = np.linspace(orthogonal.ranges[0], orthogonal.ranges[-1], 200)
        ax.plot(B, 2 * (np.exp(B) - m + 1) / (np.exp(B) + m - 1), color=COLOURS["bound"])
        ax.plot(B, 2 * (np.exp(B) - 1) / (np.exp(B) + 2 * m - 3), "--", color=COLOURS["constructed"])
        ax.plot(orthogonal.ranges, orthogonal.worst, "o", color=COLOURS["measured"])
        ax.plot(orthogonal.ranges, orthogonal.compensated, "s", color=COLOURS["constructed"])
        ax.axhline(0, color=COLOURS["neutral"], linewidth=0.8)
        ax.set_ylim(-2.2, 2.2)
        for at, text, height, side, va in (
            (math.log(m - 1), "ln(m−1) ", 0.98, "right", "top"),
            (math.log(3 * (m - 1)), " ln 3(m−1)", 0.06, "left", "bottom"),
        ):
            ax.axvline(at, color=COLOURS["bound"], linestyle=":", linewidth=1.2)
            place = {"transform": ax.get_xaxis_transform(), "ha": side, "va": va}
            ax.text(at, height, text, color=COLOURS["bound"], fontsize=9, **place)
        ax.text(0.03, 0.72, "■ compensated", transform=ax.transAxes, color=COLOURS["constructed"], fontsize=9)
        ax.text(0.03, 0.28, "● plain", transform=ax.transAxes, color=COLOURS["measured"], fontsize=9)
        ax.set_title("Worst table")
        ax.set_xlabel(f"logit range B ({m} orthogonal keys)")
        ax.set_ylabel("margin")

    def errors(ax):
        for name, marker, colour in (("orthogonal", "o", "predicted"), ("random", "^", "heuristic")):
            below = result.below[name]
            x = below.ranges / below.condition
            ax.plot(x, below.predicted_error, color=COLOURS[colour])
            ax.plot(x, below.error, marker, color=COLOURS["measured"], mfc=COLOURS["page"] if marker == "^" else None)
        ax.set_ylim(-0.01, 0.5)
        key = (("measured", "● orthogonal   △ random keys"), ("predicted", "— binomial tail"),
               ("heuristic", "— Gaussian heuristic"))  # fmt: skip
        for row, (colour, text) in enumerate(key):
            ax.text(0.98, 0.97 - 0.08 * row, text, transform=ax.transAxes, ha="right", va="top", fontsize=9,
                    color=COLOURS[colour])  # fmt: skip
        ax.set_title("Random tables")
        ax.set_xlabel("B over the range of the condition")
        ax.set_ylabel("fraction of bits wrong")

    def draw(figure):
        left, right = figures.panels(figure, 2)
        worst(left)
        errors(right)

    loses = "compensated values lose none at any range" if lowest > 0 else "compensated values lose some, too"
    return figures.show(
        draw, size=(7, 3.8), panels=2, name="below",
        finding=f"Plainly written, the worst table loses its first bit at $B = \\ln(m-1)$; {loses}.",
        caption="Left: the curves are the formulas of parts 2 and 3. Right: the curves were written down before the"
        " tables were drawn; the heuristic is the normal tail beyond $S_{ii}/(\\sum_{j \\ne i} S_{ij}^2)^{1/2}$,"
        " averaged over keys.",
        alt="Left: margin of the worst table against the logit range, for orthogonal keys. It follows the formula,"
        " crosses one at ln 3(m-1) and zero at ln(m-1); compensated tables stay positive. Right: fraction of wrong bits"
        " of random tables against the logit range, beside the predicted curves, for orthogonal and random keys.",
    )  # fmt: skip


def levels_figure(result: Result) -> figures.Picture:
    """Bits a value against the margin, written and read in one memory."""
    levels = result.levels
    memory, m, a = levels.memory, levels.m, levels.amplitude
    w = memory.values
    fine = np.geomspace(1.2, 2 / (2 * a / (max(levels.K) - 1)), 1200)  # 2/γ
    low = np.array([bounds.fixed_key_bits(4, 2, m, 2 / x, a) / (m * w) for x in fine])
    high = np.array([bounds.fixed_key_bits(4, 2, m, 2 / x) / (m * w) for x in fine])
    lipschitz = math.sqrt(1 + memory.ball_range**2)
    entropy = [bounds.entropy_bits(4, m, memory.radius, lipschitz, 1 / x) / (m * w) for x in fine]

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_ylim(0, 1.12 * entropy[-1])
        ax.plot(fine, entropy, "--", color=COLOURS["bound"], label="Theorem 2: keys free, too")
        figures.forbid(ax, fine, high, 1.12 * entropy[-1])
        ax.plot(fine, high, color=COLOURS["bound"], label="upper bound for given keys")
        ax.plot(fine, low, color=COLOURS["constructed"], label="constructed")
        ax.plot([2 / x for x in levels.reached], np.log2(levels.K), "o", color=COLOURS["constructed"],
                label="written and read")  # fmt: skip
        ax.text(0.07, 0.96, "forbidden for\ngiven keys", transform=ax.transAxes, va="top", fontsize=9,
                color=COLOURS["forbidden"])  # fmt: skip
        ax.set_xlabel("2/γ: largest spread of values over the margin")
        ax.set_ylabel("bits a value")
        figures.legend_below(figure)

    return figures.show(
        draw, size=(7, 4.3), name="levels",
        finding="Each halving of the margin buys a bit a value, within"
        f" {math.ceil(100 * (high - low).max() - 1e-6) / 100:.2g} bit of the bound for given keys.",
        caption="One fixed network. Theorem 2 counts $d$ coordinates a token and is drawn per value, so it rises $d/w$"
        " times as fast: for this width, twice.",
        alt="Bits a value against two over the margin, for one fixed network. The constructed staircase rises with"
        " slope one on the logarithmic axis, less than one bit below the staircase of the upper bound for given keys;"
        " Theorem 2, which lets keys vary too, lies above with twice the slope.",
    )  # fmt: skip


def listed_table(result: Result) -> figures.Table:
    """Complete lists of labelings behind two given keys."""
    header = ("margin γ", "promised, ⌈2a/γ⌉²", "listed, thresholds at the keys", "listed, other queries (largest)",
              "ceiling, ⌈2/γ⌉²")  # fmt: skip
    return figures.Table(header, [(f"{x.margin:g}", x.promised, x.own, x.other, x.ceiling) for x in result.listed])


def tuned_figure(result: Result) -> figures.Picture:
    """Bits against prompt length: constructed, tuned on, allowed."""
    tuned = result.tuned
    m, top = tuned.m, 2.2 * tuned.entropy[-1]
    highest = (tuned.real.bits / tuned.constructed).max()

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
        ax.set_ylim(0.7 * tuned.constructed[0], top)
        ax.set_xlim(0.9 * m[0], 1.12 * m[-1])
        figures.forbid(ax, m, tuned.entropy, top)
        ax.text(0.14, 0.95, "forbidden", transform=ax.transAxes, va="top", fontsize=9, color=COLOURS["forbidden"])
        ax.plot(m, tuned.entropy, color=COLOURS["bound"], label="Theorem 2: real prompts, margin 1")
        ax.plot(m, tuned.unordered, "--", color=COLOURS["bound"], linewidth=1.2,
                label="sign prompts, order unseen")  # fmt: skip
        ax.plot(m, tuned.constructed, color=COLOURS["constructed"], label="constructed, margin 1")
        for found, marker, shift, label in (
            (tuned.real, "o", 1.03, "tuned on from it, margin 1"), (tuned.signs, "s", 0.97, "tuned signs, no margin")
        ):  # fmt: skip
            ends = [found.bits - found.low, found.high - found.bits]
            face = COLOURS["page"] if marker == "s" else None
            ax.errorbar(m * shift, found.bits, ends, fmt=marker, color=COLOURS["measured"], mfc=face, label=label)
        ax.set_xlabel("prompt length m")
        ax.set_ylabel("bits memorised")
        figures.legend_below(figure)

    return figures.show(
        draw, size=(7, 5), name="tuned",
        finding="Bits are linear in prompt length: written down, tuned and allowed; tuning from the construction finds"
        f" at most {highest:.2f} times its bits.",
        caption="One frozen network, $d = 12$, with $B$ for all $16$ sign keys of $d_k = 4$; queries see themselves."
        " More and more labels are asked for while at least half of the labelings are found, from one start or the"
        " other; at the last such number $n$ a fraction $f$ of fresh labelings is found, which makes"
        " $n + \\log_2 f$ bits, with intervals at 95 %.",
        alt="Bits memorised against prompt length on doubly logarithmic axes. The constructed line is linear; real"
        " prompts that tuning reaches from there lie on it or little above it; the count of sign prompts lies up to one"
        " and a half times above it, and Theorem 2 several times above, with everything beyond it forbidden.",
    )  # fmt: skip


def tuned_table(result: Result) -> figures.Table:
    """The numbers behind the figure."""
    t = result.tuned
    header = ("m", "constructed", "found, real prompts", "found, sign prompts", "unordered sign prompts", "d·m",
              "Theorem 2", "Theorem 2 / constructed")  # fmt: skip
    return figures.Table(header, [
        (m, f"{built:.0f}", f"{real:.1f}", f"{signs:.1f}", f"{unordered:.1f}", t.d * m, f"{entropy:.0f}",
         f"{entropy / built:.1f}")
        for m, built, real, signs, unordered, entropy in zip(
            t.m, t.constructed, t.real.bits, t.signs.bits, t.unordered, t.entropy, strict=True)
    ])  # fmt: skip
