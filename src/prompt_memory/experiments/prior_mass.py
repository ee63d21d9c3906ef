"""Chapter 4e, prior mass: how many bits of a random prompt a string costs, free real prompts included."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from prompt_memory import bounds, intervals, measure, pretrain
from prompt_memory.book import claims, figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.network.transformer import Transformer
from prompt_memory.tasks import language

SCALE = 7.0  # standard deviation of the prior in every coordinate; tuned prompts of chapter 4 are of this size
EXCESS = np.arange(1, 6)  # s: bits that a string costs less than its surprise
NOTHING = 2.0**-400  # added to every estimate: without it an estimate of zero would have no finite cost
PLACES = (0, 4, 16, 48)  # ranks, among counted strings, of those that are counted and split
COUNTED = 2  # tokens of a counted string


@dataclass(frozen=True)
class Settings:
    """Strings, their longest length, vectors in a prompt; particles and moves; log2 of the prompts that are counted."""

    model: str
    strings: int
    longest: int
    lengths: tuple[int, ...]  # m
    particles: int
    moves: int
    counted: int


PROFILES = {
    "smoke": Settings("lexicon-small", 8, 2, (1,), 48, 5, 12),
    "standard": Settings("natural", 12, 3, (1,), 80, 8, 15),
    "full": Settings("natural", 48, 4, (1, 2), 300, 20, 18),
}


@dataclass
class Costs:
    """What the beginnings of n tokens of all strings cost, by two independent estimates, in bits."""

    m: int
    n: int
    vocabulary: int
    bits: Float[np.ndarray, "S 2"]
    stuck: int  # estimates whose chains hardly moved
    interval: tuple[float, float] = (math.nan, math.nan)  # of the ratio

    @property
    def surprise(self) -> float:
        return self.n * math.log2(self.vocabulary)

    @property
    def median(self) -> float:
        return float(np.median(self.bits[:, 0]))

    @property
    def ratio(self) -> float:
        """The theorem's length for as many bits as half of the strings cost, over the length they have."""
        return bounds.critical_length(self.median, self.vocabulary) / self.n

    @property
    def apart(self) -> float:
        """By how much two estimates of one string differ: the median, in bits."""
        return float(np.median(np.abs(self.bits[:, 0] - self.bits[:, 1])))


