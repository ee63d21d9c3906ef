"""Chapter 11, the capacity law: how much one prompt memorises, one parameter of the network changed at a time.

`run` records forecasts before anything is measured, counts where all prompts can be run, and searches elsewhere.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linprog

from prompt_memory import bounds, measure, tasks
from prompt_memory.book import claims, verdicts
from prompt_memory.experiments.capacity_law_settings import (
    AFFINE_PILOT,
    AFFINE_RATES,
    BASE,
    EXACT_AT_BASE,
    EXACT_RADIUS,
    FITTED,
    NUMERIC,
    ONE_BIT_PILOT,
    PILOT,
    PILOT_SAMPLES,
    PILOT_SEED,
    PILOT_STEPS,
    PROFILES,
    RATES,
    SAME,
    SWEEP,
    SYMBOL,
    Key,
    Settings,
    asked,
    prompt_bits,
    setting,
)  # fmt: skip
from prompt_memory.network import bitwise
from prompt_memory.network.transformer import TransformerConfig
from prompt_memory.tune import capacity

ANYTHING = (-math.inf, math.inf)
TOLERANCE = 0.15  # of exponents
LABELINGS = 2000  # drawn for part 1
COPIES = 4  # labelings of each network whose prompts of one bit are searched


class Fit(NamedTuple):
    """A value with its interval at 95 %; the note says why an interval is without end."""

    value: float
    low: float
    high: float
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"undecided ({self.note})"
        value, low, high = (f"{round(number, 2) + 0.0:.2f}" for number in self[:3])  # no minus zero
        return verdicts.readable(f"{value} ({low} to {high})")


@dataclass
class Exact:
    """Networks all of whose prompts are run: one number a network at every point."""

    counts: dict[Key, Int[np.ndarray, "S N"]] = field(default_factory=dict)  # behaviours on the first n queries
    room: dict[Key, int] = field(default_factory=dict)  # bits bdm of a prompt
    law: dict[str, float] = field(default_factory=dict)  # exponents of bdm
    bits: dict[Key, Float[np.ndarray, " S"]] = field(default_factory=dict)  # log2 N at the last query
    beyond: dict[Key, Float[np.ndarray, " S"]] = field(default_factory=dict)  # M − 1
    fits: dict[str, Fit] = field(default_factory=dict)
    beyond_fits: dict[str, Fit] = field(default_factory=dict)
    same: dict[Key, Float[np.ndarray, " S"]] = field(default_factory=dict)  # kinds with the same bound
    spread: Fit = None


@dataclass
class Search:
    """What is found with real prompts: one number a network at every point."""

    points: dict[Key, tuple] = field(default_factory=dict)  # (network, m, radius, bits)
    middle: tuple = None  # the base network
    sizes: dict[tuple, int] = field(default_factory=dict)
    rates: dict[tuple, float] = field(default_factory=dict)
    dimension: dict[Key, int] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    first_law: float = math.nan
    curves: dict[tuple, Int[np.ndarray, "S K E"]] = field(default_factory=dict)  # labels: restarts, stages
    found: dict[Key, Float[np.ndarray, " S"]] = field(default_factory=dict)  # bits beyond guessing
    real: Float[np.ndarray, " S"] = None  # of the base network
    fits: dict[str, Fit] = field(default_factory=dict)
    b_first: Fit = None
    b_last: Fit = None
    alike: dict[Key, Float[np.ndarray, " S"]] = field(default_factory=dict)
    spread: Fit = None
    gains: dict[Key, Fit] = field(default_factory=dict)  # all stages over all but the last
    doubled: dict[Key, Fit] = field(default_factory=dict)  # all restarts over half of them
    stage_fits: dict[str, list[Fit]] = field(default_factory=dict)
    bend: dict[str, Fit] = field(default_factory=dict)  # change of an exponent by the last stage
    affine: list[Fit] = field(default_factory=list)
    one_bit: Fit = None

    def bits_found(self, key: Key, stage: int = -1, restarts=slice(None)) -> Float[np.ndarray, " S"]:
        """Capacity found beyond guessing of each network of a point, in bits."""
        q = self.points[key][0].q
        return (self.curves[self.points[key]][:, restarts, stage].max(1) - 1 / (q - 1)) * math.log2(q)


@dataclass
class Result:
    """Everything that chapter 11 measured."""

    settings: Settings
    exact: Exact
    search: Search
    verdicts: dict[str, str] = field(default_factory=dict)  # of the forecasts
    numbers: dict[str, str] = field(default_factory=dict)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, rng: np.random.Generator) -> Result:
    """Counts and searches of chapter 11."""
    settings = claims.settings(PROFILES, profile)
    judge_affine_patterns(record, rng)
    exact = count_all(record, settings, generator)
    judge_drawn_labels(record, settings, generator)
    judge_small_logits(record, settings, generator)
    search = prepare(record, settings, generator)
    search_all(search, settings, generator)
    judge_found(record, settings, search)
    judge_effort(record, settings, search, generator)
    forecasts = {key: claim["verdict"] for key, claim in record.records.items() if claim["kind"] == "prediction"}
    return Result(settings, exact, search, forecasts)


def fitted(values, samples, before=None) -> Fit:
    """`capacity.exponent`; where a mean is not positive the exponent of the other points, without an interval.

    A capacity at or below guessing has no logarithm: nothing is decided then.
    """
    sets = [samples] if before is None else [samples, before]
    good = [i for i in range(len(values)) if all(np.mean(each[i]) > 0 for each in sets)]
    if len(good) == len(values):
        return Fit(*capacity.exponent(values, samples, before=before))
    value = 0.0
    if len(good) > 1:
        kept = [[each[i] for i in good] for each in (samples, before or samples)]
        value = capacity.exponent([values[i] for i in good], kept[0], before=kept[1] if before is not None else None)[0]
    lost = ", ".join(f"{v:g}" for i, v in enumerate(values) if i not in good)
    return Fit(value, *ANYTHING, f"no more than guessing at {lost}")


def quotient(above, below, *, paired: bool = False, level: float = 0.05) -> Fit:
    """`capacity.ratio`; from nothing to infinity where a mean is not positive."""
    if np.mean(above) > 0 and np.mean(below) > 0:
        return Fit(*capacity.ratio(above, below, paired=paired, level=level))
    value = max(0.0, float(np.mean(above) / np.mean(below))) if np.mean(below) > 0 else math.inf
    return Fit(value, 0.0, math.inf, "no more than guessing")


def widest(samples: list) -> Fit:
    """`capacity.spread`; without an upper end where a mean is not positive."""
    positive = [each for each in samples if np.mean(each) > 0]
    if len(positive) == len(samples):
        return Fit(*capacity.spread(samples)[:3])
    low = capacity.spread(positive)[1] if len(positive) > 1 else 1.0
    return Fit(math.inf, low, math.inf, "one kind holds no more than guessing")


def judge_affine_patterns(record: claims.Recorder, rng: np.random.Generator) -> None:
    """Part 2: every labeling of a few affine functions, by linear programming."""
    regions = []  # (labelings of n affine functions of D coordinates, n, D)
    for D, n in ((1, 5), (2, 5), (3, 6)):
        slopes, offsets = rng.normal(size=(n, D)), rng.normal(size=n)
        gaps = []
        for s in 2 * tasks.all_labels(n, 2).numpy() - 1:  # the largest margin, at most 1
            rows = np.column_stack([-s[:, None] * slopes, np.ones(n)])
            limits = [(None, None)] * D + [(None, 1)]
            gaps.append(linprog(np.append(np.zeros(D), -1.0), rows, s * offsets, bounds=limits).x[-1])
        regions.append((sum(gap > 1e-8 for gap in gaps), n, D))
    record.theorem(
        "affine-patterns", theorem="Theorem 11, part 2", relation="==",
        statement="Labelings of $n$ random affine functions of $D$ numbers: $\\sum_{k \\le D} \\binom nk$, by linear"
        " programming for each of $2^n$",
        measured=[row[0] for row in regions], bound=[bounds.affine_patterns(n, D) for _, n, D in regions],
        possible=(0, [2**n for _, n, _ in regions]),
    )  # fmt: skip


def enumerated(settings: Settings, parts: dict, generator: torch.Generator):
    """Fresh networks, and how many behaviours each has with all its prompts run, [networks, n]."""
    parts = dict(parts)
    m, b = parts.pop("m"), parts.pop("b")
    config = TransformerConfig(mlp=2 * parts["d"], **parts)
    networks = capacity.ensemble(config, settings.networks, settings.exact_queries, generator=generator)
    values = tasks.grid(b, EXACT_RADIUS)
    counts = [
        capacity.behaviour_counts(networks.network(i), m, values, networks.queries[i]) for i in range(settings.networks)
    ]
    return networks, np.array(counts)


def count_all(record: claims.Recorder, settings: Settings, generator: torch.Generator) -> Exact:
    """Forecasts, then all prompts of all networks, one parameter at a time."""
    exact, values = Exact(), settings.exact_values
    parts = {(name, v): settings.exact_parts(name, v) for name in settings.exact_sweep() for v in values(name)}
    exact.room = {key: prompt_bits(each) for key, each in parts.items()}
    for name in FITTED:
        law = capacity.exponent(values(name), [[exact.room[name, v]] for v in values(name)])[0]
        exact.law[name] = round(law, 9) + 0.0
        record.predict(
            f"exact-{name}", theorem="Theorem 11, part 1, as a law", predicted=exact.law[name], absolute=TOLERANCE,
            possible=ANYTHING, parameters={"values": values(name)},
            statement="$\\log_2 N_n$, all prompts run, grows with the exponent of $bdm$ in"
            f" {SYMBOL.get(name, f'${name}$')}",
        )  # fmt: skip
    record.predict(
        "exact-spread", theorem="A bound in d, m, r, b, q only, as a law", predicted=1.0, relative=0.25,
        possible=(1.0, math.inf),
        statement="Largest over smallest mean $\\log_2 N_n$ of networks that differ in $H$, $d_k$, $L$, $\\beta$ or the"
        " norm only",
    )  # fmt: skip
    exact.counts = {key: enumerated(settings, each, generator)[1] for key, each in parts.items()}
    exact.bits = {key: np.log2(counts[:, -1]) for key, counts in exact.counts.items()}
    exact.beyond = {key: capacity.expected_lengths(counts, 2) - 1.0 for key, counts in exact.counts.items()}
    for name in FITTED:
        exact.fits[name] = fitted(values(name), [exact.bits[name, v] for v in values(name)])
        exact.beyond_fits[name] = fitted(values(name), [exact.beyond[name, v] for v in values(name)])
        record.measure(f"exact-{name}", exact.fits[name].value, interval=exact.fits[name][1:3])
    exact.same = {key: bits for key, bits in exact.bits.items() if key[0] in SAME and key not in EXACT_AT_BASE}
    again = sorted(EXACT_AT_BASE & set(exact.bits), key=str)
    exact.same["base", ""] = np.concatenate([exact.bits[key] for key in again])
    exact.spread = widest(list(exact.same.values()))
    record.measure("exact-spread", exact.spread.value, interval=exact.spread[1:3])
    return exact


def judge_drawn_labels(record: claims.Recorder, settings: Settings, generator: torch.Generator) -> None:
    """Part 1 with labels that are drawn; the tent network reads every bit of its prompt."""
    drawn = []  # (bits of the prompts, their answers)
    for levels in (4, 7, 10):
        every = bitwise.tent_prompts(torch.arange(1 - 2**levels, 2**levels, 2)[:, None], levels)
        queries = bitwise.tent_queries(levels).repeat(3, 1)[: 2 * (levels + 1)]
        drawn.append((levels, bitwise.tent_network(levels)(every, queries, own_token=False).argmax(-1)))
    for name, v in (("b", 1), ("b", settings.exact_values("b")[-1]), ("m", settings.exact_values("m")[-1])):
        parts = settings.exact_parts(name, v)
        m, b = parts.pop("m"), parts.pop("b")
        config = TransformerConfig(mlp=2 * parts["d"], **parts)
        networks = capacity.ensemble(config, 3, 2 * (3 * m * b + 1), generator=generator)
        every = tasks.grid_prompts(torch.arange(2 ** (3 * m * b)), 3, m, tasks.grid(b, EXACT_RADIUS))
        drawn += [(3 * m * b, networks.network(i)(every, networks.queries[i]).argmax(-1)) for i in range(3)]
    shares = []
    for _, answers in drawn:
        labels = torch.randint(2, (LABELINGS, answers.shape[1]), generator=generator)
        shares.append(capacity.longest_of(answers, labels).double().mean().item() / answers.shape[1])
    record.sampled(
        "drawn-labels", theorem="Theorem 11, part 1", mean=shares, samples=LABELINGS,
        statement="Mean longest beginning of random labels, all $2^{bdm}$ prompts run: at most $bdm + 1$ (both as"
        " shares of $2(bdm + 1)$ labels; the tent network attains it)",
        bound=[bounds.expected_length_ceiling(bits, 2) / answers.shape[1] for bits, answers in drawn],
    )  # fmt: skip


def judge_small_logits(record: claims.Recorder, settings: Settings, generator: torch.Generator) -> None:
    """Part 3: attention made exactly flat, and with β a thousandth of the least difference of logits."""
    flat, values = [], tasks.grid(1, EXACT_RADIUS).double()
    config = TransformerConfig(d=3, heads=1, mlp=6, causal=True, positions="learned")
    for m in (1, 2, 3, 4)[: settings.bits // 3]:
        networks = capacity.ensemble(config, min(8, settings.networks), settings.exact_queries, generator=generator)
        for i in range(len(networks.queries)):
            network, queries = networks.network(i).double(), networks.queries[i].double()
            sharp = network.blocks[0].query.clone()
            network.blocks[0].query.zero_()  # softmax logits are 0: β = 0
            every = tasks.grid_prompts(torch.arange(2 ** (3 * m)), 3, m, values)
            gap = network(every, queries).diff(dim=-1).abs().min().item()
            if gap <= 1e-12:
                raise AssertionError("two logits are equal: part 3 says nothing")
            for beta in (0.0, 1e-3 * gap):
                network.blocks[0].query.copy_(beta * sharp)
                flat.append((math.log2(capacity.behaviour_counts(network, m, values, queries)[-1]), m))
    record.theorem(
        "small-logits", theorem="Theorem 11, part 3", tolerance=1e-9,
        statement="$\\log_2 N_n \\le d \\log_2 (m (2^b - 1) + 1)$ at $\\beta = 0$ and just above, $d = 3$, $b = 1$, all"
        " prompts run",
        measured=[row[0] for row in flat], bound=[3 * math.log2(m + 1) for _, m in flat],
        possible=[min(3 * m, settings.exact_queries) for _, m in flat],
    )  # fmt: skip


def prepare(record: claims.Recorder, settings: Settings, generator: torch.Generator) -> Search:
    """Points, step sizes and ranks of the search, and its forecasts."""
    search = Search({(name, v): setting(name, v) for name in SWEEP for v in settings.values(name)})
    search.middle = setting("m", BASE["m"])
    for parts in (search.middle, *search.points.values()):  # each network once
        search.sizes[parts] = settings.base if parts == search.middle else settings.samples
    rows = {setting(*key): row for key, row in PILOT.items()}
    if settings.pilots:
        for config, m, radius, bits in rows:
            fresh = torch.Generator().manual_seed(PILOT_SEED)
            networks, labels = asked(config, m, PILOT_SAMPLES, fresh)
            rows[config, m, radius, bits] = capacity.pilot(
                networks.outputs, labels, (m, config.d), RATES, steps=PILOT_STEPS, radius=radius, bits=bits,
                generator=fresh,
            )  # fmt: skip
    search.rates = {parts: RATES[int(np.argmax(rows[parts]))] for parts in search.sizes}
    for key, (config, m, *_) in search.points.items():
        search.dimension[key] = bounds.effective_dimension(config, m, rank_checked=True)
    judge_ranks(record, search, generator)
    predict_found(record, settings, search)
    return search


def judge_ranks(record: claims.Recorder, search: Search, generator: torch.Generator) -> None:
    """The visible dimension itself, which needs no search.  Ranks ignore β; two classes are the hardest."""
    distinct = {(replace(config, inverse_temperature=1.0, q=2), m) for config, m, *_ in search.points.values()}
    distinct = sorted(distinct, key=repr)

    def rank(config, m):
        instance = tasks.generic_instance(config, m, config.d * m + 8, generator=generator)
        return measure.jacobian_rank(*instance)

    record.theorem(
        "ranks", theorem="Theorem 3", relation="==",
        statement="The largest $\\mathrm{rank}\\, D\\Phi$ of four draws is $D_{\\mathrm{eff}}$ in every architecture of"
        " the sweep, two classes",
        measured=[max(rank(config, m) for _ in range(4)) for config, m in distinct],
        bound=[bounds.effective_dimension(config, m, rank_checked=True) for config, m in distinct],
        possible=(0, [config.d * m for config, m in distinct]),
    )  # fmt: skip


def predict_found(record: claims.Recorder, settings: Settings, search: Search) -> None:
    """The exponents of D_eff and of the counting bound, as forecasts of what a search finds."""
    for name in NUMERIC:
        values = settings.values(name)
        law = capacity.exponent(values, [[search.dimension[name, v]] for v in values])[0]
        search.predicted[name] = round(law, 6) + 0.0
        if name == "b":
            continue
        record.predict(
            f"found-{name}", theorem="Theorem 3, as a law", predicted=search.predicted[name], absolute=TOLERANCE,
            possible=ANYTHING, searched=True, parameters={"values": values},
            statement="Capacity found, in bits, grows with the exponent of $D_{\\mathrm{eff}}$ in"
            f" {SYMBOL.get(name, f'${name}$')}",
        )  # fmt: skip
    first = settings.values("b")[:2]
    search.first_law = capacity.exponent(first, [[bounds.expected_length_ceiling(32 * v, 2) - 1] for v in first])[0]
    record.predict(
        "found-b-first", theorem="Theorem 11, part 1, as a law", predicted=search.first_law, absolute=TOLERANCE,
        possible=ANYTHING, searched=True,
        statement="Few bits a coordinate: capacity found grows with the exponent of the counting bound from the first"
        " to the second value of $b$",
    )  # fmt: skip
    record.predict(
        "found-b-last", theorem="Precision and search", predicted=1.0, relative=0.15, possible=(0.0, math.inf),
        searched=True,
        statement="Many bits a coordinate: real numbers memorise as much as those of the largest $b$",
    )  # fmt: skip
    record.predict(
        "found-spread", theorem="A bound in d, m, r, ε, V only, as a law", predicted=1.0, relative=0.25,
        possible=(1.0, math.inf), searched=True,
        statement="Largest over smallest capacity found of networks that differ in $H$, $d_k$, $L$, $\\beta$ or the"
        " norm only",
    )  # fmt: skip


def search_all(search: Search, settings: Settings, generator: torch.Generator) -> None:
    """The longest labels found for every network; settings that differ in β and radius only are one batch."""

    def kind(parts):
        return replace(parts[0], inverse_temperature=1.0), parts[1], parts[3]

    for group in dict.fromkeys(map(kind, search.sizes)):
        members = [parts for parts in search.sizes if kind(parts) == group]
        fresh = [asked(parts[0], parts[1], search.sizes[parts], generator) for parts in members]
        together = capacity.joined([networks for networks, _ in fresh])
        labels = torch.cat([labels for _, labels in fresh])
        each = torch.tensor([search.sizes[parts] for parts in members])
        result = capacity.longest_labels(
            together.outputs, labels, (group[1], group[0].d), bits=group[2], restarts=settings.restarts,
            steps=settings.steps, generator=generator,
            radius=torch.tensor([parts[2] for parts in members]).repeat_interleave(each),
            learning_rate=torch.tensor([search.rates[parts] for parts in members]).repeat_interleave(each),
        )  # fmt: skip
        if result.lengths.max() >= labels.shape[1]:
            raise AssertionError("no labels were left to ask for")
        curves = (part.numpy() for part in result.curve.split(each.tolist()))
        search.curves |= dict(zip(members, curves, strict=True))
        if search.middle in members:
            at = members.index(search.middle)
            check_alone(fresh[at][0], labels, result, start=int(each[:at].sum()))


def check_alone(networks, labels, result, start: int) -> None:
    """AssertionError unless each network alone, out of the batch, gives the labels that its prompt memorises."""
    for i in range(len(networks.queries)):
        answers = networks.network(i)(result.prompts[start + i, :1], networks.queries[i])[0].argmax(-1)
        if not (answers == labels[start + i])[: result.lengths[start + i, 0]].all():
            raise AssertionError(f"network {i} alone does not memorise what the batch found")


def judge_found(record: claims.Recorder, settings: Settings, search: Search) -> None:
    """Exponents of what was found, precision, and networks that every bound treats alike."""
    search.found = found = {key: search.bits_found(key) for key in search.points}
    search.real = search.curves[search.middle][..., -1].max(1) - 1.0
    for name in (*NUMERIC, "m, β = 1/2"):
        search.fits[name] = fitted(settings.values(name), [found[name, v] for v in settings.values(name)])
    for name in NUMERIC:
        if name != "b":
            record.measure(f"found-{name}", search.fits[name].value, interval=search.fits[name][1:3])
    first, last = settings.values("b")[:2], settings.values("b")[-1]
    search.b_first = fitted(first, [found["b", v] for v in first])
    search.b_last = quotient(search.real, found["b", last])
    record.measure("found-b-first", search.b_first.value, interval=search.b_first[1:3])
    record.measure("found-b-last", search.b_last.value, interval=search.b_last[1:3])
    kinds = {  # each network once
        parts: key for key, parts in reversed(search.points.items()) if key[0] in SAME and parts != search.middle
    }
    search.alike = {key: found[key] for key in reversed(kinds.values())} | {("base", ""): search.real}
    search.spread = widest(list(search.alike.values()))
    record.measure("found-spread", search.spread.value, interval=search.spread[1:3])


def affine_search(settings: Settings, D: int, generator: torch.Generator) -> Float[np.ndarray, " S"]:
    """Lengths that the tuner finds on random affine problems in D coordinates."""
    slopes = torch.randn(settings.samples, 4 * D + 40, D, generator=generator)
    offsets = torch.randn(slopes.shape[:2], generator=generator)
    wanted = torch.randint(2, slopes.shape[:2], generator=generator)

    def outputs(row, prompts, n):
        gap = offsets[row, :n] + (slopes[row, :n] @ prompts.flatten(1)[..., None])[..., 0]
        return torch.stack([-gap / 2, gap / 2], -1)

    found = capacity.longest_labels(
        outputs, wanted, (1, D), radius=100.0, restarts=settings.restarts, steps=settings.steps, generator=generator,
        learning_rate=AFFINE_RATES[int(np.argmax(AFFINE_PILOT[D]))],
    )  # fmt: skip
    return found.lengths.amax(1).numpy()


def judge_effort(record: claims.Recorder, settings: Settings, search: Search, generator: torch.Generator) -> None:
    """The search where the truth is known, and what more effort changes."""
    record.predict(
        "affine", theorem="Search against Theorem 11, part 2", predicted=1.0, relative=0.25, possible=(0.0, math.inf),
        searched=True, parameters={"D": settings.affine},
        statement="On random affine problems the tuner finds $2D + 1$ labels (found over exact)",
    )  # fmt: skip
    level = 0.05 / len(settings.affine)
    for D in settings.affine:
        lengths = affine_search(settings, D, generator)
        search.affine.append(quotient(lengths, [bounds.affine_length(D)], level=level))
    values, low, high = np.transpose([each[:3] for each in search.affine])
    record.measure("affine", values, interval=[low, high])
    search.one_bit = one_bit_search(settings, generator)
    half = settings.restarts // 2
    for key in search.points:
        every = search.bits_found(key)
        search.gains[key] = quotient(every, search.bits_found(key, stage=-2), paired=True)
        halves = [search.bits_found(key, restarts=part) for part in (slice(half), slice(half, None))]
        search.doubled[key] = quotient(every, sum(halves) / 2, paired=True)
    for name in NUMERIC:
        values = settings.values(name)
        stages = [[search.bits_found((name, v), stage=s) for v in values] for s in range(len(settings.steps))]
        search.stage_fits[name] = [fitted(values, stage) for stage in stages]
        search.bend[name] = fitted(values, stages[-1], before=stages[-2])


def one_bit_search(settings: Settings, generator: torch.Generator) -> Fit:
    """What the tuner finds with prompts of one bit a coordinate, over the exact mean of the same networks."""
    base = settings.exact_parts()
    networks, counts = enumerated(settings, base, generator)
    weights = {name: w.repeat_interleave(COPIES, 0) for name, w in networks.weights.items()}
    many = capacity.Ensemble(networks.model, weights, networks.queries.repeat_interleave(COPIES, 0))
    labels = torch.randint(2, many.queries.shape[:2], generator=generator)
    tuned = capacity.longest_labels(
        many.outputs, labels, (base["m"], base["d"]), radius=EXACT_RADIUS, bits=base["b"], restarts=settings.restarts,
        steps=settings.steps, generator=generator, learning_rate=RATES[int(np.argmax(ONE_BIT_PILOT))],
    )  # fmt: skip
    lengths = tuned.lengths.amax(1).double().numpy().reshape(-1, COPIES).mean(1)  # one number a network
    return quotient(lengths, capacity.expected_lengths(counts, 2), paired=True)
