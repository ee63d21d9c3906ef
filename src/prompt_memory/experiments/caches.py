"""Chapter 6b, caches: what deep networks let queries read of a prompt, how few positions have it, how many bits it is.

`run` writes its forecast down before caches are compressed, runs the experiments and judges the claims.
"""

import math
import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from prompt_memory import bounds, compress
from prompt_memory.book import claims
from prompt_memory.book.figures import scientific
from prompt_memory.bounds import CacheLayer
from prompt_memory.experiments.costs import cost
from prompt_memory.network.transformer import Transformer, TransformerConfig

CHAIN = [(k, B, depth) for k in range(7) for B in (0.1, 1.0) for depth in (1, 2, 3, 4)]
RISE = 1.0  # a r² of the layers that multiply: each doubles a small difference
DEEP = TransformerConfig(
    d=4, q=3, depth=3, heads=2, d_k=2, d_v=2, mlp=8, norm="rms", norm_eps=1.0, causal=True, positions="rotary"
)
NETWORKS = {"gentle": (0.05, 0.5), "ordinary": (1.0, 1.0)}  # factors of the logits, and of what layers write
BALL = {"radius": 1.0, "query_radius": 1.0}
EPS, TOKENS = 0.5, 1000  # margin 2ε and length at which theorems are compared
PLACES = [(B, eps, depth) for B in (0.3, 2.0) for eps in (1e-1, 1e-2, 1e-4) for depth in (1, 2, 3, 4)]
MOST = 400  # queries on each circle that are tried


@dataclass(frozen=True)
class Settings:
    """How much is run: prompt tokens, queries, degrees, rounds of climbing; depths compared; rows of caches timed."""

    tokens: int
    queries: int
    degrees: tuple[int, ...]
    rounds: int
    depths: tuple[int, ...]
    lengths: tuple[int, ...]


PROFILES = {
    "smoke": Settings(400, 100, (0, 1, 2, 3), 2, (1, 2, 3), (1000, 10_000)),
    "standard": Settings(1500, 1000, (0, 1, 2, 3, 4, 5), 6, (1, 2, 3, 4, 5, 6), (1000, 10_000, 100_000)),
    "full": Settings(4000, 4000, (0, 1, 2, 3, 4, 5), 12, (1, 2, 3, 4, 5, 6, 8), (1000, 10_000, 100_000, 10**6)),
}


@dataclass
class Compressions:
    """One network, by degree: positions kept and allowed, worst difference found, and three numbers beside it."""

    allowed: Int[np.ndarray, "K 2"]  # in each layer, in all layers at once
    kept: Int[np.ndarray, "K 2"] = None
    worst: Float[np.ndarray, "K 2"] = None
    bound: Float[np.ndarray, " K"] = None  # at the logits that occur
    from_weights: Float[np.ndarray, " K"] = None
    drawn: Float[np.ndarray, " K"] = None  # as many positions, drawn with equal weights
    most: float = math.inf  # that any two logits can differ by, halved
    typical: float = 0.0  # half the range of logits at a query: the median of layers and heads


class Compared(NamedTuple):
    """Bits that theorems allow at one depth: 6b, log10 of 7 for the twin without order, 2 at `TOKENS` tokens."""

    depth: int
    caches: float
    mean_field_log10: float
    linear: float


@dataclass
class Result:
    """Everything that chapter 6b measured."""

    settings: Settings
    attained: Float[np.ndarray, "C 2"] = None  # of each place of `CHAIN`: measured, bound
    compressions: dict[str, Compressions] = field(default_factory=dict)
    compared: list[Compared] = field(default_factory=list)
    circles: Float[np.ndarray, "P 2"] = None  # of each of `PLACES`: labels, bits allowed
    timed: list[tuple[int, int, float, float, float]] = field(default_factory=list)  # rows, kept, MiB, seconds, MiB
    numbers: dict[str, str] = field(default_factory=dict)


def free_cache(keys, values, weights) -> compress.CompressedCache:
    """Caches of one head, chosen freely (prefix tuning): of each layer keys [a, d_k], values [a] and weights [a]."""
    entries = [np.column_stack([np.zeros_like(u), u, v]) for u, v in zip(keys, values, strict=True)]
    weights = [np.asarray(w) / np.sum(w) for w in weights]
    return compress.CompressedCache([np.arange(len(w)) for w in weights], entries, weights, 1)


