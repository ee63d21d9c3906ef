"""Chapter 5, exact compression: long prompts to few weighted tokens, and that fewer do not do.

`run` writes its forecast down before anything is compressed, runs the experiments and judges the claims. What
`prompt_memory.compress` returns is judged by functions of this module that share no code with it.
"""

from dataclasses import dataclass, field
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import optimize, special

from prompt_memory import bounds, compress, tasks
from prompt_memory.book import claims
from prompt_memory.book.figures import scientific
from prompt_memory.experiments.costs import cost
from prompt_memory.experiments.exact_compression_problems import (
    HEAD,
    KINDS,
    WORDS,
    Problem,
    conditions,
    direct,
    least_residual,
    on_circle,
    polygon,
    random_problem,
    sharp_example,
    spiral_cloud,
    two_layers,
)
from prompt_memory.network.transformer import TransformerConfig

LEAST = 1e-9  # a residual that cannot be rounding
BETA = 2.0  # of the polygon's attention
CORNERS = (3, 4, 5, 6, 7, 8, 9)
LISTED = np.array([20.0, 110.0, 200.0, 290.0])  # directions of the spiral's queries, in degrees
EVERY = np.arange(0, 360, 0.5)
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)  # numbers of evenly spaced queries


@dataclass(frozen=True)
class Settings:
    """How much is run: prompt lengths, shapes, tokens in networks, prompts whose subsets are all tried, starts."""

    lengths: tuple[int, ...]
    longest: int
    shapes: int
    cached: int
    small: int
    wide: bool
    starts: int


PROFILES = {
    "smoke": Settings((10**2, 10**3), longest=10**4, shapes=4, cached=200, small=4, wide=False, starts=1),
    "standard": Settings((10**2, 10**3, 10**4), longest=10**5, shapes=6, cached=1000, small=24, wide=True, starts=4),
    "full": Settings(
        (10**2, 10**3, 10**4, 10**5), longest=10**6, shapes=7, cached=4000, small=200, wide=True, starts=20
    ),
}  # fmt: skip
SHAPES = ((1, 1, 3), (4, 1, 2), (4, 2, 4), (8, 2, 4), (8, 2, 8), (16, 4, 4), (32, 4, 4))  # n, H, d_v


class Case(NamedTuple):
    """A random prompt that is compressed: its kind and length, (n, H, d_v), and the weight of own tokens."""

    kind: str
    m: int
    shape: tuple[int, int, int]
    own: float


@dataclass
class Long:
    """Tokens kept of each case, what is allowed, and the largest difference of outputs over the largest value."""

    cases: list[Case]
    allowed: list[int]
    kept: Int[np.ndarray, " K"] = None
    errors: Float[np.ndarray, " K"] = None


class Network(NamedTuple):
    """A frozen transformer's prompt or cache: tokens allowed, tokens kept, logits off with and without weights."""

    name: str
    allowed: int
    kept: int
    error: float
    unweighted: float


class Sharp(NamedTuple):
    """A prompt of part 3: tokens needed, tokens kept, rank of the conditions, N, least residual with a token less."""

    needed: int
    kept: int
    rank: int
    N: int
    residual: float


class Tried(NamedTuple):
    """A small random prompt: least residual of all subsets with a token less, with the allowed number; subsets."""

    less: float
    enough: float
    subsets: int


class Corner(NamedTuple):
    """The polygon of Proposition 5b: Ψ at equal weights, least Ψ found without a corner, its lower bound."""

    m: int
    equal: float
    found: float
    floor: float


@dataclass
class Spiral:
    """A cloud in the plane, compressed for the `LISTED` queries and for more and more evenly spaced ones."""

    cloud: Float[np.ndarray, "m 2"]
    few: compress.Compressed
    answers: Float[np.ndarray, "n 2"]  # outputs of the listed queries
    off: Float[np.ndarray, " K"]  # distance of the outputs of few tokens, at `EVERY` query
    spread: float  # how far the outputs of all queries differ
    kept: Int[np.ndarray, " C"]  # tokens kept for `COUNTS` queries
    worst: Float[np.ndarray, " C"]  # and the largest distance over `EVERY` query


