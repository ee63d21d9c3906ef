"""Chapter 8b, depth: trained networks of one to three layers lose facts where their own softmax logits say.

`run` reads held-out contexts and writes forecasts down, from softmax weights and from which fact was asked for, never
from an answer; then it asks.  Shapes: `C` contexts, `n` questions in each, `L` lengths, `K` heads of all layers, `M`
margins, `q` values.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from prompt_memory import bounds, intervals, pretrain
from prompt_memory.book import claims, figures
from prompt_memory.book.verdicts import power_of_ten
from prompt_memory.measure import fact_recall, numpy_weights
from prompt_memory.network.deep_recall import DeepRecaller, Reading
from prompt_memory.tasks.facts import keys_of, random_facts

MARGINS = (0.0, 1.0, 2.0)  # 2ε in nats
LAWS = ("tally", "normal votes", "sum of heads", "best head", "from short contexts")
FAR = 2 ** np.arange(5, 31)  # lengths at which the last law is evaluated


@dataclass(frozen=True)
class Settings:
    """How much is run: the family; facts up to 2^longest (without positions) and 2^turned (rotary); contexts of a
    length up to 2^10, fewer of longer ones; questions in each; bootstrap resamples."""

    family: str
    longest: int
    turned: int
    contexts: int
    questions: int
    resamples: int

    def lengths(self, member: DeepRecaller, shortest: int) -> list[int]:
        """Facts in a context, from the longest of the training on."""
        last = self.turned if member.config.positions == "rotary" else self.longest
        return [shortest * 2**k for k in range(last - int(math.log2(shortest)) + 1)]

    def count(self, N: int) -> int:
        """Contexts of N facts."""
        return max(self.contexts // 4, min(self.contexts, self.contexts * 1024 // N))


PROFILES = {
    "smoke": Settings("deep-recall-small", longest=12, turned=9, contexts=16, questions=48, resamples=500),
    "standard": Settings("deep-recall", longest=13, turned=10, contexts=40, questions=64, resamples=4000),
    "full": Settings("deep-recall", longest=14, turned=11, contexts=400, questions=64, resamples=4000),
}


@dataclass(eq=False)
class Model:
    """One trained network: what its softmax weights foretell, and what it recalls."""

    member: DeepRecaller
    lengths: list[int]
    forecast: dict[str, Float[np.ndarray, " L"]] = field(default_factory=dict)  # the first four laws
    expected: dict[str, float] = field(default_factory=dict)  # half lengths, every law; infinite beyond `lengths`
    share: Float[np.ndarray, " K"] = None  # mean attention on the asked fact, at the shortest length
    alone: Float[np.ndarray, " K"] = None  # recall there if a head voted alone, normal votes
    steepest: float = 0.0  # largest attention on a token over what Theorem 8, part 1, allows
    found: list[Float[np.ndarray, "C M"]] = field(default_factory=list)  # one a length
    curves: Float[np.ndarray, "L M"] = None
    draws: Float[np.ndarray, "B L M"] = None  # of the bootstrap over contexts
    critical: float = math.nan
    moved: list[Float[np.ndarray, "C 2"]] = field(default_factory=list)  # see `exchange`
    slope: Float[np.ndarray, "2 B"] = None  # of these against N in logarithms: measured, then bootstrap draws
    averaged: dict[int, Float[np.ndarray, " C"]] = field(default_factory=dict)  # recall with a layer's heads averaged
    others: Float[np.ndarray, " C"] = None  # with all layers averaged but the one that reads
    whole: Float[np.ndarray, " C"] = None  # in the same contexts, nothing averaged

    @property
    def exchanged(self) -> list[int]:
        """The lengths at which a fact is exchanged: all but the longest, which costs as much as all others."""
        return self.lengths[:-1]

    @property
    def depth(self) -> int:
        return self.member.config.depth

    @property
    def rotary(self) -> bool:
        return self.member.config.positions == "rotary"

    @property
    def name(self) -> str:
        layers = "one layer" if self.depth == 1 else f"{('two', 'three')[self.depth - 2]} layers"
        return f"{layers}, {'rotary' if self.rotary else 'no positions'}"

    @property
    def reads(self) -> int:
        """The layer (from 0) of the head with the largest share of attention on the asked fact."""
        return int(self.share.argmax()) // self.member.config.heads

    def within(self, law: str, most: float) -> bool:
        """Does the forecast, times `most`, lie within the lengths that are run?"""
        return self.expected[law] * most <= self.lengths[-1]


@dataclass
class Result:
    """Everything that chapter 8b measured."""

    models: list[Model]
    judged: dict[str, list[Model]] = field(default_factory=dict)
    interval: tuple = None  # of the half lengths of `judged["tally"]`, for all together
    numbers: dict[str, str] = field(default_factory=dict)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """Forecasts first, then the questions."""
    settings = claims.settings(PROFILES, profile)
    family = pretrain.load(settings.family, models_dir)
    most = family.recipe.most
    result = Result([Model(member, settings.lengths(member, most)) for member in family.transformer.members])
    for model in result.models:
        foretell(model, settings, generator)
    predict(record, result)
    rng = np.random.default_rng(record.seed)
    for model in result.models:
        ask(model, settings, generator)
        exchange(model, settings, generator)
        average_layers(model, settings, generator)
        model.draws = np.stack([intervals.resampled(found, rng, settings.resamples) for found in model.found], 1)
        model.slope = slope_of(model, rng, settings.resamples)
    judge(record, result, rng, settings.resamples)
    tell(result, most)
    return result


def context(member: DeepRecaller, N: int, questions: int, generator: torch.Generator):
    """A context of N random facts and questions for some of them: keys, labels [N], places [n] of what is asked."""
    width = member.fact.shape[0]
    normal, unit = random_facts(generator, N, width)
    asked = torch.randperm(N, generator=generator)[:questions]
    return keys_of(normal, width), (unit * member.config.q).long(), asked


def weights_of(reading: Reading) -> Float[torch.Tensor, "n K N"]:
    """The attention of the question's token on the facts, heads of all layers in one row."""
    everything = torch.cat([reading.scores, reading.own[..., None]], -1).softmax(-1)
    return everything[..., :-1].transpose(0, 1).flatten(1, 2)


