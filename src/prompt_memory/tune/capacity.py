"""How much a prompt of a random network memorises: the longest labelings found by search, and the exact count.

One sample is a network, its queries and labels, all drawn anew, so that samples are independent and intervals speak
of the architecture and not of one set of weights.  All samples and restarts of a setting are one batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from prompt_memory import measure
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tasks import grid_prompts
from prompt_memory.tune.descent import adam_direction, aimed_loss

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
    curve: Int[Tensor, "S K E"]  # the length after each of E stages; the last is `lengths`
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


def joined(parts: Sequence[Ensemble]) -> Ensemble:
    """Several ensembles of one architecture as one, in their order; logit scales may differ (they go into the weights).

    Queries are cut to the fewest that a part has.  ValueError if anything but `inverse_temperature` differs.
    """
    first = parts[0].model.config
    weights = []
    for part in parts:
        config = part.model.config
        if replace(config, inverse_temperature=first.inverse_temperature) != first:
            raise ValueError(f"ensembles of different architectures cannot be joined: {first} and {config}")
        factor = config.inverse_temperature / first.inverse_temperature
        weights.append({name: w * factor if name.endswith("query") else w for name, w in part.weights.items()})
    n = min(part.queries.shape[1] for part in parts)
    stacked = {name: torch.cat([w[name] for w in weights]) for name in weights[0]}
    return Ensemble(parts[0].model, stacked, torch.cat([part.queries[:, :n] for part in parts]))


def longest_labels(
    outputs: Outputs,
    labels: Int[Tensor, "S N"],
    shape: tuple[int, int],
    *,
    restarts: int,
    steps: int | Sequence[int],
    generator: torch.Generator,
    learning_rate: float | Float[Tensor, " S"] = 0.3,
    radius: float | Float[Tensor, " S"] = 3.0,
    bits: int | None = None,
    margin: float = 1e-3,
) -> Memorised:
    """For each sample the longest beginning of its labels that a prompt of `shape` (m, d) is found to memorise.

    A prompt that memorises n labels memorises the first n − 1, so each sample has one largest length, and the fraction
    of samples with length >= n is the fraction of labelings of n queries that are memorised.  A run starts from a
    normal prompt and aims one label beyond what it has; when it succeeds (every label wins by more than `margin`) it
    goes on from where it is, Adam's moments included, with a fresh budget of `steps` steps whose size falls along a
    half cosine from `learning_rate` (one for all samples, or one a sample, as is `radius`).
    With several `steps` a run has as many stages: when the budget of one is spent it starts anew from another normal
    prompt with that of the next, aiming one label beyond the longest so far.  The length after every stage is kept: a
    curve against effort in which everything but the effort is the same.
    Coordinates stay in [−radius, radius], and with `bits` take 2^bits evenly spaced values there (straight-through
    rounding).  The loss of a label is min(c, 3)·c, c its cross-entropy with the factor held fixed, as in `tune.cram`.
    `outputs(row, prompts, n)` are the logits of the first n queries of the samples `row`.

    ValueError for empty labels, shapes and settings out of range; RuntimeError if a loss is not finite.
    """
    budgets, reach, rate = _settings(labels, shape, restarts, steps, radius, learning_rate, bits)
    starts = torch.randn(len(budgets), len(labels) * restarts, *shape, generator=generator)
    sample = torch.arange(len(labels)).repeat_interleave(restarts)
    runs = _Runs(labels, sample, budgets, starts, reach[sample, None, None], rate[sample, None, None], bits)
    while len(runs.active):
        runs.step(outputs, margin)
    shaped = (part.unflatten(0, (len(labels), restarts)) for part in (runs.best, runs.lengths, runs.curve))
    return Memorised(*shaped, runs.total)


def _settings(labels, shape, restarts, steps, radius, learning_rate, bits):
    """The budgets, and radius and learning rate of each sample; ValueError as in `longest_labels`."""
    budgets = [steps] if isinstance(steps, int) else list(steps)
    if labels.ndim != 2 or not labels.numel():
        raise ValueError(f"labels must have the shape [S, N] with S, N >= 1, not {list(labels.shape)}")
    if not budgets or min(*shape, restarts, *budgets) < 1:
        raise ValueError(f"m, d, restarts and steps must be at least 1, not {[*shape, restarts, *budgets]}")
    reach, rate = (torch.as_tensor(v, dtype=torch.float32).expand(len(labels)) for v in (radius, learning_rate))
    if not (torch.isfinite(reach).all() and (reach > 0).all()) or (bits is not None and bits < 1):
        raise ValueError(f"the radius must be positive and bits at least 1, not {radius} and {bits}")
    if not (torch.isfinite(rate).all() and (rate > 0).all()):
        raise ValueError(f"the learning rate must be a positive number, not {learning_rate}")
    return budgets, reach, rate


class _Runs:
    """All runs of `longest_labels` as one batch of r rows; `active` are those that have not finished."""

    def __init__(self, labels, sample, budgets, starts, reach, rate, bits):
        self.labels, self.sample, self.budget = labels, sample, torch.tensor(budgets)
        self.reach, self.rate, self.bits = reach, rate, bits  # reach and rate: [r, 1, 1]
        self.starts = starts.clamp(-reach, reach)  # [E, r, m, d], one a stage
        self.free = self.starts[0].clone()
        self.mean, self.square = torch.zeros_like(self.free), torch.zeros_like(self.free)  # Adam's moments
        self.best = self.free.clone() if bits is None else _rounded(self.free, reach, bits)
        self.goal, self.lengths = torch.ones_like(sample), torch.zeros_like(sample)
        self.age, self.used = torch.zeros_like(sample), torch.zeros_like(sample)  # Adam's steps; those without progress
        self.stage, self.curve = torch.zeros_like(sample), torch.zeros(len(sample), len(budgets), dtype=torch.long)
        self.active, self.total = torch.arange(len(sample)), 0

    def step(self, outputs: Outputs, margin: float) -> None:
        """Score the active runs, move each by one step, and send those without budget to their next stage."""
        active, N = self.active, self.labels.shape[1]
        prompts, right, slope = self._scored(outputs, margin)
        longer = right > self.lengths[active]
        self.best[active[longer]] = prompts[longer]
        self.lengths[active[longer]] = right[longer]
        reached = right >= self.goal[active]
        self.goal[active] = torch.where(reached, (right + 1).clamp(max=N), self.goal[active])
        self.used[active] = torch.where(reached, 0, self.used[active] + 1)
        self._move(slope)
        self.total += len(active)
        spent = active[(self.used[active] > self.budget[self.stage[active]]) & (self.lengths[active] < N)]
        self.curve[spent, self.stage[spent]] = self.lengths[spent]
        self.stage[spent] += 1
        done = active[self.lengths[active] == N]  # stages that a run with all N labels does not need
        self.curve[done] = torch.where(torch.arange(len(self.budget)) >= self.stage[done, None], N, self.curve[done])
        self.active = active[(self.stage[active] < len(self.budget)) & (self.lengths[active] < N)]
        anew = spent[self.stage[spent] < len(self.budget)]
        self.free[anew] = self.starts[self.stage[anew], anew]
        self.mean[anew], self.square[anew], self.age[anew], self.used[anew] = 0.0, 0.0, 0, 0

    def _scored(self, outputs, margin):
        """(prompts, labels right at their beginning, gradient of the loss) of the active runs."""
        active, reach = self.active, self.reach[self.active]
        n = int(self.goal[active].max())
        x = self.free[active].requires_grad_()
        prompts = x if self.bits is None else x + (_rounded(x.detach(), reach, self.bits) - x).detach()
        logits = outputs(self.sample[active], prompts, n)
        loss, won = aimed_loss(logits, self.labels[self.sample[active], :n], self.goal[active], margin)
        if not torch.isfinite(loss).all():
            run = int(active[~torch.isfinite(loss)][0])
            sample = int(self.sample[run])
            restart = run - int((self.sample < sample).sum())
            raise RuntimeError(f"the loss of restart {restart} of sample {sample} is not finite")
        (slope,) = torch.autograd.grad(loss.sum(), x)
        return prompts.detach(), won.long().cumprod(1).sum(1), slope

    def _move(self, slope) -> None:
        """One step of Adam, whose size falls with the budget that is used, into the cube of the radius."""
        active, reach = self.active, self.reach[self.active]
        self.age[active] += 1
        direction, self.mean[active], self.square[active] = adam_direction(
            slope, self.mean[active], self.square[active], self.age[active, None, None].to(slope.dtype), (0.9, 0.99)
        )
        phase = self.used[active] / (self.budget[self.stage[active]] + 1)
        move = self.rate[active] * (0.5 + 0.5 * torch.cos(math.pi * phase))[:, None, None] * direction
        self.free[active] = (self.free[active] - move).clamp(-reach, reach)


def pilot(
    outputs: Outputs,
    labels: Int[Tensor, "S N"],
    shape: tuple[int, int],
    rates: Sequence[float],
    *,
    steps: int | Sequence[int],
    generator: torch.Generator,
    radius: float = 3.0,
    bits: int | None = None,
) -> list[float]:
    """Mean length that one restart of `longest_labels` finds with each of several learning rates, same samples."""
    S, k = len(labels), len(rates)
    found = longest_labels(
        lambda row, prompts, n: outputs(row % S, prompts, n), labels.repeat(k, 1), shape, restarts=1, steps=steps,
        generator=generator, learning_rate=torch.tensor(rates).repeat_interleave(S), radius=radius, bits=bits,
    )  # fmt: skip
    return found.lengths[:, 0].double().unflatten(0, (k, S)).mean(1).tolist()


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


def longest_of(answers: Int[Tensor, "P N"], labels: Int[Tensor, "S N"]) -> Int[Tensor, " S"]:
    """For each labeling the longest beginning that some prompt memorises, from the answers of P prompts, [S]."""
    alive = torch.ones(len(labels), len(answers), dtype=torch.bool)
    lengths = torch.zeros(len(labels), dtype=torch.long)
    for n in range(labels.shape[1]):
        alive &= labels[:, n, None] == answers[:, n]
        lengths += alive.any(1)
    return lengths


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
    x: Sequence[float],
    samples: Sequence[np.ndarray],
    *,
    before: Sequence[np.ndarray] | None = None,
    level: float = 0.05,
) -> tuple[float, float, float]:
    """Exponent e of mean(samples_i) ∝ x_i^e by least squares on logarithms, with an interval: (e, lower, upper).

    One number a network in each set of samples, sets independent of each other.  With weights w_i, e = Σ w_i ln mean_i;
    the interval is e ± t·√(Σ w_i² v_i), v_i the variance of the mean over its square, t Student's with Welch's degrees
    of freedom (delta method).  A single number is taken as exact.  With `before`, other numbers of the same networks,
    what is returned is e(samples) − e(before), the interval from the differences of each network.
    ValueError for fewer than two different x, or x and means that are not positive.
    """
    logs = np.log(_positive(x))
    if len(samples) != len(logs) or np.ptp(logs) == 0:
        raise ValueError("an exponent needs one set of samples for each x, and two different x")
    slope = (logs - logs.mean()) / np.square(logs - logs.mean()).sum()
    means, parts = _relative(samples)
    if before is not None:
        earlier, others = _relative(before)
        means, parts = means - earlier, _differences(parts, others)
    value, half = float(slope @ means), _half_width(slope, parts, level)
    return value, value - half, value + half


def ratio(
    above: np.ndarray, below: np.ndarray, *, paired: bool = False, level: float = 0.05
) -> tuple[float, float, float]:
    """mean(above) / mean(below) with an interval, as in `exponent`: of two independent sets, or `paired` by network."""
    (up, down), parts = _relative([above, below])
    weights = np.array([1.0, -1.0])
    if paired:
        weights, parts = weights[:1], _differences(parts[:1], parts[1:])
    half = _half_width(weights, parts, level)
    return math.exp(up - down), math.exp(up - down - half), math.exp(up - down + half)


def means(samples: Sequence[np.ndarray], level: float = 0.05) -> Float[np.ndarray, "k 3"]:
    """(mean, lower, upper) of k independent sets; all k intervals hold at once with probability about 1 − level.

    Student's on logarithms, each at level / k.  ValueError for sets of one number or means that are not positive.
    """
    if not samples or min(map(len, samples)) < 2:
        raise ValueError("intervals of means need sets of at least two numbers")
    logs, parts = _relative(samples)
    half = np.array([_half_width(np.ones(1), [part], level / len(parts)) for part in parts])
    return np.exp(np.column_stack([logs, logs - half, logs + half]))


def spread(samples: Sequence[np.ndarray], level: float = 0.05) -> tuple[float, float, float, float]:
    """Largest over smallest mean of several independent sets, with an interval: (spread, lower, upper, noise).

    One statement about all sets at once: when the intervals of `means` hold, the true spread lies between the largest
    lower end over the smallest upper end (at least 1) and the largest upper end over the smallest lower end.  `noise`
    is the most by which an end can lie off the measured spread, as a factor.
    ValueError for fewer than two sets, and as in `means`.
    """
    if len(samples) < 2:
        raise ValueError("a spread needs at least two sets")
    value, low, high = means(samples, level).T
    ends = max(1.0, low.max() / high.min()), high.max() / low.min()
    return (*map(float, (value.max() / value.min(), *ends, np.square(high / value).max())),)


def _relative(samples: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logarithms of the means of several sets, and each set over its mean."""
    sets = [np.asarray(s, dtype=float) for s in samples]
    means = _positive([s.mean() for s in sets])
    return np.log(means), [s / mean for s, mean in zip(sets, means, strict=True)]


