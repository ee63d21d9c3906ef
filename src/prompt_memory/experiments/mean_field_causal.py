"""Chapter 7, causal networks: what the order of tokens inside blocks does to the logits."""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from prompt_memory import bounds, measure
from prompt_memory.book import claims
from prompt_memory.book.figures import scientific
from prompt_memory.experiments.mean_field_slopes import in_ball
from prompt_memory.network.averaging import averaging_network
from prompt_memory.network.transformer import Transformer, TransformerConfig

WIDTH = 4
DEPTHS = (1, 2, 3)
DEEP = (2, 3)  # one layer does not see the order
FORECASTS = ("causal-exponent", "causal-average", "random-exponent")


@dataclass
class Causal:
    """Changes of logits by reordering inside K blocks, and what they are compared with."""

    m: int
    blocks: tuple[int, ...]
    averages: dict[int, list[float]]  # change of the j-th repeated average, for each K
    errors: dict[int, Float[np.ndarray, "N K 4"]]  # by depth: largest by order, rms by shuffles, block network, E_K
    by_hand: Float[np.ndarray, "C 4"] = None  # half the change by order, block network, E_K, how far logits can move

    def fit(self, change: Float[np.ndarray, " K"]) -> float:
        """The exponent of K in a power law fitted to these changes."""
        return float(np.polyfit(np.log(self.blocks), np.log(change), 1)[0])

    def sums(self, depth: int) -> Float[np.ndarray, " K"]:
        """Σ_{i<L} (ln K)^i / i!, the logarithms in E_K."""
        return np.array([sum(math.log(K) ** i / math.factorial(i) for i in range(depth)) for K in self.blocks])

    def typical(self, depth: int) -> Float[np.ndarray, "2 K"]:
        """Change by adversarial orders and by shuffles: geometric means over networks."""
        return np.exp(np.log(self.errors[depth][..., :2]).mean(0)).T

    def fitted(self) -> dict[str, Float[np.ndarray, "2 N"]]:
        """Exponents of each network at depths 2 and 3: orders after the logarithms, orders, shuffles."""
        found = {key: [] for key in FORECASTS}
        for depth in DEEP:
            both = self.errors[depth][..., :2].transpose(2, 0, 1)  # [2, N, K]
            found["causal-exponent"].append([self.fit(row / self.sums(depth)) for row in both[0]])
            found["causal-average"].append([self.fit(row) for row in both[0]])
            found["random-exponent"].append([self.fit(row) for row in both[1]])
        return {key: np.array(rows) for key, rows in found.items()}

    def forecast(self) -> list[float]:
        """Exponents from repeated averages: the second one, and the mean of the second and the third."""
        second, third = (self.fit(self.averages[j]) for j in DEEP)
        return [second, (second + third) / 2]

    def speed(self) -> str:
        """Whether sorted blocks change logits less and less faster than the worst case does, in a sentence."""
        exponents = zip(DEEP, self.fitted()["causal-exponent"].mean(1), strict=True)
        faster = [f"depth {depth}" for depth, x in exponents if x < -1.15]
        if not faster:
            return "After the logarithms the worst case has the exponent −1."
        return f"At {' and '.join(faster)} the change falls faster than in the worst case; why, is not measured."


def causal(
    record: claims.Recorder, generator: torch.Generator, *, tokens: int, blocks: tuple[int, ...], directions: int,
    shuffles: int, networks: int,
) -> Causal:  # fmt: skip
    """Forecasts, random causal networks of depth 1 to 3, and networks set by hand whose E_K is within reach."""
    keys = torch.rand(64, tokens, 1, generator=generator).double()
    found = Causal(tokens, blocks, {j: [averages_apart(keys, K, j) for K in blocks] for j in DEEP}, {})
    predict(record, found)
    for depth in DEPTHS:
        rows = []
        for _ in range(networks):
            config = TransformerConfig(d=WIDTH, q=2, depth=depth, causal=True, inverse_temperature=0.3)
            model = Transformer(config, generator=generator).double()
            prompts, query = in_ball(generator, 2, tokens, WIDTH), in_ball(generator, 1, WIDTH)
            rows.append([
                (*reordered(model, prompts, query, K, directions, shuffles, generator), block_error(model, K))
                for K in blocks
            ])  # fmt: skip
        found.errors[depth] = np.array(rows)
    found.by_hand = set_by_hand(tokens, blocks)
    judge(record, found)
    return found


def block_error(model: Transformer, blocks: int) -> float:
    """E_K on the unit ball, for half the largest difference of two logits."""
    weights = measure.numpy_weights(model)
    return bounds.block_error(model.config, weights, blocks, radius=1.0, query_radius=1.0, differences=True)


def averages_apart(keys: Float[Tensor, "R m 1"], blocks: int, times: int) -> float:
    """Mean change of the last repeated average if the tokens of every block are sorted the other way."""
    ends = []
    for sign in (1, -1):
        values = measure.sorted_in_blocks(keys, blocks, sign * keys[..., 0])[..., 0]
        for _ in range(times):
            values = values.cumsum(1) / torch.arange(1, values.shape[1] + 1)
        ends.append(values[:, -1])
    return float((ends[0] - ends[1]).abs().mean())


def spread(first: Float[Tensor, "R q"], second: Float[Tensor, "R q"]) -> Float[Tensor, " R"]:
    """Half the largest change of a difference of two logits, for each pair of rows."""
    change = first - second
    return (change.amax(-1) - change.amin(-1)) / 2


