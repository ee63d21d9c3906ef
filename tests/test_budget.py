"""The budget against independent counts, and its calculator in a real browser."""

import dataclasses
import html
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import transformers

from prompt_memory import architectures, budget, compress

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "book" / "_static"
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
}  # fmt: skip


# --- reading configurations -----------------------------------------------------------------------------------------


def test_the_example_of_the_command_line():
    bounds = budget.budget(budget.read(GPT2), 20, "bf16").bounds
    assert bounds["counting"].bits == 245760
    assert bounds["counting"].tokens == pytest.approx(245760 / math.log2(50257), rel=1e-14)


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
        budget.read(GPT2 | change, "here")
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
            budget.load(tmp_path / source if source != "GPT-9" else source)
        assert len(str(caught.value).splitlines()) == 1


def test_load_finds_files_folders_and_published_names(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA))
    assert budget.load(tmp_path / "model") == budget.load(tmp_path / "model" / "config.json")
    assert budget.load(tmp_path / "model").name == "model"
    assert budget.load("pythia-160m") == budget.PUBLISHED["Pythia-160M"].architecture


def test_fields_of_families_that_are_easy_to_get_wrong():
    read = budget.read
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


# Shapes as public files have them, and what is right for them: width, numbers cached a position, causal, window.
BARE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 100}
SHAPES = {
    "the padded vocabulary is no width": (
        {
            "model_type": "hf_olmo",
            "architectures": ["OLMoForCausalLM"],
            "d_model": 64,
            "n_heads": 8,
            "n_layers": 4,
            "vocab_size": 90,
            "embedding_size": 100,
            "max_sequence_length": 50,
            "multi_query_attention": False,
            "block_type": "sequential",
            "attention_layer_norm": False,
        },
        64,
        512,
        True,
        None,
    ),
    "a factored embedding": ({"model_type": "electra", **BARE, "embedding_size": 16}, 16, 512, False, None),
    "null is nothing": ({"model_type": "llama", **BARE, "word_embed_proj_dim": None}, 64, 512, True, None),
    "heads of DBRX": (
        {
            "model_type": "dbrx",
            "d_model": 64,
            "n_heads": 8,
            "n_layers": 4,
            "vocab_size": 100,
            "max_seq_len": 99,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        },
        64,
        128,
        True,
        None,
    ),
    "groups of MPT": (
        {
            "model_type": "mpt",
            "d_model": 64,
            "n_heads": 8,
            "n_layers": 4,
            "vocab_size": 100,
            "attn_config": {"alibi": True, "attn_type": "grouped_query_attention", "kv_n_heads": 2},
        },
        64,
        128,
        True,
        None,
    ),
    "params.json of Llama": (
        {
            "dim": 64,
            "n_layers": 4,
            "n_heads": 8,
            "n_kv_heads": 2,
            "vocab_size": 100,
            "multiple_of": 8,
            "norm_eps": 1e-5,
            "rope_theta": 5e5,
        },
        64,
        128,
        True,
        None,
    ),
    "params.json of Mistral": (
        {
            "dim": 64,
            "n_layers": 4,
            "n_heads": 8,
            "n_kv_heads": 2,
            "head_dim": 8,
            "hidden_dim": 99,
            "vocab_size": 100,
            "sliding_window": 16,
        },
        64,
        128,
        True,
        16,
    ),
    "ChatGLM": (
        {
            "model_type": "chatglm",
            "hidden_size": 64,
            "num_layers": 4,
            "num_attention_heads": 8,
            "kv_channels": 8,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "padded_vocab_size": 100,
            "seq_length": 99,
        },
        64,
        128,
        True,
        None,
    ),
    "attention groups": (
        {
            "model_type": "step3p5",
            **BARE,
            "num_attention_groups": 2,
            "head_dim": 16,
            "rope_theta": 1e4,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
        64,
        256,
        True,
        None,
    ),
    "defaults of a class, head_dim": (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 96,
                "num_hidden_layers": 6,
                "sliding_window": 32,
            },
        },
        96,
        6 * 4 * 512,
        True,
        32,
    ),
    "shared caches": (
        {
            "model_type": "gemma3n",
            "text_config": {
                "model_type": "gemma3n_text",
                **BARE,
                "head_dim": 8,
                "num_key_value_heads": 2,
                "num_kv_shared_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 16,
                "intermediate_size": 64,
                "activation_sparsity_pattern": [0.0] * 4,
            },
        },
        64,
        64,
        True,
        16,
    ),
    "layers that read a picture": (
        {
            "model_type": "mllama",
            "text_config": {
                "model_type": "mllama_text_model",
                **BARE,
                "num_key_value_heads": 2,
                "cross_attention_layers": [1],
                "pad_token_id": 128004,
            },
        },
        64,
        3 * 32,
        True,
        None,
    ),
    "only attention in a hybrid": (
        {
            "model_type": "granitemoehybrid",
            **BARE,
            "num_key_value_heads": 2,
            "layer_types": ["attention"] * 4,
            "mamba_d_state": 256,
            "mamba_n_heads": 7,
        },
        64,
        128,
        True,
        None,
    ),
    "global layers with other heads": (
        {
            "model_type": "gemma4_text",
            **BARE,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 100,
            "sliding_window": 16,
        },
        64,
        192,
        True,
        16,
    ),
    "a window that is not used": (
        {"model_type": "qwen2", **BARE, "num_key_value_heads": 8, "sliding_window": 16, "use_sliding_window": False},
        64,
        512,
        True,
        None,
    ),
    "a window that is used": (
        {
            "model_type": "qwen2",
            **BARE,
            "num_key_value_heads": 8,
            "sliding_window": 16,
            "use_sliding_window": True,
            "max_window_layers": 2,
        },
        64,
        512,
        True,
        16,
    ),
    "no window": (
        {"model_type": "mistral", **BARE, "num_key_value_heads": 8, "sliding_window": None},
        64,
        512,
        True,
        None,
    ),
    "the window of a class": ({"model_type": "mistral", **BARE, "num_key_value_heads": 8}, 64, 512, True, 4096),
    "local layers": (
        {
            "model_type": "gpt_neo",
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 8,
            "vocab_size": 100,
            "window_size": 16,
            "attention_types": [[["global", "local"], 2]],
        },
        64,
        512,
        True,
        16,
    ),
    "all layers global": (
        {
            "model_type": "gpt_neo",
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 8,
            "vocab_size": 100,
            "attention_types": [[["global"], 4]],
        },
        64,
        512,
        True,
        None,
    ),
    "an encoder that says so": (
        {"model_type": "nomic_bert", "n_embd": 64, "n_head": 8, "n_layer": 4, "vocab_size": 100, "causal": False},
        64,
        512,
        False,
        None,
    ),
    "an encoder of the lists": ({"model_type": "eurobert", **BARE}, 64, 512, False, None),
    "a decoder made an encoder": (
        {
            "model_type": "gemma3_text",
            **BARE,
            "head_dim": 8,
            "num_key_value_heads": 8,
            "use_bidirectional_attention": True,
        },
        64,
        512,
        False,
        None,
    ),
    "an encoder by its class": (
        {"model_type": "new", **BARE, "architectures": ["NewForMaskedLM"]},
        64,
        512,
        False,
        None,
    ),
    "a decoder of a family of encoders": ({"model_type": "bert", **BARE, "is_decoder": True}, 64, 512, True, None),
}


