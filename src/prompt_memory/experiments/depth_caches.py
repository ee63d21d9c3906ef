"""Chapter 8b: the caches of trained networks, shortened as Theorem 6b does it, and the facts that questions lose by it.

`run` comes after `depth.run`, and writes its forecasts down before a cache is shortened.  Shape: `C` contexts.
"""

import bisect
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from prompt_memory import bounds, intervals
from prompt_memory.book import claims, figures
from prompt_memory.compress import cache_logits, compress_cache, prompt_cache, read_cache
from prompt_memory.experiments.depth import Model, context, spread_of


@dataclass(frozen=True)
class Settings:
    """How much is run: degrees; contexts a network, questions in each; bootstrap resamples."""

    degrees: tuple[int, ...]
    contexts: int
    questions: int
    resamples: int

    def of(self, model: Model) -> list[int]:
        """The degrees at which a layer keeps fewer positions than the cache has."""
        c = model.member.config
        return [k for k in self.degrees
                if bounds.cache_positions(c.depth, k, c.d_k, c.d_v, c.heads)[0] < length(model)]  # fmt: skip


PROFILES = {
    "smoke": Settings((0, 1), contexts=6, questions=256, resamples=500),
    "standard": Settings((0, 1, 2), contexts=4, questions=320, resamples=4000),
    "full": Settings((0, 1, 2), contexts=60, questions=512, resamples=4000),
}


@dataclass(eq=False)
class Shortened:
    """Recall of one network from caches of one length, whole and at one degree; one row a context."""

    name: str
    facts: int
    degree: int
    positions: int  # kept in each layer
    logits: float  # half the range of a question's softmax logits in the reading layer, the largest of all questions
    whole: Float[np.ndarray, " C"]
    moments: Float[np.ndarray, " C"]
    subset: Float[np.ndarray, " C"]  # as many positions drawn at random, the same in all layers, of equal weights
    kept: Float[np.ndarray, "C 2"]  # of the facts whose position the reading layer kept: right answers, questions
    dropped: Float[np.ndarray, "C 2"]  # and of the others

    @property
    def dropped_recall(self) -> float:
        """Recall of the facts whose position was dropped."""
        return float(self.dropped[:, 0].sum() / self.dropped[:, 1].sum())

    @property
    def kept_recall(self) -> float:
        """Recall of the facts whose position was kept; NaN if none was asked for."""
        right, asked = self.kept.sum(0)
        return float(right / asked) if asked else math.nan


def length(model: Model) -> int:
    """Facts in the caches that are shortened: the longest length with a forecast recall of at least a half."""
    good = [N for N, recall in zip(model.lengths, model.forecast["tally"], strict=True) if recall >= 0.5]
    return max(good, default=model.lengths[0])


def run(models: list[Model], profile: str, *, record: claims.Recorder, generator: torch.Generator) -> list[Shortened]:
    """Forecasts first, then caches are shortened."""
    settings = claims.settings(PROFILES, profile)
    predict(record, models, settings)
    runs = [each for model in models for each in shorten(model, settings, generator)]
    judge(record, runs, np.random.default_rng(record.seed), settings.resamples)
    return runs


def predict(record: claims.Recorder, models: list[Model], settings: Settings) -> None:
    """Write down what shortened caches will recall."""
    runs = [(model, k) for model in models for k in settings.of(model)]
    parameters = {"facts, degree": [[model.name, length(model), k] for model, k in runs]}
    record.predict(
        "dropped-facts", theorem="Heuristic: a fact is where it is",
        statement="Recall, from a cache with the same means up to degree $k$, of facts whose positions the reading"
        " layer dropped: that of guessing, for every network and $k$",
        predicted=[1 / model.member.config.q for model, _ in runs], possible=(0, 1), absolute=0.1,
        parameters=parameters,
    )  # fmt: skip
    record.predict(
        "means-or-subset", theorem="Heuristic: a fact is where it is",
        statement="Recall from a cache with the same means up to degree $k$, less that from as many positions drawn at"
        " random: none, for every network and $k$",
        predicted=[0.0] * len(runs), possible=(-1, 1), absolute=0.1, parameters=parameters,
    )  # fmt: skip


