"""What a network holds of a prompt, and how queries read it: heads of all layers as heads of one."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from prompt_memory.bounds import head_moment_count, require
from prompt_memory.compress.attention import attend
from prompt_memory.compress.polynomials import head_moments
from prompt_memory.network.transformer import Transformer


class CompressedCache(NamedTuple):
    """What each layer keeps of a cache: positions of the prompt, what it holds there, and weights >= 0 with sum 1."""

    positions: list[Int[np.ndarray, " a"]]
    entries: list[Float[np.ndarray, "a S"]]  # S = H·(2 d_k + d_v), the columns of the layer in `prompt_cache`
    weights: list[Float[np.ndarray, " a"]]
    tokens: int  # of the whole prompt: a query's own token weighs 1/tokens beside these


def prompt_cache(model: Transformer, prompt: Float[torch.Tensor, "m d"]) -> Float[np.ndarray, "m D"]:
    """What a network holds of a prompt, as one vector a token: its keys and values in every layer and head.

    D = L·H·(2 d_k + d_v); a layer and head has d_k zeros (room for a query), the key, turned to its position, and the
    value.  With `cache_heads` and the second result of `read_cache`, these are tokens, maps and queries of L·H heads of
    one layer, so `attend` and `caratheodory` apply to networks of any depth whose prompt does not see the query.
    ValueError unless the network is causal or has one layer, and does not scale its logits by the context.
    """
    c = model.config
    require("Proposition 5a", c)
    model._prompt_length(prompt[None])
    p = prompt.to(model.embedding.dtype)[None, None]  # [1, 1, m, d]
    p = p + model.position[: len(prompt)] if c.positions == "learned" else p
    past = torch.ones(len(prompt), len(prompt), dtype=torch.bool).tril() if c.depth > 1 else None
    parts = []
    for layer, block in enumerate(model.blocks):
        q, k, v = model.heads(block, p, 0)
        parts.append(torch.cat([torch.zeros_like(q), k, v], -1)[0, 0])  # [H, m, 2 d_k + d_v]
        if layer + 1 < c.depth:
            p = block.token_wise(p + block.attend(q, [k], [v], [past]))
    return torch.cat(parts).transpose(0, 1).flatten(1).double().numpy()


def cache_heads(config) -> tuple[Float[np.ndarray, "LH D D"], Float[np.ndarray, "LH d_v D"]]:
    """A and V of all layers and heads of a network, for the tokens of `prompt_cache`."""
    c, heads = config, config.depth * config.heads
    size = 2 * c.d_k + c.d_v
    A, V = np.zeros((heads, heads * size, heads * size)), np.zeros((heads, c.d_v, heads * size))
    for head in range(heads):
        query, key = (head * size + shift + np.arange(c.d_k) for shift in (0, c.d_k))
        A[head, key, query] = c.inverse_temperature / math.sqrt(c.d_k)
        V[head, np.arange(c.d_v), head * size + 2 * c.d_k + np.arange(c.d_v)] = 1.0
    return A, V


def read_cache(
    model: Transformer,
    cache: Float[np.ndarray, "a D"] | CompressedCache,
    queries: Float[torch.Tensor, "n d"],
    *,
    position: int,
    weights: Float[np.ndarray, " a"] | None = None,
    own: float = 1.0,
) -> tuple[Float[np.ndarray, "n q"], Float[np.ndarray, "n D"]]:
    """Logits of queries of one token that read a weighted cache, and what they ask of it as vectors.

    With the cache of a whole prompt, `position` its length and own = 1 (0: `own_token=False`), these are the network's
    own logits.  `own` counts tokens of the prompt; a `CompressedCache` has weights of its own.  The second result holds
    queries (and own keys and values) of each layer and head: the queries to compress the cache for.
    """
    c, compressed = model.config, isinstance(cache, CompressedCache)
    if compressed and weights is not None:
        raise ValueError("a compressed cache has its own weights")
    A, V = cache_heads(c)
    x = model.embed(queries.to(model.embedding.dtype))[None]  # [1, n, 1, d]
    x = x + model.position[position] if c.positions == "learned" else x
    size = c.heads * (2 * c.d_k + c.d_v)
    readers = np.zeros((len(queries), c.depth * size))
    for layer, block in enumerate(model.blocks):
        asked = torch.cat(model.heads(block, x, position), -1)[0, :, :, 0]  # [n, H, 2 d_k + d_v]
        here = slice(layer * size, (layer + 1) * size)
        readers[:, here] = asked.flatten(1).double().numpy()
        part = slice(layer * c.heads, (layer + 1) * c.heads)
        if compressed:
            mixed = attend(
                cache.entries[layer], readers[:, here], A[part, here, here], V[part, :, here],
                weights=cache.weights[layer], own=own / cache.tokens,
            )  # fmt: skip
        else:
            mixed = attend(cache, readers, A[part], V[part], weights=weights, own=own)  # [n, H, d_v]
        mixed = torch.from_numpy(mixed).to(x.dtype).flatten(1) @ block.output
        x = block.token_wise(x + mixed[None, :, None])
    return (model.norm(x) @ model.unembedding)[0, :, 0].double().numpy(), readers


def compress_cache(
    model: Transformer, cache: Float[np.ndarray, "m D"], degree: int, *, same_positions: bool = False
) -> CompressedCache:
    """Few weighted positions with the same means of u^α and u^α v_i, |α| <= degree, in all layers and heads.

    `cache` is that of `prompt_cache`; keys u are those that attention uses, turned if rotary.  Each layer keeps at most
    J + 1 positions with weights of its own, or all layers the same L·J + 1 (`bounds.cache_positions`), for every query,
    up to `bounds.cache_error` (Theorem 6b).  Time is linear in m; means are compared before anything is returned.
    ValueError if nothing would be saved, as in `head_moments`, and for networks that Theorem 6b does not cover.
    """
    c = model.config
    require("Theorem 6b", c)
    size, width = c.heads * (2 * c.d_k + c.d_v), 2 * c.d_k + c.d_v
    cache = np.asarray(cache, dtype=np.float64)
    if cache.ndim != 2 or cache.shape[1] != c.depth * size:
        raise ValueError(f"the cache must be [m, {c.depth * size}], not of shape {cache.shape}")
    count = head_moment_count(degree, c.d_k, c.d_v, c.heads * (c.depth if same_positions else 1))
    if count >= len(cache):
        raise ValueError(f"degree {degree} asks for {count} positions, which saves none of {len(cache)}")
    heads = cache.reshape(len(cache), c.depth, c.heads, width).transpose(1, 2, 0, 3)  # [L, H, m, 2 d_k + d_v]
    heads = heads.reshape(1, -1, *heads.shape[2:]) if same_positions else heads
    short = [head_moments(each[..., c.d_k : 2 * c.d_k], each[..., 2 * c.d_k :], degree) for each in heads]
    short = short * c.depth if same_positions else short
    entries = [cache[each.indices, layer * size : (layer + 1) * size] for layer, each in enumerate(short)]
    return CompressedCache([each.indices for each in short], entries, [each.weights for each in short], len(cache))


def cache_logits(
    config, cache: Float[np.ndarray, "m D"], readers: Float[np.ndarray, "n D"], *, own: bool = True
) -> Float[np.ndarray, "L H"]:
    """Half the length of an interval that holds the softmax logits of a query, the longest of all queries.

    `cache` as in `prompt_cache`, `readers` as in `read_cache`; `own`: queries attend to themselves.  These may stand
    for B_h in `bounds.cache_error`: softmax does not notice a number that is added to all logits.
    """
    c = config
    shape, scale = (c.depth, c.heads, 2 * c.d_k + c.d_v), c.inverse_temperature / math.sqrt(c.d_k)
    asked, held = readers.reshape(-1, *shape), np.asarray(cache).reshape(-1, *shape)
    longest = np.zeros(shape[:2])
    for layer, head in np.ndindex(*shape[:2]):
        query, key, _ = np.split(asked[:, layer, head], [c.d_k, 2 * c.d_k], axis=1)
        keys = np.ascontiguousarray(held[:, layer, head, c.d_k : 2 * c.d_k].T)
        for start in range(0, len(query), 1024):  # [1024, m] at a time
            part = slice(start, start + 1024)
            logits = query[part] @ keys
            high, low = logits.max(1), logits.min(1)
            if own:
                itself = (query[part] * key[part]).sum(1)
                high, low = np.maximum(high, itself), np.minimum(low, itself)
            longest[layer, head] = max(longest[layer, head], scale * (high - low).max() / 2)
    return longest