def plain_network(d: int, depth: int, d_k: int) -> Transformer:
    """One head a layer, no norm, no token-wise network; it writes into the last coordinate, logits are ± that one."""
    model = Transformer(TransformerConfig(d=d, depth=depth, d_k=d_k, d_v=1)).double()
    for block in model.blocks:
        for weight in (block.query, block.key, block.value, block.output):
            weight.zero_()
        block.output[0, -1] = 1.0
    model.unembedding.zero_()
    model.unembedding[-1] = torch.tensor([1.0, -1.0])
    return model


def chain(k: int, B: float, depth: int) -> tuple[float, float]:
    """What the query sees of two caches with equal moments up to degree k (half spread), and what part 1 allows.

    The first layer reads the attaining pair of Theorem 6, all others the same two keys ±1 with values ±1, by the number
    o that was written: o ↦ o + tanh(a o), a = `RISE`.
    """
    model = plain_network(2, depth, 1)
    model.blocks[0].query[0, 0] = B
    for block in model.blocks[1:]:
        block.query[1, 0] = RISE
    s, c = bounds.softmax_alternation(k, B)
    seen, pair = [], np.array([-1.0, 1.0])
    for sign in (1, -1):
        keys = [s[:, None] / B] + [pair[:, None]] * (depth - 1)
        values = [sign * (-1.0) ** np.arange(k + 2)] + [pair] * (depth - 1)
        cache = free_cache(keys, values, [c * np.exp(-s)] + [np.ones(2)] * (depth - 1))
        query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        seen.append(compress.read_cache(model, cache, query, position=0, own=0.0)[0][0])
    first = CacheLayer([B], [1.0], (1 + RISE) ** (depth - 1), [np.eye(1)], 1.0)  # the only layer whose caches differ
    return float(np.ptp(seen[0] - seen[1]) / 2), bounds.cache_error([first], k)


