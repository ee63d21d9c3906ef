"""Margins of labels, and what greedy decoding yields."""

import itertools
import math

import pytest
import torch
from networks import network, normal

from prompt_memory import measure
from prompt_memory.network.transformer import TransformerConfig

torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("q", [2, 5])
def test_margins_are_the_distance_to_the_best_other_logit(shape, q):
    logits = normal(*shape, q).round(decimals=1)
    labels = torch.randint(q, shape, generator=torch.Generator().manual_seed(1))
    untouched = logits.clone()
    found = measure.logit_margins(logits, labels)
    assert found.shape == shape
    for place in itertools.product(*map(range, shape)):
        row, label = logits[place].tolist(), int(labels[place])
        assert found[place].item() == row[label] - max(row[:label] + row[label + 1 :])
    assert torch.equal(logits, untouched)


def test_a_tie_has_no_margin_and_a_single_class_any():
    logits = torch.tensor([[2.0, 2.0, 1.0]]).repeat(3, 1)
    assert measure.logit_margins(logits, torch.tensor([0, 1, 2])).tolist() == [0, 0, -1]
    assert measure.logit_margins(torch.zeros(2, 1), torch.tensor([0, 0])).tolist() == [math.inf] * 2


READERS = [
    TransformerConfig(d=4, q=5, depth=2, heads=2, mlp=8, norm="layer", causal=True, positions=positions, context=9)
    for positions in ("learned", "rotary")
]


@pytest.mark.parametrize("config", READERS, ids=lambda c: c.positions)
def test_greedy_decoding_feeds_each_token_back(config):
    model, prompts, n = network(config), normal(30, 3, 4), 7
    found = measure.greedy(model, prompts, n)
    assert (found.shape, found.dtype) == ((30, n), torch.long)
    for prompt, tokens in zip(prompts, found.tolist(), strict=True):
        query, said = prompt[-1:], []
        for _ in range(n):
            logits = model(prompt[None, :-1], query[None])[0, 0].tolist()
            said.append(max(range(5), key=logits.__getitem__))
            query = torch.cat([query, model.embedding[said[-1]][None]])
        assert tokens == said
    assert len(torch.unique(found, dim=0)) > 10
    assert torch.equal(measure.greedy(model, prompts, 3), found[:, :3])
    assert measure.greedy(model, prompts, 0).shape == (30, 0)
    assert measure.greedy(model, prompts[:0], 4).shape == (0, 4)
    assert not measure.greedy(model, prompts.requires_grad_(), 2).requires_grad


def test_greedy_decoding_prefers_the_first_of_tied_tokens():
    model = network(READERS[0])
    found = measure.greedy(model, normal(20, 2, 4), 5)
    model.unembedding[:, 1:] = model.unembedding[:, :1]
    assert not (found == 0).all()
    assert (measure.greedy(model, normal(20, 2, 4), 5) == 0).all()


@pytest.mark.parametrize("config", READERS, ids=lambda c: c.positions)
def test_greedy_decoding_yields_a_string_if_and_only_if_every_token_is_right_under_teacher_forcing(config):
    model, prompts, n = network(config), normal(60, 2, 4), 6
    strings = measure.greedy(model, prompts, n)
    place = torch.arange(60) % (n + 1)  # one token is replaced, or none
    wrong = (place < n).nonzero()[:, 0]
    strings[wrong, place[wrong]] = (strings[wrong, place[wrong]] + 1 + wrong % 4) % 5
    logits = model.stream(torch.cat([prompts, model.embedding[strings[:, :-1]]], 1))[:, 1:]
    right = measure.logit_margins(logits, strings) > 0
    yields = measure.greedy(model, prompts, n) == strings
    assert torch.equal(right.all(1), yields.all(1))
    assert torch.equal(right.all(1), place == n)
    # up to the first wrong token both agree; afterwards teacher forcing goes on with the string, decoding without it
    assert torch.equal(right.long().cumprod(1).sum(1), place)
    assert torch.equal(yields.long().cumprod(1).sum(1), place)
