"""Chapter 2, metric entropy: how steep heads and networks are, against the constants of Lemmas 2a and 2b.

`run` writes its forecasts down before anything is measured, runs the experiments and judges the claims. The counts of
labelings are in `metric_entropy_labelings`.
"""

import contextlib
import math
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prompt_memory import bounds, measure, pretrain, tasks
from prompt_memory.book import claims, figures
from prompt_memory.network import construct
from prompt_memory.network.transformer import Transformer, TransformerConfig

MOVES = {"prompt": "query fixed", "both": "query moves too", "self": "query is a token"}
SHARP = ("V = I, A orthogonal", "V = I, A = −I")  # heads for which Lemma 2a is sharp
NORMS = {"none": "no norm", "rms": "RMSNorm", "layer": "LayerNorm"}
TEMPERATURES = (1.0, 2.0, 3.0)  # values of B, in the Frobenius norm
EPS = 0.1  # ε over r, where constants are expressed in bits
FORMAT = 16  # bits a coordinate of a common number format


@dataclass(frozen=True)
class Settings:
    """How much is run.

    Heads: numbers of tokens, values of B, `restarts` and `steps` of each ascent. Networks: depths, `networks` of each
    kind, `ascent` steps. `tokens` in the Frobenius norm. Labelings: `prompts` of a grid, queries of a `pool`,
    `labelings` drawn.
    """

    lengths: tuple[int, ...]
    B: tuple[float, ...]
    restarts: int
    steps: int
    depths: tuple[int, ...]
    networks: int
    ascent: int
    tokens: tuple[int, ...]
    prompts: int
    pool: int
    labelings: int


_LENGTHS = (1, 2, 3, 5, 10, 30, 100, 300, 1000)
_TOKENS = tuple(2**k for k in range(1, 17))
PROFILES = {
    "smoke": Settings((1, 2, 100), (2.0,), 6, 80, (1, 2), 1, 20, (4, 16, 128, 1024), 2500, 40, 50),
    "standard": Settings(
        (1, 2, 3, 10, 30, 100, 1000), (0.5, 2.0, 6.0), 12, 220, (1, 2, 3, 4), 2, 60, _TOKENS, 15_000, 120, 200
    ),
    "full": Settings(_LENGTHS, (0.5, 2.0, 6.0, 12.0), 32, 1000, (1, 2, 3, 4, 6), 12, 300, _TOKENS, 60_000, 400, 1000),
}


@dataclass
class Slopes:
    """A proved constant and the steepest slope found, of one network."""

    proved: float
    found: float


@dataclass
class Result:
    """Everything that chapter 2 measured about slopes."""

    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    tokens: tuple[int, ...]
    heads: dict[tuple, float] = field(default_factory=dict)  # (maps, B, what moves, tokens) -> found / constant
    constants: dict[tuple, float] = field(default_factory=dict)  # (B, what moves) -> constant for ‖V‖ = 1
    steep: dict[tuple, Slopes] = field(default_factory=dict)  # (norm, depth), networks with A = 0 at the origin
    networks: dict[tuple, list[Slopes]] = field(default_factory=dict)  # (norm, depth), and ("built", 1)
    trained: list[tuple] = field(default_factory=list)  # (set of prompts, Λ, bits a coordinate, memorised)
    frobenius: dict[tuple, list[float]] = field(default_factory=dict)  # (maps, B) -> found for each number of tokens
    limits: dict[float, list[float]] = field(default_factory=dict)  # B -> constant for each number of tokens
    exponent: float = math.nan  # of the growth in the Frobenius norm, at the largest B
    flat: float = math.nan  # its largest over its smallest value beyond 8e^{2B} tokens, at the least B
    numbers: dict[str, object] = field(default_factory=dict)

    def mean(self, norm: str, depth: int) -> Slopes:
        """Geometric means over the networks of one kind."""
        pairs = [(each.proved, each.found) for each in self.networks[norm, depth]]
        return Slopes(*np.exp(np.log(pairs).mean(0)))


