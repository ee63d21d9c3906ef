"""The table of theorems and networks against what the functions compute and refuse."""

import itertools

import pytest
import torch

from prompt_memory import bounds, compress
from prompt_memory.bounds import coverage
from prompt_memory.network.transformer import Transformer, TransformerConfig

CONFIGS = [
    TransformerConfig(d=4, depth=depth, causal=causal, positions=positions, context_scaling=scaling, context=8)
    for depth, causal, positions, scaling in itertools.product(
        (1, 2), (False, True), ("none", "learned", "rotary"), ("none", "log")
    )
]
SIZES = {"radius": 1.0, "query_radius": 1.0}


def entry(name):
    return next(each for each in bounds.THEOREMS if each.theorem == name)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_functions_refuse_what_the_table_does_not_cover(config):
    model = Transformer(config)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    prompt = torch.zeros(2, 4)

    def wasserstein():
        return bounds.network_wasserstein(config, weights, **SIZES)

    asked = {
        ("Theorem 6b", True): lambda: bounds.cache_layers(config, weights, **SIZES),
        ("Theorem 6b", False): lambda: bounds.cache_layers(config, weights, own_token=False, **SIZES),
        ("Theorem 7, part 4" if config.causal else "Theorem 7, parts 1 to 3", True): wasserstein,
        ("Theorem 7, part 4", None): lambda: bounds.block_error(config, weights, 2, **SIZES),
        ("Theorem 8, part 5", True): lambda: bounds.exchange_effect(config, weights, 5, **SIZES),
        ("Proposition 5a", True): lambda: compress.prompt_cache(model, prompt),
    }
    for (name, own), ask in asked.items():
        refusal = entry(name).refusal(config, own_token=own is not False)
        if refusal is None:
            ask()
        else:
            with pytest.raises(ValueError, match=f"{name} does not cover {refusal}"):
                ask()


def test_each_condition_refuses_some_network_and_the_plainest_is_covered():
    plain = TransformerConfig(d=4, causal=True)
    refused = {each.theorem for each in bounds.THEOREMS if each.refusal(plain)}
    assert refused == {"Theorem 7, parts 1 to 3"}  # one layer, causal: its bidirectional twin is part 4's block version
    reasons = {each.refusal(config) for each in bounds.THEOREMS for config in CONFIGS}
    assert reasons == {
        None, "several layers", "a causal network", "a network that is not causal",
        "several layers whose prompt sees the query", "rotary positions", "logits that are scaled with the context",
    }  # fmt: skip
    assert len({each.theorem for each in bounds.THEOREMS}) == len(bounds.THEOREMS)
    assert {topic for each in bounds.THEOREMS for topic in each.topics} == set(coverage.TOPICS)
    with pytest.raises(KeyError):
        coverage.require("Theorem 99", plain)