def split(weights: Float[torch.Tensor, "n K N"], asked) -> tuple[Float[np.ndarray, "n K"], Float[np.ndarray, "n K K"]]:
    """Attention on the asked fact, and the Gram matrix of that on all others."""
    place = asked[:, None, None].expand(-1, weights.shape[1], 1)
    others = weights.scatter(2, place, 0.0).double()
    return weights.gather(2, place)[..., 0].double().numpy(), (others @ others.transpose(1, 2)).numpy()


def tally(
    weights: Float[torch.Tensor, "n K N"], asked, combination: Float[np.ndarray, " K"], q: int,
    generator: torch.Generator, draws: int = 4,
) -> float:  # fmt: skip
    """How often the asked fact's value has the most votes if each fact's value is drawn at random: no normal law."""
    votes = torch.einsum("k,nks->ns", torch.from_numpy(combination).float(), weights)
    hits = []
    for _ in range(draws):
        values = torch.randint(q, (weights.shape[-1],), generator=generator)
        hits.append(((votes @ F.one_hot(values, q).float()).argmax(-1) == values[asked]).double().mean())
    return float(torch.stack(hits).mean())


def foretell(model: Model, settings: Settings, generator: torch.Generator) -> None:
    """Every law at every length, from held-out contexts; the heads are combined as is best at the shortest length."""
    member, q = model.member, model.member.config.q
    curves = {law: [] for law in LAWS[:-1]}
    for N in model.lengths:
        seen = []
        for _ in range(settings.count(N)):
            keys, labels, asked = context(member, N, settings.questions, generator)
            reading = member.read(member.facts(keys, labels), member.questions(keys[asked]))
            model.steepest = max(model.steepest, steepest(reading))
            weights = weights_of(reading)
            if model.lengths[0] == N:
                seen.append((*split(weights, asked), weights, asked))
                continue
            seen.append((*split(weights, asked), tally(weights, asked, combination, q, generator)))
        own, gram = (np.concatenate([each[k] for each in seen]) for k in (0, 1))
        if model.lengths[0] == N:
            combination = bounds.vote_weights(own, gram)
            seen = [(*each[:2], tally(*each[2:], combination, q, generator)) for each in seen]
            short = bounds.votes_snr(own, gram, combination, q) * (N - 1)
            heads = bounds.gaussian_recalls(q * own**2 / np.einsum("nkk->nk", gram), q)
            model.share, model.alone = own.mean(0), heads.mean(0)
        curves["tally"].append(np.mean([each[2] for each in seen]))
        curves["normal votes"].append(bounds.gaussian_recalls(bounds.votes_snr(own, gram, combination, q), q).mean())
        curves["sum of heads"].append(bounds.gaussian_recalls(bounds.summed_snr(own, gram, q), q).mean())
        best = np.eye(len(combination))[model.alone.argmax()]
        curves["best head"].append(bounds.gaussian_recalls(bounds.votes_snr(own, gram, best, q), q).mean())
    model.forecast = {law: np.array(curve) for law, curve in curves.items()}
    model.expected = {law: fact_recall.critical_length(model.lengths, curve) for law, curve in model.forecast.items()}
    far = [bounds.gaussian_recalls(short / (N - 1), q).mean() for N in FAR]
    model.expected[LAWS[-1]] = fact_recall.critical_length(FAR, np.array(far))


