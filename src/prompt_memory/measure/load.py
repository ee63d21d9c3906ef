"""How many facts a context holds in the memory of `network.associative`, and how that grows with its length."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prompt_memory import intervals
from prompt_memory.checks import integers
from prompt_memory.measure.behaviour import retained_bits
from prompt_memory.network.associative import checked_logit_range
from prompt_memory.tasks import signs


def recalled(read: Float[np.ndarray, "T M"], labels: Float[np.ndarray, "T M"], eps: float) -> Float[np.ndarray, " T"]:
    """The fraction of facts with label·v̂ > eps, for each labeling."""
    return (read * labels > eps).mean(1)


def poisson_recall(kappa: float, *, eps: float, samples: int, rng: np.random.Generator, reach: float = 4.0) -> float:
    """Recall, with margin 2ε, of a fact among infinitely many random ones on a line: the limit of N on a circle.

    N independent uniform keys on the circle at B = κN² look, magnified N times around a key, like a Poisson process of
    density 1 with weights e^{−2π²κx²}; labels are fair signs.  Points beyond `reach` are left out.  Monte Carlo.
    ValueError unless kappa > 0 and samples >= 1.
    """
    if not kappa > 0:
        raise ValueError(f"kappa must be > 0, not {kappa!r}")
    (samples,) = integers(samples=samples)
    counts = rng.poisson(2 * reach, size=samples)
    places = rng.uniform(-reach, reach, size=(samples, counts.max()))
    weights = np.exp(-2 * math.pi**2 * kappa * places**2) * (np.arange(counts.max()) < counts[:, None])
    agree = 1 + (weights * signs(weights.shape, rng)).sum(1)
    return float((agree > eps * (1 + weights.sum(1))).mean())


def random_recall(
    n: int, d_k: int, logit_range: float, *, eps: float, trials: int, rng: np.random.Generator, chunk: int = 2**20
) -> int:
    """In how many of `trials` independent contexts of n facts with random unit keys a fact is recalled with margin 2ε.

    Keys are uniform on the sphere, labels fair signs, each fact has one token; only cosines with the key asked for
    matter, and (1 − cos)/2 has the law Beta((d_k − 1)/2, (d_k − 1)/2).  Divided by `trials` it estimates the expected
    recall, with exact binomial errors.  ValueError for counts below 1, d_k < 2 or B < 0.
    """
    n, trials, _ = integers(n=n, trials=trials, d_k=d_k)
    if d_k < 2:
        raise ValueError("uniform keys need d_k >= 2")
    B, found = checked_logit_range(logit_range), 0
    for start in range(0, trials, rows := max(1, chunk // n)):
        shape = (min(rows, trials - start), n - 1)
        weights = np.exp(-2 * B * rng.beta((d_k - 1) / 2, (d_k - 1) / 2, size=shape))
        found += int((1 + (weights * signs(shape, rng)).sum(1) > eps * (1 + weights.sum(1))).sum())
    return found


# --- the best number of facts --------------------------------------------------------------------------------------


class Load(NamedTuple):
    """The best number of facts found for a context, and the recall [T] of labelings not used to find it."""

    facts: int
    recall: Float[np.ndarray, " T"]

    @property
    def bits(self) -> float:
        return retained_bits(self.recall.mean(), self.facts)


def best_load(
    tokens: int,
    logit_range: Callable[[int], float],
    read: Callable[[Float[np.ndarray, "T M"], float], Float[np.ndarray, "T M"]],
    *,
    eps: float,
    trials: int,
    rng: np.random.Generator,
    most: int | None = None,
) -> Load:
    """The number of facts M <= `tokens` at which a context of at most that many tokens retains most bits.

    M facts, each ⌊tokens/M⌋ times, make a context of n = M⌊tokens/M⌋ tokens, read at B = `logit_range(n)` by
    `read(labels, B)`.  Candidates: a geometric grid, then integers around its best; the search stops after an octave
    without half the best so far.  The recall returned is measured on fresh labelings: choosing the best of many noisy
    numbers would flatter it.  `most` limits M.  ValueError for counts below 1.
    """
    tokens, trials = integers(tokens=tokens, trials=trials)
    most = tokens if most is None else min(tokens, integers(most=most)[0])

    def trial(facts: int) -> Float[np.ndarray, " T"]:
        labels = signs((max(2, min(trials, 2**20 // facts)), facts), rng)
        return recalled(read(labels, logit_range(facts * (tokens // facts))), labels, eps)

    found: dict[int, float] = {}
    for j in range(4 * math.ceil(math.log2(most)) + 1):
        facts = min(most, math.floor(2 ** (j / 4)))
        if facts not in found:
            found[facts] = retained_bits(trial(facts).mean(), facts)
        if len(found) > 8 and max(list(found.values())[-4:]) < max(found.values()) / 2:
            break
    grid = sorted(found)
    for between in (True, False):  # first between the neighbours on the grid, then the integers next to the best
        best = max(found, key=found.get)
        place = grid.index(best) if between else 0
        low = grid[max(0, place - 1)] if between else max(1, best - 8)
        high = grid[min(len(grid) - 1, place + 1)] if between else min(most, best + 8)
        for facts in sorted({round(x) for x in np.linspace(low, high, 17)} - set(found)):
            found[facts] = retained_bits(trial(facts).mean(), facts)
    best = max(found, key=found.get)
    return Load(best, trial(best))


def recall_interval(recall: Float[np.ndarray, " T"], facts: int, rng: np.random.Generator) -> tuple[float, float]:
    """A 95 % bootstrap interval of the retained bits, over labelings (approximate, for figures)."""
    return intervals.bootstrap(recall, lambda rows: retained_bits(rows.mean(), facts), rng, resamples=400)


# --- telling polylog(N) from a power -------------------------------------------------------------------------------


class Growth(NamedTuple):
    """How bits grow with N: least squares, and the errors of two laws at the largest N, which they were not shown.

    `power` is the slope of ln bits against ln N over the last four octaves, `polylog` that against ln ln N over all N.
    `held_power` and `held_polylog` are |ln(predicted/measured)| at the held-out sizes, averaged.
    """

    power: float
    polylog: float
    held_power: float
    held_polylog: float

    @property
    def better(self) -> str:
        return "power" if self.held_power < self.held_polylog else "polylog"


def growth(tokens: Float[np.ndarray, " N"], bits: Float[np.ndarray, " N"], *, held_out: float = 0.25) -> Growth:
    """Fit bits ∝ N^p and bits ∝ (ln N)^q, each with two numbers, without the last `held_out` of the octaves.

    ValueError unless there are at least 6 sizes >= 2, ascending, with bits > 0, and some are left on both sides.
    """
    sizes, bits = np.asarray(tokens, float), np.asarray(bits, float)
    if sizes.shape != bits.shape or sizes.ndim != 1 or len(sizes) < 6:
        raise ValueError("give at least six sizes, and the bits at each")
    if not ((sizes >= 2).all() and (np.diff(sizes) > 0).all() and (bits > 0).all()):
        raise ValueError("sizes must be >= 2 and ascending, bits > 0")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a fraction between 0 and 1, not {held_out}")
    y, laws = np.log(bits), (np.log(sizes), np.log(np.log(sizes)))
    hidden = np.log(sizes) > np.log(sizes[-1]) - held_out * np.log(sizes[-1] / sizes[0])
    if (~hidden).sum() < 3:
        raise ValueError("too few sizes are left to fit")
    errors = []
    for x in laws:
        slope, height = np.polyfit(x[~hidden], y[~hidden], 1)
        errors.append(float(np.abs(height + slope * x[hidden] - y[hidden]).mean()))
    top = sizes >= sizes[-1] / 16 * (1 - 1e-9)
    return Growth(
        float(np.polyfit(laws[0][top], y[top], 1)[0]), float(np.polyfit(laws[1], y, 1)[0]), errors[0], errors[1]
    )
