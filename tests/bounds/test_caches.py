"""Theorem 6b against whole networks: what queries read of caches, layer by layer, and prompts that attain the bound."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from prompt_memory import bounds, compress
from prompt_memory.bounds.caches import CacheLayer
from prompt_memory.network.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(
    d=4, q=3, depth=3, heads=2, d_k=2, d_v=2, mlp=6, norm="rms", norm_eps=1.0, causal=True, positions="rotary",
    inverse_temperature=0.1,
)  # fmt: skip
CONFIGS = [
    SMALL,
    replace(SMALL, positions="none", norm="layer", activation="relu"),
    replace(SMALL, norm="none", depth=2, inverse_temperature=0.3),
    replace(SMALL, depth=1, causal=False, positions="none", heads=1, mlp=0),
    replace(SMALL, depth=2, positions="learned", context=80),
]
BALL = {"radius": 1.0, "query_radius": 1.0}


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def network(config, seed=0):
    return Transformer(config, generator=torch.Generator().manual_seed(seed)).double()


def ball(m, d, seed):
    x = torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True).clamp(min=1)


def half_spread(logits):
    return (logits.max(-1) - logits.min(-1)) / 2


def attention(model, layer, x, cache, own):
    """What attention writes at queries x [n, d] that read row `layer` of a cache, as `read_cache` computes it."""
    c, block = model.config, model.blocks[layer]
    A, V = compress.cache_heads(c)
    size, part = c.heads * (2 * c.d_k + c.d_v), slice(layer * c.heads, (layer + 1) * c.heads)
    readers = np.zeros((len(x), cache.shape[1]))
    asked = torch.cat(model.heads(block, x[None, :, None], len(cache)), -1)[0, :, :, 0]
    readers[:, layer * size : (layer + 1) * size] = asked.flatten(1).numpy()
    mixed = compress.attend(cache, readers, A[part], V[part], own=own)
    return torch.from_numpy(mixed).flatten(1) @ block.output


def after(model, layer, x, cache, own):
    """Logits [n, q] of streams x [n, d] behind the attention of `layer`."""
    for number in range(layer, model.config.depth):
        if number > layer:
            x = x + attention(model, number, x, cache, own)
        x = model.blocks[number].token_wise(x)
    return (model.norm(x) @ model.unembedding).numpy()


@pytest.mark.parametrize("own", [1.0, 0.0])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_logits_sizes_and_gains_hold_in_networks(config, own):
    """Streams are pushed behind the attention of each layer: half the spread moves by the gain at most."""
    for seed in range(3):
        model = network(config, seed)
        layers = bounds.cache_layers(config, arrays(model), own_token=own > 0, **BALL)
        cache, x = compress.prompt_cache(model, ball(30, 4, seed)), ball(200, 4, seed + 10)
        x = x + model.position[30] if config.positions == "learned" else x
        readers = compress.read_cache(model, cache, ball(200, 4, seed + 10), position=30, own=own)[1]
        occurring = compress.cache_logits(config, cache, readers, own=own > 0)
        for number, layer in enumerate(layers):
            assert (occurring[number] <= np.array(layer.logits) * (1 + 1e-9)).all()
            wrote = attention(model, number, x, cache, own)
            assert wrote.norm(dim=1).max() <= sum(layer.sizes)
            x = x + wrote
            step = ball(200, 4, seed + 20) * torch.logspace(-4, 0, 200, dtype=torch.float64)[:, None]
            moved = half_spread(after(model, number, x + step, cache, own) - after(model, number, x, cache, own))
            assert (moved <= layer.gain * step.norm(dim=1).numpy() * (1 + 1e-9)).all()
            assert moved.max() > 0
            x = model.blocks[number].token_wise(x)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_no_query_sees_more_of_a_compression_than_the_bound(config, own):
    for seed in range(2):
        model = network(config, seed)
        layers = bounds.cache_layers(config, arrays(model), own_token=own, **BALL)
        cache, queries = compress.prompt_cache(model, ball(70, 4, seed)), ball(200, 4, seed + 5)
        whole, readers = compress.read_cache(model, cache, queries, position=70, own=float(own))
        for k in (0, 2):
            short = compress.compress_cache(model, cache, k)
            seen, others = compress.read_cache(model, short, queries, position=70, own=float(own))
            worst = half_spread(seen - whole).max()
            tight = [
                layer._replace(logits=list(B))
                for layer, B in zip(layers, compress.cache_logits(config, cache, np.concatenate([readers, others]),
                                                                  own=own), strict=True)
            ]  # fmt: skip
            assert worst <= bounds.cache_error(tight, k) <= bounds.cache_error(layers, k) * (1 + 1e-9)


def test_one_layer_is_theorem_6():
    config = replace(SMALL, depth=1, heads=1)
    (layer,) = layers = bounds.cache_layers(config, arrays(network(config)), **BALL)
    (B,), (size,) = layer.logits, layer.sizes
    for k in (0, 1, 4):
        assert bounds.cache_error(layers, k) == pytest.approx(layer.gain * bounds.moment_error(k, B, size))
    head = dict(d_k=2, d_v=2, heads=1, B=B, scale=size, lipschitz=layer.gain, eps=0.3)
    for k in (None, 3):
        assert bounds.cache_bits(config, layers, eps=0.3, k=k) == pytest.approx(bounds.moment_bits(k=k, **head))


def chain(depth, rise, B, k):
    """Layers of the chain that attains the constant: the first tells two caches apart, each other one multiplies."""
    first = CacheLayer([B], [1.0], (1 + rise) ** (depth - 1), [np.eye(1)], 1.0)
    return bounds.cache_error([first], k)


@pytest.mark.parametrize("k", [0, 1, 3, 6])
def test_the_error_is_attained_at_every_depth_in_the_limit(k):
    """o ↦ o + r tanh(a r o) behind ±ρ_k: by hand, without the network."""
    rise, B = 1.5, (0.05, 0.3, 2.0)[min(k, 2)]
    for depth in (1, 2, 4):
        ratios = []
        for size in (B, B / 3):
            c = bounds.softmax_alternation(k, size)[1]
            o = abs(c @ (-1.0) ** np.arange(k + 2))
            for _ in range(depth - 1):
                o += math.tanh(rise * o)
            ratios.append(2 * o / chain(depth, rise, size, k))
        assert max(ratios) <= 1 + 1e-9
        assert ratios[1] >= ratios[0] - 1e-9
        assert ratios[1] > 0.9


def test_the_bound_in_bits_is_the_best_degree_and_monotone():
    config = replace(SMALL, depth=2)
    layers = bounds.cache_layers(config, arrays(network(config)), **BALL)
    found = [bounds.cache_bits(config, layers, eps=eps) for eps in (0.03, 0.1, 2.0)]
    assert found == sorted(found, reverse=True)
    each = [bounds.cache_bits(config, layers, eps=0.1, k=k) for k in range(10)]
    assert found[1] == min(each) < math.inf
    assert each[0] == math.inf  # degree 0 leaves out more than ε
    errors = [bounds.cache_error(layers, k) for k in range(8)]
    assert errors == sorted(errors, reverse=True)
    deeper = bounds.cache_layers(SMALL, arrays(network(SMALL)), **BALL)
    assert [layer.gain for layer in deeper] == sorted((layer.gain for layer in deeper), reverse=True)


def test_bits_are_the_formula_by_hand():
    config = replace(SMALL, depth=2, heads=1, d_k=1, d_v=1, positions="none")
    layers = [CacheLayer([1.0], [2.0], 3.0, [2 * np.eye(1)], 1.0), CacheLayer([0.5], [1.0], 0.7, [np.eye(1)], 1.0)]
    rho = [bounds.softmax_remainder(3, B) for B in (1.0, 0.5)]
    tau = [math.tanh(math.atanh(r) / 2) for r in rho]
    room = 0.4 - 2 * (3 * 2 * tau[0] + 0.7 * tau[1])
    swing = sum(G * S * (1 + r) / (1 - r) * math.exp(2 * B)
                for G, S, r, B in zip((3, 0.7), (2, 1), rho, (1, 0.5), strict=True))  # fmt: skip
    wanted = 2 * (4 * 2 - 1) * math.log2(1 + 2 * swing / room)  # J = C(4, 3)·2 − 1
    assert bounds.cache_bits(config, layers, eps=0.4, k=3) == pytest.approx(wanted)


def test_positions_are_counted_as_in_theorem_6():
    for depth, k, d_k, d_v, heads in ((1, 0, 1, 1, 1), (3, 2, 2, 2, 2), (4, 5, 3, 1, 6)):
        J = heads * (math.comb(d_k + k, k) * (1 + d_v) - 1)
        assert bounds.cache_positions(depth, k, d_k, d_v, heads) == (J + 1, depth * J + 1)


def test_steep_networks_and_long_logits_have_no_finite_bound():
    steep = replace(SMALL, norm_eps=0.0)
    layers = bounds.cache_layers(steep, arrays(network(steep)), **BALL)
    assert bounds.cache_error(layers, 3) == math.inf
    assert bounds.cache_bits(steep, layers, eps=1.0) == math.inf
    assert bounds.cache_layers(steep, arrays(network(steep)), least_norm=1.0, **BALL)[0].gain < math.inf
    sharp = replace(SMALL, inverse_temperature=100.0)
    layers = bounds.cache_layers(sharp, arrays(network(sharp)), **BALL)
    assert bounds.cache_bits(sharp, layers, eps=1.0) == math.inf
    with pytest.raises(ValueError, match="up to 40"):
        bounds.cache_error(layers, 1)


def test_bad_arguments_are_refused():
    layers = bounds.cache_layers(SMALL, arrays(network(SMALL)), **BALL)
    for eps in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="eps"):
            bounds.cache_bits(SMALL, layers, eps=eps)
    with pytest.raises(ValueError, match="k"):
        bounds.cache_error(layers, -1)
    with pytest.raises(ValueError, match="missing"):
        bounds.cache_layers(SMALL, {}, **BALL)
    hidden = replace(SMALL, causal=False, positions="none")
    with pytest.raises(ValueError, match="does not cover several layers whose prompt sees the query"):
        bounds.cache_layers(hidden, arrays(network(hidden)), **BALL)
    assert len(bounds.cache_layers(hidden, arrays(network(hidden)), own_token=False, **BALL)) == 3


def test_gains_of_two_plain_layers_by_hand():
    config = TransformerConfig(d=4, q=3, depth=2, d_k=3, d_v=2, causal=True, inverse_temperature=0.4)
    w = arrays(network(config))
    first, second = bounds.cache_layers(config, w, **BALL)
    u = w["unembedding"].T
    assert second.gain == pytest.approx(max(np.linalg.norm(a - b) for a in u for b in u) / 2)

    def size(matrix):
        return np.linalg.norm(matrix, 2)

    reach = 1 + size(w["blocks.0.value"] @ w["blocks.0.output"])  # of what the second layer reads
    B = size(w["blocks.1.key"] @ w["blocks.1.query"].T) * 0.4 / math.sqrt(3) * reach**2
    steep = size(w["blocks.1.value"] @ w["blocks.1.output"]) * (B + math.sqrt(1 + B**2))  # Lemma 2a
    assert first.gain == pytest.approx(second.gain * (1 + steep))
