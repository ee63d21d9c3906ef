"""One attention head as an associative memory, written by hand: what it retains when a hypothesis is dropped.

A fact is a key on the unit sphere of R^{d_k} and a label ±1.  Its token carries both; the query for fact i is its key,
the softmax logit of key j is B⟨k_i, k_j⟩, and the reading v̂_i is the attention-weighted mean of the labels.  The two
output logits are ±v̂_i: fact i is recalled with margin 2ε if label·v̂_i > ε.  A context of N tokens may hold M <= N
facts, each repeated ⌊N/M⌋ times; attention is a weighted mean, so repetition changes nothing but N.

Shapes at the end of a line: `T` labelings, `M` facts, `N` context sizes.  Everything is float64 numpy, but for the
network itself (`head_network`) and the numbers with many digits (`compensated_values`).
"""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from prompt_memory import bounds, intervals
from prompt_memory.checks import integers
from prompt_memory.transformer import Transformer, TransformerConfig

# --- keys ----------------------------------------------------------------------------------------------------------


def circle_keys(n: int) -> Float[np.ndarray, "n 2"]:
    """n keys evenly spaced on the circle: the best code in d_k = 2.  ValueError for n < 1."""
    integers(n=n)
    angle = 2 * math.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def fibonacci_keys(n: int) -> Float[np.ndarray, "n 3"]:
    """n keys on the sphere, d_k = 3, along the golden spiral: a good code, not the best one.  ValueError for n < 1."""
    integers(n=n)
    height = 1 - (2 * np.arange(n) + 1) / n
    angle = math.pi * (3 - math.sqrt(5)) * np.arange(n)
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)


def random_keys(n: int, d_k: int, rng: np.random.Generator) -> Float[np.ndarray, "n d_k"]:
    """n keys uniform on the sphere of R^{d_k}, independent.  ValueError for n < 1 or d_k < 1."""
    integers(n=n, d_k=d_k)
    keys = rng.standard_normal((n, d_k))
    return keys / np.linalg.norm(keys, axis=1, keepdims=True)


def ball_keys(d_k: int, spacing: float) -> Float[np.ndarray, "M d_k"]:
    """A lattice in the closed unit ball: d_k = 1 evenly spaced, d_k = 2 hexagonal, nearest distance `spacing`.

    ValueError unless d_k is 1 or 2 and 0 < spacing <= 2.
    """
    if d_k not in (1, 2):
        raise ValueError(f"lattices are listed for d_k = 1 and 2, not {d_k!r}")
    if not 0 < spacing <= 2:
        raise ValueError(f"spacing must be above 0 and at most 2, not {spacing!r}")
    if d_k == 1:
        steps = math.floor(2 / spacing + 1e-9)
        return (spacing * (np.arange(steps + 1) - steps / 2))[:, None]
    reach = math.ceil(2.4 / spacing) + 1
    a, b = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    points = spacing * np.stack([(a + b / 2).ravel(), (b * math.sqrt(3) / 2).ravel()], 1)
    return points[np.linalg.norm(points, axis=1) <= 1 + 1e-12]


# --- reading -------------------------------------------------------------------------------------------------------


