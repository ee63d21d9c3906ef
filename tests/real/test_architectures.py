"""Architectures as configurations tell them, against networks of `transformers`."""

import dataclasses
import json
import math

import pytest
import torch
import transformers
from configurations import BARE, GPT2, LLAMA, REFUSED, SHAPES, UNKNOWN

from prompt_memory.real import architectures, budget
from prompt_memory.real.architectures import library
from prompt_memory.real.architectures.families import LAYER_NORM


@pytest.mark.parametrize(("change", "words"), [
    ({"n_embd": None}, "n_embd"), ({"n_embd": "768"}, "n_embd"), ({"n_embd": 768.0}, "n_embd"),
    ({"n_layer": 0}, "n_layer"), ({"n_head": True}, "n_head"), ({"vocab_size": -1}, "vocab_size"),
    ({"n_head": 7}, "not divisible by 7 heads"), ({"num_key_value_heads": 5}, "cannot share 5"),
    ({"vocab_size": 1}, "one token carries no information"), ({"layer_types": ["a\nb"]}, r"(a\nb)"),
    ({"layer_types": ["x" * 5000]}, "…)"), ({"global_kv_heads": 3}, "global_kv_heads"),
    ({"attn_config": 3}, "attn_config must be"), ({"attn_config": {"kv_dim": 3}}, "attn_config.kv_dim"),
    ({"is_encoder_decoder": True}, "encoder with a decoder"), ({"kv_lora_rank": 512}, "kv_lora_rank"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "(linear_attention)"),
    ({"layer_types": ["mamba"]}, "(mamba)"), ({"ssm_cfg": {}}, "ssm_cfg"), ({"layer_types": 5}, "layer_types must be"),
    ({"attn_logit_softcapping": "50"}, "attn_logit_softcapping"), ({"head_dim": 0}, "head_dim"),
])  # fmt: skip
def test_a_bad_configuration_is_one_sentence(change, words):
    with pytest.raises(ValueError, match=r"^here: ") as caught:
        architectures.read(GPT2 | change, "here")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert words in str(caught.value)


def test_what_load_cannot_read_is_one_sentence(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep.json").write_text('{"a": ' + 3000 * "[" + 3000 * "]" + "}")
    (tmp_path / "two\nlines.json").write_text(json.dumps(GPT2 | {"vocab_size": 1}))
    for source, words in (("deep.json", r"deep\.json.* nested too deeply"), (5000 * "x", "is no config.json"),
                          ("two\nlines.json", "lines: a vocabulary of one token"), ("a\0b", "is no config.json"),
                          ("broken.json", "cannot be read as JSON"), ("list.json", "a JSON object of fields, not list"),
                          ("bytes.json", "cannot be read as JSON"), ("empty", "is no config.json"),
                          ("missing", "is no config.json"), ("GPT-9", "is no config.json")):  # fmt: skip
        with pytest.raises(ValueError, match=words) as caught:
            architectures.load(tmp_path / source if source != "GPT-9" else source)
        assert len(str(caught.value).splitlines()) == 1


def test_load_finds_files_folders_and_published_names(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA))
    assert architectures.load(tmp_path / "model") == architectures.load(tmp_path / "model" / "config.json")
    assert architectures.load(tmp_path / "model").name == "model"
    assert architectures.load("pythia-160m") == architectures.PUBLISHED["Pythia-160M"].architecture


def test_fields_of_families_that_are_easy_to_get_wrong():
    read = architectures.read
    assert read(LLAMA).cached == 16 * 8 * 128
    assert read({"model_type": "gemma3", "text_config": LLAMA | {"head_dim": 256}}).key_dim == 256
    opt = {"model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512, "num_hidden_layers": 24,
           "num_attention_heads": 16, "vocab_size": 50272, "do_layer_norm_before": False}  # fmt: skip
    assert (read(opt).width, read(opt).key_dim, read(opt).norm) == (512, 64, "none")
    falcon = {"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
              "num_kv_heads": 71, "multi_query": True, "vocab_size": 65024}  # fmt: skip
    assert read(falcon).kv_heads == 1
    assert read(falcon | {"new_decoder_architecture": True}).kv_heads == 71
    assert budget.budget(read(LLAMA | {"attn_logit_softcapping": 50.0}), 1).given["logit_range"] == 100.0
    assert not read(GPT2 | {"model_type": "bert"}).causal


