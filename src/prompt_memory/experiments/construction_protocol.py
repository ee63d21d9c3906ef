"""How chapter 4b measures: written tables read back, labelings by linear programs, prompts tuned further.

A prompt of the constructed memory has m tokens of d coordinates: d_k of them a key, w = d − d_k of them values.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from prompt_memory import bounds, intervals, measure, tasks, tune
from prompt_memory.network import construct
from prompt_memory.network.construct import Memory

WIDTH = 32  # of the networks with all sign vectors as keys
LEVELS = (2, 3, 4, 5, 6)  # levels a value for which every table is written
MARGINS = (0.35, 0.5, 0.66, 0.7, 0.99, 1.5)  # γ of the complete lists
SURPLUS = np.array([1, 2, 3, 8])  # queries beyond the stored values
REAL_RUNGS = (1, 1.125, 1.25, 1.375, 1.5, 1.75, 2)  # questions over stored bits, rung by rung
SIGN_RUNGS = (0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.5)


@dataclass(frozen=True)
class Settings:
    """How much is run."""

    patterns: int  # random tables a network
    longest: int  # keys of the largest hypercube
    tokens: int  # of the longest sign prompts that are all run
    trials: int  # random tables a point, below the condition
    levels: int  # of a value at the finest: 2^levels
    lps: int  # queries of a complete list beside the thresholds
    decided: int  # single labelings decided
    lengths: tuple[int, ...]  # of tuned prompts
    runs: int  # labelings a rung
    fresh: int  # labelings at the last rung
    steps: int  # of the tuner
    short: bool = False  # fewer keys and points, wider tolerances


PROFILES = {
    "smoke": Settings(patterns=4, longest=64, tokens=2, trials=1000, levels=5, lps=5, decided=20, lengths=(1, 2),
                      runs=6, fresh=12, steps=40, short=True),
    "standard": Settings(patterns=8, longest=256, tokens=4, trials=5000, levels=10, lps=12, decided=200,
                         lengths=(1, 2, 4, 8, 16), runs=16, fresh=48, steps=300),
    "full": Settings(patterns=32, longest=1024, tokens=4, trials=50000, levels=12, lps=16, decided=2000,
                     lengths=(1, 2, 4, 8, 16), runs=64, fresh=256, steps=1500),
}  # fmt: skip


def gram(code: Float[Tensor, "M d_k"]) -> Float[np.ndarray, "M M"]:
    """Cosines of all pairs of keys."""
    return (code @ code.T).numpy()


def largest_cosine(code: Float[Tensor, "M d_k"]) -> float:
    """c, the largest cosine of two different keys."""
    return float((gram(code) - 2 * np.eye(len(code))).max())


# --- one bit a value -----------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """Tables of bits in one network: its size, its ranges, and the smallest margins with which bits are read."""

    name: str
    d: int
    d_k: int
    m: int
    cosine: float
    condition: float  # the range B of the condition, queries that see themselves
    least: float  # the least B whose leak is a quarter, queries that see the prompt only
    bits: float
    smallest: list[float]  # at the condition: prompt only in float32 and float64, with the own token in both
    exact: float  # at the least B


def networks(settings: Settings, generator: torch.Generator) -> Iterator[tuple[str, Tensor, int]]:
    """Codes of all kinds and the width to use them in: name, keys [m, d_k], d. Random ones are drawn when asked for."""
    short = settings.short
    yield "two-bit keys, all", construct.hypercube_code(2), 4
    yield "hypercube", construct.hypercube_code(round(math.log2(settings.longest))), 24
    yield "orthogonal and opposite", construct.hadamard_code(8 if short else 64), 80
    yield "simplex", construct.simplex_code(8 if short else 33), 48
    yield "circle", construct.circle_code(9), 10
    yield "random signs", construct.random_code(64, 40 if short else 500, 0.5, generator=generator), 72
    code = construct.random_code(32, 40 if short else 300, 0.6, generator=generator, signs=False)
    yield "random reals", code, 40


def margins(
    memory: Memory, m: int, own_token: bool, patterns: int, generator: torch.Generator
) -> Float[np.ndarray, "tables n"]:
    """Margins of all bits of random tables, and of the two that put the worst-off key alone against all others."""
    excess = np.exp(memory.logit_range * gram(memory.codewords[:m])).sum(1)
    alone = torch.zeros(2, m, memory.values, dtype=torch.long)
    alone[1] = 1
    alone[:, int((excess / np.exp(memory.logit_range)).argmax())] = torch.tensor([1, 0])[:, None]
    bits = torch.randint(2, (patterns, m, memory.values), generator=generator)
    bits = torch.cat([bits, alone])
    queries = memory.ask_all(m)
    readings = torch.cat([memory.read(memory.write_bits(one[None]), queries, own_token=own_token) for one in bits])
    return 2 * readings.double().numpy() * (2 * bits.flatten(1).numpy() - 1)


def every_bit(settings: Settings, generator: torch.Generator) -> list[Written]:
    """Write tables into a memory for each code, at the range of the condition and at the least range; read all bits."""
    found = []
    for name, code, d in networks(settings, generator):
        m, d_k, c = len(code), code.shape[1], largest_cosine(code)
        smallest = []
        for own_token in (False, True):
            B = bounds.cosine_logit_range(m, c, own_token=own_token)
            for dtype in (torch.float32, torch.float64):
                memory = construct.build_memory(code, d, B, dtype=dtype)
                smallest.append(margins(memory, m, own_token, settings.patterns, generator).min())
        least = bounds.code_logit_range(gram(code))
        tight = construct.build_memory(code, d, least, dtype=torch.float64)
        exact = margins(tight, m, False, settings.patterns, generator).min()
        bits = bounds.construction_bits(d, d_k, m)
        found.append(Written(name, d, d_k, m, c, B, least, bits, smallest, exact))
    return found


def all_tables(settings: Settings) -> tuple[list[int], list[int], list[float]]:
    """Small memories with every table written: how many are recalled, how many there are, the least margin."""
    recalled, count, least = [], [], []
    codes = ((construct.hypercube_code(2), 4 if settings.short else 6), (construct.circle_code(3), 5),
             (construct.simplex_code(5), 6))  # fmt: skip
    for code, d in codes:
        for own_token in (False, True):
            m = len(code)
            memory = construct.build_memory(code, d, bounds.code_logit_range(gram(code), own_token=own_token))
            bits = tasks.all_labels(m * memory.values, 2)
            prompts = memory.write_bits(bits.unflatten(1, (m, -1)))
            readings = memory.read(prompts, memory.ask_all(m), own_token=own_token)
            recalled.append(((readings > 0) == bits.bool()).all(1).sum().item())
            count.append(2 ** (m * memory.values))
            least.append(float((2 * readings * (2 * bits - 1)).min()))
    return recalled, count, least


class Signs(NamedTuple):
    """Prompts of m sign tokens: bits written, counted and granted by the two bounds of Theorem 1."""

    m: int
    written: float
    counted: float
    unordered: float
    ordered: float


def sign_prompts(settings: Settings, generator: torch.Generator) -> list[Signs]:
    """Run all prompts of sign tokens, one for each multiset; count behaviours on own and random queries."""
    code, d = construct.hypercube_code(2), 5
    memory = construct.build_memory(code, d, bounds.code_logit_range(gram(code), own_token=True))
    directions = torch.nn.functional.normalize(torch.randn(84, 2, generator=generator, dtype=torch.float64), dim=1)
    thresholds = 2 * torch.rand(84, generator=generator, dtype=torch.float64) - 1
    extra = memory.ask(directions, torch.arange(84) % memory.values, thresholds)
    tokens = tasks.grid_prompts(torch.arange(2**d), d, 1, tasks.grid(1))[:, 0]
    found = []
    for m in range(1, settings.tokens + 1):
        multisets = torch.tensor(list(combinations_with_replacement(range(2**d), m)))
        queries = torch.cat([memory.ask_all(m), extra])
        table = measure.behaviours(memory.transformer, lambda i, s=multisets: tokens[s[i]], len(multisets), queries)
        found.append(Signs(m, bounds.construction_bits(d, 2, m), math.log2(len(measure.distinct(table))),
                           bounds.multiset_bits(d, m, 1), bounds.counting_bits(d, m, 1)))  # fmt: skip
    return found


def hypercube_margins(settings: Settings) -> dict[int, float]:
    """The worst table's margin with all m = 2^d_k sign vectors as keys, for each m up to the longest."""
    worst = {}
    for k in range(1, round(math.log2(settings.longest)) + 1):
        code = construct.hypercube_code(k)
        m = len(code)
        memory = construct.build_memory(code, WIDTH, bounds.code_logit_range(gram(code), own_token=True))
        alone = torch.zeros(2, m, memory.values, dtype=torch.long)
        alone[1], alone[:, 0] = 1, torch.tensor([1, 0])[:, None]
        readings = memory.read(memory.write_bits(alone), memory.ask_all(m))
        worst[m] = float((2 * readings * (2 * alone.flatten(1) - 1)).min())
    return worst


