"""Deep recallers: a reading is what the book's transformer answers, and shows what its heads look at."""

import pytest
import torch

from prompt_memory.network.deep_recall import DeepRecaller, DeepRecallers
from prompt_memory.network.transformer import TransformerConfig

torch.set_num_threads(1)


def network(depth, **change):
    options = {"d": 8, "q": 3, "depth": depth, "heads": 2, "mlp": 8, "norm": "rms", "causal": True} | change
    return DeepRecaller(TransformerConfig(**options), 4, generator=torch.Generator().manual_seed(depth)).double()


def context(member, N=12, n=5):
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(N, 4, generator=g).double()
    return member.facts(keys, torch.arange(N) % 3), member.questions(keys[:n])


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_reading_has_the_logits_of_the_transformer(depth, positions):
    member = network(depth, positions=positions)
    facts, questions = context(member)
    reading = member.read(facts, questions)
    assert torch.allclose(reading.logits, member.transformer(facts[None], questions)[0], atol=1e-12)
    assert reading.scores.shape == (depth, 5, 2, 12)
    assert reading.own.shape == (depth, 5, 2)
    stream = member.transformer.stream(torch.cat([facts, questions[:1]])[None])[0, -1]
    assert torch.allclose(reading.logits[0], stream, atol=1e-12)


def test_scores_are_the_softmax_logits_of_the_first_layer():
    member = network(1, positions="rotary")
    facts, questions = context(member)
    reading, block = member.read(facts, questions), member.transformer.blocks[0]
    query, key, _ = member.transformer.heads(block, torch.cat([facts, questions[:1]]), 0)  # [H, N + 1, ·]
    scores = (query[:, -1:] @ key.transpose(-1, -2))[:, 0] / 2
    assert torch.allclose(reading.scores[0, 0], scores[:, :-1], atol=1e-12)
    assert torch.allclose(reading.own[0, 0], scores[:, -1], atol=1e-12)


def test_averaged_layers_hear_nothing_of_a_single_question():
    member = network(2)
    facts, questions = context(member)
    for block in member.transformer.blocks:  # without token-wise networks, and with an output that is heads only
        block.down.zero_()
        block.down_bias.zero_()
    heads = member.read(facts, questions, averaged=frozenset({0, 1})).logits
    assert heads.std(0).max() > 1e-3  # the residual of the question is left
    same = member.read(facts, questions[:1].expand(5, -1), averaged=frozenset({1})).logits
    assert torch.allclose(same, member.read(facts, questions[:1]).logits.expand(5, -1), atol=1e-12)
    assert not torch.allclose(heads, member.read(facts, questions).logits, atol=1e-3)


@pytest.mark.parametrize("change", [{"causal": False}, {"positions": "learned"}, {"context_scaling": "log"}])
def test_other_networks_are_refused(change):
    with pytest.raises(ValueError, match="causal network with no or rotary positions"):
        network(1, **change)


def test_several_share_nothing_and_refuse_what_is_not_finite():
    config = network(1).config
    family = DeepRecallers((config, config), 4, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(family.members[0].fact, family.members[1].fact)
    assert not any(weight.requires_grad for weight in family.parameters())
    assert family.require_finite() is family
    family.members[1].question[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weight members\.1\.question"):
        family.require_finite()
