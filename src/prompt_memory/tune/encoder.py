"""Any encoder of facts: a member of a recalling family reads a prompt whose tokens are tuned freely."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.measure import logit_margins
from prompt_memory.network.recall import Reader


def encode(
    r: Reader,
    x: Float[Tensor, "n h"],
    labels: Int[Tensor, "S n"],
    m: int,
    margin: float,
    *,
    steps: int,
    generator: torch.Generator,
    rate: float = 0.05,
) -> Float[np.ndarray, " S"]:
    """Tune a prompt of m free tokens for each labeling; the fraction of labels recalled by more than the margin, [S].

    Tokens are (key, code) with both parts in unit balls, and start at facts: those asked, as many as there is room for.
    Adam from two starts, one on a hinge, which wants all labels, and one on a sigmoid, which gives up some for the sake
    of others.  Each prompt is scored every 20 steps and at the end, and the best score of a labeling counts.
    """
    r = Reader(*(part.float() for part in r))
    x, labels, q = x.float(), labels.repeat(2, 1), r.residual.shape[1]
    S, n = labels.shape
    start = torch.arange(m) % n
    keys = x[start].expand(S, -1, -1) + 0.01 * torch.randn(S, m, x.shape[1], generator=generator)
    tokens = [keys.clone(), F.one_hot(labels[:, start], q).float()]
    tokens = [part.requires_grad_() for part in tokens]
    adam = torch.optim.Adam(tokens, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=0.02 * rate)
    best = torch.zeros(S)
    for step in range(steps + 1):
        k, c = (part / part.norm(dim=-1, keepdim=True).clamp_min(1) for part in tokens)
        scores = (x @ r.by_key) @ k.transpose(1, 2) + (x @ r.by_value) @ c.transpose(1, 2)  # [S, n, m]
        logits = scores.softmax(-1) @ (k @ r.key_votes + c @ r.value_votes) + x @ r.residual
        lead = logit_margins(logits, labels)
        if step % 20 == 0 or step == steps:
            best = torch.maximum(best, (lead.detach() > margin).float().mean(1))
        if step < steps:
            adam.zero_grad()
            short = 1.2 * margin + 0.05 - lead
            (F.relu(short[: S // 2]).mean(1).sum() + torch.sigmoid(short[S // 2 :]).mean(1).sum()).backward()
            adam.step()
            schedule.step()
    return best.view(2, -1).amax(0).double().numpy()
