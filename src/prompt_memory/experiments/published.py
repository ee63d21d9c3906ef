"""Chapter 4d, the follow-up's published numbers: which ε gives which ratio, and what the slopes are in bits.

Nothing is drawn and nothing is tuned: published constants go into published and own formulas.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from prompt_memory import bounds
from prompt_memory.book import claims, figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.real import architectures

BALL, REFINED = (7.8, 20), (4.6, 10.8)  # the paper's table, ratios of bound to slope: smallest, largest
ROUND_TO_BALL = (7.75, 7.85, 19.5, 20.5)  # between which they lie if they round to these
CODE_EPS, TABLE_EPS = 2.0**-11, 2.0**-10  # the code's ε, relative to the radius; an absolute one that fits the table
CAPACITY = {"Pythia-160M": 787, "Pythia-410M": 1049, "Llama-3.2-1B": 1931}  # the code's models_list.csv, "max capacity"
CODE, TABLE, FLOAT16 = "ε = r/2048 (code)", "ε = 2⁻¹⁰ (fits the table)", "float16 in [−r, r]"
BFLOAT16 = "bfloat16 in [−r, r]"


@dataclass(frozen=True)
class Constants:
    """The paper's table: widths, vocabularies, radii, and slopes C in tokens of natural text a prompt vector."""

    names: tuple[str, ...]
    d: Int[np.ndarray, " K"]
    V: Int[np.ndarray, " K"]
    r: Float[np.ndarray, " K"]
    C: Float[np.ndarray, " K"]

    def ratios(self, eps) -> Float[np.ndarray, " K"]:
        """Bound over published slope; `eps` is one number or one for each model."""
        rows = zip(self.d, self.V, self.r, np.broadcast_to(eps, self.r.shape), strict=True)
        return np.array([bounds.accessible_slope(int(d), int(V), r, e) for d, V, r, e in rows]) / self.C

    def eps_for(self, ratio: float) -> Float[np.ndarray, " K"]:
        """The resolution of each model at which its bound is `ratio` times its slope."""
        return 2 * self.r / np.expm1(ratio * self.C * np.log(self.V) / self.d)

    def admissible(self, unit) -> tuple[float, float]:
        """The interval of x for which ε = x·unit gives ratios that round to the table's; empty if low > high."""
        x = {ratio: self.eps_for(ratio) / unit for ratio in ROUND_TO_BALL}  # a ratio exceeds its key if ε is below
        low, high = max(x[7.85].min(), x[20.5].max()), min(x[7.75].min(), x[19.5].max())
        return float(low), float(high)


@dataclass
class Result:
    """The published constants and what follows from them; `bits` are bits a coordinate that each bound allows."""

    published: Constants
    used: Float[np.ndarray, " K"]  # bits a coordinate of the published slopes, if each token were worth log2 V
    bits: dict[str, Float[np.ndarray, " K"]]
    numbers: dict[str, str] = field(default_factory=dict)


def constants() -> Constants:
    """The seven models of the paper's table, from `architectures.PUBLISHED`."""
    rows = [(model.width, model.vocabulary, radius, slope) for model, radius, slope in architectures.PUBLISHED.values()]
    return Constants(tuple(architectures.PUBLISHED), *(np.array(column) for column in zip(*rows, strict=True)))


def run(*, record: claims.Recorder) -> Result:
    """Recompute the printed ratios, test two hypotheses on ε, and turn slopes into bits."""
    published = constants()
    per_coordinate = {
        CODE: np.full(len(published.names), math.log2(1 + 2 / CODE_EPS)),
        TABLE: np.log2(1 + 2 * published.r / TABLE_EPS),
        BFLOAT16: np.array([bounds.float_bits(x, exponent=8, fraction=7) for x in published.r]),
        FLOAT16: np.array([bounds.float_bits(x, exponent=5, fraction=10) for x in published.r]),
    }
    used = published.C * np.log2(published.V) / published.d
    for name in (CODE, BFLOAT16):  # measurements of text, for which neither is a theorem: no claim
        if not (per_coordinate[name] >= used).all():
            raise AssertionError(f"{name}: a published slope lies above")
    result = Result(published, used, per_coordinate)
    judge_ratios(record, result)
    judge_capacity(record, result)
    every = np.stack(list(per_coordinate.values()))
    worth = published.d / np.log2(published.V) / published.C
    result.numbers |= {
        "used_low": f"{used.min():.1f}", "used_high": f"{used.max():.1f}",
        "bound_low": f"{every.min():.0f}", "bound_high": f"{every.max():.0f}",
        "beyond": f"{int((per_coordinate[TABLE] > 16).sum())}",
        "two_low": f"{worth.min():.1f}", "two_high": f"{worth.max():.1f}",
        "ball_low": f"{BALL[0]}", "ball_high": f"{BALL[1]}",
        "refined_low": f"{REFINED[0]}", "refined_high": f"{REFINED[1]}",
    }  # fmt: skip
    return result


