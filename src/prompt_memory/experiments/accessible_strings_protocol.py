"""Chapter 4, how it is measured: every prompt of a finite set, a search among one-bit prompts, prompts of floats."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory import bounds, measure, pretrain, tasks, tune
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tasks import language

TOKENS = 8  # decoded after each prompt of a finite set
COORDINATES = 8  # k: a one-bit prompt lies in a subspace of this dimension
EXCESS = np.arange(0, 6)  # s: bits of surprise beyond those of the prompt
RESAMPLES = 200
SCALE = 3.0  # standard deviation of the tuner's starts
RANDOM, SOURCE, WRITTEN, NATURAL = "random", "known source", "written by the model", "natural"


@dataclass(frozen=True)
class Settings:
    """How much is run: log2 of the enumerated sets of one vector, of two; strings at m = 1 and at other m; lengths m.

    `sources` is the largest m at which strings of a source are searched for.  Starts and steps a token of the tuner;
    chains and moves of the search among one-bit prompts.
    """

    bits: tuple[int, ...]
    pairs: tuple[int, ...]
    letters: int  # of the beginnings that get one prompt each, chosen with hindsight
    single: int
    strings: int
    lengths: tuple[int, ...]
    sources: int
    starts: int
    steps: int
    chains: int
    moves: int


PROFILES = {
    "smoke": Settings(
        bits=(4, 6, 8, 10), pairs=(4, 6, 8, 10), letters=2, single=64, strings=8, lengths=(1, 2), sources=3, starts=1,
        steps=60, chains=2, moves=30,
    ),
    "standard": Settings(
        bits=(6, 8, 10, 12, 14, 16), pairs=(6, 10, 14), letters=3, single=40, strings=14, lengths=(1, 2, 4),
        sources=2, starts=2, steps=200, chains=4, moves=150,
    ),
    "full": Settings(
        bits=(6, 8, 10, 12, 14, 16, 18), pairs=(6, 8, 10, 12, 14, 16, 18), letters=3, single=400, strings=100,
        lengths=(1, 2, 3, 4, 5, 6, 8), sources=3, starts=4, steps=2000, chains=8, moves=1000,
    ),
}  # fmt: skip


class Models(NamedTuple):
    """The source whose probabilities are known, the model trained on it, and one of natural text (if trained)."""

    lexicon: language.Lexicon
    known: Transformer
    natural: Transformer | None

    @property
    def wide(self) -> Transformer:
        """The model that random and natural strings are crammed into."""
        return self.known if self.natural is None else self.natural


@dataclass
class Enumerated:
    """All 2^bits prompts of m vectors of one finite set: the different strings of 1, 2, … tokens that they write."""

    m: int
    bits: int
    vocabulary: int
    counts: Int[np.ndarray, " N"]
    log2: list[Float[np.ndarray, " D"]]  # for each length, log2 of the probability of each different string
    parent: list[Float[np.ndarray, " D"]]  # the same without its last token

    def __post_init__(self):
        n = np.arange(1, len(self.counts) + 1)
        self.half = measure.half_crossing(np.log2(self.counts) - n * math.log2(self.vocabulary))
        self.bound = bounds.critical_length(self.bits, self.vocabulary)

    @property
    def ratio(self) -> float:
        """The theorem's length at which half of all strings are out of reach, over the exact one."""
        return self.bound / self.half

    def surprising_mass(self, threshold: float) -> float:
        """Probability that some accessible beginning has a surprise above `threshold` bits: a sum over first ones."""
        pairs = zip(self.log2, self.parent, strict=True)
        return sum(np.exp2(p[(-p > threshold) & (-before <= threshold)]).sum() for p, before in pairs)


class Clear(NamedTuple):
    """Strings written with margin 2·eps by a grid of prompts of a tiny model: bits found, allowed, and on the grid."""

    model: str
    eps: float
    bits: float
    bound: float
    possible: float


