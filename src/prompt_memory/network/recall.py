"""A family of small transformers that recall facts from their context.

One token holds one fact: a key, a unit vector drawn at random, side by side with the code of one of q values.  A query
is a key alone.  One attention layer (one head, no norm, no token-wise network; the query sees the context only) reads
the value.  All members of the family are evaluated at once: their weights are stacked, [R, …].

Shapes at the end of a line: `R` members, `C` contexts, `N` facts in a context, `n` queries, `q` values, `d` width.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from prompt_memory.network.transformer import Transformer, TransformerConfig, require_finite


@dataclass(frozen=True)
class RecallerConfig:
    """One member for every head size, number of values, number of facts in training, and copy.

    Keys are unit vectors in as many dimensions as the head has; attention values have `d_v` coordinates.
    """

    head_sizes: tuple[int, ...] = (8, 12, 16)
    values: tuple[int, ...] = (4, 16)
    facts: tuple[int, ...] = (8, 32)
    copies: int = 2
    d_v: int = 16

    @property
    def members(self) -> list["Member"]:
        """All combinations, the last factor varying fastest."""
        return [
            Member(*each) for each in itertools.product(self.head_sizes, self.values, self.facts, range(self.copies))
        ]


class Member(NamedTuple):
    """What distinguishes one member: dimension of head and keys, number q of values, facts in training, copy."""

    head: int
    q: int
    facts: int
    copy: int


class Recaller(nn.Module):
    """The family's weights: tokens [key, value code] of width d, the largest head size plus the largest q."""

    def __init__(self, config: RecallerConfig, *, generator: torch.Generator | None = None):
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.config, self.members = config, config.members
        R, self.width, self.q = len(self.members), max(config.head_sizes), max(config.values)
        self.d = self.width + self.q
        shapes = {
            "query": (self.d, self.width),
            "key": (self.d, self.width),
            "value": (self.d, config.d_v),
            "output": (config.d_v, self.d),
            "unembedding": (self.d, self.q),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(R, *shape, generator=generator) / shape[0] ** 0.5))
        self.requires_grad_(False)
        heads, values, facts = (torch.tensor(column) for column in list(zip(*self.members, strict=True))[:3])
        self.heads, self.values, self.facts = heads[:, None], values[:, None], facts[:, None]

    def require_finite(self) -> "Recaller":
        """Return self; ValueError that names the first weight holding NaN or infinity."""
        return require_finite(self)

    def forward(
        self, keys: Float[Tensor, "R C N w"], labels: Int[Tensor, "R C N"], asked: Float[Tensor, "R C n w"]
    ) -> Float[Tensor, "R C n q"]:
        """Logits of every member in its own contexts; −∞ for values that the member does not have.

        Facts beyond the number in a member's training are not seen: this is the training pass.
        """
        tokens = torch.cat([keys, F.one_hot(labels, self.q).to(keys.dtype)], -1)
        queries = F.pad(asked, (0, self.q))
        used = torch.arange(self.width) < self.heads  # [R, w]
        scale = used / self.heads**0.5
        q = torch.einsum("rcnd,rdh->rcnh", queries, self.query * scale[:, None])
        k, v = (torch.einsum("rcnd,rdh->rcnh", tokens, weight) for weight in (self.key, self.value))
        scores = q @ k.transpose(-1, -2)
        seen = torch.arange(keys.shape[2]) < self.facts  # [R, N]
        mixed = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1) @ v
        x = queries + torch.einsum("rcnv,rvd->rcnd", mixed, self.output)
        logits = torch.einsum("rcnd,rdq->rcnq", x, self.unembedding)
        has = torch.arange(self.q) < self.values
        return logits.masked_fill(~has[:, None, None], -torch.inf)

    def transformer(self, member: int) -> Transformer:
        """One member as a `Transformer` of the book: prompt [C, N, d], queries [n, d], read with own_token=False."""
        size = self.members[member]
        config = TransformerConfig(d=self.d, q=size.q, heads=1, d_k=size.head, d_v=self.config.d_v)
        model = Transformer(config)
        block = model.blocks[0]
        block.query.copy_(self.query[member, :, : size.head])
        block.key.copy_(self.key[member, :, : size.head])
        block.value.copy_(self.value[member])
        block.output.copy_(self.output[member])
        model.unembedding.copy_(self.unembedding[member, :, : size.q])
        return model


