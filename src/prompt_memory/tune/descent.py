"""What searches for prompts share: the loss that aims at the first labels of a run, and Adam for a batch of runs."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prompt_memory.measure import logit_margins


def aimed_loss(
    logits: Float[Tensor, "r n q"], wanted: Int[Tensor, "r n"], goal: Int[Tensor, " r"], margin: float
) -> tuple[Float[Tensor, " r"], Bool[Tensor, "r n"]]:
    """(loss of the first `goal` labels of each run, whether each label wins by more than `margin`).

    The loss of a label is min(c, 3)·c with c its cross-entropy and the factor held fixed.
    """
    cost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    cost = cost.masked_fill(torch.arange(wanted.shape[1], device=cost.device) >= goal[:, None], 0.0)
    return (cost * cost.detach().clamp(max=3)).sum(1), logit_margins(logits.detach(), wanted) > margin


def adam_direction(
    gradient: Float[Tensor, "r m d"],
    first: Float[Tensor, "r m d"],
    second: Float[Tensor, "r m d"],
    t: Float[Tensor, "r 1 1"] | float,
    betas: tuple[float, float],
) -> tuple[Float[Tensor, "r m d"], Float[Tensor, "r m d"], Float[Tensor, "r m d"]]:
    """Adam's direction at step t >= 1 of each run, and both moments: for batches that runs join and leave."""
    first, second = torch.lerp(gradient, first, betas[0]), torch.lerp(gradient.square(), second, betas[1])
    return first / (1 - betas[0] ** t) / ((second / (1 - betas[1] ** t)).sqrt() + 1e-8), first, second
