"""Chapter 8, degradation: trained models lose their facts as contexts grow, where their weights foretell it.

`run` writes the forecasts down, from weights and held-out queries only, and then runs the models; the experiments on
networks made for the theorem's parts 3 to 5 are those of `degradation_limits`.  Shapes: `L` lengths, `M` margins.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from prompt_memory import bounds, intervals, pretrain
from prompt_memory.book import claims
from prompt_memory.experiments import degradation_limits
from prompt_memory.measure import fact_moments, fact_recall
from prompt_memory.network import recall
from prompt_memory.tasks.facts import keys_of, random_facts

MARGINS = (0.0, 1.0, 2.0, 4.0)  # 2ε in nats: the right value is e^{2ε} times as likely as any other


@dataclass(frozen=True)
class Settings:
    """How much is run: trained families, contexts of up to 2^longest facts, contexts of a length, questions in each;
    held-out queries and normal draws of a forecast; bootstrap resamples; contexts with logits times ln N."""

    families: tuple[str, ...]
    longest: int
    contexts: int
    questions: int
    held_out: int
    draws: int
    resamples: int
    scaled: int
    limits: degradation_limits.Settings


PROFILES = {
    "smoke": Settings(
        families=("recall-small",), longest=11, contexts=8, questions=16, held_out=64, draws=32, resamples=500,
        scaled=4, limits=degradation_limits.PROFILES["smoke"],
    ),
    "standard": Settings(
        families=("recall", "recall-long"), longest=15, contexts=32, questions=32, held_out=256, draws=128,
        resamples=4000, scaled=12, limits=degradation_limits.PROFILES["standard"],
    ),
    "full": Settings(
        families=("recall", "recall-long"), longest=15, contexts=400, questions=32, held_out=1024, draws=256,
        resamples=4000, scaled=100, limits=degradation_limits.PROFILES["full"],
    ),
}  # fmt: skip


@dataclass
class Model:
    """One trained model: what its weights foretell (up to lengths that are not run), and what it recalls."""

    family: str
    row: int
    size: recall.Member
    first: bool  # of the first family, whose calibrated read-out is forecast too
    trained: float  # recall in contexts as long as in training
    reader: recall.Reader = None
    predicted: Float[np.ndarray, "K M"] = None
    calibrated: Float[np.ndarray, " K"] = None  # predicted, with the mean vote subtracted
    gap: fact_moments.Gaps = None
    ceiling: Float[np.ndarray, "L 3"] = None  # part 2 for random facts, at the margins above zero
    expected: float = math.nan  # where recall falls to a half, and the same calibrated
    expected_unbiased: float = math.nan
    law: float = math.nan  # the same from the attention alone
    curves: Float[np.ndarray, "L M"] = None
    unbiased: Float[np.ndarray, " L"] = None  # measured, with the mean vote subtracted
    draws: Float[np.ndarray, "B L M"] = None  # of the bootstrap over contexts
    unbiased_draws: Float[np.ndarray, "B L"] = None
    critical: float = math.nan
    critical_unbiased: float = math.nan
    worst: float = math.nan  # part 2 at its worst case, margin 1
    with_log: Float[np.ndarray, "L M"] = None  # recall with logits times ln N


class Judged(NamedTuple):
    """The models whose forecasts, with their tolerances, lie within the contexts that are run."""

    plain: list[Model]
    calibrated: list[Model]
    law: list[Model]


@dataclass
class Result:
    """Everything that chapter 8 measured."""

    lengths: list[int]
    models: list[Model]
    measured: dict[str, list[fact_recall.Measured]] = field(default_factory=dict)  # by family, one a length
    judged: Judged = None
    interval: tuple = None  # of the critical lengths of `judged.plain`, for all together
    limits: degradation_limits.Result = None
    numbers: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> list[Model]:
        return [model for model in self.models if model.first]

    @property
    def shown(self) -> Model:
        """The model of the figures: the one of the first family with most recall."""
        return max(self.first, key=lambda model: model.curves[:, 0].sum() * model.size.q)

    def bits(self, recalled, q: int) -> Float[np.ndarray, "*B L"]:
        """Retained bits at each length."""
        return fact_recall.retained(self.lengths, recalled, q)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """All experiments of the chapter; each forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    families = {name: pretrain.load(name, models_dir).transformer for name in settings.families}
    lengths = [2**k for k in range(5, settings.longest + 1)]
    result = Result(lengths, [
        Model(name, row, member, name == settings.families[0], trained_recall(family, row, generator))
        for name, family in families.items() for row, member in enumerate(family.members)
    ])  # fmt: skip
    check_reader(families[settings.families[0]], generator)
    for model in result.models:
        foretell(model, families[model.family], lengths, settings, generator)
    predict(record, result)
    run_models(families, result, settings, record.seed, generator)
    judge_forecasts(record, result)
    judge_margins(record, result, settings)
    for model in result.models:  # the worst case of part 2
        if model.size.copy == 0:
            keys = keys_of(random_facts(generator, 256, families[model.family].width)[0], model.size.head)
            spread = float(recall.vote_spread(model.reader, keys.double()).max())
            model.worst = bounds.dilution_length(recall.logit_range(model.reader), spread, 0.5)
    result.limits = degradation_limits.run(
        settings.limits, record=record, generator=generator, contexts=settings.contexts
    )  # fmt: skip
    result.numbers |= result.limits.numbers
    run_scaled(families[settings.families[0]], result, settings, generator)
    return result


