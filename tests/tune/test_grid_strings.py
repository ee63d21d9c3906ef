"""The search for strings on a grid of prompts against enumeration."""

import pytest
import torch

from prompt_memory import measure, tasks, tune
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tasks import language


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        d=8, q=5, depth=2, heads=2, mlp=16, norm="layer", causal=True, positions="learned", context=16
    )
    return Transformer(config, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bits", [1, 2])
def test_search_on_a_grid_finds_what_enumeration_finds(model, bits):
    """All prompts of a small set are decoded; the search must reach the longest accessible beginning, never more."""
    k, m = 3, 2
    basis = 3 * torch.randn(k, 8, generator=torch.Generator().manual_seed(5))
    values = tasks.grid(bits)
    places = tasks.grid_prompts(torch.arange(len(values) ** (k * m)), k, m, values)
    everything = measure.greedy(model, places @ basis, 6)
    strings = language.random_strings(12, 6, 5, generator=torch.Generator().manual_seed(6))
    exact = torch.stack([(everything == t).long().cumprod(1).sum(1).max() for t in strings])
    fit = tune.longest_prefix_on_grid(
        model, strings, m, basis, values, chains=8, steps=80, generator=torch.Generator().manual_seed(7)
    )
    assert (fit.lengths <= exact).all()
    assert (fit.lengths == exact).float().mean() >= 0.9
    decoded = measure.greedy(model, fit.prompts, 6)
    assert ((decoded == strings).long().cumprod(1).sum(1) >= fit.lengths).all()
    coordinates = fit.prompts @ torch.linalg.pinv(basis)
    assert torch.isclose(coordinates[..., None], values, atol=1e-4).any(-1).all()


def test_search_on_a_grid_refuses_what_does_not_fit(model):
    strings = torch.zeros(1, 3, dtype=torch.long)
    arguments = dict(chains=1, steps=1, generator=torch.Generator())
    with pytest.raises(ValueError, match="a basis \\[k, 8\\] and at least two values"):
        tune.longest_prefix_on_grid(model, strings, 1, torch.zeros(2, 7), tasks.grid(1), **arguments)
    with pytest.raises(ValueError, match="m must be an integer >= 1, not 0"):
        tune.longest_prefix_on_grid(model, strings, 0, torch.zeros(2, 8), tasks.grid(1), **arguments)
    with pytest.raises(ValueError, match="string 0 has the token 5"):
        tune.longest_prefix_on_grid(model, strings + 5, 1, torch.zeros(2, 8), tasks.grid(1), **arguments)
