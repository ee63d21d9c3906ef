"""Chapter 4, accessible strings: forecasts and claims about what prompts can make a language model write.

`run` writes its forecasts down before anything is measured, runs the experiments and judges the claims. How things are
measured is in `accessible_strings_protocol`, figures and tables are in `accessible_strings_figures`.
"""

import copy
import math
import time

import numpy as np
import torch

from prompt_memory import bounds, intervals, measure, pretrain, tune
from prompt_memory.book import claims, figures
from prompt_memory.experiments import accessible_strings_protocol as protocol
from prompt_memory.experiments.accessible_strings_protocol import (
    COORDINATES,
    EXCESS,
    PROFILES,
    RANDOM,
    SOURCE,
    TOKENS,
    WRITTEN,
    Models,
    Ratio,
    Result,
)  # fmt: skip

MARGINS = (0.001, 0.3, 1.0)  # 2ε, in the logits


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """All experiments of the chapter; each forecast is written down before what it is about is measured."""
    settings, models = claims.settings(PROFILES, profile), protocol.load(profile, models_dir)
    config = models.known.config
    result = Result(profile, settings, config.q)
    rng = np.random.default_rng(record.seed)
    text = models.lexicon.sample(200, config.context, generator=generator)
    loss = pretrain.string_losses(models.known, text).mean() / math.log(2)
    result.numbers |= {"known_loss": f"{loss:.2f}", "known_entropy": f"{models.lexicon.entropy_rate:.2f}"}

    predict_enumerated(record, result)
    result.enumerated, single = protocol.enumerate_prompts(models, settings, generator=generator)
    judge_enumerated(record, result)
    judge_hindsight(result, single)
    judge_margin(record, protocol.with_margin(generator))

    directions = torch.linalg.qr(torch.randn(config.d, COORDINATES, generator=generator))[0].T
    predict_search(record, result)
    basis = 10 * math.sqrt(config.d / COORDINATES) * directions
    result.searched = protocol.search_one_bit(models, settings, basis, generator=generator)
    judge_counted(record, result)
    judge_surprise(record, result)
    judge_lengths(record, result, rng)

    channel = predict_crammed(record, result, models, generator)
    started = time.perf_counter()
    result.crammed = protocol.cram_strings(models, settings, seed=record.seed, generator=generator)
    record.timing("cramming", statement="All strings of experiment 3 crammed", value=time.perf_counter() - started,
                  unit="s")  # fmt: skip
    judge_crammed(record, result, channel, rng)
    judge_survival(result, models.wide.config.q)
    result.ratios = one_set_each(result, models, record.seed, generator)
    return result


# --- experiment 1: every prompt ------------------------------------------------------------------------------------


def predict_enumerated(record: claims.Recorder, result: Result) -> None:
    """Two forecasts that the theorem does not make."""
    record.predict(
        "exhaustive-gap", theorem="Target: exhaustive", predicted=1.15, possible=(0, math.inf), absolute=0.15,
        statement="Length at which half of all strings are accessible: theorem over exact count is between 1 and 1.3,"
        " largest prompt set",
    )  # fmt: skip
    record.predict(
        "exhaustive-slope", theorem="Heuristic: every prompt its own string", possible=(0, math.inf), relative=0.25,
        predicted=1 / math.log2(result.vocabulary),
        statement="That length grows by $1/\\log_2 V$ tokens for each bit of the prompt set, as the bound does",
    )  # fmt: skip


