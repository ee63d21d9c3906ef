"""A small language model and strings, for tests of the searches for prompts."""

import math

import torch

from prompt_memory.network.transformer import Transformer, TransformerConfig


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


READER = TransformerConfig(
    d=16, q=4, heads=2, mlp=32, activation="relu", norm="layer", causal=True, positions="learned", context=9
)
SEARCH = {"steps": 30, "learning_rate": 0.5, "scale": 1.0, "margin": 1e-3}


def reader(dtype=torch.float64, config=READER, seed=0):
    return Transformer(config, generator=seeded(seed)).to(dtype)


def some_strings(count, n, q=4, seed=1):
    return torch.randint(q, (count, n), generator=seeded(seed))


def assert_same(one, two):
    assert all(torch.equal(part, other) for part, other in zip(one, two, strict=True))


def poisoned(model):
    model.embedding[0, 0] = math.nan
    return model
