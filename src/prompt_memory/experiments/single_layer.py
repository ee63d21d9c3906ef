"""Chapter 13, one layer: the floor under every prompt, and what memorises the same data.

`run` checks Proposition 13a on random layers, looks for prompts below the floors of Theorem 13, permutes answers by
low-rank updates of the values and adds a second layer. The counts of labelings are in `single_layer_labelings`.
"""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.func import functional_call

from prompt_memory import bounds, measure, tasks, tune
from prompt_memory.book import claims, figures, verdicts
from prompt_memory.network.shared_token import prompt_token, shared_texts, shared_token_data, value_swap
from prompt_memory.network.transformer import Transformer, TransformerConfig

ONE = {"d": 9, "q": 5, "heads": 1, "d_k": 4, "d_v": 5}
THREE = {"d": 12, "q": 6, "heads": 3, "d_k": 4, "d_v": 4}
CASES = {  # architecture, texts, targets
    "swap, one head": (ONE, 2, "swap"),
    "swap, three heads": (THREE, 2, "swap"),
    "swap, three heads, rotary, causal": (THREE | {"positions": "rotary", "causal": True}, 2, "swap"),
    "three in a circle, one head": (ONE, 3, "swap"),
    "half-way, one head": (ONE, 3, "half-way"),
    "random, unequal masses": (ONE, 2, "random"),
}
SHARP = [name for name in CASES if "one head" in name or "unequal" in name]  # one token has any mass and value there
ORDERS = {"one swap": [1, 0, 2, 3, 4, 5], "two circles of three": [1, 2, 0, 4, 5, 3],
          "one circle of six": [1, 2, 3, 4, 5, 0]}  # fmt: skip
RANKS = {"one swap": (1,), "two circles of three": (1, 2, 3, 4), "one circle of six": (1, 2, 3, 4, 5)}
SHARES = (0.35, 0.5, 0.65, 0.8, 0.9)  # of the attention, taken by the prompts of the picture
ETA = 0.25  # how far a token-wise network is from the identity, as a Lipschitz constant


@dataclass(frozen=True)
class Settings:
    """Random layers; networks of each kind of data; starts and steps of the search; prompt lengths.

    For labelings: the most texts with q classes (`texts`), starts and steps for each labeling.
    """

    instances: int
    networks: int
    starts: int
    steps: int
    lengths: tuple[int, ...]
    texts: dict[int, int]
    label_starts: int
    label_steps: int


PROFILES = {
    "smoke": Settings(12, 1, 3, 80, (1, 16), {2: 3, 3: 3}, 4, 150),
    "standard": Settings(100, 2, 8, 120, (1, 4, 16, 128), {2: 6, 3: 4}, 6, 250),
    "full": Settings(1000, 5, 32, 300, (1, 2, 4, 16, 64, 256), {2: 8, 3: 5}, 16, 800),
}


@dataclass
class Problem:
    """One network with its texts, their targets, the floor, and the best mass (λ where masses are equal)."""

    model: Transformer
    read: Float[Tensor, " d"]
    queries: Float[Tensor, "n 2 d"]
    targets: Float[Tensor, "n q"]
    floor: float
    best: float | Float[np.ndarray, " H"]


@dataclass
class Result:
    """Everything that chapter 13 measured about errors."""

    settings: Settings
    triangle: Float[Tensor, "3 2"] = None  # answers without a prompt
    copies: list[Float[Tensor, "3 2"]] = field(default_factory=list)  # behind prompts
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)  # error of one written token over the floor
    found: dict[str, Float[np.ndarray, "N L S"]] = field(default_factory=dict)  # error found over the floor
    updates: list[tuple] = field(default_factory=list)  # data, rank, floor, found, floor for prompts; over no update's
    two_layers: Float[np.ndarray, "L S"] = None  # over the error of answering alike
    rank_one: float = math.nan  # error of a value update over the floor for prompts
    numbers: dict[str, object] = field(default_factory=dict)


def network(generator: torch.Generator, **architecture) -> Transformer:
    """A random network in general position, in float64: gains and biases drawn, attention not flat or saturated."""
    return tasks.generic_instance(TransformerConfig(**architecture), 1, 1, generator=generator)[0]


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, rng: np.random.Generator) -> Result:
    """The identity, the picture, floors under prompts, low-rank updates, and a second layer."""
    result = Result(claims.settings(PROFILES, profile))
    check_identity(result, generator, rng)
    draw_copies(result, generator)
    judge_floors(record, result, generator)
    judge_token_wise(record, result, generator)
    judge_swaps(record, result, generator, rng)
    judge_ranks(record, result, generator)
    second_layer(result, generator)
    return result