def judge_enumerated(record: claims.Recorder, result: Result) -> None:
    """Both forecasts, and what the sentences of experiment 1 say."""
    bits = result.settings.bits
    one = [result.enumerated[1, b] for b in bits]  # prompts of one vector
    largest, slope = one[-1], np.polyfit(bits, [e.half for e in one], 1)[0]
    record.measure("exhaustive-gap", largest.ratio)
    record.measure("exhaustive-slope", slope)
    surprise = max(
        e.surprising_mass(b + s) * 2.0**s for (_, b), e in result.enumerated.items() for s in EXCESS
    )  # fmt: skip
    result.numbers |= {
        "exhaustive_bits": f"{largest.bits}", "exhaustive_prompts": f"{2**largest.bits:,}",
        "exhaustive_gap": f"{largest.ratio:.2f}", "exhaustive_half": f"{largest.half:.2f}",
        "exhaustive_bound": f"{largest.bound:.2f}", "surprise_closest": f"{surprise:.2f}",
    }  # fmt: skip
    result.numbers |= {
        "exhaustive_growth": growth([e.ratio for e in one], bits, slope, 1 / math.log2(result.vocabulary)),
        "exhaustive_duplicates": duplicates(largest.bits - math.log2(largest.counts[-1])),
    }


def growth(ratios, bits, slope: float, of_bound: float) -> str:
    """How the ratio of bound to count moves with the bits of the prompt set."""
    way = "grows" if ratios[-1] > ratios[0] else "does not grow"
    return (
        f"From {bits[0]} to {bits[-1]} bits the ratio {way} ({ratios[0]:.2f} to {ratios[-1]:.2f}): each bit adds"
        f" {slope:.2f} tokens, where the bound has {of_bound:.2f}."
    )


def duplicates(missing: float) -> str:
    """Are prompts wasted on strings that other prompts write, too? `missing` bits of them are."""
    much = "Few prompts are" if missing < 1 else "Many prompts are"
    return f"{much} wasted on duplicates: of {TOKENS} tokens there are {missing:.2f} bits fewer strings than prompts."


def judge_hindsight(result: Result, single: np.ndarray) -> None:
    """The set that keeps one prompt for each beginning of a few letters: how close can a set come to the bound?"""
    V, letters = result.vocabulary, result.settings.letters
    _, keep = measure.first_occurrences(single[:, :letters])
    n = np.arange(1, TOKENS + 1)
    code = [len(measure.distinct(single[keep, :k])) for k in n]
    gap = bounds.critical_length(math.log2(len(keep)), V) / measure.half_crossing(np.log2(code) - n * math.log2(V))
    assert max(code) <= len(keep)
    assert gap >= 1 - 1e-9
    result.numbers |= {"code_gap": f"{gap:.2f}", "code_prompts": f"{len(keep):,}", "code_letters": f"{letters}"}


def judge_margin(record: claims.Recorder, found: list[protocol.Clear]) -> None:
    """Part 2 on tiny models."""
    record.theorem(
        "strings-margin", theorem="Theorem 4, part 2",
        statement=f"Strings of up to {TOKENS} tokens written with margin $2\\varepsilon$ from a grid of prompts: at"
        " most $dm \\log_2(1 + r\\Lambda/\\varepsilon)$ bits",
        measured=[c.bits for c in found], bound=[c.bound for c in found], possible=[c.possible for c in found],
        parameters={"models": list(dict.fromkeys(c.model for c in found)), "grid": 101},
    )  # fmt: skip


# --- experiment 2: one bit a coordinate ----------------------------------------------------------------------------


def predict_search(record: claims.Recorder, result: Result) -> None:
    """How far the search may stay behind the theorem."""
    record.predict(
        "subspace-gap", theorem="Target: subspace", predicted=[1.5] * len(result.settings.lengths),
        possible=(0, math.inf), absolute=1.5, searched=True,
        statement="Length at which half of random strings are unlocked: theorem over found is at most 3 at every $m$,"
        " one-bit prompts in a subspace",
        parameters={"k": COORDINATES, "m": result.settings.lengths},
    )  # fmt: skip


