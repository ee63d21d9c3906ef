"""One string at a time and batched, at equal steps and at equal success, on the same frozen weights."""

import math
import statistics

import torch
from jaxtyping import Int
from torch import Tensor

from prompt_memory import pretrain, tune
from prompt_memory.bench.peft_baseline import Attempt, OneAtATime
from prompt_memory.bench.settings import Settings
from prompt_memory.bench.timing import matmul_rates, seconds, step_flops
from prompt_memory.pretrain import FrozenModel
from prompt_memory.tasks import language

UNREACHED = 1e9  # a margin that no logit has: no run counts as solved, so every run takes all of its steps


def strings_of(frozen: FrozenModel, S: int, n: int, *, generator: torch.Generator) -> Int[Tensor, "S n"]:
    """S strings of n tokens of the language that the model was trained on, on its device; natural ones are held out."""
    if not isinstance(frozen.recipe, pretrain.LanguageModel):
        raise ValueError("strings are for language models, and this is a bit reader")
    if frozen.recipe.corpus == "natural":
        strings = language.natural_strings(S, n, generator=generator)
    else:
        strings = language.Lexicon().sample(S, n, generator=generator)
    return strings.to(frozen.transformer.embedding.device)


def equal_steps(frozen: FrozenModel, m: int, n: int, settings: Settings, *, seed: int = 0) -> dict:
    """Optimiser steps of one string per second, one at a time and batched, and how much of the matrix-product rate.

    In each repetition one string takes `single_steps` steps, then `tune.cram` is called for `batched_steps` steps on
    `runs` strings, everything that a call costs included, then matrix products are timed.  `ratio` is the median of the
    repetitions' ratios.  With one thread it is also what several processes side by side would see, one for each core.
    """
    model, device = frozen.transformer, frozen.transformer.embedding.device
    generator = torch.Generator().manual_seed(seed)
    strings = strings_of(frozen, settings.runs, n, generator=generator)
    single = OneAtATime(model, m)

    def one_at_a_time(steps: int) -> None:
        adamw = single.begin(generator)
        for _ in range(steps):
            single.step(strings[:1], adamw)

    def batched(steps: int) -> None:
        tune.cram(model, strings, m, restarts=1, steps=steps, margin=UNREACHED, seed=seed, batch=settings.runs)

    one_at_a_time(10)
    batched(3)
    single_rates, batched_rates, products = [], [], []
    for _ in range(settings.repetitions):
        taken = seconds(lambda: one_at_a_time(settings.single_steps), device)
        single_rates.append(settings.single_steps / taken)
        taken = seconds(lambda: batched(settings.batched_steps), device)
        batched_rates.append(settings.runs * settings.batched_steps / taken)
        products += matmul_rates(device, settings.matrices)
    ratios = [fast / slow for fast, slow in zip(batched_rates, single_rates, strict=True)]
    # a call scores its last step too: one forward and backward pass more than it takes steps
    flops = step_flops(model.config, 1, m + n - 1) * (settings.batched_steps + 1) / settings.batched_steps
    used, product_rate = statistics.median(batched_rates) * flops, statistics.median(products)
    return {
        "m": m,
        "n": n,
        "threads": torch.get_num_threads(),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "single_steps_per_second": statistics.median(single_rates),
        "batched_steps_per_second": statistics.median(batched_rates),
        "matmul_flops_per_second": product_rate,
        "batched_flops_per_second": used,
        "matmul_fraction": used / product_rate,
    }


