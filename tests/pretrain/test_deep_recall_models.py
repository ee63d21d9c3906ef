"""Networks of several depths that recall facts: trained, kept and refused like the other frozen models."""

from dataclasses import replace

import pytest
import torch

from prompt_memory import pretrain
from prompt_memory.network.transformer import TransformerConfig
from prompt_memory.tasks import facts

torch.set_num_threads(1)

LAYER = TransformerConfig(d=16, q=2, heads=2, mlp=8, norm="rms", causal=True)
TINY = pretrain.DeepRecall(
    (LAYER, replace(LAYER, depth=2, positions="rotary")), key_width=4, steps=150, batch=32, questions=4, least=2,
    most=4, learning_rate=1e-2, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return pretrain.train(TINY)


def recall(member, N=4, contexts=100):
    g, right = torch.Generator().manual_seed(0), []
    for _ in range(contexts):
        normal, unit = facts.random_facts(g, N, 4)
        keys, labels = facts.keys_of(normal, 4), (unit * 2).long()
        found = member.read(member.facts(keys, labels), member.questions(keys)).logits.argmax(-1)
        right.append((found == labels).double().mean())
    return float(torch.stack(right).mean())


def test_training_teaches_every_network_and_repeats_itself(model):
    untrained = pretrain.FrozenModel(TINY).transformer.members
    for before, after in zip(untrained, model.transformer.members, strict=True):
        assert recall(after) > recall(before) + 0.15
    again = pretrain.train(TINY)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in model.parameters())


def test_they_are_saved_with_their_recipe(model, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "RECIPES", {"tiny": TINY})
    pretrain.save(model, tmp_path / "tiny.safetensors")
    loaded = pretrain.load("tiny", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    deeper = replace(TINY, networks=(LAYER, replace(LAYER, depth=3)))
    for other in (replace(TINY, steps=151), deeper):
        monkeypatch.setitem(pretrain.RECIPES, "tiny", other)
        with pytest.raises(ValueError, match="another recipe"):
            pretrain.load("tiny", tmp_path)
