"""Chapter 8, parts 3 to 5 of its theorem: networks small or simple enough to know what every context does to them."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats

from prompt_memory import bounds, measure, pretrain, tasks
from prompt_memory.book import claims, figures
from prompt_memory.measure import fact_recall
from prompt_memory.measure.contexts import all_contexts, cells, exchanged
from prompt_memory.network import averaging, recall
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tasks.facts import keys_of
from prompt_memory.tune import encoder

VOTES = (1, 2)  # what one of two labels adds to a comparison; the other takes one away
FEW = 2 ** np.arange(2, 15) + 1  # facts in memories without a margin; odd: an even number of others can be in balance
EXCHANGE_LENGTHS = (32, 128, 512)
QUERIES = (2, 4, 8, 10, 16, 32, 64)  # that a labeling is asked for; all labelings up to ten
MARGIN, CIRCLE_MARGIN = 0.5, 0.5  # 2ε of the enumerated networks, and of the models with keys on a circle


@dataclass(frozen=True)
class Settings:
    """How much is run: networks whose contexts of up to `tokens` tokens are enumerated, labelings drawn for each;
    facts of tuned contexts, their labelings and steps; the most facts of contexts of one fact a token."""

    networks: int
    tokens: int
    sampled: int
    asked: tuple[int, ...]
    labelings: int
    steps: int
    plane: int


PROFILES = {
    "smoke": Settings(
        networks=2, tokens=8, sampled=200, asked=(4, 16, 64, 1024), labelings=8, steps=60, plane=2**12
    ),
    "standard": Settings(
        networks=8, tokens=20, sampled=2000, asked=(4, 8, 16, 32, 64, 256, 1024, 4096), labelings=32, steps=200,
        plane=2**14,
    ),
    "full": Settings(
        networks=8, tokens=24, sampled=20000, asked=(4, 8, 16, 32, 64, 256, 1024, 4096), labelings=256, steps=1000,
        plane=2**16,
    ),
}  # fmt: skip


@dataclass
class Enumerated:
    """All contexts of a network with a vocabulary of four tokens."""

    contexts: int
    grown: Float[np.ndarray, " K"]  # log2 of the cells that cover contexts of at most so many tokens
    best: dict[int, float]  # recall with margin of the best context, mean over labelings of so many queries
    C: dict[int, float]  # log2 of the cells that cover the answers to so many queries


@dataclass
class Circle:
    """A trained model with keys on a circle, its bound C, and recall with margin: of facts and of tuned contexts."""

    factor: float  # on its softmax logits
    B: float
    C: float
    facts: dict[int, Float[np.ndarray, " contexts"]]
    tuned: dict[int, Float[np.ndarray, " S"]]

    def most(self) -> float:
        """The most bits that either kind of context retains, in the mean of its contexts."""
        return max(n * bounds.rate(1 - x.mean(), 2) for kind in (self.facts, self.tuned) for n, x in kind.items())


@dataclass
class Result:
    """What the networks of this module show."""

    plain: Float[np.ndarray, "2 K"] = None  # exact recall of the memories without a margin
    swaps: dict[str, list[tuple[float, float]]] = None  # (moved, E(N)) at each length
    enumerated: list[Enumerated] = field(default_factory=list)
    circle: list[Circle] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)


def run(settings: Settings, *, record: claims.Recorder, generator: torch.Generator, contexts: int) -> Result:
    """Parts 4, 5 and 3; `contexts` at each number of facts for the models with keys on a circle."""
    result = Result()
    judge_plain(record, result)
    judge_depth(record, result, generator)
    result.enumerated = [enumerate_contexts(settings, generator) for _ in range(settings.networks)]
    judge_enumerated(record, result, settings)
    result.circle = circle_models(settings, contexts, record.seed, generator)
    judge_moments(record, result, settings)
    return result


def exact_recall(up: int, N: int) -> float:
    """Plain recall of one of N facts, each of which adds `up` or −1 to a comparison, with equal odds.

    Σ_w Pr[Bin(N − 1, ½) = w] (1[T_w + up > 0] + 1[T_w − 1 < 0])/2, with T_w = up·w − (N − 1 − w) from the others.
    """
    wins = np.arange(N)  # of the N − 1 others
    T, chance = up * wins - (N - 1 - wins), stats.binom.pmf(wins, N - 1, 0.5)
    return (chance[T + up > 0].sum() + chance[T - 1 < 0].sum()) / 2


def judge_plain(record: claims.Recorder, result: Result) -> None:
    """Part 4 where votes are two numbers and attention is equal: nothing is sampled."""
    result.plain = np.array([[exact_recall(up, int(N)) for N in FEW] for up in VOTES])
    ceilings = [
        [bounds.argmax_recall_ceiling(int(N), 2, spread=up + 1, deviation=(up + 1) / 2) for N in FEW] for up in VOTES
    ]
    record.theorem(
        "plain-rate", theorem="Theorem 8, part 4",
        statement="Plain recall of two labels at equal attention, exactly, is at most $\\frac12 + \\frac34"
        " \\rho/(\\sigma \\sqrt{N-1})$",
        measured=result.plain, bound=ceilings, possible=1.0, parameters={"N": FEW},
    )  # fmt: skip
    share = (result.plain[0, -1] - 0.5) * math.sqrt(FEW[-1] - 1) / 1.5
    result.numbers |= {"plain_share": f"{share:.2f}", "plain_last": f"{FEW[-1]:,}"}


def deep_networks(generator: torch.Generator) -> dict[str, tuple[Transformer, str]]:
    """Networks that nobody trained, and how a token of theirs is exchanged."""
    found = {}
    for depth in (1, 2, 3):
        layers = f"{depth} layer{'s' * (depth > 1)}"
        for causal in (True, False):
            name = f"flat, {layers}, {'causal' if causal else 'bidirectional'}"
            found[name] = averaging.averaging_network(depth, causal=causal), "flat"
        config = TransformerConfig(
            d=4, q=3, depth=depth, heads=2, mlp=8, norm="rms", norm_eps=0.5, causal=True, positions="rotary"
        )
        found[f"random, {layers}, rotary, norms"] = Transformer(config, generator=generator).double(), "random"
    steep = Transformer(TransformerConfig(d=2, q=2, inverse_temperature=math.sqrt(2))).double()  # A = 1, values: tokens
    for weight in (steep.blocks[0].query, steep.blocks[0].key, steep.blocks[0].value, steep.blocks[0].output):
        weight.copy_(torch.eye(2))
    steep.unembedding.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    return found | {"one head, B = 1, top and bottom": (steep, "one head")}


def swap_one(model: Transformer, N: int, how: str, generator: torch.Generator) -> tuple[float, float]:
    """(moved, E(N)) for one token of N: how far apart two tokens move half the largest difference of two logits."""
    c, d = model.config, model.config.d
    prompt, queries = (measure.into_ball(torch.randn(k, d, generator=generator).double(), 1.0) for k in (N, 8))
    token = -prompt[0] / prompt[0].norm()
    if how == "flat":
        prompt, queries = 0 * prompt, 0 * queries
    if how == "one head":
        prompt, queries = -torch.eye(d)[:1].double().repeat(N, 1), torch.eye(d)[:1].double()
        prompt[0], token = torch.eye(d)[0], (1 - 1e-3) * torch.eye(d)[0].double()
    moved = exchanged(model, prompt, token, queries, own_token=how == "random")
    weights = measure.numpy_weights(model)
    change = float((prompt[0] - token).norm())
    return moved, bounds.exchange_effect(c, weights, N, radius=1.0, query_radius=1.0, change=change)


def judge_depth(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """Part 5 for one to three layers."""
    networks = deep_networks(generator)
    result.swaps = {
        name: [swap_one(model, N, how, generator) for N in EXCHANGE_LENGTHS]
        for name, (model, how) in networks.items()
    }  # fmt: skip
    record.theorem(
        "any-depth", theorem="Theorem 8, part 5",
        statement="How far another first token moves half the largest difference of two logits is at most $E(N)$, one"
        " to three layers",
        measured=[[moved for moved, _ in row] for row in result.swaps.values()],
        bound=[[bound for _, bound in row] for row in result.swaps.values()],
        possible=math.inf, tolerance=1e-12, parameters={"networks": list(result.swaps), "N": EXCHANGE_LENGTHS},
    )  # fmt: skip
    random = [moved / bound for name, row in result.swaps.items() for moved, bound in row if name.startswith("random")]
    result.numbers["random_share"] = figures.scientific(max(random), up=True)


def covered(tokens: int) -> list[int]:
    """The numbers of tokens up to which cells are counted."""
    return [*(m for m in (1, 2, 4, 8) if m < tokens), tokens]


def enumerate_contexts(settings: Settings, generator: torch.Generator) -> Enumerated:
    """All contexts of one random network: cells of its answers, and the best context of every labeling."""
    model = Transformer(TransformerConfig(d=4, q=4, heads=1, inverse_temperature=4.0), generator=generator)
    model.unembedding.mul_(4)
    queries = tasks.random_queries(64, 4, generator=generator)
    table, counts = all_contexts(model, queries, settings.tokens)
    some = model.embedding[torch.from_numpy(np.repeat(range(4), counts[-1]))][None]  # the formula is the network
    direct = model(some, queries, own_token=False)[0].double()
    assert np.allclose((direct[:, 1] - direct[:, 0]) / 2, table[-1], atol=1e-4)
    eps = MARGIN / 2
    covers = [cells(table[counts.sum(1) <= m], eps) for m in covered(settings.tokens)]
    grown = np.log2(np.minimum.accumulate(covers[::-1])[::-1])  # a cover of more contexts covers fewer
    shown = np.where(np.abs(table) > eps, (table > 0).astype(np.uint8), 2)  # 2: no answer with the margin
    best, C = {}, {}
    for n in QUERIES:
        few = n <= 10
        labels = tasks.all_labels(n, 2) if few else tasks.random_labels(settings.sampled, n, 2, generator=generator)
        best[n] = measure.best_recall(measure.distinct(shown[:, :n]), labels, 3).mean()
        C[n] = math.log2(cells(table[:, :n], eps))
    return Enumerated(len(table), grown, best, C)


def judge_enumerated(record: claims.Recorder, result: Result, settings: Settings) -> None:
    """Part 3 with a counted C; no optimiser is in between."""
    every = result.enumerated
    few, many = [n for n in QUERIES if n <= 10], [n for n in QUERIES if n > 10]
    record.theorem(
        "enumerated", theorem="Theorem 8, part 3",
        statement="$N R_q(1-a)$ of the best of all contexts, exactly over all labelings of up to ten queries, is at"
        " most $C$, counted",
        measured=[[n * bounds.rate(1 - row.best[n], 2) for n in few] for row in every],
        bound=[[row.C[n] for n in few] for row in every], possible=few, tolerance=1e-9,
        parameters={"contexts": every[0].contexts, "margin": MARGIN},
    )  # fmt: skip
    record.sampled(
        "enumerated-many", theorem="Theorem 8, part 3",
        statement="Recall with margin of the best of all contexts, 16 to 64 queries, is at most the ceiling at $C$"
        " counted bits",
        mean=[[row.best[n] for n in many] for row in every], samples=settings.sampled,
        variables=np.array(many) * settings.sampled,
        bound=[[bounds.recall_ceiling(row.C[n], n, 2) for n in many] for row in every],
    )  # fmt: skip
    result.numbers |= {
        "sampled": f"{settings.sampled:,}", "contexts": f"{every[0].contexts:,}", "enum_tokens": f"{settings.tokens}"
    }  # fmt: skip


def circle_bits(reader: recall.Reader) -> tuple[float, float]:
    """(B, C): the largest softmax logit, and the bits from Theorem 6 that contexts of any length have with margin."""
    B, S = recall.swing(reader)
    options = {"k": None, "d_k": 2, "d_v": 1, "heads": 1, "lipschitz": 1.0, "eps": CIRCLE_MARGIN / 4}
    return B, bounds.moment_bits(B=B, scale=S, **options)


def tempered(reader: recall.Reader, most: float) -> tuple[recall.Reader, float]:
    """The model, its softmax logits multiplied by the largest power of 0.95 at which C is at most `most` bits.

    C grows like a power of e^{2B}: a model that was trained to sharp attention has more bits than any experiment can
    ask for, and no recall could pass its bound.  Returns the model and the factor, one if C is small enough.
    """
    factor = 1.0
    while circle_bits(soft := recall.sharper(reader, factor))[1] > most:
        factor *= 0.95
    return soft, factor


def circle_models(settings: Settings, contexts: int, seed: int, generator: torch.Generator) -> list[Circle]:
    """Two trained models whose keys lie on a circle: facts one a token, and contexts of 64 tokens, tuned freely."""
    recipe = pretrain.RecallFamily(
        head_sizes=(2,), values=(2,), facts=(4,), copies=2, d_v=2, batch=64, steps=300, seed=seed
    )
    plane, found = pretrain.train(recipe).transformer, []
    for row in range(2):
        reader, factor = tempered(recall.reader(plane, row), 0.75 * settings.asked[-1])
        B, C = circle_bits(reader)
        facts, tuned = {}, {}
        for N in 2 ** np.arange(2, int(math.log2(settings.plane)) + 1):
            measured = fact_recall.measure_recall(
                plane, int(N), 2 * contexts, 32, (CIRCLE_MARGIN,), generator=generator, members=[row],
                sharpen=[factor] * 2,
            )  # fmt: skip
            facts[int(N)] = measured.recall[0, :, 0]
        for n in settings.asked:
            x = keys_of(torch.randn(n, 2, generator=generator), 2)
            labelings = max(8, min(settings.labelings, 2**13 // n))
            labels = tasks.random_labels(labelings, n, 2, generator=generator)
            tuned[n] = encoder.encode(
                reader, x, labels, 64, CIRCLE_MARGIN, steps=settings.steps, generator=generator
            )  # fmt: skip
        found.append(Circle(factor, B, C, facts, tuned))
    return found


def judge_moments(record: claims.Recorder, result: Result, settings: Settings) -> None:
    """Part 3 with C from Theorem 6: no labeling of a tuned context does better than is practically impossible."""
    circle, last = result.circle, settings.asked[-1]
    unlikely = math.log2(claims.LEVEL / claims.FAMILY / settings.labelings)
    tested = [
        (x.max(), bounds.recall_quantile(each.C, n, 2, unlikely)) for each in circle for n, x in each.tuned.items()
    ]
    record.theorem(
        "moments", theorem="Theorem 8, part 3, with Theorem 6",
        statement="Recall with margin of a tuned context, the best of all labelings, is at most what $C$ bits from"
        " moments allow",
        measured=[best for best, _ in tested], bound=[top for _, top in tested], possible=1.0, tail=True, searched=True,
        parameters={name: [getattr(each, name) for each in circle] for name in ("C", "B", "factor")},
    )  # fmt: skip
    most = [each.most() for each in circle]
    kept = [last * bounds.rate(1 - each.tuned[last].mean(), 2) for each in circle]
    result.numbers |= {
        "plane_B": " and ".join(f"{each.B:.1f}" for each in circle),
        "plane_C": " and ".join(f"{each.C:,.0f}" for each in circle),
        "plane_factor": " and ".join(f"{each.factor:.2f}" for each in circle),
        "plane_most": " and ".join(f"{value:.1f}" for value in most), "plane_last": f"{last:,}",
        "plane_kept": " and ".join(f"{value:.1f}" for value in kept),
        "plane_gap": f"{min(each.C / max(value, 0.1) for each, value in zip(circle, most, strict=True)):.0f}",
    }  # fmt: skip
