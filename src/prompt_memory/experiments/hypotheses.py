"""Chapter 9, breaking each hypothesis: packing at bounded logits, and seven memories that grow, or do not."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from prompt_memory import bounds, intervals, tasks
from prompt_memory.book import claims
from prompt_memory.measure import fact_recall, load, retained_bits
from prompt_memory.network import associative
from prompt_memory.tune.associative import search_addresses

EPS = 0.5  # margin 2ε = 1
B0 = 4.0  # logit range of the memory that keeps all hypotheses
GAP = bounds.pairwise_gap(EPS)
RANGES = np.array([2.0, 4, 8, 16, 32, 64])  # largest logits at which codes are packed
DIMENSION = {"circle": 2, "spiral": 3, "interval": 1, "disc": 2}


@dataclass(frozen=True)
class Settings:
    """Largest contexts, as octaves: on the circle, the sphere, with random keys, as networks; labelings and search."""

    octaves: int
    sphere: int
    random: int
    tables: int
    draws: int
    restarts: int
    steps: int
    exact: int
    long: int
    resamples: int


PROFILES = {
    "smoke": Settings(11, 9, 9, 16, 2**19, 4, 80, 32, 9, 200),
    "standard": Settings(14, 13, 13, 64, 2**22, 32, 800, 128, 13, 1000),
    "full": Settings(16, 14, 13, 256, 2**24, 128, 2000, 256, 13, 1000),
}


class Law(NamedTuple):
    """A memory of the chapter: its keys, its largest logit as a function of the number of tokens, and its octaves."""

    code: str
    logit_range: Callable[[float], float]
    octaves: int


def laws(settings: Settings) -> dict[str, Law]:
    """The seven memories; 64 octaves are within reach because repeated tokens are weights."""
    return {
        "baseline, B = 4": Law("circle", lambda n: B0, settings.octaves),
        "log, d_k = 2": Law("circle", math.log2, 64),
        "log, d_k = 3": Law("spiral", math.log2, 64),
        "N, d_k = 2": Law("circle", lambda n: n / 4, settings.octaves),
        "N, d_k = 3": Law("spiral", lambda n: n / 4, settings.sphere),
        "N², d_k = 2": Law("circle", lambda n: n * n / 64, settings.octaves),
        "argmax": Law("argmax", lambda n: math.inf, settings.octaves),
    }


EXPONENTS = {"baseline, B = 4": 0.0, "N, d_k = 2": 0.5, "N, d_k = 3": 1.0, "N², d_k = 2": 1.0, "argmax": 1.0}
JUDGED = {"log, d_k = 2": 0, "log, d_k = 3": 0, "N, d_k = 2": 1, "N, d_k = 3": 1, "N², d_k = 2": 1, "argmax": 1}
LOGARITHMIC = ("log, d_k = 2", "log, d_k = 3")


@dataclass
class Result:
    """Packing and growth; what chapter 9 drops afterwards is in `hypotheses_escapes`."""

    settings: Settings
    laws: dict[str, Law]
    sizes: dict[str, np.ndarray]
    held: dict[str, list[tuple]] = field(default_factory=dict)  # code: (facts, tokens) at each range
    attacked: list[tuple] = field(default_factory=list)  # d_k, B, most facts found by search, bound
    loads: dict[str, list] = field(default_factory=dict)
    bits: dict[str, Float[np.ndarray, " K"]] = field(default_factory=dict)
    fits: dict[str, load.Growth] = field(default_factory=dict)
    lines: list[tuple] = field(default_factory=list)
    crowded: list[tuple] = field(default_factory=list)
    visible: np.ndarray = None  # octaves of contexts of ordinary length
    near: Float[np.ndarray, " K"] = None  # bits of the logarithmic memory there
    ceiling: float = math.nan
    numbers: dict[str, str] = field(default_factory=dict)

    @property
    def soft(self) -> list[str]:
        """The memories on the circle."""
        return [name for name, law in self.laws.items() if law.code == "circle"]

    def facts(self, code: str) -> np.ndarray:
        return np.array([M for M, _ in self.held[code]])


class AddressedMemory(NamedTuple):
    """Random groups of three tokens with keys and amplitudes of their own; queries and keys of length at most √B."""

    queries: Float[np.ndarray, "M 2"]
    keys: Float[np.ndarray, "M 3 2"]
    amplitudes: Float[np.ndarray, "M 3"]

    @staticmethod
    def random(rng: np.random.Generator) -> tuple["AddressedMemory", float]:
        """A memory and its B."""
        M, B = int(rng.integers(2, 6)), rng.uniform(2, 12)
        x = math.sqrt(B) * associative.circle_keys(M) * rng.uniform(0.6, 1, (M, 1))
        y = math.sqrt(B) * associative.circle_keys(M)[:, None] + rng.normal(0, 0.3, (M, 3, 2))
        y *= np.minimum(1, math.sqrt(B) / np.linalg.norm(y, axis=-1, keepdims=True))
        return AddressedMemory(x, y, rng.uniform(0.3, 1, (M, 3))), B

    def holds(self, eps: float) -> bool:
        """Whether every labeling is recalled with margin 2ε: the worst labels of the others, at every query."""
        loud = np.exp(np.einsum("id,jtd->ijt", self.queries, self.keys))
        D = (self.amplitudes * loud).sum(2) / loud.sum((1, 2))[:, None]
        return bool((2 * np.diag(D) - D.sum(1) > eps).all())

    def slopes(self) -> Float[np.ndarray, "M 2"]:
        """g_i, the gradient of ln Σ h e^{⟨x, y⟩} over group i at its own query: a mean of the group's keys."""
        weights = self.amplitudes * np.exp(np.einsum("id,itd->it", self.queries, self.keys))
        return np.einsum("it,itd->id", weights, self.keys) / weights.sum(1, keepdims=True)