def check_identity(result: Result, generator: torch.Generator, rng: np.random.Generator) -> None:
    """Proposition 13a in random layers: AssertionError if anything differs by more than rounding."""
    worst = []
    for _ in range(result.settings.instances):
        heads, positions = int(rng.integers(1, 5)), str(rng.choice(["none", "rotary"]))
        d_k = 2 * int(rng.integers(1, 3)) if positions == "rotary" else int(rng.integers(1, 5))
        model = network(
            generator, d=8, q=8, heads=heads, d_k=d_k, d_v=8 // heads, positions=positions,
            causal=bool(rng.integers(2)), norm=str(rng.choice(["none", "rms", "layer"])), mlp=int(rng.choice([0, 8])),
        )  # fmt: skip
        texts, prompt = normal(generator, 3, 5, 8), normal(generator, int(rng.choice([1, 3, 30])), 8)
        texts[:, -1] = texts[0, -1].clone()  # the read token is shared
        (seen,), logits = measure.own_and_prompt(model, texts, prompt)
        (alone,), _ = measure.own_and_prompt(model, texts)
        worst.append((logits - model(prompt[None], texts, read="all")[0]).abs().max().item())
        joint = measure.joint_attention(model, texts, prompt)[..., len(prompt) :]  # of the network's own softmax
        worst.append((joint / joint.sum(-1, keepdim=True) - alone.pattern).abs().max().item())
        worst += [(x[:, :, -1] - x[:1, :, -1]).abs().max().item() for x in (seen.prompt_log_mass, seen.bias)]
    if not max(worst) < 1e-9:
        raise AssertionError(f"Proposition 13a is off by {max(worst)}")
    result.numbers["instances"] = f"{result.settings.instances:,}"
    result.numbers["prefix_worst"] = figures.scientific(max(worst), up=True)


def draw_copies(result: Result, generator: torch.Generator) -> None:
    """Answers to three texts in the plane of two logits, without a prompt and behind five written ones."""
    for _ in range(50):  # for the eye: a triangle that is not too thin
        model = network(generator, d=8, q=2, heads=1, d_k=4, d_v=4)
        texts, read = shared_token_data(model, 3, generator=generator)
        F, masses, _ = measure.without_prompt(model, texts, read)
        if torch.linalg.cond(F - F.mean(0)) < 2:
            break
    queries = shared_texts(texts, read)
    own = (model.blocks[0].output @ model.unembedding).T  # M, [q, d_v]
    spread = F - F.mean(0)
    for share, angle in zip(SHARES, np.linspace(0.4, 5.6, len(SHARES)), strict=True):
        # one token with this share of the attention; its value moves the answers in this direction
        towards = torch.tensor([math.cos(angle), math.sin(angle)])
        shift = F.mean(0) + 2.2 * spread.norm(dim=1).max() / share * towards
        b = torch.linalg.pinv(own) @ (shift - read @ model.unembedding)
        P = prompt_token(model, read, masses[0].log() + math.log(share / (1 - share)), b[None])
        copy = model(P[None], queries)[0]
        if not (copy - copy.mean(0) - (1 - share) * spread).abs().max() < 1e-9:
            raise AssertionError("The answers behind a prompt are no smaller copy")
        result.copies.append(copy)
    result.triangle = F


def problem(generator: torch.Generator, architecture: dict, n: int, kind: str) -> Problem:
    """A random layer with n texts; targets are answers passed round, half-way to their mean, or random."""
    model = network(generator, **architecture)
    texts, read = shared_token_data(model, n, generator=generator)
    texts, read = (normal(generator, n, model.config.d), 0.5 * read) if kind == "random" else (texts, read)
    F, masses, values = measure.without_prompt(model, texts, read)
    if kind == "random":
        y = F + normal(generator, n, model.config.q)
        floor, best = bounds.two_sequence_floor(masses[:, 0].numpy(), F.numpy(), y.numpy())
    else:
        new = torch.linalg.svd(F - F.mean(0)).Vh[-1] * torch.linspace(-1, 1, n, dtype=F.dtype)[:, None]
        y = F.roll(1, 0) if kind == "swap" else F.mean(0) + 0.5 * (F - F.mean(0)) + 0.3 * new
        floor, best = bounds.equal_mass_floor(values.numpy(), y.numpy())
    return Problem(model, read, shared_texts(texts, read), y, floor, best)