class Reader(NamedTuple):
    """One member in numbers: softmax logit ⟨x·by_key, k⟩ + x·by_value[v], and votes for the q values.

    The token (k, v) has the vote k·key_votes + value_votes[v] + x·residual ∈ R^q in the query x, a unit vector: the
    member's logits are the votes of all tokens, averaged with the attention's weights.
    """

    by_key: Float[Tensor, "h h"]
    by_value: Float[Tensor, "h q"]
    key_votes: Float[Tensor, "h q"]
    value_votes: Float[Tensor, "q q"]
    residual: Float[Tensor, "h q"]

    def scores(self, asked: Float[Tensor, "n h"], keys: Float[Tensor, "N h"], labels: Int[Tensor, " N"]):
        """Softmax logits [n, N]."""
        return torch.addmm((asked @ self.by_value)[:, labels], asked @ self.by_key, keys.T)

    def votes(self, keys: Float[Tensor, "N h"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N q"]:
        """Votes [N, q], without the query's own x·residual."""
        return keys @ self.key_votes + self.value_votes[labels]


def reader(family: Recaller, member: int, dtype: torch.dtype = torch.float64) -> Reader:
    """The member's matrices: the weights multiplied out."""
    h, q, *_ = family.members[member]
    Q, K, V, O, U = (
        getattr(family, name)[member].to(torch.float64) for name in ("query", "key", "value", "output", "unembedding")
    )
    A = Q[:h, :h] @ K[:, :h].T / math.sqrt(h)  # [h, d]
    M = V @ O @ U[:, :q]  # [d, q]
    w = family.width
    parts = (A[:, :h], A[:, w : w + q], M[:h], M[w : w + q], U[:h, :q])
    return Reader(*(part.to(dtype) for part in parts))


def sharper(r: Reader, factor: float) -> Reader:
    """The same member with its softmax logits multiplied."""
    return r._replace(by_key=r.by_key * factor, by_value=r.by_value * factor)


def logit_range(r: Reader) -> float:
    """Δ: in every query, softmax logits of facts lie in an interval of this length; not every query attains it."""
    biases = (r.by_value[:, :, None] - r.by_value[:, None]).norm(dim=0).max()
    return float(2 * torch.linalg.matrix_norm(r.by_key, 2) + biases)


def vote_spread(r: Reader, x: Float[Tensor, "n h"]) -> Float[Tensor, " n"]:
    """D for each query: max over y ≠ y' of f_y − f_y' at its fact with value y, less the least of any fact."""
    by_key = r.key_votes[:, :, None] - r.key_votes[:, None]  # [h, y, y']
    by_value = r.value_votes[:, :, None] - r.value_votes[:, None]  # [v, y, y']
    own = torch.einsum("nh,hyz->nyz", x, by_key) + by_value.diagonal(dim1=0, dim2=1).T
    return (own - by_value.amin(0) + by_key.norm(dim=0)).amax((1, 2))


def swing(r: Reader) -> tuple[float, float]:
    """(B, S) over all tokens (key, code) with key and code in unit balls, and unit queries: |softmax logits| <= B,
    and half the difference of any two votes is at most S, attained."""
    parts = [float(torch.linalg.matrix_norm(part, 2)) for part in (r.by_key, r.by_value)]
    joint = math.sqrt(2) * float(torch.linalg.matrix_norm(torch.cat([r.by_key, r.by_value], 1), 2))
    lengths = [(votes[:, :, None] - votes[:, None]).norm(dim=0) for votes in (r.key_votes, r.value_votes)]
    return min(sum(parts), joint), float(sum(lengths).max()) / 2