# --- below the condition -------------------------------------------------------------------------------------------


@dataclass
class Below:
    """One code at ranges from far below to above its condition: what is predicted, and what is measured."""

    code: Float[Tensor, "m d_k"]
    condition: float
    ranges: Float[np.ndarray, " K"]
    predicted_error: list[float]
    predicted_worst: list[float] = field(init=False)
    worst: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    compensated: list[float] = field(default_factory=list)
    twice_amplitude: list[float] = field(default_factory=list)

    def __post_init__(self):
        cosines = gram(self.code)
        self.predicted_worst = [2 * (1 - 2 * bounds.softmax_leak(cosines, B)) for B in self.ranges]


def binomial_error(m: int, B: float) -> float:
    """Pr[T > e^B], and half of a tie, for the sum T = m − 1 − 2·Bin of m − 1 random signs."""
    heads, at = stats.binom(m - 1, 0.5), (m - 1 - math.exp(B)) / 2
    return float(heads.cdf(math.ceil(at) - 1) + heads.pmf(at) / 2)


def gaussian_error(code: Float[Tensor, "m d_k"], B: float) -> float:
    """The normal tail beyond S_ii/(Σ_{j≠i} S_ij²)^{1/2}, averaged over keys."""
    S = construct.build_memory(code, code.shape[1] + 1, B).attention(len(code)).numpy()
    noise = np.sqrt((S**2).sum(1) - np.diag(S) ** 2)
    return float(stats.norm.sf(np.diag(S) / noise).mean())


