"""A pasted config.json: the page reads it as Python does, or refuses it in one sentence that names a field."""

import functools
import json
import random

import pytest
import transformers
from calculator import standalone
from configurations import BARE, GPT2, LLAMA, REFUSED, SHAPES

from prompt_memory.real import architectures, budget
from prompt_memory.real.budget.pasted import PLAIN, rules

SIZES = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 300}
READ = """([texts, rules]) => texts.map(text => {
  try { return window.promptMemoryBudget.readFields(text, rules); } catch (error) { return error.message; }
})"""
# As the families write them; some with fields that say nothing here.
PUBLIC = {
    "gpt2": GPT2 | {"architectures": ["GPT2LMHeadModel"], "n_ctx": 1024, "attn_pdrop": 0.1, "summary_type": "last"},
    "llama": LLAMA | {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "rope_scaling": None,
                      "attention_bias": False, "pretraining_tp": 1, "head_dim": 64},
    "mistral": {"model_type": "mistral", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
                "num_key_value_heads": 2, "vocab_size": 32000, "sliding_window": 64, "max_position_embeddings": 32768},
    "mistral without a window": {"model_type": "mistral", "hidden_size": 512, "num_attention_heads": 8,
                                 "num_hidden_layers": 4, "sliding_window": None, "head_dim": 128, "dtype": "float16"},
    "qwen2": {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
              "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "max_window_layers": 24,
              "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen2 with a window": {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 4, "sliding_window": 20,
                            "num_attention_heads": 4, "num_key_value_heads": 2, "max_window_layers": 2,
                            "use_sliding_window": True},
    "qwen3": {"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 16,
              "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "use_sliding_window": False},
    "gemma": {"model_type": "gemma", "hidden_size": 2048, "num_hidden_layers": 3, "num_attention_heads": 8,
              "num_key_value_heads": 1, "vocab_size": 256000},
    "gemma2": {"model_type": "gemma2", "hidden_size": 2304, "num_hidden_layers": 3, "sliding_window": 4096,
               "attn_logit_softcapping": 30.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256},
    "gemma3": {"model_type": "gemma3_text", "hidden_size": 1152, "num_hidden_layers": 7, "num_attention_heads": 4,
               "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 32768, "sliding_window": 512,
               "sliding_window_pattern": 6, "cache_implementation": "hybrid", "rope_local_base_freq": 10000,
               "attn_logit_softcapping": None, "torch_dtype": "bfloat16", "vocab_size": 262144},
    "gpt_neox": {"model_type": "gpt_neox", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                 "vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25, "torch_dtype": "float16"},
    "gpt_bigcode": {"model_type": "gpt_bigcode", "n_embd": 768, "n_layer": 2, "n_head": 12, "multi_query": True},
    "many heads": {"model_type": "gpt_bigcode", "n_embd": 768, "n_layer": 2, "n_head": 12, "multi_query": False},
    "opt": {"model_type": "opt", "hidden_size": 768, "num_hidden_layers": 12, "word_embed_proj_dim": 768,
            "do_layer_norm_before": True, "_remove_final_layer_norm": False, "ffn_dim": 3072, "prefix": "</s>"},
    "bloom": {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 8, "seq_length": 2048,
              "attention_softmax_in_fp32": True, "masked_softmax_fusion": True},
    "phi3": {"model_type": "phi3", "hidden_size": 3072, "num_hidden_layers": 2, "sliding_window": 2047,
             "original_max_position_embeddings": 4096},
}  # fmt: skip
# Fields that the page does not read; the sentence that says so names the field, unless another is given.
ODD = (
    {"model_type": None}, {"model_type": "falcon"}, {"hidden_size": "2048"}, {"num_hidden_layers": 0},
    {"num_attention_heads": 7.5}, {"vocab_size": True}, {"vocab_size": None}, {"vocab_size": 1}, {"n_embd": 64},
    {"sliding_window": 64}, {"attention_chunk_size": 8}, {"kv_lora_rank": 8}, {"is_encoder_decoder": True},
    {"layer_types": ["linear_attention"] * 16}, {"layer_types": 0}, {"mamba_d_state": 8}, {"text_config": {"dim": 8}},
    {"use_bidirectional_attention": True}, {"is_causal": False}, {"architectures": ["LlamaForMaskedLM"]},
    {"word_embed_proj_dim": 64}, {"embedding_size": 64}, {"num_kv_shared_layers": 2}, {"torch_dtype": "float99"},
    {"attn_logit_softcapping": -1}, {"head_dim": 1}, {"use_cache": 1}, {"attn_config": {"kv_n_heads": 2}},
    {"alibi": True}, {"rope_scaling": 2}, {"max_position_embeddings": 0}, {"num_layers": 5},
)  # fmt: skip
ODD_TOGETHER = (
    ({"num_key_value_heads": 5}, "num_attention_heads"), ({"hidden_size": 2049, "head_dim": None}, "head_dim"),
    ({"model_type": "gpt_bigcode", "multi_query": 1, **BARE}, "multi_query"),
    ({"model_type": "gpt2", "n_embd": 64, **BARE, "hidden_size": 128}, "n_embd"),
    ({"model_type": "mistral", **BARE, "layer_types": ["full_attention"] * 4}, "layer_types"),
    ({"model_type": "qwen2", **BARE, "num_key_value_heads": 8, "layer_types": ["sliding_attention"] * 4},
     "use_sliding_window"),
    ({"model_type": "gemma2", **BARE, "sliding_window": None}, "sliding_window"),
    ({"model_type": "gemma3_text", **BARE, "sliding_window_pattern": 1}, "sliding_window_pattern"),
    ({"model_type": "opt", **BARE, "do_layer_norm_before": False}, "do_layer_norm_before"),
)  # fmt: skip
# Python tells 1 from 1.0, and its classes refuse one of them; a browser does not.
NOT_CHANGED = {"model_type", "attn_logit_softcapping", "final_logit_softcapping", "rms_norm_eps"}


@functools.cache
def by_python(text: str):
    """The architecture, or None if Python refuses it."""
    try:
        return architectures.read(json.loads(text))
    except ValueError:
        return None


def assert_same(found: dict, text: str) -> None:
    """What the page read is what Python reads."""
    a = by_python(text)
    assert a is not None, text
    assert (a.cache, a.written, a.compressed) == (None, None, None), text
    wanted = {name: getattr(a, name) for name in found["settings"]}
    same = {"rms": "none", "learned": "rotary"}  # for every bound
    for settings in (found["settings"], wanted):
        settings |= {name: same.get(settings[name], settings[name]) for name in ("norm", "positions")}
    assert found["settings"] == wanted, text
    assert a.attention == ("full" if a.window is None else "window"), text


@pytest.fixture
def read(page, tmp_path):
    """Configurations as the page reads them: settings, or a sentence."""
    page.goto(standalone(tmp_path))
    return lambda configs: page.evaluate(READ, [[json.dumps(config) for config in configs], rules()])


def of_the_classes() -> list[dict]:
    """Configurations that the classes of `transformers` write, small and with sizes in odd places."""
    draw, made = random.Random(3), []
    for family in PLAIN:
        kind = transformers.CONFIG_MAPPING[family]
        sizes = SIZES | {"num_hidden_layers": draw.choice((1, 4, 6))}
        if "num_key_value_heads" in kind.__dataclass_fields__:
            sizes["num_key_value_heads"] = draw.choice((1, 2, 8))
        if "sliding_window" in kind.__dataclass_fields__:
            sizes["sliding_window"] = draw.choice((17, 40))
        config = kind(**sizes, pad_token_id=None, bos_token_id=None, eos_token_id=None).to_dict()
        made += [config, {"model_type": family} | sizes]
    return made


def test_what_the_classes_write_is_read_as_python_reads_it(read):
    configs = [*PUBLIC.values(), *of_the_classes()]
    found = read(configs)
    assert {one["family"] for one in found if isinstance(one, dict)} == set(PLAIN)
    for config, one in zip(configs, found, strict=True):
        assert isinstance(one, dict), (config, one)
        assert_same(one, json.dumps(config))


def test_other_shapes_are_read_the_same_or_refused(read):
    configs = [config for config, *_ in SHAPES.values()]
    refused = 0
    for config, one in zip(configs, read(configs), strict=True):
        if isinstance(one, str):
            refused += 1
        else:
            assert_same(one, json.dumps(config))
    assert 0 < refused < len(configs)


def test_what_cannot_be_read_safely_is_refused(read):
    odds = [(LLAMA | odd, next(iter(odd))) for odd in ODD]
    odds += [(odd if "model_type" in odd else LLAMA | odd, word) for odd, word in ODD_TOGETHER]
    for (odd, word), sentence in zip(odds, read([odd for odd, _ in odds]), strict=True):
        assert isinstance(sentence, str), odd
        assert word in sentence, odd
        assert sentence.endswith(".")
        assert "\n" not in sentence
    assert all(isinstance(one, str) for one in read([config for config, _ in REFUSED.values()]))


def test_changed_fields_never_give_another_number(read):
    """Fields of one family in the file of another, left out, null or of another value: the same numbers, or refused."""
    draw, texts = random.Random(11), []
    values = (None, True, False, 1, 2, 8, 64, "x", [], 0, -1)
    fields = sorted({field for config in PUBLIC.values() for field in config} - NOT_CHANGED)
    for _ in range(150):
        config = dict(draw.choice(list(PUBLIC.values())))
        config |= {"num_hidden_layers": 2} if "num_hidden_layers" in config else {}
        for _ in range(draw.choice((1, 2))):
            field = draw.choice(fields)
            if draw.random() < 0.3:
                config.pop(field, None)
            else:
                config[field] = draw.choice(values)
        texts.append(config)
    read_here = 0
    for config, one in zip(texts, read(texts), strict=True):
        if isinstance(one, dict):
            read_here += 1
            assert_same(one, json.dumps(config))
    assert read_here > 30


def test_a_pasted_file_fills_the_page(page, tmp_path):
    page.goto(standalone(tmp_path))
    page.locator(".budget-paste summary").click()
    for name in ("llama", "gemma2", "mistral without a window", "gpt2"):
        text = json.dumps(PUBLIC[name])
        page.locator("#budget-config").fill(text)
        page.locator("#budget-config-read").click()
        assert page.locator("#budget-config-answer").inner_text().startswith("Read as ")
        assert page.locator("#budget-model").input_value() == "your own"
        precision = page.locator("#budget-precision").input_value()
        wanted = budget.budget(by_python(text), 20, precision, length=1000).bounds
        for shown in page.locator("#budget-calculator [data-bound]").all():
            bound = wanted[shown.get_attribute("data-bound")]
            number = shown.get_attribute("data-bits") or shown.get_attribute("data-value")
            assert float(number) == pytest.approx(bound.value, rel=1e-9), (name, bound)
        shown = {shown.get_attribute("data-bound") for shown in page.locator("#budget-calculator [data-bound]").all()}
        left_out = {"prefix_dimension", "accessible_fraction"}
        assert shown == {key for key, bound in wanted.items() if bound.value is not None} - left_out
    before = page.locator(".budget-summary").inner_text()
    for text in ("", "[1]", "{", '{"model_type": "t5"}', json.dumps(LLAMA | {"hidden_size": 10**6})):
        page.locator("#budget-config").fill(text)
        page.locator("#budget-config-read").click()
        assert page.locator("#budget-config-answer.budget-refused").inner_text()
        assert page.locator(".budget-summary").inner_text() == before
