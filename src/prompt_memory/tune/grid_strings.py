"""Strings by prompts of few coordinates on a grid of values: a local search that gradients guide."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.network.transformer import Transformer
from prompt_memory.tune.descent import aimed_loss
from prompt_memory.tune.strings import Longest, check_strings, confirmed


@torch.no_grad()
def longest_prefix_on_grid(
    model: Transformer,
    strings: Int[Tensor, "S n"],
    m: int,
    basis: Float[Tensor, "k d"],
    values: Float[Tensor, " v"],
    *,
    chains: int,
    steps: int,
    candidates: int = 16,
    temperature: float = 1.0,
    margin: float = 1e-3,
    generator: torch.Generator,
) -> Longest:
    """`longest_prefix` for prompts p_j = Σ_i z_ji basis_i whose k coordinates z_ji take the given values only.

    A search in few coordinates: each of `chains` chains a string tries, in every step, `candidates` changes of one
    coordinate, drawn with a preference for those that the gradient favours, and moves to the best of them if the loss
    falls, or with probability e^(−increase/temperature).  The allowed prompts number v^(k·m).  For many coordinates
    Adam with straight-through rounding, as in `quantised`, does as well.  ValueError as in `longest_prefix`, or if
    basis or values do not fit.
    """
    check_strings(model, strings, m)
    if basis.ndim != 2 or basis.shape[1] != model.config.d or len(values) < 2:
        raise ValueError(f"a basis [k, {model.config.d}] and at least two values are needed")
    S, n, k = *strings.shape, len(basis)
    goal, found = torch.ones(S, dtype=torch.long), torch.zeros(S, dtype=torch.long)
    best = torch.zeros(S, m, k, dtype=torch.long)
    row = torch.arange(S).repeat_interleave(chains)  # the string of each chain
    place = torch.randint(len(values), (len(row), m, k), generator=generator)

    def score(z, row):
        return _score(model, z @ basis, strings[row], goal[row], margin)

    for _ in range(steps):
        unfinished = found[row] < n
        row, place = row[unfinished], place[unfinished]
        r = len(row)
        if not r:
            break
        with torch.enable_grad():
            z = values[place].requires_grad_()
            loss, _ = score(z, row)
            (gradient,) = torch.autograd.grad(loss.sum(), z)
        tried = _changes(place, values, gradient, candidates, generator)
        scores = score(values[tried.flatten(0, 1)], row.repeat_interleave(tried.shape[1]))
        losses, right = (part.view(r, -1) for part in scores)
        lowest, which = losses.min(1)
        moves = torch.rand(r, generator=generator) < torch.exp((loss.detach() - lowest) / temperature)
        place = torch.where(moves[:, None, None], tried[torch.arange(r), which], place)
        most, which = right.max(1)
        for run in (most > found[row]).nonzero()[:, 0].tolist():
            s = int(row[run])
            if most[run] > found[s]:
                found[s], best[s] = most[run], tried[run, which[run]]
                goal[s] = min(n, int(found[s]) + 1)
    prompts = values[best] @ basis
    return Longest(prompts, confirmed(model, prompts, strings, found))


def _score(
    model: Transformer,
    prompts: Float[Tensor, "r m d"],
    strings: Int[Tensor, "r n"],
    goal: Int[Tensor, " r"],
    margin: float,
) -> tuple[Float[Tensor, " r"], Int[Tensor, " r"]]:
    """(loss of the first `goal` tokens, tokens right at the beginning) of each prompt, under teacher forcing."""
    longest = int(goal.max())
    seen = torch.cat([prompts, model.embedding[strings[:, : longest - 1]]], 1)
    logits = model.stream(seen)[:, prompts.shape[1] - 1 :]
    loss, won = aimed_loss(logits, strings[:, :longest], goal, margin)
    return loss, won.long().cumprod(1).sum(1)


def _changes(place, values, gradient, candidates, generator) -> Int[Tensor, "r c m k"]:
    """Copies of `place` [r, m, k] with one coordinate changed, drawn without replacement by what it promises.

    The logarithm of a weight is minus the change of the loss that the gradient predicts, in units of its mean size.
    """
    v, shape = len(values), place.shape[1:]
    rise = (values - values[place][..., None]) * gradient[..., None]  # predicted change of the loss, [r, m, k, v]
    rise = rise / rise.abs().flatten(1).mean(1)[:, None, None, None].clamp(min=1e-12)
    rise = rise.scatter(-1, place[..., None], torch.inf).flatten(1)  # staying is no change
    gumbel = -torch.log(-torch.log(torch.rand(rise.shape, generator=generator).clamp(min=1e-12)))
    chosen = (gumbel - rise).topk(min(candidates, shape.numel() * (v - 1)), 1).indices  # [r, c]
    tried = place.flatten(1)[:, None].repeat(1, chosen.shape[1], 1)
    tried.scatter_(2, (chosen // v)[..., None], (chosen % v)[..., None])
    return tried.unflatten(-1, shape)
