"""How chapter 4c measures: a network that unfolds one number, random networks on fine grids, tuned prompts."""

import math
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prompt_memory import bounds, intervals, measure, tasks, tune
from prompt_memory.network import bitwise
from prompt_memory.network.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class Settings:
    """How much is run; `bits` and `queries` are for D = 1 and D = 2 tuned coordinates."""

    levels: int  # of the deepest tent network, all prompts run
    samples: int  # labelings drawn for a number format
    beyond: int  # labelings drawn one bit beyond the significand
    bits: dict[int, int]  # of a coordinate on the finest grid of random networks
    queries: dict[int, int]
    networks: int  # of each kind
    labelings: int  # for which prompts are tuned
    starts: int
    steps: int
    short: bool = False  # few samples, wider tolerances


PROFILES = {
    "smoke": Settings(levels=7, samples=40, beyond=200, bits={1: 10, 2: 5}, queries={1: 64, 2: 32}, networks=6,
                      labelings=12, starts=2, steps=40, short=True),
    "standard": Settings(levels=13, samples=400, beyond=2000, bits={1: 14, 2: 8}, queries={1: 128, 2: 64}, networks=8,
                         labelings=64, starts=4, steps=200),
    "full": Settings(levels=16, samples=4000, beyond=8000, bits={1: 16, 2: 10}, queries={1: 1024, 2: 256}, networks=8,
                     labelings=256, starts=8, steps=400),
}  # fmt: skip


# --- the tent network ----------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """A number format: significand with its leading one, exponent and stored fraction, in bits."""

    dtype: torch.dtype
    significand: int
    exponent: int
    fraction: int


FORMATS = {
    "bfloat16": Format(torch.bfloat16, 8, 8, 7),
    "float16": Format(torch.float16, 11, 5, 10),
    "float32": Format(torch.float32, 24, 8, 23),
    "float64": Format(torch.float64, 53, 11, 52),
}


class Unfolded(NamedTuple):
    """All prompts of one tent network with b levels and K numbers: bits shown, least margin, steepest slope seen."""

    b: int
    K: int
    counted: float
    margin: float
    slope: float


def unfold(settings: Settings, generator: torch.Generator) -> list[Unfolded]:
    """Run all 2^{bK} prompts of tent networks; differentiate at one random prompt (maximum norm on the prompt)."""
    shapes = [(b, 1) for b in range(1, settings.levels + 1)]
    shapes += [(b, K) for b, K in ((2, 2), (4, 2), (2, 4), (6, 2), (4, 3)) if b * K <= settings.levels]
    found = []
    for b, K in shapes:
        model, queries = bitwise.tent_network(b, K), bitwise.tent_queries(b, K)
        odd = torch.arange(1 - 2**b, 2**b, 2)  # every value of one coordinate, over 2^-b
        codes = torch.cartesian_prod(*[odd] * K).reshape(-1, K)  # every prompt: [2^(bK), K]
        parts = [model(bitwise.tent_prompts(part, b), queries, own_token=False) for part in codes.split(1024)]
        logits = torch.cat(parts)
        counted = math.log2(len(measure.distinct(logits.argmax(-1).to(torch.uint8).numpy())))
        margin = (logits[..., 1] - logits[..., 0]).abs().min().item()
        prompt = bitwise.tent_prompts(codes[torch.randint(len(codes), (1,), generator=generator)], b)
        jacobian = torch.autograd.functional.jacobian(
            lambda p, net=model, x=queries: net(p, x, own_token=False)[0], prompt
        )  # fmt: skip
        found.append(Unfolded(b, K, counted, margin, jacobian.flatten(2).abs().sum(-1).max().item()))
    return found


def held(dtype: torch.dtype, b: int, samples: int, generator: torch.Generator) -> Bool[np.ndarray, " S"]:
    """Which labelings of b queries their own codes, rounded to this number format, hold in the tent network, [S].

    All labelings where they are few, else `samples` random ones.
    """
    few = 2**b <= max(2**12, samples)
    labels = tasks.all_labels(b, 2) if few else tasks.random_labels(samples, b, 2, generator=generator)
    model, queries = bitwise.tent_network(b).to(dtype), bitwise.tent_queries(b).to(dtype)
    prompts = bitwise.tent_prompts(bitwise.tent_code(labels, b), b, dtype)
    return torch.cat([
        (model(part, queries, own_token=False).argmax(-1) == wanted).all(1)
        for part, wanted in zip(prompts.split(512), labels.split(512), strict=True)
    ]).numpy()  # fmt: skip


