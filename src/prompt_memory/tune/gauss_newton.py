"""Prompts for real targets: damped Gauss–Newton steps, one run a row."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.measure import jacobian
from prompt_memory.network.transformer import Transformer


class Fit(NamedTuple):
    """Prompts (or points [R, D], by `least_squares`) and the mean squared error of exactly these."""

    prompts: Float[Tensor, "R m d"]
    error: Float[Tensor, " R"]
    steps: Int[Tensor, " R"]


def levenberg_marquardt(
    model: Transformer,
    queries: Tensor,
    targets: Float[Tensor, "R n q"],
    start: Float[Tensor, "R m d"],
    **options,
) -> Fit:
    """Minimise the mean squared error of the outputs from `targets`, one run of `least_squares` per row.

    Call it in float64; `options` are steps, solved and patience of `least_squares`.
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

    def outputs(flat: Float[Tensor, "r D"]) -> Float[Tensor, "r N"]:
        return model(flat.unflatten(-1, (m, d)), queries).flatten(1)

    fit = least_squares(outputs, targets.flatten(1), start.flatten(1), **options)
    return fit._replace(prompts=fit.prompts.unflatten(-1, (m, d)))


def least_squares(
    outputs: Callable[[Float[Tensor, "r D"]], Float[Tensor, "r N"]],
    targets: Float[Tensor, "R N"],
    start: Float[Tensor, "R D"],
    *,
    steps: int = 200,
    solved: float = 1e-26,
    patience: int = 25,
) -> Fit:
    """Minimise the mean of (outputs − targets)² over N outputs in D numbers, one damped Gauss–Newton run per row.

    Each run has its own damping λ: δ = −(JᵀJ + λI)⁻¹Jᵀr is taken if it lowers the error (λ falls by 3), refused if
    not (λ grows by 4).  Where N < D the same step is found as −Jᵀ(JJᵀ + λI)⁻¹r.  A run leaves the batch once its error
    is below `solved`, or when `patience` steps have lowered it by less than a thousandth: it sits in a local minimum.
    """
    points = start.clone()
    dual = targets.shape[1] < start.shape[1]
    error = (outputs(points) - targets).square().mean(1)
    damping = torch.full_like(error, 1e-2)
    used = torch.zeros(len(start), dtype=torch.long)
    landmark, since = error.clone(), torch.zeros_like(used)  # the last error that counted as progress
    identity = torch.eye(min(targets.shape[1], start.shape[1]), dtype=start.dtype)
    active = torch.arange(len(start))
    for _ in range(steps):
        active = active[(error[active] > solved) & (since[active] < patience)]
        if not len(active):
            break
        p = points[active]
        residual = (outputs(p) - targets[active])[..., None]  # [r, N, 1]
        # A backward pass costs less than a forward-mode one, whose LayerNorm PyTorch composes in Python.
        J = jacobian(outputs, p, reverse=2 * targets.shape[1] <= 3 * start.shape[1])  # [r, N, D]
        ridge = damping[active, None, None] * identity
        if dual:
            step = -(J.mT @ torch.linalg.solve(J @ J.mT + ridge, residual))[..., 0]
        else:
            step = torch.linalg.solve(J.mT @ J + ridge, -(J.mT @ residual))[..., 0]
        trial = (outputs(p + step) - targets[active]).square().mean(1)
        better = trial < error[active]  # a NaN trial is refused
        points[active[better]] = (p + step)[better]
        error[active[better]] = trial[better]
        damping[active] = torch.where(better, (damping[active] / 3).clamp(min=1e-15), damping[active] * 4)
        progress = error[active] < 0.999 * landmark[active]
        landmark[active[progress]] = error[active[progress]]
        since[active] = torch.where(progress, 0, since[active] + 1)
        used[active] += 1
    return Fit(points, error, used)