class Searched(NamedTuple):
    """Longest beginnings that one-bit prompts of m vectors were found for."""

    m: int
    longest: int  # tokens of a string
    lengths: Int[np.ndarray, " S"]
    log2: Float[np.ndarray, "S n"] | None  # of the probabilities of all beginnings, for strings of a source

    @property
    def half(self) -> float:
        return measure.half_length(self.lengths, self.longest)

    @property
    def reached(self) -> Int[np.ndarray, " n"]:
        """How many of the strings are unlocked up to n tokens, for every n."""
        return (self.lengths[:, None] >= np.arange(1, self.longest + 1)).sum(0)


@dataclass
class Crammed:
    """Longest beginnings that prompts of floats were found for; n50 with resamples of the strings."""

    strings: Int[Tensor, "S n"]
    prompts: Float[Tensor, "S m d"]
    lengths: Int[np.ndarray, " S"]
    n50: float = math.nan
    resampled: Float[np.ndarray, " B"] | None = None

    def resample(self, rng: np.random.Generator) -> None:
        """n50 of the strings and of resamples of them; the search is not repeated."""
        end, S = self.strings.shape[1], len(self.lengths)
        drawn = (self.lengths, *rng.choice(self.lengths, (RESAMPLES, S)))
        self.n50, *resampled = (min(measure.n50(lengths, end), float(end)) for lengths in drawn)
        self.resampled = np.array(resampled)

    @property
    def interval(self) -> Float[np.ndarray, " 2"]:
        return np.quantile(self.resampled, [0.025, 0.975])


class Ratio(NamedTuple):
    """One set of allowed prompts: what a bound says about it, and what was found."""

    prompts: str
    margin: float | None
    theorem: str
    bits: float | None
    bound: float
    found: float


@dataclass
class Result:
    """Everything that chapter 4 measured."""

    profile: str
    settings: Settings
    vocabulary: int
    enumerated: dict[tuple[int, int], Enumerated] = field(default_factory=dict)  # by m and bits
    searched: dict[str, dict[int, Searched]] = field(default_factory=dict)  # by kind of string and m
    crammed: dict[str, dict[int, Crammed]] = field(default_factory=dict)
    lines: dict[str, np.ndarray] = field(default_factory=dict)  # slope and height of the line through n50(m)
    bend: dict[str, tuple[float, np.ndarray]] = field(default_factory=dict)  # ratio of rises, with its interval
    ratios: list[Ratio] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)


def load(profile: str, models_dir=None) -> Models:
    """The two languages' models; `smoke` has only a very small one, of the known source."""
    small = profile == "smoke"
    known = pretrain.load("lexicon-small" if small else "lexicon", models_dir).transformer
    return Models(language.Lexicon(), known, None if small else pretrain.load("natural", models_dir).transformer)


def enumerate_prompts(models: Models, settings: Settings, *, generator: torch.Generator):
    """Decode every prompt of nested finite sets: ({(m, bits): Enumerated}, what the prompts of one vector write)."""
    config, found, single = models.known.config, {}, None
    for m, sizes in ((1, settings.bits), (2, settings.pairs)):
        prompts = 10 * torch.randn(2 ** sizes[-1], m, config.d, generator=generator)
        written = torch.cat([measure.greedy(models.known, part, TOKENS) for part in prompts.split(2048)])
        strings = written.to(torch.uint8).numpy()  # smaller sets are the first prompts of the largest one
        single = strings if single is None else single
        by_length = []
        for n in range(1, TOKENS + 1):
            rows, first = measure.first_occurrences(strings[:, :n])
            ids = torch.from_numpy(rows.astype(np.int64))
            by_length.append((first, *(models.lexicon.log2_probability(part) for part in (ids, ids[:, :-1]))))
        for bits in sizes:
            own = [(first < 2**bits, log2, parent) for first, log2, parent in by_length]
            found[m, bits] = Enumerated(
                m, bits, config.q, np.array([keep.sum() for keep, *_ in own]),
                [log2[keep] for keep, log2, _ in own], [parent[keep] for keep, _, parent in own],
            )  # fmt: skip
    return found, single