@pytest.mark.parametrize("case", SHAPES)
def test_public_shapes(case):
    config, width, cached, causal, window = SHAPES[case]
    a = architectures.read(config, "here")
    assert (a.width, a.cached, a.causal, a.window) == (width, cached, causal, window)
    found = budget.budget(a, 2, "fp16", logit_range=3.0).bounds
    assert found["counting"].bits == 16 * width * 2
    assert found["prefix"].bits == 16 * cached * 2
    if window is not None:
        seen = window if a.context is None else min(window, a.context)
        assert found["dilution"].value == pytest.approx(1 / (1 + (seen - 1) * math.exp(-3)))
        assert (found["moments"].value, found["moments"].needs) == (None, ())


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_covered_is_refused_in_one_sentence(case):
    config, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"^here: ") as caught:
        architectures.read(config, "here")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_taken_on_trust_is_said():
    assert "taken as causal" in architectures.read(UNKNOWN).notes[0]
    assert architectures.read(UNKNOWN | {"architectures": ["SomebodysForCausalLM"]}).notes == ()
    assert "LlamaModel" in architectures.read({"model_type": "llama", **BARE, "architectures": ["LlamaModel"]}).notes[0]
    short = architectures.read(
        {"model_type": "gemma3_text", "hidden_size": 96, "num_hidden_layers": 1, "vocab_size": 99}
    )
    assert "num_attention_heads = 8, num_key_value_heads = 4, head_dim = 256" in short.notes[0]
    assert "note: not in the file" in budget.table(budget.budget(short, 1))


def test_attention_of_another_kind_is_not_covered_by_its_theorems():
    odd = architectures.read({"model_type": "diffllama", **BARE})
    bounds = budget.budget(odd, 1, logit_range=1.0).bounds
    assert [bounds[key].value for key in ("exact_compression", "moments", "dilution")] == [None] * 3
    sparse = architectures.read(UNKNOWN | {"blocksparse_window": 8, "max_position_embeddings": 9})
    sparse = budget.budget(sparse, 1, logit_range=1.0)
    assert [sparse.bounds[key].value for key in ("exact_compression", "moments", "dilution")] == [None] * 3
    chunks = architectures.read({"model_type": "llama4_text", **BARE, "head_dim": 8, "num_key_value_heads": 8,
                          "num_local_experts": 2, "attention_chunk_size": 16, "intermediate_size_mlp": 32})  # fmt: skip
    bounds = budget.budget(chunks, 1, logit_range=1.0).bounds
    assert (bounds["dilution"].value, bounds["moments"].value) == (None, None)
    assert bounds["exact_compression"].value == 4 * 64
    unsure = budget.budget(architectures.read(UNKNOWN), 1).bounds["moments"]  # positions might change the logits
    assert (unsure.value, unsure.needs) == (None, ())


