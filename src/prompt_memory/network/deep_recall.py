"""Transformers of any depth that recall facts from their context, and what their heads look at while they do.

One token holds one fact: a projected key, a unit vector drawn at random, plus the code of one of q values.  A question
is a projected key alone, one token behind the facts.

Shapes at the end of a line: `N` facts in a context, `n` questions, `q` values, `w` key width, `L` layers, `H` heads.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from prompt_memory.network.transformer import Transformer, TransformerConfig, require_finite


class Reading(NamedTuple):
    """What n questions find in one context."""

    logits: Float[Tensor, "n q"]
    scores: Float[Tensor, "L n H N"]  # softmax logits of the question's token on the facts
    own: Float[Tensor, "L n H"]  # the same on itself


class DeepRecaller(nn.Module):
    """A causal transformer, with the projections of keys to tokens that make facts and questions of them.

    The code of a value is its row of the transformer's embedding, at first 0.3 times a standard normal vector.
    ValueError unless the network is causal, with full attention at one temperature.
    """

    def __init__(self, config: TransformerConfig, key_width: int, *, generator: torch.Generator):
        super().__init__()
        if not config.causal or config.positions == "learned" or config.context_scaling != "none":
            raise ValueError("facts are read by a causal network with no or rotary positions, without context scaling")
        self.transformer = Transformer(config, generator=generator)
        self.transformer.embedding.mul_(0.3)
        for name in ("fact", "question"):
            projection = torch.randn(key_width, config.d, generator=generator) / math.sqrt(key_width)
            self.register_parameter(name, nn.Parameter(projection, requires_grad=False))

    @property
    def config(self) -> TransformerConfig:
        """The architecture; its q is the number of values."""
        return self.transformer.config

    def facts(self, keys: Float[Tensor, "*B N w"], labels: Int[Tensor, "*B N"]) -> Float[Tensor, "*B N d"]:
        """The tokens of facts."""
        return keys @ self.fact + self.transformer.embedding[labels]

    def questions(self, keys: Float[Tensor, "*B n w"]) -> Float[Tensor, "*B n d"]:
        """The tokens that ask for the facts with these keys."""
        return keys @ self.question

    def read(
        self, context: Float[Tensor, "N d"], questions: Float[Tensor, "n d"], *, averaged: frozenset[int] = frozenset()
    ) -> Reading:
        """Each question alone behind the context: the logits of `Transformer.forward`, up to rounding, and the scores.

        In the layers of `averaged` (from 0) what the heads hand to a question is replaced by its mean over the
        questions, so that they cannot tell which fact is asked for.
        """
        network, c, N = self.transformer, self.config, len(context)
        scale = c.inverse_temperature / math.sqrt(c.d_k)
        p, x, scores, own = context, questions[:, None], [], []  # [N, d], [n, 1, d]
        for layer, block in enumerate(network.blocks):
            q_p, k_p, v_p = network.heads(block, p, 0)  # [H, N, ·]
            q_x, k_x, v_x = network.heads(block, x, N)  # [n, H, 1, ·]
            scores.append(scale * (q_x @ k_p.transpose(-1, -2))[:, :, 0])
            own.append(scale * (q_x * k_x).sum((-2, -1)))
            weights = torch.cat([scores[-1], own[-1][..., None]], -1).softmax(-1)  # [n, H, N + 1]
            mixed = torch.einsum("nhs,hsv->nhv", weights[..., :-1], v_p) + weights[..., -1:] * v_x[:, :, 0]
            if layer in averaged:
                mixed = mixed.mean(0, keepdim=True).expand_as(mixed)
            x = block.token_wise(x + (mixed.flatten(-2) @ block.output)[:, None])
            if layer < c.depth - 1:
                seen = F.scaled_dot_product_attention(q_p[None], k_p[None], v_p[None], is_causal=True, scale=scale)[0]
                p = block.token_wise(p + seen.transpose(-2, -3).flatten(-2) @ block.output)
        return Reading((network.norm(x) @ network.unembedding)[:, 0], torch.stack(scores), torch.stack(own))


class DeepRecallers(nn.Module):
    """Several of them, of one key width, which share nothing."""

    def __init__(self, configs: tuple[TransformerConfig, ...], key_width: int, *, generator: torch.Generator):
        super().__init__()
        self.key_width = key_width
        self.members = nn.ModuleList(DeepRecaller(config, key_width, generator=generator) for config in configs)

    def require_finite(self) -> "DeepRecallers":
        """Return self; ValueError that names the first weight holding NaN or infinity."""
        return require_finite(self)
