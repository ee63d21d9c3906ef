"""Chapter 3, dimension: certified ranks of many architectures, the cliff at D_eff, and behaviours without a margin.

`run` writes its forecasts down before anything is measured, runs the experiments and judges the claims.
"""

from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from prompt_memory import bounds, measure, tasks, tune
from prompt_memory.book import claims, figures
from prompt_memory.measure import witness
from prompt_memory.network.transformer import Transformer, TransformerConfig

LOADS = (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5)  # numbers asked for, over D_eff
NORMS = ("none", "rms", "layer")
EXACT = {"norm_eps": 0.0}  # norms without ε₀: they lose the length of a token
NOISE = 1e-2  # standard deviation of what is added to planted tables
SOLVED_BELOW, SOLVED_BEYOND = 1e-26, 1e-28  # mean squared error of a solved table, up to D_eff and beyond it
FLOOR_LOAD, FLOOR_TABLES = 1.5, 64  # where the error is compared with σ²(1 − D_eff/n)
OUT_OF_SIGHT = 32  # prompts a behaviour, below which a sample of prompts misses too many
PARTS = "Theorem 3, parts 3 and 4, and refinements"


@dataclass(frozen=True)
class Settings:
    """How much is run.

    Every `every`-th listed and `random` drawn architectures; `loads` (over D_eff) and `beside` (n − D_eff), with
    `tables`, `restarts` and `steps` of each fit; `networks`, `prompts` and `queries` of the count of behaviours.
    """

    every: int
    random: int
    loads: tuple[float, ...]
    beside: tuple[int, ...]
    tables: int
    restarts: int
    steps: int
    networks: int
    prompts: int
    queries: int


PROFILES = {
    "smoke": Settings(5, 20, (0.5, 0.75, 1.5), (1,), 2, 8, 60, 2, 2**13, 64),
    "standard": Settings(1, 200, LOADS, (-1, 0, 1), 6, 16, 200, 8, 2**16, 128),
    "full": Settings(1, 3000, LOADS, (-1, 0, 1), 32, 32, 400, 32, 2**18, 512),
}


class Case(NamedTuple):
    """An architecture, the prompt's length, and how it is tuned and read (keywords of `effective_dimension`)."""

    config: TransformerConfig
    m: int
    how: dict


class Certified(NamedTuple):
    """The count of a case beside the rank that is certified for it."""

    count: int  # D_eff from the architecture
    rank: int
    trained: int  # numbers trained
    ceiling: int  # what the table of part 3 proves
    draws: int
    smallest: float  # relative singular value on which the certificate rests
    settled: bool


@dataclass
class Cliff:
    """Planted tables of one network, fitted at several numbers of queries."""

    config: TransformerConfig
    m: int
    dimension: int
    sizes: Int[np.ndarray, " K"] = None
    errors: Float[np.ndarray, "K S"] = None  # best mean squared error of each table
    floor: float = None  # mean over tables at FLOOR_LOAD, fitted from the planted prompt

    @property
    def solved(self) -> Float[np.ndarray, " K"]:
        """The fraction of tables that are fitted to rounding error, at each number of queries."""
        limit = np.where(self.sizes > self.dimension, SOLVED_BEYOND, SOLVED_BELOW)
        return (self.errors <= limit[:, None]).mean(1)


@dataclass
class Density:
    """Behaviours of a sample of real prompts on the first n queries, for several networks of one architecture."""

    config: TransformerConfig
    m: int
    visible: int
    sizes: Int[np.ndarray, " K"]
    found: Int[np.ndarray, "N K"]
    prompts: int

    def __post_init__(self):
        self.mean = np.exp(np.log(self.found).mean(0))  # geometric, over networks
        self.shown = self.mean <= self.prompts / OUT_OF_SIGHT
        fitted = self.shown & (self.sizes >= 16)
        fitted = fitted if fitted.sum() > 1 else self.shown  # in short runs the range may be empty
        each = np.polyfit(np.log2(self.sizes[fitted]), np.log2(self.found[:, fitted]).T, 1)[0]
        self.exponent = each.mean()
        quantile = stats.t.ppf(1 - 0.025 / len(CURVES), len(each) - 1)  # simultaneous over the curves
        self.width = quantile * each.std(ddof=1) / len(each) ** 0.5