def _differences(parts: list[np.ndarray], others: list[np.ndarray]) -> list[np.ndarray]:
    if [len(part) for part in parts] != [len(other) for other in others]:
        raise ValueError("paired samples need one number of each kind for every network")
    return [part - other for part, other in zip(parts, others, strict=True)]


def _half_width(weights: np.ndarray, parts: list[np.ndarray], level: float) -> float:
    """t·√(Σ w_i² var(part_i)/n_i), t Student's quantile with Welch's degrees of freedom; 0 without any variance."""
    kept = [(w, part) for w, part in zip(weights, parts, strict=True) if len(part) > 1]
    terms = np.array([w**2 * part.var(ddof=1) / len(part) for w, part in kept])
    if not terms.sum() > 0:
        return 0.0
    freedom = terms.sum() ** 2 / sum(term**2 / (len(part) - 1) for term, (_, part) in zip(terms, kept, strict=True))
    return float(stdtrit(freedom, 1 - level / 2) * math.sqrt(terms.sum()))


def _positive(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"a power law is fitted to positive numbers, not {array.tolist()}")
    return array


def _rounded(x: Tensor, radius: float | Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits evenly spaced values from −radius to radius."""
    top = 2**bits - 1
    return ((x + radius) * top / (2 * radius)).round().clamp(0, top) * (2 * radius / top) - radius
