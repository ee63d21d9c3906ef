"""Theorem 6b: what queries read of a prompt through the caches of all layers, at any depth and for any length."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prompt_memory.bounds._checks import positive
from prompt_memory.bounds._layers import network_constants, over_heads
from prompt_memory.bounds.coverage import require
from prompt_memory.bounds.moments import head_moment_count, softmax_remainder, softmax_remainder_floor


class CacheLayer(NamedTuple):
    """How the logits of a query depend on the cache of one layer."""

    logits: list[float]  # B_h: the softmax logits of head h lie in [−B_h, B_h]
    sizes: list[float]  # σ_h: what head h writes into the stream is no longer
    gain: float  # G: half the largest difference of two logits moves by at most G times what attention writes
    written: list[Float[np.ndarray, "d d"]]  # M_h: head h adds M_h times a mean of tokens no longer than `reach`
    reach: float


def cache_layers(
    config,
    weights: Mapping[str, Float[np.ndarray, "..."]],
    *,
    radius: float,
    query_radius: float,
    own_token: bool = True,
    least_norm: float = 0.0,
    differences: bool = True,
) -> list[CacheLayer]:
    """B_h, σ_h and the gain G_ℓ of every layer, of a network whose prompt does not see the query.

    G_L = ½ max ‖u_c − u_c'‖ ℓ f_L and G_{i−1} = G_i (1 + ℓ Σ_h ‖M_h‖ Λ_h) f_{i−1}, with ℓ the slope of a norm,
    f = 1 + Lip(token-wise network), and Λ_h how fast head h moves with the query and its own tokens while the cache
    stays (Lemma 2a; at most 1 + 2B_h, and B_h if queries do not see themselves, where radii are equal): constants
    multiply along the stream of the query, whatever the prompt's own layers do (Theorem 6b).  `radius` and
    `query_radius` bound prompt and query vectors; behind a norm they do not count.
    Positions may be none, added or rotary.  ValueError as in `network_lipschitz`, for a bidirectional network of more
    than one layer whose prompt would see the query, and for logits scaled with the context.
    """
    require("Theorem 6b", config, own_token=own_token)
    layers, reading, slope = network_constants(
        config, weights, radius, query_radius, least_norm=least_norm, differences=differences
    )
    gain, found, rotary = reading * slope, [], config.positions == "rotary"
    for layer in reversed(layers):
        reach = layer.keys if own_token else layer.prompt
        gain *= layer.token_wise
        found.append(
            CacheLayer(
                [a * reach * layer.query for a in layer.A],
                [float(np.linalg.norm(each, 2)) * reach for each in layer.M],
                gain,
                layer.M,
                reach,
            )
        )
        if own_token:
            moved = layer.moved_by_tokens(layer.query, 1.0, 1.0, rotary=rotary)
        else:
            moved = over_heads([a * reach**2 for a in layer.A], layer.M)
        gain *= 1 + slope * moved
    return found[::-1]


def cache_error(layers: list[CacheLayer], k: int) -> float:
    """Σ_ℓ 2 G_ℓ Σ_h σ_h ρ_k(B_h): how much half the spread of a query's logits differs between caches of equal moments.

    For two prompts, of one length if queries see themselves, whose caches have the same means of u^α and u^α v_i,
    |α| <= k, in every layer and head (Theorem 6b, part 1).  In logits; `layers` from `cache_layers`, without those
    whose two caches are the same.  In place of B_h may stand half the length of an interval that holds the logits of
    each query (`compress.cache_logits`, `layer._replace`): adding a number to all of them changes nothing.
    ValueError as `softmax_remainder`, so for logits beyond ±40.
    """
    return _left_out(layers, [[softmax_remainder(k, B) for B in layer.logits] for layer in layers])


def cache_positions(depth: int, k: int, d_k: int, d_v: int, heads: int) -> tuple[int, int]:
    """(J + 1, L·J + 1): weighted positions that stand for a prompt in one layer, and in all L layers at once.

    J = H [C(d_k + k, k)(1 + d_v) − 1].  With positions of its own each layer keeps J + 1, so that a cache of L (J + 1)
    entries is left; with the same positions and weights in all layers there are L·J + 1, as many times L (Theorem 6b,
    part 2).  ValueError as `head_moment_count`.
    """
    return head_moment_count(k, d_k, d_v, heads), head_moment_count(k, d_k, d_v, depth * heads)


def cache_bits(config, layers: list[CacheLayer], *, eps: float, k: int | None = None) -> float:
    """L·J log2(1 + 2Σ G κ e^{2B} σ / (ε − 2Σ G σ τ)), in bits: Mem_{2ε} of a network, for prompts of any length.

    J as in `cache_positions`; sums run over layers and heads, ρ = ρ_k(B_h), κ = (1 + ρ)/(1 − ρ), τ = tanh(½ artanh ρ).
    For one length at a time if queries see themselves, else for all lengths at once (Theorem 6b, part 3).  With ε/2
    in place of ε it bounds the different tables of answers, when only answers with margin 2ε count.  `k` None: the
    best k.  Infinite if no k <= 40 serves, or a logit may pass ±40.  ValueError unless eps > 0.
    """
    eps = positive("eps", eps)
    if max(B for layer in layers for B in layer.logits) > _MOST or not all(math.isfinite(each.gain) for each in layers):
        return math.inf
    if k is not None:
        return _bits(config, layers, eps, k)
    swing = sum(layer.gain * math.exp(2 * B) * size
                for layer in layers for B, size in zip(layer.logits, layer.sizes, strict=True))  # fmt: skip
    best, each = math.inf, math.log1p(2 * swing / eps) / math.log(2)  # bits of a number at ρ = 0, the fewest
    for degree in range(_MOST + 1):
        if _numbers(config, layers, degree) * each >= best:
            break
        # τ >= ρ/2, and ρ_k falls in k: its bound from below rules a degree out without the exchange
        floors = [[softmax_remainder_floor(max(degree, math.ceil(B) - 1, 0), B) / 2 for B in layer.logits]
                  for layer in layers]  # fmt: skip
        if _left_out(layers, floors) < eps:
            best = min(best, _bits(config, layers, eps, degree))
    return best


_MOST = 40  # of degrees and of logits


def _left_out(layers: list[CacheLayer], shares: list[list[float]]) -> float:
    """Σ 2 G Σ_h σ_h s_h, of what is left out in each layer and head as a share of its size."""
    return sum(2 * layer.gain * layer.reach * over_heads(s, layer.written)
               for layer, s in zip(layers, shares, strict=True))  # fmt: skip


def _numbers(config, layers: list[CacheLayer], k: int) -> int:
    """L·J."""
    return len(layers) * (head_moment_count(k, config.d_k, config.d_v, config.heads) - 1)


def _bits(config, layers: list[CacheLayer], eps: float, k: int) -> float:
    """`cache_bits` at one degree."""
    rho = [[softmax_remainder(k, B) for B in layer.logits] for layer in layers]
    if max(max(each) for each in rho) >= 1:
        return math.inf
    left = _left_out(layers, [[r / (1 + math.sqrt(1 - r * r)) for r in each] for each in rho])
    if not left < eps:
        return math.inf
    swing = sum(
        layer.gain * (1 + r) / (1 - r) * math.exp(2 * B) * size
        for layer, each in zip(layers, rho, strict=True)
        for r, B, size in zip(each, layer.logits, layer.sizes, strict=True)
    )
    return _numbers(config, layers, k) * math.log1p(2 * swing / (eps - left)) / math.log(2)