@dataclass
class Result:
    """Everything that chapter 3 measured."""

    families: dict[str, list[Certified]] = field(default_factory=dict)
    drawn: list[Certified] = field(default_factory=list)
    cliffs: dict[str, Cliff] = field(default_factory=dict)
    densities: dict[str, Density] = field(default_factory=dict)
    numbers: dict[str, object] = field(default_factory=dict)


CLIFFS = {
    "no norm, one layer": (TransformerConfig(d=4, q=1, heads=2, mlp=16), 4),
    "RMSNorm, one layer": (TransformerConfig(d=6, q=1, heads=2, mlp=24, norm="rms", **EXACT), 3),
    "LayerNorm, one layer": (TransformerConfig(d=6, q=1, heads=2, mlp=24, norm="layer", **EXACT), 3),
    "LayerNorm, two causal layers": (
        TransformerConfig(d=5, q=1, depth=2, mlp=16, norm="layer", causal=True, **EXACT), 3,
    ),
}  # fmt: skip
CURVES = {
    "RMSNorm, m = 1": (TransformerConfig(d=2, norm="rms", **EXACT), 1),
    "RMSNorm, m = 2": (TransformerConfig(d=2, norm="rms", **EXACT), 2),
    "LayerNorm, m = 1": (TransformerConfig(d=3, norm="layer", **EXACT), 1),
    "LayerNorm, m = 2": (TransformerConfig(d=3, norm="layer", **EXACT), 2),
}


def _case(tuning="soft", read="moving", own_token=True, *, m, eps=0.0, **architecture) -> Case:
    config = TransformerConfig(q=architecture["d"] + 1, norm_eps=eps, **architecture)
    return Case(config, m, {"tuning": tuning, "read": read, "own_token": own_token})


def families() -> dict[str, list[Case]]:
    """The architectures that somebody listed, by what varies in them."""
    masks = (False, True)
    return {
        "norm × depth × mask": [
            _case(d=d, m=m, depth=L, norm=norm, causal=causal, mlp=2 * d)
            for d, m, L, norm, causal in product((3, 4, 5), (1, 2, 3), (1, 2, 3), NORMS, masks)],
        "no token-wise network": [
            _case(d=4, m=2, depth=L, heads=2, norm=norm, causal=causal)
            for L, norm, causal in product((1, 2, 3), NORMS, masks)],
        "positions": [
            _case(d=4, m=m, depth=L, norm=norm, causal=causal, mlp=8, positions=positions)
            for m, L, norm, causal, positions in product((1, 3), (1, 2), NORMS, masks, ("learned", "rotary"))],
        "norms with ε₀ > 0": [
            _case(d=4, m=2, depth=L, norm=norm, causal=causal, mlp=8, eps=0.1)
            for L, norm, causal in product((1, 2), NORMS[1:], masks)],
        "narrow heads": [
            _case(d=6, m=m, depth=L, d_k=d_k, d_v=1, norm=norm, causal=True, mlp=8)
            for m, L, d_k, norm in product((1, 2, 3), (1, 2), (1, 2), NORMS)],
        "prefix tuning": [
            _case("prefix", "moving", own, d=5, m=m, depth=L, heads=2, d_k=2, d_v=2, norm=norm, causal=causal, mlp=10)
            for own, m, L, norm, causal in product((True, False), (1, 2), (1, 2), NORMS, masks)],
        "fixed read token": [
            _case(tuning, "fixed", d=5, m=m, heads=H, d_k=2, d_v=2, norm=norm, mlp=10)
            for tuning, m, H, norm in product(("soft", "prefix"), (1, 2, 4), (1, 2), NORMS)],
        "query does not see itself": [
            _case("soft", read, False, d=5, m=m, heads=H, d_k=2, d_v=2, norm=norm)
            for read, m, H, norm in product(("moving", "fixed"), (1, 2, 3), (1, 2), NORMS)],
    }  # fmt: skip


