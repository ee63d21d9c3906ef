"""The frozen network: a pre-norm transformer that reads a soft prompt and a query.

One file, to be read in ten minutes.  The weights are frozen; what is tuned is the prompt.  Prompts come in batches of
`R` independent runs over one set of weights, so that restarts, strings and enumerated prompts are all one tensor.

Shapes at the end of a line: `R` runs, `n` queries, `m` prompt tokens, `T` tokens in a query, `d` width, `q` classes,
`L` layers, `H` heads.  A dimension of size 1 in place of `n` means "the same for every query".
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prompt_memory.checks import integers


@dataclass(frozen=True)
class TransformerConfig:
    """Architecture of the frozen network.  Lengths are counts; `d_k` and `d_v` default to `d / heads`.

    `q` is the number of classes, or the vocabulary size of a language model; `mlp` is the hidden width of the
    token-wise network (0: none); `norm_eps` may be 0, which makes the norms exactly scale-invariant; `context` is the
    largest number of positions (only learned positions need it); `context_scaling="log"` multiplies the softmax
    logits of a token that sees N keys by ln N.  Raises ValueError with one sentence when the parts do not fit.
    """

    d: int
    q: int = 2
    depth: int = 1
    heads: int = 1
    d_k: int | None = None
    d_v: int | None = None
    mlp: int = 0
    activation: Literal["gelu", "relu"] = "gelu"
    norm: Literal["none", "rms", "layer"] = "none"
    norm_eps: float = 1e-5
    causal: bool = False
    positions: Literal["none", "learned", "rotary"] = "none"
    context: int = 64
    inverse_temperature: float = 1.0
    context_scaling: Literal["none", "log"] = "none"

    def __post_init__(self):
        for name in ("d", "q", "depth", "heads", "context", "mlp"):
            self._keep_integer(name, least=0 if name == "mlp" else 1)
        for name in ("d_k", "d_v"):
            if getattr(self, name) is None:
                if self.d % self.heads:
                    raise ValueError(f"{name} must be given: d = {self.d} is not divisible by heads = {self.heads}")
                object.__setattr__(self, name, self.d // self.heads)
            self._keep_integer(name)
        if not isinstance(self.causal, bool):
            raise ValueError(f"causal must be True or False, not {self.causal!r}")
        for name in ("activation", "norm", "positions", "context_scaling"):
            if getattr(self, name) not in (allowed := get_args(self.__annotations__[name])):
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.positions == "rotary" and self.d_k % 2:
            raise ValueError(f"rotary positions turn pairs of coordinates, so d_k must be even, not {self.d_k}")
        if not (_is_finite(self.norm_eps) and self.norm_eps >= 0):
            raise ValueError(f"norm_eps must be a finite number >= 0, not {self.norm_eps!r}")
        if not (_is_finite(self.inverse_temperature) and self.inverse_temperature > 0):
            raise ValueError(f"inverse_temperature must be a finite number > 0, not {self.inverse_temperature!r}")

    def _keep_integer(self, name: str, least: int = 1) -> None:
        object.__setattr__(self, name, integers(least, **{name: getattr(self, name)})[0])


class Prefix(NamedTuple):
    """What prefix tuning trains: keys and values of `m` virtual tokens in every layer and head."""

    keys: Float[Tensor, "R L H m d_k"]
    values: Float[Tensor, "R L H m d_v"]


class Norm(nn.Module):
    """RMSNorm or LayerNorm without bias, or nothing: x ↦ g ⊙ x / √(mean x² + ε₀), after centring if `layer`."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        self.gain = nn.Parameter(torch.ones(config.d)) if config.norm != "none" else None

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        if self.kind == "none":
            return x
        norm = F.layer_norm if self.kind == "layer" else F.rms_norm
        return norm(x, self.gain.shape, self.gain, eps=self.eps)


def require_finite(module: nn.Module) -> nn.Module:
    """Return the module; ValueError that names its first weight holding NaN or infinity."""
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"the weight {name} holds NaN or infinite entries")
    return module