@dataclass
class Result:
    """Everything that chapter 5 measured; `costs` has (seconds, MiB) for each length, by (H, d_v, d)."""

    settings: Settings
    long: Long = None
    networks: list[Network] = field(default_factory=list)
    sharp: list[Sharp] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    corners: list[Corner] = field(default_factory=list)
    spiral: Spiral = None
    lengths: list[int] = field(default_factory=list)
    costs: dict[tuple[int, int, int], np.ndarray] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)


def long_cases(settings: Settings) -> list[Case]:
    """Every kind, length and shape, without and with own tokens; the longest prompts are Gaussian."""
    shapes = SHAPES[: settings.shapes]
    found = [Case(*each) for each in product(KINDS, settings.lengths, shapes, (0.0, 1.0))]
    return found + [Case("Gaussian", settings.longest, *each) for each in product(shapes, (0.0, 1.0))]


def draw_case(case: Case, number: int, seed: int) -> Problem:
    """The prompt of a case, from random numbers of its own."""
    return random_problem(np.random.default_rng([seed, number]), case.m, *case.shape, kind=case.kind)


def long_prompts(long: Long, seed: int) -> None:
    """Compress every case, and compare outputs by `direct`."""
    kept, errors = [], []
    for number, case in enumerate(long.cases):
        problem = draw_case(case, number, seed)
        c = compress.caratheodory(*problem, own=case.own)
        short = direct(problem.tokens[c.indices], *problem[1:], c.weights, c.own if case.own else 0.0)
        scale = np.abs(np.einsum("hvd,jd->jhv", problem.V, problem.tokens)).max()
        kept.append(len(c.indices))
        errors.append(np.abs(short - direct(*problem, own=case.own)).max() / scale)
        if not ((c.weights > 0).all() and abs(c.weights.sum() - 1) < 1e-13):
            raise AssertionError("weights must be positive and of sum one")
    long.kept, long.errors = np.array(kept), np.array(errors)


NETWORKS = {  # what is not common to all of them, and the weight with which a query attends itself
    "one layer, RMSNorm": (dict(norm="rms"), 1.0),
    "the same, own token not seen": (dict(norm="rms"), 0.0),
    "one layer, LayerNorm, learned positions": (dict(norm="layer", positions="learned", causal=True), 1.0),
    "one layer, rotary positions": (dict(norm="rms", positions="rotary"), 1.0),
    "cache of two layers, rotary": (dict(norm="rms", positions="rotary", causal=True, depth=2), 1.0),
    "cache of three layers, LayerNorm": (dict(norm="layer", positions="learned", causal=True, depth=3), 0.0),
}


def network(name: str, m: int, n: int, generator: torch.Generator) -> Network:
    """The prompt of one layer, or the cache of several, of a frozen transformer that n queries read."""
    architecture, own = NETWORKS[name]
    config = TransformerConfig(d=12, q=8, heads=2, d_k=6, d_v=4, mlp=24, context=m + 1, **architecture)
    model, prompt, queries = tasks.generic_instance(config, m, n, generator=generator)
    cache = compress.prompt_cache(model, prompt)

    def read(places, weights, own):
        return compress.read_cache(model, cache[places], queries[:, 0], position=m, weights=weights, own=own)

    whole, readers = read(slice(None), np.ones(m), own)
    logits = model(prompt[None], queries, own_token=bool(own))[0].numpy()
    size = np.abs(logits).max()
    if not np.abs(whole - logits).max() < 1e-11 * size:
        raise AssertionError("the whole cache must give the network's own logits")
    c = compress.caratheodory(cache, readers, *compress.cache_heads(config), own=own)
    short, _ = read(c.indices, c.weights, c.own if own else 0.0)
    few, _ = read(c.indices, np.ones(len(c.indices)), own)
    count = bounds.caratheodory_count(n * config.depth, config.heads, config.d_v, own=own > 0)
    return Network(name, count, len(c.indices), *(float(np.abs(x - logits).max() / size) for x in (short, few)))


