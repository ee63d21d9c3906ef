"""The task of all tunings: a table of keys, each with the labels that are to follow it."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prompt_memory.tasks import digits, random_labels


class Table(NamedTuple):
    """K entries: different keys of T tokens, and the labels that are to follow each key."""

    keys: Int[Tensor, "K T"]
    labels: Int[Tensor, "K n"]


def random_table(K: int, n: int, q: int, *, key_tokens: int = 3, generator: torch.Generator) -> Table:
    """K different keys of `key_tokens` tokens, drawn without replacement, and K·n uniform labels in 0 … q − 1.

    ValueError if there are fewer than K keys, or an argument is smaller than 1 (2 for q).
    """
    if min(K, n, key_tokens) < 1 or q < 2:
        raise ValueError(f"a table needs K, n, key_tokens >= 1 and q >= 2, not {K}, {n}, {key_tokens} and {q}")
    if q**key_tokens < K:
        raise ValueError(f"there are only {q**key_tokens} keys of {key_tokens} tokens, fewer than {K}")
    number = torch.randperm(q**key_tokens, generator=generator)[:K]
    return Table(digits(number, q, key_tokens).flip(1), random_labels(K, n, q, generator=generator))


def label_logits(adapted: nn.Module, table: Table) -> Float[Tensor, "K n q"]:
    """The logits that are read at each label, under teacher forcing: after the key and the labels before it."""
    sequence = torch.cat([table.keys, table.labels[:, :-1]], 1)  # [K, T + n − 1]
    return adapted(input_ids=sequence).logits[:, -table.labels.shape[1] :]  # before them: virtual tokens and the key


@torch.no_grad()
def recalled(adapted: nn.Module, table: Table, *, chunk: int = 2048) -> Bool[Tensor, "K n"]:
    """Which labels have the largest logit, under teacher forcing; a tie is recalled only by the first token."""
    parts = zip(table.keys.split(chunk), table.labels.split(chunk), strict=True)
    return torch.cat([label_logits(adapted, Table(*part)).argmax(-1) == part[1] for part in parts])
