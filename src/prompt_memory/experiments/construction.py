"""Chapter 4b, the construction: forecasts and claims about a memory written by hand.

`run` writes its forecasts down before anything is measured, runs the experiments and judges the claims. How things are
measured is in `construction_protocol`, figures and tables are in `construction_figures`.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int

from prompt_memory import bounds
from prompt_memory.book import claims
from prompt_memory.experiments import construction_protocol as protocol
from prompt_memory.experiments.construction_protocol import (
    LEVELS,
    PROFILES,
    SURPLUS,
    WIDTH,
    Below,
    Levels,
    Listed,
    Settings,
    Signs,
    TunedOn,
    Written,
)  # fmt: skip
from prompt_memory.network import construct
from prompt_memory.network.construct import Memory

PART_2, PART_3 = "Theorem 4b, part 2", "Theorem 4b, part 3"


@dataclass
class Result:
    """Everything that chapter 4b measured."""

    settings: Settings
    written: list[Written] = field(default_factory=list)
    signs: list[Signs] = field(default_factory=list)
    hypercube: dict[int, float] = field(default_factory=dict)  # keys m to the worst margin
    below: dict[str, Below] = field(default_factory=dict)
    levels: Levels = None
    listed: list[Listed] = field(default_factory=list)
    surplus: Float[np.ndarray, " J"] = None
    tuned: TunedOn = None
    numbers: dict[str, str] = field(default_factory=dict)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """All experiments of the chapter; each forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    result = Result(settings)
    judge_lipschitz(record, generator)
    result.written = protocol.every_bit(settings, generator)
    judge_written(record, result)
    judge_all_tables(record, *protocol.all_tables(settings))
    result.signs = protocol.sign_prompts(settings, generator)
    result.hypercube = protocol.hypercube_margins(settings)
    judge_signs(record, result)

    result.below = protocol.codes_below(settings, generator)
    predict_below(record, result)
    for below in result.below.values():
        protocol.measure_below(below, settings, generator)
    judge_below(record, result)

    result.levels = protocol.read_levels(settings, generator)
    judge_levels(record, result.levels, protocol.count_levels())
    result.listed = protocol.list_labelings(settings, generator)
    judge_listed(record, result)
    code = construct.hypercube_code(4)
    memory = construct.build_memory(code, 12, bounds.code_logit_range(protocol.gram(code), own_token=True))
    hits = protocol.decide(memory, 4, settings.decided, generator)
    judge_surplus(record, result, hits)
    result.tuned = protocol.tuned_on(memory, settings, generator)
    result.numbers |= tuned_numbers(result.tuned)
    return result


# --- one bit a value -----------------------------------------------------------------------------------------------


