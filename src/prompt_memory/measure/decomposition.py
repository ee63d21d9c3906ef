"""What prompt and text contribute to attention, taken apart: masses, shares and mean values of every head."""

import copy
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from prompt_memory.network.shared_token import shared_texts
from prompt_memory.network.transformer import Prefix, Transformer


class Seen(NamedTuple):
    """What the tokens of n sequences see in one layer, split into their own tokens and the prompt."""

    pattern: Float[Tensor, "n H T T"]  # attention among own tokens, each row adding up to one
    log_mass: Float[Tensor, "n H T"]  # ln of the sum of exponentials over own tokens
    prompt_log_mass: Float[Tensor, "n H T"]  # the same over the prompt, −inf without one
    share: Float[Tensor, "n H T"]  # α, the attention that the prompt gets
    bias: Float[Tensor, "n H T d_v"]  # b, the prompt's values under the attention inside the prompt
    heads: Float[Tensor, "n H T d_v"]  # (1 − α) pattern · values + α b


def own_and_prompt(
    model: Transformer, tokens: Float[Tensor, "n T d"], prompt: Float[Tensor, "m d"] | Prefix | None = None
) -> tuple[list[Seen], Float[Tensor, "n T q"]]:
    """Every layer's `Seen`, and the logits of all tokens built from them: the same as those of `forward`.

    The softmax over a sequence's own tokens and that over the prompt are taken apart and never together.  Without a
    prompt every share is 0.  ValueError for learned positions or context scaling, where a prompt changes what its
    sequence is without it; for several layers the network must be causal.
    """
    c = model.config
    if c.positions == "learned" or c.context_scaling != "none":
        raise ValueError("learned positions and context scaling change a sequence when a prompt comes before it")
    if c.depth > 1 and not c.causal:
        raise ValueError("with several layers the network must be causal: the prompt must not see the sequence")
    if isinstance(prompt, Tensor):
        p = prompt[None]
    m = 0 if prompt is None else prompt.keys.shape[-2] if isinstance(prompt, Prefix) else len(prompt)
    scale = c.inverse_temperature / math.sqrt(c.d_k)
    x, layers = tokens, []
    T = x.shape[1]
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1) if c.causal else torch.zeros(T, T, dtype=torch.bool)
    for number, block in enumerate(model.blocks):
        q, k, v = model.heads(block, x, m)
        scores = (scale * q @ k.mT).masked_fill(hidden, -torch.inf)
        pattern, log_mass = scores.softmax(-1), scores.logsumexp(-1)
        own = pattern @ v
        if prompt is None:
            prompt_log_mass, bias = torch.full_like(log_mass, -torch.inf), torch.zeros_like(own)
        else:
            if isinstance(prompt, Prefix):
                k_p, v_p = prompt.keys[:, number], prompt.values[:, number]
            else:
                q_p, k_p, v_p = model.heads(block, p, 0)
                if number < c.depth - 1:  # the prompt's own states in the next layer
                    past = torch.ones(m, m, dtype=torch.bool).tril()
                    p = block.token_wise(p + block.attend(q_p, [k_p], [v_p], [past]))
            scores = scale * q @ k_p.mT  # [n, H, T, m]
            prompt_log_mass, bias = scores.logsumexp(-1), scores.softmax(-1) @ v_p
        share = torch.sigmoid(prompt_log_mass - log_mass)
        heads = (1 - share[..., None]) * own + share[..., None] * bias
        x = block.token_wise(x + heads.transpose(-2, -3).flatten(-2) @ block.output)
        layers.append(Seen(pattern, log_mass, prompt_log_mass, share, bias, heads))
    return layers, model.norm(x) @ model.unembedding


def joint_attention(
    model: Transformer, tokens: Float[Tensor, "n T d"], prompt: Float[Tensor, "m d"]
) -> Float[Tensor, "n H T m+T"]:
    """The attention of the first layer to prompt and own tokens, out of the network's own joint softmax.

    The layer's `attend` is run with unit vectors in place of values and no output map.
    """
    c, m, T = model.config, len(prompt), tokens.shape[1]
    block = copy.deepcopy(model.blocks[0])
    q, k, _ = model.heads(block, tokens[None], m)
    _, k_p, _ = model.heads(block, prompt[None, None], 0)
    units = torch.eye(m + T, dtype=tokens.dtype).expand(1, 1, c.heads, -1, -1)
    block.output = torch.nn.Parameter(torch.eye(c.heads * (m + T), dtype=tokens.dtype), requires_grad=False)
    past = torch.ones(T, T, dtype=torch.bool).tril() if c.causal else None
    mixed = block.attend(q, [k_p, k], [units[..., :m, :], units[..., m:, :]], [None, past])
    return mixed[0].unflatten(-1, (c.heads, m + T)).transpose(-2, -3)


def without_prompt(model: Transformer, contents: Float[Tensor, "n d"], read: Float[Tensor, " d"]):
    """(logits [n, q], masses [n, H], values [n, H, q]) of the sequences (x_i, x_0) at x_0 in one layer.

    `values` is what each head adds to the logits, without token-wise network and final norm.
    """
    layers, logits = own_and_prompt(model, shared_texts(contents, read))
    c, seen = model.config, layers[0]
    out = (model.blocks[0].output @ model.unembedding).unflatten(0, (c.heads, c.d_v))  # [H, d_v, q]
    return logits[:, -1], seen.log_mass[..., -1].exp(), torch.einsum("nhv,hvq->nhq", seen.heads[..., -1, :], out)
