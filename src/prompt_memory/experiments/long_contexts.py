"""Chapter 10, long contexts: six remedies against forgetting, tried on the trained models of chapter 8.

`run` writes two forecasts down, from weights and held-out queries, and then asks every model for facts with every
remedy.  Shapes: `L` lengths, `C` contexts.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prompt_memory import bounds, intervals, pretrain
from prompt_memory.book import claims, figures
from prompt_memory.book.figures import COLOURS
from prompt_memory.measure import fact_moments, fact_recall
from prompt_memory.network import recall
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tasks.facts import keys_of, random_facts


@dataclass(frozen=True)
class Settings:
    """How much is run: a trained family, contexts of up to 2^longest facts, contexts of a length, questions in each,
    held-out queries."""

    family: str
    longest: int
    contexts: int
    questions: int
    held_out: int


PROFILES = {
    "smoke": Settings(family="recall-small", longest=13, contexts=24, questions=24, held_out=256),
    "standard": Settings(family="recall", longest=15, contexts=32, questions=32, held_out=256),
    "full": Settings(family="recall", longest=16, contexts=300, questions=32, held_out=1024),
}

# Each remedy, as the options of `ask` for a member in contexts of N facts.
REMEDIES = {
    "as trained": lambda member, N: {},
    "sharper": lambda member, N: {"factor": 1.5},
    "say it again": lambda member, N: {"copies": 4},
    "grow with the context": lambda member, N: {"factor": max(1.0, math.log(N) / math.log(member.facts))},
    "look up first": lambda member, N: {"keep": 32},
    "read in parts": lambda member, N: {"parts": 8 if N >= 64 else 1},
}


@dataclass
class Model:
    """One trained model, and its recall with every remedy."""

    row: int
    size: recall.Member
    reader: recall.Reader
    held_out: tuple[Tensor, Tensor]  # keys and labels
    statistics: fact_moments.Statistics
    found: dict[str, Float[np.ndarray, "L C"]] = field(default_factory=dict)
    critical: dict[str, float] = field(default_factory=dict)  # where recall falls to a half

    def recall(self, remedy: str) -> Float[np.ndarray, " L"]:
        """Mean recall at each length."""
        return self.found[remedy].mean(1)


@dataclass
class Result:
    """Everything that chapter 10 measured."""

    lengths: list[int]
    models: list[Model]
    forecast: dict[str, list[float]] = field(default_factory=dict)
    judged: list[tuple[str, int]] = field(default_factory=list)  # (remedy, index of the model)
    repeated: dict[str, float] = field(default_factory=dict)  # change of a logit when a whole prompt is said again
    numbers: dict[str, str] = field(default_factory=dict)

    @property
    def middle(self) -> Model:
        """The model whose recall as trained falls at the median length."""
        return sorted(self.models, key=lambda model: model.critical["as trained"])[len(self.models) // 2]

    def gains(self, remedy: str) -> Float[np.ndarray, " R"]:
        """Critical length over that as trained, at least: lengths beyond the longest count as the longest."""
        lengths = np.array([[model.critical[name] for model in self.models] for name in (remedy, "as trained")])
        return np.divide(*np.minimum(lengths, self.lengths[-1]))

    def open(self, remedy: str) -> int:
        """How many models are still above a half at the longest context."""
        return sum(math.isinf(model.critical[remedy]) for model in self.models)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """The trial of the remedies; forecasts are written down before a model is run."""
    settings = claims.settings(PROFILES, profile)
    family = pretrain.load(settings.family, models_dir).transformer
    lengths = [2**k for k in range(4, settings.longest + 1)]
    rows = [row for row, member in enumerate(family.members) if member.copy == 0]
    result = Result(lengths, [held_out(family, row, settings.held_out, generator) for row in rows])
    predict(record, result, generator)
    for name, how in REMEDIES.items():
        for model in result.models:
            model.found[name] = np.array([
                ask(family, model, N, settings, generator=generator, **how(model.size, N)) for N in lengths
            ])  # fmt: skip
    for model in result.models:
        model.critical = {name: fact_recall.critical_length(lengths, model.recall(name)) for name in REMEDIES}
    judge_remedies(record, result)
    judge_everything(record, result, family, generator)
    tell(result)
    return result


def held_out(family: recall.Recaller, row: int, count: int, generator: torch.Generator) -> Model:
    """A member with held-out pairs of a query and its fact, and their statistics."""
    size, reader = family.members[row], recall.reader(family, row)
    normal, unit = random_facts(generator, count, family.width)
    pairs = keys_of(normal, size.head), (unit * size.q).long()
    return Model(row, size, reader, pairs, fact_moments.statistics(reader, *pairs))


def predict(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """The normal-vote law for sharper logits, which change the statistics, and for a fact of four times the signal."""
    lengths = result.lengths
    beyond = [*lengths, *(lengths[-1] * 2**k for k in range(1, 7))]

    def falls(found: fact_moments.Statistics) -> float:
        recalled = fact_moments.predicted_recall(found, beyond, (0.0,), generator=generator)[:, 0]
        return fact_recall.critical_length(beyond, recalled)

    result.forecast = {
        "sharper": [
            falls(fact_moments.statistics(recall.sharper(model.reader, 1.5), *model.held_out))
            for model in result.models
        ],
        "say it again": [
            falls(model.statistics._replace(signal=4 * model.statistics.signal)) for model in result.models
        ],
    }  # fmt: skip
    result.judged = [
        (name, i) for name, found in result.forecast.items() for i, N in enumerate(found) if lengths[-1] >= N * 1.4
    ]
    record.predict(
        "remedies", theorem="Heuristic: normal votes",
        statement="Length at which recall falls to a half with sharper logits, and with the fact said four times:"
        " normal-vote law, to two fifths, every model",
        predicted=[result.forecast[name][i] for name, i in result.judged], possible=(lengths[0], math.inf),
        relative=0.4,
        parameters={"forecasts": len(result.judged), "of": 2 * len(result.models), "lengths": lengths},
    )  # fmt: skip


def ask(
    family: recall.Recaller, model: Model, N: int, settings: Settings, *, generator: torch.Generator,
    factor: float = 1.0, copies: int = 1, keep: int | None = None, parts: int = 1,
) -> Float[np.ndarray, " C"]:  # fmt: skip
    """Fraction of facts recalled in each of the contexts of N random facts, with a remedy.

    Softmax logits times `factor`; the fact asked for stands `copies` times; only the `keep` facts whose keys are most
    similar are read; the context is read in `parts`, and the clearest answer counts.
    """
    reader = recall.Reader(*(part.float() for part in model.reader))
    asked, hits = min(settings.questions, N), []
    for _ in range(settings.contexts):
        normal, unit = random_facts(generator, N, family.width)
        keys, labels = keys_of(normal, model.size.head), (unit * model.size.q).long()
        x = keys[:asked]
        s = factor * reader.scores(x, keys, labels)
        s.diagonal().add_(math.log(copies))  # copies of one token: weights add
        if keep is not None and keep < N:
            similar = x @ keys.T
            s.masked_fill_(similar < similar.topk(keep).values[:, -1:], -torch.inf)
        weights = s.unflatten(1, (parts, -1)).softmax(-1)  # [n, parts, N / parts]
        votes = reader.votes(keys, labels).unflatten(0, (parts, -1))
        logits = torch.einsum("npk,pkq->npq", weights, votes) + (x @ reader.residual)[:, None]
        clear = logits.topk(2).values.diff(dim=-1)[..., 0].argmin(1)  # the part whose best answer leads most
        hits.append((logits[range(asked), clear].argmax(-1) == labels[:asked]).double().mean())
    return np.array(hits)


def judge_remedies(record: claims.Recorder, result: Result) -> None:
    """Complete the forecasts; the interval holds for all of them together."""
    rng, lengths, models = np.random.default_rng(record.seed), result.lengths, result.models
    draws = {
        name: [
            fact_recall.critical_length(lengths, intervals.resampled(model.found[name].T, rng, 4000))
            for model in models
        ]
        for name in result.forecast
    }  # fmt: skip
    interval = fact_recall.critical_interval(np.stack([draws[name][i] for name, i in result.judged], 1), lengths)
    record.measure("remedies", [models[i].critical[name] for name, i in result.judged], interval=interval)


def repeated(model: Model, family: recall.Recaller, generator: torch.Generator) -> float:
    """Largest change of an output, over the largest output, when each of 200 facts stands four times, in float64."""
    normal, unit = random_facts(generator, 200, family.width)
    keys, labels = keys_of(normal, model.size.head).double(), (unit * model.size.q).long()
    reader, again = model.reader, (keys.repeat(4, 1), labels.repeat(4))
    once = reader.scores(keys[:20], keys, labels).softmax(-1) @ reader.votes(keys, labels)
    four = reader.scores(keys[:20], *again).softmax(-1) @ reader.votes(*again)
    return float((once - four).abs().max() / once.abs().max())


def said_twice(own_token: bool, generator: torch.Generator, **architecture) -> float:
    """Largest change of a logit, over the largest logit, when the whole prompt of a random network is repeated."""
    model = Transformer(TransformerConfig(d=16, q=4, heads=2, **architecture), generator=generator).double()
    prompt, queries = (torch.randn(1, n, 16, generator=generator).double() for n in (24, 1))
    once = model(prompt, queries, own_token=own_token)
    twice = model(prompt.repeat(1, 2, 1), queries, own_token=own_token)
    return float((once - twice).abs().max() / once.abs().max())


def judge_everything(
    record: claims.Recorder, result: Result, family: recall.Recaller, generator: torch.Generator
) -> None:
    """A prompt said again: the same logits where order is not seen, another prompt elsewhere."""
    trained = [repeated(model, family, generator) for model in result.models]
    products = {"depth": 4, "causal": True, "positions": "rotary", "norm": "rms", "mlp": 32}
    networks = {
        "one layer, query reads the prompt only": (False, {}),
        "four layers, no mask, query reads the prompt only": (False, {"depth": 4}),
        "one layer, query attends to itself": (True, {}),
        "one layer, causal, rotary": (True, {"causal": True, "positions": "rotary"}),
        "two layers, causal, no positions": (True, {"depth": 2, "causal": True}),
        "four layers, causal, rotary, RMSNorm, token-wise networks": (True, products),
    }
    result.repeated = {name: said_twice(own, generator, **how) for name, (own, how) in networks.items()}
    unordered = [name for name, (own, _) in networks.items() if not own]
    record.theorem(
        "everything-again", theorem="A prompt acts through its measure",
        statement="Logits after saying everything again are the same where order is not seen and queries see the prompt"
        " only: largest relative difference",
        measured=[*trained, *(result.repeated[name] for name in unordered)], bound=0.0, possible=math.inf,
        tolerance=1e-12, parameters={"models": len(result.models), "N": 200, "random networks": unordered},
    )  # fmt: skip


def median_gain(result: Result, remedy: str) -> str:
    """The median gain, as text; where recall has not fallen, only that the length is beyond the longest is known."""
    known = result.gains(remedy)
    above = [math.isinf(model.critical[remedy]) for model in result.models]
    low, high = np.median(known), np.median(np.where(above, np.inf, known))
    return f"{low:.1f}" if low == high else f"at least {low:.1f}"


def best_remedy(result: Result) -> str:
    """The remedy with the largest median gain; of two that are open above, the one with more models still above."""
    tried = [name for name in REMEDIES if name != "as trained"]
    return max(tried, key=lambda name: (np.median(result.gains(name)), result.open(name)))


def tell(result: Result) -> None:
    """The numbers of the page's sentences."""
    models, lengths, alone = result.models, result.lengths, []
    for model in models:  # a context of the right fact only, with each of the values
        x, reader = model.held_out[0].double(), model.reader
        logits = (x @ reader.key_votes + x @ reader.residual)[:, None] + reader.value_votes
        alone.append((logits.argmax(-1) == torch.arange(model.size.q)).double().mean())
    wins = np.array([imperfect_index(model) < model.recall("sharper") for model in models])  # [R, L]
    ratios = []
    for model in models:
        law = bounds.argmax_length(model.size.q, fact_moments.gaps(model.reader, model.held_out[0]).square)
        ratios.append(model.critical["as trained"] / law)
    best = best_remedy(result)
    result.numbers = {
        "models": f"{len(models)}", "alone": f"{min(alone):.3f}", "longest": f"{lengths[-1]:,}",
        "miss_short": f"{wins[:, lengths.index(256)].sum()}", "miss_long": f"{wins[:, -1].sum()}",
        "still_falls": f"{sum(math.isfinite(model.critical['look up first']) for model in models)}",
        "best": f"“{best}”", "best_gain": median_gain(result, best),
        "law_least": f"{min(ratios):.2f}", "law_most": f"{max(ratios):.2f}",
    }  # fmt: skip


