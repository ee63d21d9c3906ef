"""Theorem 6b, part 2: caches of few positions, against moments and logits of whole ones."""

import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds, compress, tasks
from prompt_memory.network.transformer import Transformer, TransformerConfig

DEEP = {"d": 4, "q": 5, "depth": 3, "heads": 2, "d_k": 2, "d_v": 2, "mlp": 6, "norm": "rms", "causal": True}


def instance(m=120, n=6, seed=0, **changes):
    """A network, its prompt's cache and queries of one token."""
    settings = DEEP | {"positions": "rotary", "inverse_temperature": 0.2} | changes
    generator = torch.Generator().manual_seed(seed)
    model, prompt, queries = tasks.generic_instance(TransformerConfig(**settings), m=m, n=n, generator=generator)
    return model, prompt, queries[:, 0]


def features(config, entries, degree):
    """u^α and u^α v_i of every head, one product at a time: [a, ...]."""
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    heads = entries.reshape(len(entries), -1, 2 * config.d_k + config.d_v)
    keys, values = heads[..., 2:4], heads[..., 4:]
    u = np.stack([keys[..., 0] ** i * keys[..., 1] ** j for i, j in powers], -1)  # [a, heads, powers]
    return np.concatenate([u.reshape(len(u), -1), (u[..., None] * values[..., None, :]).reshape(len(u), -1)], 1)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_positions_are_few_and_all_moments_are_kept(degree, same):
    model, prompt, _ = instance()
    cache = compress.prompt_cache(model, prompt)
    short = compress.compress_cache(model, cache, degree, same_positions=same)
    allowed = bounds.cache_positions(3, degree, 2, 2, 2)[same]
    size = cache.shape[1] // 3
    assert (len(short.positions), short.tokens) == (3, 120)
    for layer in range(3):
        where, weights, here = short.positions[layer], short.weights[layer], slice(layer * size, (layer + 1) * size)
        assert len(where) <= allowed
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1)
        assert (short.entries[layer] == cache[where, here]).all()
        kept = weights @ features(model.config, short.entries[layer], degree)
        assert kept == pytest.approx(features(model.config, cache[:, here], degree).mean(0), abs=1e-11)
    assert all((where == short.positions[0]).all() for where in short.positions) == same


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
def test_queries_that_saw_no_compression_read_the_logits_of_the_network(positions, own):
    model, prompt, queries = instance(m=200, positions=positions, context=201, norm_eps=1.0, inverse_temperature=0.05)
    wanted = model(prompt[None], queries, own_token=own)[0].numpy()
    cache, errors = compress.prompt_cache(model, prompt), []
    for degree in (0, 2, 5):
        short = compress.compress_cache(model, cache, degree)
        found, _ = compress.read_cache(model, short, queries, position=200, own=float(own))
        errors.append(np.abs(found - wanted).max())
    assert errors[0] > 30 * errors[1] > 900 * errors[2]
    assert errors[2] < 1e-6


def test_one_position_in_each_layer_that_stands_for_all_is_read_as_such():
    """A prompt of equal tokens without positions: each layer needs one position, whatever the degree."""
    model, prompt, queries = instance(m=40, positions="none")
    prompt = prompt[:1].expand(40, -1)
    short = compress.compress_cache(model, compress.prompt_cache(model, prompt), 1)
    assert [len(where) for where in short.positions] == [1, 1, 1]
    found, _ = compress.read_cache(model, short, queries, position=40)
    assert found == pytest.approx(model(prompt[None], queries)[0].numpy(), abs=1e-12)


@pytest.mark.parametrize("own", [True, False])
def test_the_logits_that_occur(own):
    model, prompt, queries = instance(m=7, n=3)
    cache = compress.prompt_cache(model, prompt)
    _, readers = compress.read_cache(model, cache, queries, position=7, own=float(own))
    found = compress.cache_logits(model.config, cache, readers, own=own)
    A, _ = compress.cache_heads(model.config)
    for head in range(6):
        longest = 0.0
        for reader in readers:
            seen = [z @ A[head] @ reader for z in (*cache, *([reader] if own else []))]
            longest = max(longest, (max(seen) - min(seen)) / 2)
        assert found.ravel()[head] == pytest.approx(longest)


def test_what_saves_nothing_or_does_not_fit_is_refused_in_one_sentence():
    model, prompt, queries = instance(m=49)
    cache = compress.prompt_cache(model, prompt)
    compress.compress_cache(model, cache, 1)
    with pytest.raises(ValueError, match="degree 1 asks for 49 positions, which saves none of 49"):
        compress.compress_cache(model, cache, 1, same_positions=True)
    with pytest.raises(ValueError, match="degree 4 asks for 89 positions"):
        compress.compress_cache(model, cache, 4)
    with pytest.raises(ValueError, match=r"the cache must be \[m, 36\]"):
        compress.compress_cache(model, cache[:, :12], 1)
    with pytest.raises(ValueError, match="finite"):
        compress.compress_cache(model, cache * math.nan, 1)
    short = compress.compress_cache(model, cache, 1)
    with pytest.raises(ValueError, match="has its own weights"):
        compress.read_cache(model, short, queries, position=49, weights=np.ones(17))
    with pytest.raises(ValueError, match="Theorem 6b does not cover several layers whose prompt sees the query"):
        compress.compress_cache(Transformer(TransformerConfig(d=4, depth=2)), cache, 1)