def judge_counted(record: claims.Recorder, result: Result) -> None:
    """Part 1 for random strings."""
    V, found = result.vocabulary, list(result.searched[RANDOM].values())
    fractions = [bounds.accessible_fraction(COORDINATES * f.m, n, V) for f in found for n in range(1, f.longest + 1)]
    samples = np.concatenate([np.full(f.longest, len(f.lengths)) for f in found])
    hits = np.concatenate([f.reached for f in found])
    record.sampled(
        "strings-subspace", theorem="Theorem 4, part 1",
        statement="At most $2^{km} V^{-n}$ of random strings are unlocked by one-bit prompts in a $k$-dimensional"
        " subspace",
        mean=hits / samples, successes=hits, samples=samples, bound=fractions, searched=True,
        parameters={"m": result.settings.lengths, "k": COORDINATES},
    )  # fmt: skip
    single, pair = found[0], bounds.accessible_fraction(COORDINATES, 2, V)
    reported = intervals.detectable_frequency(pair, len(single.lengths), claims.LEVEL / claims.FAMILY)
    unlocked = single.reached[1] / len(single.lengths)
    result.numbers["subspace_power"] = (
        f"where the bound is {100 * pair:.0f} %, from {100 * reported:.0f} % on, and {100 * unlocked:.0f} % are"
        " unlocked"
    )


def judge_surprise(record: claims.Recorder, result: Result) -> None:
    """Part 3: strings unlocked although their surprise exceeds the bits by s or more."""
    for kind, key, source in (
        (SOURCE, "surprise-subspace", "of the known source"),
        (WRITTEN, "surprise-written", "that the model has written"),
    ):
        surprising, samples = [], []
        for m, found in result.searched[kind].items():
            S = len(found.lengths)
            at_end = -found.log2[np.arange(S), np.maximum(0, found.lengths - 1)]
            surprise = np.where(found.lengths > 0, at_end, 0.0)
            surprising.append([(surprise > COORDINATES * m + s).sum() for s in EXCESS])
            samples.append([S])
        record.sampled(
            key, theorem="Theorem 4, part 3",
            statement=f"A string {source} is unlocked to a surprise above $B + s$ bits with probability at most"
            " $2^{-s}$ (longest beginnings, union over lengths)",
            mean=np.array(surprising) / samples, successes=surprising, samples=samples, bound=np.exp2(-EXCESS),
            parameters={"m": list(result.searched[kind]), "s": EXCESS}, searched=True,
        )  # fmt: skip


def judge_lengths(record: claims.Recorder, result: Result, rng: np.random.Generator) -> None:
    """The theorem's length over the one found, with simultaneous intervals over the strings."""
    found = list(result.searched[RANDOM].values())
    level = 0.05 / len(found)  # all intervals at once
    low, high = np.transpose([
        intervals.bootstrap(f.lengths, lambda sample, end=f.longest: measure.half_length(sample, end), rng, level)
        for f in found
    ])  # fmt: skip
    critical = np.array([bounds.critical_length(COORDINATES * f.m, result.vocabulary) for f in found])
    half = [f.half for f in found]
    gap = critical / half
    record.measure("subspace-gap", gap, interval=(critical / high, critical / low))
    slope = np.polyfit(result.settings.lengths, half, 1)[0]
    result.numbers |= {
        "subspace_low": f"{min(gap):.2f}", "subspace_gap": f"{max(gap):.2f}",
        "subspace_slopes": f"{COORDINATES / math.log2(result.vocabulary) / slope:.1f}",
    }  # fmt: skip


# --- experiment 3: prompts of floats -------------------------------------------------------------------------------


def predict_crammed(record: claims.Recorder, result: Result, models: Models, generator) -> list[float]:
    """Straightness of n50(m), and its height from the linear channel; returns the channel's lengths."""
    lengths, kinds = result.settings.lengths, protocol.kinds_of(models)
    if len(lengths) > 2:  # two points always lie on a line
        record.predict(
            "straight", theorem="Target: linear law", predicted=[1.0] * len(kinds), possible=(-math.inf, math.inf),
            absolute=0.25, searched=True, parameters={"kinds": list(kinds), "m": lengths},
            statement="n50(m) is a straight line: over the larger m it rises as fast as over the smaller ones, for each"
            " kind of string, to a quarter",
        )  # fmt: skip
    channel = [protocol.mimo_length(models.wide, m, generator=generator) for m in lengths]
    record.predict(
        "mimo", theorem="Heuristic: prompt as a MIMO channel", predicted=channel, possible=(0, math.inf), relative=0.5,
        statement="n50(m) of random strings is what the linear channel carries, to a half", parameters={"m": lengths},
        searched=True,
    )  # fmt: skip
    return channel


