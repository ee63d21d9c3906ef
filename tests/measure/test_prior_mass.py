"""Splitting against direct counts and against a mass in closed form."""

import math

import pytest
import torch
from scipy import stats

from prompt_memory import measure
from prompt_memory.network.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(d=8, q=5, depth=2, heads=2, mlp=16, causal=True)
PARTICLES = measure.Particles(64, 6, 3.0)


def model():
    return Transformer(CONFIG, generator=torch.Generator().manual_seed(0))


def counted(prompts, n):
    """Every string that these prompts write, with the number of prompts."""
    strings, counts = measure.greedy(model(), prompts, n).unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True)
    return strings[order], counts[order]


def test_the_least_margin_is_positive_just_where_greedy_decoding_writes_the_string():
    prompts = 3 * torch.randn(500, 2, 8, generator=torch.Generator().manual_seed(1))
    strings, _ = counted(prompts, 3)
    for string in strings[:4]:
        writes = (measure.greedy(model(), prompts, 3) == string).all(1)
        assert torch.equal(measure.least_margin(model(), prompts, string) > 0, writes)


def test_prompts_that_write_strings_of_one_length_share_the_prior():
    """Σ_t Q(S_t) = 1, at most 2^B strings with Q(S_t) >= 2^{−B}, and the mean cost at least the entropy; by a list."""
    prompts = 3 * torch.randn(2048, 1, 8, generator=torch.Generator().manual_seed(1))
    for n in (1, 2, 4):
        mass = counted(prompts, n)[1].double() / 2048
        assert mass.sum() == pytest.approx(1)
        for B in range(11):
            assert (mass >= 2.0**-B).sum() <= 2**B


@pytest.mark.parametrize("place", [0, 6, 20])
def test_the_estimate_agrees_with_direct_counts(place):
    """Means of 12 estimates within four standard errors of the share among 2^17 prompts."""
    prompts = 3 * torch.randn(2**17, 1, 8, generator=torch.Generator().manual_seed(1))
    strings, counts = counted(prompts, 3)
    share = float(counts[place]) / 2**17
    generator = torch.Generator().manual_seed(place)
    plan = measure.pilot(model(), strings[place], PARTICLES, generator=generator)
    assert plan.arrived
    found = torch.tensor(
        [2.0 ** measure.split(model(), strings[place], plan, PARTICLES, generator=generator).log2 for _ in range(12)]
    )
    error = math.hypot(float(found.std()) / math.sqrt(12), math.sqrt(share / 2**17))
    assert abs(float(found.mean()) - share) <= 4 * error
    assert float(found.std()) < share  # and it is of use


class Tail(torch.nn.Module):
    """A "network" whose logits are (x₀ − cut, 0): the mass of the first class is a normal tail."""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut
        self.config = TransformerConfig(d=4, q=2, causal=True)
        self.embedding = torch.zeros(2, 4)

    def stream(self, x):
        return torch.stack([x[..., 0] - self.cut, torch.zeros_like(x[..., 0])], -1)


@pytest.mark.parametrize("bits", [3, 30, 60])
def test_a_normal_tail_is_found_far_out(bits):
    cut = float(stats.norm.isf(2.0**-bits))
    generator, string, particles = torch.Generator().manual_seed(0), torch.tensor([0]), measure.Particles(200, 8, 1.0)
    plan = measure.pilot(Tail(cut), string, particles, generator=generator)
    found = [measure.split(Tail(cut), string, plan, particles, generator=generator) for _ in range(8)]
    assert not any(each.stuck for each in found)
    mean = math.log2(sum(2.0 ** (each.log2 + bits) for each in found) / 8)
    assert abs(mean) < 1.0


def test_what_no_prompt_writes_has_no_mass_and_is_reported():
    class Never(Tail):
        def stream(self, x):
            return torch.stack([torch.full_like(x[..., 0], -1.0), torch.zeros_like(x[..., 0])], -1)

    generator, string = torch.Generator().manual_seed(0), torch.tensor([0])
    plan = measure.pilot(Never(0.0), string, PARTICLES, generator=generator)
    assert not plan.arrived
    found = measure.split(Never(0.0), string, plan, PARTICLES, generator=generator)
    assert found.log2 == -math.inf
    assert found.stuck