def imperfect_index(model: Model, missed: float = 0.1) -> Float[np.ndarray, " L"]:
    """Recall of the look-up if its index misses the right fact with this probability, and the model then guesses."""
    return (1 - missed) * model.recall("look up first") + missed / model.size.q


def remedies_table(result: Result) -> figures.Table:
    """What each remedy does to the length at which recall falls to a half."""
    rows = []
    for name in (name for name in REMEDIES if name != "as trained"):
        known, above = result.gains(name), result.open(name)
        rows.append((
            name, median_gain(result, name), f"{known.min():.1f} to {known.max():.1f}{' or more' if above else ''}",
            f"{above} of {len(result.models)}",
        ))  # fmt: skip
    rows.append(("say everything again", "1.0", "the same logits", "–"))
    return figures.Table(("remedy", "times as far (median)", "all models", "never below a half"), rows)


def repeated_table(result: Result) -> figures.Table:
    """Random networks whose whole prompt is said again."""
    return figures.Table(("network", "largest change of a logit, over the largest logit"), [
        (name, f"{change:.1e}" if change < 1e-9 else f"{change:.2g}") for name, change in result.repeated.items()
    ])  # fmt: skip


SHARES, RANGES = (0.1, 0.5, 0.9), (5, 10, 15)


def range_table() -> figures.Table:
    """The range of logits that a share of the attention needs, and the share that a range allows."""

    def percent(share: float) -> str:
        return f"{100 * share:.4g} %" if share > 0.999 else f"{100 * share:.3g} %"

    header = ("tokens", *(f"range for {100 * share:.0f} %" for share in SHARES),
              *(f"most at range {delta}" for delta in RANGES))  # fmt: skip
    return figures.Table(header, [
        (text, *(f"{bounds.dilution_range(N, share):.1f}" for share in SHARES),
         *(percent(bounds.dilution(N, delta)) for delta in RANGES))
        for text, N in (("1 thousand", 10**3), ("8 thousand", 8000), ("128 thousand", 128_000), ("1 million", 10**6),
                        ("10 million", 10**7))
    ])  # fmt: skip


