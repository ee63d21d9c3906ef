"""Small networks and random numbers."""

import math

import torch

from prompt_memory import tasks
from prompt_memory.network.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(d=3, q=4, depth=2, heads=2, d_k=2, d_v=1, mlp=5, norm="rms", causal=True)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(config=CONFIG):
    return Transformer(config).double()


def poisoned():
    model = network()
    model.unembedding[0, 0] = math.nan
    return model


def drawn(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def generic(seed=0, **architecture):
    """A network in general position, in float64, and the generator that drew it."""
    generator = torch.Generator().manual_seed(seed)
    return tasks.generic_instance(TransformerConfig(**architecture), 1, 1, generator=generator)[0], generator


def gpt2_config(**changes):
    settings = dict(d=8, q=11, depth=2, heads=2, mlp=12, activation="relu", norm="layer", causal=True)
    return TransformerConfig(**settings | dict(positions="learned", context=20) | changes)


def gpt2_network(seed=0, **changes):
    """A network in which every weight matters: gains that are not one, biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(gpt2_config(**changes), generator=generator)
    for weight in model.parameters():
        weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model