def sharp_examples() -> list[Sharp]:
    """The prompts of part 3 compressed, and every way to leave one token out."""
    found = []
    for n, heads, d_v, own in product((1, 2, 4), (1, 2), (1, 2, 3), (0.0, 1.0)):
        problem = sharp_example(n, heads, d_v, own > 0)
        a, b = conditions(*problem, own=own)
        m, needed = a.shape[1], bounds.caratheodory_count(n, heads, d_v, own=own > 0)
        kept = len(compress.caratheodory(*problem, own=own).indices)
        less = [[j for j in range(m) if j != t] for t in range(m)]
        rest = [least_residual(a, b, places) for places in less] if m > 1 else [np.linalg.norm(b)]
        found.append(Sharp(needed, kept, int(np.linalg.matrix_rank(a)), n * heads * d_v, min(rest)))
    return found


def every_subset(small: int, rng) -> list[Tried]:
    """Small random prompts: non-negative least squares on every subset of the allowed size, and of one less."""
    found = []
    for shape, own in product([(1, 1, 2), (2, 1, 1), (1, 3, 1), (2, 1, 2), (4, 1, 1)], (0.0, 1.0)):
        count = bounds.caratheodory_count(*shape, own=own > 0)
        for _ in range(small):
            a, b = conditions(*random_problem(rng, 9, *shape, d=4), own=own)
            less, enough = (
                [least_residual(a, b, list(s)) for s in combinations(range(9), size)] for size in (count - 1, count)
            )  # fmt: skip
            found.append(Tried(min(less), min(enough), len(less)))
    return found


def polygons(starts: int, rng) -> list[Corner]:
    """Search from random starts for weights on all corners but the last that make Ψ small."""
    found = []
    for m in CORNERS:
        z = polygon(m)

        def objective(s, z=z):
            return two_layers(z, np.append(special.softmax(s), 0.0), BETA)

        runs = [optimize.minimize(objective, rng.normal(size=m - 1), method="BFGS") for _ in range(starts)]
        equal, least = two_layers(z, np.ones(m), BETA), min(run.fun for run in runs)
        found.append(Corner(m, equal, least, bounds.polygon_floor(m, BETA)))
    return found


def spiral(cloud: Float[np.ndarray, "m 2"]) -> Spiral:
    """Compress the cloud for the listed queries, then for more and more; compare at every query of length one."""
    truth = compress.attend(cloud, on_circle(EVERY), *HEAD)

    def off(c):
        short = compress.attend(cloud[c.indices], on_circle(EVERY), *HEAD, weights=c.weights)
        return np.linalg.norm(short - truth, axis=(1, 2))

    few = compress.caratheodory(cloud, on_circle(LISTED), *HEAD)
    many = [compress.caratheodory(cloud, on_circle(360 * np.arange(n) / n), *HEAD) for n in COUNTS]
    answers = compress.attend(cloud, on_circle(LISTED), *HEAD)[:, 0]
    spread = np.linalg.norm(truth - truth.mean(0), axis=(1, 2)).max()
    kept = np.array([len(c.indices) for c in many])
    return Spiral(cloud, few, answers, off(few), spread, kept, np.array([off(c).max() for c in many]))


def measure_costs(result: Result, rng) -> None:
    """Seconds and MiB beyond the input for 8 queries, against the length; below 10⁵ tokens the least of three runs."""
    result.lengths = [m for m in (10**2, 10**3, 10**4, 10**5, 10**6) if m <= result.settings.longest]
    for shape in [(2, 8, 16), (4, 16, 64)] if result.settings.wide else [(2, 8, 16)]:
        values = []
        for m in result.lengths:
            problems = [random_problem(rng, m, 8, *shape[:2], d=shape[2]) for _ in range(3 if m < 10**5 else 1)]
            values.append(np.min([cost(lambda p=p: compress.caratheodory(*p))[1:] for p in problems], axis=0))
        result.costs[shape] = np.array(values)


