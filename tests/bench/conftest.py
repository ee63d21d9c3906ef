"""A model that the tests of the benchmark share."""

import pytest
import torch
from benched import NAME

from prompt_memory import pretrain

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def frozen():
    """A language model as it is before training: nothing here depends on what it has learned."""
    return pretrain.FrozenModel(pretrain.RECIPES[NAME]).requires_grad_(False)
