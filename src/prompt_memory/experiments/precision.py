"""Chapter 4c, precision: forecasts and claims about labels that need no margin.

`run` writes its forecasts down before anything is measured, runs the experiments and judges the claims. How things are
measured is in `precision_protocol`, figures and tables are in `precision_figures`.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats

from prompt_memory import bounds, intervals
from prompt_memory.book import claims
from prompt_memory.experiments import precision_protocol as protocol
from prompt_memory.experiments.precision_protocol import (
    CASES,
    COORDINATES,
    FORMATS,
    LABELS,
    PROFILES,
    Grids,
    Settings,
    TunedBits,
    Unfolded,
)  # fmt: skip

FLOATING = "Theorem 4c, part 4, in floating point"
SIX, FINE, DOUBLE = (6, "float32"), (20, "float32"), (20, "float64")  # bits a coordinate, arithmetic


@dataclass
class Result:
    """Everything that chapter 4c measured."""

    settings: Settings
    unfolded: list[Unfolded] = field(default_factory=list)
    kept: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # (format, b) to labelings held
    grids: Grids = None
    coarse: list[float] = field(default_factory=list)  # bits of behaviours a bit, case by case
    fine: list[float] = field(default_factory=list)  # bits of behaviours a doubling of queries
    tuned: TunedBits = None
    numbers: dict[str, str] = field(default_factory=dict)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """All experiments of the chapter; each forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    result = Result(settings)
    result.unfolded = protocol.unfold(settings, generator)
    judge_unfolded(record, result)
    predict_beyond(record, settings)
    result.kept = protocol.held_in_formats(settings, generator)
    judge_formats(record, result)
    predict_grids(record, settings)
    result.grids = protocol.count_on_grids(settings, generator)
    judge_grids(record, result)
    tuning = protocol.Tuning(settings, generator)
    predict_tuned(record, settings)
    result.tuned = tuning.run(record.seed)
    judge_tuned(record, result)
    return result


# --- the tent network ----------------------------------------------------------------------------------------------


def judge_unfolded(record: claims.Recorder, result: Result) -> None:
    """Part 4 and both bounds of part 5, all prompts run."""
    every = result.unfolded
    counted, bits = [x.counted for x in every], [x.b * x.K for x in every]
    entropy = [bounds.entropy_bits(x.K, 1, 1 - 2.0**-x.b, x.slope, 0.5) for x in every]
    at = {"(b, K)": [[x.b, x.K] for x in every]}
    for key, theorem, statement, bound in (
        ("tent-all", "Theorem 1, Theorem 4c, part 4",
         "The $2^{bK}$ prompts show $bK$ bits of behaviours: every labeling of $bK$ queries", bits),
        ("tent-entropy", "Theorem 2, Theorem 4c, part 4",
         "The bits shown equal $K \\log_2(1 + r\\Lambda/\\varepsilon)$ at the measured $\\Lambda$, $r = 1 - 2^{-b}$,"
         " $2\\varepsilon = 1$", entropy),
    ):  # fmt: skip
        record.theorem(key, theorem=theorem, statement=statement, measured=counted, bound=bound, possible=(0, bits),
                       relation="==", tolerance=1e-9, parameters=at)  # fmt: skip
    record.theorem(
        "tent-margin", theorem="Theorem 4c, part 4", measured=[x.margin for x in every], bound=1.0, possible=0.0,
        statement="Every prompt answers every query with margin at least 1", relation=">=", parameters=at,
    )  # fmt: skip
    result.numbers |= {"tent_most": f"{2 ** max(bits):,}", "tent_shapes": f"{len(every)}"}


def predict_beyond(record: claims.Recorder, settings: Settings) -> None:
    """What rounding leaves one bit beyond the significand."""
    record.predict(
        "tent-beyond", theorem=FLOATING, predicted=[0.75 + 2.0**-24, 0.75 + 2.0**-53], possible=(0, 1),
        statement="One bit beyond the significand, $\\frac34 + 2^{-p}$ of random labelings are held by their own"
        " rounded codes, for float32 and float64",
        absolute=0.2 if settings.short else 0.08,
    )  # fmt: skip


def judge_formats(record: claims.Recorder, result: Result) -> None:
    """Everything up to the significand; the fraction one bit beyond."""
    kept = result.kept
    within = [(name, b) for name, b in kept if b <= FORMATS[name].significand]
    record.theorem(
        "tent-format", theorem=FLOATING, relation="==",
        statement="Every labeling drawn is held up to $b = p$, the significand: 8, 11, 24 and 53 bits",
        measured=[kept[key].mean() for key in within], bound=1.0, possible=(0, 1),
        parameters={"format, b": [list(key) for key in within], "labelings": [len(kept[key]) for key in within]},
    )  # fmt: skip
    record.theorem(
        "tent-round", theorem=FLOATING, relation="==", tolerance=1e-12,
        statement="At $b = p + 1$ exactly $\\frac34 + 2^{-p}$ of all labelings are held by their own rounded codes:"
        " bfloat16 and float16, every labeling run",
        measured=[kept["bfloat16", 9].mean(), kept["float16", 12].mean()], bound=[0.75 + 2.0**-8, 0.75 + 2.0**-11],
        possible=(0, 1),
    )  # fmt: skip
    beyond = [kept["float32", 25], kept["float64", 54]]
    ends = [intervals.clopper_pearson(x.sum(), len(x), 0.05 / len(beyond)) for x in beyond]
    record.measure("tent-beyond", [x.mean() for x in beyond], interval=np.transpose(ends))
    result.numbers["most_held"] = f"{max(b for (name, b) in within if kept[name, b].all())}"


