"""Chapter 6, moments: what bounded attention reads of a prompt, how few tokens have it, and how many bits it is.

`run` writes its forecast down before prompts are packed, runs the experiments and judges the claims.
"""

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import iv, jv

from prompt_memory import bounds, compress
from prompt_memory.book import claims
from prompt_memory.book.figures import scientific

GRID = [(k, B) for B in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0) for k in (0, 1, 2, 3, 4, 6, 8, 12, 16)]
HEADS = ((1, 1.0, 1), (2, 2.0, 1), (3, 1.5, 1), (3, 3.0, 2), (4, 1.0, 1))  # d, B, number of heads
ROTARY = {"d_k": 2, "d_v": 2, "B": 1.5}
PACKED = {"B = 1, ε = 0.05": (1.0, 0.05), "B = 0.25, ε = 0.2": (0.25, 0.2)}  # heads whose prompts are packed
FIRST = "B = 1, ε = 0.05"
PLACES = [(B, eps) for B in (0.1, 0.3, 1.0, 2.0) for eps in (0.3, 1e-1, 1e-2, 1e-4)]
MOST = 400  # queries on a circle that are tried
SHAPES = (  # d_k, d_v, heads, B, ε
    (1, 1, 1, 1.0, 0.05), (2, 2, 1, 1.0, 0.05), (2, 2, 1, 4.0, 0.05), (4, 4, 4, 2.0, 0.05), (16, 16, 4, 4.0, 0.05),
    (64, 64, 12, 8.0, 0.05),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How much is run: heads, degrees k, tokens and queries; widths, degrees and lengths timed; prompts packed."""

    heads: int
    degrees: tuple[int, ...]
    tokens: int
    queries: int
    sizes: tuple[tuple[int, int, tuple[int, ...]], ...]
    lengths: tuple[int, ...]
    candidates: int


PROFILES = {
    "smoke": Settings(
        heads=2, degrees=(1, 3, 5), tokens=500, queries=1000, sizes=((3, 4, (10**3, 10**4)),),
        lengths=(1, 2, 4, 8, 16), candidates=3000,
    ),
    "standard": Settings(
        heads=5, degrees=tuple(range(1, 9)), tokens=2000, queries=10_000,
        sizes=((3, 4, (10**3, 10**4, 10**5)), (3, 8, (10**3, 10**4, 10**5)), (4, 8, (10**3, 10**4, 10**5))),
        lengths=(1, 2, 4, 8, 16, 32, 64), candidates=40_000,
    ),
    "full": Settings(
        heads=5, degrees=tuple(range(1, 9)), tokens=5000, queries=40_000,
        sizes=(
            (3, 4, (10**3, 10**4, 10**5, 10**6)), (3, 8, (10**3, 10**4, 10**5)), (4, 8, (10**3, 10**4, 10**5, 10**6)),
        ),
        lengths=(1, 2, 4, 8, 16, 32, 64, 128, 256), candidates=200_000,
    ),
}  # fmt: skip


@dataclass
class Remainders:
    """ρ_k of each (k, B) in `GRID`, its two bounds (the lower one 0 where it does not hold), and 2 J_{k+1}(B)."""

    rho: Float[np.ndarray, " G"]
    upper: Float[np.ndarray, " G"]
    lower: Float[np.ndarray, " G"]
    bessel: Float[np.ndarray, " G"]


@dataclass
class Compressions:
    """Random heads (rows) and degrees (columns): tokens kept and allowed, worst difference found and allowed."""

    heads: tuple
    counts: Int[np.ndarray, "H K"]
    allowed: Float[np.ndarray, "H K"]
    kept: Int[np.ndarray, "H K"] = None
    worst: Float[np.ndarray, "H K"] = None

    def __post_init__(self):
        self.kept, self.worst = np.zeros(self.counts.shape, int), np.zeros(self.counts.shape)

    @property
    def names(self) -> list[str]:
        return [f"d = {d}, B = {B:g}, {H} head{'s' if H > 1 else ''}" for d, B, H in self.heads]


class Rotary(NamedTuple):
    """Rotary positions at one degree: tokens kept and allowed, then those of the control, blind to positions."""

    k: int
    kept: int
    count: int
    blind: int
    worst: float
    blind_worst: float
    limit: float


class Timed(NamedTuple):
    """One compression: width, degree k, tokens before and after, seconds."""

    d: int
    k: int
    tokens: int
    kept: int
    seconds: float


@dataclass
class Packings:
    """Bits against prompt length, by the name of the head: both theorems, and what was found."""

    lengths: Int[np.ndarray, " L"]
    linear: dict[str, np.ndarray]
    flat: dict[str, float]
    found: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Made:
    """Bits of prompts made for part 4 at each (B, ε) in `PLACES`, and the bound for each of the two kinds of heads."""

    volume: list[float]
    volume_bound: list[float]
    circle: list[int]
    circle_bound: list[float]


@dataclass
class Result:
    """Everything that chapter 6 measured."""

    settings: Settings
    remainders: Remainders = None
    compressions: Compressions = None
    rotary: list[Rotary] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    packings: Packings = None
    made: Made = None
    numbers: dict[str, str] = field(default_factory=dict)


def sphere(rng, m: int, d: int) -> Float[np.ndarray, "m d"]:
    x = rng.normal(size=(m, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ball(rng, m: int, d: int) -> Float[np.ndarray, "m d"]:
    return sphere(rng, m, d) * rng.random((m, 1)) ** (1 / d)


def unit(maps: Float[np.ndarray, "H a b"]) -> Float[np.ndarray, "H a b"]:
    """Each divided by its spectral norm."""
    return maps / np.linalg.norm(maps, 2, axis=(1, 2))[:, None, None]


def check_bessel_polynomial() -> None:
    """The polynomial of the proof of part 1, on a circle: of degree k, and as good as the bound says."""
    theta = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    for B, k in ((0.5, 1), (1.5, 4), (3.0, 6)):
        zeta, s, n = np.exp(1j * theta), B * np.cos(theta), np.arange(k + 1, k + 60)
        C = (jv(n, B)[:, None] * zeta ** n[:, None]).sum(0)
        d = np.fft.fft(np.exp(B / zeta) * C).real / len(theta)  # coefficients of zeta^n
        np.testing.assert_allclose(d[n], iv(n, B), atol=1e-14)
        cosines = np.cos(n[:, None] * theta)
        T = np.exp(s) - 2 * (np.exp(B / zeta) * C).real + 2 * (d[-n][:, None] * cosines).sum(0)
        np.testing.assert_allclose(np.fft.fft(T)[k + 1 : -k], 0, atol=1e-11)  # no frequency above k
        error = np.abs(T * np.exp(-s) - 1).max()
        if not bounds.softmax_remainder(k, B) <= error <= bounds.softmax_remainder_bound(k, B):
            raise AssertionError("the polynomial must lie between the best one and its bound")


def remainders() -> Remainders:
    """ρ_k by exchange in decimal arithmetic, and its bounds."""
    floor = [bounds.softmax_remainder_floor(k, B) if k + 1 >= B else 0.0 for k, B in GRID]
    return Remainders(
        np.array([bounds.softmax_remainder(k, B) for k, B in GRID]),
        np.array([bounds.softmax_remainder_bound(k, B) for k, B in GRID]),
        np.array(floor),
        np.array([2 * jv(k + 1, B) for k, B in GRID]),
    )  # fmt: skip


def attaining(k: int, B: float) -> tuple[list[Float[np.ndarray, "k+2 2"]], Float[np.ndarray, " k+2"]]:
    """The two prompts of the proof of part 2, tokens (u, v), and the weights of both."""
    s, c = bounds.softmax_alternation(k, B)
    values, mass = (-1.0) ** np.arange(k + 2), c * np.exp(-s)
    return [np.stack([s / B, sign * values], 1) for sign in (1, -1)], mass / mass.sum()


def attained(k: int, B: float) -> float:
    """By how much one head tells these prompts apart; AssertionError unless their moments agree."""
    prompts, mass = attaining(k, B)
    powers = np.polynomial.chebyshev.chebvander(prompts[0][:, 0], k)
    if not 2 * np.abs((mass * prompts[0][:, 1]) @ powers).max() < 1e-13:
        raise AssertionError("the moments must agree")
    keys, values = np.diag([1.0, 0.0]), np.array([[0.0, 1.0]])
    first, second = (compress.attend(z, [[B, 0.0]], keys, values, weights=mass)[0, 0] for z in prompts)
    return abs(first - second)


def compressions(settings: Settings, rng) -> Compressions:
    """Long prompts, half in the ball and half on its surface, to few tokens; queries climb to where they differ."""
    heads, degrees, m = HEADS[: settings.heads], settings.degrees, settings.tokens
    found = Compressions(
        heads, np.array([[bounds.moment_count(d, k) for k in degrees] for d, _, _ in heads]),
        np.array([[bounds.moment_error(k, B, H) for k in degrees] for _, B, H in heads]),
    )  # fmt: skip
    for i, (d, B, H) in enumerate(heads):
        A, V = B * unit(rng.normal(size=(H, d, d))), unit(rng.normal(size=(H, d, d)))
        tokens = np.concatenate([ball(rng, m // 2, d), sphere(rng, m - m // 2, d)])
        for j, k in enumerate(degrees):
            short = compress.moments(tokens, k + 1)
            found.kept[i, j] = len(short.indices)
            queries = ball(rng, settings.queries, d)
            found.worst[i, j] = compress.largest_difference(
                tokens, short, A, V, queries, radius=1.0, steps=2, best=100
            )  # fmt: skip
    return found


def turned(x: Float[np.ndarray, "m 2p"], positions) -> Float[np.ndarray, "m 2p"]:
    """Pairs of coordinates, turned by the position times 10000^(−i/p): rotary positions."""
    angle = np.asarray(positions)[:, None] * 10000.0 ** (-np.arange(x.shape[1] // 2) / (x.shape[1] // 2))
    a, b = np.split(x, 2, axis=1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], 1)


def rotary(settings: Settings, rng) -> list[Rotary]:
    """Moments of turned keys times values; the control takes moments of the tokens as they are."""
    (d_k, d_v, B), width, m, found = ROTARY.values(), 3, settings.tokens, []
    K, V = (unit(rng.normal(size=(1, rows, width)))[0] for rows in (d_k, d_v))
    tokens = sphere(rng, m, width)
    queries = np.concatenate([ball(rng, settings.queries, d_k), np.zeros((settings.queries, d_v))], 1)  # turned
    seen = np.concatenate([turned(tokens @ K.T, range(m)), tokens @ V.T], 1)  # keys and values
    A, read = np.diag([B] * d_k + [0.0] * d_v), np.eye(d_v, d_k + d_v, d_k)
    for k in (2, 4, 6):
        short = compress.head_moments(seen[:, :d_k], seen[:, d_k:], k)
        blind = compress.moments(tokens, k + 1)
        errors = [
            compress.largest_difference(seen, each, A, read, queries, radius=1.0, steps=1, best=50)
            for each in (short, blind)
        ]
        count, limit = bounds.head_moment_count(k, d_k, d_v), bounds.moment_error(k, B, 1.0)
        found.append(Rotary(k, len(short.indices), count, len(blind.indices), *errors, limit))
    return found


def timings(settings: Settings, rng) -> list[Timed]:
    """Seconds to compress prompts of growing length."""
    found = []
    for d, k, sizes in settings.sizes:
        for size in sizes:
            start = time.perf_counter()
            short = compress.moments(ball(rng, size, d), k + 1)
            found.append(Timed(d, k, size, len(short.indices), time.perf_counter() - start))
    return found


def packing_bounds(lengths) -> Packings:
    """What Theorems 2 and 6 allow the heads of `PACKED`: S = Λ_g = 1 and Λ = √(1 + B²)."""
    head = dict(d_k=1, d_v=1, heads=1, scale=1.0, lipschitz=1.0)
    linear = {
        name: np.array([bounds.entropy_bits(2, int(m), 1.0, np.hypot(1, B), eps) for m in lengths])
        for name, (B, eps) in PACKED.items()
    }
    flat = {name: bounds.moment_bits(k=None, B=B, eps=eps, **head) for name, (B, eps) in PACKED.items()}
    return Packings(np.array(lengths), linear, flat)


def outputs(tokens: Float[np.ndarray, "N a 2"], weights: Float[np.ndarray, "N a"], x, B: float):
    """f at the queries x [n] for weighted prompts of tokens (u, v): [N, n]."""
    attention = weights[:, None] * np.exp(B * x[:, None] * tokens[:, None, :, 0])
    return (attention * tokens[:, None, :, 1]).sum(-1) / attention.sum(-1)


def separated(candidates: Float[np.ndarray, "N n"], kept: Float[np.ndarray, "K n"], separation: float):
    """`kept` with all rows of `candidates` that differ from each of them by more than `separation` in some column."""
    for block in np.array_split(candidates, max(1, len(candidates) // 500)):
        block = block[(np.abs(block[:, None] - kept).max(-1) > separation).all(1)]
        while len(block):
            kept = np.concatenate([kept, block[:1]])
            block = block[np.abs(block - kept[-1]).max(-1) > separation]
    return kept


def packed(B: float, eps: float, settings: Settings, rng) -> Float[np.ndarray, " L"]:
    """log2 of how many random prompts of each length, and the shorter ones, pairwise differ by more than 2ε."""
    x, kept, bits = np.linspace(-1, 1, 9), np.zeros((0, 9)), []
    for length in settings.lengths:
        different, drawn = min(int(length), 4), settings.candidates
        tokens = sphere(rng, drawn * different, 2) * np.sqrt(rng.uniform(0.3, 3.0, (drawn * different, 1))).clip(max=1)
        copies = 1 + np.floor(rng.dirichlet(np.full(different, 0.6), drawn) * (length - different))
        copies[:, 0] += length - copies.sum(1)
        kept = separated(outputs(tokens.reshape(-1, different, 2), copies, x, B), kept, 2 * eps)
        bits.append(np.log2(len(kept)))
    return np.array(bits)


def check_circle() -> None:
    """Every labeling of a few keys on the circle is read as a y, by the attention of this book."""
    for M, B in ((3, 0.3), (5, 1.0), (6, 4.0)):
        keys, a = np.exp(2j * np.pi * np.arange(M) / M).view(float).reshape(M, 2), bounds.circle_amplitude(M, B)
        S = np.exp(B * keys @ keys.T) / np.exp(B * keys @ keys.T).sum(1, keepdims=True)
        for y in np.array(np.meshgrid(*[[-1, 1]] * M)).reshape(M, -1).T:
            prompt = np.column_stack([keys, a * np.linalg.solve(S, y)])
            queries = np.column_stack([keys, np.zeros(M)])
            read = compress.attend(prompt, queries, np.diag([B, B, 0.0]), np.eye(1, 3, 2))
            np.testing.assert_allclose(read[:, 0], a * y, atol=1e-9)
            if np.abs(prompt[:, 2]).max() > 1 + 1e-9:
                raise AssertionError("values must lie in [-1, 1]")


def made_prompts() -> Made:
    """Bits of the prompts made for part 4, and what it allows."""

    def limit(d_k, B, eps):
        return bounds.moment_bits(k=None, d_k=d_k, d_v=1, heads=1, B=B, scale=1.0, lipschitz=1.0, eps=eps)

    def memorised(B, eps):
        return max(M for M in range(1, MOST + 1) if M == 1 or bounds.circle_amplitude(M, B) > eps * (1 + 1e-5))

    circle = [memorised(*place) for place in PLACES]
    volume = [bounds.readings_volume_bits(B, eps) for B, eps in PLACES]
    return Made(volume, [limit(1, *place) for place in PLACES], circle, [limit(2, *place) for place in PLACES])


def shape_bits(d_k: int, d_v: int, heads: int, B: float, eps: float) -> tuple[float, float, float]:
    """Bits of part 4 for a layer, and from which m on that is below Theorem 2, and below 16 bits a coordinate."""
    d, scale = max(2, heads * d_k), float(heads)
    bits = bounds.moment_bits(k=None, d_k=d_k, d_v=d_v, heads=heads, B=B, scale=scale, lipschitz=1.0, eps=eps)
    return bits, bits / bounds.entropy_bits(d, 1, 1.0, heads * np.hypot(1, B), eps), bits / (16 * d)


def run(profile: str, *, record: claims.Recorder, rng: np.random.Generator, models_dir=None) -> Result:
    """All experiments of the chapter; the forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    result = Result(settings)
    check_bessel_polynomial()
    result.remainders = remainders()
    judge_remainders(record, result)
    result.compressions = compressions(settings, rng)
    judge_compressions(record, result)
    result.rotary = rotary(settings, rng)
    judge_rotary(record, result)
    result.timed = timings(settings, rng)
    for r in result.timed:
        record.timing(f"compress-{r.d}-{r.k}-{r.tokens}", value=r.seconds, unit="s",
                      statement=f"{r.tokens} tokens of width {r.d} to {r.kept}")  # fmt: skip
    result.packings = packing_bounds(settings.lengths)
    predict_packings(record)
    result.packings.found = {name: packed(B, eps, settings, rng) for name, (B, eps) in PACKED.items()}
    judge_packings(record, result)
    check_circle()
    result.made = made_prompts()
    judge_made(record, result)
    result.numbers["vacuous_bits"] = scientific(shape_bits(*SHAPES[-1])[0], up=True)
    return result


def judge_remainders(record: claims.Recorder, result: Result) -> None:
    """Part 1 on the grid, and the constant of part 2."""
    r, proved = result.remainders, result.remainders.lower > 0
    record.theorem(
        "remainder-above", theorem="Theorem 6, part 1", statement="$\\rho_k$ is at most its Bessel bound",
        measured=r.rho, bound=r.upper, possible=1.0, parameters={"k, B": GRID},
    )  # fmt: skip
    record.theorem(
        "remainder-below", theorem="Theorem 6, part 1", relation=">=",
        statement="$\\rho_k$ is at least its lower Bessel bound, where $k + 1 \\geq B$",
        measured=r.rho[proved], bound=r.lower[proved], possible=0.0, parameters={"k, B": GRID},
    )  # fmt: skip
    record.theorem(
        "constant-attained", theorem="Theorem 6, part 2", relation="==", tolerance=1e-13,
        statement="Two prompts with equal moments differ by exactly $2 S \\rho_k$",
        measured=[attained(*place) for place in GRID], bound=[bounds.moment_error(k, B, 1.0) for k, B in GRID],
        possible=(0.0, 2.0), parameters={"k, B": GRID},
    )  # fmt: skip
    far = np.array([k + 1 >= 3 * B for k, B in GRID])
    ratio = (r.rho / r.bessel)[far]
    result.numbers |= {"bessel_low": f"{ratio.min():.3f}", "bessel_high": f"{ratio.max():.3f}"}


def judge_compressions(record: claims.Recorder, result: Result) -> None:
    """Parts 2 and 3 for random heads without positions."""
    r, settings = result.compressions, result.settings
    parameters = {"d, B, H": r.heads, "k": settings.degrees, "m": settings.tokens}
    record.theorem(
        "compression-error", theorem="Theorem 6, part 2",
        statement="Worst difference found between a prompt and its compression",
        measured=r.worst, bound=r.allowed, possible=[[2.0 * H] for *_, H in r.heads], tolerance=1e-12, searched=True,
        parameters=parameters | {"queries": settings.queries},
    )  # fmt: skip
    record.theorem(
        "compression-count", theorem="Theorem 6, part 3", statement="Tokens kept", measured=r.kept, bound=r.counts,
        possible=settings.tokens, parameters=parameters,
    )  # fmt: skip
    slack, shown = r.allowed / r.worst, (1, -1)  # the second head at the highest degree
    result.numbers |= {
        "slack_low": f"{slack.min():.1f}", "slack_high": f"{slack.max():.0f}", "queries": f"{settings.queries:,}",
        "tokens": f"{settings.tokens:,}", "shown_kept": f"{r.kept[shown]}",
        "shown_worst": scientific(r.worst[shown], up=True), "shown_allowed": scientific(r.allowed[shown], up=False),
    }  # fmt: skip


def judge_rotary(record: claims.Recorder, result: Result) -> None:
    """Parts 2 and 3 for keys that are turned by their positions."""
    rows, m = result.rotary, result.settings.tokens
    record.theorem(
        "rotary-error", theorem="Theorem 6, parts 2 and 3",
        statement="Rotary positions: worst difference, moments of turned keys times values",
        measured=[r.worst for r in rows], bound=[r.limit for r in rows], possible=2.0, tolerance=1e-12, searched=True,
        parameters=ROTARY | {"m": m},
    )  # fmt: skip
    record.theorem(
        "rotary-count", theorem="Theorem 6, part 3", statement="Rotary positions: tokens kept",
        measured=[r.kept for r in rows], bound=[r.count for r in rows], possible=m,
    )  # fmt: skip
    result.numbers["blind"] = f"{max(r.blind_worst / r.limit for r in rows):,.0f}"


def predict_packings(record: claims.Recorder) -> None:
    """The number of prompts that differ should stop growing with their length."""
    record.predict(
        "packing-stops", theorem="Theorem 6, part 4",
        statement="Bits found at the greatest length over bits found at 8 tokens: growth has stopped",
        predicted=[1.0] * len(PACKED), absolute=0.1, possible=(1.0, np.inf), parameters={"heads": list(PACKED)},
    )  # fmt: skip


def judge_packings(record: claims.Recorder, result: Result) -> None:
    """The forecast, and Theorem 2, which these prompts could violate."""
    p = result.packings
    eight = int(np.searchsorted(p.lengths, 8))
    record.measure("packing-stops", [bits[-1] / bits[eight] for bits in p.found.values()])
    record.theorem(
        "packing-linear", theorem="Theorem 2",
        statement="Bits found, prompts that differ somewhere by more than $2\\varepsilon$",
        measured=np.stack(list(p.found.values())), bound=np.stack(list(p.linear.values())),
        possible=np.log2(result.settings.candidates * np.arange(1, len(p.lengths) + 1)),
        parameters={"heads": list(PACKED), "m": p.lengths},
    )  # fmt: skip
    crossing = [p.flat[name] / p.linear[name][0] for name in PACKED]
    B, eps = PACKED[FIRST]
    result.numbers |= {
        "found_long": " and ".join(f"{bits[-1]:.1f}" for bits in p.found.values()),
        "flat_bits": " and ".join(f"{bits:.1f}" for bits in p.flat.values()),
        "crossings": " and ".join(f"{np.ceil(c):.0f}" for c in crossing), "longest": f"{p.lengths[-1]}",
        "elementary": f"{math.ceil(B / (2 * eps))}", "flat_first": f"{p.flat[FIRST]:.0f}",
    }  # fmt: skip


def judge_made(record: claims.Recorder, result: Result) -> None:
    """Part 4 under prompts made for it."""
    r, parameters = result.made, {"B, ε": PLACES}
    record.theorem(
        "volume", theorem="Theorem 6, part 4",
        statement="Prompts that differ pairwise by more than $2\\varepsilon$ at some query, from below by the volume of"
        " their outputs (bits)",
        measured=r.volume, bound=r.volume_bound, possible=[60 * np.log2(1 / (2 * eps)) for _, eps in PLACES],
        parameters=parameters,
    )  # fmt: skip
    record.theorem(
        "circle", theorem="Theorem 6, part 4",
        statement="$\\mathrm{Mem}_{2\\varepsilon}$ of keys on a circle, all of whose labelings are memorised (bits)",
        measured=r.circle, bound=r.circle_bound, possible=MOST, parameters=parameters,
    )  # fmt: skip
    result.numbers |= {
        "volume_share": f"{100 * np.divide(r.volume, r.volume_bound).max():.0f}",
        "circle_share": f"{100 * np.divide(r.circle, r.circle_bound).max():.0f}",
    }  # fmt: skip
