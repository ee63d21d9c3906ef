"""What is to be memorised: labels, real targets, and the finite sets of prompts that are searched completely."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.transformer import Prefix, Transformer, TransformerConfig


def random_queries(n: int, d: int, *, generator: torch.Generator, tokens: int = 1) -> Float[Tensor, "n T d"]:
    """n queries of `tokens` standard normal vectors each, [n, T, d]."""
    return torch.randn(n, tokens, d, generator=generator)


def random_labels(labelings: int, n: int, q: int, *, generator: torch.Generator) -> Int[Tensor, "S n"]:
    """Uniform labels in 0 … q − 1, independent of everything else, [S, n]."""
    return torch.randint(q, (labelings, n), generator=generator)


def all_labels(n: int, q: int) -> Int[Tensor, "S n"]:
    """All q^n labelings of n queries, [q^n, n].  ValueError beyond 2^20 of them."""
    if n * math.log2(q) > 20:
        raise ValueError(f"{q}^{n} labelings are too many to list")
    return digits(torch.arange(q**n), q, n)


def grid(bits_per_coordinate: int, radius: float = 1.0) -> Float[Tensor, " v"]:
    """The 2^b values a coordinate may take with b bits: evenly spaced from −radius to radius."""
    if bits_per_coordinate < 1:
        raise ValueError(f"a coordinate needs at least one bit, not {bits_per_coordinate}")
    return torch.linspace(-radius, radius, 2**bits_per_coordinate)


def grid_prompts(index: Int[Tensor, " N"], d: int, m: int, values: Float[Tensor, " v"]) -> Float[Tensor, "N m d"]:
    """The prompts numbered `index` (0 … v^{dm} − 1) among all prompts with coordinates in `values`, [N, m, d]."""
    return values[digits(index, len(values), m * d)].unflatten(-1, (m, d))


def hard_prompts(index: Int[Tensor, " N"], m: int, model: Transformer) -> Float[Tensor, "N m d"]:
    """The hard prompts with the numbers `index` (0 … q^m − 1): m rows of the model's embedding table, [N, m, d]."""
    return model.embedding[digits(index, model.config.q, m)]


def planted_targets(
    model: Transformer, queries: Tensor, *, m: int, tables: int, noise: float, generator: torch.Generator
) -> tuple[Float[Tensor, "S n q"], Float[Tensor, "S m d"]]:
    """Targets near the image of Φ, [S, n, q]: the outputs of random prompts [S, m, d] plus Gaussian noise.

    Such tables are reachable where Φ is a submersion; tables drawn without a prompt are not always, because the image
    of Φ is an open set and not the whole space.  Returns (targets, planted prompts).
    """
    dtype = model.embedding.dtype
    prompts = torch.randn(tables, m, model.config.d, generator=generator, dtype=dtype)
    outputs = model(prompts, queries)
    return outputs + noise * torch.randn(outputs.shape, generator=generator, dtype=dtype), prompts


def generic_instance(
    config: TransformerConfig,
    m: int,
    n: int,
    *,
    tuning: Literal["soft", "prefix"] = "soft",
    read: Literal["fixed", "moving"] = "moving",
    generator: torch.Generator,
) -> tuple[Transformer, Float[Tensor, "m d"] | Prefix, Float[Tensor, "n T d"]]:
    """A network, a prompt and n queries in general position, in float64: where the rank of DΦ is read off.

    Gains and biases are drawn too, and queries and keys are enlarged, so that attention is neither flat nor saturated.
    With `read="fixed"` each query has two tokens, of which the last is the same for all.
    """
    model = Transformer(config, generator=generator).double()
    for name, weight in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "gain":
            weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
        elif kind.endswith("bias"):
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
        elif kind in ("query", "key"):
            weight.mul_(1.6)
    if tuning == "soft":
        prompt = torch.randn(m, config.d, generator=generator, dtype=torch.float64)
    else:
        shape = (1, config.depth, config.heads, m)
        prompt = Prefix(
            torch.randn(*shape, config.d_k, generator=generator, dtype=torch.float64),
            torch.randn(*shape, config.d_v, generator=generator, dtype=torch.float64),
        )
    queries = 1.5 * torch.randn(n, 1 + (read == "fixed"), config.d, generator=generator, dtype=torch.float64)
    if read == "fixed":
        queries[:, -1] = queries[0, -1].clone()
    return model, prompt, queries


def digits(index: Int[Tensor, " N"], base: int, length: int) -> Int[Tensor, "N length"]:
    """The last `length` digits of each number, most significant first; numbers are below 2^63, lengths are not."""
    found = []
    for _ in range(length):
        found.append(index % base)
        index = index // base
    return torch.stack(found[::-1], -1)