def arrays(model: Transformer) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def deep_network(temperature: float, written: float, rng) -> Transformer:
    """A random network with rotary positions and a causal mask, all that layers write multiplied by `written`."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    model = Transformer(replace(DEEP, inverse_temperature=temperature), generator=generator).double()
    for block in model.blocks:
        block.output *= written
        block.down *= written
    return model


def ball(rng, m: int, d: int) -> Float[torch.Tensor, "m d"]:
    x = rng.normal(size=(m, d))
    return torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True) * rng.random((m, 1)) ** (1 / d))


def half_spread(logits: Float[np.ndarray, "n q"]) -> Float[np.ndarray, " n"]:
    return np.ptp(logits, axis=-1) / 2


def worst_query(model, cache, short, queries, settings: Settings, rng, **weights) -> tuple[float, np.ndarray]:
    """The largest half spread between two caches that queries see, and all that the queries asked [n, D].

    Every query counts; then the best 20 climb: in each round ten random steps of each, ever shorter, and the best 20.
    """
    best, asked, m = 0.0, [], len(cache)
    for step in (0.0, *np.geomspace(0.5, 0.02, settings.rounds)):
        if step:
            queries = queries.repeat_interleave(10, 0)
            queries = queries + step * torch.from_numpy(rng.normal(size=queries.shape)) / math.sqrt(queries.shape[1])
            queries = queries / queries.norm(dim=1, keepdim=True).clamp(min=1)
        whole, readers = compress.read_cache(model, cache, queries, position=m)
        seen, others = compress.read_cache(model, short, queries, position=m, **weights)
        asked += [readers, others]
        spread = half_spread(seen - whole)
        best = max(best, float(spread.max()))
        queries = queries[torch.from_numpy(np.argsort(spread)[-20:].copy())]
    return best, np.concatenate(asked)


def prepare(name: str, settings: Settings, rng) -> tuple[Transformer, np.ndarray, Compressions]:
    """A network, the cache of a long prompt in it, and the logits that queries meet there."""
    model = deep_network(*NETWORKS[name], rng)
    c, prompt, queries = model.config, ball(rng, settings.tokens, DEEP.d), ball(rng, settings.queries, DEEP.d)
    cache = compress.prompt_cache(model, prompt)
    whole, readers = compress.read_cache(model, cache, queries, position=len(cache))
    np.testing.assert_allclose(whole[:50], model(prompt[None], queries[:50])[0].numpy(), atol=1e-12)
    columns = arrays(model)["unembedding"].T
    found = Compressions(
        np.array([bounds.cache_positions(c.depth, k, c.d_k, c.d_v, c.heads) for k in settings.degrees])
    )
    found.most = float(np.linalg.norm(columns[:, None] - columns[None], axis=-1).max()) * math.sqrt(c.d)
    found.typical = float(np.median(compress.cache_logits(c, cache, readers)))
    return model, cache, found


def compressions(model, cache, found: Compressions, settings: Settings, rng) -> None:
    """The cache to few positions of each degree, and the worst query found; completes `found`."""
    layers = bounds.cache_layers(model.config, arrays(model), **BALL)
    shape = found.allowed.shape
    found.kept, found.worst = np.zeros(shape, int), np.zeros(shape)
    found.bound, found.from_weights, found.drawn = np.zeros((3, len(shape) and shape[0]))
    for i, k in enumerate(settings.degrees):
        asked = []
        for j in range(2):
            short = compress.compress_cache(model, cache, k, same_positions=bool(j))
            found.kept[i, j] = max(len(each) for each in short.positions)
            queries = ball(rng, settings.queries, DEEP.d)
            found.worst[i, j], readers = worst_query(model, cache, short, queries, settings, rng)
            asked.append(readers)
        drawn = rng.choice(len(cache), found.kept[i, 0], replace=False)
        share = len(drawn) / len(cache)  # the query's own token weighs as much as in the whole cache
        found.drawn[i], _ = worst_query(model, cache, cache[drawn], queries, settings, rng, own=share)
        occurring = compress.cache_logits(model.config, cache, np.concatenate(asked)) * (1 + 1e-9)
        tight = [layer._replace(logits=list(B)) for layer, B in zip(layers, occurring, strict=True)]
        found.bound[i], found.from_weights[i] = bounds.cache_error(tight, k), bounds.cache_error(layers, k)


def compared(settings: Settings, rng) -> list[Compared]:
    """Three theorems for random networks of growing depth; Theorem 7 for the twin without mask and positions."""
    found, model = [], None
    for depth in settings.depths:
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        config = replace(DEEP, depth=depth, inverse_temperature=0.2)
        model = Transformer(config, generator=generator).double()
        W, twin = arrays(model), replace(config, causal=False, positions="none")
        caches = bounds.cache_bits(config, bounds.cache_layers(config, W, **BALL), eps=EPS)
        slope = bounds.network_lipschitz(config, W, differences=True, **BALL)
        measure = {
            "lipschitz": bounds.network_lipschitz(twin, W, differences=True, **BALL),
            "wasserstein": bounds.network_wasserstein(twin, W, differences=True, **BALL),
        }
        mean_field = bounds.mean_field_log10_bits(d=config.d, radius=1.0, eps=EPS, **measure)
        found.append(Compared(depth, caches, mean_field, bounds.entropy_bits(config.d, TOKENS, 1.0, slope, EPS)))
    return found


def circles_amplitude(M: int, B: float, depth: int, rest: float) -> float:
    """a = 1/max row sum of |K⁻¹|: M keys on a circle in each layer answer all 2^(depth·M) labelings with ± a.

    Query (i, l) asks layer i in the direction of key l; all other layers it reads flatly.  So outputs are K v with the
    softmax of B cos in the diagonal blocks and 1/(M + rest) elsewhere, where `rest` is the weight of a key 0 with value
    0 in each layer (without it means of layers could not be told apart).  All blocks are circulants.  0 if rounding
    hides it.  The values a K⁻¹ y lie in [−1, 1] for each labeling y.
    """
    row = np.exp(B * np.cos(2 * np.pi * np.arange(M) / M))
    modes, flat = np.fft.fft(row / (row.sum() + rest)).real, M / (M + rest)
    steep = modes[0] - flat if depth > 1 else modes[0]
    if min(modes[1:].min(initial=1.0), steep) < 1e-10:
        return 0.0
    shared = flat / (steep * (steep + depth * flat)) if depth > 1 else 0.0  # off the diagonal, of the means' inverse
    inverse = np.concatenate([[1 / steep - shared], 1 / modes[1:]])
    return float(1 / (np.abs(np.fft.ifft(inverse)).sum() + (depth - 1) * shared))


def circles(places=PLACES) -> Float[np.ndarray, "P 2"]:
    """Labels of which all labelings are recalled with margin 2ε, and the bits that part 3 allows."""
    found, amplitudes = [], {}
    for B, eps, depth in places:
        if (B, depth) not in amplitudes:
            rests = (0.3, 1.0, 3.0) if depth > 1 else (0.0,)
            amplitudes[B, depth] = np.array(
                [max(circles_amplitude(M, B, depth, r * M) for r in rests) for M in range(1, MOST + 1)]
            )
        serve = np.flatnonzero(amplitudes[B, depth] > eps * (1 + 1e-5))
        layers = [CacheLayer([B], [1.0], 1.0, [np.eye(1)], 1.0)] * depth  # no layer reads what others wrote: G = 1
        head = TransformerConfig(d=2, d_k=2, d_v=1)
        found.append((depth * (serve[-1] + 1) if len(serve) else 0, bounds.cache_bits(head, layers, eps=eps)))
    return np.array(found)


def check_circles(M: int = 3, B: float = 2.0, depth: int = 2) -> None:
    """Every labeling of two circles is read as ± a, by a deep network of this book."""
    model, rest, count = plain_network(2 * depth + 1, depth, 2), float(M), depth * M
    scale = B * math.sqrt(2)  # logits are divided by √d_k
    for layer, block in enumerate(model.blocks):
        block.query[2 * layer, 0] = block.query[2 * layer + 1, 1] = scale
    keys = np.exp(2j * np.pi * np.arange(M) / M).view(float).reshape(M, 2)
    a = circles_amplitude(M, B, depth, rest)
    S = np.exp(B * keys @ keys.T)
    K = np.kron(np.eye(depth), S / (S.sum(1, keepdims=True) + rest) - 1 / (M + rest)) + 1 / (M + rest)
    queries = torch.from_numpy(np.column_stack([np.kron(np.eye(depth), keys), np.zeros(count)]))
    for y in np.array(np.meshgrid(*[[-1.0, 1.0]] * count)).reshape(count, -1).T:
        values = np.linalg.solve(K, a * y).reshape(depth, M)
        if np.abs(values).max() > 1 + 1e-9:
            raise AssertionError("values must lie in [-1, 1]")
        cache = free_cache([np.vstack([keys, [0, 0]])] * depth, [np.append(v, 0) for v in values],
                           [[*np.ones(M), rest]] * depth)  # fmt: skip
        logits, _ = compress.read_cache(model, cache, queries, position=0, own=0.0)
        np.testing.assert_allclose(logits[:, 0], a * y, atol=1e-9)


def timings(settings: Settings, rng) -> list[tuple[int, int, float, float, float]]:
    """Caches of growing length, compressed at degree 2; any rows will do, as any encoder may have made them."""
    model, found = deep_network(*NETWORKS["ordinary"], rng), []
    width = DEEP.depth * DEEP.heads * (2 * DEEP.d_k + DEEP.d_v)
    for rows in settings.lengths:
        cache = rng.normal(size=(rows, width))
        start = time.perf_counter()
        short = compress.compress_cache(model, cache, 2)
        seconds = time.perf_counter() - start  # watched by `cost`, short calls take up to four times as long
        memory = cost(lambda cache=cache: compress.compress_cache(model, cache, 2))[2]
        found.append((rows, max(len(each) for each in short.positions), cache.nbytes / 2**20, seconds, memory))
    return found


def run(profile: str, *, record: claims.Recorder, rng: np.random.Generator, models_dir=None) -> Result:
    """All experiments of the chapter; the forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    result = Result(settings)
    result.attained = np.array([chain(*place) for place in CHAIN])
    judge_chain(record, result)
    prepared = {name: prepare(name, settings, rng) for name in NETWORKS}
    result.compressions = {name: found for name, (_, _, found) in prepared.items()}
    predict_fall(record, result)
    for model, cache, found in prepared.values():
        compressions(model, cache, found, settings, rng)
    judge_compressions(record, result)
    result.compared = compared(settings, rng)
    check_circles()
    result.circles = circles()
    judge_bits(record, result)
    result.timed = timings(settings, rng)
    for rows, kept, _, seconds, memory in result.timed:
        text = f"{rows} rows to {kept} a layer"
        record.timing(f"compress-{rows}", value=seconds, unit="s", statement=text)
        record.timing(f"compress-{rows}-memory", value=memory, unit="MiB", statement=text)
    return result


