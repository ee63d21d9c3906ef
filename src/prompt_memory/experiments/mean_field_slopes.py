"""Chapter 7, first half: how fast one head, and whole networks, move with the measure of their tokens."""

import math
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize
from torch import Tensor

from prompt_memory import bounds, compress, measure
from prompt_memory.book import claims, verdicts
from prompt_memory.network.averaging import averaging_network
from prompt_memory.network.transformer import Transformer, TransformerConfig

ARCHITECTURES = {
    "depth 1": (dict(d=2), dict(d=3, heads=3, mlp=6), dict(d=2, norm="rms", norm_eps=0.1)),
    "depth 2": (dict(d=2, depth=2), dict(d=2, depth=2, norm="rms", norm_eps=0.1, mlp=4)),
    "depth 3": (dict(d=1, depth=3), dict(d=2, depth=3, norm="layer", norm_eps=0.1)),
}


# --- networks and prompts ------------------------------------------------------------------------------------------


def in_ball(generator: torch.Generator, *shape: int) -> Float[Tensor, "..."]:
    """Gaussian vectors, drawn back to the unit ball where they are longer, float64."""
    return measure.into_ball(torch.randn(*shape, generator=generator, dtype=torch.float64), 1.0)


def reader(B: float) -> Transformer:
    """d = 1, one layer, one head with A = B and V = 1: the logits are ±(x + att(x; μ)) where queries see the prompt."""
    return averaging_network(1, causal=False, tilt=B)


def random_network(generator: torch.Generator, **architecture) -> Transformer:
    """A random network of three classes with attention logits at half of the usual scale, float64."""
    return Transformer(TransformerConfig(q=3, inverse_temperature=0.5, **architecture), generator=generator).double()


def constants(model: Transformer) -> tuple[float, float]:
    """(Λ, Λ_W) of a network on the unit ball, for half the largest difference of two logits."""
    how = {"radius": 1.0, "query_radius": 1.0, "differences": True}
    weights = measure.numpy_weights(model)
    found = (bounds.network_lipschitz, bounds.network_wasserstein)
    return tuple(constant(model.config, weights, **how) for constant in found)


# --- steps of the proof --------------------------------------------------------------------------------------------


def check_rounding(rng: np.random.Generator) -> None:
    """Largest remainders: rounding M random weights to multiples of 1/k costs at most M/4k in total variation."""
    for n in range(1, 9):
        w, k = rng.dirichlet(np.ones(n + 1), 2000), int(rng.integers(1, 40))
        down = np.floor(k * w)
        rest, up = k * w - down, np.rint(k - down.sum(1)).astype(int)
        rounded = down + (np.argsort(np.argsort(-rest, 1), 1) < up[:, None])
        assert np.abs(rounded / k - w).sum(1).max() / 2 <= (n + 1) / (4 * k) + 1e-12


def check_layer(generator: torch.Generator, rng: np.random.Generator) -> None:
    """One layer of part 1: W₁ of all tokens behind attention and residual grows by at most 1 + ‖V‖(κ(B) + B)."""
    for trial in range(20):
        A, V = rng.normal(size=(2, 2, 2)) / 2
        first, second = (in_ball(generator, k, 2).numpy() for k in (3 + trial % 4, 5))
        after = [z + compress.attend(z, z, A, V) for z in (first, second)]
        norms = np.linalg.norm(V, 2) * np.linalg.norm(A, 2)
        layer = 1 + bounds.wasserstein_constant(A, V, 1.0) + norms
        assert measure.wasserstein(*after) <= layer * measure.wasserstein(first, second) + 1e-9


# --- one head ------------------------------------------------------------------------------------------------------


@dataclass
class Heads:
    """Slopes of one head that ascent finds, over their constants."""

    ranges: tuple[float, ...]
    lengths: tuple[int, ...]
    plain: list[float]  # A = B·I: the measure moves
    joint: list[float]  # the query, too
    generic: list[float]  # random A and V
    by_length: dict[tuple[float, int], float]  # prompts of m tokens in the plane, by (B, m)


