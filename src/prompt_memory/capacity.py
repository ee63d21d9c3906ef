"""How much a prompt of a random network memorises: the longest labelings found by search, and the exact count.

One sample is a network, its queries and labels, all drawn anew, so that samples are independent and intervals speak
of the architecture and not of one set of weights.  All samples and restarts of a setting are one batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from prompt_memory import measure
from prompt_memory.tasks import grid_prompts
from prompt_memory.transformer import Transformer, TransformerConfig
from prompt_memory.tune import adam_direction, aimed_loss

Outputs = Callable[[Int[Tensor, " r"], Float[Tensor, "r m d"], int], Float[Tensor, "r n q"]]


class Ensemble(NamedTuple):
    """S networks of one architecture with stacked weights, and N queries for each."""

    model: Transformer  # its own weights are those of the first network
    weights: dict[str, Float[Tensor, "S ..."]]
    queries: Float[Tensor, "S N d"]

    def outputs(self, row: Int[Tensor, " r"], prompts: Float[Tensor, "r m d"], n: int) -> Float[Tensor, "r n q"]:
        """Logits of the first n queries, prompt i in network `row[i]`."""

        def one(weights, prompt, queries):
            return functional_call(self.model, weights, (prompt[None], queries))[0]

        return vmap(one)({name: w[row] for name, w in self.weights.items()}, prompts, self.queries[row, :n])

    def network(self, i: int) -> Transformer:
        """Network number i on its own."""
        model = Transformer(self.model.config)
        model.load_state_dict({name: w[i] for name, w in self.weights.items()})
        return model


class Memorised(NamedTuple):
    """What `longest_labels` found: exactly these prompts give the first `lengths` labels of their sample."""

    prompts: Float[Tensor, "S K m d"]
    lengths: Int[Tensor, "S K"]  # K restarts
    steps: int  # steps of all runs together


def ensemble(
    config: TransformerConfig, samples: int, n: int, *, generator: torch.Generator, gain: float = 4.0
) -> Ensemble:
    """`samples` networks with freshly drawn weights and n standard normal queries of one token for each.

    What attention writes is multiplied by `gain`, so that the prompt, and not the query alone, decides the answer.
    ValueError for fewer than one sample or query, or a gain that is not positive.
    """
    if samples < 1 or n < 1:
        raise ValueError(f"an ensemble needs at least one network and one query, not {samples} and {n}")
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"the gain must be a positive number, not {gain}")
    models = [Transformer(config, generator=generator) for _ in range(samples)]
    for model in models:
        for block in model.blocks:
            block.output.mul_(gain)
    weights = {name: w.detach() for name, w in stack_module_state(models)[0].items()}
    return Ensemble(models[0], weights, torch.randn(samples, n, config.d, generator=generator))


def longest_labels(
    outputs: Outputs,
    labels: Int[Tensor, "S N"],
    shape: tuple[int, int],
    *,
    restarts: int,
    steps: int,
    generator: torch.Generator,
    learning_rate: float = 0.3,
    radius: float = 3.0,
    bits: int | None = None,
    margin: float = 1e-3,
) -> Memorised:
    """For each sample the longest beginning of its labels that a prompt of `shape` (m, d) is found to memorise.

    A prompt that memorises n labels memorises the first n − 1, so each sample has one largest length, and the fraction
    of samples with length >= n is the fraction of labelings of n queries that are memorised.  A run starts from a
    normal prompt and aims one label beyond what it has; when it succeeds (every label wins by more than `margin`) it
    goes on from where it is, Adam's moments included, with a fresh budget of `steps` steps whose size falls along a
    half cosine.
    Coordinates stay in [−radius, radius], and with `bits` take 2^bits evenly spaced values there (straight-through
    rounding).  The loss of a label is min(c, 3)·c, c its cross-entropy with the factor held fixed, as in `tune.cram`.
    `outputs(row, prompts, n)` are the logits of the first n queries of the samples `row`.

    ValueError for empty labels, shapes and settings out of range; RuntimeError if a loss is not finite.
    """
    if labels.ndim != 2 or not labels.numel():
        raise ValueError(f"labels must have the shape [S, N] with S, N >= 1, not {list(labels.shape)}")
    if min(*shape, restarts, steps) < 1:
        raise ValueError(f"m, d, restarts and steps must be at least 1, not {[*shape, restarts, steps]}")
    if not (math.isfinite(radius) and radius > 0) or (bits is not None and bits < 1):
        raise ValueError(f"the radius must be positive and bits at least 1, not {radius} and {bits}")
    S, N = labels.shape
    sample = torch.arange(S).repeat_interleave(restarts)
    free = torch.randn(len(sample), *shape, generator=generator).clamp(-radius, radius)
    mean, square = torch.zeros_like(free), torch.zeros_like(free)
    best = free.clone() if bits is None else _rounded(free, radius, bits)
    goal, lengths, used = torch.ones_like(sample), torch.zeros_like(sample), torch.zeros_like(sample)
    age = torch.zeros_like(sample)  # Adam's steps; `used` counts those without progress
    active, total = torch.arange(len(sample)), 0
    while len(active):
        n = int(goal[active].max())
        x = free[active].requires_grad_()
        prompts = x if bits is None else x + (_rounded(x.detach(), radius, bits) - x).detach()
        wanted = labels[sample[active], :n]
        logits = outputs(sample[active], prompts, n)
        loss, won = aimed_loss(logits, wanted, goal[active], margin)
        right = won.long().cumprod(1).sum(1)  # labels at the beginning
        if not torch.isfinite(loss).all():
            at = int(active[~torch.isfinite(loss)][0])
            raise RuntimeError(f"the loss of restart {at % restarts} of sample {at // restarts} is not finite")
        (slope,) = torch.autograd.grad(loss.sum(), x)
        longer = right > lengths[active]
        best[active[longer]] = prompts.detach()[longer]
        lengths[active[longer]] = right[longer]
        reached = right >= goal[active]
        goal[active] = torch.where(reached, (right + 1).clamp(max=N), goal[active])
        used[active] = torch.where(reached, 0, used[active] + 1)
        phase = used[active, None, None] / (steps + 1)
        age[active] += 1
        direction, mean[active], square[active] = adam_direction(
            slope, mean[active], square[active], age[active, None, None].to(free.dtype), (0.9, 0.99)
        )
        move = learning_rate * (0.5 + 0.5 * torch.cos(math.pi * phase)) * direction
        free[active] = (x.detach() - move).clamp(-radius, radius)
        total += len(active)
        active = active[(lengths[active] < N) & (used[active] <= steps)]
    return Memorised(best.unflatten(0, (S, restarts)), lengths.unflatten(0, (S, restarts)), total)


def behaviour_counts(
    model: Transformer, m: int, values: Float[Tensor, " v"], queries: Float[Tensor, "N d"]
) -> Int[np.ndarray, " N"]:
    """The number of different behaviours on the first n queries, n = 1 … N, of *all* prompts over `values`, [N].

    Of the q^n labelings of n queries exactly this many are memorised (without a margin).  Runs v^{dm} prompts.
    ValueError beyond 2^20 prompts.
    """
    d = model.config.d
    if d * m * math.log2(len(values)) > 20:
        raise ValueError(f"{len(values)}^{d * m} prompts are too many to run")
    every = measure.behaviours(model, lambda i: grid_prompts(i, d, m, values), len(values) ** (d * m), queries)
    rows = measure.distinct(every)  # sorted: equal beginnings stand together
    first = (rows[1:] != rows[:-1]).argmax(1)  # where a row first differs from the one above it
    return 1 + np.bincount(first, minlength=len(queries)).cumsum()


def expected_lengths(counts: Int[np.ndarray, "S N"], q: int) -> Float[np.ndarray, " S"]:
    """The mean, over all labelings, of the longest beginning that some prompt memorises: Σ_n counts_n / q^n, [S].

    ValueError if N queries are too few: if more than a thousandth of all labelings of length N are memorised.
    """
    counts = np.atleast_2d(counts)
    fractions = counts / float(q) ** np.arange(1, counts.shape[1] + 1)
    if (fractions[:, -1] > 1e-3).any():
        raise ValueError(
            f"{counts.shape[1]} queries are too few: {fractions[:, -1].max():.2g} of their labelings remain"
        )
    return fractions.sum(1)


def exponent(
    x: Sequence[float], samples: Sequence[np.ndarray], rng: np.random.Generator, resamples: int = 2000
) -> tuple[float, float, float]:
    """Exponent e of mean(samples_i) ∝ x_i^e by least squares on logarithms, with a 95 % bootstrap interval.

    The values of each point are resampled separately.  Returns (exponent, lower, upper).
    ValueError for fewer than two different x, or x and means that are not positive.
    """
    logs = np.log(_positive(x))
    if len(samples) != len(logs) or np.ptp(logs) == 0:
        raise ValueError("an exponent needs one set of samples for each x, and two different x")
    samples = [np.asarray(s, dtype=float) for s in samples]
    means = np.log(_positive([s.mean() for s in samples]))
    draws = np.array([s[rng.integers(len(s), size=(resamples, len(s)))].mean(1) for s in samples])
    slope = (logs - logs.mean()) / np.square(logs - logs.mean()).sum()
    low, high = np.quantile(slope @ np.log(np.maximum(draws, 1e-9)), [0.025, 0.975])
    return float(slope @ means), float(low), float(high)


def ratio(
    above: np.ndarray, below: np.ndarray, rng: np.random.Generator, resamples: int = 2000
) -> tuple[float, float, float]:
    """mean(above) / mean(below) of two independent sets of samples, with a 95 % bootstrap interval."""
    parts = [np.asarray(part, dtype=float) for part in (above, below)]
    up, down = (part[rng.integers(len(part), size=(resamples, len(part)))].mean(1) for part in parts)
    low, high = np.quantile(up / np.maximum(down, 1e-9), [0.025, 0.975])
    return float(parts[0].mean() / parts[1].mean()), float(low), float(high)


def _positive(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"a power law is fitted to positive numbers, not {array.tolist()}")
    return array


def _rounded(x: Tensor, radius: float, bits: int) -> Tensor:
    """The nearest of 2^bits evenly spaced values from −radius to radius."""
    top = 2**bits - 1
    return ((x + radius) * top / (2 * radius)).round().clamp(0, top) * (2 * radius / top) - radius
