"""The forward pass of many adaptations on many tables at once, without its common work."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prompt_memory.network.transformer import Transformer
from prompt_memory.tune.adapters.tables import Table
from prompt_memory.tune.adapters.tunings import Tuning


def logits_together(
    model: Transformer,
    tuning: Tuning,
    numbers: Sequence[Float[Tensor, "R ..."]],
    tables: Table,
) -> Float[Tensor, "R K n q"]:
    """`label_logits` of R adaptations on R tables, the same numbers up to rounding, without their common work.

    The stream of a soft prompt is computed once for a table and not once for an entry, and the last layer only where
    it is read.  `numbers` are the tensors of `trained`, in its order, and `tables` keys [R, K, T] and labels [R, K, n],
    stacked.  ValueError for all weights.
    """
    c, kind = model.config, tuning.kind
    if kind == "all weights":
        raise ValueError("all weights are trained one table at a time")
    R, n, H = len(tables.keys), tables.labels.shape[-1], c.heads
    ids = torch.cat([tables.keys, tables.labels[..., :-1]], -1)  # [R, K, T + n − 1]
    T, m = ids.shape[-1], 0 if kind == "LoRA" else tuning.size
    x = model.embedding[ids] + model.position[m : m + T]
    factors = iter(zip(numbers[::2], numbers[1::2], strict=True)) if kind == "LoRA" else None
    if kind == "soft prompt":
        p = numbers[0] + model.position[:m]  # [R, m, d]
    elif kind == "prefix":  # keys and values of a layer, as peft cuts them out of one row
        cache = numbers[0].view(R, m, 2 * c.depth, H, c.d_k).permute(2, 0, 3, 1, 4)  # [2L, R, H, m, d_k]

    def times(x, weight, bias=None):
        if factors is None:
            return F.linear(x, weight.T, bias)
        A, B = next(factors)  # [R, r, inputs], [R, outputs, r]
        both, rows = weight + A.mT @ B.mT, x.flatten(1, -2)  # one product for both terms
        y = rows @ both if bias is None else torch.baddbmm(bias, rows, both)
        return y.view(*x.shape[:-1], -1)

    def token_wise(block, x):
        hidden = times(block.norm2(x), block.up, block.up_bias)
        return x + times(F.relu(hidden) if c.activation == "relu" else F.gelu(hidden), block.down, block.down_bias)

    def heads(x, weight):
        q, k, v = (part.unflatten(-1, (H, -1)).transpose(-2, -3) for part in times(x, weight).split(c.d, -1))
        return q / math.sqrt(c.d_k), k, v  # [..., H, T, d_k]

    for layer, block in enumerate(model.blocks):
        last = layer == c.depth - 1
        weight = torch.cat([block.query, block.key, block.value], 1)
        q, k, v = heads(block.norm1(x), weight)
        if last:
            x, q = x[:, :, -n:], q[..., -n:, :]
        shared = None  # keys and values of a prompt, the same for all entries of a table
        if kind == "soft prompt":
            q_p, *shared = heads(block.norm1(p), weight)
            if not last:
                p = token_wise(block, p + _attend(q_p, *shared).transpose(1, 2).flatten(2) @ block.output)
        elif kind == "prefix":
            shared = cache[2 * layer], cache[2 * layer + 1]
        mixed = _attend(q, k, v, shared)
        x = token_wise(block, x + times(mixed.transpose(2, 3).flatten(3), block.output))
    return model.norm(x) @ model.unembedding


def _attend(q, k, v, shared=None) -> Float[Tensor, "R *K H t d_k"]:
    """Causal attention of t queries, the last of the T keys [R, *K, H, T, d_k], which see a shared prompt as well."""
    t, T = q.shape[-2], k.shape[-2]
    scores = q @ k.mT + torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).triu(1)[-t:]
    if shared is None:
        return scores.softmax(-1) @ v
    k_p, v_p = shared  # [R, H, m, d_k]
    K, m = q.shape[1], k_p.shape[-2]
    whole = q.transpose(1, 2).flatten(2, 3)  # [R, H, K t, d_k]: one product for all entries
    seen = (whole @ k_p.mT).unflatten(2, (K, t)).transpose(1, 2)
    of_prompt, own = torch.cat([seen, scores], -1).softmax(-1).split([m, T], -1)
    added = of_prompt.transpose(1, 2).flatten(2, 3) @ v_p
    return own @ v + added.unflatten(2, (K, t)).transpose(1, 2)