def heads(
    record: claims.Recorder, generator: torch.Generator, *, steps: int, ranges: tuple[float, ...],
    lengths: tuple[int, ...],
) -> Heads:  # fmt: skip
    """Ascent over measures, queries and directions, for heads with A = B·I, for random ones, and for m tokens."""
    eye = {d: torch.eye(d).double() for d in (1, 2, 3)}
    friendly = {f"d = {d}, B = {B}": (B * eye[d], eye[d]) for d, B in product(eye, ranges)}
    others = [
        (torch.randn(3, 3, generator=generator).double() / 2, torch.randn(2, 3, generator=generator).double())
        for _ in range(3)
    ]
    predict_heads(record, list(friendly), ranges, lengths)

    def reached(A, V, **how):
        found, *_ = measure.steepest_measure(A, V, 1.0, steps=steps, generator=generator, **how)
        return found / bounds.wasserstein_constant(A.numpy(), V.numpy(), 1.0, tokens=how.get("tokens"))

    found = Heads(
        ranges, lengths,
        plain=[reached(A, V) for A, V in friendly.values()],
        joint=[reached(A, V, moving_query=True) for A, V in friendly.values()],
        generic=[reached(A, V, moving_query=moving) for A, V in others for moving in (False, True)],
        by_length={(B, m): reached(B * eye[2], eye[2], tokens=m) for B, m in product(ranges, lengths)},
    )  # fmt: skip
    judge_heads(record, found, list(friendly), len(others))
    return found


def predict_heads(record: claims.Recorder, names: list[str], ranges, lengths) -> None:
    """Ascent should find the constants, which are sharp for these heads."""
    for key, what in (("head-reached", "the measure moves"), ("head-joint-reached", "measure and query move")):
        record.predict(
            key, theorem="Lemma 7a, sharpness", predicted=np.ones(len(names)), possible=(0.0, np.inf), relative=0.05,
            statement=f"Ascent finds the constant $\\|V\\| e^{{2B}}(1 + 2B)$ where {what} (ratio)",
            searched=True, parameters={"heads": names},
        )  # fmt: skip
    record.predict(
        "tokens-reached", theorem="Lemma 7a, part 5", predicted=np.ones(len(ranges) * len(lengths)),
        possible=(0.0, np.inf), relative=0.05,
        statement="Ascent over prompts of $m$ tokens in the plane finds the constant for $m$ tokens (ratio)",
        searched=True, parameters={"B": ranges, "m": lengths},
    )  # fmt: skip


def judge_heads(record: claims.Recorder, found: Heads, names: list[str], others: int) -> None:
    """Lemma 7a, parts 1, 2 and 5, and the forecasts of sharpness."""
    record.measure("head-reached", found.plain)
    record.measure("head-joint-reached", found.joint)
    record.measure("tokens-reached", list(found.by_length.values()))
    record.theorem(
        "head", theorem="Lemma 7a",
        statement="No slope of one head in the measure, with a fixed or a moving query, passes"
        " $\\|V\\| e^{2B}(1 + 2B)$ (ratio)",
        measured=[*found.plain, *found.joint, *found.generic], bound=1.0, possible=np.inf, searched=True,
        tolerance=1e-9, parameters={"heads": names, "random heads": others},
    )  # fmt: skip
    record.theorem(
        "tokens", theorem="Lemma 7a, part 5",
        statement="No slope between prompts of $m$ tokens passes the constant for $m$ tokens (ratio)",
        measured=list(found.by_length.values()), bound=1.0, possible=np.inf, searched=True, tolerance=1e-9,
        parameters={"B": found.ranges, "m": found.lengths},
    )  # fmt: skip


def head_numbers(found: Heads) -> dict[str, str]:
    """Numbers of the sentences about one head, and the two of exercise 2."""
    root = optimize.brentq(lambda x: x * math.tanh(x / 2) - 2, 1, 4)
    line = root / (1 + math.exp(-root))
    assert math.isclose(line, bounds.wasserstein_constant(np.full((1, 1), 9.0), np.eye(1), 1.0, tokens=2))
    return {
        "reached": f"{math.floor(1e4 * min([*found.plain, *found.joint])) / 100:.2f}",
        "generic": f"{100 * min(found.generic):.0f} to {100 * max(found.generic):.0f}",
        "by_length": f"{math.floor(1e4 * min(found.by_length.values())) / 100:.2f}",
        "two_root": f"{root:.3f}",
        "two_line": f"{line:.3f}",
    }


