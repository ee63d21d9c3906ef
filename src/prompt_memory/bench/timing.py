"""Times, rates and counts of operations."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence

import torch

from prompt_memory.network.transformer import TransformerConfig


def step_flops(config: TransformerConfig, R: int, T: int) -> int:
    """Floating-point operations of the matrix products in one step of R runs over sequences of T vectors.

    A step is the forward pass and the gradient with respect to the input; weights have no gradients.  A product with a
    weight matrix of N entries costs 2·N a vector forward and 2·N backward; the two products of attention, QKᵀ and AV,
    cost 2·T²·d_k and 2·T²·d_v a head forward and twice that backward, the whole T × T square counted although half of
    it is masked.  In total

        R · [4·T·(L·(H·d·(2·d_k + d_v) + H·d_v·d + 2·d·mlp) + d·q) + 6·L·H·T²·(d_k + d_v)].

    ValueError unless R, T ≥ 1.
    """
    if R < 1 or T < 1:
        raise ValueError(f"R and T must be at least 1, not {R} and {T}")
    c = config
    weights = c.depth * (c.heads * c.d * (2 * c.d_k + c.d_v) + c.heads * c.d_v * c.d + 2 * c.d * c.mlp) + c.d * c.q
    return R * (4 * T * weights + 6 * c.depth * c.heads * T**2 * (c.d_k + c.d_v))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, everything that it started on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def matmul_rates(device: torch.device, sizes: Sequence[int]) -> list[float]:
    """Operations per second of `torch.mm` on square float32 matrices, one timed product for each size after another."""
    rates = []
    for size in sizes:
        a = torch.ones(size, size, device=device)
        product = torch.empty_like(a)
        torch.mm(a, a, out=product)
        rates.append(2 * size**3 / seconds(lambda a=a, product=product: torch.mm(a, a, out=product), device))
    return rates


def peak_memory_gib() -> float:
    """The most memory that this process has held so far, in GiB (2³⁰ bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 2**30


def geometric_mean(ratios: Sequence[float | None]) -> float | None:
    """exp(mean ln ratio); None if there is none or one is missing."""
    if not ratios or None in ratios:
        return None
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