def judge_ratios(record: claims.Recorder, result: Result) -> None:
    """Which ε gives the printed ratios, and which the range of the table?"""
    published = result.published
    record.predict(
        "range-code", theorem="Published table: hypothesis on ε", predicted=BALL, possible=(0, np.inf), relative=0.025,
        statement="With the code's $\\varepsilon = r 2^{-11}$ the smallest and largest ratio of the seven models are"
        " those of the table, 7.8 and 20",
    )  # fmt: skip
    larger = architectures.LARGER
    record.theorem(
        "printed-ratios", theorem="Published notebook, recomputed", relation="==", possible=(0, np.inf), tolerance=1e-6,
        statement="With $\\varepsilon = r 2^{-11}$ the ratios of three larger models are the printed ones",
        measured=[bounds.accessible_slope(d, V, 1.0, CODE_EPS) / slope for d, V, slope, *_ in larger.values()],
        bound=[printed[3] for printed in larger.values()], parameters={"models": list(larger)},
    )  # fmt: skip
    code = published.ratios(published.r * CODE_EPS)
    record.measure("range-code", [code.min(), code.max()])
    record.predict(
        "range-absolute", theorem="Published table: hypothesis on ε", predicted=BALL, possible=(0, np.inf),
        relative=0.025,
        statement="With $\\varepsilon = 2^{-10}$ for all models the smallest and largest ratio of the seven models are"
        " those of the table, 7.8 and 20",
    )  # fmt: skip
    table = published.ratios(TABLE_EPS)
    record.measure("range-absolute", [table.min(), table.max()])
    low, high = published.admissible(1.0)
    result.numbers |= {
        "code_low": f"{code.min():.1f}", "code_high": f"{code.max():.1f}",
        "smallest": published.names[table.argmin()], "largest": published.names[table.argmax()],
        "absolute_low": f"{1e3 * low:.3f}", "absolute_high": f"{1e3 * high:.3f}",
    }  # fmt: skip


def judge_capacity(record: claims.Recorder, result: Result) -> None:
    """The column of maximal capacities in the published file is Theorem 1's count at 16 bits."""
    published = result.published
    count = 16 * published.d / np.log2(published.V)
    record.theorem(
        "capacity-column", theorem="Theorem 1 and the published file", relation="==", possible=(0, np.inf),
        tolerance=0.5, parameters={"models": list(CAPACITY)},
        statement="Three entries of the file's column of maximal capacities are $16 d / \\log_2 V$, rounded",
        measured=count[[published.names.index(name) for name in CAPACITY]], bound=list(CAPACITY.values()),
    )  # fmt: skip
    result.numbers["pythia_count"] = f"{count[published.names.index('Pythia-1B')]:.0f}"


def ratios_table(result: Result) -> figures.Table:
    """The constants, the ratios at two ε, and the ε that each end of the table's range would need."""
    p = result.published
    code, table = p.ratios(p.r * CODE_EPS), p.ratios(TABLE_EPS)
    ends = [p.eps_for(ratio) for ratio in BALL]
    header = ("model", "d", "V", "r", "slope C", "ratio at ε = r/2048", "at ε = 2⁻¹⁰",
              *(f"ε for ratio {ratio}" for ratio in BALL))  # fmt: skip
    return figures.Table(header, [
        (name, p.d[i], f"{p.V[i]:,}", p.r[i], p.C[i], f"{code[i]:.2f}", f"{table[i]:.2f}",
         *(f"{eps[i]:.2g}" for eps in ends))
        for i, name in enumerate(p.names)
    ])  # fmt: skip