def readings(
    keys: Float[np.ndarray, "M d_k"],
    values: Float[np.ndarray, "T M"],
    logit_range: float,
    *,
    weights: Float[np.ndarray, " M"] | None = None,
    chunk: int = 1024,
) -> Float[np.ndarray, "T M"]:
    """v̂ at every key: Σ_j w_j e^{B⟨k_i, k_j⟩} u_j / Σ_j w_j e^{B⟨k_i, k_j⟩}, for T tables of values u.

    `weights` counts how often each token is repeated (default: equally often).  With B = ∞ attention is argmax: the
    weighted mean over the keys of the largest cosine, as computed.  ValueError for shapes that do not fit, B < 0, NaN.
    """
    keys, values = np.asarray(keys, float), np.asarray(values, float)
    if keys.ndim != 2 or values.ndim != 2 or values.shape[1] != len(keys) or not len(keys):
        raise ValueError(f"keys [M, d_k] and values [T, M] do not fit: {list(keys.shape)}, {list(values.shape)}")
    if not (np.isfinite(keys).all() and np.isfinite(values).all()):
        raise ValueError("keys and values must be finite")
    B = _logit_range(logit_range)
    weights = np.ones(len(keys)) if weights is None else np.asarray(weights, float)
    if weights.shape != (len(keys),) or not ((weights > 0) & np.isfinite(weights)).all():
        raise ValueError("weights must be one finite number > 0 for each key")
    result = np.empty_like(values)
    for start in range(0, len(keys), chunk):
        cosines = keys[start : start + chunk] @ keys.T  # [chunk, M]
        top = cosines.max(1, keepdims=True)
        attention = weights * (np.exp(B * (cosines - top)) if math.isfinite(B) else cosines == top)
        result[:, start : start + chunk] = (attention @ values.T / attention.sum(1, keepdims=True)).T
    return result


def leak_odds(
    keys: Float[np.ndarray, "M d_k"], logit_range: float, *, weights: Float[np.ndarray, " M"] | None = None
) -> float:
    """The largest ratio, over queries k_i, of attention on other facts to attention on fact i.

    Every labeling is recalled with margin 2ε exactly if it is below (1−ε)/(1+ε): the worst one opposes fact i with all
    others.  `weights` and ValueError as in `readings`.
    """
    alone = np.eye(len(keys))
    share = np.diag(readings(keys, alone, logit_range, weights=weights))
    return float((1 / share - 1).max()) if (share > 0).all() else math.inf


def circle_readings(values: Float[np.ndarray, "T M"], logit_range: float) -> Float[np.ndarray, "T M"]:
    """`readings` for evenly spaced keys on the circle, as a convolution: M log M instead of M² steps."""
    values = np.asarray(values, float)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"values must be a table [T, M] with M >= 1, not of shape {list(values.shape)}")
    M, B = values.shape[1], _logit_range(logit_range)
    if not math.isfinite(B):
        raise ValueError("give a finite logit_range: argmax needs the keys, see readings")
    row = np.exp(-2 * B * np.sin(math.pi * np.arange(M) / M) ** 2)  # B(cos − 1), without cancellation
    return np.fft.irfft(np.fft.rfft(values) * np.fft.rfft(row / row.sum()), n=M)


def recalled(read: Float[np.ndarray, "T M"], labels: Float[np.ndarray, "T M"], eps: float) -> Float[np.ndarray, " T"]:
    """The fraction of facts with label·v̂ > eps, for each labeling."""
    return (read * labels > eps).mean(1)


