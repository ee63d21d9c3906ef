"""Chapter 12, prompts against other tunings: bits found a trained number, by four tunings of one frozen network."""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats

from prompt_memory import bounds, intervals, measure, pretrain, tasks
from prompt_memory.book import claims, figures, verdicts
from prompt_memory.experiments import pilots
from prompt_memory.network.interop import export_error
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tune import adapters
from prompt_memory.tune.adapters import Tuning

SMALL = (
    Tuning("soft prompt", 4), Tuning("soft prompt", 32), Tuning("prefix", 1), Tuning("prefix", 8), Tuning("LoRA", 1),
)  # fmt: skip
LARGE = (Tuning("LoRA", 4), Tuning("all weights"))  # pilot runs only
PAIRS = (  # as many trained numbers each
    (Tuning("LoRA", 1), Tuning("prefix", 8)),
    (Tuning("prefix", 8), Tuning("soft prompt", 32)),
    (Tuning("prefix", 1), Tuning("soft prompt", 4)),
)
FAMILIES = tuple((a, b) for a, b in itertools.combinations(SMALL, 2) if a.kind == b.kind)
RANKED = (Tuning("soft prompt", 3), Tuning("prefix", 2), Tuning("LoRA", 1), Tuning("LoRA", 2), Tuning("LoRA", 4),
          Tuning("all weights"))  # fmt: skip
TINY = TransformerConfig(d=6, q=7, depth=2, heads=2, mlp=8, norm="layer", causal=True, positions="learned", context=10)
ROUNDED = (1, 2, 3, 4, 5, 6, 8)  # bits a number after training
LEAST = 1e-9  # instead of zero bits in a quotient
FEW, MANY = 24, 1024  # labels of a table, and adaptations, where the best of many answers


@dataclass(frozen=True)
class Settings:
    """Label and string tables a tuning; steps over those of the pilot runs; tables of few labels; tunings ranked."""

    tables: int
    string_tables: int
    steps: float
    draws: int
    ranks: tuple[int, ...]


PROFILES = {
    "smoke": Settings(2, 2, 0.05, 2_000, (0, 4)),
    "standard": Settings(8, 4, 1.0, 20_000, tuple(range(6))),
    "full": Settings(16, 16, 8.0, 100_000, tuple(range(6))),
}


@dataclass
class Judged:
    """Values of a statistic with simultaneous intervals."""

    value: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]

    def sides(self, low: float, high: float) -> tuple[int, int, int]:
        """How many intervals lie inside [low, high], outside and across."""
        inside, outside = (self.low >= low) & (self.high <= high), (self.low > high) | (self.high < low)
        return int(inside.sum()), int(outside.sum()), int((~inside & ~outside).sum())


@dataclass
class Result:
    """Everything that chapter 12 measured."""

    settings: Settings
    frozen: Transformer
    seed: int
    numbers_of: dict[Tuning, int]
    ranks: list[tuple] = field(default_factory=list)  # tuning, trained, visible, rank, least counted, largest not
    labels: dict[Tuning, list] = field(default_factory=dict)
    texts: dict[Tuning, list] = field(default_factory=dict)
    per: dict[Tuning, float] = field(default_factory=dict)  # bits found a trained number
    ends: dict[Tuning, tuple[float, float]] = field(default_factory=dict)
    text_per: dict[Tuning, float] = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)
    at_least: Int[np.ndarray, " J"] = None
    ceiling: Float[np.ndarray, " J"] = None
    counts: dict[Tuning, Int[np.ndarray, " J"]] = field(default_factory=dict)
    described: dict[Tuning, Float[np.ndarray, " B"]] = field(default_factory=dict)
    after: dict[Tuning, Float[np.ndarray, " B"]] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)

    @property
    def q(self) -> int:
        return self.frozen.config.q

    @property
    def steps(self) -> int:
        return round(pilots.STEPS * self.settings.steps)

    def recalls(self, t: Tuning) -> Float[np.ndarray, " S"]:
        return np.array([memory.recall for memory in self.labels[t]])

    def rounded(self, t: Tuning) -> Float[np.ndarray, "S B"]:
        """Recall of each table after rounding, for each number of bits."""
        return np.array([[a for _, a in memory.rounded] for memory in self.labels[t]])

    def bits(self, t: Tuning, memories: list, recalls) -> float:
        """Bits retained a trained number at the mean of these recalls."""
        mean = min(1.0, max(0.0, np.mean(recalls)))
        return measure.retained_bits(mean, memories[0].K * memories[0].n, self.q) / self.numbers_of[t]

    def interval(self, t: Tuning, memories: list, level: float = 0.05) -> tuple[float, float]:
        """Student's interval of the mean recall, mapped through the rate function."""
        _, low, high = intervals.jackknife(np.mean, [memory.recall for memory in memories], level=level)
        return tuple(self.bits(t, memories, [max(1 / self.q, end)]) for end in (low, high))


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """Ranks of small networks; forecasts; tables held by each tuning; few bits."""
    settings = claims.settings(PROFILES, profile)
    frozen = pretrain.load("lexicon-small", models_dir).transformer
    strings = torch.randint(frozen.config.q, (64, 32), generator=generator)
    error = export_error(frozen, strings)
    numbers_of = {t: adapters.trained_numbers(frozen.config, t) for t in [*SMALL, *LARGE]}
    for t, count in numbers_of.items():
        if sum(weight.numel() for weight in adapters.trained(adapters.adapt(frozen, t))) != count:
            raise AssertionError(f"{t}: another number of weights is trained")
    result = Result(settings, frozen, record.seed, numbers_of)
    result.numbers |= {
        "agreement": f"by at most {figures.scientific(error, up=True)}" if error else "in no bit",
        "steps": f"{result.steps:,}", "pilot_steps": f"{pilots.STEPS:,}",
    }  # fmt: skip
    judge_ranks(record, result, generator)
    predict(record)
    for t in SMALL:
        first = 10_000 * record.seed
        result.labels[t] = hold(result, t, 1, settings.tables, first + 5_000, bits=ROUNDED)
        result.texts[t] = hold(result, t, 4, settings.string_tables, first + 5_500)
    judge_forecasts(record, result)
    judge_many(record, result, generator)
    judge_rounded(record, result)
    return result


