"""Facts to be recalled from a context: random keys, each with one of q values."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def random_facts(generator: torch.Generator, count: int, width: int, *batch: int):
    """Keys [*batch, count, width], standard normal (see `keys_of`), and numbers in [0, 1) that choose the values."""
    return torch.randn(*batch, count, width, generator=generator), torch.rand(*batch, count, generator=generator)


def keys_of(normal: Float[Tensor, "*B N w"], head: int) -> Float[Tensor, "*B N h"]:
    """Unit vectors, uniform on the sphere in `head` dimensions."""
    return F.normalize(normal[..., :head], dim=-1)