@contextlib.contextmanager
def doubles():
    """Inside, torch draws and computes in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def vectors(*shape: int, radius: float | None = None, generator: torch.Generator) -> Tensor:
    """Random vectors in float64, standard normal or spread over the ball and its surface."""
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x if radius is None else measure.into_ball(2 * radius * x / shape[-1] ** 0.5, radius)


def head(A: Float[Tensor, "d d"], V: Float[Tensor, "o d"], tokens: Float[Tensor, "k d"], query: Float[Tensor, " d"]):
    """att(x; Z) = Σ_j softmax_j⟨A x, z_j⟩ V z_j, [o]."""
    return torch.softmax(tokens @ (A @ query), 0) @ tokens @ V.T


def product_form(model: Transformer) -> float:
    """The readable constant of Lemma 2b, for a network with RMSNorm, in the maximum norm of its logits."""
    c, ell, total = model.config, model.config.norm_eps**-0.5, 1.0
    for block in model.blocks:
        cut = ((block.query, c.d_k, 1), (block.key, c.d_k, 1), (block.value, c.d_v, 1), (block.output, c.d_v, 0))
        heads = list(zip(*(w.split(k, axis) for w, k, axis in cut), strict=True))
        g, g2 = block.norm1.gain[:, None], block.norm2.gain[:, None]
        B = [_spectral((g * k) @ (g * q).T) / math.sqrt(c.d_k) * c.d for q, k, _, _ in heads]
        slopes = (_spectral(g * v @ o) * (b + math.hypot(1, b)) for b, (_, _, v, o) in zip(B, heads, strict=True))
        total *= 1 + ell * sum(slopes)
        total *= 1 + ell * bounds.GELU_LIPSCHITZ * _spectral(g2 * block.up) * _spectral(block.down)
    return total * ell * (model.norm.gain[:, None] * model.unembedding).norm(dim=0).max().item()


def _spectral(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix, 2).item()


def _unit(matrix: Tensor) -> Tensor:
    return matrix / torch.linalg.matrix_norm(matrix, 2)


def constant(model: Transformer, query_radius: float = 1.0) -> float:
    """Λ of Lemma 2b in half differences of logits, for prompts in the unit ball."""
    weights = measure.numpy_weights(model)
    return bounds.network_lipschitz(model.config, weights, radius=1.0, query_radius=query_radius, differences=True)


@doubles()
def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """The experiments on slopes; each forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    result = Result(settings.lengths, settings.depths, settings.tokens)
    refine(result, generator)
    heads(record, result, settings, generator)
    networks(record, result, settings, generator)
    judge_networks(record, result, settings)
    trained(result, settings, generator, models_dir, every=1 if profile != "smoke" else 16)
    frobenius(record, result, settings, generator)
    return result


def refine(result: Result, generator: torch.Generator) -> None:
    """The recursion of Lemma 2b never loses against the product form."""
    gains = []
    for depth in (1, 2, 4):
        config = TransformerConfig(d=16, q=8, depth=depth, heads=4, mlp=64, norm="rms", norm_eps=0.1)
        model = Transformer(config, generator=generator).double()
        refined = bounds.network_lipschitz(config, measure.numpy_weights(model), radius=1.0, query_radius=1.0)
        gains.append(product_form(model) / refined)
    assert min(gains) >= 1
    result.numbers["gains"] = " and ".join((", ".join(f"{x:.1f}" for x in gains[:-1]), f"{gains[-1]:.1f}"))


