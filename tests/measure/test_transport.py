"""Measures of tokens: the Wasserstein distance, and networks that read blocks, against independent computations."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from prompt_memory import measure
from prompt_memory.network.transformer import Transformer, TransformerConfig


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(**architecture):
    return Transformer(TransformerConfig(**{"q": 3, **architecture}), generator=generator()).double()


# --- exact Wasserstein distance ------------------------------------------------------------------------------------


def test_wasserstein_equals_matching_and_the_closed_form():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))
    many = np.repeat(x, 3, 0), np.repeat(y, 2, 0)  # twelve tokens each
    cost = np.linalg.norm(many[0][:, None] - many[1][None], axis=-1)
    matched = cost[optimize.linear_sum_assignment(cost)].mean()
    assert measure.wasserstein(x, y) == pytest.approx(matched, abs=1e-9)
    line = rng.normal(size=(5, 1)), rng.normal(size=(7, 1))
    lifted = [np.hstack([z, np.zeros_like(z)]) for z in line]  # the linear program against the closed form
    assert measure.wasserstein(*line) == pytest.approx(measure.wasserstein(*lifted), abs=1e-9)
    with pytest.raises(ValueError, match="sum 1"):
        measure.wasserstein(x, y, np.full(4, 0.3))
    with pytest.raises(ValueError, match="non-empty"):
        measure.wasserstein(x, y[:, :2])
    with pytest.raises(ValueError, match="finite"):
        measure.wasserstein(np.array([[math.nan]]), np.zeros((2, 1)))


# --- networks ------------------------------------------------------------------------------------------------------


def test_repeating_every_token_changes_nothing_without_own_token():
    model = network(d=2, depth=3)
    prompt, query = torch.randn(1, 5, 2, generator=generator()).double(), torch.ones(1, 2).double()
    repeated = prompt.repeat(1, 4, 1)[:, torch.randperm(20, generator=generator())]
    assert torch.allclose(model(prompt, query, own_token=False), model(repeated, query, own_token=False), atol=1e-12)


# --- causal networks -----------------------------------------------------------------------------------------------


def test_with_as_many_blocks_as_tokens_blocks_are_the_network():
    model = network(d=3, depth=3, causal=True, norm="rms", mlp=4, heads=3)
    prompts = torch.randn(4, 11, 3, generator=generator()).double()
    queries = torch.randn(1, 2, 3, generator=generator(1)).double()
    whole = model(prompts, queries)[:, 0]
    assert torch.allclose(measure.blockwise(model, prompts, queries.expand(4, 2, 3), 11), whole, atol=1e-12)
    assert not torch.allclose(measure.blockwise(model, prompts, queries.expand(4, 2, 3), 3), whole, atol=1e-6)


def test_the_block_network_does_not_see_the_order_inside_blocks():
    model = network(d=3, depth=3, causal=True)
    prompts, query = torch.randn(1, 10, 3, generator=generator()).double(), torch.ones(1, 1, 3).double()
    inside = [3, 2, 0, 1, 5, 6, 4, 9, 8, 7]  # blocks end at ⌈10b/3⌉ = 4, 7, 10
    across = [4, 1, 2, 3, 0, 5, 6, 7, 8, 9]
    before, same, other = (
        measure.blockwise(model, p, query, 3) for p in (prompts, prompts[:, inside], prompts[:, across])
    )
    assert torch.allclose(before, same, atol=1e-12)
    assert not torch.allclose(before, other, atol=1e-6)


def test_tokens_are_sorted_inside_their_blocks_only():
    prompts = torch.randn(3, 10, 2, generator=generator()).double()
    by_first = measure.sorted_in_blocks(prompts, 3, prompts[..., 0])  # blocks end at 4, 7, 10
    for row, other in zip(prompts, by_first, strict=True):
        for start, end in ((0, 4), (4, 7), (7, 10)):
            assert torch.equal(other[start:end], row[start:end][row[start:end, 0].argsort()])
    assert torch.equal(measure.sorted_in_blocks(prompts, 10, -prompts[..., 0]), prompts)