def single_n50(frozen: FrozenModel, single: OneAtATime, settings: Settings, *, generator: torch.Generator) -> int:
    """The string length at which tuning one at a time succeeds about half of the time, by an up-and-down search.

    Each trial is one new string.  Lengths double until the first failure; from then on the next string is longer after
    a success and shorter after a failure, by an eighth, at least one token.  Returns the mean length of the second half
    of the trials, rounded.
    """
    longest = frozen.transformer.config.context - single.m
    n, doubling, tried = min(2 * single.m, longest), True, []
    for _ in range(settings.trials):
        string = strings_of(frozen, 1, n, generator=generator)
        solved, _ = single.attempt(string, generator=generator, steps=settings.single_limit, patience=settings.patience)
        tried.append(n)
        doubling = doubling and solved
        step = n if doubling else max(1, n // 8)
        n = min(max(1, n + step if solved else n - step), longest)
    half = tried[len(tried) // 2 :]
    return round(sum(half) / len(half))


def equal_success(frozen: FrozenModel, m: int, settings: Settings, *, seed: int = 0) -> dict:
    """Time for the same strings one at a time and batched, where the first succeeds about half of the time.

    The length n is the n50 of tuning one at a time: at the n50 of `tune.cram` the other would hardly ever succeed, and
    its time until as many successes would be infinite.  Both get the same `strings` strings, drawn after n was found,
    and one start for each; `tune.cram` may take `batched_limit` steps.  A time is that of all strings, failures
    included.  `ratio` is None if `tune.cram` solves fewer strings (its successes are confirmed by decoding, the others'
    by teacher forcing only).  The strings one at a time are timed in four parts,
    whose times are added up, and the call on all of them is timed after each part (median).

    `full_batch_ratio` compares the time of one string when `tune.cram` has `runs` strings, the same and more, to fill
    its batch; None if it solves a smaller share.
    """
    model, device = frozen.transformer, frozen.transformer.embedding.device
    generator = torch.Generator().manual_seed(seed)
    single = OneAtATime(model, m)
    n = single_n50(frozen, single, settings, generator=generator)
    strings = strings_of(frozen, max(settings.strings, settings.runs), n, generator=generator)
    same = strings[: settings.strings]
    limits = dict(steps=settings.single_limit, patience=settings.patience, generator=generator)
    attempts: list[Attempt] = []

    def one_at_a_time(part: Tensor) -> None:
        attempts.extend(single.attempt(string[None], **limits) for string in part)

    def batched(chosen: Tensor) -> tuple[float, int]:
        found = []
        call = dict(restarts=1, steps=settings.batched_limit, seed=seed, batch=settings.runs)
        taken = seconds(lambda: found.append(tune.cram(model, chosen, m, **call)), device)
        return taken, int(found[0].success.sum())

    batched(same)
    single_seconds, calls = 0.0, []
    for part in same.tensor_split(4):
        single_seconds += seconds(lambda part=part: one_at_a_time(part), device)
        calls.append(batched(same))
    full_calls = [batched(strings) for _ in range(3)]
    batched_seconds = statistics.median(taken for taken, _ in calls)
    full_seconds = statistics.median(taken for taken, _ in full_calls) / len(strings)
    single_solved = sum(attempt.solved for attempt in attempts)
    batched_solved = min(solved for _, solved in calls)
    full_share = min(solved for _, solved in full_calls) / len(strings)
    enough = full_share >= single_solved / len(same)
    return {
        "m": m,
        "n": n,
        "strings": len(same),
        "single_solved": single_solved,
        "single_seconds": single_seconds,
        "single_steps": sum(attempt.steps for attempt in attempts),
        "batched_solved": batched_solved,
        "batched_seconds": batched_seconds,
        "ratio": single_seconds / batched_seconds if batched_solved >= single_solved else None,
        "full_batch_strings": len(strings),
        "full_batch_solved_share": full_share,
        "full_batch_seconds_per_string": full_seconds,
        "full_batch_ratio": single_seconds / len(same) / full_seconds if enough else None,
        "batched_n50": batched_n50(frozen, m, settings, seed=seed),
    }


def batched_n50(frozen: FrozenModel, m: int, settings: Settings, *, seed: int = 0) -> float:
    """The median length of the longest beginning that `tune.longest_prefix` finds, one start for each string.

    Infinite if half of the strings are found in full, at `longest` tokens a prompt vector.
    """
    N = min(settings.longest * m, frozen.transformer.config.context - m + 1)
    strings = strings_of(frozen, settings.strings, N, generator=torch.Generator().manual_seed(seed + 1))
    found = tune.longest_prefix(frozen.transformer, strings, m, restarts=1, steps=settings.longest_limit, seed=seed)
    median = statistics.median(found.lengths.tolist())
    return median if median < N else math.inf


def scaling(frozen: FrozenModel, settings: Settings, *, m: int = 2, n: int = 6, seed: int = 0) -> list[tuple]:
    """Strings per second of one call of `tune.cram` on many strings: [(number of strings, rate), …], medians."""
    model, rates = frozen.transformer, {count: [] for count in settings.counts}
    strings = strings_of(frozen, max(rates), n, generator=torch.Generator().manual_seed(seed))

    def batched(count: int) -> None:
        tune.cram(model, strings[:count], m, restarts=1, steps=settings.batched_limit, seed=seed)

    batched(min(rates))
    for _ in range(settings.calls):
        for count, rate in rates.items():
            rate.append(count / seconds(lambda count=count: batched(count), model.embedding.device))
    return [(count, statistics.median(rate)) for count, rate in rates.items()]