def random_case(rng: np.random.Generator) -> Case:
    """An architecture that nobody chose, from all options at once."""
    norm = rng.choice(NORMS)
    positions = rng.choice(["none", "none", "learned", "rotary"])
    architecture = dict(
        d=int(rng.integers(3, 8)), depth=int(rng.choice([1, 1, 2, 3])), heads=int(rng.integers(1, 4)), norm=str(norm),
        d_k=int(rng.choice([2, 4] if positions == "rotary" else [1, 2, 3, 4])), d_v=int(rng.integers(1, 5)),
        eps=float(rng.choice([0.0, 0.0, 0.1])), causal=bool(rng.integers(2)), positions=str(positions),
    )  # fmt: skip
    architecture["mlp"] = int(rng.choice([0, 1, 2, architecture["d"], 2 * architecture["d"]]))
    tuning, read = str(rng.choice(["soft", "soft", "prefix"])), str(rng.choice(["moving", "moving", "fixed"]))
    return _case(tuning, read, bool(rng.random() < 0.7), m=int(rng.integers(1, 4)), **architecture)


def read_directions(model: Transformer) -> Float[Tensor, "K d"]:
    """[A_h^T; B_h] of all heads of a plain one-layer network, stacked: the directions of a token that anything reads.

    A_h^T is given by its row space, the H(d_k) rows of K_h; B_h = W W_O^h V_h has q rows a head (Theorem 3, part 4).
    """
    block, heads = model.blocks[0], model.config.heads
    key, value = (weight.unflatten(1, (heads, -1)) for weight in (block.key, block.value))
    output = block.output.unflatten(0, (heads, -1))
    each = [(key[:, h].T, model.unembedding.T @ output[h].T @ value[:, h].T) for h in range(heads)]
    return torch.cat([rows for pair in each for rows in pair])


def certify(case: Case, generator: torch.Generator) -> Certified:
    """Count a case from its architecture, then draw networks until one certifies that rank, at most six times."""
    config, m, how = case
    count = bounds.effective_dimension(config, m, **how)
    found = witness.generic_rank(config, m, 2 * count + 8, enough=count, generator=generator, **how)
    soft = how["tuning"] == "soft"
    trained = m * (config.d if soft else config.depth * config.heads * (config.d_k + config.d_v))
    ceiling = bounds.dimension_ceiling(config, m, **how)
    return Certified(count, found.rank, trained, ceiling, found.draws, found.smallest, found.settled)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator) -> Result:
    """All experiments of the chapter; each forecast is written down before what it is about is measured."""
    settings, result = claims.settings(PROFILES, profile), Result()
    for name, listed in families().items():
        result.families[name] = [certify(case, generator) for case in listed[:: settings.every]]
    judge_ranks(record, result)
    draw_architectures(record, result, settings, generator)
    few_queries(record, result, generator)
    cliff(record, result, settings, generator)
    density(record, result, settings, generator)
    return result


def judge_ranks(record: claims.Recorder, result: Result) -> None:
    """Parts 3 and 4 on the listed architectures: the certified rank is the count."""
    together = [each for found in result.families.values() for each in found]
    record.theorem(
        "ranks", theorem=PARTS,
        statement="The largest certified $\\mathrm{rank}\\, D\\Phi$ is $D_{\\mathrm{eff}}$, as counted from the"
        " architecture, in every case",
        measured=[each.rank for each in together], bound=[each.count for each in together],
        possible=(0, [each.trained for each in together]), relation="==",
        parameters={name: len(found) for name, found in result.families.items()},
    )  # fmt: skip
    result.numbers |= {
        "cases": len(together), "both": sum(each.count == each.ceiling for each in together),
    }  # fmt: skip


