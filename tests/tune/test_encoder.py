"""Any encoder of facts: tuned tokens, scored as the transformer would, within the bounds that its reader sets."""

import pytest
import torch
from recalling import outputs, trained

from prompt_memory import tasks
from prompt_memory.network import recall
from prompt_memory.tasks import facts
from prompt_memory.tune import encoder

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return trained()


def test_tuned_contexts_recall_few_facts_and_are_scored_by_the_transformer(family):
    generator = torch.Generator().manual_seed(0)
    r = recall.reader(family, 0)
    x = facts.keys_of(torch.randn(6, 3, generator=generator), 3)
    labels = tasks.random_labels(4, 6, 2, generator=generator)
    margin = 0.2
    start = encoder.encode(r, x, labels, 6, margin, steps=0, generator=generator)
    for row, score in zip(labels, start, strict=True):  # untuned: the facts themselves
        lead = (2 * row - 1) * outputs(family, 0, x, row, x).diff(dim=1)[:, 0]
        assert abs((lead > margin).double().mean() - score) <= 1 / 6 + 1e-9
    tuned = encoder.encode(r, x, labels, 6, margin, steps=200, generator=generator)
    assert (tuned >= start - 1 / 6).all()
    assert tuned.mean() > start.mean()
    B, S = recall.swing(r)
    keys = torch.nn.functional.normalize(torch.randn(20000, 3, generator=generator).double(), dim=1)
    codes = torch.nn.functional.normalize(torch.randn(20000, 2, generator=generator).double(), dim=1)
    logits = (keys[:500] @ r.by_key) @ keys.T + (keys[:500] @ r.by_value) @ codes.T
    votes = keys @ r.key_votes + codes @ r.value_votes
    # keys and codes that are best together are rare among random ones
    assert 0.7 * B < logits.abs().max() <= B
    assert 0.8 * S < (votes[:, 1] - votes[:, 0]).abs().max() / 2 <= S