class Block(nn.Module):
    """One layer, x ↦ x + attention(norm(x)), then x ↦ x + mlp(norm(x)), on a prompt stream and a query stream."""

    def __init__(self, config: TransformerConfig, generator: torch.Generator):
        super().__init__()
        self.config = c = config
        self.norm1, self.norm2 = Norm(c), Norm(c) if c.mlp else None
        self.query = _weight(c.d, c.heads * c.d_k, generator)
        self.key = _weight(c.d, c.heads * c.d_k, generator)
        self.value = _weight(c.d, c.heads * c.d_v, generator)
        self.output = _weight(c.heads * c.d_v, c.d, generator)
        if c.mlp:
            self.up, self.up_bias = _weight(c.d, c.mlp, generator), nn.Parameter(torch.zeros(c.mlp))
            self.down, self.down_bias = _weight(c.mlp, c.d, generator), nn.Parameter(torch.zeros(c.d))

    def split(self, x: Float[Tensor, "*B T d"], weight: Tensor) -> Float[Tensor, "*B H T d_h"]:
        return (x @ weight).unflatten(-1, (self.config.heads, -1)).transpose(-2, -3)

    def attend(
        self,
        q: Float[Tensor, "... T d_k"],
        keys: list[Float[Tensor, "... _ d_k"]],
        values: list[Float[Tensor, "... _ d_v"]],
        masks: list[Bool[Tensor, "T _"] | None],
    ) -> Float[Tensor, "... T d"]:
        """Softmax attention of `q` over several groups of keys, each with a mask (None: all visible)."""
        scale = self.config.inverse_temperature / math.sqrt(self.config.d_k)
        scores = [scale * q @ k.transpose(-1, -2) for k in keys]  # [R, n, H, T, keys of the group] each
        batch = torch.broadcast_shapes(*(s.shape[:-2] for s in scores))
        everything = q.new_ones(1, dtype=torch.bool)
        visible = [everything.expand(s.shape[-2:]) if a is None else a for s, a in zip(scores, masks, strict=True)]
        visible = torch.cat(visible, -1)  # [T, keys of all groups]
        scores = torch.cat([s.expand(*batch, *s.shape[-2:]) for s in scores], -1)
        if self.config.context_scaling == "log":
            scores = scores * visible.sum(-1, keepdim=True).to(scores.dtype).log()
        scores = scores.masked_fill(~visible, -torch.inf)
        # written out, not fused: forward-mode derivatives and vmap need rules that the fused kernel lacks
        weights = scores.softmax(-1).split([k.shape[-2] for k in keys], -1)
        mixed = sum(w @ v for w, v in zip(weights, values, strict=True))  # [R, n, H, T, d_v]
        return mixed.transpose(-2, -3).flatten(-2) @ self.output  # [R, n, T, d]

    def token_wise(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        if not self.config.mlp:
            return x
        hidden = F.linear(self.norm2(x), self.up.T, self.up_bias)
        hidden = F.relu(hidden) if self.config.activation == "relu" else F.gelu(hidden)
        return x + F.linear(hidden, self.down.T, self.down_bias)


class Transformer(nn.Module):
    """The frozen network F(P; X): logits [R, n, q] at the last token of each query, for R prompts at once.

    Weights are drawn from `generator` (default: one seeded with 0) at the scale 1/√fan-in, so that activations and
    softmax logits are of order one, and do not require gradients.
    """

    def __init__(self, config: TransformerConfig, *, generator: torch.Generator | None = None):
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.q, config.d, generator=generator))
        if config.positions == "learned":
            self.position = nn.Parameter(0.5 * torch.randn(config.context, config.d, generator=generator))
        self.blocks = nn.ModuleList(Block(config, generator) for _ in range(config.depth))
        self.norm = Norm(config)
        self.unembedding = _weight(config.d, config.q, generator)
        self.requires_grad_(False)

    def require_finite(self) -> "Transformer":
        """Return self; ValueError that names the first weight holding NaN or infinity."""
        return require_finite(self)

    def heads(self, block: Block, x: Float[Tensor, "*B T d"], start: int):
        """Queries, keys and values [*B, H, T, ·] of a layer for tokens from position `start` on, turned if rotary."""
        h = block.norm1(x)
        query, key = (self._turn(block.split(h, weight), start) for weight in (block.query, block.key))
        return query, key, block.split(h, block.value)

    def embed(self, queries: Tensor) -> Float[Tensor, "n T d"]:
        """Queries as vectors [n, T, d]: token ids [n, T] are looked up, vectors [n, d] are queries of one token."""
        if not queries.is_floating_point():
            if queries.ndim != 2:
                raise ValueError(f"token queries must have the shape [n, T], not {list(queries.shape)}")
            if queries.numel() and (queries.min() < 0 or queries.max() >= self.config.q):
                raise ValueError(f"token ids must lie in 0 … {self.config.q - 1}")
            return self.embedding[queries.long()]
        if queries.ndim == 2:
            queries = queries[:, None]
        if queries.ndim != 3 or queries.shape[-1] != self.config.d or queries.shape[1] < 1:
            raise ValueError(
                f"queries must have the shape [n, d] or [n, T, d] with d = {self.config.d}, not {list(queries.shape)}"
            )
        return queries

    def forward(
        self,
        prompt: Float[Tensor, "R m d"] | Prefix,
        queries: Float[Tensor, "n T d"] | Float[Tensor, "n d"] | Int[Tensor, "n T"],
        *,
        own_token: bool = True,
        read: Literal["last", "all"] = "last",
    ) -> Tensor:
        """Logits [R, n, q] at the last token of each query, or [R, n, T, q] with `read="all"`.

        `own_token=False` removes the query's own tokens from every set of keys: all that is read is the prompt.
        Without `causal` the prompt and the query see each other; with it, each token sees those before it and itself.
        """
        c = self.config
        if read not in ("last", "all"):
            raise ValueError(f"read must be one of last, all, not {read!r}")
        x = self.embed(queries)[None]  # [1, n, T, d]
        soft = not isinstance(prompt, Prefix)
        m = self._prompt_length(prompt)
        T = x.shape[-2]
        # the prompt's states depend on the query only if it looks at the query and a later layer looks at it
        p = prompt[:, None] if soft else None  # [R, 1, m, d]
        if c.positions == "learned":
            if m + T > c.context:
                raise ValueError(f"{m} prompt and {T} query tokens exceed the {c.context} learned positions")
            x = x + self.position[m : m + T]
            p = p + self.position[:m] if soft else None
        past = torch.ones(T, T, dtype=torch.bool, device=x.device).tril() if c.causal else None
        prompt_past = torch.ones(m, m, dtype=torch.bool, device=x.device).tril() if c.causal else None
        prompt_sees_query = own_token and not c.causal
        for layer, block in enumerate(self.blocks):
            last = layer == c.depth - 1
            q_x, k_x, v_x = self.heads(block, x, m)
            if soft:
                g = block.norm1(p)
                k_p, v_p = self._turn(block.split(g, block.key), 0), block.split(g, block.value)
            else:
                k_p, v_p = prompt.keys[:, None, layer], prompt.values[:, None, layer]
            if last and read == "last":  # nothing else is read from here on
                x, q_x = x[..., -1:, :], q_x[..., -1:, :]
                past = None
            own = ([k_x], [v_x], [past]) if own_token else ([], [], [])
            x = block.token_wise(x + block.attend(q_x, [k_p, *own[0]], [v_p, *own[1]], [None, *own[2]]))
            if soft and not last:
                q_p = self._turn(block.split(g, block.query), 0)
                seen = ([k_x], [v_x], [None]) if prompt_sees_query else ([], [], [])
                u = block.attend(q_p, [k_p, *seen[0]], [v_p, *seen[1]], [prompt_past, *seen[2]])
                p = block.token_wise(p + u)  # [R, n or 1, m, d]
        logits = self.norm(x) @ self.unembedding  # [R, n, T, q]
        return logits[..., -1, :] if read == "last" else logits

    def stream(self, x: Float[Tensor, "R T d"]) -> Float[Tensor, "R T q"]:
        """As a language model: logits of the next token after every vector of R sequences, [R, T, q].

        Each sequence is a prompt followed by the embeddings of its own tokens, all seen causally: the same numbers as
        `forward`, up to rounding, where R prompts meet R different strings.  Attention is fused: for gradients, not
        for forward-mode derivatives.  ValueError unless the network is causal, or if a sequence is too long.
        """
        c = self.config
        if not c.causal or c.context_scaling != "none":
            raise ValueError("stream needs a causal network without context scaling")
        if x.ndim != 3 or x.shape[-1] != c.d or not x.shape[1]:
            raise ValueError(f"sequences must have the shape [R, T, d] with d = {c.d}, not {list(x.shape)}")
        if c.positions == "learned":
            if x.shape[1] > c.context:
                raise ValueError(f"{x.shape[1]} tokens exceed the {c.context} learned positions")
            x = x + self.position[: x.shape[1]]
        scale = c.inverse_temperature / math.sqrt(c.d_k)
        for block in self.blocks:
            weight = torch.cat([block.query, block.key, block.value], 1)  # one product instead of three
            parts = (block.norm1(x) @ weight).split([c.heads * c.d_k, c.heads * c.d_k, c.heads * c.d_v], -1)
            q, k, v = (part.unflatten(-1, (c.heads, -1)).transpose(-2, -3) for part in parts)  # [R, H, T, d_h]
            q, k = self._turn(q, 0), self._turn(k, 0)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
            x = block.token_wise(x + mixed.transpose(-2, -3).flatten(-2) @ block.output)
        return self.norm(x) @ self.unembedding

    def _prompt_length(self, prompt) -> int:
        c = self.config
        if isinstance(prompt, Prefix):
            m = prompt.keys.shape[-2]
            shapes = [[c.depth, c.heads, m, width] for width in (c.d_k, c.d_v)]
            if [list(part.shape[1:]) for part in prompt] != shapes or len(prompt.keys) != len(prompt.values):
                raise ValueError(
                    f"a prefix needs keys [R, {shapes[0]}] and values [R, {shapes[1]}], "
                    f"not {list(prompt.keys.shape)} and {list(prompt.values.shape)}"
                )
        elif prompt.ndim != 3 or prompt.shape[-1] != c.d:
            raise ValueError(f"prompts must have the shape [R, m, d] with d = {c.d}, not {list(prompt.shape)}")
        else:
            m = prompt.shape[-2]
        if m < 1:
            raise ValueError("a prompt needs at least one token, m >= 1")
        return m

    def _turn(self, x: Float[Tensor, "*B H T d_k"], start: int) -> Float[Tensor, "*B H T d_k"]:
        """Rotary positions: turn coordinate pair i of the token at position t by the angle t·10000^(−2i/d_k)."""
        if self.config.positions != "rotary":
            return x
        half = self.config.d_k // 2
        frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
        angle = torch.arange(start, start + x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * frequency
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def _weight(rows: int, columns: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns, generator=generator) / math.sqrt(rows))


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