def judge_crammed(record: claims.Recorder, result: Result, channel: list[float], rng: np.random.Generator) -> None:
    """Lines through n50(m), how far they bend, and the linear channel."""
    ms = np.array(result.settings.lengths, float)
    middle = len(ms) // 2

    def rise(y):
        return np.polyfit(ms[middle:], y[middle:], 1)[0] / np.polyfit(ms[: middle + 1], y[: middle + 1], 1)[0]

    kinds = len(result.crammed)
    for kind, by_m in result.crammed.items():
        for found in by_m.values():
            found.resample(rng)
        y, drawn = np.array([f.n50 for f in by_m.values()]), np.array([f.resampled for f in by_m.values()])
        result.lines[kind] = np.polyfit(ms, y, 1)
        if len(ms) > 2:
            bends = np.quantile([rise(one) for one in drawn.T], [0.025 / kinds, 1 - 0.025 / kinds])
            result.bend[kind] = rise(y), bends
    if result.bend:
        record.measure(
            "straight", [bend for bend, _ in result.bend.values()],
            interval=np.transpose([ends for _, ends in result.bend.values()]),
        )  # fmt: skip
    random, at = list(result.crammed[RANDOM].values()), 0.025 / len(ms)
    ends = np.transpose([np.quantile(f.resampled, [at, 1 - at]) for f in random])
    record.measure("mimo", [f.n50 for f in random], interval=ends)
    factors = [c / max(0.5, f.n50) for c, f in zip(channel, random, strict=True)]
    result.numbers |= {"mimo_factor": f"{min(factors):.1f} to {max(factors):.1f}"}
    result.numbers["curvature"] = curvature(result.bend)


def curvature(bend: dict[str, tuple[float, np.ndarray]]) -> str:
    """What the ratios of rises say about straightness; no judgement where there are only two lengths."""
    if not bend:
        return "Two prompt lengths say nothing about straightness."
    slower = [kind for kind, (_, (_, high)) in bend.items() if high < 1]
    faster = [kind for kind, (_, (low, _)) in bend.items() if low > 1]
    if not slower and not faster:
        return "For no kind of string do the intervals exclude a straight line."
    said = []
    if slower:
        said.append(f"the last prompt vectors add fewer tokens than the first for {', '.join(slower)}")
    if faster:
        said.append(f"they add more for {', '.join(faster)}")
    return f"Beyond the spread of the strings, {'; '.join(said)}."


def judge_survival(result: Result, V: int) -> None:
    """Of the random strings crammed at the next whole length after n50, the fraction that survives a further token."""
    survived = trials = 0
    for found in result.crammed[RANDOM].values():
        start = math.ceil(found.n50)
        beyond = found.lengths[found.lengths >= start]
        ended = (beyond == found.strings.shape[1]).sum()
        survived += int((beyond - start).sum())
        trials += int((beyond - start).sum() + len(beyond) - ended)
    result.numbers["survival"] = survival(survived, trials, V)


def survival(survived: int, trials: int, V: int) -> str:
    """What becomes of the fraction of strings beyond n50, against 1/V, the least that it can keep."""
    if not trials:
        return "No random string was crammed beyond n50, so nothing is known about the decay there."
    low, high = map(float, intervals.clopper_pearson(survived, trials, 0.05))
    if low > 1 / V:
        meaning = "more is left here: the number of strings unlocked still grows with n, these prompts are not used up"
    else:
        meaning = "whether more is left here, so that the number of strings unlocked still grows with n, cannot be told"
    return (
        f"Of the random strings crammed that far, a fraction {survived / trials:.2f} survives each further token (95 %"
        f" interval {low:.2f} to {high:.2f}, as if strings were alike). At least 1/V = {1 / V:.3f} of an accessible"
        f" fraction is left after a further token; {meaning}."
    )


