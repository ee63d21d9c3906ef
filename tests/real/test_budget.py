"""The budget against independent counts, forwards and backwards."""

import math

import numpy as np
import pytest
from configurations import GPT2, LLAMA

from prompt_memory import compress
from prompt_memory.real import architectures, budget


def test_the_example_of_the_command_line():
    bounds = budget.budget(architectures.read(GPT2), 20, "bf16").bounds
    assert bounds["counting"].bits == 245760
    assert bounds["counting"].tokens == pytest.approx(245760 / math.log2(50257), rel=1e-14)


def test_a_budget_worked_out_by_hand():
    a = architectures.read(LLAMA)
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

    a = architectures.read({**LLAMA, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4,
                     "num_key_value_heads": 2, "vocab_size": 10})  # fmt: skip
    random_numbers = np.random.default_rng(0)
    keys = random_numbers.normal(size=(2, 2, 8))
    A = np.stack([keys[h // 2].T @ random_numbers.normal(size=(2, 8)) for h in range(4)])
    V = np.repeat(random_numbers.normal(size=(2, 2, 8)), 2, axis=0)
    tokens, queries = random_numbers.normal(size=(100, 8)), random_numbers.normal(size=(2, 8))
    short = compress.caratheodory(tokens, queries, A, V, own=1.0)
    assert len(short.indices) == budget.budget(a, 1, queries=2).bounds["exact_compression"].value


def test_bad_numbers_are_one_sentence():
    a = architectures.read(GPT2)
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