@pytest.mark.parametrize("case", SHAPES)
def test_public_shapes(case):
    config, width, cached, causal, window = SHAPES[case]
    a = budget.read(config, "here")
    assert (a.width, a.cached, a.causal, a.window) == (width, cached, causal, window)
    found = budget.budget(a, 2, "fp16", logit_range=3.0).bounds
    assert found["counting"].bits == 16 * width * 2
    assert found["prefix"].bits == 16 * cached * 2
    if window is not None:
        seen = window if a.context is None else min(window, a.context)
        assert found["dilution"].value == pytest.approx(1 / (1 + (seen - 1) * math.exp(-3)))
        assert (found["moments"].value, found["moments"].needs) == (None, ())


UNKNOWN = {"model_type": "somebody's", **BARE}
REFUSED = {
    "rwkv": ({"model_type": "rwkv7", **BARE, "head_dim": 8}, "softmax"),
    "gated linear attention": ({"model_type": "gla", **BARE, "expand_k": 0.5}, "softmax"),
    "xlstm": ({"model_type": "xlstm", **BARE}, "softmax"),
    "mamba": ({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}, "softmax"),
    "convolutions": ({"model_type": "lfm2", **BARE, "full_attn_idxs": [1], "conv_L_cache": 3}, "softmax"),
    "layers of two kinds": ({"model_type": "qwen3_next", **BARE, "head_dim": 8}, "softmax"),
    "a tower for pictures": ({"model_type": "clip", "text_config": BARE, "vision_config": {}}, "not a language model"),
    "an encoder of questions": ({"model_type": "dpr", **BARE}, "not a language model"),
    "several attentions a layer": ({"model_type": "longcat_flash", **BARE}, "do not tell"),
    "a network for speech": ({"model_type": "wav2vec2", **BARE}, "not a language model"),
    "an encoder and a decoder": (
        {"model_type": "t5", "d_model": 64, "num_heads": 8, "num_layers": 4, "vocab_size": 100},
        "encoder with a decoder",
    ),
    "values of another size": (UNKNOWN | {"swa_num_key_value_heads": 2}, "swa_num_key_value_heads"),
    "blocks": (UNKNOWN | {"num_key_value_heads": None, "block_configs": [{"n": 1}]}, "block_configs"),
    "a cache for several layers": (UNKNOWN | {"cla_share_factor": 2}, "cla_share_factor"),
    "a convolution": (UNKNOWN | {"conv_kernel_size": 4}, "conv_kernel_size"),
    "compressed, but how": (UNKNOWN | {"kv_lora_rank": 8}, "kv_lora_rank"),
    "another width": (UNKNOWN | {"embedding_size": 32}, "embedding_size"),
    "no network": (UNKNOWN | {"num_hidden_layers": 10**8}, "more than any network has"),
    "sizes that differ": (UNKNOWN | {"num_layers": 3}, "differ"),
    "heads for each layer": (UNKNOWN | {"num_key_value_heads": [1, 2, 4, 8]}, "num_key_value_heads"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_covered_is_refused_in_one_sentence(case):
    config, words = REFUSED[case]
    with pytest.raises(ValueError, match=r"^here: ") as caught:
        budget.read(config, "here")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_taken_on_trust_is_said():
    assert "taken as causal" in budget.read(UNKNOWN).notes[0]
    assert budget.read(UNKNOWN | {"architectures": ["SomebodysForCausalLM"]}).notes == ()
    assert "LlamaModel" in budget.read({"model_type": "llama", **BARE, "architectures": ["LlamaModel"]}).notes[0]
    short = budget.read({"model_type": "gemma3_text", "hidden_size": 96, "num_hidden_layers": 1, "vocab_size": 99})
    assert "num_attention_heads = 8, num_key_value_heads = 4, head_dim = 256" in short.notes[0]
    assert "note: not in the file" in budget.table(budget.budget(short, 1))


def test_attention_of_another_kind_is_not_covered_by_its_theorems():
    odd = budget.read({"model_type": "diffllama", **BARE})
    bounds = budget.budget(odd, 1, logit_range=1.0).bounds
    assert [bounds[key].value for key in ("exact_compression", "moments", "dilution")] == [None] * 3
    sparse = budget.read(UNKNOWN | {"blocksparse_window": 8, "max_position_embeddings": 9})
    sparse = budget.budget(sparse, 1, logit_range=1.0)
    assert [sparse.bounds[key].value for key in ("exact_compression", "moments", "dilution")] == [None] * 3
    chunks = budget.read({"model_type": "llama4_text", **BARE, "head_dim": 8, "num_key_value_heads": 8,
                          "num_local_experts": 2, "attention_chunk_size": 16, "intermediate_size_mlp": 32})  # fmt: skip
    bounds = budget.budget(chunks, 1, logit_range=1.0).bounds
    assert (bounds["dilution"].value, bounds["moments"].value) == (None, None)
    assert bounds["exact_compression"].value == 4 * 64
    unsure = budget.budget(budget.read(UNKNOWN), 1).bounds["moments"]  # positions might change the logits
    assert (unsure.value, unsure.needs) == (None, ())


def test_compressed_keys_and_values():
    """The bits of the prompt are as always; what queries see of it passes through the numbers that are stored."""
    fields = {"kv_lora_rank": 4, "qk_rope_head_dim": 2, "qk_nope_head_dim": 6, "v_head_dim": 5, "q_lora_rank": None}
    for family in ("deepseek_v3", "somebody's"):
        shape = BARE | fields | {"num_key_value_heads": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
        a = budget.read({"model_type": family, **shape, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8})
        assert (a.cached, a.attended, a.key_dim, a.value_dim) == (4 * 6, 4 * 8 * 5, 8, 5)
        bounds = budget.budget(a, 3).bounds
        assert (bounds["counting"].bits, bounds["dimension"].value) == (16 * 64 * 3, 24 * 3)
        assert (bounds["prefix"].value, bounds["prefix"].needs, bounds["prefix_dimension"].value) == (None, (), None)


def test_without_transformers_fields_are_read(monkeypatch):
    from prompt_memory import architectures

    llama = LLAMA | {"head_dim": 64, "architectures": ["LlamaForCausalLM"], "rope_theta": 1e4}
    with_it = budget.read(llama)
    monkeypatch.setattr(architectures, "_transformers", lambda: None)
    assert budget.read(llama) == with_it
    assert budget.read({"model_type": "gemma2", **BARE}).key_dim == 256
    assert not budget.read({"model_type": "ernie", **BARE}).causal
    for case, (config, words) in REFUSED.items():
        if case not in ("mamba", "layers of two kinds", "a tower for pictures", "a network for speech",
                        "an encoder of questions", "several attentions a layer",
                        "an encoder and a decoder"):  # fmt: skip
            with pytest.raises(ValueError, match=r"^here: ") as caught:
                budget.read(config, "here")
            assert words in str(caught.value)


def test_published_architectures_are_what_their_files_would_say():
    fields = {"hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
              "head_dim": 256, "vocab_size": 262144, "max_position_embeddings": 32768,
              "sliding_window": 512}  # fmt: skip
    read, known = budget.read({"model_type": "gemma3_text", **fields}), budget.PUBLISHED["Gemma-3-270M"].architecture
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
    import torch

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = model if "experts_per_tok" in str(FAMILIES[family]) else model.double()
    config.save_pretrained(tmp_path)
    a = budget.load(tmp_path)
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
    assert set(FAMILIES) | {"bert"} >= architectures._LAYER_NORM


def test_a_head_that_reads_the_mean_is_noticed():
    import torch

    torch.manual_seed(0)
    sizes = SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16}
    config = transformers.OPTConfig(**sizes, _remove_final_layer_norm=True)
    model = transformers.OPTForCausalLM(config).eval().double()
    x = torch.randn(1, 3, 16, dtype=torch.float64)
    with torch.no_grad():
        change = (model(inputs_embeds=x).logits - model(inputs_embeds=x + 1).logits).abs().max()
    assert change > 1e-3
    assert budget.read(config.to_dict()).norm == "none"


# --- numbers --------------------------------------------------------------------------------------------------------


def test_a_budget_worked_out_by_hand():
    a = budget.read(LLAMA)
    result = budget.budget(a, 3, "fp16", radius=2.0, eps=0.5, lipschitz=7.0, margin=0.4, logit_range=3.0, queries=5,
                           degree=2, length=9000)  # fmt: skip
    b, token = result.bounds, math.log2(128256)
    halves = 2 * (16 * 1024) + 1  # float16 in [-2, 2]: exponents 0 … 15 have 1024 numbers each, then 2 itself
    bits = {
        "counting": 16 * 2048 * 3,
        "counting_in_radius": 2048 * 3 * math.log2(halves),
        "resolution": 2048 * 3 * math.log2(9),
        "entropy": 2048 * 3 * math.log2(1 + 2 * 7 / 0.2),
        "prefix": 16 * 3 * 16 * 8 * 128,
        "hard": 3 * token,
    }
    for key, value in bits.items():
        assert b[key].bits == pytest.approx(value, rel=1e-12), key
        assert b[key].tokens == pytest.approx(value / token, rel=1e-12), key
    assert result.smallest == "entropy"  # those told apart at eps are other strings, and not all of them
    assert b["resolution"].bits < b["entropy"].bits
    B = bits["entropy"]
    assert b["dimension"].value == 3 * 2048
    assert b["prefix_dimension"].value == 3 * 16 * 8 * 128
    assert b["accessible_length"].value == pytest.approx((B + 1) / token, rel=1e-12)
    assert b["accessible_fraction"].value == 0.0  # 2^(B − 9000·17)
    a_max = b["recall"].value  # n·R_q(1 − a) = B
    rate = token + a_max * math.log2(a_max) + (1 - a_max) * math.log2((1 - a_max) / 128255)
    assert 9000 * rate == pytest.approx(B, rel=1e-9)
    assert b["exact_compression"].value == 5 * 16 * 32 * 64
    assert b["moments"].value == 8 * (66 * 65 // 2 * 65 - 1) + 1
    assert b["dilution"].value == pytest.approx(1 / (1 + 131071 * math.exp(-3)), rel=1e-12)


def test_caches_need_the_positions_that_are_announced():
    """One causal layer whose heads share keys: the count with all heads that read is enough, and not too small."""
    import numpy as np

    a = budget.read({**LLAMA, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4,
                     "num_key_value_heads": 2, "vocab_size": 10})  # fmt: skip
    random_numbers = np.random.default_rng(0)
    keys = random_numbers.normal(size=(2, 2, 8))
    A = np.stack([keys[h // 2].T @ random_numbers.normal(size=(2, 8)) for h in range(4)])
    V = np.repeat(random_numbers.normal(size=(2, 2, 8)), 2, axis=0)
    tokens, queries = random_numbers.normal(size=(100, 8)), random_numbers.normal(size=(2, 8))
    short = compress.caratheodory(tokens, queries, A, V, own=1.0)
    assert len(short.indices) == budget.budget(a, 1, queries=2).bounds["exact_compression"].value


def test_bad_numbers_are_one_sentence():
    a = budget.read(GPT2)
    for m, precision, given, words in (
        (0, "bf16", {}, "prompt_length must"), (2.0, "bf16", {}, "prompt_length must"),
        (1, "bf17", {}, "number format"),
        (1, "bf16", {"eps": 0.1}, "needs a radius"), (1, "bf16", {"radius": -1.0}, "radius must"),
        (1, "bf16", {"radius": math.nan}, "radius must"), (1, "bf16", {"radius": 1.0, "eps": math.inf}, "eps must"),
        (1, "bf16", {"margin": 1.0}, "together"), (1, "bf16", {"radius": 1.0, "lipschitz": 1.0}, "together"),
        (1, "bf16", {"queries": 0}, "queries must"), (1, "bf16", {"degree": -1}, "degree must"),
        (1, "bf16", {"length": 0}, "length must"), (1, "bf16", {"logit_range": -1.0}, "logit_range must"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as caught:
            budget.budget(a, m, precision, **given)
        assert len(str(caught.value).splitlines()) == 1


def test_reference_cases_reach_every_bound_and_every_format():
    found = [budget.evaluate(case) for case in budget.reference_cases()]
    for key in found[0]["bounds"]:
        values = [result["bounds"][key]["value"] for result in found]
        assert any(value is not None for value in values), key
    assert {case["precision"] for case in budget.reference_cases()} == set(budget.FORMATS)
    assert {result["smallest"] for result in found} == set(budget.SOFT)


# --- the calculator in a browser ------------------------------------------------------------------------------------


def standalone(folder: Path, calculator: str | None = None) -> str:
    """A page with nothing but the calculator, its script and its style."""
    for name in ("budget.js", "budget.css"):
        shutil.copy(STATIC / name, folder / name)
    head = '<meta charset="utf-8"><link rel="stylesheet" href="budget.css"><script src="budget.js"></script>'
    body = f'<body style="font-family: DejaVu Sans, sans-serif">{calculator or budget.calculator()}</body>'
    (folder / "page.html").write_text(f'<!doctype html><html data-theme="light"><head>{head}</head>{body}</html>')
    return (folder / "page.html").as_uri()


def check_page(page, uri: str) -> None:
    """The calculator at `uri` agrees with Python at its own table, at random settings, and in what it shows."""
    page.goto(uri)
    assert float(page.locator("#budget-calculator").get_attribute("data-worst")) <= 1e-9
    assert page.evaluate(COMPARE, [random_cases(200), 1e-9]) == []
    shown = {row.get_attribute("data-bound"): float(row.get_attribute("data-bits"))
             for row in page.locator("#budget-calculator tr[data-bound]").all()}  # fmt: skip
    start = budget.START
    published = budget.PUBLISHED[start["model"]]
    given = {name: start[name] for name in ("queries", "degree", "length")}
    wanted = budget.budget(published.architecture, start["prompt_length"], start["precision"], radius=published.radius,
                           **given).bounds  # fmt: skip
    assert set(shown) == {"counting", "counting_in_radius", "prefix", "hard"}  # nothing rests on what nobody knows
    for key, bits in shown.items():
        assert bits == pytest.approx(wanted[key].bits, rel=1e-9), key
    facts = {fact.get_attribute("data-bound"): float(fact.get_attribute("data-value"))
             for fact in page.locator("#budget-calculator li[data-bound]").all()}  # fmt: skip
    assert set(facts) == {"dimension", "accessible_length", "recall", "exact_compression", "moments"}
    for key, value in facts.items():
        assert value == pytest.approx(wanted[key].value, rel=1e-9), key


def test_a_number_that_is_none_switches_the_calculator_off(page, tmp_path):
    page.goto(standalone(tmp_path))
    worst = page.evaluate("""() => {
      const data = JSON.parse(document.getElementById("budget-data").textContent);
      const [first, second] = Object.values(data.reference[0].bounds.values).filter(numbers => numbers[0] !== null);
      first[0] = NaN;
      second[0] *= 1 + 1e-12;
      return window.promptMemoryBudget.worstDifference(data.reference, data.formats);
    }""")
    assert not worst <= 1e-9


COMPARE = """([cases, tolerance]) => {
  const formats = JSON.parse(document.getElementById("budget-data").textContent).formats;
  const wrong = [];
  for (const { input, wanted } of cases) {
    const found = window.promptMemoryBudget.bounds(input, formats);
    if (found.smallest !== wanted.smallest) wrong.push(["smallest", found.smallest, wanted.smallest]);
    if (found.vacuous.join() !== wanted.vacuous.join()) wrong.push(["vacuous", found.vacuous, wanted.vacuous]);
    for (const [key, numbers] of Object.entries(wanted.values)) numbers.forEach((y, i) => {
      const x = found.values[key][i];
      const same = y === null ? x === null : x !== null && Math.abs(x - y) <= tolerance * Math.abs(y);
      if (!same) wrong.push([key, i, x, y]);
    });
  }
  return wrong;
}"""


def random_cases(count: int) -> list[dict]:
    """Settings as a reader might choose them, with the results of the Python functions."""
    draw, cases = random.Random(5), []
    for _ in range(count):
        kv_heads, head = draw.choice((1, 2, 3, 8)), draw.choice((2, 17, 64, 256))
        case = {
            "name": "x", "family": "x", "width": draw.randint(2, 9000), "layers": draw.choice((1, 2, 40)),
            "heads": kv_heads * draw.choice((1, 4)), "kv_heads": kv_heads, "key_dim": head, "value_dim": head,
            "vocabulary": draw.choice((2, 3, 1000, 262144)), "context": draw.choice((None, 1, 100, 10**6)),
            "norm": draw.choice(("none", "rms", "layer")), "norm_eps": 1e-5, "causal": draw.random() < 0.8,
            "positions": draw.choice(("learned", "rotary", "alibi", "unknown")),
            "logit_cap": draw.choice((None, None, 30.0)),
            "attention": draw.choice(("full", "window", "chunked", "other")),
            "window": draw.choice((None, 1, 50, 10**7)), "written": draw.choice((None, None, 12345)),
            "cache": draw.choice((None, None, [[2, 64, 32], [1, 512, 512]])),
            "compressed": draw.choice((None, None, 576)),
            "prompt_length": draw.randint(1, 10**5),
            "precision": draw.choice(list(budget.FORMATS)), "queries": draw.randint(1, 50), "degree": draw.randrange(9),
            "length": draw.choice((None, 1, draw.randint(1, 10**6))),
        }  # fmt: skip
        if draw.random() < 0.8:
            case["radius"] = 10.0 ** draw.uniform(-3, 4)
            exponent = budget.FORMATS[case["precision"]].exponent
            if exponent and draw.random() < 0.7:  # near the smallest and the largest numbers of the format
                bias = 2 ** (exponent - 1) - 1
                power = draw.choice((-bias, -bias, bias)) + draw.randint(-2, 2)
                case["radius"] = 2.0 ** min(power, 1000) * draw.uniform(0.5, 1)
            if draw.random() < 0.8:
                case["eps"] = max(5e-324, case["radius"] * 10.0 ** draw.uniform(-9, 2))
            if draw.random() < 0.5 and case["radius"] < 1e200:
                case |= {"lipschitz": 10.0 ** draw.uniform(-3, 20), "margin": 10.0 ** draw.uniform(-3, 1)}
        if draw.random() < 0.5:
            case["logit_range"] = draw.uniform(0, 300)
        cases.append({"input": case, "wanted": budget._values(budget.evaluate(case))})
    return cases


def test_the_calculator_agrees_with_python(page, tmp_path):
    check_page(page, standalone(tmp_path))


def test_a_calculator_that_disagrees_shows_no_number(page, tmp_path):
    text = budget.calculator()
    before = '"counting": [12288, 12288, '
    assert before in text
    page.goto(standalone(tmp_path, text.replace(before, '"counting": [12288, 12288.0001, ', 1)))
    place = page.locator("#budget-calculator")
    assert float(place.get_attribute("data-worst")) == pytest.approx(8.1e-9, rel=0.01)
    assert "switched off" in place.inner_text()
    assert page.locator("#budget-calculator input, #budget-calculator table").count() == 0


def test_controls_by_keyboard_and_by_hand(page, tmp_path):
    page.goto(standalone(tmp_path))

    def bits(key: str) -> float:
        return float(page.locator(f'tr[data-bound="{key}"]').get_attribute("data-bits"))

    page.locator("#budget-prompt_length-slider").focus()
    page.keyboard.press("ArrowRight")
    m = int(page.locator("#budget-prompt_length").input_value())
    assert m == 21  # many positions of the slider round to one number, yet a step is a step
    assert bits("counting") == 16 * 768 * m
    page.keyboard.press("Home")
    assert bits("counting") == 16 * 768
    page.locator("#budget-precision").select_option("int4")
    assert bits("counting") == 4 * 768
    page.locator("#budget-model").select_option("Qwen2.5-0.5B")
    assert bits("prefix") == 4 * 24 * 2 * 128
    page.locator("#budget-width").fill("1000")
    assert bits("counting") == 4 * 1000
    assert page.locator("#budget-model").input_value() == "your own"
    assert "4,000 bits" in page.locator(".budget-summary").inner_text()
    page.locator("#budget-width").fill("0")  # out of range: marked, and the last number stays
    assert page.locator("#budget-width").get_attribute("aria-invalid") == "true"
    assert bits("counting") == 4 * 1000
    fields = page.locator("#budget-calculator :is(input, select)").all()
    assert all(field.get_attribute("aria-label") or page.locator(f'label[for="{field.get_attribute("id")}"]').count()
               for field in fields)  # fmt: skip


def test_a_model_of_ones_own_inherits_nothing(page, tmp_path):
    """Llama-3-8B is typed in, from a page that shows Pythia-160M."""
    page.goto(standalone(tmp_path))
    summary = page.locator(".budget-summary")
    assert summary.inner_text().startswith("If all vectors stay within r = 63.62: at most ")
    fields = {"width": 4096, "layers": 32, "kv_heads": 8, "key_dim": 128, "vocabulary": 128256, "context": 8192}
    for name, value in fields.items():
        page.locator(f"#budget-{name}").fill(str(value))
    facts = page.locator(".budget-facts")
    assert page.locator("#budget-model").input_value() == "your own"
    assert page.locator("#budget-heads").input_value() == ""
    assert page.locator('li[data-bound="exact_compression"]').count() == 0
    assert "give H, the heads with queries" in facts.inner_text()
    page.locator("#budget-heads").fill("30")
    assert "H must be a multiple" in facts.inner_text()
    page.locator("#budget-heads").fill("32")

    def value(key: str) -> float:
        return float(page.locator(f'[data-bound="{key}"]').get_attribute("data-value"))

    assert (value("dimension"), value("exact_compression")) == (81920, 131072)
    assert page.locator("#budget-value_dim").input_value() == "128"
    assert summary.inner_text().startswith("At most 1,310,720 bits in this soft prompt, or 77,243")
    for name in ("radius", "eps", "logit_range", "window"):
        assert not page.locator(f"#budget-{name}-known").is_checked()
    for key in ("counting_in_radius", "resolution", "accessible_slope", "dilution", "moments"):
        assert page.locator(f'[data-bound="{key}"]').count() == 0, key
    page.locator("#budget-norm").select_option("layer")
    assert value("dimension") == 81900
    page.locator("#budget-positions").select_option("rotary")
    assert value("moments") == 8 * (129 * 129 - 1) + 1
    page.locator("#budget-window").fill("512")  # typing says that it is known
    page.locator("#budget-logit_range-known").check()
    assert value("dilution") == pytest.approx(1 / (1 + 511 * math.exp(-10)))
    assert page.locator('[data-bound="moments"]').count() == 0
    page.locator("#budget-value_dim").fill("64")
    page.locator("#budget-key_dim").fill("256")
    assert (page.locator("#budget-value_dim").input_value(), value("exact_compression")) == ("64", 65536)
    page.locator("#budget-causal").select_option("false")
    assert page.locator('[data-bound="accessible_length"]').count() == 0
    page.locator("#budget-radius").fill("3")
    assert summary.inner_text().startswith("If all vectors stay within r = 3: at most ")
    page.locator("#budget-eps").fill("0.1")  # more is shown, and the headline stays: not all strings are told apart
    before = summary.inner_text()
    told_apart = float(page.locator('tr[data-bound="resolution"]').get_attribute("data-bits"))
    assert told_apart == pytest.approx(20 * 4096 * math.log2(61))
    assert summary.inner_text() == before
    page.locator("#budget-model").select_option("Gemma-3-270M")
    assert (page.locator("#budget-heads").input_value(), page.locator("#budget-window").input_value()) == ("4", "512")
    assert page.locator("#budget-window-known").is_checked()
    assert value("exact_compression") == 18 * 4 * 256


def test_leaving_a_published_model_by_any_field_forgets_its_radius(page, tmp_path):
    for change in ("heads", "value_dim", "kv_heads", "context", "window"):
        page.goto(standalone(tmp_path))
        page.locator(f"#budget-{change}").fill("48")
        assert page.locator("#budget-model").input_value() == "your own"
        assert not page.locator("#budget-radius-known").is_checked()
        assert page.locator(".budget-summary").inner_text().startswith("At most ")
        assert page.locator("#budget-norm").input_value() == "none"
    page.goto(standalone(tmp_path))
    page.locator("#budget-radius").fill("5")  # a question about the same model
    assert page.locator("#budget-model").input_value() == "Pythia-160M"
    page.locator("#budget-radius").fill("")
    assert page.locator(".budget-summary").inner_text().startswith("At most 245,760 bits")


@pytest.mark.parametrize(("width", "theme"), [(320, "dark"), (1280, "light")])
def test_nothing_overlaps_or_leaves_the_page(page, tmp_path, width, theme):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(standalone(tmp_path))
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    for prompt_length, precision in (("1", "fp64"), ("10000", "int1")):
        page.locator("#budget-prompt_length").fill(prompt_length)
        page.locator("#budget-precision").select_option(precision)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        boxes = page.evaluate(
            """() => [...document.querySelectorAll("#budget-calculator svg text")].map(e => {
              const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom, e.textContent]; })"""
        )
        frame = page.locator("#budget-calculator svg").bounding_box()
        for i, (left, top, right, bottom, text) in enumerate(boxes):
            assert left >= frame["x"] - 1, text
            assert right <= frame["x"] + frame["width"] + 1, text
            for other in boxes[:i]:
                apart = left >= other[2] or right <= other[0] or top >= other[3] - 2 or bottom <= other[1] + 2
                assert apart, f"{text!r} covers {other[4]!r}"


def test_the_data_survive_the_page():
    text = budget.calculator()
    inside = text.split('id="budget-data">')[1].split("</script>")[0]
    assert json.loads(inside)["start"] == budget.START
    assert "Infinity" not in inside
    assert "NaN" not in inside
    assert html.unescape(inside) == inside