# --- whole networks ------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two prompts before one network: W₁ of what is seen, half the largest change of a difference of logits, Λ_W."""

    network: str
    kind: str
    distance: float
    change: float
    constant: float


@dataclass
class Networks:
    """Pairs of prompts, and the steepest slope found over Λ_W for each network, by its kind."""

    pairs: list[Pair]
    shares: dict[str, list[float]]


def compare(model: Transformer, first, second, query, own: bool) -> tuple[float, float]:
    """(W₁ of the measures that are seen, half the largest difference of two logits) for prompts [m, d], [m', d]."""
    seen = [torch.cat([z, query]) if own else z for z in (first, second)]
    logits = [model(z[None], query[None], own_token=own)[0, 0] for z in (first, second)]
    change = logits[0] - logits[1]
    return measure.wasserstein(*(z.numpy() for z in seen)), float(change.max() - change.min()) / 2


def adversarial(model: Transformer, own: bool, *, steps: int, generator: torch.Generator, m: int = 12):
    """(slope, pairs): the steepest slope of one token that ascent finds, and that prompt beside itself, doubled.

    In the doubled prompt one of the 2m tokens moves inwards; where queries see themselves the doubled prompt takes the
    place of the prompt, as doubling changes the query's share.
    """
    slope, prompt, query = measure.steepest_network_measure(
        model, m, 1.0, 1.0, own_token=own, steps=steps, generator=generator
    )
    prompt, query = prompt.detach(), query.detach()
    doubled, pairs = prompt.repeat(2, 1), []
    for j, scale in product(range(m), (0.999, 0.9, 0.5)):
        moved = doubled.clone()
        moved[j] *= scale
        pairs.append(compare(model, doubled if own else prompt, moved, query, own))
    return slope, pairs


def networks(
    record: claims.Recorder, generator: torch.Generator, rng: np.random.Generator, *, each: int, pairs: int, ascent: int
) -> Networks:  # fmt: skip
    """Random and adversarial pairs of prompts before the two readers and `each` random networks of every kind."""
    several = [("reader", reader(B), False) for B in (0.25, 1.0)]
    several += [
        (depth, random_network(generator, **architecture), True)
        for depth, kinds in ARCHITECTURES.items() for architecture in kinds for _ in range(each)
    ]  # fmt: skip
    found = Networks([], {})

    def some(d):
        return in_ball(generator, int(rng.integers(1, 20)), d)

    for name, model, own in several:
        _, constant = constants(model)
        d = model.config.d
        random = [compare(model, some(d), some(d), in_ball(generator, 1, d), own) for _ in range(pairs)]
        slope, steep = adversarial(model, own, steps=ascent, generator=generator)
        for kind, made in (("random", random), ("adversarial", steep)):
            found.pairs += [Pair(name, kind, w, change, constant) for w, change in made if w > 1e-9]
        found.shares.setdefault(name, []).append(slope / constant)
    judge_networks(record, found, [name for name, *_ in several])
    return found


def judge_networks(record: claims.Recorder, found: Networks, names: list[str]) -> None:
    """Theorem 7, part 1."""
    how = {"bound": 1.0, "possible": np.inf, "searched": True, "parameters": {"networks": names}}
    record.theorem(
        "pairs", theorem="Theorem 7, part 1", tolerance=1e-7, **how,
        statement="Logits of two prompts, of equal or different lengths, differ by at most"
        " $\\Lambda_W W_1(\\Omega, \\Omega')$ (ratio), random and adversarial pairs",
        measured=[pair.change / pair.distance / pair.constant for pair in found.pairs],
    )  # fmt: skip
    record.theorem(
        "network-slopes", theorem="Theorem 7, part 1", tolerance=1e-9, **how,
        statement="Steepest slopes in the measure that ascent finds are at most $\\Lambda_W$ (ratio)",
        measured=[share for shares in found.shares.values() for share in shares],
    )  # fmt: skip


def network_numbers(found: Networks) -> dict[str, str]:
    """How many pairs, and the share of Λ_W that was found, for each kind of network."""
    numbers = {"pair_count": f"{len(found.pairs):,}"}
    for name, shares in found.shares.items():
        ends = list(dict.fromkeys(f"{100 * share:.2g}" for share in (min(shares), max(shares))))
        numbers[f"share_{name.replace(' ', '')}"] = verdicts.readable(" to ".join(ends)) + " %"
    return numbers