def trained_recall(family: recall.Recaller, row: int, generator: torch.Generator) -> float:
    """Recall in contexts as long as those of the training."""
    facts = family.members[row].facts
    found = fact_recall.measure_recall(family, facts, 40, facts, (0.0,), generator=generator, members=[row])
    return float(found.recall.mean())


def check_reader(family: recall.Recaller, generator: torch.Generator) -> None:
    """AssertionError unless a member's multiplied-out weights give the outputs of the book's `Transformer`, and its
    exact moments are those of a sample of facts."""
    normal, unit = random_facts(generator, 40, family.width)
    row = len(family.members) - 1
    h, q, *_ = family.members[row]
    reader, model = recall.reader(family, row), family.transformer(row)
    keys, labels = keys_of(normal, h), (unit * q).long()
    tokens = torch.cat([F.pad(keys, (0, family.width - h)), F.one_hot(labels, family.q)], 1)
    direct = model(tokens[None], F.pad(keys[:5], (0, family.d - h)), own_token=False)[0]
    keys = keys.double()
    attention = reader.scores(keys[:5], keys, labels).softmax(-1)
    assert (attention @ reader.votes(keys, labels) + keys[:5] @ reader.residual - direct).abs().max() < 1e-4
    many, unit = random_facts(generator, 2**17, family.width)
    many, values = keys_of(many, h).double(), (unit * q).long()
    exact = fact_moments.statistics(reader, keys[:5], labels[:5])
    own = reader.scores(keys[:5], keys[:5], labels[:5]).diagonal()
    sampled = (reader.scores(keys[:5], many, values) - own[:, None]).exp()
    assert np.allclose(sampled.mean(1), exact.mean[:, -1], rtol=0.1)
    assert np.allclose(sampled.square().mean(1), exact.square[:, -1, -1], rtol=0.5)


