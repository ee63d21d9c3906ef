"""Prompts go to the files of peft and back."""

import json

import peft
import pytest
import torch
import transformers
from checkpoints import FAMILIES, MARKS, D, normal, own, refused, some_tokens
from safetensors.torch import load_file, save_file

from prompt_memory import tune
from prompt_memory.real import models
from prompt_memory.real.prompts import load_prompt, save_prompt

pytestmark = MARKS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_reads_our_prompts(folder, tmp_path, dtype):
    model, ids = models.load(folder, dtype), some_tokens(4, 5)
    prompt = tune.cram(model, some_tokens(1, 3), 4, steps=5, restarts=1, **models.search_settings(model)).prompts
    assert save_prompt(tmp_path / "prompt", prompt, str(folder)) == tmp_path / "prompt"
    theirs = peft.PeftModel.from_pretrained(own(folder, models.DTYPES[dtype]), tmp_path / "prompt").eval()
    assert torch.equal(theirs.prompt_encoder["default"].embedding.weight.float(), prompt[0])
    wanted = theirs(input_ids=ids).logits.float()
    found = model.stream(torch.cat([prompt.expand(4, -1, -1), model.embedding[ids]], 1))
    assert torch.equal(found, wanted)
    assert not torch.equal(found[:, 4:], model.stream(model.embedding[ids]))
    torch.testing.assert_close(
        model(prompt, ids)[0], wanted[:, -1], rtol=0, atol=1e-5 if dtype == "float32" else 0.3
    )  # forward writes its attention out
    assert torch.equal(load_prompt(tmp_path / "prompt", model), prompt[0])
    assert peft.PeftConfig.from_pretrained(tmp_path / "prompt").base_model_name_or_path == str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_we_read_the_prompts_of_peft(folder, tmp_path, dtype):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB")
    torch.manual_seed(0)
    theirs = peft.get_peft_model(own(folder, models.DTYPES[dtype]), config)
    theirs.base_model.loss_type = "ForCausalLM"
    ids = some_tokens(4, 5)
    start = theirs.prompt_encoder["default"].embedding.weight.detach().clone()
    adamw = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        theirs(input_ids=ids, labels=ids).loss.backward()
        adamw.step()
        adamw.zero_grad()
    theirs.save_pretrained(tmp_path)
    model = models.load(folder, dtype)
    prompt = load_prompt(tmp_path, model)
    assert (prompt - start).abs().mean() > 0.05
    with torch.no_grad():
        wanted = theirs.eval()(input_ids=ids).logits.float()
    assert torch.equal(model.stream(torch.cat([prompt.expand(4, -1, -1), model.embedding[ids]], 1)), wanted)
    # and the files are alike
    save_prompt(tmp_path / "ours", prompt, "x")
    files = [load_file(place / "adapter_model.safetensors") for place in (tmp_path, tmp_path / "ours")]
    assert files[0].keys() == files[1].keys()
    assert torch.equal(files[0]["prompt_embeddings"].float(), files[1]["prompt_embeddings"])
    settings = [json.loads((place / "adapter_config.json").read_text()) for place in (tmp_path, tmp_path / "ours")]
    assert settings[0].keys() == settings[1].keys()
    for name in ("peft_type", "task_type", "num_virtual_tokens", "token_dim", "num_transformer_submodules"):
        assert settings[0][name] == settings[1][name]


def test_a_double_prompt_is_saved_as_it_will_be_read(tmp_path):
    prompt = normal(3, D, dtype=torch.float64)
    save_prompt(tmp_path, prompt, "somewhere")
    found = load_prompt(tmp_path)
    assert found.dtype == torch.float32
    assert torch.equal(found, prompt.float())


def test_bad_adapters_get_one_sentence(folders, tmp_path):
    prompt = normal(2, D)
    refused(lambda: save_prompt(tmp_path, normal(3, 2, D), "x"), "^an adapter holds one prompt, .* not .3, 2, 16.")
    refused(lambda: save_prompt(tmp_path, prompt / 0, "x"), "NaN or infinite")
    refused(lambda: save_prompt(tmp_path, 1e300 * prompt.double(), "x"), "beyond float32$")
    refused(lambda: load_prompt(tmp_path / "none"), "holds no adapter: there is no adapter_config.json$")
    save_prompt(tmp_path, prompt, "x")
    wide = models.CausalLM(transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("llama", **(FAMILIES["llama"] | {"hidden_size": 8}))
    ))  # fmt: skip
    refused(lambda: load_prompt(tmp_path, wide), "has width 16, the model 8$")
    settings, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    good = json.loads(settings.read_text())
    for change, message in (
        ({"num_virtual_tokens": 3}, r"has the shape \[2, 16\], but its configuration tells of 3 vectors$"),
        ({"peft_type": "LORA"}, "an adapter of the kind LORA, not one prompt"),
        ({"num_transformer_submodules": 2}, "not one prompt"),
    ):
        settings.write_text(json.dumps(good | change))
        refused(lambda: load_prompt(tmp_path), message)
    settings.write_text("[]")
    refused(lambda: load_prompt(tmp_path), "is not the configuration of an adapter")
    settings.write_text(json.dumps(good))
    save_file({"lora": prompt}, weights)
    refused(lambda: load_prompt(tmp_path), "is damaged or holds no prompt")
    weights.unlink()
    refused(lambda: load_prompt(tmp_path), "there is no adapter_model.safetensors$")
    peft.get_peft_model(own(folders["llama"]), peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    refused(lambda: load_prompt(tmp_path), "of the kind LORA")