def codes_below(settings: Settings, generator: torch.Generator) -> dict[str, Below]:
    """Orthogonal and random keys, with the ranges to be tried and the errors predicted there."""
    short, found = settings.short, {}
    m = 16 if short else 64
    keys = {"orthogonal": construct.hadamard_code(m)[:m],
            "random": construct.random_code(32, 40 if short else 100, 0.5, generator=generator)}  # fmt: skip
    for name, code in keys.items():
        condition = bounds.cosine_logit_range(len(code), max(0, largest_cosine(code)))
        ranges = np.linspace(0.2, 1.25, 6 if short else 13) * condition
        if name == "orthogonal":
            error = [binomial_error(len(code), B) for B in ranges]
        else:
            error = [gaussian_error(code, B) for B in ranges]
        found[name] = Below(code, condition, ranges, error)
    return found


def error_rate(memory: Memory, m: int, trials: int, generator: torch.Generator) -> Float[np.ndarray, " batches"]:
    """Fractions of wrong bits in batches of a hundred random tables, each asked at four random keys."""
    wrong = []
    for _ in range(trials // 100):
        bits = torch.randint(2, (100, m, memory.values), generator=generator)
        keys = torch.randperm(m, generator=generator)[:4]
        queries = memory.ask(keys.repeat_interleave(memory.values), torch.arange(memory.values).repeat(4))
        readings = memory.read(memory.write_bits(bits), queries, own_token=False)
        wrong.append(((readings > 0) != bits[:, keys].flatten(1)).double().mean())
    return np.array(wrong)


def compensated_margin(memory: Memory, m: int, generator: torch.Generator) -> tuple[float, float]:
    """The least margin of compensated tables, random ones and the one that asks for the largest value; and 2a."""
    a, inverse = memory.amplitude(m), torch.linalg.inv(memory.attention(m))
    signs = torch.randint(2, (4, m, memory.values), generator=generator).double() * 2 - 1
    signs[0] = inverse[inverse.abs().sum(1).argmax()].sign()[:, None]
    readings = memory.read(memory.write(memory.compensate(a * signs)), memory.ask_all(m), own_token=False)
    return float((2 * readings * signs.flatten(1)).min()), 2 * a


def measure_below(below: Below, settings: Settings, generator: torch.Generator) -> None:
    """The worst margin, the error rate with its spread, and the compensated margin at each range."""
    code = below.code
    for B in below.ranges:
        memory = construct.build_memory(code, code.shape[1] + 8, float(B), dtype=torch.float64)
        below.worst.append(margins(memory, len(code), False, settings.patterns, generator).min())
        single = construct.build_memory(code, code.shape[1] + 8, float(B))
        batches = error_rate(single, len(code), settings.trials, generator)
        below.error.append(batches.mean())
        t = stats.t.isf(0.025 / len(below.ranges), len(batches) - 1)  # all points of a curve at once
        below.spread.append(t * batches.std(ddof=1) / math.sqrt(len(batches)))
        margin, twice = compensated_margin(memory, len(code), generator)
        below.compensated.append(margin)
        below.twice_amplitude.append(twice)


# --- more bits a value ---------------------------------------------------------------------------------------------


@dataclass
class Levels:
    """One memory with K levels a value: the margins with which they are read."""

    memory: Memory
    m: int
    K: list[int]
    reached: list[float]

    @property
    def amplitude(self) -> float:
        return self.memory.amplitude(self.m)


def read_levels(settings: Settings, generator: torch.Generator) -> Levels:
    """Write random tables of K levels, compensated, and read them by K − 1 thresholds; AssertionError for an error."""
    code = construct.circle_code(5)
    memory = construct.build_memory(code, 4, bounds.code_logit_range(gram(code)), dtype=torch.float64)
    m, a = len(code), memory.amplitude(len(code))
    found = Levels(memory, m, [2**k for k in range(1, settings.levels + 1)] + [3, 5, 6, 7], [])
    for K in found.K:
        grid = torch.linspace(-a, a, K, dtype=torch.float64)
        index = torch.randint(K, (settings.patterns, m, memory.values), generator=generator)
        prompts = memory.write(memory.compensate(grid[index]))
        readings = memory.read(prompts, memory.ask_all(m, (grid[1:] + grid[:-1]) / 2), own_token=False)
        passed = (readings > 0).unflatten(1, (m, memory.values, K - 1)).sum(-1)
        assert torch.equal(passed, index)  # every threshold on the right side
        found.reached.append(2 * float(readings.abs().min()))
    return found


def count_levels() -> list[int]:
    """Different labelings of all K^3 tables of levels in three tokens of one value, for each K of `LEVELS`."""
    code, counts = construct.circle_code(3), []
    few = construct.build_memory(code, 3, bounds.code_logit_range(gram(code)), dtype=torch.float64)
    for K in LEVELS:
        grid = torch.linspace(-few.amplitude(3), few.amplitude(3), K, dtype=torch.float64)
        tables = grid[torch.cartesian_prod(*[torch.arange(K)] * 3)][:, :, None]
        prompts = few.write(few.compensate(tables))
        readings = few.read(prompts, few.ask_all(3, (grid[1:] + grid[:-1]) / 2), own_token=False)
        counts.append(len((readings > 0).unique(dim=0)))
    return counts


class Listed(NamedTuple):
    """Labelings behind two keys with margin γ: promised, listed for two kinds of queries, allowed, conceivable."""

    margin: float
    promised: int
    own: int
    other: int
    ceiling: int
    possible: tuple[float, float]


def list_labelings(settings: Settings, generator: torch.Generator) -> list[Listed]:
    """Every labeling that values behind two given keys memorise with margin γ, by linear programs."""
    pair = construct.build_memory(construct.circle_code(3)[:2], 3, 3.0, dtype=torch.float64)
    a, lps, found = pair.amplitude(2), settings.lps, []
    for gamma in MARGINS:
        K = math.ceil(2 * a / gamma)
        middles = np.linspace(-a, a, K)[1:] - a / (K - 1) if K > 1 else np.array([])
        drawn = 2 * torch.randn(lps, 2, generator=generator, dtype=torch.float64)
        keys = torch.cat([pair.codewords.repeat_interleave(len(middles), 0), drawn])
        thresholds = np.r_[np.tile(middles, 2), 0.8 * torch.rand(lps, generator=generator).numpy() - 0.4]
        weights = (pair.logit_range * keys @ pair.codewords.T).softmax(1).numpy()
        at_keys, asked = 2 * len(middles), 2 + lps // 2
        own = len(measure.memorised_labelings(weights[:at_keys], thresholds[:at_keys], gamma * (1 - 1e-6)))
        orders = (torch.randperm(len(weights), generator=generator).numpy()[:asked] for _ in range(3))
        other = max(len(measure.memorised_labelings(weights[order], thresholds[order], gamma)) for order in orders)
        promised, ceiling = (round(2 ** bounds.fixed_key_bits(3, 2, 2, gamma, top)) for top in (a, 1.0))
        found.append(Listed(gamma, promised, own, other, ceiling, (2.0**at_keys, 2.0**asked)))
    return found


def decide(memory: Memory, m: int, trials: int, generator: torch.Generator) -> Int[np.ndarray, " J"]:
    """How many of `trials` random labelings of m + j answers of one coordinate have margin 1 behind given keys."""
    hits = []
    for j in SURPLUS:
        passed = 0
        for _ in range(trials):
            drawn = torch.randn(int(j), memory.codewords.shape[1], generator=generator, dtype=torch.float64)
            directions = torch.nn.functional.normalize(drawn, dim=1)
            others = (memory.logit_range * directions @ memory.codewords[:m].T).softmax(1)
            weights = torch.cat([memory.attention(m), others]).numpy()
            signs = 2 * tasks.random_labels(1, m + int(j), 2, generator=generator)[0].numpy() - 1
            passed += measure.largest_margin(weights, np.zeros(len(weights)), signs) > 1
        hits.append(passed)
    return np.array(hits)


# --- tuned on ------------------------------------------------------------------------------------------------------


class Climbed(NamedTuple):
    """Bits found at each prompt length, n + log2 of the fraction found, with the ends of an interval at 95 %."""

    bits: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]