def foretell(
    model: Model, family: recall.Recaller, lengths: list[int], settings: Settings, generator: torch.Generator
) -> None:
    """The normal-vote law, the law of the attention alone and part 2 for random facts: from the weights and held-out
    queries, each with every value as the truth, as the questions will be asked."""
    h, q, *_ = model.size
    keys = keys_of(random_facts(generator, settings.held_out, family.width)[0], h)
    model.reader = recall.reader(family, model.row)
    found = fact_moments.statistics(model.reader, keys.repeat(q, 1), torch.arange(q).repeat_interleave(len(keys)))
    beyond = [*lengths, *(lengths[-1] * 2**k for k in range(1, 7))]
    draws = {"generator": generator, "draws": max(1, settings.draws // q)}
    model.predicted = fact_moments.predicted_recall(found, beyond, MARGINS, **draws)
    model.calibrated = fact_moments.predicted_recall(found, beyond, (0.0,), biased=False, **draws)[:, 0]
    model.gap = fact_moments.gaps(model.reader, keys)
    model.expected = fact_recall.critical_length(beyond, model.predicted[:, 0])
    model.expected_unbiased = fact_recall.critical_length(beyond, model.calibrated)
    model.law = bounds.argmax_length(q, model.gap.square)
    spread = recall.vote_spread(model.reader, keys.double()).numpy()
    # s* is the largest logit of the own fact
    mean, square = found.mean[:, -1] * np.exp(-found.most), found.square[:, -1, -1] * np.exp(-2 * found.most)
    few = list(zip(mean[:32], square[:32], spread[:32], strict=True))
    model.ceiling = np.array([
        [np.mean([bounds.diluted_recall_ceiling(N, q, mean=m, square=s, spread=D, eps=margin / 2) for m, s, D in few])
         for margin in MARGINS[1:]] for N in lengths
    ])  # fmt: skip


def predict(record: claims.Recorder, result: Result) -> None:
    """Write down what is foretold of every model, before one is run."""
    models, first, lengths = result.models, result.first, result.lengths
    result.judged = judged = Judged(
        [model for model in models if 4 / 3 * model.expected <= lengths[-1]],
        [model for model in first if 1.5 * model.expected_unbiased <= lengths[-1]],
        [model for model in first if 2 * model.law <= lengths[-1]],
    )
    record.predict(
        "critical-length", theorem="Heuristic: normal votes",
        statement="The context at which plain recall falls to a half is that of the normal-vote law, to a third, for"
        " every model",
        predicted=[model.expected for model in judged.plain], possible=(lengths[0], math.inf), relative=1 / 3,
        parameters={"models": len(judged.plain), "of": len(models), "lengths": lengths},
    )  # fmt: skip
    record.predict(
        "critical-length-calibrated", theorem="Heuristic: normal votes",
        statement="The same for a read-out that subtracts the mean vote, so that only noise is left, to a half",
        predicted=[model.expected_unbiased for model in judged.calibrated], possible=(lengths[0], math.inf),
        relative=0.5, parameters={"models": len(judged.calibrated), "of": len(first)},
    )  # fmt: skip
    record.predict(
        "attention-law", theorem="Heuristic: $q e^{2\\Delta}$",
        statement="$\\log_2$ of the critical length without bias is that of $q e^{2\\Delta_2}/\\rho_q$ to one unit (a"
        " factor of two), for every model",
        predicted=np.log2([model.law for model in judged.law]), possible=(math.log2(lengths[0]), math.inf),
        absolute=1.0, parameters={"models": len(judged.law), "of": len(first)},
    )  # fmt: skip
    if len(first) > 2:  # two models have no slope
        record.predict(
            "attention-law-slope", theorem="Heuristic: $q e^{2\\Delta}$",
            statement="The critical length without bias is proportional to $q e^{2\\Delta_2}/\\rho_q$: slope in"
            " logarithms",
            predicted=1.0, possible=(-math.inf, math.inf), absolute=0.25,
        )  # fmt: skip
    record.predict(
        "peak-bits", theorem="Heuristic: normal votes",
        statement="The most bits that plain recall, and recall with each margin, ever retain, to two fifths, for every"
        " model",
        predicted=foreseen_peaks(result), relative=0.4,
        possible=(0, [[lengths[-1] * math.log2(model.size.q)] for model in models]), parameters={"margins": MARGINS},
    )  # fmt: skip


def foreseen_peaks(result: Result) -> Float[np.ndarray, "R M"]:
    """The most retained bits that the normal-vote law lets each model reach within the lengths that are run."""
    count = len(result.lengths)
    return np.array([result.bits(model.predicted[:count].T, model.size.q).max(1) for model in result.models])


def run_models(
    families: dict[str, recall.Recaller], result: Result, settings: Settings, seed: int, generator: torch.Generator
) -> None:
    """Recall of every model at every length, with bootstrap draws over contexts."""
    lengths, rng = result.lengths, np.random.default_rng(seed)
    for name, family in families.items():
        result.measured[name] = [
            fact_recall.measure_recall(
                family, N, settings.contexts, settings.questions, MARGINS, generator=generator
            ) for N in lengths
        ]  # fmt: skip
    draws = {
        name: intervals.resampled(np.stack([x.recall for x in found], 1).transpose(2, 0, 1, 3), rng, settings.resamples)
        for name, found in result.measured.items()
    }  # [B, R, L, M]
    calibrated = np.stack([x.calibrated for x in result.measured[settings.families[0]]], 1)  # [R, L, C]
    unbiased = intervals.resampled(calibrated.transpose(2, 0, 1), rng, settings.resamples)
    for model in result.models:
        found = result.measured[model.family]
        model.curves = np.array([x.recall[model.row].mean(0) for x in found])
        model.unbiased = np.array([x.calibrated[model.row].mean() for x in found])
        model.draws = draws[model.family][:, model.row]
        model.critical = fact_recall.critical_length(lengths, model.curves[:, 0])
        model.critical_unbiased = fact_recall.critical_length(lengths, model.unbiased)
        if model.first:
            model.unbiased_draws = unbiased[:, model.row]


def judge_forecasts(record: claims.Recorder, result: Result) -> None:
    """Complete the forecasts with what was measured; intervals hold for all models of a forecast together."""
    lengths, judged = result.lengths, result.judged

    def fall(models, which):
        return np.stack([fact_recall.critical_length(lengths, which(model)) for model in models], 1)  # [B, models]

    result.interval = fact_recall.critical_interval(fall(judged.plain, lambda model: model.draws[..., 0]), lengths)
    record.measure("critical-length", [model.critical for model in judged.plain], interval=result.interval)
    found = fact_recall.critical_interval(fall(judged.calibrated, lambda model: model.unbiased_draws), lengths)
    record.measure(
        "critical-length-calibrated", [model.critical_unbiased for model in judged.calibrated], interval=found
    )  # fmt: skip
    drawn = fall(judged.law, lambda model: model.unbiased_draws)
    low, high = fact_recall.critical_interval(drawn, lengths)
    critical = np.array([model.critical_unbiased for model in judged.law])
    record.measure("attention-law", np.log2(critical), interval=(np.log2(np.maximum(low, 1)), np.log2(high)))
    if "attention-law-slope" in record.records:
        reached = np.minimum(np.concatenate([critical[:, None], drawn.T], 1), lengths[-1])  # [models, 1 + B]
        slopes = np.polyfit(np.log2([model.law for model in judged.law]), np.log2(reached), 1)[0]
        record.measure("attention-law-slope", slopes[0], interval=intervals.simultaneous(slopes[1:]))
    peaks = np.array([result.bits(model.curves.T, model.size.q).max(1) for model in result.models])
    drawn = [result.bits(model.draws.transpose(0, 2, 1), model.size.q).max(2) for model in result.models]
    record.measure("peak-bits", peaks, interval=intervals.simultaneous(np.stack(drawn, 1)))
    tell_forecasts(result, peaks / foreseen_peaks(result))


def ends(values, digits: int = 2, beyond: str = "∞") -> tuple[str, str]:
    """The least and the largest, as text; `beyond` stands for infinity."""
    return tuple(f"{x:,.{digits}f}" if math.isfinite(x) else beyond for x in (min(values), max(values)))


def tell_forecasts(result: Result, peaks: Float[np.ndarray, "R M"]) -> None:
    """The numbers of the first experiment's sentences; `peaks` are measured over predicted."""
    judged, first, last = result.judged, result.first, result.lengths[-1]
    found = np.minimum([model.critical for model in judged.plain], last)
    ratio = found / [model.expected for model in judged.plain]
    plain = [model.critical / model.law for model in first]
    gains = [min(model.critical_unbiased, last) / min(model.critical, last) for model in first]
    plateau = [
        result.bits(model.unbiased, model.size.q)[-1] / bounds.argmax_plateau_bits(model.size.q, model.gap.square)
        for model in first
    ]
    for name, values in {
        "ratio": ends(ratio),
        "critical": ends([model.critical for model in result.models], 0, f"more than {last:,}"), "plain": ends(plain),
        "cal": ends([model.critical_unbiased / model.expected_unbiased for model in judged.calibrated]),
        "law": ends([model.critical_unbiased / model.law for model in judged.law]),
        "peak": ends(peaks.ravel()), "plateau": ends(np.quantile(plateau, [0.25, 0.75])),
    }.items():  # fmt: skip
        result.numbers |= {f"{name}_low": values[0], f"{name}_high": values[1]}
    bits = result.bits(result.shown.curves[:, 0], result.shown.size.q)
    result.numbers |= {
        "models": f"{len(result.models)}", "judged": f"{len(judged.plain)}", "first": f"{len(first)}",
        "trained_least": f"{min(model.trained for model in result.models):.3f}",
        "trained_mean": f"{np.mean([model.trained for model in result.models]):.4f}",
        "ratio_median": f"{np.median(ratio):.2f}",
        "half_width": f"{100 * np.median((result.interval[1] - result.interval[0]) / found / 2):.0f}",
        "law_shorter": f"{sum(value < 1 for value in plain)}", "judged_law": f"{len(judged.law)}",
        "law_outside": f"{sum(abs(math.log2(m.critical_unbiased / m.law)) > 1 for m in judged.law)}",
        "gain_median": f"{np.median(gains):.1f}", "peak": f"{bits.max():.0f}",
        "peak_at": f"{result.lengths[int(bits.argmax())]:,}", "last_bits": f"{bits[-1]:.0f}", "longest": f"{last:,}",
    }  # fmt: skip


def judge_margins(record: claims.Recorder, result: Result, settings: Settings) -> None:
    """Parts 1 and 2, question by question: no sampling error."""
    lengths, margins = result.lengths, len(MARGINS)
    found = [x for values in result.measured.values() for x in values]
    tokens = [
        [N] * len(x.attention) for values in result.measured.values() for N, x in zip(lengths, values, strict=True)
    ]
    record.theorem(
        "attention", theorem="Theorem 8, part 1",
        statement="Largest attention on any token over $1/(1+(N-1)e^{-\\Delta})$, with the range $\\Delta$ of the"
        " query's own logits",
        measured=np.concatenate([x.attention for x in found]), bound=1.0, possible=np.concatenate(tokens),
        tolerance=1e-5, parameters={"lengths": lengths, "questions": settings.contexts * settings.questions},
    )  # fmt: skip
    record.theorem(
        "swap", theorem="Theorem 8, part 2",
        statement="Effect of a fact's value on its own margin over $D_i \\hat w_i$, where that is at least a tenth:"
        " largest over questions and pairs of values",
        measured=np.concatenate([x.tight for x in found]), bound=1.0, possible=math.inf, tolerance=0.01,
        parameters={"lengths": lengths},
    )  # fmt: skip
    assert max(x.excess.max() for x in found) < 1e-3  # the other questions, to the rounding of float32
    values_of = {
        name: np.array([[model.size.q] * margins for model in result.models if model.family == name])
        for name in result.measured
    }
    cases = [(x.values, x.diluted, values_of[name]) for name, values in result.measured.items() for x in values]
    diluted = sum(int(count.sum()) for _, count, _ in cases)
    record.theorem(
        "one-value-at-most", theorem="Theorem 8, part 2",
        statement="Values of one fact that are recalled with margin $2\\varepsilon$ where $D_i \\hat w_i \\le"
        " 4\\varepsilon$",
        measured=np.concatenate([values[count > 0] for values, count, _ in cases]), bound=1,
        possible=np.concatenate([q[count > 0] for _, count, q in cases]),
        parameters={"cases": diluted, "margins": MARGINS[1:]},
    )  # fmt: skip
    result.numbers |= {
        "diluted": f"{diluted:,}", "tight": f"{max(x.tight.max() for x in found):.3f}",
        "last_recall": f"{max(model.curves[-1, 1:].max() for model in result.models):.4f}",
        "guesses": " or ".join(f"1/{q}" for q in sorted({model.size.q for model in result.models})),
    }  # fmt: skip


def run_scaled(family: recall.Recaller, result: Result, settings: Settings, generator: torch.Generator) -> None:
    """The first family with logits times ln N over its value at the trained length."""
    scaled = []
    for N in result.lengths:
        factor = [math.log(N) / math.log(member.facts) for member in family.members]
        scaled.append(fact_recall.measure_recall(
            family, N, settings.scaled, settings.questions, MARGINS, generator=generator, sharpen=factor
        ))  # fmt: skip
    rising = []
    for model in result.first:
        model.with_log = np.array([x.recall[model.row].mean(0) for x in scaled])
        bits = result.bits(model.with_log.T, model.size.q)  # [M, L]
        rising.append(bits[:, -1] > bits[:, :-1].max(1))
    result.numbers |= {"rising_plain": f"{sum(r[0] for r in rising)}", "rising_margin": f"{sum(r[1] for r in rising)}"}