def heads(record: claims.Recorder, result: Result, settings: Settings, generator: torch.Generator) -> None:
    """Ascent over tokens, query and direction, for maps that attain the constants and for random ones."""
    lengths, scales = settings.lengths, settings.B
    maps = dict(zip(SHARP, ((torch.linalg.qr(vectors(4, 4, generator=generator)).Q, torch.eye(4)),
                            (-torch.eye(4), torch.eye(4))), strict=True))  # fmt: skip
    predict_heads(record, settings)
    found = {}
    for name, B, moves, m in product((*SHARP, "random"), scales, MOVES, lengths):
        A, V = maps.get(name) or [_unit(vectors(4, 4, generator=generator)) for _ in range(2)]
        found[name, B, moves, m] = measure.steepest_head(
            B * A, V, m, 1.0, moves, restarts=settings.restarts, steps=settings.steps, generator=generator
        )[0]  # fmt: skip
    for B, moves in product(scales, MOVES):
        result.constants[B, moves] = bounds.head_lipschitz(B * np.eye(4), np.eye(4), 1.0, moves != "prompt")
    result.heads = {key: value / result.constants[key[1], key[2]] for key, value in found.items()}
    for moves in MOVES:
        record.theorem(
            f"head-bound-{moves}", theorem="Lemma 2a",
            statement=f"No head is found steeper than its constant: {MOVES[moves]}",
            measured=[value for key, value in found.items() if key[2] == moves],
            bound=[result.constants[key[1], moves] for key in found if key[2] == moves],
            possible=math.inf, tolerance=1e-9, searched=True,
            parameters={"heads": [*SHARP, "random"], "B": scales, "m": lengths, "restarts": settings.restarts},
        )  # fmt: skip
    attained = [result.heads[key] for key in product(SHARP, scales, ("prompt", "both"), _even(lengths))]
    record.measure("head-attained", attained)
    record.measure("head-self", [result.heads[name, B, "self", m] for name, B, m in product(SHARP, scales, lengths)
                                 if m >= 100])  # fmt: skip
    record.measure("head-single", [value for key, value in found.items() if key[3] == 1])
    odd = [ratio for (name, _, moves, m), ratio in result.heads.items()
           if name in SHARP and moves != "self" and m % 2 and m > 1]  # fmt: skip
    result.numbers["attained"] = f"{100 * min(attained):.2f}"
    few = "Odd numbers of tokens were not tried."
    result.numbers["odd"] = f"With odd numbers of tokens it finds at least {100 * min(odd):.1f} %." if odd else few
    for moves in MOVES:
        random = [ratio for key, ratio in result.heads.items() if key[0] == "random" and key[2] == moves and key[3] > 1]
        result.numbers[f"random_{moves}"] = f"{100 * min(random):.0f} to {100 * max(random):.0f}"


def _even(lengths) -> list[int]:
    return [m for m in lengths if m % 2 == 0]


def predict_heads(record: claims.Recorder, settings: Settings) -> None:
    """The search, which does not know the extremal configuration, finds it."""
    rest = {"predicted": 1.0, "possible": (0, math.inf), "searched": True}
    record.predict(
        "head-attained", theorem="Lemma 2a, sharpness",
        statement="Where the lemma says that its constants are attained (even numbers of tokens, separate query),"
        " ascent finds at least 95 % of them",
        absolute=0.05, parameters={"heads": SHARP, "B": settings.B, "m": _even(settings.lengths)}, **rest,
    )  # fmt: skip
    record.predict(
        "head-self", theorem="Lemma 2a, sharpness",
        statement="With the query among 100 or more tokens it finds 95 % as well",
        absolute=0.05, parameters={"heads": SHARP, "B": settings.B}, **rest,
    )  # fmt: skip
    record.predict(
        "head-single", theorem="Lemma 2a, one token",
        statement="A single token reaches $\\|V\\|$ and no more, whatever $B$",
        absolute=1e-3, **rest,
    )  # fmt: skip


def slopes(model: Transformer, *, own_token: bool = True, steps: int, restarts: int, generator) -> Slopes:
    """The constant of a network and the steepest slope that ascent finds, for four tokens and a query in the ball."""
    proved = constant(model)
    steepest, *_ = measure.steepest_network(model, 4, 1.0, 1.0, restarts=restarts, steps=steps, own_token=own_token,
                                            differences=True, generator=generator)  # fmt: skip
    return Slopes(proved, steepest)