def steepest(reading: Reading) -> float:
    """Largest attention on a token over 1/(1 + N e^{−Δ}), with the range Δ of the question's N + 1 softmax logits."""
    scores = torch.cat([reading.scores, reading.own[..., None]], -1).double()  # [L, n, H, N + 1]
    span = scores.amax(-1) - scores.amin(-1)
    return float((scores.softmax(-1).amax(-1) * (1 + (scores.shape[-1] - 1) * (-span).exp())).max())


def predict(record: claims.Recorder, result: Result) -> None:
    """Write down what is foretold, before a question is asked."""
    models = result.models
    result.judged = {
        "tally": [model for model in models if model.within("tally", 4 / 3)],
        "sum of heads": [model for model in models if model.within("sum of heads", 1)],
    }
    half, summed = (
        {model.name: round(model.expected[law], 1) for model in group} for law, group in result.judged.items()
    )
    record.predict(
        "half-length", theorem="Heuristic: tally of softmax weights",
        statement="Measured over forecast half length, from the tally of softmax weights over random values: one, to a"
        " third, for every network",
        predicted=[1.0] * len(result.judged["tally"]), possible=(0, math.inf), absolute=1 / 3,
        parameters={"forecast": half, "of": len(models)},
    )  # fmt: skip
    record.predict(
        "sum-of-heads", theorem="Heuristic: signal-to-noise ratios add up",
        statement="Measured over forecast half length, if the signal-to-noise ratios of all heads add up: between a"
        " half and one, for every network",
        predicted=[0.75] * len(result.judged["sum of heads"]), possible=(0, math.inf), absolute=0.25,
        parameters={"forecast": summed, "of": len(models)},
    )  # fmt: skip
    record.predict(
        "whole-curve", theorem="Heuristic: tally of softmax weights",
        statement="Mean over all lengths of the distance between recall and its forecast, for every network",
        predicted=[0.0] * len(models), possible=(0, 1), absolute=0.05,
        parameters={"lengths": {model.name: model.lengths for model in models}},
    )  # fmt: skip
    record.predict(
        "one-of-n", theorem="Heuristic: one of $N$",
        statement="Another value of a fact that is not asked for moves logits like $1/N$: slope in logarithms, for"
        " every network",
        predicted=[-1.0] * len(models), possible=(-math.inf, math.inf), absolute=0.3,
    )  # fmt: skip
    record.predict(
        "margin-bits", theorem="Heuristic: margins end within reach",
        statement="Bits retained with a margin of 2 nats at the longest context, over the most at any length, for every"
        " network",
        predicted=[0.0] * len(models), possible=(0, 1), absolute=0.25, parameters={"margin": MARGINS[-1]},
    )  # fmt: skip
    deep = [model for model in models if model.depth > 1]
    record.predict(
        "one-layer-reads", theorem="Heuristic: attention shares",
        statement="Recall lost in contexts of the training's length if the heads of all layers but one are averaged"
        " over questions; the one kept has the largest share on the asked fact",
        predicted=[0.0] * len(deep), possible=(-1, 1), absolute=0.1,
        parameters={"layer kept": {model.name: model.reads + 1 for model in deep}},
    )  # fmt: skip