def hold(result: Result, tuning: Tuning, n: int, tables: int, first: int, load=None, bits=()) -> list:
    """Adaptations of one tuning, with the settings of its pilot runs, to tables with the seeds first, first + 1, …"""
    pilot, q = pilots.chosen(tuning), result.q
    wanted = round((load or pilot.load) * result.numbers_of[tuning] / (n * math.log2(q)))
    return adapters.memorise(
        result.frozen, tuning, min(q**3, max(2, wanted)), n, seeds=range(first, first + tables),
        steps=round(result.settings.steps * pilot.steps), learning_rate=pilot.learning_rate, betas=pilot.betas,
        scale=pilot.scale, bits=bits,
    )  # fmt: skip


def judge_ranks(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Part 2 on random networks that are small enough for all singular values, in float64."""
    network = tasks.generic_instance(TINY, 1, 1, generator=generator)[0]
    for tuning in [RANKED[i] for i in result.settings.ranks]:
        length = TINY.context - (tuning.size if tuning.kind in ("soft prompt", "prefix") else 0)
        rows = 300 if tuning.kind == "all weights" else 150
        sequences = torch.randint(TINY.q, (rows, length), generator=generator)
        adapted = adapters.adapt(network, tuning)
        found = adapters.measured_rank(adapted, sequences, spread=0.5, generator=generator)
        trained, visible = adapters.trained_numbers(TINY, tuning), adapters.visible_numbers(TINY, tuning)
        result.ranks.append((tuning, trained, visible, *found))
    ranks = result.ranks
    record.theorem(
        "visible-numbers", theorem="Any tuning, part 2",
        statement="The rank of the derivative of all logits in the trained numbers is at most the number of visible"
        " ones",
        measured=[row[3] for row in ranks], bound=[row[2] for row in ranks], possible=[row[1] for row in ranks],
        parameters={"tunings": [str(row[0]) for row in ranks], "trained": [row[1] for row in ranks]},
    )  # fmt: skip
    equal = sum(row[2] == row[3] for row in ranks)
    result.numbers |= {"ranks_equal": f"{equal}", "ranks_all": f"{len(ranks)}"}


def predict(record: claims.Recorder) -> None:
    """Four forecasts, before any table is held."""
    infinite = (0, math.inf)
    for key, theorem, statement, predicted, absolute, possible in (
        ("linear", "Any tuning: is the law linear from below?",
         "Exponent of found bits against trained numbers, between two sizes of one tuning",
         [1.0] * len(FAMILIES), 0.25, (-math.inf, math.inf)),
        ("order", "Heuristic: what acts in more places stores more",
         "(first − second)/(first + second) of the bits found by two tunings with equally many numbers lies between 0"
         " and 1: LoRA of rank 1 above prefix 8 above soft prompt 32, and prefix 1 above soft prompt 4",
         [0.5] * len(PAIRS), 0.5, (-1, 1)),
        ("eight-bits", "Literature: eight bits a number suffice",
         "Retained bits after rounding each trained number to eight bits, over those before, for each tuning",
         [1.0] * len(SMALL), 0.05, infinite),
        ("strings", "Heuristic: a label is a label",
         "Found bits in string tables over found bits in label tables, for each tuning",
         [1.0] * len(SMALL), 0.35, infinite),
    ):  # fmt: skip
        record.predict(
            key, theorem=theorem, statement=statement, predicted=predicted, absolute=absolute, possible=possible,
            parameters={"sizes": [f"{a}; {b}" for a, b in FAMILIES]} if key == "linear" else None, searched=True,
        )  # fmt: skip


def judged(statistics: list[tuple]) -> Judged:
    """Several statistics (function, groups of tables …) with simultaneous jackknife intervals."""
    level = 0.05 / len(statistics)
    return Judged(*np.transpose([intervals.jackknife(f, *groups, level=level) for f, *groups in statistics]))


def judge_forecasts(record: claims.Recorder, result: Result) -> None:
    """Exponents, differences between tunings, what rounding leaves, and strings against labels."""
    bits, labels, D = result.bits, result.labels, result.numbers_of

    def exponent(a, b):
        def statistic(x, y):
            more, fewer = bits(b, labels[b], y) * D[b], bits(a, labels[a], x) * D[a]
            return math.log(max(LEAST * D[b], more) / max(LEAST * D[a], fewer)) / math.log(D[b] / D[a])

        return statistic

    def share(a, b):
        def statistic(both):
            x, y = bits(a, labels[a], both[:, 0]), bits(b, labels[b], both[:, 1])
            return (x - y) / max(LEAST, x + y)

        return statistic

    def quotient(t):
        return lambda both: bits(t, labels[t], both[:, 1]) / max(LEAST, bits(t, labels[t], both[:, 0]))

    def of_strings(t):
        return lambda x, y: bits(t, result.texts[t], y) / max(LEAST, bits(t, labels[t], x))

    recalls = {t: result.recalls(t) for t in SMALL}
    rounded = {t: result.rounded(t)[:, -1] for t in SMALL}
    texts = {t: np.array([memory.recall for memory in result.texts[t]]) for t in SMALL}
    result.per = {t: bits(t, labels[t], recalls[t]) for t in SMALL}
    result.ends = {t: result.interval(t, labels[t]) for t in SMALL}
    result.text_per = {t: bits(t, result.texts[t], texts[t]) for t in SMALL}
    result.judged = {
        "linear": judged([(exponent(a, b), recalls[a], recalls[b]) for a, b in FAMILIES]),
        "order": judged([(share(a, b), np.stack([recalls[a], recalls[b]], 1)) for a, b in PAIRS]),
        "eight-bits": judged([(quotient(t), np.stack([recalls[t], rounded[t]], 1)) for t in SMALL]),
        "strings": judged([(of_strings(t), recalls[t], texts[t]) for t in SMALL]),
    }
    order = result.judged["order"]
    order.low, order.high = np.clip(order.low, -1, 1), np.clip(order.high, -1, 1)
    for key, found in result.judged.items():
        record.measure(key, found.value, interval=(found.low, found.high))
    summarise(result)


def summarise(result: Result) -> None:
    """Sentences about order, exponents and bits found, chosen from the intervals."""
    per, D = result.per, result.numbers_of
    equal = [t for t in SMALL if D[t] == D[SMALL[-1]]]
    held = ", ".join(f"{t}: {per[t]:.2f}" for t in sorted(equal, key=per.get, reverse=True))
    above, below, open_ = result.judged["order"].sides(0, math.inf)
    inside, outside, _ = result.judged["linear"].sides(0.75, 1.25)
    values = zip(FAMILIES, result.judged["linear"].value, strict=True)
    eights = result.judged["eight-bits"].value
    result.numbers |= {
        "equal_numbers": f"{D[equal[0]]:,}", "held": held,
        "order_text": f"Of {len(PAIRS)} pairs with equally many trained numbers, the interval of the difference lies on"
        f" the expected side in {above}, on the other in {below}, and on both in {open_}.",
        "linear_text": "The exponents are "
        + verdicts.readable(", ".join(f"{value:.2f} for {a.kind}" for (a, _), value in values))
        + f"; {inside} of {len(FAMILIES)} intervals lie within the tolerance around one, {outside} outside.",
        "worst_eight": str(SMALL[int(np.argmin(eights))]), "worst_eight_left": f"{100 * min(eights):.0f} %",
        "factor_float": f"{math.floor(32 / max(per.values()))}",
    }  # fmt: skip


def judge_many(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """The best of 1024 adaptations that are drawn before the labels: ten bits describe it."""
    q, draws = result.q, result.settings.draws
    keys = tasks.digits(torch.randperm(q**3, generator=generator)[:FEW], q, 3)
    tables = torch.randint(q, (draws, FEW), generator=generator)
    ceiling = MANY * stats.binom.sf(np.arange(FEW), FEW, 1 / q)  # of at least 1, 2, … right
    result.at_least = 1 + np.flatnonzero((ceiling < 1) & (ceiling > 20 / draws))  # where there is something to count
    result.ceiling = ceiling[result.at_least - 1]
    for t in (Tuning("soft prompt", 4), Tuning("prefix", 1), Tuning("LoRA", 1)):
        guesses = adapters.random_guesses(result.frozen, t, keys, MANY, spread=1.0, generator=generator)
        answers = guesses.to(torch.uint8).numpy()
        best = np.concatenate([measure.best_recall(answers, part, q) for part in tables.split(4096)])
        result.counts[t] = (np.rint(FEW * best)[:, None] >= result.at_least).sum(0)
    counts = np.stack(list(result.counts.values()))
    record.sampled(
        "best-of-many", theorem="Any tuning, part 1",
        statement="Share of label tables of which the best of $2^{10}$ adaptations, drawn before the labels, recalls at"
        " least $j$ labels: at most $2^{10} \\Pr[\\mathrm{Bin}(K, 1/q) \\ge j]$",
        mean=counts / draws, samples=draws, successes=counts, bound=result.ceiling,
        searched=True,  # the frozen network was trained: its last digits, too, are the processor's
        parameters={"tunings": [str(t) for t in result.counts], "keys": FEW, "at least": result.at_least},
    )  # fmt: skip
    nearest = 100 * counts[:, 0].max() / draws / result.ceiling[0]
    result.numbers |= {"nearest_many": f"{nearest:.0f} %", "least_right": f"{int(result.at_least[0])}"}


def judge_rounded(record: claims.Recorder, result: Result) -> None:
    """Adaptations rounded after training, judged by the bits that describe them."""
    D, q = result.numbers_of, result.q
    smallest = [t for t in SMALL if D[t] == min(D.values())]
    first = 10_000 * result.seed + 5_900
    over = [memory for t in smallest for memory in hold(result, t, 1, 1, first, load=6.0, bits=ROUNDED)]
    tried = [(memory, B, a) for memory in itertools.chain(*result.labels.values(), over) for B, a in memory.rounded]
    rare = math.log2(claims.LEVEL / claims.FAMILY)
    ceilings = np.array([bounds.recall_quantile(B, memory.K * memory.n, q, rare) for memory, B, _ in tried])
    record.theorem(
        "rounded-counting", theorem="Any tuning, part 1",
        statement="Recall of an adaptation that is described by $B$ bits stays under the quantile"
        " $2^B \\Pr[\\mathrm{Bin}(Kn, 1/q) \\ge j]$ at $10^{-10}$",
        measured=np.array([a for *_, a in tried]), bound=ceilings, possible=1.0, tail=True, searched=True,
        parameters={"bits a number": list(ROUNDED), "tunings": [str(t) for t in SMALL]},
    )  # fmt: skip
    for t in SMALL:
        recalls = result.rounded(t)
        result.described[t] = np.array([B for B, _ in result.labels[t][0].rounded])
        result.after[t] = np.array([result.bits(t, result.labels[t], column) for column in recalls.T])
    nearest = max(a / c for (*_, a), c in zip(tried, ceilings, strict=True) if c < 1)
    left = {t: np.min(result.described[t] / np.maximum(result.after[t] * D[t], LEAST)) for t in SMALL}
    closest = min(left, key=left.get)
    result.numbers |= {
        "judged": f"{len(tried)}", "not_vacuous": f"{int((ceilings < 1).sum())}",
        "nearest_rounded": f"{100 * nearest:.0f} %", "closest": str(closest), "factor": f"{left[closest]:.1f}",
    }  # fmt: skip
    for name, b in (("six", 6), ("three", 3)):
        values = [100 * result.after[t][ROUNDED.index(b)] / max(LEAST, result.per[t]) for t in SMALL]
        result.numbers |= {f"{name}_low": f"{math.floor(min(values))} %", f"{name}_high": f"{math.ceil(max(values))} %"}