@dataclass
class Result:
    """Everything that chapter 4e measured."""

    settings: Settings
    vocabulary: int
    d: int
    costs: list[Costs] = field(default_factory=list)
    checked: Float[np.ndarray, "K 2"] = None  # of counted strings: bits by counting, by splitting
    numbers: dict[str, str] = field(default_factory=dict)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """All experiments of the chapter; each forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    model = pretrain.load(settings.model, models_dir).transformer
    result = Result(settings, model.config.q, model.config.d)
    predict(record, result)
    result.checked = counted(model, settings, generator)
    strings = language.random_strings(settings.strings, settings.longest, result.vocabulary, generator=generator)
    for m in settings.lengths:
        for n in range(1, settings.longest + 1):
            result.costs.append(costs(model, strings[:, :n], m, settings, generator))
    judge(record, result)
    describe(result)
    return result


def particles(settings: Settings, m: int) -> measure.Particles:
    return measure.Particles(settings.particles, settings.moves, SCALE, m)


def costs(model: Transformer, strings, m: int, settings: Settings, generator: torch.Generator) -> Costs:
    """A pilot for each string, then two estimates along its plan."""
    found, stuck, drawn = [], 0, particles(settings, m)
    for string in strings:
        plan = measure.pilot(model, string, drawn, generator=generator)
        pair = [measure.split(model, string, plan, drawn, generator=generator) for _ in range(2)]
        found.append([-math.log2(2.0**each.log2 + NOTHING) for each in pair])
        stuck += sum(each.stuck for each in pair)
    return Costs(m, strings.shape[1], model.config.q, np.array(found), stuck)


def counted(model: Transformer, settings: Settings, generator: torch.Generator) -> Float[np.ndarray, "K 2"]:
    """Strings that many random prompts write: their cost by counting these, and by splitting (mean of four)."""
    prompts = SCALE * torch.randn(2**settings.counted, 1, model.config.d, generator=generator)
    written = torch.cat([measure.greedy(model, part, COUNTED) for part in prompts.split(4096)])
    strings, counts = written.unique(dim=0, return_counts=True)
    order, drawn, found = counts.argsort(descending=True, stable=True), particles(settings, 1), []
    for place in PLACES:
        string, share = strings[order[place]], float(counts[order[place]]) / len(prompts)
        plan = measure.pilot(model, string, drawn, generator=generator)
        masses = [2.0 ** measure.split(model, string, plan, drawn, generator=generator).log2 for _ in range(4)]
        found.append((-math.log2(share), -math.log2(sum(masses) / 4 + NOTHING)))
    return np.array(found)


# --- claims --------------------------------------------------------------------------------------------------------


def predict(record: claims.Recorder, result: Result) -> None:
    """What the theorem does not say: how close it is, and how well the estimates repeat."""
    record.predict(
        "prior-count", theorem="Target: splitting", predicted=[0.0] * len(PLACES), possible=(-400, 400), absolute=1.0,
        statement="Splitting and counting give the same cost within one bit, strings that many prompts write",
        searched=True,
    )  # fmt: skip
    record.predict(
        "prior-repeat", theorem="Target: splitting", predicted=0.0, possible=(0, 400), absolute=3.0, searched=True,
        statement="Two estimates of one string differ by at most 3 bits in the median, longest strings",
    )  # fmt: skip
    record.predict(
        "prior-ratio", theorem="Target: prior mass", predicted=2.5, possible=(0, math.inf), absolute=1.5, searched=True,
        statement="The bound on the length is at most 4 times the length whose bits half of the strings cost,"
        " longest strings of one vector, free real prompts",
        parameters={"n": result.settings.longest, "m": 1},
    )  # fmt: skip


def judge(record: claims.Recorder, result: Result) -> None:
    """The theorem on estimates without bias, then the forecasts."""
    found, S = result.costs, result.settings.strings
    error = claims.LEVEL / claims.FAMILY
    where = {"n": [c.n for c in found], "m": [c.m for c in found], "strings": S}
    record.theorem(
        "prior-total", theorem="Theorem 4e, part 4", relation=">=", tail=True, searched=True, tolerance=1e-6,
        statement="Random strings together cost at least their surprise, up to the logarithm of the level",
        measured=[c.bits[:, 0].sum() for c in found], possible=0.0, parameters=where,
        bound=[bounds.least_cost_bits(S * c.surprise, error) for c in found],
    )  # fmt: skip
    cheap = np.array([[(c.bits[:, 0] <= c.surprise - s).sum() for s in EXCESS] for c in found])
    record.sampled(
        "prior-single", theorem="Theorem 4e, part 4", successes=cheap, mean=cheap / S, samples=S, searched=True,
        statement="A random string costs $s$ bits less than its surprise with probability at most $2^{-s}$",
        bound=np.exp2(-EXCESS), parameters=where | {"s": EXCESS},
    )  # fmt: skip
    rng = np.random.default_rng(record.seed)
    for c in found:
        low, high = intervals.bootstrap(c.bits[:, 0], np.median, rng)
        c.interval = tuple(bounds.critical_length(b, c.vocabulary) / c.n for b in (low, high))
    longest = next(c for c in found if (c.m, c.n) == (1, result.settings.longest))
    record.measure("prior-count", result.checked[:, 1] - result.checked[:, 0])
    record.measure("prior-repeat", longest.apart)
    record.measure("prior-ratio", longest.ratio, interval=longest.interval)


def describe(result: Result) -> None:
    """What the sentences of the page say."""
    first, longest = result.costs[0], result.costs[result.settings.longest - 1]
    result.numbers |= {
        "strings": f"{result.settings.strings}", "longest": f"{longest.n}", "width": f"{result.d}",
        "vocabulary": f"{result.vocabulary}", "median": f"{longest.median:.0f}", "surprise": f"{longest.surprise:.0f}",
        "ratio": f"{longest.ratio:.1f}", "ratio_low": f"{longest.interval[0]:.1f}",
        "ratio_high": f"{longest.interval[1]:.1f}", "ratio_one": f"{first.ratio:.1f}",
        "allowed": f"{bounds.critical_length(longest.median, result.vocabulary):.1f}",
        "floats": f"{bounds.critical_length(32.0 * result.d, result.vocabulary):.0f}",
        "stuck": f"{sum(c.stuck for c in result.costs)}",
        "estimates": f"{2 * sum(len(c.bits) for c in result.costs)}",
        "apart": f"{longest.apart:.1f}",
        "off": f"{np.abs(result.checked[:, 1] - result.checked[:, 0]).max():.1f}",
        "counted": f"{2**result.settings.counted:,}",
    }  # fmt: skip


# --- figure and table ----------------------------------------------------------------------------------------------


def costs_figure(result: Result) -> figures.Picture:
    """What every string costs, against its length."""
    found = [c for c in result.costs if c.m == 1]
    per_token, end = math.log2(result.vocabulary), result.settings.longest + 0.4
    nothing = -math.log2(NOTHING) - 1  # estimates of zero are drawn at the upper edge
    every = np.concatenate([c.bits[:, 0] for c in found])
    top, lost = 1.15 * every[every < nothing].max(initial=1.0), int((every >= nothing).sum())

    def draw(figure):
        ax = figure.subplots()
        line = np.array([0.0, end])
        figures.forbid(ax, line, 0, np.maximum(0, line * per_token - 1))
        ax.plot(line, line * per_token, color=COLOURS["bound"], label="surprise, n log₂ V")
        for c in found:
            spots, sorted_bits = c.n + 0.2 * np.linspace(-1, 1, len(c.bits)), np.sort(c.bits[:, 0])
            seen = sorted_bits < nothing
            ax.plot(spots[seen], sorted_bits[seen], "o", markersize=4, color=COLOURS["measured"],
                    label="one string" if c.n == 1 else None)  # fmt: skip
            ax.plot(spots[~seen], np.full((~seen).sum(), 0.97 * top), "^", markersize=5, color=COLOURS["measured"])
            ax.plot([c.n - 0.28, c.n + 0.28], [c.median] * 2, color=COLOURS["measured"], linewidth=2.2,
                    label="median" if c.n == 1 else None)  # fmt: skip
        ax.set_xlim(0.5, end)
        ax.set_ylim(0, top)
        ax.set_xticks([c.n for c in found])
        ax.set_xlabel("tokens n of a string")
        ax.set_ylabel("cost in bits, −log₂ of the prior mass")
        ax.legend(loc="upper left")

    last = found[-1]
    return figures.show(
        draw, name="prior-costs", size=(7, 4.2),
        finding=f"Half of the random strings of {last.n} tokens cost at most {last.median:.0f} bits, where"
        f" {last.surprise:.0f} are needed.",
        caption="Each point: what one random string costs under the prior, free prompts of one vector. No theorem"
        " keeps a single string from being cheap, but medians cannot lie in the shaded region."
        + (f" Triangle{'s' if lost > 1 else ''} at the edge: no particle wrote the string." if lost else ""),
        alt="Cost in bits against the length of strings. Points scatter around and above the rising line of the"
        " surprise; the median rises faster than the line and stays above the shaded region.",
    )  # fmt: skip


def costs_table(result: Result) -> figures.Table:
    """One row a prompt length and a string length."""
    rows = [
        (c.m, c.n, f"{c.surprise:.1f}", f"{c.median:.1f}", f"{bounds.critical_length(c.median, c.vocabulary):.1f}",
         f"{c.ratio:.1f} [{c.interval[0]:.1f}, {c.interval[1]:.1f}]", f"{c.apart:.1f}", c.stuck)
        for c in result.costs
    ]  # fmt: skip
    header = (
        "vectors m", "tokens n", "surprise (bits)", "median cost (bits)", "theorem (tokens)",
        "theorem / n [95 %]", "estimates differ by (bits)", "stuck",
    )  # fmt: skip
    return figures.Table(header, rows)
