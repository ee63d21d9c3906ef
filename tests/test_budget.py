"""The budget against independent counts, and its calculator in a real browser."""

import html
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import transformers

from prompt_memory import budget, compress

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
    ({"is_encoder_decoder": True}, "encoder with a decoder"), ({"kv_lora_rank": 512}, "kv_lora_rank"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "(linear_attention)"),
    ({"layer_types": ["mamba"]}, "(mamba)"), ({"ssm_cfg": {}}, "ssm_cfg"), ({"layer_types": 5}, "layer_types must be"),
    ({"attn_logit_softcapping": "50"}, "attn_logit_softcapping"), ({"head_dim": 0}, "head_dim"),
])  # fmt: skip
def test_a_bad_configuration_is_one_sentence(change, words):
    with pytest.raises(ValueError, match=r"^here: ") as caught:
        budget.read(GPT2 | change, "here")
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)


def test_what_load_cannot_read_is_one_sentence(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    for source, words in (("broken.json", "cannot be read as JSON"), ("list.json", "a JSON object of fields, not list"),
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


SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
FAMILIES = {
    "gpt2": SMALL, "gpt_neo": SMALL | {"num_layers": 2, "attention_types": [[["global"], 2]], "num_heads": 4},
    "gptj": SMALL | {"rotary_dim": 4}, "gpt_neox": SMALL, "gpt_bigcode": SMALL, "codegen": SMALL | {"rotary_dim": 4},
    "opt": SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16}, "bloom": SMALL | {"n_layer": 2, "n_head": 4},
    "phi": SMALL, "falcon": SMALL, "starcoder2": GROUPED, "stablelm": GROUPED | {"partial_rotary_factor": 0.5},
    "llama": GROUPED, "qwen2": GROUPED, "mistral": GROUPED, "gemma": GROUPED | {"head_dim": 8},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_network_has_the_cache_and_the_blind_spot_of_its_configuration(family, tmp_path):
    """Numbers in the cache are counted, and the mean of a prompt vector is moved, in a network of `transformers`."""
    import torch

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config).eval().double()
    config.save_pretrained(tmp_path)
    a = budget.load(tmp_path)
    x = torch.randn(1, 3, a.width, dtype=torch.float64)
    moved = x + torch.tensor([[[1.0], [-2.0], [0.5]]], dtype=torch.float64)
    with torch.no_grad():
        first, second = (model(inputs_embeds=part, use_cache=True) for part in (x, moved))
    kept = first.past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in kept.layers)
    assert numbers == 3 * a.cached
    change = (first.logits - second.logits).abs().max()
    assert (change < 1e-5) == (a.norm == "layer"), f"moving the mean changes logits by {change:.1e}"
    assert model.get_input_embeddings().weight.shape == (a.vocabulary, a.width)
    assert a.context in (32, 2048, None)


def test_every_family_said_to_ignore_the_mean_is_tested():
    assert set(FAMILIES) | {"bert"} >= budget._LAYER_NORM


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
    assert result.smallest == "resolution"
    B = bits["resolution"]
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
    given = {name: start[name] for name in ("eps", "logit_range", "queries", "degree", "length")}
    wanted = budget.budget(published.architecture, start["prompt_length"], start["precision"], radius=published.radius,
                           **given).bounds  # fmt: skip
    assert set(shown) == {"counting", "counting_in_radius", "resolution", "prefix", "hard"}
    for key, bits in shown.items():
        assert bits == pytest.approx(wanted[key].bits, rel=1e-9), key
    facts = {fact.get_attribute("data-bound"): float(fact.get_attribute("data-value"))
             for fact in page.locator("#budget-calculator li[data-bound]").all()}  # fmt: skip
    assert set(facts) == {"dimension", "accessible_slope", "accessible_length", "recall", "exact_compression",
                          "moments", "dilution"}  # fmt: skip
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
            "logit_cap": draw.choice((None, None, 30.0)), "prompt_length": draw.randint(1, 10**5),
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
