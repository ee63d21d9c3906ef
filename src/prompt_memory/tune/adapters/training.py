"""Adaptations trained on tables: one module by itself, or many tables at once."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prompt_memory.network.transformer import Transformer
from prompt_memory.tune.adapters.tables import Table, label_logits
from prompt_memory.tune.adapters.together import logits_together
from prompt_memory.tune.adapters.tunings import Tuning, trained


def tune(
    adapted: nn.Module,
    table: Table,
    *,
    steps: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
    batch: int,
    generator: torch.Generator,
) -> nn.Module:
    """Train the numbers that require gradients with Adam on the cross-entropy of all labels; the same module.

    Each step sees `batch` entries of the table, reshuffled after each pass (all of them if there are no more); the
    learning rate rises during the first tenth of the steps and then falls to nothing like a cosine.
    RuntimeError with the step if the loss is not finite.
    """
    weights = trained(adapted)
    parts = _batches(len(table.keys), batch, generator)

    def loss():
        part = next(parts)
        logits = label_logits(adapted, Table(table.keys[part], table.labels[part]))
        return F.cross_entropy(logits.flatten(0, 1), table.labels[part].flatten())

    _adam(weights, loss, steps, learning_rate, betas)
    return adapted


def tune_together(
    model: Transformer,
    tuning: Tuning,
    numbers: Sequence[Float[Tensor, "R ..."]],
    tables: Table,
    *,
    steps: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
) -> list[Float[Tensor, "R ..."]]:
    """As `tune` with all entries in every step, for R tables at once: the numbers of R adaptations after `steps`.

    `numbers` are the trained tensors of `adapt`, stacked, and so are keys [R, K, T] and labels [R, K, n] of `tables`;
    the forward pass is `logits_together`.  Runs do not touch each other: each has its own gradient, and Adam acts on
    each number by itself.
    ValueError for all weights; RuntimeError with the step if a loss is not finite.
    """
    numbers = [weight.detach().clone().requires_grad_(True) for weight in numbers]
    labels = tables.labels

    def loss():
        logits = logits_together(model, tuning, numbers, tables)
        return F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="sum") / labels[0].numel()

    _adam(numbers, loss, steps, learning_rate, betas)
    return [weight.detach() for weight in numbers]


def _adam(weights, loss, steps, learning_rate, betas) -> None:
    adam = torch.optim.Adam(weights, lr=learning_rate, betas=betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step, steps))
    for step in range(steps):
        value = loss()
        if not torch.isfinite(value):
            raise RuntimeError(f"the loss is not finite in step {step}: lower the learning rate of {learning_rate:g}")
        adam.zero_grad()
        value.backward()
        adam.step()
        schedule.step()


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(K: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(K, generator=generator)
        yield from order.split(batch) if batch < K else (order,)