LOOKS = {
    "as trained": ("measured", "-"), "sharper": ("predicted", "--"), "say it again": ("heuristic", "-."),
    "grow with the context": ("constructed", "-"), "look up first": ("bound", "--"), "read in parts": ("text", ":"),
}  # fmt: skip


def remedies_figure(result: Result) -> figures.Picture:
    """Recall against the number of facts for one model, with each remedy."""
    model, lengths = result.middle, result.lengths
    bands = {
        name: np.transpose([
            intervals.bootstrap(hits, np.mean, np.random.default_rng(0), resamples=200) for hits in model.found[name]
        ])
        for name in REMEDIES
    }  # fmt: skip

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        for name, (colour, dashes) in LOOKS.items():
            ax.fill_between(lengths, *bands[name], color=COLOURS[colour], alpha=0.15, linewidth=0)
            ax.plot(lengths, model.recall(name), dashes, color=COLOURS[colour], label=name)
        ax.axhline(1 / model.size.q, color=COLOURS["neutral"], linewidth=0.8)
        ax.text(lengths[0], 1 / model.size.q + 0.015, "guessing", fontsize=9, color=COLOURS["neutral"], va="bottom")
        ax.set_ylim(0, 1.03)
        ax.set_xlabel("facts in the context")
        ax.set_ylabel("recall")
        if figures.narrow(figure):
            figure.legend(loc="outside lower center", ncols=2)
            return
        heights = figures.spread([model.recall(name)[-1] for name in LOOKS], 0.065)
        for height, (name, (colour, _)) in zip(heights, LOOKS.items(), strict=True):
            ax.annotate(
                name, (1.02, height), xycoords=("axes fraction", "data"), va="center", fontsize=9,
                color=COLOURS[colour], annotation_clip=False,
            )  # fmt: skip

    best, n = best_remedy(result), len(result.models)
    return figures.show(
        draw, size=(7.4, 4), name="remedies",
        finding=f"In the median of {n} models “{best}” moves the fall furthest: {median_gain(result, best)} times as"
        " far as without a remedy.",
        caption=f"Recall of one model, trained on {model.size.facts} facts with {model.size.q} values; bands at 95 %.",
        alt="Recall of a fact against the number of facts in the context, for one trained model: without a remedy, and"
        " with sharper logits, the fact said again, logits that grow with the context, a look-up first, and reading in"
        " parts; and the level of guessing.",
    )  # fmt: skip