def networks(record: claims.Recorder, result: Result, settings: Settings, generator: torch.Generator) -> None:
    """Networks with A = 0 at the origin, a built head, and random networks of growing depth."""
    for norm, depth in product(NORMS, settings.depths):
        config = TransformerConfig(d=4, q=3, depth=depth, heads=2, d_v=4, mlp=8, norm=norm, norm_eps=0.1)
        model, origin = construct.steep_network(config, generator=generator), torch.zeros(1, 4, 4)
        slope = measure.local_lipschitz(model, origin, origin[:, :1], own_token=False, differences=True).item()
        result.steep[norm, depth] = Slopes(constant(model), slope)
    record.theorem(
        "networks-attained", theorem="Lemma 2b, part 5",
        statement="Networks with $A = 0$ are as steep at the origin as their constant, at every depth (steepness over"
        " constant)",
        measured=[each.found / each.proved for each in result.steep.values()], bound=1.0, relation="==",
        possible=(0, math.inf), tolerance=1e-9, parameters={"norms": list(NORMS), "depths": settings.depths},
    )  # fmt: skip
    built = Transformer(TransformerConfig(d=4, q=2, d_k=4, d_v=4, inverse_temperature=4.0), generator=generator)
    built, block = built.double(), built.blocks[0]
    for weight in (block.query, block.key, block.value, block.output):
        weight.copy_(torch.linalg.qr(vectors(4, 4, generator=generator)).Q)
    built.unembedding.copy_(vectors(4, 1, generator=generator) * torch.tensor([1.0, -1.0]))
    record.predict(
        "network-built", theorem="Lemma 2b", statement="A built network of one layer reaches its constant",
        predicted=1.0, possible=(0, math.inf), absolute=0.05, searched=True,
    )  # fmt: skip
    steps = max(300, 2 * settings.steps)
    found = slopes(built, own_token=False, steps=steps, restarts=64, generator=generator)
    record.measure("network-built", found.found / found.proved)
    result.networks["built", 1] = [found]
    for norm, depth in product(NORMS, settings.depths):
        config = TransformerConfig(d=4, q=3, depth=depth, heads=2, mlp=8, norm=norm, norm_eps=0.1)
        result.networks[norm, depth] = [
            slopes(Transformer(config, generator=generator).double(), steps=settings.ascent,
                   restarts=settings.restarts // 3, generator=generator)
            for _ in range(settings.networks)
        ]  # fmt: skip


def bits(slope: float) -> float:
    """log2(1 + rΛ/ε) at ε = r/10."""
    return math.log2(1 + slope / EPS)


def judge_networks(record: claims.Recorder, result: Result, settings: Settings) -> None:
    """No network is steeper than its constant; how fast both grow with depth."""
    every = [each for found in result.networks.values() for each in found]
    record.theorem(
        "networks", theorem="Lemma 2b",
        statement="No network is found steeper than the constant computed from its weights",
        measured=[each.found / each.proved for each in every], bound=1.0, possible=math.inf, tolerance=1e-9,
        parameters={"networks": [f"{norm} {depth}" for norm, depth in result.networks], "each": settings.networks},
        searched=True,
    )  # fmt: skip
    deepest = settings.depths[-1]
    shallow = [result.mean(norm, 1) for norm in NORMS]
    share = [100 * each.found / each.proved for each in shallow]
    for norm, first in zip(NORMS, shallow, strict=True):
        last, power = result.mean(norm, deepest), 1 / (deepest - 1)
        result.numbers[f"growth_{norm}"] = figures.scientific((last.proved / first.proved) ** power, up=False)
        result.numbers[f"real_growth_{norm}"] = f"{(last.found / first.found) ** power:.1f}"
    built = result.mean("built", 1)
    result.numbers |= {
        "built_ratio": f"{100 * built.found / built.proved:.1f}",
        "first_layer": f"{min(share):.0f} to {max(share):.0f}", "vacuous": vacuous(result),
    }  # fmt: skip


def vacuous(result: Result) -> str:
    """From which depth on a 16-bit format is the better bound, as a sentence."""
    least = {depth: min(bits(each.proved) for norm in NORMS for each in result.networks[norm, depth])
             for depth in result.depths}  # fmt: skip
    beyond = [depth for depth in least if min(least[deeper] for deeper in least if deeper >= depth) > FORMAT]
    if not beyond:
        return (f"At the largest depth the constants are worth at least {least[result.depths[-1]]:.1f} bits a"
                " coordinate at ε = r/10.")  # fmt: skip
    return (f"From {beyond[0]} layers on all of these constants are worth more than 16 bits a coordinate at ε = r/10"
            f" (at least {least[beyond[0]]:.1f}): there Theorem 1 at 16 bits is the better bound.")  # fmt: skip


def trained(result: Result, settings: Settings, generator: torch.Generator, models_dir, *, every: int) -> None:
    """The small bit reader: the margin with which it memorises, and what Theorem 2 makes of it."""
    frozen = pretrain.load("bit-reader-small", models_dir).double()
    network, own = frozen.transformer, frozen.queries
    signs = tasks.grid_prompts(torch.arange(0, 2**16, every), 8, 2, tasks.grid(1).double())
    margins = measure.best_margins(*measure.labels_and_gaps(network, signs, own))
    half = margins.min() / 2  # ε, up to rounding: each labeling is memorised with this margin
    r, longest = 8**0.5, own.norm(dim=-1).max().item()
    shortest = measure.shortest_norm_input(network, signs, own)
    ball, kept = (
        bounds.network_lipschitz(network.config, measure.numpy_weights(network), radius=r, query_radius=longest,
                                 least_norm=least, differences=True)
        for least in (0.0, shortest)
    )  # fmt: skip
    steepest, *_ = measure.steepest_network(network, 2, r, longest, restarts=4, steps=settings.ascent, differences=True,
                                            generator=generator)  # fmt: skip
    names = ("all prompts of the ball", "the same; no Λ is smaller than the slope found",
             f"prompts that give every norm at least {shortest:.2f}")  # fmt: skip
    memorised = math.log2(len(margins)) / 16
    for name, slope in zip(names, (ball, steepest, kept), strict=True):
        result.trained.append((name, slope, math.log2(1 + r * slope / half), memorised))
    result.numbers |= {
        "trained_floor": f"{result.trained[1][2]:.1f}", "trained_labelings": f"{len(margins):,}",
        "trained_prompts": f"{len(signs):,}", "trained_margin": f"{2 * half:.2f}",
    }  # fmt: skip


def frobenius(record: claims.Recorder, result: Result, settings: Settings, generator: torch.Generator) -> None:
    """The map of all tokens in the Frobenius norm: it grows like the root of k, and then no more."""
    tokens = np.array(settings.tokens)
    record.predict(
        "frobenius-growth", theorem="Proposition 2c", predicted=0.5, possible=(-math.inf, math.inf), absolute=0.1,
        searched=True,
        statement="$B = 3$: the steepest map of all tokens grows like $k^{1/2}$ up to $k = 128$ (fitted exponent, from"
        " 16 on)",
    )  # fmt: skip
    record.predict(
        "frobenius-flat", theorem="Proposition 2c", predicted=1.0, possible=(1, math.inf), absolute=0.1, searched=True,
        statement="$B = 1$: beyond $k = 8 e^{2B}$ it does not grow (largest over smallest value)",
    )  # fmt: skip
    eye, mixed = torch.eye(2), _unit(vectors(2, 2, generator=generator))
    for (name, A), B in product((("A = −I", -eye), ("random A", mixed)), TEMPERATURES):
        result.frobenius[name, B] = [
            measure.steepest_clusters(B * A, eye, int(k), 1.0, restarts=4, steps=settings.steps // 2,
                                      generator=generator)
            for k in tokens
        ]  # fmt: skip
    for B in TEMPERATURES:
        result.limits[B] = [bounds.frobenius_lipschitz(B * np.eye(2), np.eye(2), 1.0, int(k)) for k in tokens]
    record.theorem(
        "frobenius", theorem="Proposition 2c",
        statement="No map of all tokens is found steeper, in the Frobenius norm, than its constant",
        measured=list(result.frobenius.values()), bound=[result.limits[B] for _, B in result.frobenius],
        possible=math.inf, tolerance=1e-9, searched=True, parameters={"tokens": tokens, "B": TEMPERATURES},
    )  # fmt: skip
    rising = (tokens >= 16) & (tokens <= 128)
    steep = np.log(np.array(result.frobenius["A = −I", TEMPERATURES[-1]])[rising])
    result.exponent = float(np.polyfit(np.log(tokens[rising]), steep, 1)[0])
    record.measure("frobenius-growth", result.exponent)
    flat = np.array(result.frobenius["A = −I", 1.0])[tokens >= 8 * math.exp(2 * TEMPERATURES[0])]
    result.flat = float(flat.max() / flat.min())
    record.measure("frobenius-flat", result.flat)
    share = np.array([np.array(result.frobenius["A = −I", B]) / result.limits[B] for B in TEMPERATURES])
    last = share[:, -1]
    result.numbers |= {
        "frobenius_low": f"{math.floor(100 * share.min()) / 100:.2f}",
        "frobenius_last": f"{last.min():.2f} to {last.max():.2f}",
    }  # fmt: skip
