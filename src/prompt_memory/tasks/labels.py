"""Queries, labels, and the finite sets of labelings and prompts that are searched completely."""

import itertools
import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory.network.transformer import Transformer


def random_queries(n: int, d: int, *, generator: torch.Generator, tokens: int = 1) -> Float[Tensor, "n T d"]:
    """n queries of `tokens` standard normal vectors each, [n, T, d]."""
    return torch.randn(n, tokens, d, generator=generator)


def random_labels(labelings: int, n: int, q: int, *, generator: torch.Generator) -> Int[Tensor, "S n"]:
    """Uniform labels in 0 … q − 1, independent of everything else, [S, n]."""
    return torch.randint(q, (labelings, n), generator=generator)


def signs(shape, rng: np.random.Generator) -> Float[np.ndarray, "..."]:
    """Uniform labels ±1."""
    return 1.0 - 2.0 * rng.integers(2, size=shape)


def all_labels(n: int, q: int) -> Int[Tensor, "S n"]:
    """All q^n labelings of n queries, [q^n, n].  ValueError beyond 2^20 of them."""
    if n * math.log2(q) > 20:
        raise ValueError(f"{q}^{n} labelings are too many to list")
    return digits(torch.arange(q**n), q, n)


def digits(index: Int[Tensor, " N"], base: int, length: int) -> Int[Tensor, "N length"]:
    """The last `length` digits of each number, most significant first; numbers are below 2^63, lengths are not."""
    found = []
    for _ in range(length):
        found.append(index % base)
        index = index // base
    return torch.stack(found[::-1], -1)


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


def multisets(places: int, m: int) -> Int[np.ndarray, "N places"]:
    """All ways to put m tokens on so many places, how many on each, [C(m + places − 1, m), places]."""
    bars = itertools.combinations(range(m + places - 1), places - 1)
    bars = np.fromiter(itertools.chain.from_iterable(bars), int).reshape(math.comb(m + places - 1, m), places - 1)
    ends = np.full((len(bars), 1), m + places - 1)
    return np.diff(np.hstack([0 * ends - 1, bars, ends])) - 1


def line_prompts(places: Float[np.ndarray, " g"], m: int) -> Float[Tensor, "N m 1"]:
    """All prompts of m tokens on these places of a line but for their order, float64; numbered as in `multisets`."""
    counts = multisets(len(places), m)
    index = np.repeat(np.tile(np.arange(len(places)), len(counts)), counts.ravel()).reshape(len(counts), m)
    return torch.from_numpy(np.asarray(places, dtype=float))[torch.from_numpy(index)][..., None]