def run(profile: str, *, record: claims.Recorder, rng: np.random.Generator, generator: torch.Generator) -> Result:
    """Packing, then the growth of seven memories; forecasts come before what they are about."""
    settings = claims.settings(PROFILES, profile)
    chosen = laws(settings)
    far = 2 ** np.arange(4, 65, 4, dtype=object)
    sizes = {name: far if law.octaves == 64 else 2 ** np.arange(4, law.octaves + 1) for name, law in chosen.items()}
    result = Result(settings, chosen, sizes)
    judge_packing(record, result)
    judge_search(record, result, generator)
    predict_growth(record, result)
    judge_growth(record, result, rng)
    ordinary_lengths(result, rng)
    judge_crowd(record, result, rng)
    return result


def largest_held(code: Callable, B: float, parameters: Iterable) -> tuple[int, float]:
    """(M, tokens) of the largest code of a family that is held; `code(parameter)` gives keys and repetitions."""
    best = (1, 1)
    for parameter in parameters:
        keys, copies = code(parameter)
        if len(keys) > best[0] and associative.leak_odds(keys, B, weights=copies) < math.exp(-GAP):
            best = (len(keys), copies.sum())
    return best


def lattice(d_k: int, B: float) -> Callable:
    """Keys in a ball, inner ones repeated e^{B(1 − |k|²)/2} times, which makes the middle as loud as the rim."""

    def code(spacing):
        keys = associative.ball_keys(d_k, spacing)
        return keys, np.maximum(1, np.round(np.exp(B / 2 * (1 - (keys**2).sum(1)))))

    return code


def spiral(M: int) -> tuple[Float[np.ndarray, "M 3"], Float[np.ndarray, " M"]]:
    """M keys on a golden spiral, each once."""
    return associative.fibonacci_keys(M), np.ones(M)