def larger_table() -> figures.Table:
    """Printed ratios of three larger models, for the ball and for the box."""
    return figures.Table(("model", "ball, printed", "ball, recomputed", "box, printed", "box over ball"), [
        (name, f"{ball:.3f}", f"{bounds.accessible_slope(d, V, 1.0, CODE_EPS) / slope:.3f}", f"{box:.3f}",
         f"{box / ball:.3f}")
        for name, (d, V, slope, ball, box) in architectures.LARGER.items()
    ])  # fmt: skip


def bits_table(result: Result) -> figures.Table:
    """Bits a coordinate: of the published slopes, and what each bound allows."""
    meet = result.published.eps_for(1.0) / result.published.r
    header = ("model", "published slope", *result.bits, "ε/r at which bound = slope")
    return figures.Table(header, [
        (name, f"{result.used[i]:.2f}", *(f"{bits[i]:.2f}" for bits in result.bits.values()), f"{meet[i]:.2f}")
        for i, name in enumerate(result.published.names)
    ])  # fmt: skip


def tokens_table(result: Result) -> figures.Table:
    """The same bounds in tokens a vector, and what a factor of two in ε is worth."""
    p = result.published
    worth = p.d / np.log2(p.V)
    columns = [result.bits[CODE], result.bits[TABLE], np.full_like(worth, 16), result.bits[FLOAT16]]
    header = ("model", "slope C", "ε = r/2048", "ε = 2⁻¹⁰", "Theorem 1, 16 bits", FLOAT16, "one bit a coordinate")
    return figures.Table(header, [
        (name, p.C[i], *(f"{bits[i] * worth[i]:.0f}" for bits in columns), f"{worth[i]:.1f}")
        for i, name in enumerate(p.names)
    ])  # fmt: skip


def bits_figure(result: Result) -> figures.Picture:
    """Published slopes as bits a coordinate, beside what the bounds allow."""
    names, bits = result.published.names, result.bits

    def draw(figure):
        ax = figure.subplots()
        y = np.arange(len(names))[::-1]
        ax.set_xscale("log", base=2)
        ax.set_xlim(0.7, 40)
        ax.set_ylim(-0.6, len(names) + 1.6)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.axvspan(16, 40, color=COLOURS["forbidden"], alpha=0.13, linewidth=0)
        ax.plot(result.used, y, "o", color=COLOURS["measured"], markersize=7, label="published slope")
        mark = {"marker": "|", "markersize": 14, "markeredgewidth": 2.5, "linestyle": "none"}
        ax.plot(bits[CODE], y, color=COLOURS["bound"], label="bound, ε = r/2048", **mark)
        ax.plot(bits[FLOAT16], y, "s", color=COLOURS["bound"], markersize=5, label=f"counting, {FLOAT16}")
        ax.plot(bits[TABLE], y, "D", color=COLOURS["bound"], mfc=COLOURS["page"], label="bound, ε = 2⁻¹⁰")
        ax.set_yticks(y, names, fontsize=8 if figures.narrow(figure) else 9)
        ax.legend(loc="upper left", fontsize=8, ncols=1 if figures.narrow(figure) else 2, borderaxespad=0.2)
        ax.set_xlabel("bits a coordinate of a prompt vector")

    low, high = result.numbers["used_low"], result.numbers["used_high"]
    return figures.show(
        draw, size=(7, 4.2), name="published-bits",
        finding=f"Tuning was found to use {low} to {high} bits a coordinate; the bounds allow"
        f" {result.numbers['bound_low']} to {result.numbers['bound_high']}.",
        caption="Seven published models. In the shaded region a coordinate would hold more bits than a 16-bit format"
        " has.",
        alt="For seven published models, bits a coordinate on a logarithmic axis: the published slopes at the left,"
        " and to the right the bound at the code's epsilon, float16 numbers within the radius, and the bound at"
        " epsilon 2 to the minus 10; beyond 16 bits the region is shaded.",
    )  # fmt: skip