def written(p: Problem) -> float:
    """The error of one token with the best mass and, for it, the best value, over the floor; one head.

    Where the floor is only an infimum (mass zero or infinite) the mass is taken far out.
    """
    F, masses, _ = measure.without_prompt(p.model, p.queries[:, 0], p.read)
    z = masses[:, 0]
    Z = p.best
    if isinstance(p.best, np.ndarray):  # λ
        Z = z[0] * (1 / p.best.item() - 1 if p.best.item() else math.inf)
    Z = torch.as_tensor(Z, dtype=z.dtype).clamp(1e-8 * z[0], 1e8 * z[0])
    beta = 1 / (Z + z)  # F(P; X_i) = β_i (ν + Z_i F_i): least squares for ν
    nu = (beta[:, None] * (p.targets - (beta * z)[:, None] * F)).sum(0) / (beta**2).sum()
    M = (p.model.blocks[0].output @ p.model.unembedding).T
    b = torch.linalg.lstsq(M, (nu / Z - p.read @ p.model.unembedding)[:, None]).solution[:, 0]
    token = prompt_token(p.model, p.read, Z.log()[None], b[None])
    return (p.model(token[None], p.queries)[0] - p.targets).square().sum().item() / p.floor


def search(
    settings: Settings, generator: torch.Generator, model: Transformer, queries: Float[Tensor, "n 2 d"],
    y: Float[Tensor, "n q"], m: int, effort: int = 1,
) -> Float[np.ndarray, " S"]:  # fmt: skip
    """Squared errors of prompts of m tokens, found by Levenberg–Marquardt from random starts."""
    start = normal(generator, effort * settings.starts, m, model.config.d)
    steps = effort * settings.steps
    fit = tune.levenberg_marquardt(model, queries, y.expand(len(start), -1, -1), start, steps=steps)
    return (fit.error * y.numel()).numpy()


