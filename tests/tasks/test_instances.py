"""Planted targets belong to their prompts, and nothing of a generic instance has a default value."""

import pytest
import torch

from prompt_memory import tasks
from prompt_memory.network.transformer import Prefix, Transformer, TransformerConfig

torch.set_num_threads(1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.5])
def test_planted_targets_are_the_noise_away_from_their_prompts(noise):
    model = Transformer(TransformerConfig(d=4, q=3, mlp=6)).double()
    queries = tasks.random_queries(20, 4, generator=seeded()).double()
    targets, prompts = tasks.planted_targets(model, queries, m=2, tables=50, noise=noise, generator=seeded(1))
    assert targets.shape == (50, 20, 3)
    assert targets.dtype == prompts.dtype == torch.float64
    difference = targets - model(prompts, queries)
    if noise == 0:
        assert (difference == 0).all()
    else:  # 3000 draws: the standard deviation is known to about 1.3 %
        assert difference.std().item() == pytest.approx(noise, rel=0.07)
        assert abs(difference.mean().item()) < 0.1 * noise
    assert prompts.std().item() == pytest.approx(1, rel=0.2)
    again, _ = tasks.planted_targets(model, queries, m=2, tables=50, noise=noise, generator=seeded(1))
    assert torch.equal(again, targets)
    other, _ = tasks.planted_targets(model, queries, m=2, tables=50, noise=noise, generator=seeded(2))
    assert not torch.allclose(other, targets)


def test_generic_instances_leave_nothing_at_its_default():
    config = TransformerConfig(d=4, q=5, depth=2, heads=2, d_v=3, mlp=6, norm="rms")
    for tuning in ("soft", "prefix"):
        for read, T in (("fixed", 2), ("moving", 1)):
            arguments = {"tuning": tuning, "read": read}
            model, prompt, queries = tasks.generic_instance(config, 3, 7, generator=seeded(), **arguments)
            for name, weight in model.named_parameters():
                assert weight.dtype == torch.float64
                assert len(torch.unique(weight)) == weight.numel(), name  # no row of zeros or ones
            assert queries.shape == (7, T, 4)
            assert len(torch.unique(queries[:, -1], dim=0)) == (1 if read == "fixed" else 7)
            assert len(torch.unique(queries[:, 0], dim=0)) == 7
            shapes = [part.shape for part in prompt] if isinstance(prompt, Prefix) else prompt.shape
            assert shapes == ([(1, 2, 2, 3, 2), (1, 2, 2, 3, 3)] if tuning == "prefix" else (3, 4))
            again = tasks.generic_instance(config, 3, 7, generator=seeded(), **arguments)
            assert torch.equal(again[2], queries)