@dataclass
class Tuner:
    """Prompts of one memory tuned for random labels: real with margin 1, or of signs without a margin."""

    memory: Memory
    settings: Settings
    generator: torch.Generator

    def queries(self, m: int) -> Float[Tensor, "n d"]:
        """The m w questions of the construction, and then many more, at random directions."""
        drawn = torch.randn(20 * m + 20, 4, generator=self.generator, dtype=torch.float64)
        directions = torch.nn.functional.normalize(drawn, dim=1)
        more = self.memory.ask(directions, torch.arange(len(directions)) % self.memory.values)
        return torch.cat([self.memory.ask_all(m), more])

    def real(self, m: int, n: int, queries: Tensor, runs: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of `runs` random labelings have margin 1 at a tuned prompt: from a random start; from either start."""
        memory, w = self.memory, self.memory.values
        labels = tasks.random_labels(runs, n, 2, generator=self.generator)
        drawn = torch.randn(runs, m, memory.transformer.config.d, generator=self.generator)
        starts = (drawn, memory.write_bits(labels[:, : m * w].unflatten(1, (m, w))))
        good = [
            tune.tune_to_margin(memory, queries[:n], labels, start, margin=1.0, steps=self.settings.steps)[1] > 1
            for start in starts
        ]
        return good[0].numpy(), (good[0] | good[1]).numpy()

    def signs(self, m: int, n: int, queries: Tensor, runs: int) -> np.ndarray:
        """Which of `runs` random labelings some tuned sign prompt memorises, from random starts."""
        labels = tasks.random_labels(runs, n, 2, generator=self.generator)
        fit = tune.quantised(self.memory.transformer, queries[:n], labels, tasks.grid(1), m,
                             steps=self.settings.steps // 2, sweeps=3, generator=self.generator)  # fmt: skip
        return (fit.recall == 1).numpy()

    def climb(self, m: int, rungs, search) -> tuple[int, int]:
        """The last rung at which at least half of the labelings are found, and fresh labelings there: n, hits."""
        queries = self.queries(m)
        sizes = [round(x * m * self.memory.values) for x in rungs]
        last = sizes[0]
        for n in sizes:
            if search(m, n, queries, self.settings.runs).mean() < 0.5:
                break
            last = n
        return last, int(search(m, last, queries, self.settings.fresh).sum())

    def climbed(self, rungs, search) -> Climbed:
        """The ladder at every prompt length."""
        n, hits = np.transpose([self.climb(m, rungs, search) for m in self.settings.lengths])
        fresh = self.settings.fresh
        low, high = intervals.clopper_pearson(hits, np.full(len(hits), fresh), 0.05)
        with np.errstate(divide="ignore"):
            return Climbed(n + np.log2(hits / fresh), n + np.log2(low), n + np.log2(high))


@dataclass
class TunedOn:
    """What the tuner found on one memory, beside what is constructed and what is allowed, at each prompt length."""

    d: int
    m: Int[np.ndarray, " K"]
    real: Climbed
    signs: Climbed
    alone: Float[np.ndarray, " K"]  # fraction of tables of the constructed size found from random starts
    constructed: Float[np.ndarray, " K"]
    entropy: Float[np.ndarray, " K"]  # Theorem 2
    unordered: Float[np.ndarray, " K"]  # Theorem 1, sign prompts, order unseen


def tuned_on(memory: Memory, settings: Settings, generator: torch.Generator) -> TunedOn:
    """Tune real and sign prompts of this memory to more labels than the construction writes."""
    tuner, lengths = Tuner(memory, settings, generator), settings.lengths
    real = tuner.climbed(REAL_RUNGS, lambda *args: tuner.real(*args)[1])
    signs = tuner.climbed(SIGN_RUNGS, tuner.signs)
    alone = [tuner.real(m, m * memory.values, tuner.queries(m), settings.fresh)[0].mean() for m in lengths]
    d, d_k = memory.transformer.config.d, memory.codewords.shape[1]
    lipschitz = math.sqrt(1 + memory.ball_range**2)
    return TunedOn(
        d, np.array(lengths), real, signs, np.array(alone),
        np.array([bounds.construction_bits(d, d_k, m) for m in lengths]),
        np.array([bounds.entropy_bits(d, m, memory.radius, lipschitz, 0.5) for m in lengths]),
        np.array([bounds.multiset_bits(d, m, 1) for m in lengths]),
    )  # fmt: skip
