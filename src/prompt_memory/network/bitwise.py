"""A network made by hand that unfolds one number of a prompt, bit by bit, with exact ReLU arithmetic: the tent map."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.network.transformer import Transformer, TransformerConfig


def tent_network(levels: int, coordinates: int = 1) -> Transformer:
    """A frozen transformer that reads `levels` bits out of each of `coordinates` numbers of one prompt token.

    Layer 1 copies the numbers x from the prompt into the query's stream; layer l + 1 adds ±2^(levels − l) x_l / 2 to
    the logits of the query that asks for level l, and replaces x_l by x_{l+1} = 1 − 2|x_l|, the tent map, with ReLUs.
    On odd multiples of 2^(−levels) in (−1, 1) every logit difference is at least 1, all arithmetic is exact as long as
    the significand has `levels` bits, and the logits have the Lipschitz constant 2^(levels − 1).  To be called with
    `own_token=False`: the softmax over one prompt token is exactly 1.
    ValueError unless 1 <= levels <= 62 and coordinates >= 1.
    """
    L, K = _sizes(levels, coordinates)
    config = TransformerConfig(
        d=4 * K + 1 + L, q=2, depth=L, heads=1, d_k=1, d_v=K, mlp=4 * K, activation="relu", norm="none"
    )
    model = Transformer(config)
    for weight in model.parameters():
        weight.zero_()
    channel = torch.arange(K)  # here the prompt has its numbers
    streams = (K + channel, 2 * K + channel)  # x_l stands in the first when l is even, in the second when it is odd
    answer, others = 3 * K, 3 * K + 1 + channel  # others: 1 at every coordinate that is not asked for
    unasked = 4 * K + 1  # and from here on 1 at every level that is not asked for
    model.blocks[0].value[channel, channel] = 1.0
    model.blocks[0].output[channel, streams[0]] = 1.0
    for level, block in enumerate(model.blocks):
        here, there = streams[level % 2], streams[(level + 1) % 2]
        gain = 2.0 ** (L - level)
        for sign, unit in ((1.0, channel), (-1.0, K + channel)):  # the two halves of x = relu(x) − relu(−x)
            gated = 2 * K + unit  # silent, because |x| <= 1 < 2, unless this level and coordinate are asked for
            block.up[here, unit] = block.up[here, gated] = sign
            block.up[others, gated] = block.up[unasked + level, gated] = -2.0
            block.down[unit, here] = -sign  # x_l is erased,
            block.down[unit, there] = -2.0  # x_{l+1} = 1 − 2|x_l| written,
            block.down[gated, answer] = sign * gain  # and the answer scaled to a margin of 1
        block.down_bias[there] = 1.0
    model.unembedding[answer] = torch.tensor([-0.5, 0.5])
    return model


def tent_queries(levels: int, coordinates: int = 1) -> Float[Tensor, "n d"]:
    """One query for each level of each coordinate, coordinate by coordinate, n = coordinates·levels."""
    L, K = _sizes(levels, coordinates)
    queries = torch.zeros(K, L, 4 * K + 1 + L)
    queries[:, :, 3 * K + 1 :] = 1.0
    queries[torch.arange(K), :, 3 * K + 1 + torch.arange(K)] = 0.0
    queries[:, torch.arange(L), 4 * K + 1 + torch.arange(L)] = 0.0
    return queries.flatten(0, 1)


def tent_code(labels: Int[Tensor, "S n"], levels: int) -> Int[Tensor, "S K"]:
    """The odd numbers k with |k| < 2^levels such that x = k·2^(−levels) shows these labels, [S, n / levels].

    Backwards along the orbit: x_l = ±(1 − x_{l+1})/2 with the sign that label l asks for, from x_{levels} = 0.
    ValueError if n is no multiple of `levels`, or a label is neither 0 nor 1.
    """
    if labels.shape[1] % levels:
        raise ValueError(f"{labels.shape[1]} labels do not fill coordinates of {levels} bits")
    if labels.numel() and not 0 <= labels.min() <= labels.max() <= 1:
        raise ValueError("labels must be 0 or 1")
    signs = 2 * labels.long().unflatten(1, (-1, levels)) - 1  # [S, K, levels]
    code = torch.zeros_like(signs[..., 0])
    for level in range(levels - 1, -1, -1):
        code = signs[..., level] * (2 ** (levels - 1 - level) - code)
    return code


def tent_prompts(code: Int[Tensor, "S K"], levels: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "S 1 d"]:
    """Prompts of one token whose first K coordinates are code·2^(−levels), rounded to `dtype`; the others are 0."""
    numbers = torch.ldexp(code.to(dtype), torch.tensor(-levels))
    return torch.nn.functional.pad(numbers, (0, 3 * code.shape[1] + 1 + levels))[:, None]


def _sizes(levels: int, coordinates: int) -> tuple[int, int]:
    if not 1 <= levels <= 62:
        raise ValueError(f"levels must lie between 1 and 62, where integers of 64 bits end, not {levels}")
    if coordinates < 1:
        raise ValueError(f"at least one coordinate is needed, not {coordinates}")
    return levels, coordinates