def slope(memory: Memory, prompt: Float[torch.Tensor, "m d"], query: Float[torch.Tensor, "1 d"]) -> float:
    """Σ_j ‖∂(v̂ − t)/∂p_j‖ at one prompt, the local Lipschitz constant in the norm max_j ‖p_j‖."""
    prompt = prompt[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(memory.read(prompt, query, own_token=False).sum(), prompt)
    return float(gradient.norm(dim=-1).sum())


def judge_lipschitz(record: claims.Recorder, generator: torch.Generator) -> None:
    """Part 1: the constant at random prompts in the ball, and at the extremal one."""
    memory = construct.build_memory(construct.circle_code(5), 5, 3.0, dtype=torch.float64)
    query, r = memory.ask(torch.tensor([1]), torch.tensor([2])), memory.radius
    ball = torch.randn(300, 4, 5, generator=generator, dtype=torch.float64)
    ball = ball * r / ball.norm(dim=-1, keepdim=True)
    extreme = torch.zeros(2, 5, dtype=torch.float64)
    extreme[:, 2 + 2] = torch.tensor([r, -r], dtype=torch.float64)
    constant, steepest = math.sqrt(1 + memory.ball_range**2), slope(memory, extreme, query)
    record.theorem(
        "lipschitz", theorem="Theorem 4b, part 1",
        statement="Local Lipschitz constants at random prompts in the ball and at the extremal one are at most"
        " $\\sqrt{1 + (Br/\\kappa)^2}$",
        measured=[*(slope(memory, prompt, query) for prompt in ball), steepest],
        bound=constant, possible=math.inf, tolerance=1e-9 * constant,
    )  # fmt: skip
    record.theorem(
        "lipschitz-attained", theorem="Theorem 4b, part 1", relation="==", possible=(0, math.inf),
        statement="... and the extremal prompt attains it", measured=steepest, bound=constant,
        tolerance=1e-9 * constant,
    )  # fmt: skip


def judge_written(record: claims.Recorder, result: Result) -> None:
    """Part 2: margins at the range of the condition, and at the least range."""
    written = result.written
    shapes = [[w.name, w.d, w.d_k, w.m] for w in written]
    record.theorem(
        "bits-margin", theorem=PART_2, relation=">=", possible=-2, tolerance=1e-4,
        statement="Every bit of every written table is recalled with margin $\\ge 1$ under the condition on $B(1-c)$,"
        " float32 and float64, with and without own token",
        measured=[margin for w in written for margin in w.smallest], bound=1.0,
        parameters={"networks": shapes, "tables": result.settings.patterns + 2},
    )  # fmt: skip
    record.theorem(
        "bits-sharp", theorem=PART_2, relation="==", possible=(-2, 2), tolerance=1e-9,
        statement="At the least $B$ whose leak is a quarter the worst table has the margin 1 exactly",
        measured=[w.exact for w in written], bound=1.0, parameters={"networks": shapes},
    )  # fmt: skip
    longest = max(written, key=lambda w: w.m)
    result.numbers |= {"longest": f"{longest.m}", "longest_bits": f"{longest.bits:,.0f}",
                       "most_bits": f"{max(w.bits for w in written):,.0f}"}  # fmt: skip


def judge_all_tables(record: claims.Recorder, recalled: list[int], count: list[int], least: list[float]) -> None:
    """Part 2 and Theorem 1, every table of small memories written."""
    record.theorem(
        "all-tables", theorem="Theorems 1 and 4b", relation="==",
        statement="Number of tables recalled without an error is $2^{m(d-d_k)}$, the number of prompts with these keys"
        " and values $\\pm 1$: Theorem 1 with equality",
        measured=recalled, bound=count, possible=(0, count),
    )  # fmt: skip
    record.theorem(
        "all-tables-margin", theorem=PART_2, relation=">=", possible=-2, tolerance=1e-4,
        statement="... and the least margin over all of them is at least 1", measured=least, bound=1.0,
    )  # fmt: skip


def judge_signs(record: claims.Recorder, result: Result) -> None:
    """Sign prompts: behaviours of all of them, and the worst margin with all sign vectors as keys."""
    record.theorem(
        "sign-prompts-written", theorem=PART_2, relation=">=",
        statement="Behaviours of all sign prompts, counted, are at least the $m(d-d_k)$ bits written",
        measured=[row.counted for row in result.signs], bound=[row.written for row in result.signs], possible=0,
    )  # fmt: skip
    record.theorem(
        "hypercube-margin", theorem=PART_2, relation=">=", possible=-2, tolerance=1e-4,
        statement="With all sign vectors as keys the worst table has margin $\\ge 1$ at"
        " $B = -\\frac{d_k}{2} \\ln((4/3)^{1/d_k} - 1)$ (adjusted for the own token)",
        measured=list(result.hypercube.values()), bound=1.0, parameters={"m": list(result.hypercube), "d": WIDTH},
    )  # fmt: skip


# --- below the condition -------------------------------------------------------------------------------------------


def predict_below(record: claims.Recorder, result: Result) -> None:
    """Error rates of random tables, before any is written."""
    for name, theorem, statement in (
        ("orthogonal", "Theorem 4b, below its condition", "orthogonal keys: the binomial tail $\\Pr[T > e^B]$"),
        ("random", "Heuristic: Gaussian noise", "random sign keys: the normal tail"),
    ):
        below = result.below[name]
        record.predict(
            f"errors-{name}", theorem=theorem, statement=f"Wrong bits of random tables, {statement}",
            absolute=0.03 if result.settings.short else 0.01, predicted=below.predicted_error, possible=(0, 1),
            parameters={"m": len(below.code), "B": below.ranges, "tables": result.settings.trials},
        )  # fmt: skip


def judge_below(record: claims.Recorder, result: Result) -> None:
    """Errors against their forecasts; worst margins, compensated margins and amplitudes against parts 2, 3 and 5."""
    every = list(result.below.values())
    ranges = {"B": {name: below.ranges for name, below in result.below.items()}}
    for name, below in result.below.items():
        middle, half = np.array(below.error), np.array(below.spread)
        record.measure(f"errors-{name}", middle, interval=(middle - half, middle + half))
    record.theorem(
        "worst-margin", theorem=PART_2, relation="==", possible=(-2, 2), tolerance=1e-9,
        statement="At every $B$, above and below the condition, the worst table's margin is $2(1 - 2\\rho)$"
        " (negative: errors)",
        measured=[below.worst for below in every], bound=[below.predicted_worst for below in every], parameters=ranges,
    )  # fmt: skip
    record.theorem(
        "compensated-margin", theorem=PART_3, relation=">=", possible=-2, tolerance=1e-9,
        statement="Compensated tables, the worst among them, are read with margin $2a > 0$ at every $B$",
        measured=[below.compensated for below in every], bound=[below.twice_amplitude for below in every],
        parameters=ranges,
    )  # fmt: skip
    orthogonal = result.below["orthogonal"]
    m, grown = len(orthogonal.code), np.exp(orthogonal.ranges)
    record.theorem(
        "amplitude-orthogonal", theorem=PART_3, relation="==", possible=(0, 2), tolerance=1e-9,
        statement="For orthogonal keys $2a = 2(e^B - 1)/(e^B + 2m - 3)$",
        measured=orthogonal.twice_amplitude, bound=2 * (grown - 1) / (grown + 2 * m - 3),
    )  # fmt: skip
    record.theorem(
        "amplitude-ceiling", theorem="Theorem 4b, part 5",
        statement="The amplitude reached is at most what part 5 allows at the range used,"
        " $(1 + (m-1) e^{-2B})^{-1/2}$",
        measured=[np.array(below.twice_amplitude) / 2 for below in every], possible=1,
        bound=[[bounds.amplitude_ceiling(len(b.code), float(B)) for B in b.ranges] for b in every],
    )  # fmt: skip
    early = math.log(2 * math.sqrt(m))
    result.numbers |= {
        "orthogonal_m": f"{m}", "early_range": f"{early:.1f}", "onset_range": f"{math.log(m - 1):.1f}",
        "errors_early": f"{100 * np.interp(early, orthogonal.ranges, orthogonal.error):.1f}",
        "margin_range": f"{math.log(3 * (m - 1)):.1f}",
    }  # fmt: skip


# --- more bits a value ---------------------------------------------------------------------------------------------


def judge_levels(record: claims.Recorder, levels: Levels, counts: list[int]) -> None:
    """Part 3 from below: K levels a value, random tables and all tables."""
    record.theorem(
        "levels-margin", theorem=PART_3, relation=">=", possible=0, tolerance=1e-9,
        statement="$K$ levels a value are read without an error, with margin $2a/(K-1)$",
        measured=levels.reached, bound=[2 * levels.amplitude / (K - 1) for K in levels.K],
        parameters={"K": levels.K, "m": levels.m, "w": levels.memory.values},
    )  # fmt: skip
    every = [K**3 for K in LEVELS]
    record.theorem(
        "levels-counted", theorem=PART_3, relation="==", measured=counts, bound=every, possible=(1, every),
        statement="All $K^{mw}$ tables of levels, written one by one, give as many different labelings",
    )  # fmt: skip


def judge_listed(record: claims.Recorder, result: Result) -> None:
    """Part 3 from both sides: complete lists of the labelings behind two given keys."""
    gammas, promised, own, other, ceiling, possible = map(np.array, zip(*result.listed, strict=True))
    record.theorem(
        "given-keys-ceiling", theorem=PART_3,
        statement="Labelings memorised with margin $\\gamma$ behind given keys, complete lists: at most"
        " $\\lceil 2/\\gamma \\rceil^{mw}$",
        measured=[own, other], bound=ceiling, possible=np.transpose(possible), parameters={"gamma": gammas},
    )  # fmt: skip
    record.theorem(
        "given-keys-floor", theorem=PART_3, relation=">=", measured=own, bound=promised, possible=0,
        statement="... and at least $\\lceil 2a/\\gamma \\rceil^{mw}$ for thresholds at the keys",
        parameters={"gamma": gammas},
    )  # fmt: skip


def judge_surplus(record: claims.Recorder, result: Result, hits: Int[np.ndarray, " J"]) -> None:
    """Part 3 at four keys: single labelings of more queries than stored values."""
    trials = result.settings.decided
    result.surplus = hits / trials
    record.sampled(
        "given-keys-surplus", theorem=PART_3,
        statement="With $j$ queries more than stored values, a fraction at most $2^{-j}$ of labelings is memorised"
        " with margin 1 behind given keys (linear programs)",
        mean=result.surplus, samples=np.full(len(hits), trials), successes=hits, bound=0.5**SURPLUS,
        parameters={"j": SURPLUS, "m": 4}, searched=True,
    )  # fmt: skip
    result.numbers |= {
        "surplus": ", ".join(f"{x:.3f}" for x in result.surplus), "surplus_j": ", ".join(map(str, SURPLUS)),
        "surplus_bound": ", ".join(f"{x:.3f}" for x in 0.5**SURPLUS),
    }  # fmt: skip


# --- tuned on ------------------------------------------------------------------------------------------------------


def tuned_numbers(tuned: TunedOn) -> dict[str, str]:
    """What the sentences about tuned prompts say."""
    real, signs = tuned.real.bits / tuned.constructed, tuned.signs.bits / tuned.constructed
    entropy = (tuned.entropy / tuned.constructed).max()
    rare = "the hand-written prompt is not easy to find"
    return {
        "tuned_low": f"{real.min():.2f}", "tuned_high": f"{real.max():.2f}", "entropy_ratio": f"{entropy:.1f}",
        "tuned_sign": f"{signs.min():.2f}", "tuned_sign_high": f"{signs.max():.2f}",
        "alone": ", ".join(f"{x:.2f}" for x in tuned.alone), "alone_m": ", ".join(map(str, tuned.m)),
        "alone_says": rare if tuned.alone.min() < 0.5 else "such prompts are found from anywhere",
        "gap_says": gap_says(float(real.max()), float(entropy)),
    }  # fmt: skip


def gap_says(found: float, allowed: float) -> str:
    """Is the room up to Theorem 2 filled? `found` and `allowed` as multiples of the constructed bits, the largest."""
    if found < 1 + (allowed - 1) / 2:
        return "So on this network the distance to Theorem 2 is not filled by what this tuner can find."
    return "So on this network the tuner fills more than half of the distance to Theorem 2."