def judge_floors(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Parts 2 and 3: the best token, written down, and the best prompts found, against the floors."""
    settings = result.settings
    result.problems = {
        name: [problem(generator, *case) for _ in range(settings.networks)] for name, case in CASES.items()
    }
    record.predict(
        "floor-found", theorem="Theorem 13, parts 2 and 3",
        statement="Best error found over the floor, one head, for every prompt length",
        predicted=np.ones((len(SHARP), settings.networks, len(settings.lengths))), relative=0.01,
        possible=(0, math.inf), searched=True,
        parameters={"cases": SHARP, "lengths": settings.lengths, "starts": settings.starts},
    )  # fmt: skip
    result.ratios = {name: [written(p) for p in result.problems[name]] for name in SHARP}
    record.theorem(
        "floor-sharp", theorem="Theorem 13, parts 2 and 3: sharp",
        statement="Error of the best prompt of one token, written down, over the floor",
        measured=list(itertools.chain.from_iterable(result.ratios.values())), bound=1.0, possible=(0, math.inf),
        relation="==", tolerance=1e-6, parameters={"cases": SHARP},
    )  # fmt: skip
    found = result.found
    for name, rows in result.problems.items():
        found[name] = np.array(
            [[search(settings, generator, p.model, p.queries, p.targets, m) / p.floor for m in settings.lengths]
             for p in rows]
        )  # fmt: skip
    record.theorem(
        "floor", theorem="Theorem 13, parts 2 and 3",
        statement="No prompt found has an error below the floor (error over floor)",
        measured=np.concatenate([ratio.flatten() for ratio in found.values()]), bound=1.0, possible=0.0, relation=">=",
        tolerance=1e-9, searched=True,
        parameters={"cases": list(CASES), "lengths": settings.lengths, "starts": settings.starts},
    )  # fmt: skip
    record.measure("floor-found", np.stack([found[name].min(2) for name in SHARP]))
    result.numbers |= {
        "prompts_tried": f"{sum(ratio.size for ratio in found.values()):,}", "longest": f"{max(settings.lengths)}",
        "floor_reached": f"{max(found[name].min(2).max() for name in SHARP):.6f}",
    }  # fmt: skip


def judge_token_wise(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Part 3 behind a token-wise network that is a contraction away from the identity; orthogonal unembedding."""
    settings = result.settings
    model = network(generator, d=9, q=9, heads=1, d_k=4, d_v=5, mlp=18)
    block = model.blocks[0]
    slope = bounds.GELU_LIPSCHITZ * torch.linalg.matrix_norm(block.up, 2) * torch.linalg.matrix_norm(block.down, 2)
    block.down.mul_(ETA / slope)
    model.unembedding.copy_(torch.linalg.qr(model.unembedding).Q)
    texts, read = shared_token_data(model, 2, generator=generator)
    queries = shared_texts(texts, read)
    layers, logits = measure.own_and_prompt(model, queries)
    states = layers[0].heads[:, 0, -1] @ block.output  # what attention adds to the residual stream
    floor = (1 - ETA) ** 2 * bounds.equal_mass_floor(states[:, None].numpy(), states.flip(0).numpy())[0]
    swap = logits[:, -1].flip(0)
    found = np.array([search(settings, generator, model, queries, swap, m) for m in settings.lengths])
    record.theorem(
        "floor-token-wise", theorem="Theorem 13, part 3",
        statement="Swap behind an invertible token-wise network: no prompt found is below the floor (error over floor)",
        measured=found / floor, bound=1.0, possible=0.0, relation=">=", tolerance=1e-9, searched=True,
    )  # fmt: skip
    result.numbers["mlp_ratio"] = f"{found.min() / floor:.2f}"


def tuned_values(
    model: Transformer, update: float | Float[Tensor, "d v"], texts: Float[Tensor, "n d"], read: Float[Tensor, " d"]
) -> Float[Tensor, "n q"]:
    """Logits of the texts (x_i, x_0), without a prompt, after `update` is added to the first value matrix."""
    weights = dict(model.named_parameters())
    weights["blocks.0.value"] = weights["blocks.0.value"] + update
    # the first token stands where a prompt stands: [x_i] is the prompt of the query [x_0]
    return functional_call(model, weights, (texts[:, None], read[None, None]))[:, 0]


def judge_swaps(record: claims.Recorder, result: Result, generator: torch.Generator, rng: np.random.Generator) -> None:
    """Part 5: every permutation of four texts, by an update of the predicted rank, in random layers of all kinds."""
    exact = []
    orders = [list(order) for order in itertools.permutations(range(4))][1:]
    for number in range(max(len(orders), result.settings.instances // 5)):
        heads, positions = int(rng.integers(1, 5)), str(rng.choice(["none", "rotary"]))
        model = network(
            generator, d=12, q=6, heads=heads, d_k=4, d_v=3, positions=positions, causal=bool(rng.integers(2)),
            norm=str(rng.choice(["none", "rms", "layer"])), mlp=int(rng.choice([0, 16])),
        )  # fmt: skip
        texts, read = shared_token_data(model, 4, generator=generator)
        before = tuned_values(model, 0.0, texts, read)
        order = orders[number % len(orders)]
        A, B = value_swap(model, texts, read, order)
        if not A.shape[1] == len(B) == 4 - connected_components(np.eye(4)[order])[0]:  # texts minus cycles
            raise AssertionError(f"An update of rank {A.shape[1]} for the order {order}")
        exact.append((tuned_values(model, A @ B, texts, read) - before[order]).abs().max().item())
    record.theorem(
        "low-rank-exact", theorem="Theorem 13, part 5",
        statement="After an update of rank texts minus cycles the answers are permuted: largest difference of any"
        " logit",
        measured=exact, bound=0.0, possible=(0, math.inf), relation="==", tolerance=1e-8,
    )  # fmt: skip
    result.numbers |= {"swapped": f"{len(exact)}", "swap_worst": figures.scientific(max(exact), up=True)}


def judge_ranks(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Part 5: is the rank necessary? Updates AB of every smaller rank are tuned, six texts, one head."""
    settings = result.settings
    model = network(generator, d=12, q=8, heads=1, d_k=4, d_v=8)
    texts, read = shared_token_data(model, 6, generator=generator)
    F, _, values = measure.without_prompt(model, texts, read)
    targets = {name: F[order] for name, order in ORDERS.items()}

    def tune_update(y, rank):
        def split(flat):
            return flat[: 12 * rank].reshape(12, rank), flat[12 * rank :].reshape(rank, 8)

        outputs = torch.func.vmap(lambda flat: tuned_values(model, torch.matmul(*split(flat)), texts, read).flatten())
        start = 0.3 * normal(generator, min(6, settings.starts), 20 * rank)
        fit = tune.least_squares(outputs, y.flatten().expand(len(start), -1), start, steps=settings.steps)
        return fit.error.min().item() * y.numel()

    cells = [(name, rank) for name in targets for rank in RANKS[name]]
    scale = np.array([(targets[name] - F).square().sum().item() for name, _ in cells])
    floors = [bounds.low_rank_floor((targets[name] - F).numpy(), rank) for name, rank in cells] / scale
    record.predict(
        "low-rank-found", theorem="Theorem 13, part 5",
        statement="Error left by the best update found of each rank, over the error without one",
        predicted=floors, absolute=0.002, possible=(0, math.inf), searched=True,
        parameters={"cells": [f"{name}, rank {rank}" for name, rank in cells]},
    )  # fmt: skip
    left = [tune_update(targets[name], rank) for name, rank in cells] / scale
    record.measure("low-rank-found", left)
    record.theorem(
        "low-rank-floor", theorem="Theorem 13, part 5",
        statement="No update found of rank $r$ is below $\\sum_{j>r} \\sigma_j^2$ (over the error without one)",
        measured=left, bound=floors, possible=0.0, relation=">=", tolerance=1e-9, searched=True,
    )  # fmt: skip
    for (name, rank), floor, error, unit in zip(cells, floors, left, scale, strict=True):
        prompts = bounds.equal_mass_floor(values.numpy(), targets[name].numpy())[0]
        result.updates.append((name, rank, floor, error, prompts / unit))


def second_layer(result: Result, generator: torch.Generator) -> None:
    """How far a prompt moves the attention among the text in the second layer, and the swap in two layers."""
    settings = result.settings
    variation = []  # total variation between attention among the text with and without a prompt
    for _ in range(settings.instances // 4):
        deep = network(generator, d=8, q=8, heads=2, d_k=4, d_v=4, depth=2, causal=True, mlp=16, norm="rms",
                       positions="rotary")  # fmt: skip
        text, prompt = normal(generator, 1, 6, 8), normal(generator, 4, 8)
        layers, logits = measure.own_and_prompt(deep, text, prompt)
        if not (logits - deep(prompt[None], text, read="all")[0]).abs().max() < 1e-9:
            raise AssertionError("The decomposition does not give the network's logits")
        alone, _ = measure.own_and_prompt(deep, text)
        variation.append([((a.pattern - b.pattern).abs().sum(-1) / 2).max().item()
                          for a, b in zip(layers, alone, strict=True)])  # fmt: skip
    variation = np.array(variation)
    if not variation[:, 0].max() < 1e-10:
        raise AssertionError("Proposition 13a fails in the first of two layers")
    deep = network(generator, **ONE, depth=2, causal=True)
    texts, read = shared_token_data(deep, 2, generator=generator)
    queries = shared_texts(texts, read)
    _, logits = measure.own_and_prompt(deep, queries)
    swap = logits[:, -1].flip(0)
    alike = ((swap - swap.mean(0)) ** 2).sum().item()  # the error of the same answer for both
    errors = [search(settings, generator, deep, queries, swap, m, effort=2) for m in settings.lengths]
    result.two_layers = np.array(errors) / alike
    p = result.problems["swap, one head"][0]  # the same data that prompts were tried on
    A, B = value_swap(p.model, p.queries[:, 0], p.read, [1, 0])
    after = tuned_values(p.model, A @ B, p.queries[:, 0], p.read)
    result.rank_one = (after - p.targets).square().sum().item() / p.floor
    longer = result.two_layers[1:]
    result.numbers |= {
        "variation": f"{np.median(variation[:, 1]):.2f}",
        "rank_one": figures.scientific(result.rank_one, up=True),
        "two_layers_solved": f"{(longer < 1e-20).sum()} of {longer.size}",
        "two_layers_median": verdicts.readable(f"{np.median(longer):.2g}"),
        "two_layers_single": f"{result.two_layers[0].min():.4f}",
        "two_layers_starts": f"{result.two_layers.shape[1]}",
    }  # fmt: skip
