"""Counts of operations are those of torch, and memory is seen."""

import pytest
import torch
from networks import gpt2_network
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prompt_memory.bench import timing
from prompt_memory.network.transformer import TransformerConfig


@pytest.mark.parametrize(
    ("changes", "R", "T"), [({}, 1, 1), ({}, 3, 15), ({"d_k": 3, "d_v": 5, "depth": 3, "q": 7}, 4, 9)]
)
def test_operations_are_those_that_torch_counts(changes, R, T):
    model = gpt2_network(**changes)
    x = torch.randn(R, T, 8).requires_grad_()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.grad(model.stream(x).sum(), x)
    assert counter.get_total_flops() == timing.step_flops(model.config, R, T)


def test_operations_of_a_network_counted_by_hand():
    tiny = TransformerConfig(d=2, q=3, depth=1, heads=1, d_k=1, d_v=1, mlp=4, causal=True)
    # weights: query, key, value and output 2 each, token-wise 8 + 8, unembedding 6; attention 2·(1 + 1) forward
    assert timing.step_flops(tiny, 1, 1) == 4 * (8 + 16 + 6) + 3 * 4
    assert timing.step_flops(tiny, 5, 3) == 5 * (3 * 4 * 30 + 9 * 12)
    with pytest.raises(ValueError, match="R and T must be at least 1, not 1 and 0"):
        timing.step_flops(tiny, 1, 0)


def test_a_missing_ratio_leaves_no_mean():
    assert timing.geometric_mean([2.0, 8.0]) == pytest.approx(4)
    assert timing.geometric_mean([2.0, None]) is timing.geometric_mean([]) is None


def test_peak_memory_sees_what_was_held():
    held = 0.4 * 2**30
    block = torch.ones(int(held // 4))
    assert held / 2**30 < timing.peak_memory_gib() < 64
    del block
