"""What one adaptation remembers of a table of random labels: recall, saved bits, and what rounding leaves of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from prompt_memory.checks import integers
from prompt_memory.network.transformer import Transformer
from prompt_memory.tune.adapters.tables import Table, label_logits, random_table, recalled
from prompt_memory.tune.adapters.together import logits_together
from prompt_memory.tune.adapters.training import tune, tune_together
from prompt_memory.tune.adapters.tunings import Tuning, adapt, trained

START = 1_000_003  # added to the seed of a table for the start of the tuning: a start knows nothing of the labels


class Memory(NamedTuple):
    """What one adaptation remembers of a table of K·n labels: `recall` of exactly this adaptation, and when rounded.

    `gain` is what it saves of the bits of the labels, Σ (log2 q + log2 p(label)), p its softmax under teacher forcing.
    `rounded` holds (bits that describe it, recall) for each number of bits asked for.
    """

    K: int
    n: int
    recall: float
    gain: float
    rounded: list[tuple[float, float]]


@torch.no_grad()
def rounded(adapted: nn.Module, bits: int, start: Sequence[Tensor] | None = None) -> float:
    """Round every trained number to one of 2^bits values, in place; the bits that describe the result.

    Each tensor becomes `start` (zero by default) plus one of 2^bits evenly spaced values from −s to s, where s is the
    largest change in the tensor, in float32.  If `start` is fixed before any label is seen, the result is one of 2^B
    adaptations with B = bits·D + 32·(number of tensors).  ValueError unless bits is an integer >= 1.
    """
    (bits,) = integers(bits=bits)
    weights = trained(adapted)
    origin = [torch.zeros_like(weight) for weight in weights] if start is None else start
    for weight, zero in zip(weights, origin, strict=True):
        change = weight - zero
        largest = change.abs().max()
        if largest > 0:
            place = ((change / largest + 1) / 2 * (2**bits - 1)).round()
            weight.copy_(zero + (2 * place / (2**bits - 1) - 1) * largest)
    return float(bits * sum(weight.numel() for weight in weights) + 32 * len(weights))


@torch.no_grad()
def recall_when_rounded(
    adapted: nn.Module, table: Table, bits: Sequence[int], start: Sequence[Tensor] | None = None
) -> list[tuple[float, float]]:
    """(bits that describe the adaptation, recall) for each entry of `bits`; the module is left as it was."""
    weights = trained(adapted)
    kept, results = [weight.clone() for weight in weights], []
    for b in bits:
        described = rounded(adapted, b, start)
        results.append((described, recalled(adapted, table).double().mean().item()))
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return results


@torch.no_grad()
def likelihood_gain(adapted: nn.Module, table: Table, *, chunk: int = 2048) -> float:
    """Σ (log2 q + log2 p(label)) over all labels, in bits: what an arithmetic code with these probabilities saves."""
    total = 0.0
    for keys, labels in zip(table.keys.split(chunk), table.labels.split(chunk), strict=True):
        logits = label_logits(adapted, Table(keys, labels)).double()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        total += labels.numel() * math.log2(logits.shape[-1]) - loss / math.log(2)
    return total


@torch.no_grad()
def random_guesses(
    model: Transformer,
    tuning: Tuning,
    keys: Int[Tensor, "K T"],
    many: int,
    *,
    spread: float,
    generator: torch.Generator,
) -> Int[Tensor, "many K"]:
    """The labels that `many` random adaptations give to the keys: the start plus normal noise of deviation `spread`."""
    start = trained(adapt(model, tuning))
    numbers = [one + spread * torch.randn(many, *one.shape, generator=generator) for one in start]
    labels = torch.zeros(many, len(keys), 1, dtype=torch.long)
    return logits_together(model, tuning, numbers, Table(keys.expand(many, -1, -1), labels))[:, :, 0].argmax(-1)


def memorise(
    model: Transformer,
    tuning: Tuning,
    K: int,
    n: int,
    *,
    seeds: Sequence[int],
    steps: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
    scale: float = 1.0,
    batch: int = 1024,
    bits: Sequence[int] = (),
) -> list[Memory]:
    """Draw a table of K keys and K·n labels for each seed, adapt the network to each, and count what is recalled.

    Everything random follows from the seed: the table from `seed`, the start from `seed + START`, times `scale`.  With
    the same seed a smaller table of labels is the beginning of a larger one.  Soft prompts, prefixes and LoRA learn all
    tables together with all entries in every step, all weights one after the other with `batch` entries in a step; all
    are judged as modules of `peft` and `transformers`.  ValueError and RuntimeError as in `adapt`, `random_table`,
    `tune`.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    tables = [random_table(K, n, model.config.q, generator=generator) for generator in generators]
    adapted = [adapt(model, tuning, seed=seed + START) for seed in seeds]
    with torch.no_grad():
        for weight in [weight for one in adapted for weight in trained(one)]:
            weight *= scale
    starts = [[weight.detach().clone() for weight in trained(one)] for one in adapted]
    options = dict(steps=steps, learning_rate=learning_rate, betas=betas)
    if tuning.kind == "all weights":
        for one, table, generator in zip(adapted, tables, generators, strict=True):
            tune(one, table, batch=batch, generator=generator, **options)
    else:
        stacked = [torch.stack(parts) for parts in zip(*starts, strict=True)]
        together = Table(*(torch.stack(parts) for parts in zip(*tables, strict=True)))
        found = tune_together(model, tuning, stacked, together, **options)
        with torch.no_grad():
            for number, one in enumerate(adapted):
                for weight, values in zip(trained(one), found, strict=True):
                    weight.copy_(values[number])
    return [
        Memory(K, n, recalled(one, table).double().mean().item(), likelihood_gain(one, table),
               recall_when_rounded(one, table, bits, start))
        for one, table, start in zip(adapted, tables, starts, strict=True)
    ]  # fmt: skip