def run(
    profile: str, *, record: claims.Recorder, rng: np.random.Generator, generator: torch.Generator, models_dir=None
) -> Result:  # fmt: skip
    """All experiments of the chapter; the forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    result = Result(settings)
    cases = long_cases(settings)
    result.long = Long(cases, predict_counts(record, cases))
    long_prompts(result.long, record.seed)
    judge_long_prompts(record, result)
    result.networks = [network(name, settings.cached, 4, generator) for name in NETWORKS]
    judge_networks(record, result)
    result.sharp, result.tried = sharp_examples(), every_subset(settings.small, rng)
    judge_no_smaller_set(record, result)
    result.corners = polygons(settings.starts, rng)
    judge_polygons(record, result)
    result.spiral = spiral(spiral_cloud(rng))
    judge_spiral(record, result)
    measure_costs(result, rng)
    record_costs(record, result)
    return result


def predict_counts(record: claims.Recorder, cases: list[Case]) -> list[int]:
    """Tokens allowed in each case; a random prompt should need them all."""
    different = [
        len(np.unique(draw_case(case, k, record.seed).tokens, axis=0)) if case.kind == "words" else case.m
        for k, case in enumerate(cases)
    ]
    allowed = [
        bounds.caratheodory_count(*case.shape, own=case.own > 0, tokens=k)
        for case, k in zip(cases, different, strict=True)
    ]  # fmt: skip
    record.predict(
        "typical-count", theorem="Theorem 5, part 4",
        statement="A random prompt needs exactly $\\min\\{N + 1, \\text{different tokens}\\}$ tokens, with own tokens"
        " $\\min\\{N, \\ldots\\}$",
        predicted=allowed, possible=(1, [case.m for case in cases]), absolute=0.0,
    )  # fmt: skip
    return allowed


def judge_long_prompts(record: claims.Recorder, result: Result) -> None:
    """Parts 1 and 2: how many tokens are kept, and what they give."""
    long, settings = result.long, result.settings
    record.measure("typical-count", long.kept)
    record.theorem(
        "count", theorem="Theorem 5, parts 1 and 2",
        statement="Tokens kept: at most $n H d_v + 1$, with own tokens $n H d_v$, and at most as many as are different",
        measured=long.kept, bound=long.allowed, possible=[case.m for case in long.cases],
        parameters={"shapes": SHAPES[: settings.shapes], "lengths": [*settings.lengths, settings.longest],
                    "cases": len(long.cases)},
    )  # fmt: skip
    record.theorem(
        "outputs", theorem="Theorem 5, parts 1 and 2",
        statement="Outputs of the compressed prompt are those of the long one; largest difference in units of the"
        " largest value",
        measured=long.errors, bound=0.0, possible=np.inf, tolerance=1e-12,
    )  # fmt: skip
    longest = np.array([case.m == settings.longest for case in long.cases])
    kept, allowed = long.kept[longest], np.array(long.allowed)[longest]
    result.numbers |= {
        "words": f"{WORDS}", "case_count": f"{len(long.cases)}", "case_error": scientific(long.errors.max(), up=True),
        "case_longest": f"{settings.longest:,}", "longest_kept": f"{kept.min()} to {kept.max()}",
        "longest_allowed": f"{allowed.min()} to {allowed.max()}",
    }  # fmt: skip


def judge_networks(record: claims.Recorder, result: Result) -> None:
    """Theorem 5 through whole networks, and Proposition 5a."""
    record.theorem(
        "network-count", theorem="Theorem 5 and Proposition 5a",
        statement="Tokens, or positions of the cache, that give a frozen transformer's logits: at most $n L H d_v$ (+1"
        " without own tokens)",
        measured=[r.kept for r in result.networks], bound=[r.allowed for r in result.networks],
        possible=result.settings.cached,
    )  # fmt: skip
    record.theorem(
        "network-logits", theorem="Theorem 5 and Proposition 5a",
        statement="Logits of the compressed prompt are those of the long one; largest difference over the largest"
        " logit",
        measured=[r.error for r in result.networks], bound=0.0, possible=np.inf, tolerance=1e-10,
    )  # fmt: skip


def judge_no_smaller_set(record: claims.Recorder, result: Result) -> None:
    """Parts 3 and 4 from below, part 1 from above, by trying every subset."""
    sharp, tried, small = result.sharp, result.tried, result.settings.small
    if not all(r.rank == r.N for r in sharp):
        raise AssertionError("the conditions of part 3 must have rank N")
    record.theorem(
        "sharp-count", theorem="Theorem 5, part 3", relation="==",
        statement="The prompts of part 3 need all of their $N + 1$ tokens (with own tokens: $N$)",
        measured=[r.kept for r in sharp], bound=[r.needed for r in sharp], possible=(0, [r.needed for r in sharp]),
    )  # fmt: skip
    subsets = sum(r.subsets for r in tried)
    some = np.reshape([r.less for r in tried], (-1, small)).max(1)
    record.theorem(
        "one-less", theorem="Theorem 5, parts 3 and 4", relation=">=",
        statement="With one token less every subset misses its conditions (prompts of part 3, and for each shape some"
        " random prompt): least residual, over $10^{-9}$",
        measured=np.append([r.residual for r in sharp], some) / LEAST, bound=1.0, possible=0.0,
        parameters={"examples": len(sharp), "random prompts": len(tried), "subsets": subsets},
    )  # fmt: skip
    record.theorem(
        "enough", theorem="Theorem 5, parts 1 and 2",
        statement="With the allowed number some subset of a small random prompt meets its conditions: least residual of"
        " all subsets",
        measured=[r.enough for r in tried], bound=0.0, possible=np.inf, tolerance=1e-12,
    )  # fmt: skip
    result.numbers |= {
        "sharp_examples": f"{len(sharp)}", "tried_prompts": f"{len(tried)}", "tried_subsets": f"{subsets:,}",
        "tried_least": scientific(min(r.less for r in tried), up=False),
        "tried_right": scientific(max(r.enough for r in tried), up=True),
    }  # fmt: skip


def judge_polygons(record: claims.Recorder, result: Result) -> None:
    """Proposition 5b: the lower bound under a search that tries to undercut it."""
    found = np.array([r.found for r in result.corners])
    record.theorem(
        "polygon", theorem="Proposition 5b", relation=">=", searched=True,
        statement="Weightings of $m - 1$ corners found by search keep the two-layer output above its lower bound"
        " (ratio)",
        measured=found / [r.floor for r in result.corners], bound=1.0, possible=0.0,
        parameters={"m": CORNERS, "beta": BETA},
    )  # fmt: skip
    record.theorem(
        "polygon-equal", theorem="Proposition 5b",
        statement="Equal weights on all corners give the two-layer output zero",
        measured=[r.equal for r in result.corners], bound=0.0, possible=np.inf, tolerance=1e-28,
    )  # fmt: skip
    result.numbers["polygon_most"] = scientific(found.max(), up=True)


def judge_spiral(record: claims.Recorder, result: Result) -> None:
    """Part 1 for the picture, then for more and more queries."""
    s = result.spiral
    listed = np.isin(EVERY, LISTED)
    record.theorem(
        "cloud-listed", theorem="Theorem 5, part 1",
        statement="The picture: on listed queries the few tokens agree with the cloud",
        measured=s.off[listed], bound=0.0, possible=np.inf, tolerance=1e-12,
    )  # fmt: skip
    record.theorem(
        "many-queries", theorem="Theorem 5, part 1",
        statement="Tokens kept for more and more queries on a circle: at most $2 n + 1$",
        measured=s.kept, bound=[bounds.caratheodory_count(n, 1, 2, tokens=len(s.cloud)) for n in COUNTS],
        possible=len(s.cloud),
    )  # fmt: skip
    result.numbers |= {
        "cloud_m": f"{len(s.cloud):,}", "cloud_n": f"{len(LISTED)}", "cloud_kept": f"{len(s.few.indices)}",
        "cloud_worst": f"{100 * s.off.max() / s.spread:.0f}",
        "cloud_typical": f"{100 * np.median(s.off[~listed]) / s.spread:.0f}",
    }  # fmt: skip


def record_costs(record: claims.Recorder, result: Result) -> None:
    """Times and memory belong to this machine and are no claims."""
    for (heads, d_v, _), values in result.costs.items():
        N = 8 * heads * d_v
        for what, unit, value in zip(("Time", "Peak memory"), ("s", "MiB"), values[-1], strict=True):
            record.timing(
                f"{what.split()[-1].lower()}-{N}", value=value, unit=unit,
                statement=f"{what} to compress {result.lengths[-1]} tokens for 8 queries, {N} conditions",
            )  # fmt: skip