def shorten(model: Model, settings: Settings, generator: torch.Generator) -> list[Shortened]:
    """Recall from whole and shortened caches, in new contexts."""
    member, N = model.member, length(model)
    network, rows, logits = member.transformer, {k: [] for k in settings.of(model)}, 0.0
    for _ in range(settings.contexts):
        keys, labels, asked = context(member, N, settings.questions, generator)
        cache = prompt_cache(network, member.facts(keys, labels))
        questions, right = member.questions(keys[asked]), labels[asked].numpy()

        def hits(held, questions=questions, right=right):
            return read_cache(network, held, questions, position=N)[0].argmax(1) == right

        readers = read_cache(network, cache, questions, position=N)[1]
        logits = max(logits, float(cache_logits(member.config, cache, readers)[model.reads].max()))
        whole = hits(cache).mean()
        for k, found in rows.items():
            short = compress_cache(network, cache, k)
            size = max(map(len, short.positions))
            drawn = torch.randperm(N, generator=generator)[:size].sort().values.numpy()
            hit, inside = hits(short), np.isin(asked.numpy(), short.positions[model.reads])
            counts = hit[inside].sum(), inside.sum(), hit[~inside].sum(), (~inside).sum()
            found.append((size, whole, hit.mean(), hits(cache[drawn]).mean(), *counts))
    runs = []
    for k, found in rows.items():
        size, whole, moments, subset, *counts = np.array(found, float).T
        kept, dropped = np.stack(counts[:2], 1), np.stack(counts[2:], 1)
        runs.append(Shortened(model.name, N, k, int(size.max()), logits, whole, moments, subset, kept, dropped))
    return runs


def needed_degree(B: float) -> int:
    """The least k with ρ_k(min{B, 30}) < ½; the error that Theorem 6b allows a head is twice its size times ρ_k."""
    return bisect.bisect_left(range(41), True, key=lambda k: bounds.softmax_remainder(k, min(B, 30.0)) < 0.5)


def judge(record: claims.Recorder, runs: list[Shortened], rng: np.random.Generator, resamples: int) -> None:
    """Complete the forecasts; intervals by resampling contexts, for all runs together."""
    drawn = [intervals.resampled(run.dropped, rng, resamples) for run in runs]  # [B, 2] each
    interval = intervals.simultaneous(np.stack([each[:, 0] / each[:, 1] for each in drawn], 1))
    record.measure("dropped-facts", [run.dropped_recall for run in runs], interval=interval)
    drawn = [intervals.resampled(run.moments - run.subset, rng, resamples) for run in runs]
    interval = intervals.simultaneous(np.stack(drawn, 1))
    record.measure("means-or-subset", [(run.moments - run.subset).mean() for run in runs], interval=interval)


def caches_table(runs: list[Shortened]) -> figures.Table:
    """Recall from whole and shortened caches."""
    rows = [
        (run.name, f"{run.facts:,}", f"{run.degree}", f"{run.positions}", f"{run.whole.mean():.2f}",
         f"{run.moments.mean():.2f}", f"{run.subset.mean():.2f}",
         f"{run.kept_recall:.2f}" if math.isfinite(run.kept_recall) else "none asked", f"{run.dropped_recall:.2f}")
        for run in runs
    ]  # fmt: skip
    header = ("network", "facts", "k", "kept", "whole cache", "equal means", "drawn at random", "kept facts",
              "dropped facts")  # fmt: skip
    return figures.Table(header, rows)


def numbers(models: list[Model], runs: list[Shortened]) -> dict[str, str]:
    """The numbers of the page's sentences."""
    gained = max(run.moments.mean() - run.subset.mean() for run in runs)
    k, c = needed_degree(min(run.logits for run in runs)), models[0].member.config
    return {
        "needed": f"{k}",
        "needed_positions": figures.scientific(bounds.head_moment_count(k, c.d_k, c.d_v, c.heads), up=True),
        "dropped": spread_of([run.dropped_recall for run in runs]),
        "means_sentence": "Equal means keep no more than a random choice of as many positions."
        if gained < 0.1
        else f"Equal means keep up to {gained:.2f} more recall than a random choice of as many positions.",
    }