def clear_strings(model: Transformer, prompts: Float[Tensor, "R m d"], n: int):
    """What greedy decoding writes after each prompt, [R, n], and the least margin up to each token, [R, n]."""
    strings = measure.greedy(model, prompts, n)
    logits = model.stream(torch.cat([prompts, model.embedding[strings[:, :-1]]], 1))[:, prompts.shape[1] - 1 :]
    return strings.to(torch.uint8).numpy(), measure.logit_margins(logits, strings).cummin(1).values.numpy()


def tiny_models(generator: torch.Generator):
    """{name: (model, grid of prompts in the unit ball)}: one that is built to attain the bound, F = (p, −p), and three
    random ones of one or two coordinates."""
    writer = Transformer(TransformerConfig(d=1, q=2, causal=True)).double()
    writer.blocks[0].value.zero_()
    writer.unembedding.copy_(torch.tensor([[1.0, -1.0]]))
    tiny = {"built": (writer, torch.linspace(-1, 1, 101).double()[:, None, None])}
    for d, norm in ((1, "none"), (2, "none"), (2, "rms")):
        config = TransformerConfig(d=d, q=3, depth=1, norm=norm, norm_eps=0.1, causal=True)
        grid = tasks.grid_prompts(torch.arange(101**2), d, 2 // d, torch.linspace(-1, 1, 101).double())
        inside = grid[grid.norm(dim=-1).amax(1) <= 1]
        tiny[f"d = {d}, norm {norm}"] = Transformer(config, generator=generator).double(), inside
    return tiny


def with_margin(generator: torch.Generator) -> list[Clear]:
    """Part 2 on tiny models: strings of up to eight tokens that are written with a margin, against the bound."""
    found = []
    for name, (model, prompts) in tiny_models(generator).items():
        slope = bounds.network_lipschitz(
            model.config, measure.numpy_weights(model), radius=1.0, differences=True, read_prompt=True,
            query_radius=float(model.embedding.norm(dim=-1).max()),
        )  # fmt: skip
        strings, gaps = clear_strings(model, prompts, TOKENS)
        for eps in (0.999,) if name == "built" else (0.3, 0.1, 0.03):
            counts = [len(measure.distinct(strings[gaps[:, n] > 2 * eps, : n + 1])) for n in range(TOKENS)]
            bound = bounds.entropy_bits(model.config.d, prompts.shape[1], 1.0, slope, eps)
            possible = math.log2(min(len(prompts), model.config.q**TOKENS))
            found.append(Clear(name, eps, max(math.log2(max(1, count)) for count in counts), bound, possible))
    return found


def after_a_space(known: Transformer, S: int) -> Float[Tensor, "S 1 d"]:
    """The prompt after which the model of the known source writes by itself."""
    return known.embedding[language.LETTERS.index(" ")].expand(S, 1, -1)


def search_one_bit(
    models: Models, settings: Settings, basis: Float[Tensor, "k d"], *, generator: torch.Generator
) -> dict[str, dict[int, Searched]]:  # fmt: skip
    """For strings of three kinds, the longest beginnings found for prompts p_j = Σ_i ±basis_i."""
    known, V = models.known, models.known.config.q
    found = {RANDOM: {}, SOURCE: {}, WRITTEN: {}}
    for m in settings.lengths:
        S = settings.single if m == 1 else settings.strings
        n = math.ceil(len(basis) * m / math.log2(V)) + 2
        texts = models.lexicon.sample(S, 3 * n, generator=generator)
        beginnings = np.stack([models.lexicon.log2_probability(texts[:, : i + 1]) for i in range(3 * n)], 1)
        written, log2 = measure.sampled_strings(known, after_a_space(known, S), 3 * n, generator=generator)
        kinds = {RANDOM: (language.random_strings(S, n, V, generator=generator), None)}
        if m <= settings.sources:
            kinds |= {SOURCE: (texts, beginnings), WRITTEN: (written, log2.numpy())}
        for kind, (strings, log2_probabilities) in kinds.items():
            fit = tune.longest_prefix_on_grid(
                known, strings, m, basis, tasks.grid(1), chains=settings.chains, steps=settings.moves,
                generator=generator,
            )  # fmt: skip
            found[kind][m] = Searched(m, strings.shape[1], fit.lengths.numpy(), log2_probabilities)
    return found


def mimo_length(model: Transformer, m: int, *, generator: torch.Generator, tries: int = 4) -> float:
    """Heuristic n50 of random strings: the n whose n log2 V bits just fit through the linear channel at random prompts.

    The channel has the singular values of the Jacobian of the logits; r is the standard deviation of the tuner's
    starts, ε half the median gap of the two largest logits.
    """
    estimates, V = [], model.config.q
    for _ in range(tries):
        n = 6 * m + 6
        prompt = SCALE * torch.randn(1, m, model.config.d, generator=generator)
        tokens = language.random_strings(1, n, V, generator=generator)

        def logits(flat, tokens=tokens):
            return model(flat.unflatten(-1, (m, -1)), tokens, read="all").flatten(1)

        J = measure.jacobian(logits, prompt.flatten(1))[0].unflatten(0, (n, -1))  # [n, V, d m]
        top = model(prompt, tokens, read="all")[0, 0].topk(2).values
        eps = float((top[:, 0] - top[:, 1]).median()) / 2
        sizes = range(1, n + 1)
        bits = [bounds.mimo_bits(torch.linalg.svdvals(J[:i].flatten(0, 1)).numpy(), SCALE, eps) for i in sizes]
        fits = [i for i in sizes if bits[i - 1] >= i * math.log2(V)]
        # if all n tokens fit, the channel is full: it has no more than d m singular values
        estimates.append(bits[-1] / math.log2(V) if len(fits) == n else max(fits, default=0) + 0.5)
    return float(np.mean(estimates))


def kinds_of(models: Models) -> dict[str, tuple[int, int]]:
    """Kinds of strings that are crammed, with (a, b): strings of a·m + b tokens are tried."""
    kinds = {RANDOM: (5, 9), SOURCE: (14, 26), WRITTEN: (14, 26)}
    return kinds if models.natural is None else kinds | {NATURAL: (14, 26)}


def draw_strings(models: Models, kind: str, S: int, n: int, *, generator: torch.Generator) -> Int[Tensor, "S n"]:
    """Strings of one kind."""
    if kind == RANDOM:
        return language.random_strings(S, n, models.wide.config.q, generator=generator)
    if kind == NATURAL:
        return language.natural_strings(S, n, generator=generator)
    if kind == SOURCE:
        return models.lexicon.sample(S, n, generator=generator)
    return measure.sampled_strings(models.known, after_a_space(models.known, S), n, generator=generator)[0]


def cram_strings(
    models: Models, settings: Settings, *, seed: int, generator: torch.Generator
) -> dict[str, dict[int, Crammed]]:  # fmt: skip
    """For strings of each kind, the longest beginnings for which prompts of floats are found."""
    found = {}
    for kind, (per_vector, more) in kinds_of(models).items():
        model, found[kind] = models.wide if kind in (RANDOM, NATURAL) else models.known, {}
        for m in settings.lengths:
            n = min(per_vector * m + more, model.config.context - m + 1)
            strings = draw_strings(models, kind, settings.strings, n, generator=generator)
            fit = tune.longest_prefix(model, strings, m, restarts=settings.starts, steps=settings.steps, seed=seed)
            found[kind][m] = Crammed(strings, fit.prompts, fit.lengths.numpy())
    return found
