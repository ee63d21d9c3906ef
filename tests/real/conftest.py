"""Checkpoints that the tests of this folder share; they are written once."""

import pytest
import torch
import transformers
from checkpoints import FAMILIES, checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoints")
    made = {family: checkpoint(place / family, family) for family in FAMILIES}
    return made | {"bert": checkpoint(place / "bert", "bert", transformers.AutoModel)}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, folders):
    return folders[family]