def lead(logits: Float[torch.Tensor, "n q"], right: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """By how much the logit of the right value exceeds all others."""
    own = logits.gather(1, right[:, None])[:, 0]
    return own - logits.scatter(1, right[:, None], -torch.inf).amax(1)


def ask(model: Model, settings: Settings, generator: torch.Generator) -> None:
    """Recall in new contexts, with each margin."""
    member = model.member
    for N in model.lengths:
        rows = []
        for _ in range(settings.count(N)):
            keys, labels, asked = context(member, N, settings.questions, generator)
            reading = member.read(member.facts(keys, labels), member.questions(keys[asked]))
            ahead = lead(reading.logits, labels[asked])
            rows.append([float((ahead > margin).double().mean()) for margin in MARGINS])
        model.found.append(np.array(rows))
    model.curves = np.array([found.mean(0) for found in model.found])
    model.critical = fact_recall.critical_length(model.lengths, model.curves[:, 0])


def exchange(model: Model, settings: Settings, generator: torch.Generator) -> None:
    """Half the largest change of a difference of logits if one fact that is not asked for gets another value, and the
    attention on that fact in the head that reads; means over the questions of each context."""
    member, q = model.member, model.member.config.q
    for N in model.exchanged:
        moved = []
        for _ in range(settings.count(N)):
            keys, labels, asked = context(member, N, min(settings.questions, N // 2) + 1, generator)
            questions, other = member.questions(keys[asked[1:]]), labels.clone()
            other[asked[0]] = (other[asked[0]] + 1) % q
            before, after = (member.read(member.facts(keys, each), questions) for each in (labels, other))
            change = (after.logits - before.logits).double()
            seen = weights_of(before)[:, model.share.argmax(), asked[0]].double()
            moved.append((float((change.amax(1) - change.amin(1)).mean()) / 2, float(seen.mean())))
        model.moved.append(np.array(moved))


def average_layers(model: Model, settings: Settings, generator: torch.Generator) -> None:
    """Recall in contexts of the training's length if what heads of a layer hand on cannot tell the questions apart."""
    member, N = model.member, model.lengths[0]
    kept = frozenset(range(model.depth)) - {model.reads}
    choices = {**{layer: frozenset({layer}) for layer in range(model.depth)}, "others": kept, "whole": frozenset()}
    rows = {name: [] for name in choices}
    for _ in range(settings.contexts):
        keys, labels, asked = context(member, N, N, generator)
        facts, questions = member.facts(keys, labels), member.questions(keys[asked])
        for name, layers in choices.items():
            answers = member.read(facts, questions, averaged=layers).logits.argmax(-1)
            rows[name].append(float((answers == labels[asked]).double().mean()))
    found = {name: np.array(row) for name, row in rows.items()}
    model.others, model.whole = found.pop("others"), found.pop("whole")
    model.averaged = found


def slope_of(model: Model, rng: np.random.Generator, resamples: int) -> Float[np.ndarray, "2 B"]:
    """Slopes against N, in logarithms, of what `exchange` found: as measured, then of bootstrap draws."""
    means = [np.vstack([moved.mean(0), intervals.resampled(moved, rng, resamples)]) for moved in model.moved]
    logs = np.log2(np.stack(means))  # [L, 1 + B, 2]
    return np.stack([np.polyfit(np.log2(model.exchanged), logs[..., k], 1)[0] for k in (0, 1)])


def half_draws(models: list[Model]) -> Float[np.ndarray, "B R"]:
    """Bootstrap draws of the half lengths."""
    return np.stack([fact_recall.critical_length(model.lengths, model.draws[..., 0]) for model in models], 1)


def bits(model: Model, recall: Float[np.ndarray, "*B L"]) -> Float[np.ndarray, "*B L"]:
    """Retained bits at each length."""
    return fact_recall.retained(model.lengths, recall, model.member.config.q)


def judge(record: claims.Recorder, result: Result, rng: np.random.Generator, resamples: int) -> None:
    """Complete the forecasts; intervals hold for all networks of a forecast together."""
    models, judged = result.models, result.judged["tally"]
    low, high = intervals.simultaneous(half_draws(judged))
    result.interval = low, high
    forecast = np.array([model.expected["tally"] for model in judged])
    found = [model.critical for model in judged] / forecast
    record.measure("half-length", found, interval=(low / forecast, high / forecast))
    judged = result.judged["sum of heads"]
    forecast = np.array([model.expected["sum of heads"] for model in judged])
    interval = intervals.simultaneous(half_draws(judged) / forecast)
    record.measure("sum-of-heads", [model.critical for model in judged] / forecast, interval=interval)
    errors = [np.abs(model.curves[:, 0] - model.forecast["tally"]).mean() for model in models]
    drawn = [np.abs(model.draws[..., 0] - model.forecast["tally"]).mean(1) for model in models]
    record.measure("whole-curve", errors, interval=intervals.simultaneous(np.stack(drawn, 1)))
    interval = intervals.simultaneous(np.stack([model.slope[0, 1:] for model in models], 1))
    record.measure("one-of-n", [model.slope[0, 0] for model in models], interval=interval)
    drawn = [bits(model, model.draws[..., -1]) for model in models]
    interval = intervals.simultaneous(np.stack([each[:, -1] / each.max(1) for each in drawn], 1))
    found = [bits(model, model.curves[:, -1]) for model in models]
    record.measure("margin-bits", [each[-1] / each.max() for each in found], interval=interval)
    deep = [model for model in models if model.depth > 1]
    lost = [model.whole - model.others for model in deep]
    interval = intervals.simultaneous(np.stack([intervals.resampled(each, rng, resamples) for each in lost], 1))
    record.measure("one-layer-reads", [each.mean() for each in lost], interval=interval)
    record.theorem(
        "dilution", theorem="Theorem 8, part 1",
        statement="Largest attention of a question on any token, in any layer and head, over $1/(1+Ne^{-\\Delta})$ with"
        " the range $\\Delta$ of its own $N + 1$ softmax logits",
        measured=[model.steepest for model in models], bound=1.0,
        possible=[model.lengths[-1] + 1 for model in models], tolerance=1e-9,
        parameters={"questions": sum(len(found) for model in models for found in model.found)},
    )  # fmt: skip


def depth_bound(model: Model, generator: torch.Generator) -> float:
    """log₁₀ E(N) of Theorem 8, part 5, at the longest context: for another value of one fact, with the longest of 1024
    tokens for the radius; infinite if it overflows."""
    member = model.member
    keys, labels, _ = context(member, 1024, 1, generator)
    radius = float(member.facts(keys, labels).norm(dim=1).max())
    asked = float(member.questions(keys).norm(dim=1).max())
    codes = member.transformer.embedding
    change = float(torch.cdist(codes, codes).max())
    moved = bounds.exchange_effect(
        member.config, numpy_weights(member.transformer), model.lengths[-1], radius=radius, query_radius=asked,
        change=change,
    )  # fmt: skip
    return math.log10(moved) if math.isfinite(moved) else math.inf


def gain_sentence(result: Result) -> str:
    """What the slopes of effect and attention say together, chosen from the data."""
    gentler = sum(model.slope[0, 0] > model.slope[1, 0] for model in result.models)
    if 2 * gentler <= len(result.models):
        return "Logits move in step with the attention on that fact."
    return (
        "Logits fall more gently than the attention does. Norms may be the reason: they divide by what the heads hand"
        " on, which shrinks too, until only what the question brings itself is left."
    )


def spread_of(values, digits: int = 2) -> str:
    """The least and the largest, as text; one number if they are written alike."""
    ends = (f"{round(x, digits) + 0.0:,.{digits}f}" if math.isfinite(x) else "∞" for x in (min(values), max(values)))
    return " to ".join(dict.fromkeys(ends)).replace("-", "−")


def depth_sentence(plain: list[Model], rotary: list[Model]) -> str:
    """What depth and what positions do to the half length, if both were varied."""
    known = [model.critical for model in plain + rotary]
    if min(len(plain), len(rotary)) < 2 or not all(map(math.isfinite, known)):
        return ""
    among = max(max(m.critical for m in group) / min(m.critical for m in group) for group in (plain, rotary))
    apart = min(m.critical for m in plain) / max(m.critical for m in rotary)
    return (
        f"Networks of one to three layers with the same kind of positions differ by a factor of at most {among:.2f},"
        f" those without positions reach {apart:.0f} times as far as those with rotary ones, or farther."
    )


def tell(result: Result, most: int) -> None:
    """The numbers of the page's sentences."""
    models, numbers = result.models, result.numbers
    plain, rotary = ([model for model in models if model.rotary == turned] for turned in (False, True))
    for name, values in {
        "ratio": [model.critical / model.expected["tally"] for model in result.judged["tally"]],
        "sum": [model.critical / model.expected["sum of heads"] for model in result.judged["sum of heads"]],
        "slope": [model.slope[0, 0] for model in models], "seen": [model.slope[1, 0] for model in models],
        "error": [np.abs(model.curves[:, 0] - model.forecast["tally"]).mean() for model in models],
        "trained": [model.whole.mean() for model in models],
    }.items():  # fmt: skip
        numbers[name] = spread_of(values, 3 if name == "error" else 2)
    for name, group in (("plain", plain), ("rotary", rotary)):
        numbers[name] = spread_of([model.critical for model in group], 0)
        ratios = [model.critical / model.expected["tally"] for model in group if model in result.judged["tally"]]
        numbers[f"{name}_ratio"] = spread_of(ratios) if ratios else "not judged"
        numbers[f"{name}_short"] = spread_of([model.expected[LAWS[-1]] / model.critical for model in group], 0)
    lost = max(abs((model.whole - model.others).mean()) for model in models if model.depth > 1)
    left = max(bits(model, model.curves[:, -1])[-1] / bits(model, model.curves[:, -1]).max() for model in models)
    generator = torch.Generator().manual_seed(0)
    proved = [depth_bound(model, generator) for model in models]
    numbers |= {
        "error_most": f"{max(np.abs(m.curves[:, 0] - m.forecast['tally']).mean() for m in models):.3f}",
        "judged": f"{len(result.judged['tally'])}", "most": f"{most}",
        "lost": f"{lost:.3f}", "reading": "one layer reads, the others hardly look" if lost < 0.1 else "several read",
        "ended": "They do, at lengths that can be run." if left < 0.25 else "Some have not, at the lengths run here.",
        "slope_sentence": gain_sentence(result), "depth_sentence": depth_sentence(plain, rotary),
        "bound": ", ".join(power_of_ten(math.ceil(x)) if math.isfinite(x) else "∞" for x in proved),
        "moved": figures.scientific(max(model.moved[-1][:, 0].mean() for model in models), up=True),
    }  # fmt: skip