def draw_architectures(record, result: Result, settings: Settings, generator: torch.Generator) -> None:
    """The same for architectures drawn at random, where `effective_dimension` does not refuse."""
    rng, refused = np.random.default_rng(record.seed), 0
    for case in [random_case(rng) for _ in range(settings.random)]:
        try:
            bounds.effective_dimension(case.config, case.m, **case.how)
        except ValueError:
            refused += 1
            continue
        result.drawn.append(certify(case, generator))
    settled = [each for each in result.drawn if each.settled]
    unclear = len(result.drawn) - len(settled)
    counts = {"drawn": settings.random, "refused": refused}
    record.theorem(
        "ranks-random", theorem=PARTS,
        statement="The largest certified $\\mathrm{rank}\\, D\\Phi$ is $D_{\\mathrm{eff}}$ in architectures drawn at"
        " random, where rounding leaves no doubt",
        measured=[each.rank for each in settled], bound=[each.count for each in settled],
        possible=(0, [each.trained for each in settled]), relation="==",
        parameters=counts | {"not settled": unclear},
    )  # fmt: skip
    record.theorem(
        "ranks-random-at-most", theorem="Theorem 3, part 3, and refinements",
        statement="No certified $\\mathrm{rank}\\, D\\Phi$ of an architecture drawn at random exceeds"
        " $D_{\\mathrm{eff}}$",
        measured=[each.rank for each in result.drawn], bound=[each.count for each in result.drawn],
        possible=[each.trained for each in result.drawn], parameters=counts,
    )  # fmt: skip
    result.numbers |= counts | {
        "unclear": unclear, "random_exceptions": sum(each.rank != each.count for each in settled),
        "exceptions": exceptions(result), "certified": len(certified(result)),
    }  # fmt: skip


def certified(result: Result) -> list[Certified]:
    """Every architecture, listed or drawn, about which rounding leaves no doubt."""
    every = [each for found in result.families.values() for each in found]
    return every + [each for each in result.drawn if each.settled]


def exceptions(result: Result) -> str:
    """How many of them have another rank than the count, as a word for a sentence."""
    return str(sum(each.rank != each.count for each in certified(result)) or "none")


