"""Prompt tuning on a frozen network; R independent runs are one batch, and finished runs leave it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.measure import jacobian, recall
from prompt_memory.transformer import Transformer


class Fit(NamedTuple):
    """Prompts found by `levenberg_marquardt`, with the mean squared error of exactly these prompts."""

    prompts: Float[Tensor, "R m d"]
    error: Float[Tensor, " R"]
    steps: Int[Tensor, " R"]


class Tuned(NamedTuple):
    """Prompts found by `quantised`, with the recall of exactly these prompts as a fraction."""

    prompts: Float[Tensor, "R m d"]
    recall: Float[Tensor, " R"]


def levenberg_marquardt(
    model: Transformer,
    queries: Tensor,
    targets: Float[Tensor, "R n q"],
    start: Float[Tensor, "R m d"],
    *,
    steps: int = 200,
    solved: float = 1e-26,
    patience: int = 25,
) -> Fit:
    """Minimise the mean squared error of the outputs from `targets`, one damped Gauss–Newton run per row.

    Each run has its own damping λ: δ = −(JᵀJ + λI)⁻¹Jᵀr is taken if it lowers the error (λ falls by 3), refused if
    not (λ grows by 4).  A run leaves the batch once its error is below `solved`, or when `patience` steps have lowered
    it by less than a thousandth: it sits in a local minimum.  Call it in float64.
    ValueError if shapes disagree or something is not finite.
    """
    model.require_finite()
    R, m, d = start.shape
    if targets.shape[0] != R:
        raise ValueError(f"{targets.shape[0]} target tables for {R} starting prompts: give one table a run")
    if not all(torch.isfinite(part).all() for part in (targets, start, queries)):
        raise ValueError("targets, starting prompts and queries must be finite")
    if targets.shape[1:] != (len(queries), model.config.q):
        shape = [len(queries), model.config.q]
        raise ValueError(f"each target table must have the shape [n, q] = {shape}, not {list(targets.shape[1:])}")
    prompts = start.flatten(1).clone()
    goal = targets.flatten(1)

    def outputs(flat: Float[Tensor, "r D"]) -> Float[Tensor, "r N"]:
        return model(flat.unflatten(-1, (m, d)), queries).flatten(1)

    error = (outputs(prompts) - goal).square().mean(1)
    damping = torch.full_like(error, 1e-2)
    used = torch.zeros(R, dtype=torch.long)
    landmark, since = error.clone(), torch.zeros(R, dtype=torch.long)  # the last error that counted as progress
    identity = torch.eye(m * d, dtype=prompts.dtype)
    active = torch.arange(R)
    for _ in range(steps):
        active = active[(error[active] > solved) & (since[active] < patience)]
        if not len(active):
            break
        p = prompts[active]
        residual = outputs(p) - goal[active]  # [r, N]
        J = jacobian(outputs, p)  # [r, N, D]
        normal = J.mT @ J + damping[active, None, None] * identity
        step = torch.linalg.solve(normal, -(J.mT @ residual[..., None]))[..., 0]
        trial = (outputs(p + step) - goal[active]).square().mean(1)
        better = trial < error[active]  # a NaN trial is refused
        prompts[active[better]] = (p + step)[better]
        error[active[better]] = trial[better]
        damping[active] = torch.where(better, (damping[active] / 3).clamp(min=1e-15), damping[active] * 4)
        progress = error[active] < 0.999 * landmark[active]
        landmark[active[progress]] = error[active[progress]]
        since[active] = torch.where(progress, 0, since[active] + 1)
        used[active] += 1
    return Fit(prompts.unflatten(-1, (m, d)), error, used)


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

    def loss(logits: Float[Tensor, "R n q"]) -> Float[Tensor, " R"]:
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)

    free = (torch.rand(R, m, d, generator=generator) * 2 - 1) * values[-1]
    free.requires_grad_()
    adam = torch.optim.Adam([free], lr=learning_rate)
    best, best_score = rounded(free.detach()), torch.full((R,), -torch.inf, dtype=torch.float64)
    for step in range(steps + 1):  # the last pass scores the last step
        prompts = free + (rounded(free) - free).detach()
        logits = model(prompts, queries)
        score = recall(logits.detach(), labels)
        better = score > best_score
        best[better], best_score[better] = prompts.detach()[better], score[better]
        if step < steps:
            adam.zero_grad()
            loss(logits).sum().backward()
            adam.step()
            with torch.no_grad():
                free.clamp_(values[0] - half_step, values[-1] + half_step)
    best = rounded(best)
    for _ in range(sweeps):
        for flat in torch.randperm(m * d, generator=generator).tolist():
            token, coordinate = divmod(flat, d)
            tried = best.repeat(len(values), 1, 1, 1)  # [v, R, m, d]
            tried[:, :, token, coordinate] = values[:, None]
            logits = model(tried.flatten(0, 1), queries).unflatten(0, (len(values), R))
            hits = torch.stack([(part.argmax(-1) == labels).sum(1) for part in logits])  # [v, R]
            losses = torch.stack([loss(part) for part in logits])
            best[:, token, coordinate] = values[(hits - losses / (1 + losses.amax(0))).argmax(0)]
    return Tuned(best, recall(model(best, queries), labels))
