"""Chapter 13, labelings of texts that share their read token: written, found, and counted (Theorem 13, part 4)."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prompt_memory import bounds, measure, tasks, tune
from prompt_memory.book import claims
from prompt_memory.experiments.single_layer import PROFILES, Settings, network, normal
from prompt_memory.network.shared_token import prompt_token, shared_texts
from prompt_memory.network.transformer import Transformer

ONE_HEAD = {"d": 8, "heads": 1, "d_k": 4, "d_v": 5}
OTHERS = {
    "two heads": ONE_HEAD | {"heads": 2, "d_v": 4},
    "token-wise network": ONE_HEAD | {"mlp": 16},
    "two layers": ONE_HEAD | {"depth": 2},
}
VISIBLE = 1e-9  # a margin above rounding
LENGTH = 4  # tokens of the prompts that are tuned


@dataclass
class Result:
    """Labelings reached: (texts, classes) to a number; of other networks (name, texts), two classes."""

    settings: Settings
    written: dict[tuple[int, int], int] = field(default_factory=dict)
    found: dict[tuple[int, int], int] = field(default_factory=dict)
    others: dict[tuple[str, int], int] = field(default_factory=dict)
    numbers: dict[str, object] = field(default_factory=dict)

    @property
    def most(self) -> int:
        """The most texts with two classes."""
        return self.settings.texts[2]


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator) -> Result:
    """One head: written and found, in many texts and inside one; then networks that part 4 does not bound."""
    result = Result(claims.settings(PROFILES, profile))
    texts = result.settings.texts
    plain = {q: network(generator, q=q, **ONE_HEAD) for q in texts}
    pool = normal(generator, max(texts.values()), 8)
    read = 0.5 * normal(generator, 8)  # a short read token: attention is not flat, nor on itself alone
    judge_one_head(record, result, plain, pool, read, generator)
    judge_one_text(record, result, pool, read, generator)
    for name, architecture in OTHERS.items():
        model = network(generator, q=2, **architecture)
        for n in range(2, result.most + 1):
            hit = reached(result.settings, generator, model, shared_texts(pool[:n], read), tasks.all_labels(n, 2))
            result.others[name, n] = int(hit.sum())
    summarise(result)
    return result


def write_labeling(
    model: Transformer, read: Float[Tensor, " d"], prices: Float[np.ndarray, " q"], mass: float
) -> Float[Tensor, "1 d"]:
    """The prompt of one token with this mass that adds these prices κ to the mass-weighted logits, one head."""
    M, c = (model.blocks[0].output @ model.unembedding).T.numpy(), (read @ model.unembedding).numpy()
    # up to a common constant
    N = np.linalg.lstsq(np.c_[M, np.ones(len(M))], prices - mass * c, rcond=None)[0][:-1]
    return prompt_token(model, read, torch.tensor([math.log(mass)]), torch.tensor(N / mass)[None])


def reached(
    settings: Settings, generator: torch.Generator, model: Transformer, queries: Float[Tensor, "n T d"],
    labels: Int[Tensor, "N n"], **how,
) -> Bool[Tensor, " N"]:  # fmt: skip
    """For every labeling whether a prompt of four tokens was found that memorises it."""
    runs = labels.repeat_interleave(settings.label_starts, 0)
    start = normal(generator, len(runs), LENGTH, model.config.d)
    _, success = tune.tune_labels(model, queries, runs, start, steps=settings.label_steps, **how)
    return success.unflatten(0, (-1, settings.label_starts)).any(1)


def judge_one_head(
    record: claims.Recorder, result: Result, plain: dict[int, Transformer], pool: Float[Tensor, "n d"],
    read: Float[Tensor, " d"], generator: torch.Generator,
) -> None:  # fmt: skip
    """Every allowed labeling written down; then a search for all labelings."""
    grid = [(n, q) for q, most in result.settings.texts.items() for n in range(2, most + 1)]
    ceilings, every = [bounds.shared_token_labelings(*pair) for pair in grid], np.array([q**n for n, q in grid])
    record.predict(
        "labelings-found", theorem="Theorem 13, part 4",
        statement="Labelings found by search in one head: $\\binom{n+q-1}{q-1}$ of $q^n$",
        predicted=ceilings, absolute=0.0, possible=(0, every), searched=True,
        parameters={"n, q": [list(pair) for pair in grid], "prompt tokens": LENGTH},
    )  # fmt: skip
    outside = []
    for n, q in grid:
        queries = shared_texts(pool[:n], read)
        F, masses, _ = measure.without_prompt(plain[q], pool[:n], read)
        allowed, prices = measure.price_labelings((masses * F).numpy())
        tokens = torch.stack([write_labeling(plain[q], read, each, masses.mean().item()) for each in prices])
        margin = measure.logit_margins(plain[q](tokens, queries), torch.tensor(allowed)).amin(-1)
        labels = tasks.all_labels(n, q)
        hit = reached(result.settings, generator, plain[q], queries, labels)
        outside.append(len({tuple(y) for y in labels[hit].tolist()} - {tuple(y) for y in allowed.tolist()}))
        result.written[n, q], result.found[n, q] = int((margin > VISIBLE).sum()), int(hit.sum())
    record.theorem(
        "labelings-written", theorem="Theorem 13, part 4: reached",
        statement="Labelings that written prompts of one token give in the network, each by its own margin above"
        " rounding",
        measured=[result.written[pair] for pair in grid], bound=ceilings, possible=(0, every), relation="==",
    )  # fmt: skip
    record.theorem(
        "labelings-outside", theorem="Theorem 13, part 4",
        statement="Labelings found by search that are not among the allowed ones",
        measured=outside, bound=0, possible=every - ceilings, searched=True,
    )  # fmt: skip
    record.measure("labelings-found", [result.found[pair] for pair in grid])


def judge_one_text(
    record: claims.Recorder, result: Result, pool: Float[Tensor, "n d"], read: Float[Tensor, " d"],
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Labels at the occurrences of one token in one causal text obey the same count."""
    n = result.most - 1
    causal = network(generator, q=2, causal=True, **ONE_HEAD)
    text = shared_texts(pool[:n], read).reshape(1, 2 * n, 8)  # x_1 x_0 x_2 x_0 …
    places = torch.arange(1, 2 * n, 2)
    (seen,), logits = measure.own_and_prompt(causal, text)
    scores = seen.log_mass[0, 0, places, None].exp() * logits[0, places]
    allowed, prices = measure.price_labelings(scores.numpy())
    tokens = torch.stack([write_labeling(causal, read, each, 1.0) for each in prices])
    margin = measure.logit_margins(causal(tokens, text, read="all")[:, 0, places], torch.tensor(allowed)).amin(-1)
    hit = reached(result.settings, generator, causal, text, tasks.all_labels(n, 2), read=places)
    bound = bounds.shared_token_labelings(n, 2)
    record.theorem(
        "labelings-repeated", theorem="Theorem 13, part 4",
        statement="Labels at the occurrences of one token in one causal text: found by search, at most $n + 1$"
        " labelings",
        measured=int(hit.sum()), bound=bound, possible=2**n, searched=True,
    )  # fmt: skip
    record.theorem(
        "labelings-repeated-written", theorem="Theorem 13, part 4: reached",
        statement="Labels at the occurrences of one token: written by prompts of one token, with a margin above"
        " rounding",
        measured=int((margin > VISIBLE).sum()), bound=bound, possible=(0, 2**n), relation="==",
    )  # fmt: skip
    result.numbers |= {"occurrences": f"{n}", "occurrences_found": f"{int(hit.sum())} of {2**n}"}


def summarise(result: Result) -> None:
    """What sentences of the page say about the counts."""
    most, found = result.most, result.found
    all_found = sum(found[pair] == bounds.shared_token_labelings(*pair) for pair in found)
    result.numbers |= {
        "pairs_found": f"{all_found} of the {len(found)}", "most": f"{most}", "most_all": f"{2**most}",
        "most_bound": f"{bounds.shared_token_labelings(most, 2)}", "most_found": f"{found[most, 2]}",
        "deep_found": f"{result.others['two layers', most]}",
        "heads_found": f"{result.others['two heads', most]}",
        "mlp_found": f"{result.others['token-wise network', most]}",
        "bites": f"{next(n for n in range(2, 1000) if bounds.shared_token_bits(n, 2, 2) < n)}",
    }  # fmt: skip
