"""Recalling families: trained all members at once, kept and refused."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from recalling import TINY, trained

from prompt_memory import pretrain
from prompt_memory.measure import fact_recall
from prompt_memory.network import recall

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return trained()


def test_training_teaches_every_member_and_repeats_itself(family):
    generator = torch.Generator().manual_seed(5)
    before = recall.Recaller(TINY)
    found = fact_recall.measure_recall(family, 4, 50, 4, (0.0,), generator=generator).recall.mean((1, 2))
    untrained = fact_recall.measure_recall(before, 4, 50, 4, (0.0,), generator=generator).recall.mean((1, 2))
    assert (found > untrained + 0.2).all()
    again = pretrain.train(TINY).transformer
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), family.state_dict().values(), strict=True)
    )
    assert not torch.equal(pretrain.train(replace(TINY, seed=2, steps=1)).transformer.key, again.key)


def test_a_family_is_saved_and_comes_back(family, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "RECIPES", {"tiny": TINY, "other": replace(TINY, steps=2)})
    model = pretrain.FrozenModel(TINY)
    model.transformer.load_state_dict(family.state_dict())
    pretrain.save(model, tmp_path / "tiny.safetensors")
    loaded = pretrain.load("tiny", tmp_path)
    assert torch.equal(loaded.transformer.query, family.query)
    (tmp_path / "tiny.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="another recipe"):
        pretrain.load("other", tmp_path)
    assert len(asdict(TINY)["head_sizes"]) == 2
    family = recall.Recaller(TINY)
    family.key[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="the weight key"):
        family.require_finite()