def held_in_formats(settings: Settings, generator: torch.Generator) -> dict[tuple[str, int], np.ndarray]:
    """`held` for each format, from half of its significand to three bits beyond it."""
    kept = {}
    for name, (dtype, p, *_) in FORMATS.items():
        for b in sorted({p // 2, p - 1, p, p + 1, p + 2, p + 3}):
            kept[name, b] = held(dtype, b, settings.beyond if b == p + 1 else settings.samples, generator)
    return kept


# --- networks made for nothing -------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of random network: its configuration, and whether a query sees itself beside the prompt."""

    config: TransformerConfig
    own_token: bool


KINDS = {
    "softmax, GELU, two layers": Kind(TransformerConfig(d=4, depth=2, heads=2, mlp=16), True),
    "softmax, ReLU, one layer": Kind(TransformerConfig(d=4, heads=1, mlp=16, activation="relu"), True),
    "piecewise linear, two layers": Kind(
        TransformerConfig(d=4, depth=2, heads=2, mlp=16, activation="relu"), False
    ),
}  # fmt: skip
NO_RELU = {
    "softmax, no ReLU, one layer": Kind(TransformerConfig(d=4, heads=1, mlp=0), True),
    "one prompt token, no ReLU, one layer": Kind(TransformerConfig(d=4, heads=1, mlp=0), False),
}
CASES = list(product(KINDS, (1, 2)))


def proved_bits(kind: Kind, D: int, n: int) -> float | None:
    """The bound of part 1 or 2 on log2 N_n, where one is proved."""
    config = kind.config
    if not kind.own_token:  # round 1: units of query and prompt; round 2: units of the query
        assert config.depth <= 2
        widths = [2 * config.mlp] + [config.mlp] * (config.depth - 1) if config.mlp else []
        return bounds.piecewise_linear_bits(n, D, widths)
    return bounds.one_coordinate_bits(n, config.heads, config.mlp) if config.depth == 1 and D == 1 else None


def lively_instance(
    kind: Kind, D: int, n: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Transformer, Float[Tensor, "1 d"], Float[Tensor, "n T d"]]:
    """A random network, prompt and n queries, each of which some prompt of the coarsest grid answers differently."""
    while True:
        model, prompt, queries = tasks.generic_instance(kind.config, 1, 32 * n, generator=generator)
        model, prompt, queries = model.to(dtype), prompt.to(dtype), queries.to(dtype)
        few = measure.grid_behaviours(model, prompt, queries, coordinates=D, bits=4 // D, radius=3.0,
                                      own_token=kind.own_token).reshape(-1, 32 * n)  # fmt: skip
        lively = torch.from_numpy((few != few[0]).any(0))
        if lively.sum() >= n:
            return model, prompt, queries[lively][:n]


@dataclass
class Grids:
    """log2 of behaviours of random networks, all values of D coordinates run; keys are (kind, D)."""

    by_bits: dict = field(default_factory=dict)  # [networks, bits a coordinate], all queries
    by_queries: dict = field(default_factory=dict)  # [networks, doublings of n], the finest grid
    proved: list[tuple[float, float, float]] = field(default_factory=list)  # counted, bound, most that is possible


def count_on_grids(settings: Settings, generator: torch.Generator) -> Grids:
    """Count behaviours of random networks for fewer and fewer bits, and for fewer and fewer queries."""
    found = Grids()
    for name, D in [*CASES, *product(NO_RELU, (1,))]:
        kind, b, n = (KINDS | NO_RELU)[name], settings.bits[D], settings.queries[D]
        fewer = 2 ** np.arange(2, int(math.log2(n)) + 1)
        tables = []
        for _ in range(settings.networks):
            dtype = torch.float32 if name in KINDS else torch.float64
            model, prompt, queries = lively_instance(kind, D, n, dtype, generator)
            tables.append(measure.grid_behaviours(model, prompt, queries, coordinates=D, bits=b, radius=3.0,
                                                  own_token=kind.own_token))  # fmt: skip
        if name in KINDS:
            found.by_bits[name, D] = np.array([[measure.grid_bits(t, i, n) for i in range(b + 1)] for t in tables])
        counts = np.array([[measure.grid_bits(table, b, i) for i in fewer] for table in tables])
        found.by_queries[name, D] = counts
        if proved_bits(kind, D, n):
            limits = [(proved_bits(kind, D, int(i)), min(b * D, i)) for i in fewer]
            found.proved += [(x, *limit) for row in counts for x, limit in zip(row, limits, strict=True)]
    return found


# --- tuned prompts -------------------------------------------------------------------------------------------------

TUNED, TOKENS, LABELS = TransformerConfig(
    d=4, depth=2, heads=2, d_k=4, d_v=4, mlp=16, causal=True, positions="learned"
), 2, 24  # fmt: skip
COORDINATES = TUNED.d * TOKENS
PRECISIONS = [(b, "float32") for b in (1, 2, 3, 4, 6, 8, 20)] + [(20, "float64")]


@dataclass
class TunedBits:
    """Recall of each labeling, tuned at each precision, and of the best of all prompts at few bits."""

    seed: int
    recalls: dict[tuple[int, str], Float[np.ndarray, " S"]]
    best: dict[int, Float[np.ndarray, " S"]]

    def __post_init__(self):
        self.bits = {key: self.retained(recall) for key, recall in self.recalls.items()}
        self.best_bits = {b: self.retained(recall) for b, recall in self.best.items()}

    def retained(self, recall: Float[np.ndarray, " S"]) -> list[float]:
        """Bits a coordinate, lower, upper: n R(1 − a)/D at the mean recall, with a bootstrap interval of the mean."""
        ends = (recall.mean(), *intervals.bootstrap(recall, np.mean, np.random.default_rng(self.seed)))
        return [LABELS * bounds.rate(1 - a, 2) / COORDINATES for a in ends]

    def ratio(self, key, other) -> tuple[float, tuple[float, float]]:
        """Retained bits over other retained bits of the same labelings, with a bootstrap interval of the labelings."""

        def statistic(both):
            return np.divide(*[bounds.rate(1 - a, 2) for a in both.mean(0)])

        both = np.stack([self.recalls[key], self.recalls[other]], 1)
        return statistic(both), intervals.bootstrap(both, statistic, np.random.default_rng(self.seed))


class Tuning:
    """Prompts of eight numbers of one random network, tuned for random labels with rounding to b bits a number."""

    def __init__(self, settings: Settings, generator: torch.Generator):
        self.settings, self.generator = settings, generator
        self.model, _, queries = tasks.generic_instance(TUNED, TOKENS, LABELS, generator=generator)
        for block in self.model.blocks:
            block.output.mul_(4)  # let the prompt, and not the query itself, decide the answer
        self.queries = queries / 1.5
        self.labels = tasks.random_labels(settings.labelings, LABELS, 2, generator=generator)

    def tuned(self, b: int, dtype: torch.dtype) -> Float[np.ndarray, " S"]:
        """Best recall of each labeling over the starts, by gradients with rounding to b bits, [labelings]."""
        starts = self.settings.starts
        fit = tune.quantised(
            self.model.to(dtype), self.queries.to(dtype), self.labels.repeat(starts, 1),
            tasks.grid(b, 2.0).to(dtype), TOKENS, steps=self.settings.steps, sweeps=0, generator=self.generator,
            learning_rate=0.2,
        )  # fmt: skip
        return fit.recall.unflatten(0, (starts, -1)).amax(0).numpy()

    def best(self, b: int) -> Float[np.ndarray, " S"]:
        """Recall of each labeling by the best of all 2^{bD} prompts, [labelings]."""
        values = tasks.grid(b, 2.0)
        every = measure.behaviours(
            self.model.float(), lambda index: tasks.grid_prompts(index, TUNED.d, TOKENS, values),
            2 ** (b * COORDINATES), self.queries.float(),
        )  # fmt: skip
        return measure.best_recall(measure.distinct(every), self.labels, 2)

    def run(self, seed: int) -> TunedBits:
        """Every precision, and the best of all prompts at one bit (and at two, where there is time)."""
        recalls = {(b, name): self.tuned(b, FORMATS[name].dtype) for b, name in PRECISIONS}
        return TunedBits(seed, recalls, {b: self.best(b) for b in ((1,) if self.settings.short else (1, 2))})