def judge_chain(record: claims.Recorder, result: Result) -> None:
    """Part 1 on caches that attain it; one layer is Theorem 6."""
    places = [place for place in CHAIN if place[2] > 1]
    measured, bound = result.attained[[place[2] > 1 for place in CHAIN]].T
    record.theorem(
        "constant-at-depth", theorem="Theorem 6b, part 1",
        statement="Half the spread between two caches with equal moments, multiplied by each later layer",
        measured=measured, bound=bound, possible=[2.0 * depth for *_, depth in places], tolerance=1e-13,
        parameters={"k, B, L": places, "a r²": RISE},
    )  # fmt: skip


def predict_fall(record: claims.Recorder, result: Result) -> None:
    """The worst difference should fall with the degree as the remainder of the typical logit does."""
    last = result.settings.degrees[-1]

    def decades(B):
        return math.log10(bounds.softmax_remainder(0, B) / bounds.softmax_remainder(last, B))

    record.predict(
        "fall", theorem="Theorem 6b, part 1",
        statement=f"Decades by which the worst difference falls from $k = 0$ to $k = {last}$: as many as $\\rho_k$"
        " at the median of the half ranges of logits that occur",
        predicted=[decades(found.typical) for found in result.compressions.values()], relative=0.5,
        possible=(-np.inf, np.inf), searched=True, parameters={"networks": NETWORKS},
    )  # fmt: skip


