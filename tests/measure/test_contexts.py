"""Contexts of any network: all of them enumerated, and one token exchanged, which Theorem 8 bounds."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from prompt_memory import bounds, measure, tasks
from prompt_memory.measure import contexts
from prompt_memory.network import averaging
from prompt_memory.network.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)


def test_all_contexts_are_what_the_network_says():
    model = Transformer(TransformerConfig(d=3, q=3, heads=1, d_k=2, inverse_temperature=2.0))
    queries = tasks.random_queries(5, 3, generator=torch.Generator().manual_seed(0))
    table, counts = contexts.all_contexts(model, queries, 5)
    assert len(counts) == sum(math.comb(m + 2, 2) for m in range(1, 6)) == len({tuple(row) for row in counts.tolist()})
    assert counts.sum(1).min() == 1
    assert counts.sum(1).max() == 5
    for row in (0, 7, -1):
        prompt = model.embedding[torch.from_numpy(np.repeat(range(3), counts[row]))][None]
        logits = model(prompt, queries, own_token=False)[0]
        np.testing.assert_allclose(table[row], (logits[:, 1] - logits[:, 0]) / 2, atol=1e-5)


def test_cells_cover_and_are_few():
    table = np.random.default_rng(0).uniform(size=(500, 1))
    assert 5 <= contexts.cells(table, 0.1) <= 11  # a unit interval needs five balls of radius 0.1
    assert contexts.cells(np.repeat(table[:3], 10, 0), 1e-9) == 3
    separated = np.array(list(itertools.product([0, 1], repeat=4)), dtype=float)
    assert contexts.cells(separated, 0.49) == 16
    assert contexts.cells(separated, 1.0) == 1


def weights_of(model):
    return {name: weight.double().numpy() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_exchange_effect_is_attained_by_uniform_attention(depth, causal):
    """Where attention is flat and values are the tokens, the first of n tokens moves the logits by just that much."""
    model = averaging.averaging_network(depth, causal=causal)
    query = torch.zeros(1, 1, 1, dtype=torch.float64)
    for n in (1, 2, 7, 40):
        prompt, token = torch.zeros(n, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        moved = contexts.exchanged(model, prompt, token, query, own_token=False)
        later = contexts.exchanged(model, prompt, token, query, place=n - 1, own_token=False)
        assert later == pytest.approx(moved) if n == 1 or depth == 1 or not causal else later < moved
        effect = bounds.exchange_effect(model.config, weights_of(model), n, radius=1.0, query_radius=0.0, change=1.0)
        assert moved == pytest.approx(effect, rel=1e-12)
        closed = [sum(math.log(n) ** i / math.factorial(i) for i in range(k)) / n for k in range(1, depth + 1)]
        paths = [math.comb(depth, k) for k in range(1, depth + 1)]  # every layer passes on and averages
        if causal:
            assert effect <= np.dot(paths, closed) * (1 + 1e-12)
        else:
            assert effect == pytest.approx((2**depth - 1) / n)


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("own_token", [False, True])
def test_exchange_effect_bounds_what_one_token_does(positions, causal, own_token):
    generator = torch.Generator().manual_seed(8)

    def ball(*shape):
        return measure.into_ball(torch.randn(*shape, generator=generator, dtype=torch.float64), 1.0)

    most = 0.0
    for depth, norm, mlp in itertools.product((1, 2, 3), ("none", "rms"), (0, 6)):
        config = TransformerConfig(
            d=4, q=3, depth=depth, heads=2, mlp=mlp, norm=norm, norm_eps=0.5, causal=causal, positions=positions,
            inverse_temperature=0.3,
        )  # fmt: skip
        model = Transformer(config, generator=generator).double()
        for n, place in ((2, 0), (9, 0), (9, 8), (9, 4)):
            prompt, token, query = ball(n, 4), ball(1, 4)[0], ball(6, 2, 4)
            moved = contexts.exchanged(model, prompt, token, query, place, own_token=own_token)
            effect = bounds.exchange_effect(
                config, weights_of(model), n, radius=1.0, query_radius=1.0, change=float((prompt[place] - token).norm())
            )
            most = max(most, moved / effect)
    assert 1e-3 < most <= 1


def test_exchange_effect_of_a_single_head_is_the_constant_of_lemma_7a():
    """One token at the top of the ball, all others at its bottom: e^{2B}(1 + 2B)/n in the limit of many."""
    model, n = Transformer(TransformerConfig(d=2, q=2)).double(), 20_000
    block = model.blocks[0]
    for weight in (block.query, block.key, block.value, block.output):
        weight.copy_(torch.eye(2))
    model.unembedding.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    prompt = torch.tensor([[-1.0, 0.0]], dtype=torch.float64).repeat(n, 1)
    prompt[0, 0] = 1
    query = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    moved = contexts.exchanged(model, prompt, torch.tensor([1 - 1e-4, 0.0]).double(), query, own_token=False)
    effect = bounds.exchange_effect(model.config, weights_of(model), n, radius=1.0, query_radius=1.0, change=1e-4)
    B = 1 / math.sqrt(2)
    assert effect == pytest.approx(1e-4 * math.exp(2 * B) * (1 + 2 * B) / n)
    assert 0.999 < moved / effect <= 1
    for wrong in (dict(n=0), dict(change=-1.0), dict(radius=math.nan)):
        with pytest.raises(ValueError, match="must be"):
            bounds.exchange_effect(model.config, weights_of(model), **(dict(n=5, radius=1.0, query_radius=1.0) | wrong))
    scaled = replace(model.config, context_scaling="log")
    with pytest.raises(ValueError, match="context"):
        bounds.exchange_effect(scaled, weights_of(model), 5, radius=1.0, query_radius=1.0)