# --- networks made for nothing -------------------------------------------------------------------------------------


def predict_grids(record: claims.Recorder, settings: Settings) -> None:
    """Growth with the number of queries on a fine grid."""
    record.predict(
        "exponent-fine", theorem="Theorem 4c, density", predicted=[D for _, D in CASES],
        statement="When the grid is fine, $\\log_2 N_n$ of such networks grows by $D$ for every doubling of $n$ (mean"
        " of the last two doublings)",
        possible=(0, [settings.queries[D] / 2 for _, D in CASES]), absolute=1.0 if settings.short else 0.3,
        parameters={"networks": [list(case) for case in CASES]},
    )  # fmt: skip


def judge_grids(record: claims.Recorder, result: Result) -> None:
    """Parts 1 and 2 on the finest grid, and the forecast of the growth."""
    grids, networks = result.grids, result.settings.networks
    counted, bound, possible = zip(*grids.proved, strict=True)
    record.theorem(
        "grid-proved", theorem="Theorem 4c, parts 1 and 2", measured=counted, bound=bound, possible=possible,
        statement="$\\log_2 N_n$ on the finest grid is at most what holds for all real prompts", tolerance=1e-9,
    )  # fmt: skip
    slopes = np.array([(grids.by_queries[case][:, -1] - grids.by_queries[case][:, -3]) / 2 for case in CASES])
    fine, spread = slopes.mean(1), np.maximum(stats.sem(slopes, axis=1), 1e-9)
    interval = stats.t.interval(1 - 0.05 / len(CASES), networks - 1, fine, spread)
    record.measure("exponent-fine", fine, interval=interval)
    result.coarse = [(grids.by_bits[case][:, 2] - grids.by_bits[case][:, 0]).mean() / 2 for case in CASES]
    result.fine = list(fine)
    for D in (1, 2):
        for name, found in (("fine", result.fine), ("coarse", result.coarse)):
            here = [x for x, case in zip(found, CASES, strict=True) if case[1] == D]
            result.numbers[f"{name}_{D}"] = ", ".join(f"{x:.2f}" for x in here)


# --- tuned prompts -------------------------------------------------------------------------------------------------


def predict_tuned(record: claims.Recorder, settings: Settings) -> None:
    """More precision than six bits brings nothing, nor does float64."""
    for key, statement in (
        ("tuned-saturates", "Bits that tuning retains with 20 bits a coordinate, over those with 6: more precision"
         " brings nothing"),
        ("tuned-formats", "Bits that tuning retains in float64, over those in float32"),
    ):  # fmt: skip
        record.predict(key, theorem="Precision and search", predicted=1.0, possible=(0, math.inf), searched=True,
                       relative=0.5 if settings.short else 0.2, statement=statement)  # fmt: skip


def judge_tuned(record: claims.Recorder, result: Result) -> None:
    """Both forecasts; and the ceiling of Theorem 1 for few bits (from three bits on, bD = n: nothing to refute)."""
    tuned, rare = result.tuned, math.log2(claims.LEVEL / claims.FAMILY)
    more, double = tuned.ratio(FINE, SIX), tuned.ratio(DOUBLE, FINE)
    record.measure("tuned-saturates", *more)
    record.measure("tuned-formats", *double)
    judged = [(tuned.recalls[b, "float32"], b) for b in (1, 2)]
    judged += [(recall, b) for b, recall in tuned.best.items()]
    record.theorem(
        "tuned-ceiling", theorem="Theorem 1, part 5",
        statement="Mean recall of tuned and of best prompts is at most what $bD$ bits exceed with probability"
        " $10^{-10}$ only, $b = 1$ and $2$",
        measured=[recall.mean() for recall, _ in judged],
        bound=[bounds.mean_recall_quantile(b * COORDINATES, LABELS, 2, len(recall), rare) for recall, b in judged],
        possible=1.0, tail=True, searched=True,
        parameters={"D": COORDINATES, "n": LABELS, "labelings": result.settings.labelings},
    )  # fmt: skip
    result.numbers |= {
        "tuned_most": f"{max(bits[0] for bits in tuned.bits.values()):.2f}",
        "more_bits": f"{more[0]:.2f}", "double": f"{double[0]:.2f}",
        "tuned_one": f"{tuned.bits[1, 'float32'][0]:.2f}", "best_one": f"{tuned.best_bits[1][0]:.2f}",
    }  # fmt: skip