def judge_compressions(record: claims.Recorder, result: Result) -> None:
    """The forecast, and parts 1 and 2 for random deep networks."""
    all_found, settings = list(result.compressions.values()), result.settings
    record.measure("fall", [math.log10(f.worst[0, 0] / f.worst[-1, 0]) for f in all_found])
    parameters = {"networks": NETWORKS, "k": settings.degrees, "m": settings.tokens}
    record.theorem(
        "cache-error", theorem="Theorem 6b, part 1",
        statement="Worst half spread found between a cache and its compression, at the logits that occur",
        measured=[f.worst for f in all_found], bound=[f.bound[:, None] for f in all_found],
        possible=[[[f.most]] for f in all_found], tolerance=1e-11, searched=True,
        parameters=parameters | {"queries": settings.queries},
    )  # fmt: skip
    record.theorem(
        "cache-count", theorem="Theorem 6b, part 2",
        statement="Positions kept, in each layer and in all layers at once",
        measured=[f.kept for f in all_found], bound=[f.allowed for f in all_found], possible=settings.tokens,
        parameters=parameters,
    )  # fmt: skip
    gentle, ordinary = (result.compressions[name] for name in NETWORKS)

    def says(f):
        below = [k for k, bound in zip(settings.degrees, f.bound, strict=True) if bound < f.most]
        return f"from degree {below[0]} on" if below else "at none of these degrees"

    drawn_fall = [math.log10(f.drawn[0] / f.drawn[-1]) for f in all_found]
    result.numbers |= {
        "tokens": f"{settings.tokens:,}", "queries": f"{settings.queries:,}",
        "last": f"{settings.degrees[-1]}", "kept": f"{ordinary.kept[-1, 0]}", "kept_all": f"{ordinary.kept[-1, 1]}",
        "worst": scientific(ordinary.worst[-1, 0], up=True), "worst_gentle": scientific(gentle.worst[-1, 0], up=True),
        "bound": scientific(ordinary.bound[-1], up=False), "bound_gentle": scientific(gentle.bound[-1], up=False),
        "drawn": scientific(ordinary.drawn[-1], up=False), "most": f"{ordinary.most:.1f}",
        "slack": scientific((ordinary.bound / ordinary.worst[:, 0]).min(), up=False),
        "slack_gentle": scientific((gentle.bound / gentle.worst[:, 0]).min(), up=False),
        "says": says(ordinary), "says_gentle": says(gentle),
        "drawn_fall": " and ".join(f"{each:.1f}" for each in drawn_fall),
    }  # fmt: skip


def judge_bits(record: claims.Recorder, result: Result) -> None:
    """Part 3 under a memory in every layer."""
    labels, bits = result.circles.T
    record.theorem(
        "circles", theorem="Theorem 6b, part 3",
        statement="$\\mathrm{Mem}_{2\\varepsilon}$ of keys on a circle in every layer, all of whose labelings are"
        " memorised (bits)",
        measured=labels, bound=bits, possible=[depth * MOST for *_, depth in PLACES], parameters={"B, ε, L": PLACES},
    )  # fmt: skip
    rows = result.compared
    deepest, three = rows[-1], next(row for row in rows if row.depth == 3)
    crossing = math.ceil(TOKENS * three.caches / three.linear)
    result.numbers |= {
        "circle_share": f"{100 * (labels / bits).max():.0f}", "three_bits": f"{three.caches:,.0f}",
        "three_linear": f"{three.linear:,.0f}", "three_mean": scientific(10.0**three.mean_field_log10, up=False),
        "crossing": f"{crossing:,}", "deepest": f"{deepest.depth}", "deepest_bits": scientific(deepest.caches, up=True),
        "deepest_mean": scientific(10.0**deepest.mean_field_log10, up=False),
    }  # fmt: skip