def judge_packing(record: claims.Recorder, result: Result) -> None:
    """9a, parts 1 and 2, for circles, spirals and lattices."""
    spirals = {B: [*range(2, int(3 * B) + 8), *range(int(3 * B) + 8, int(8 * B) + 16, max(1, int(B / 2)))]
               for B in RANGES}  # fmt: skip
    spacings = {
        "interval": {B: 2 / np.arange(1, 2 * math.sqrt(B) + 2) for B in RANGES},
        "disc": {B: np.geomspace(2, 1.2 / math.sqrt(B), 75) for B in RANGES},
    }
    held = result.held
    held["circle"] = [(bounds.circle_facts(B, EPS), 0) for B in RANGES]
    held["spiral"] = [largest_held(spiral, B, spirals[B]) for B in RANGES]
    for name, by_range in spacings.items():
        held[name] = [largest_held(lattice(DIMENSION[name], B), B, by_range[B]) for B in RANGES]
    tried = {"circle": [math.inf] * len(RANGES), "spiral": [spirals[B][-1] for B in RANGES]}
    tried |= {name: [len(associative.ball_keys(DIMENSION[name], by_range[B].min())) for B in RANGES]
              for name, by_range in spacings.items()}  # fmt: skip
    limits = {name: [bounds.addressed_facts(DIMENSION[name], B, EPS) for B in RANGES] for name in held}
    record.theorem(
        "packing", theorem="Proposition 9a, part 1",
        statement="Facts held by circles, spirals and lattices at bounded logits are at most"
        " $(1 + \\sqrt{2B/\\Delta})^{d_k}$",
        measured=[result.facts(name) for name in held], possible=[tried[name] for name in held],
        bound=list(limits.values()), parameters={"B": RANGES, "codes": list(held)},
    )  # fmt: skip
    round_ones = ("circle", "spiral")
    on_sphere = [[bounds.sphere_facts(DIMENSION[name], B, EPS) for B in RANGES] for name in round_ones]
    record.theorem(
        "packing-sphere", theorem="Proposition 9a, part 2", statement="... and at most $1/\\sigma(\\varphi/2)$ on the"
        " sphere",
        measured=[result.facts(name) for name in round_ones], possible=[tried[name] for name in round_ones],
        bound=on_sphere, parameters={"B": RANGES},
    )  # fmt: skip
    result.numbers |= {
        "circle_share": f"{100 * result.facts('circle')[-1] / on_sphere[0][-1]:.0f}",
        "interval_share": f"{100 * result.facts('interval')[-1] / limits['interval'][-1]:.0f}",
        "interval_tokens": f"{held['interval'][3][1]:,.0f}", "interval_B": f"{RANGES[3]:g}",
        "interval_facts": f"{held['interval'][3][0]}",
    }  # fmt: skip