def test_compressed_keys_and_values():
    """The bits of the prompt are as always; what queries see of it passes through the numbers that are stored."""
    fields = {"kv_lora_rank": 4, "qk_rope_head_dim": 2, "qk_nope_head_dim": 6, "v_head_dim": 5, "q_lora_rank": None}
    for family in ("deepseek_v3", "somebody's"):
        shape = BARE | fields | {"num_key_value_heads": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
        a = architectures.read(
            {"model_type": family, **shape, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8}
        )
        assert (a.cached, a.attended, a.key_dim, a.value_dim) == (4 * 6, 4 * 8 * 5, 8, 5)
        bounds = budget.budget(a, 3).bounds
        assert (bounds["counting"].bits, bounds["dimension"].value) == (16 * 64 * 3, 24 * 3)
        assert (bounds["prefix"].value, bounds["prefix"].needs, bounds["prefix_dimension"].value) == (None, (), None)


def test_without_transformers_fields_are_read(monkeypatch):
    llama = LLAMA | {"head_dim": 64, "architectures": ["LlamaForCausalLM"], "rope_theta": 1e4}
    with_it = architectures.read(llama)
    monkeypatch.setattr(library, "transformers_package", lambda: None)
    assert architectures.read(llama) == with_it
    assert architectures.read({"model_type": "gemma2", **BARE}).key_dim == 256
    assert not architectures.read({"model_type": "ernie", **BARE}).causal
    for case, (config, words) in REFUSED.items():
        if case not in ("mamba", "layers of two kinds", "a tower for pictures", "a network for speech",
                        "an encoder of questions", "several attentions a layer",
                        "an encoder and a decoder"):  # fmt: skip
            with pytest.raises(ValueError, match=r"^here: ") as caught:
                architectures.read(config, "here")
            assert words in str(caught.value)


def test_published_architectures_are_what_their_files_would_say():
    fields = {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
              "head_dim": 256, "vocab_size": 262144, "max_position_embeddings": 32768,
              "sliding_window": 512}  # fmt: skip
    read, known = (
        architectures.read({"model_type": "gemma3_text", **fields}),
        architectures.PUBLISHED["Gemma-3-270M"].architecture,
    )
    assert read == dataclasses.replace(known, name="model")
    # one window of 512 tokens can give its attention to one of them: the whole context is not what counts
    found = budget.budget(known, 1, logit_range=10.0).bounds["dilution"]
    assert found.value == pytest.approx(1 / (1 + 511 * math.exp(-10)))


SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
MIXED = GROUPED | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
FAMILIES = {
    "gpt2": SMALL,
    "gpt_neo": SMALL
    | {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4, "window_size": 4},
    "gptj": SMALL | {"rotary_dim": 4},
    "gpt_neox": SMALL,
    "gpt_bigcode": SMALL,
    "codegen": SMALL | {"rotary_dim": 4},
    "opt": SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "bloom": SMALL | {"n_layer": 2, "n_head": 4},
    "phi": SMALL,
    "falcon": SMALL,
    "starcoder2": GROUPED,
    "stablelm": GROUPED | {"partial_rotary_factor": 0.5},
    "llama": GROUPED,
    "qwen2": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma3_text": MIXED,
    "mixtral": GROUPED | EXPERTS,
    "gpt_oss": MIXED | EXPERTS,
    "gemma4_text": MIXED
    | {
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 40,
    },
    "minicpm3": SMALL
    | {
        "num_key_value_heads": 4,
        "kv_lora_rank": 6,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 4,
        "q_lora_rank": 8,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_network_has_the_cache_the_window_and_the_blind_spot_of_its_configuration(family, tmp_path):
    """Counted in a network of `transformers`: numbers in the cache, tokens that are attended to, the mean's effect."""

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = model if "experts_per_tok" in str(FAMILIES[family]) else model.double()
    config.save_pretrained(tmp_path)
    a = architectures.load(tmp_path)
    x = torch.randn(1, 9, a.width, dtype=model.dtype)
    moved = x + torch.randn(1, 9, 1, dtype=model.dtype)
    with torch.no_grad():
        first, second = (model(inputs_embeds=part, use_cache=True, output_attentions=True) for part in (x, moved))
    written = sum(w.shape[1] * layer[2] for w, layer in zip(first.attentions, a.caches, strict=True))
    assert a.attended == written
    seen = min(int((w[0, 0, -1] > 0).sum()) for w in first.attentions)
    assert seen == (9 if a.window is None else min(9, a.window))
    with torch.no_grad():
        kept = model(inputs_embeds=x[:, :3], use_cache=True).past_key_values
    assert sum(layer.keys.numel() + layer.values.numel() for layer in kept.layers) == 3 * a.cached
    change = (first.logits - second.logits).abs().max()
    assert (change < 1e-5) == (a.norm == "layer"), f"moving the mean changes logits by {change:.1e}"
    assert model.get_input_embeddings().weight.shape == (a.vocabulary, a.width)
    assert a.context in (32, 2048, None)


def test_every_family_said_to_ignore_the_mean_is_tested():
    assert set(FAMILIES) | {"bert"} >= LAYER_NORM


def test_a_head_that_reads_the_mean_is_noticed():

    torch.manual_seed(0)
    sizes = SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16}
    config = transformers.OPTConfig(**sizes, _remove_final_layer_norm=True)
    model = transformers.OPTForCausalLM(config).eval().double()
    x = torch.randn(1, 3, 16, dtype=torch.float64)
    with torch.no_grad():
        change = (model(inputs_embeds=x).logits - model(inputs_embeds=x + 1).logits).abs().max()
    assert change > 1e-3
    assert architectures.read(config.to_dict()).norm == "none"