def reordered(
    model: Transformer, prompts: Float[Tensor, "R m d"], query: Float[Tensor, "1 d"], K: int, directions: int,
    shuffles: int, generator: torch.Generator,
) -> tuple[float, float, float]:  # fmt: skip
    """What order inside K blocks does: (largest change by sorting, rms change by shuffles, distance to the blocks).

    Sorting is along random directions, upwards against downwards; the last number is the largest distance of a sorted
    prompt's logits from those of the block network.
    """
    R, m, d = prompts.shape
    along = torch.randn(directions, d, generator=generator, dtype=torch.float64)
    ordered = [torch.cat([measure.sorted_in_blocks(prompts, K, sign * prompts @ w) for sign in (1, -1)]) for w in along]
    logits = [model(both, query)[:, 0] for both in ordered]
    to_blocks = spread(logits[0], measure.blockwise(model, ordered[0], query.expand(2 * R, 1, d), K))
    shuffled = torch.cat([
        measure.sorted_in_blocks(prompts, K, torch.rand(R, m, generator=generator)) for _ in range(shuffles // R)
    ])  # fmt: skip
    by_shuffle = spread(model(shuffled, query)[:, 0], model(prompts, query)[:, 0].repeat(len(shuffled) // R, 1))
    largest = max(float(spread(*each.chunk(2)).max()) for each in logits)
    return largest, float(by_shuffle.square().mean().sqrt()), float(to_blocks.max())


def set_by_hand(m: int, blocks: tuple[int, ...]) -> Float[np.ndarray, "C 4"]:
    """Layers that add an almost plain average, prompts of ±1: the four columns of `Causal.by_hand`."""
    start, query, rows = torch.ones(1, m, 1).double(), torch.zeros(2, 1, 1).double(), []
    start[:, 1::2] = -1
    for depth, (gain, tilt), K in product(DEEP, ((1.0, 0.0), (1.0, 0.02), (0.1, 0.02)), blocks):
        model = averaging_network(depth, causal=True, gain=gain, tilt=tilt)
        both = torch.cat([measure.sorted_in_blocks(start, K, sign * start[..., 0]) for sign in (1, -1)])
        logits = model(both, query[:1])[:, 0]
        apart = float(spread(*logits[:, None]).max()) / 2
        to_blocks = float(spread(logits, measure.blockwise(model, both, query, K)).max())
        rows.append((apart, to_blocks, block_error(model, K), 2 * (1 + gain) ** depth))
    return np.array(rows)


# --- forecasts and claims ------------------------------------------------------------------------------------------


def predict(record: claims.Recorder, found: Causal) -> None:
    """Three exponents of K at depths 2 and 3, before any network is run."""
    how = {"possible": (-np.inf, np.inf), "parameters": {"m": found.m, "K": found.blocks}}
    record.predict(
        "causal-exponent", theorem="Theorem 7, part 4", predicted=[-1.0, -1.0], absolute=0.15, **how,
        statement="Adversarial orders inside $K$ blocks move logits like $K^{-1} \\sum_{i<L} (\\ln K)^i/i!$, depths 2"
        " and 3 (fitted exponent of $K$ after the sum)",
    )  # fmt: skip
    record.predict(
        "causal-average", theorem="Heuristic: layers that average", predicted=found.forecast(), absolute=0.15, **how,
        statement="Fitted exponent of $K$ for adversarial orders inside $K$ blocks, depths 2 and 3, from a model of"
        " repeated averages",
    )  # fmt: skip
    record.predict(
        "random-exponent", theorem="Heuristic: random prefixes", predicted=[-0.5, -0.5], absolute=0.2, **how,
        statement="Random shuffles inside $K$ blocks move logits like $K^{-1/2}$, depths 2 and 3 (fitted exponent of"
        " the root mean square)",
    )  # fmt: skip


def judge(record: claims.Recorder, found: Causal) -> None:
    """The exponents, with t intervals of the networks' mean for both depths at once, and part 4."""
    for key, rows in found.fitted().items():
        mean, count = rows.mean(1), rows.shape[1]
        width = stats.t.ppf(1 - 0.025 / 2, count - 1) * rows.std(1, ddof=1) / math.sqrt(count)
        record.measure(key, mean, interval=(mean - width, mean + width))
    how = {"theorem": "Theorem 7, part 4", "parameters": {"m": found.m, "K": found.blocks}}
    record.theorem(
        "one-layer-order", **how, measured=found.errors[1][..., :3], bound=0.0, possible=np.inf, tolerance=1e-12,
        statement="One causal layer, read at the query behind the prompt: no order inside blocks changes a logit",
    )  # fmt: skip
    record.theorem(
        "block-error", **how, measured=found.by_hand[:, :2], bound=found.by_hand[:, 2:3],
        possible=found.by_hand[:, 3:],
        statement="Distance to the block network, and half of what orders inside blocks change, in networks that"
        " average: at most $E_K$",
    )  # fmt: skip


def numbers(found: Causal) -> dict[str, str]:
    """How far E_K is from what was found, for random networks (at least so many times) and those set by hand (%)."""
    texts = {"block_share": f"{100 * (found.by_hand[:, :2] / found.by_hand[:, 2:3]).max():.0f}"}
    for depth in DEEP:
        errors = found.errors[depth]
        texts[f"slack{depth}"] = scientific((2 * errors[..., 3] / errors[..., 0]).min(), up=False)
    return texts