def judge_search(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Gradient descent over keys, queries and multiplicities tries to hold more facts than 9a allows."""
    settings = result.settings
    for d_k, B in ((1, 4.0), (1, 16.0), (2, 2.0), (2, 4.0)):
        best, limit = 1, bounds.addressed_facts(d_k, B, EPS)
        for M in range(2, math.floor(limit) + 3):
            odds = search_addresses(M, d_k, B, restarts=settings.restarts, steps=settings.steps, generator=generator)
            best = M if odds < math.exp(-GAP) else best
            if odds > 2 * math.exp(-GAP):
                break
        result.attacked.append((d_k, B, best, limit))
    rows = result.attacked
    record.theorem(
        "packing-search", theorem="Proposition 9a, part 1",
        statement="Facts held by searched keys, queries and multiplicities are at most"
        " $(1 + \\sqrt{2B/\\Delta})^{d_k}$",
        measured=[row[2] for row in rows], bound=[row[3] for row in rows],
        possible=[math.floor(row[3]) + 2 for row in rows], searched=True,
        parameters={"d_k and B": [row[:2] for row in rows]},
    )  # fmt: skip


def circle_prediction(N: int, logit_range: Callable) -> int:
    """The most facts that a circle holds, every labeling, in a context of at most N tokens (9b, part 2)."""
    most = min(N, bounds.circle_facts(logit_range(N), EPS))
    return next(M for M in range(most, 0, -1) if bounds.circle_facts(logit_range(M * (N // M)), EPS) >= M)


def predict_growth(record: claims.Recorder, result: Result) -> None:
    """Four forecasts, from the propositions."""
    everything, soft, sizes = (-math.inf, math.inf), result.soft, result.sizes
    record.predict(
        "circle-law", theorem="Proposition 9b, part 2", relative=0.05, parameters={"memories": soft},
        statement="Retained bits of every circle at every context size are the facts that its exact condition holds",
        predicted=[circle_prediction(int(N), result.laws[name].logit_range) for name in soft for N in sizes[name]],
        possible=(0, [float(N) for name in soft for N in sizes[name]]),
    )  # fmt: skip
    record.predict(
        "exponents", theorem="Propositions 9a, 9c, 9d", predicted=list(EXPONENTS.values()), possible=everything,
        statement="$d \\ln \\mathrm{bits} / d \\ln N$ over the last four octaves: $0$; $p (d_k-1)/2$ for"
        " $B \\propto N^p$; $1$ for argmax",
        absolute=0.05, parameters={"memories": list(EXPONENTS)},
    )  # fmt: skip
    record.predict(
        "log-exponents", theorem="Proposition 9b", predicted=[0.5, 1.0], possible=everything, absolute=0.1,
        statement="$d \\ln \\mathrm{bits} / d \\ln \\ln N$ for $B = \\log_2 N$ on the sphere: $(d_k - 1)/2$",
        parameters={"d_k": [2, 3]},
    )  # fmt: skip
    record.predict(
        "which-law", theorem="Propositions 9b to 9d", predicted=list(JUDGED.values()), possible=(0, 1), absolute=0.0,
        statement="The law that foretells the held-out sizes better: a power of $\\ln N$ (0) or of $N$ (1)",
        parameters={"memories": list(JUDGED)},
    )  # fmt: skip
    result.ceiling = bounds.moment_bits(
        k=None, d_k=2, d_v=1, heads=1, B=B0, scale=1.0, lipschitz=1.0, eps=EPS / 2
    )  # fmt: skip
    result.numbers["ceiling"] = f"{result.ceiling:.0f}"


def reader(code: str) -> Callable:
    """Readings of a code: by convolution on the circle, by attention elsewhere."""
    if code == "circle":
        return associative.circle_readings
    return lambda values, B: associative.readings(associative.fibonacci_keys(values.shape[1]), values, B)


def hard_load(N: int, rng: np.random.Generator) -> load.Load:
    """Argmax attention, every token a fact: no context of N tokens could hold more."""
    labels = tasks.signs((2, N), rng)
    read = associative.readings(associative.circle_keys(N), labels, math.inf)
    return load.Load(N, load.recalled(read, labels, 1 - 1e-9))


def judge_growth(record: claims.Recorder, result: Result, rng: np.random.Generator) -> None:
    """Most bits retained at each size, on fresh labelings; laws are fitted without the last quarter of the sizes."""
    settings, sizes = result.settings, result.sizes
    for name, law in result.laws.items():
        if law.code == "argmax":
            result.loads[name] = [hard_load(int(N), rng) for N in sizes[name]]
        else:
            result.loads[name] = [
                load.best_load(int(N), law.logit_range, reader(law.code), eps=EPS, trials=settings.tables, rng=rng)
                for N in sizes[name]
            ]
    loads, names = result.loads, list(result.laws)
    result.bits = {name: np.array([best.bits for best in loads[name]]) for name in names}
    result.fits = {name: load.growth(sizes[name].astype(float), result.bits[name]) for name in names}
    again = {  # [draws, N]: the labelings drawn anew
        name: np.stack([fact_recall.retained(best.facts, intervals.resampled(best.recall, rng, settings.resamples), 2)
                        for best in loads[name]], 1)
        for name in names
    }  # fmt: skip
    refits = {name: [load.growth(sizes[name].astype(float), row) for row in again[name]] for name in names}

    def measure(key, chosen, value):
        draws = np.array([[value(fit) for fit in refits[name]] for name in chosen]).T
        record.measure(key, [value(result.fits[name]) for name in chosen], interval=intervals.simultaneous(draws))

    together = intervals.simultaneous(np.concatenate([again[name] for name in result.soft], 1))
    record.measure("circle-law", [bits for name in result.soft for bits in result.bits[name]], interval=together)
    measure("exponents", EXPONENTS, lambda fit: fit.power)
    measure("log-exponents", LOGARITHMIC, lambda fit: fit.polylog)
    measure("which-law", JUDGED, lambda fit: float(fit.better == "power"))
    record.theorem(
        "argmax", theorem="Proposition 9d", relation="==",
        statement="Argmax attention in $d_k = 2$ recalls every one of $N$ facts with margin 2: bits are $N$",
        measured=result.bits["argmax"], bound=sizes["argmax"].astype(float),
        possible=(0, sizes["argmax"].astype(float)), parameters={"N": sizes["argmax"]},
    )  # fmt: skip
    for name in names:
        result.lines.append(growth_line(result, name, rng))


def growth_line(result: Result, name: str, rng: np.random.Generator) -> tuple:
    """A row of the table: bits at the end, exponents, and how each law foretells what was left out."""
    last, fit = result.loads[name][-1], result.fits[name]
    low, high = load.recall_interval(last.recall, last.facts, rng)
    errors = (f"{100 * fit.held_power:.1f} %", f"{100 * fit.held_polylog:.1f} %")
    octave = str(int(math.log2(result.sizes[name][-1]))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return (
        name, f"2{octave}", f"{last.bits:.1f} ({low:.1f} to {high:.1f})", f"{fit.power:.3f}", f"{fit.polylog:.2f}",
        *(errors if name in JUDGED else ("–", "–")),
    )  # fmt: skip


def ordinary_lengths(result: Result, rng: np.random.Generator) -> None:
    """The logarithmic memory on contexts of ordinary length, where its law is hard to tell from a small power."""
    octaves = result.settings.octaves
    result.visible = np.arange(4, octaves + 1)
    how = {"eps": EPS, "trials": result.settings.tables, "rng": rng}
    result.near = np.array([
        load.best_load(2 ** int(j), math.log2, associative.circle_readings, **how).bits for j in result.visible
    ])  # fmt: skip
    short, long = load.growth(2.0**result.visible, result.near), result.fits["log, d_k = 2"]
    result.numbers |= {
        "short_power": f"{100 * short.held_power:.1f}", "short_polylog": f"{100 * short.held_polylog:.1f}",
        "short_largest": f"{2**octaves:,}", "long_power": f"{100 * long.held_power:.0f}",
        "long_polylog": f"{100 * long.held_polylog:.0f}", "log_2": f"{long.polylog:.2f}",
        "log_3": f"{result.fits['log, d_k = 3'].polylog:.2f}",
    }  # fmt: skip


def judge_crowd(record: claims.Recorder, result: Result, rng: np.random.Generator) -> None:
    """One fact a token, nobody chooses the load: where its own token has at most half of the attention it is lost."""
    octaves, memories = result.settings.octaves, result.soft[:2]
    contexts = np.array([2, 3, 4, 5, 6, 8, 10, 12, *2 ** np.arange(4, octaves + 1, 2)])
    kept, recalled, own = {name: [] for name in memories}, [], []
    for name in memories:
        for N in map(int, contexts):
            B = result.laws[name].logit_range(N)
            labels = tasks.signs((max(8, min(result.settings.tables, 2**20 // N)), N), rng)
            right = labels * associative.circle_readings(labels, B)
            own.append(associative.circle_readings(np.eye(1, N), B)[0, 0])  # attention on the fact's own token
            recalled.append(((right > EPS) * 1 + (2 * own[-1] - right > EPS)).max())  # as it is, and turned round
            kept[name].append((right > EPS).mean(1))
    own, recalled = np.array(own), np.array(recalled)
    halved = own <= 0.5
    record.theorem(
        "crowded-one-label", theorem="Theorem 8, part 2", bound=1, possible=2,
        statement="Labels of one fact that are recalled, all else being equal, where its own token has at most half of"
        " the attention",
        measured=recalled[halved], parameters={"N": contexts, "memories": memories},
    )  # fmt: skip
    result.numbers |= {"both_labels": f"{own[recalled == 2].min():.2f}", "one_label": f"{own[halved].max():.2f}"}
    result.crowded = [
        (f"{N:,}", *(f"{retained_bits(kept[name][i].mean(), int(N)):.1f}" for name in memories))
        for i, N in enumerate(contexts)
    ]
