"""A tiny recalling family, trained once for all tests, and what its members say."""

import functools

import torch
import torch.nn.functional as F

from prompt_memory import pretrain
from prompt_memory.tasks import facts

TINY = pretrain.RecallFamily(head_sizes=(3, 6), values=(2, 5), facts=(4,), copies=1, d_v=6, steps=150, batch=16, seed=1)


@functools.cache
def trained():
    """The trained family; who changes its weights takes a copy."""
    return pretrain.train(TINY).transformer


def facts_of(family, member, count, seed=0):
    """Random facts of one member: keys [count, h] and labels [count]."""
    h, q, *_ = family.members[member]
    normal, unit = facts.random_facts(torch.Generator().manual_seed(seed), count, family.width)
    return facts.keys_of(normal, h), (unit * q).long()


def outputs(family, member, keys, labels, asked):
    """Logits [n, q] by the book's transformer."""
    h = family.members[member].head
    tokens = torch.cat([F.pad(keys, (0, family.width - h)), F.one_hot(labels, family.q)], 1)
    return family.transformer(member)(tokens[None], F.pad(asked, (0, family.d - h)), own_token=False)[0]