def few_queries(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Part 2: the rank of n generic queries, forecast at its upper end for causal networks with wide heads."""

    def few(norm, depth, q):
        return TransformerConfig(d=4, q=q, depth=depth, heads=2, mlp=8, norm=norm, causal=True, **EXACT)

    listed = [(few(norm, L, q), n) for norm, L, q in product(NORMS, (1, 2), (1, 2, 5)) for n in range(1, 14)]
    D = np.array([bounds.effective_dimension(config, 3, rank_checked=True) for config, _ in listed])  # by the last n
    n = np.array([n for _, n in listed])
    upper = np.minimum(D, n * [bounds.outputs_per_query(config, config.q) for config, _ in listed])
    numbers = np.array([min(4 * 3, n * config.q) for config, n in listed])  # trained, or asked for
    record.predict(
        "ranks-few-queries", theorem="Theorem 3, part 2", predicted=upper, possible=(0, numbers), absolute=0.0,
        statement="$\\mathrm{rank}\\, D\\Phi = \\min\\{D_{\\mathrm{eff}}, n c\\}$ for $n$ generic queries, causal, soft"
        " prompts, wide heads",
    )  # fmt: skip
    found = np.array([
        witness.generic_rank(config, 3, n, enough=enough, generator=generator).rank
        for (config, n), enough in zip(listed, upper, strict=True)
    ])  # fmt: skip
    record.measure("ranks-few-queries", found)
    ends = (("at-least", ">=", np.minimum(D, n), 0), ("at-most", "<=", upper, numbers))
    for key, relation, bound, possible in ends:
        record.theorem(
            f"ranks-few-queries-{key}", theorem="Theorem 3, part 2",
            statement="$\\min\\{D_{\\mathrm{eff}}, n\\} \\le \\mathrm{rank}\\, D\\Phi \\le \\min\\{D_{\\mathrm{eff}}, n"
            " c\\}$ for $n$ generic queries: " + key.replace("-", " "),
            measured=found, bound=bound, possible=possible, relation=relation,
        )  # fmt: skip
    result.numbers |= {"few_same": int((found == upper).sum()), "few_all": len(found)}


def fit_tables(
    model: Transformer, m: int, n: int, *, beyond: bool, tables: int, restarts: int, steps: int, generator
) -> Float[np.ndarray, " S"]:  # fmt: skip
    """Best mean squared error of planted tables with n queries; `beyond` adds the planted prompt to the starts.

    Up to D_eff few starts solve most tables: a quarter of `restarts` comes first, then the rest for tables that are not
    solved, and twice `restarts` fresh ones.
    """
    d = model.config.d
    queries = tasks.random_queries(n, d, generator=generator).double()
    targets, planted = tasks.planted_targets(model, queries, m=m, tables=tables, noise=NOISE, generator=generator)
    best, enough = torch.full((tables,), torch.inf, dtype=torch.float64), SOLVED_BEYOND if beyond else SOLVED_BELOW
    first = -(-restarts // 4)
    for starts in (restarts,) if beyond else (first, restarts - first, restarts, restarts):
        left = (best > enough).nonzero()[:, 0]
        if not len(left):
            break
        start = torch.randn(len(left), starts, m, d, generator=generator, dtype=torch.float64)
        start = torch.cat([start, planted[left, None]], 1) if beyond else start
        fit = tune.levenberg_marquardt(model, queries, targets[left].repeat_interleave(start.shape[1], 0),
                                       start.flatten(0, 1), steps=steps, solved=enough)  # fmt: skip
        best[left] = torch.minimum(best[left], fit.error.unflatten(0, start.shape[:2]).amin(1))
    return best.numpy()


def cliff(record: claims.Recorder, result: Result, settings: Settings, generator: torch.Generator) -> None:
    """Fit planted tables of four networks, from a quarter of D_eff to one and a half times as many numbers."""
    for name, (config, m) in CLIFFS.items():
        case = Cliff(config, m, bounds.effective_dimension(config, m, rank_checked=True))
        seen = witness.generic_rank(config, m, 40, enough=case.dimension, generator=generator).rank
        assert seen == case.dimension  # with a single output a query, too, the rank reaches the count
        sizes = {round(x * case.dimension) for x in settings.loads} | {case.dimension + x for x in settings.beside}
        case.sizes = np.array(sorted(sizes))
        result.cliffs[name] = case
    predict_cliff(record, result, settings)
    for case in result.cliffs.values():
        model, _, _ = tasks.generic_instance(case.config, case.m, 1, generator=generator)
        case.errors = np.array([
            fit_tables(model, case.m, n, beyond=n > case.dimension, tables=settings.tables, restarts=settings.restarts,
                       steps=settings.steps, generator=generator)
            for n in case.sizes.tolist()
        ])  # fmt: skip
        case.floor = fit_tables(
            model, case.m, round(FLOOR_LOAD * case.dimension), beyond=True, tables=FLOOR_TABLES, restarts=0,
            steps=settings.steps, generator=generator,
        ).mean()  # fmt: skip
    judge_cliff(record, result, settings)


def predict_cliff(record: claims.Recorder, result: Result, settings: Settings) -> None:
    """Tables are solved well below D_eff; beyond it the error is what linear algebra leaves."""
    dimensions = {name: case.dimension for name, case in result.cliffs.items()}
    record.predict(
        "cliff-solved", theorem="Theorem 3, converse by search", predicted=1.0, possible=(0, 1), absolute=0,
        statement="Planted tables with $n c \\le 0.75\\, D_{\\mathrm{eff}}$ are solved (an optimiser must find the"
        " prompt): fraction",
        parameters={"D_eff": dimensions, "tables": settings.tables, "restarts": settings.restarts},
    )  # fmt: skip
    record.predict(
        "cliff-floor", theorem="Theorem 3, linearised",
        statement="At $n = 1.5\\, D_{\\mathrm{eff}}$ the mean squared error, fitted from the planted prompt, is"
        " $\\sigma^2 (1 - D_{\\mathrm{eff}}/n)$, averaged over tables",
        predicted=[NOISE**2 * (1 - D / round(FLOOR_LOAD * D)) for D in dimensions.values()],
        possible=(0, np.inf), relative=0.5, searched=True, parameters={"noise": NOISE},
    )  # fmt: skip


def judge_cliff(record: claims.Recorder, result: Result, settings: Settings) -> None:
    """Part 1: no planted table beyond D_eff is fitted; then the forecasts."""
    cases = list(result.cliffs.values())
    below = np.concatenate([case.errors[case.sizes <= 0.75 * case.dimension] for case in cases])
    above = np.concatenate([case.errors[case.sizes > case.dimension].ravel() for case in cases])
    solved = int((below <= SOLVED_BELOW).sum())
    record.measure("cliff-solved", solved / below.size)
    floors, D = np.array([case.floor for case in cases]), np.array([case.dimension for case in cases])
    n = np.array([round(FLOOR_LOAD * x) for x in D.tolist()])
    freedom = FLOOR_TABLES * (n - D)  # degrees of freedom of the noise that is left, of all tables together
    ends = [floors * freedom / stats.chi2.ppf(p, freedom) for p in (1 - 0.025 / len(cases), 0.025 / len(cases))]
    record.measure("cliff-floor", floors, interval=ends)
    record.theorem(
        "cliff-out-of-reach", theorem="Theorem 3, part 1",
        statement="No planted table with $n c > D_{\\mathrm{eff}}$ is fitted: $-\\log_{10}$ of the best mean squared"
        " error of all starts stays below 28",
        measured=-np.log10(np.maximum(above, 1e-300)), bound=-np.log10(SOLVED_BEYOND), possible=np.inf, tail=True,
        searched=True,
        parameters={"D_eff": {name: case.dimension for name, case in result.cliffs.items()},
                    "n": {name: case.sizes for name, case in result.cliffs.items()}, "noise": NOISE},
    )  # fmt: skip
    ratios = floors / (NOISE**2 * (1 - D / n))
    result.numbers |= {
        "cliff_below": f"{solved} of the {below.size}", "cliff_above": figures.scientific(above.min(), up=False),
        "floor_low": f"{ratios.min():.2f}", "floor_high": f"{ratios.max():.2f}",
        "wasteful": sum(case.dimension < case.config.d * case.m for case in cases), "networks": len(cases),
        "cliff_starts": settings.restarts,
    }  # fmt: skip


def density(record: claims.Recorder, result: Result, settings: Settings, generator: torch.Generator) -> None:
    """Count behaviours of random real prompts on more and more queries; fit the exponent."""
    visible = {name: bounds.effective_dimension(*network) for name, network in CURVES.items()}
    record.predict(
        "density-exponent", theorem="Theorem 3, caveat",
        statement="The number of behaviours of real prompts without a margin grows like $n^{D_{\\mathrm{eff}}}$"
        " (fitted exponent)",
        predicted=list(visible.values()), possible=(0, np.inf), absolute=0.3,
        parameters={"networks": list(CURVES), "trained numbers": [c.d * m for c, m in CURVES.values()]},
    )  # fmt: skip
    sizes = 2 ** np.arange(2, int(np.log2(settings.queries)) + 1)
    for name, (config, m) in CURVES.items():
        found = []
        for _ in range(settings.networks):
            model, _, _ = tasks.generic_instance(config, m, 1, generator=generator)
            model.blocks[0].output.mul_(4)  # let the prompt, and not the query itself, decide the answer
            prompts = torch.randn(settings.prompts, m, config.d, generator=generator, dtype=torch.float64)
            queries = tasks.random_queries(settings.queries, config.d, generator=generator).double()
            table = measure.behaviours(model, prompts.__getitem__, len(prompts), queries)
            found.append([len(measure.distinct(table[:, :n])) for n in sizes])
        result.densities[name] = Density(config, m, visible[name], sizes, np.array(found), settings.prompts)
    exponents = np.array([each.exponent for each in result.densities.values()])
    widths = np.array([each.width for each in result.densities.values()])
    record.measure("density-exponent", exponents, interval=(exponents - widths, exponents + widths))
    result.numbers["exponents"] = ", ".join(f"{x:.2f} ± {w:.2f}" for x, w in zip(exponents, widths, strict=True))
