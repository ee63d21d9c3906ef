"""Numbers that a tuning trains and nothing reads: the rank of the derivative of all logits, counted and measured."""

import math

import torch
from jaxtyping import Int
from torch import Tensor, nn

from prompt_memory.checks import integers
from prompt_memory.tune.adapters.tunings import Tuning, trained


def visible_numbers(config, tuning: Tuning) -> int:
    """The largest rank that the derivative of all logits in the trained numbers can have, for an exported network.

    Proved as an upper bound, for L >= 2 layers, norm_eps > 0, biases of norms, queries and values that are zero where
    they are frozen (as `adapt` leaves them), and other frozen weights in general position, in the chapter on other
    tunings; attained, with smooth activations and enough queries, wherever it was measured.  With e = d − 1:

    soft prompt   m·e: no norm reads the mean of a token
    prefix        2·L·m·H·min(d_k, e)
    LoRA          L·[r(e + 3d − r) + r(d + e − r) + 2ρ(e + w − ρ) − `lora_gauge`], ρ = min(r, w)
    all weights   L·v + e(q + T − 1) + d·q − C(e, 2), v = H·k(4d − 3 − 2k) + 2e + (2d − 1)w, k = min(d_k, e)

    ValueError for fewer than two layers, norm_eps = 0, rectifiers, and ranks of LoRA from d − 1 on.
    """
    c = config
    if c.depth < 2 or not c.norm_eps > 0 or c.activation != "gelu":
        raise ValueError("the count is established for at least two layers, norm_eps > 0 and GELU")
    d, e, w, size = c.d, c.d - 1, c.mlp, tuning.size
    k = min(c.d_k, e)  # queries, keys and values of a head are linear in centred vectors
    if tuning.kind == "soft prompt":
        return size * e
    if tuning.kind == "prefix":
        return 2 * c.depth * size * c.heads * k
    if tuning.kind == "LoRA":
        if size >= e:
            raise ValueError(f"the count is established for ranks below d - 1, not {size}")
        narrow = min(size, w)
        attention = size * (e + 3 * d - size) + size * (d + e - size)
        return c.depth * (attention + 2 * narrow * (e + w - narrow) - lora_gauge(d, c.heads, size))
    heads = c.heads * (k * (2 * d - 1 - k) + k * (2 * d - 2 - k))
    layer = heads + 2 * e + (2 * d - 1) * w
    return c.depth * layer + e * (c.q + c.context - 1) + d * c.q - math.comb(e, 2)


def lora_gauge(d: int, heads: int, rank: int) -> int:
    """How many directions of LoRA's factors in one layer's attention change nothing, beyond those of BA = (BG⁻¹)(GA).

    Changes of the bases in which a head compares queries with keys, and carries values, as far as factors of this rank
    can make them: 2Hu² + 2s(Hu − s − 1)⁺, less 2 for a single head, with s = d − 1 − r and u = (d/H − s)⁺.
    None if d/H + r <= d − 1.  ValueError unless H divides d and 1 <= r <= d − 2.
    """
    d, heads, rank = integers(d=d, heads=heads, rank=rank)
    if d % heads or rank > d - 2:
        raise ValueError(f"heads must divide d and the rank be at most d - 2, not d = {d}, H = {heads}, r = {rank}")
    s = d - 1 - rank
    u = max(0, d // heads - s)
    return 2 * heads * u**2 + 2 * s * max(0, heads * u - s - 1) - (2 if heads == 1 else 0)


def measured_rank(
    adapted: nn.Module, sequences: Int[Tensor, "N T"], *, spread: float, generator: torch.Generator
) -> tuple[int, float, float]:
    """The rank of the derivative of all logits at a random point, in float64, with the evidence for it.

    Every trained number is moved by normal noise of standard deviation `spread`.  The rows are D + 8 random
    combinations of all logits of all sequences.  Returns the number of singular values above 1e-11 of the largest, the
    smallest of these and the largest of the others (0 if there is none), both relative to the largest.
    """
    adapted.double()
    weights = trained(adapted)
    with torch.no_grad():
        for weight in weights:
            weight += spread * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    logits = adapted(input_ids=sequences).logits
    rows = []
    for _ in range(sum(weight.numel() for weight in weights) + 8):
        direction = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
        gradients = torch.autograd.grad(logits, weights, direction, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    values = torch.linalg.svdvals(torch.stack(rows))
    values = values / values[0]
    rank = int((values > 1e-11).sum())
    return rank, float(values[rank - 1]), float(values[rank]) if rank < len(values) else 0.0