# --- the gap -------------------------------------------------------------------------------------------------------


def one_set_each(result: Result, models: Models, seed: int, generator: torch.Generator) -> list[Ratio]:
    """Bound over measurement for different sets of allowed prompts of two vectors, each ratio for its own set."""
    m, model, settings = 2, models.wide, result.settings
    d, V = model.config.d, model.config.q
    known = result.crammed[RANDOM][m]
    wanted, found = known.strings, {MARGINS[0]: (known.prompts, known.lengths)}
    for margin in MARGINS[1:]:
        fit = tune.longest_prefix(model, wanted, m, restarts=settings.starts, steps=settings.steps, seed=seed,
                                  margin=margin)  # fmt: skip
        found[margin] = fit.prompts, fit.lengths.numpy()
    held = {margin: measure.half_length(lengths, wanted.shape[1]) for margin, (_, lengths) in found.items()}
    radius = {margin: float(prompts.norm(dim=-1).max()) for margin, (prompts, _) in found.items()}
    steepest = slopes_found(result, model, known, min(radius.values()), generator)
    bits = {}
    for margin in MARGINS:
        proved = bounds.network_lipschitz(
            model.config, measure.numpy_weights(model), radius=radius[margin], differences=True, read_prompt=True,
            query_radius=float(model.embedding.norm(dim=-1).max()),
        )  # fmt: skip
        bits[margin] = [bounds.entropy_bits(d, m, radius[margin], slope, margin / 2) for slope in (proved, steepest)]
    first, every = MARGINS[0], 32 * d * m
    published = m * bounds.accessible_slope(d, V, radius[first], radius[first] * 2.0**-11)
    rows = [
        Ratio("floats in a ball", None, "published formula, ε = r/2048", None, published, held[first]),
        Ratio("32-bit floats", None, "Theorem 1", every, bounds.critical_length(every, V), held[first]),
    ]
    for margin in MARGINS:
        for what, B in zip(("Theorem 2, Λ proved", "Theorem 2 with any Λ: at least"), bits[margin], strict=True):
            rows.append(Ratio("floats in a ball", margin, what, B, bounds.critical_length(B, V), held[margin]))
    one_bit, largest = COORDINATES * m, result.enumerated[m, settings.pairs[-1]]
    critical, half = bounds.critical_length(one_bit, result.vocabulary), result.searched[RANDOM][m].half
    rows += [
        Ratio(f"signs in {COORDINATES} dimensions", None, "Theorem 1", one_bit, critical, half),
        Ratio(f"{2**largest.bits:,} random prompts", None, "Theorem 1", largest.bits, largest.bound, largest.half),
    ]
    result.numbers |= {
        "follow_ratio": f"{published / held[first]:.0f}", "proved_bits": f"{math.log2(proved):.0f}",
        "worse": "worse" if bits[first][0] > every else "better",
        "floor_worse": "above" if bits[first][1] > every else "below",
    }  # fmt: skip
    return rows


def slopes_found(result: Result, model, known: protocol.Crammed, radius: float, generator) -> float:
    """The steepest slope of half differences of logits near minus the positions, where norms are steepest: no smaller
    Lipschitz constant holds on a ball of that radius."""
    exact = copy.deepcopy(model).double()
    wanted, m = known.strings, known.prompts.shape[1]
    letters, d = exact.embedding[wanted[:8, :1]], model.config.d
    assert exact.position[:m].norm(dim=-1).max() < radius  # these prompts lie in the ball
    near = torch.randn(len(letters), m, d, generator=generator).double() / d**0.5
    slopes = [
        float(measure.local_lipschitz(exact, distance * near - exact.position[:m], letters, differences=True).max())
        for distance in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    seen = exact.embedding[wanted[:, :1]]
    at_found = float(measure.local_lipschitz(exact, known.prompts.double(), seen, differences=True).max())
    result.numbers |= {"steep_found": f"{at_found:.0f}", "steep_origin": figures.scientific(max(slopes), up=False)}
    return max(slopes)
