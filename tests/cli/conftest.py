"""Models that the tests of the command line share."""

import json

import pytest
import tokenizers
import torch
import transformers
from commands import CONFIG, TEXT


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny GPT-2 with random weights and a tokenizer of single letters, as `transformers` writes them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    settings = transformers.GPT2Config(
        vocab_size=27, n_positions=24, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    transformers.GPT2LMHeadModel(settings).save_pretrained(folder)
    letters = {chr(97 + i): i for i in range(26)} | {"?": 26}
    letters = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[], unk_token="?"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?").save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder
