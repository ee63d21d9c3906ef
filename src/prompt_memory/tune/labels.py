"""Prompts for labels: on a grid of values, or real with a margin, one run a labeling."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prompt_memory.checks import integers
from prompt_memory.measure import logit_margins, recall
from prompt_memory.network.construct import Memory
from prompt_memory.network.transformer import Transformer
from prompt_memory.tune.descent import adam_direction


class Tuned(NamedTuple):
    """Prompts found by `quantised`, with the recall of exactly these prompts as a fraction."""

    prompts: Float[Tensor, "R m d"]
    recall: Float[Tensor, " R"]


def quantised(
    model: Transformer,
    queries: Tensor,
    labels: Int[Tensor, "R n"],
    values: Float[Tensor, " v"],
    m: int,
    *,
    steps: int,
    sweeps: int,
    generator: torch.Generator,
    learning_rate: float = 0.05,
) -> Tuned:
    """Tune prompts whose coordinates are confined to `values`, one run per labeling, for the largest recall.

    First Adam on the cross-entropy with a straight-through rounding, keeping the best rounded prompt of each run; then
    `sweeps` rounds of coordinate search, in which each coordinate in random order takes the value with the largest
    recall, ties by cross-entropy, so that recall never falls.  The recall returned is that of the prompts returned.
    """
    model.require_finite()
    R, d = len(labels), model.config.d
    if len(values) < 2:
        raise ValueError("a coordinate needs at least two values")
    if labels.shape[1:] != queries.shape[:1] or not 0 <= labels.min() <= labels.max() < model.config.q:
        raise ValueError(f"labels must have the shape [R, {len(queries)}] and lie in 0 … {model.config.q - 1}")
    if queries.is_floating_point() and not torch.isfinite(queries).all():
        raise ValueError("queries must be finite")
    half_step = (values[1] - values[0]) / 2

    def rounded(x: Tensor) -> Tensor:
        return values[((x - values[0]) / (2 * half_step)).round().clamp(0, len(values) - 1).long()]

    free = (torch.rand(R, m, d, generator=generator) * 2 - 1) * values[-1]
    first, second = torch.zeros_like(free), torch.zeros_like(free)
    best, best_score = rounded(free), torch.full((R,), -torch.inf, dtype=torch.float64)
    run = torch.arange(R)  # the runs that do not recall everything yet
    for step in range(steps + 1):  # the last pass scores the last step
        free.requires_grad_()
        prompts = free + (rounded(free) - free).detach()
        logits = model(prompts, queries)
        score = recall(logits.detach(), labels[run])
        better = score > best_score[run]
        best[run[better]], best_score[run[better]] = prompts.detach()[better], score[better]
        going = best_score[run] < 1
        if step == steps or not going.any():
            break
        (gradient,) = torch.autograd.grad(_mean_entropy(logits, labels[run]).sum(), free)
        run, free, gradient, first, second = (part[going] for part in (run, free.detach(), gradient, first, second))
        direction, first, second = adam_direction(gradient, first, second, step + 1, (0.9, 0.999))
        free = (free - learning_rate * direction).clamp(values[0] - half_step, values[-1] + half_step)
    best = rounded(best)
    for _ in range(sweeps):
        run = (best_score < 1).nonzero()[:, 0]
        best[run] = _sweep(model, queries, labels[run], values, best[run], torch.randperm(m * d, generator=generator))
        best_score = recall(model(best, queries), labels)
    return Tuned(best, recall(model(best, queries), labels))


def _sweep(model, queries, labels, values, prompts, order) -> Float[Tensor, "R m d"]:
    """`prompts` [R, m, d], each coordinate of which was set, in this order, to the best of `values`."""
    for flat in order.tolist() if len(prompts) else ():
        token, coordinate = divmod(flat, prompts.shape[-1])
        tried = prompts.repeat(len(values), 1, 1, 1)  # [v, R, m, d]
        tried[:, :, token, coordinate] = values[:, None]
        logits = model(tried.flatten(0, 1), queries).unflatten(0, (len(values), len(prompts)))
        hits = torch.stack([(part.argmax(-1) == labels).sum(1) for part in logits])  # [v, R]
        losses = torch.stack([_mean_entropy(part, labels) for part in logits])
        prompts[:, token, coordinate] = values[(hits - losses / (1 + losses.amax(0))).argmax(0)]
    return prompts


def _mean_entropy(logits: Float[Tensor, "R n q"], labels: Int[Tensor, "R n"]) -> Float[Tensor, " R"]:
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


# --- real prompts --------------------------------------------------------------------------------------------------


def tune_to_margin(
    memory: Memory,
    queries: Float[Tensor, "n d"],
    labels: Int[Tensor, "R n"],
    start: Float[Tensor, "R m d"],
    *,
    margin: float,
    steps: int,
    own_token: bool = True,
    learning_rate: float = 0.1,
) -> tuple[Float[Tensor, "R m d"], Float[Tensor, " R"]]:
    """Tune real prompts in the ball of the memory's radius until each label 0 or 1 has the margin, one run a row.

    Adam on the squared shortfall of every reading from a little more than margin/2, projected to the ball after each
    step, with a decaying rate.  Returns the best prompt of each run and its margin: twice its smallest reading times
    label sign.  A run that stays below the margin shows that none was found, not that none exists.
    """
    if labels.shape != (len(start), len(queries)):
        raise ValueError(f"labels must have the shape [{len(start)}, {len(queries)}], not {list(labels.shape)}")
    signs = 2.0 * labels.to(start.dtype) - 1

    def inside(prompts: Tensor) -> Tensor:
        return prompts * (memory.radius / prompts.norm(dim=-1, keepdim=True)).clamp(max=1)

    prompts = inside(start.detach()).clone().requires_grad_()
    adam = torch.optim.Adam([prompts], lr=learning_rate)
    best, best_margin = prompts.detach().clone(), torch.full((len(start),), -torch.inf, dtype=start.dtype)
    for step in range(steps + 1):  # the last pass scores the last step
        readings = signs * memory.read(prompts, queries, own_token=own_token)
        reached = 2 * readings.detach().amin(1)
        better = reached > best_margin
        best[better], best_margin[better] = prompts.detach()[better], reached[better]
        if step == steps or (best_margin > margin).all():
            break
        adam.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        adam.zero_grad()
        torch.relu(margin / 2 + 0.1 - readings).square().sum().backward()
        adam.step()
        with torch.no_grad():
            prompts.copy_(inside(prompts))
    return best, best_margin


def tune_labels(
    model: Transformer,
    queries: Float[Tensor, "n T d"],
    labels: Int[Tensor, "R n"],
    start: Float[Tensor, "R m d"],
    *,
    steps: int,
    learning_rate: float = 0.1,
    read: Int[Tensor, " n"] | None = None,
) -> tuple[Float[Tensor, "R m d"], Bool[Tensor, " R"]]:
    """Tune real prompts for labels by Adam, one run a row: the prompts, and whether these memorise all labels.

    The loss of a run is Σ_i relu(δ − margin_i) over its labels, with δ = 0.1 and then 0.01 for the second half; a run
    that has all labels leaves.  `read` reads these positions of one sequence instead of the last token of n sequences.
    ValueError unless labels fit and steps is an integer >= 0.
    """
    (steps,) = integers(0, steps=steps)
    shape, q = (len(start), len(queries) if read is None else len(read)), model.config.q
    if labels.shape != shape or not 0 <= labels.min() <= labels.max() < q:
        raise ValueError(f"labels must have the shape {list(shape)} and lie in 0 … {q - 1}")
    result, success = start.detach().clone(), torch.zeros(len(start), dtype=torch.bool)
    active, prompts = torch.arange(len(start)), start.detach().clone()
    first, second = torch.zeros_like(prompts), torch.zeros_like(prompts)
    for step in range(steps + 1):  # the last pass scores the last step
        prompts.requires_grad_()
        logits = model(prompts, queries) if read is None else model(prompts, queries, read="all")[:, 0, read]
        margins = logit_margins(logits, labels[active])
        (slope,) = torch.autograd.grad(torch.relu((0.1 if 2 * step < steps else 0.01) - margins).sum(), prompts)
        prompts = prompts.detach()
        done = (margins.detach() > 0).all(1)
        result[active], success[active] = prompts, done
        going = ~done
        if step == steps or not going.any():
            break
        active, prompts, slope = active[going], prompts[going], slope[going]
        direction, first, second = adam_direction(slope, first[going], second[going], step + 1, (0.9, 0.99))
        prompts = prompts - learning_rate * (1 + math.cos(math.pi * step / steps)) / 2 * direction
    return result, success
