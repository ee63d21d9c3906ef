"""What the bounds need of a network."""

from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Architecture:
    """What the bounds need of a network.

    `width` is that of the vectors a prompt is made of; `kv_heads` counts the heads with keys and values of their own
    (fewer than `heads` with grouped queries).  `norm` is "layer" only where the mean of a token is never read: the
    counts with "rms" and "none" are the same.  `context`, `window` and `logit_cap` may be unknown or absent (None).

    `attention` is "window" if some layer sees the last `window` positions only, "chunked" if some layer sees positions
    of one chunk, "other" if a position's weight is no softmax of its own logit (top-k, differences of two softmaxes, or
    not known).  `cache` lists (heads, d_k, d_v) of every layer with a cache of its own where layers differ; `written`
    counts the numbers H d_v that attention writes in all layers where that is not L H d_v; `compressed` counts those
    that a layer stores of a position to compute keys and values from.  `notes` are sentences on how it was read.
    """

    name: str
    family: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    vocabulary: int
    context: int | None = None
    norm: Literal["none", "rms", "layer"] = "none"
    norm_eps: float = 1e-5
    positions: Literal["learned", "rotary", "alibi", "unknown"] = "unknown"
    causal: bool = True
    logit_cap: float | None = None
    attention: Literal["full", "window", "chunked", "other"] = "full"
    window: int | None = None
    cache: tuple[tuple[int, int, int], ...] | None = None
    written: int | None = None
    compressed: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def caches(self) -> tuple[tuple[int, int, int], ...]:
        """(heads, d_k, d_v) of every layer with keys and values of its own."""
        return self.cache or ((self.kv_heads, self.key_dim, self.value_dim),) * self.layers

    @property
    def cached(self) -> int:
        """Numbers in the cache for one position: keys and values of every layer, the sum of H_kv (d_k + d_v)."""
        if self.compressed is not None:
            return self.layers * self.compressed
        return sum(heads * (keys + values) for heads, keys, values in self.caches)

    @property
    def attended(self) -> int:
        """Coordinates that attention writes for one position, the sum of H d_v over layers."""
        return self.layers * self.heads * self.value_dim if self.written is None else self.written

    def describe(self) -> str:
        """One line of facts."""
        shared = "" if self.kv_heads == self.heads else f" ({self.kv_heads} for keys and values)"
        context = "context unknown" if self.context is None else f"context {self.context:,}"
        window = {"window": f", window {self.window:,}" if self.window else "", "chunked": ", attention in chunks",
                  "other": ", attention of another kind"}.get(self.attention, "")  # fmt: skip
        differ = f", layers differ ({len(self.cache)} caches)" if self.cache else ""
        return (
            f"{self.name}: width {self.width:,}, {self.layers} layers, {self.heads} heads{shared} of dimension "
            f"{self.key_dim}{differ}, {self.cached:,} numbers cached a position, vocabulary {self.vocabulary:,}, "
            f"{context}{window}"
        )


class Shape(NamedTuple):
    """Widths and caches of a network: of one that was built, or as fields tell."""

    width: int
    hidden: int
    caches: tuple[tuple[int, int, int], ...]
    heads: int
    written: int | None
    window: int | None