def retained_bits(recall: float, facts: int) -> float:
    """M·R_2(1 − a), the bits about M random labels that recall a (averaged over facts and labelings) proves; in bits.

    At most what is really retained, by convexity of R_2.  ValueError unless 0 <= recall <= 1 and facts >= 1.
    """
    return integers(facts=facts)[0] * bounds.rate(1 - float(recall), 2)


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
    B, found = _logit_range(logit_range), 0
    for start in range(0, trials, rows := max(1, chunk // n)):
        shape = (min(rows, trials - start), n - 1)
        weights = np.exp(-2 * B * rng.beta((d_k - 1) / 2, (d_k - 1) / 2, size=shape))
        found += int((1 + (weights * signs(shape, rng)).sum(1) > eps * (1 + weights.sum(1))).sum())
    return found


# --- how much a context of N tokens can hold -------------------------------------------------------------------------


class Load(NamedTuple):
    """The best number of facts found for a context, and the recall [T] of labelings not used to find it."""

    facts: int
    recall: Float[np.ndarray, " T"]

    @property
    def bits(self) -> float:
        return retained_bits(self.recall.mean(), self.facts)


def signs(shape, rng: np.random.Generator) -> Float[np.ndarray, "..."]:
    """Uniform labels ±1."""
    return 1.0 - 2.0 * rng.integers(2, size=shape)


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


# --- telling polylog(N) from a power ---------------------------------------------------------------------------------


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


# --- the same memory as a network ------------------------------------------------------------------------------------


def head_network(
    d_k: int, scale: float, *, norm: str = "none", context_scaling: str = "none", dtype: torch.dtype = torch.float64
) -> Transformer:
    """A frozen transformer of one layer, width d_k + 1, that reads (key, value) tokens: logits are ±v̂ without a norm.

    The softmax logit of the token (ρk, u) seen from the query (k', 0) is scale·ρ⟨k', k⟩, times ln(keys seen) with
    `context_scaling="log"`; the value is u.  With `norm="rms"` (ε₀ = 0) query and token are rescaled to the length
    √(d_k + 1) first, whatever ρ is.  Use it with `own_token=False`.  ValueError unless scale > 0 is finite.
    """
    (d_k,) = integers(d_k=d_k)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a finite number > 0, not {scale}")
    network = Transformer(
        TransformerConfig(
            d=d_k + 1, q=2, d_k=d_k, d_v=1, norm=norm, norm_eps=0.0, context_scaling=context_scaling,
            inverse_temperature=float(scale) * math.sqrt(d_k),
        )
    ).to(dtype)  # fmt: skip
    block, where, what = network.blocks[0], torch.eye(d_k + 1, d_k), torch.eye(d_k + 1)[:, -1:]
    weights = (block.query, where), (block.key, where), (block.value, what), (block.output, what.T)
    for weight, matrix in (*weights, (network.unembedding, torch.cat([what, -what], 1))):
        weight.copy_(matrix)
    return network


def head_prompt(
    keys: Float[np.ndarray, "M d_k"], values: Float[np.ndarray, "T M"], *, length: float = 1.0, copies: int = 1
) -> Float[torch.Tensor, "T m d"]:
    """Prompts of `copies` times M tokens (length·k_j, u_j) for `head_network`, float64; ValueError for bad shapes."""
    values = torch.as_tensor(np.asarray(values, float))
    if values.ndim != 2 or np.ndim(keys) != 2 or values.shape[1] != len(keys):
        raise ValueError(f"keys [M, d_k] and values [T, M] do not fit: {list(np.shape(keys))}, {list(values.shape)}")
    keys = (length * torch.as_tensor(np.asarray(keys, float))).expand(len(values), -1, -1)
    return torch.cat([keys, values[..., None]], -1).repeat(1, integers(copies=copies)[0], 1)


def head_queries(keys: Float[np.ndarray, "M d_k"]) -> Float[torch.Tensor, "M d"]:
    """The queries (k_i, 0) for `head_network`, float64."""
    keys = torch.as_tensor(np.asarray(keys, float))
    return torch.cat([keys, keys.new_zeros(len(keys), 1)], 1)


# --- trying to beat the packing bound --------------------------------------------------------------------------------


def search_addresses(
    facts: int, d_k: int, logit_range: float, *, restarts: int, steps: int, generator: torch.Generator
) -> float:
    """The least leak odds found by gradient descent over keys, queries and multiplicities at once (Proposition 9a).

    Keys B·y_j and queries x_i lie in balls of radius B and 1, repeated tokens weigh any w_j > 0, one token a fact; the
    odds are max_i Σ_{j≠i} w_j e^{B⟨x_i, y_j⟩} / (w_i e^{B⟨x_i, y_i⟩}).  Found, not least: an optimiser's answer.
    ValueError for counts below 1 (2 for `facts`).
    """
    integers(2, facts=facts)
    integers(d_k=d_k, restarts=restarts, steps=steps)
    shape = (restarts, facts, d_k)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    jitter = torch.randn(shape, generator=generator, dtype=torch.float64)
    free = [start.clone(), start + 0.1 * jitter, torch.zeros(shape[:2], dtype=torch.float64)]
    free = [x.requires_grad_() for x in free]
    optimiser = torch.optim.Adam(free, lr=0.05)
    diagonal = torch.eye(facts, dtype=torch.bool)

    def log_odds() -> Float[torch.Tensor, "R M"]:
        keys, queries = (x / x.norm(dim=-1, keepdim=True).clamp(min=1) for x in free[:2])
        scores = logit_range * queries @ keys.transpose(1, 2) + free[2][:, None]
        own = scores.diagonal(dim1=1, dim2=2)
        return scores.masked_fill(diagonal, -torch.inf).logsumexp(-1) - own

    best = math.inf
    for step in range(steps):
        sharpness = 2 + 30 * step / steps  # a soft maximum that hardens
        value = log_odds()
        best = min(best, float(value.detach().amax(1).min()))
        optimiser.zero_grad()
        ((sharpness * value).logsumexp(1) / sharpness).sum().backward()
        optimiser.step()
    return math.exp(best)


# --- no margin -------------------------------------------------------------------------------------------------------


def compensated_values(
    labels: Int[np.ndarray, "T M"], logit_range: float, *, digits: int = 60
) -> tuple[list[list[Decimal]], list[Decimal]]:
    """Values in [−1, 1] that make a circle of M keys read every label with one modulus, and that modulus, per labeling.

    The attention matrix S of evenly spaced keys is a circulant with positive eigenvalues, so u = a S⁻¹y gives v̂ = a·y
    with a = 1/max|S⁻¹y|.  Computed with that many significant digits: a shrinks like the smallest eigenvalue, and
    `digits` must exceed its digits by far.  ValueError for labels other than ±1, or if the digits do not suffice.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.isin(labels, (-1, 1)).all():
        raise ValueError("labels must be a table [T, M] of -1 and 1")
    M = labels.shape[1]
    needed = 20 - math.floor(bounds.circle_gain_log2(M, logit_range) * math.log10(2))
    if digits < needed:
        raise ValueError(f"{M} facts at B = {logit_range} need {needed} digits, not {digits}")
    with localcontext() as context:
        context.prec = digits
        cosine = decimal_cosines(M)
        row = decimal_attention(M, logit_range)
        eigenvalues = [sum((row[j] * cosine[n * j % M] for j in range(M)), Decimal(0)) for n in range(M)]
        inverse = [sum((cosine[n * j % M] / eigenvalues[n] for n in range(M)), Decimal(0)) / M for j in range(M)]
        values, amplitudes = [], []
        for y in labels.tolist():
            u = [sum((inverse[(i - j) % M] * y[j] for j in range(M)), Decimal(0)) for i in range(M)]
            a = 1 / max(map(abs, u))
            values.append([a * x for x in u])
            amplitudes.append(a)
    return values, amplitudes


def decimal_attention(M: int, logit_range: float) -> list[Decimal]:
    """Softmax weights of a circle of M keys, seen from key 0, in the digits of the current decimal context."""
    row = [(Decimal(logit_range) * c).exp() for c in decimal_cosines(integers(M=M)[0])]
    total = sum(row)
    return [x / total for x in row]


def decimal_cosines(M: int) -> list[Decimal]:
    """cos(2πj/M), j < M, in the digits of the current decimal context (Machin's formula, then Taylor's)."""

    def arctan_inverse(k: int) -> Decimal:
        power, total, n = 1 / Decimal(k), Decimal(0), 1
        while total + power / n != total:
            total += power / n if n % 4 == 1 else -power / n
            power /= k * k
            n += 2
        return total

    with localcontext() as context:
        context.prec += 10
        pi = 4 * (4 * arctan_inverse(5) - arctan_inverse(239))
        result = []
        for j in range(M):
            x = 2 * pi * min(j, M - j) / M
            term, total, n = Decimal(1), Decimal(0), 0
            while total + term != total:
                total += term
                n += 2
                term *= -x * x / (n * (n - 1))
            result.append(total)
    return [+x for x in result]


def _logit_range(value: float) -> float:
    if not value >= 0:
        raise ValueError(f"logit_range must be a number >= 0, not {value}")
    return float(value)
