"""The least prompt length is the inverse of the budget, and what is shown of either is rounded to the safe side."""

import dataclasses
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_memory import bounds
from prompt_memory.real import architectures, budget

PYTHIA = architectures.PUBLISHED["Pythia-160M"].architecture
FAR = {"radius": 3.0, "eps": 0.01, "lipschitz": 2.0, "margin": 0.1}


def held(architecture, m, key, **options):
    """The bits of the budget at m vectors; none at m = 0."""
    return budget.budget(architecture, m, **options).bounds[key].bits if m else 0.0


def cases(count):
    """Amounts, formats and shapes as a reader might choose them, some of which fill a prompt exactly."""
    draw = random.Random(7)
    names = list(architectures.PUBLISHED)
    for _ in range(count):
        a = architectures.PUBLISHED[draw.choice(names)].architecture
        precision = draw.choice(list(budget.FORMATS))
        amount = draw.choice(
            (1, 2, draw.randint(1, 10**4), 10 ** draw.randint(0, 12), a.width * 16 * draw.randint(1, 9))
        )
        yield a, precision, draw.choice(({"tokens": amount}, {"facts": amount, "labels": draw.choice((2, 3, 10**5))}))


def test_every_bound_is_inverted():
    """bits(m) reaches the amount and bits(m − 1) does not, for every bound of the budget in bits."""
    for a, precision, amount in cases(60):
        found = budget.least_length(a, precision=precision, **amount, **FAR)
        for key, least in found.bounds.items():
            forward = budget.budget(a, 1, precision, **FAR).bounds[key]
            assert (least.bits, least.tokens, least.needs) == (forward.bits, forward.tokens, forward.needs)
            if least.length is None:
                assert forward.bits is None
                continue
            at = dict(key=key, precision=precision, **FAR)
            assert held(a, least.length, **at) >= found.bits > held(a, least.length - 1, **at)


def test_below_the_least_length_some_tokens_are_lost():
    """The recall that the forward budget allows reaches one exactly there."""
    for a, precision, amount in cases(40):
        if "tokens" not in amount:
            continue
        found = budget.least_length(a, tokens=amount["tokens"], precision=precision)
        recalls = [budget.budget(a, m, precision, length=amount["tokens"]).bounds["recall"].value
                   for m in (found.length - 1, found.length) if m]  # fmt: skip
        assert recalls[-1] == 1
        assert all(recall < 1 for recall in recalls[:-1])


def test_worked_out_by_hand():
    bits = 1000 * math.log2(50304)
    found = budget.least_length(PYTHIA, tokens=1000)
    assert found.bits == bits
    assert found.length == found.bounds["counting"].length == math.ceil(bits / (16 * 768)) == 2
    assert found.bounds["hard"].length == 1000
    assert found.bounds["prefix"].length == 1
    assert found.found == (90.4, 12, "arXiv 2605.22223")  # 1000 / 90.4 = 11.06
    tiny = architectures.Architecture("tiny", "", 3, 1, 1, 1, 3, 3, 5)
    facts = budget.least_length(tiny, facts=10, labels=4, precision="int2")  # 20 bits, 6 a vector
    assert (facts.bits, facts.length, facts.found) == (20, 4, None)
    assert budget.least_length(tiny, facts=9, precision="int2").length == 2  # 9 bits; two labels unless said otherwise
    assert budget.least_length(tiny, facts=12, precision="int2").length == 2  # 12 bits fit exactly


def test_more_takes_no_less():
    lengths = [budget.least_length(PYTHIA, facts=n, precision="int1").length for n in range(1, 3000)]
    assert lengths == sorted(lengths)
    assert lengths == [-(-n // 768) for n in range(1, 3000)]
    for labels in (2, 3, 17):
        assert (budget.least_length(PYTHIA, facts=10**6, labels=labels).bits) == 10**6 * math.log2(labels)
    knowing = budget.least_length(PYTHIA, facts=10**6, **FAR)
    assert knowing.length == max(knowing.bounds[key].length for key in budget.SOFT)
    assert knowing.length >= budget.least_length(PYTHIA, facts=10**6).length


def test_a_vector_that_holds_nothing():
    found = budget.least_length(PYTHIA, facts=1, radius=1.0, lipschitz=0.0, margin=1.0)
    assert found.length == math.inf
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["bounds"]["entropy"]["length"] == "inf"
    assert "no soft prompt can hold them" in budget.least_table(found)
    assert "none is enough" in budget.least_table(found)


def test_mistakes_are_one_sentence():
    for options, words in (
        ({}, "either facts or tokens"), ({"facts": 1, "tokens": 1}, "either facts or tokens"),
        ({"facts": 0}, "facts must"), ({"tokens": 1.0}, "tokens must"), ({"facts": 1, "labels": 1}, "labels must"),
        ({"facts": 1, "eps": 0.1}, "needs a radius"), ({"facts": 1, "margin": 0.1}, "together"),
        ({"facts": 1, "precision": "bf17"}, "unknown number format"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as caught:
            budget.least_length(PYTHIA, **options)
        assert len(str(caught.value).splitlines()) == 1
    alone = architectures.Architecture("alone", "", 3, 1, 1, 1, 3, 3, 1)
    with pytest.raises(ValueError, match="one token carries no information"):
        budget.least_length(alone, tokens=3)


def test_a_slope_belongs_to_its_model():
    other = dataclasses.replace(PYTHIA, width=512)
    assert architectures.found_slope(PYTHIA) == 90.4
    assert architectures.found_slope(other) is None
    assert architectures.found_slope(dataclasses.replace(PYTHIA, name="mine")) is None
    assert "found" not in budget.least_table(budget.least_length(other, tokens=9))
    assert budget.least_length(PYTHIA, facts=9).found.length is None  # facts are no tokens of text


@given(st.floats(1e-9, 1e20) | st.integers(0, 10**30))
def test_three_digits_to_the_safe_side(value):
    above, below = (float(show(value).replace(",", "")) for show in (budget.at_most, budget.at_least))
    assert below <= value * (1 + 1e-15)
    assert above >= value * (1 - 1e-15)
    assert above - below <= 0.011 * value
    for shown in (budget.at_most(value), budget.at_least(value)):
        digits = shown.split("e")[0].replace(",", "").replace(".", "").strip("0")
        assert len(digits) <= 3


def test_rounding_of_a_few_numbers():
    up = {0: "0", 1.0: "1", 245760: "246,000", 786.7650595654081: "787", 15.616: "15.7", 0.1: "0.1", 0.97701: "0.978"}
    assert {value: budget.at_most(value) for value in up} == up
    down = {1273: "1,270", 15618.39: "15,600", 999: "999", 0.0009999: "0.000999"}
    assert {value: budget.at_least(value) for value in down} == down
    assert budget.at_most(10**618) == "about 10^618"


def test_what_is_in_no_row_is_in_one_line():
    lines = budget.table(budget.budget(PYTHIA, 20, length=1000)).splitlines()
    (line,) = [line for line in lines if "needs" in line or "vacuous" in line]
    assert line.startswith("left out: ")
    assert "soft prompt, numbers within the radius (needs radius)" in line
    assert "cache positions of a layer with all its moments (vacuous)" in line
    (row,) = [line for line in lines if line.startswith("found by tuning")]
    assert row.split()[-3:] == ["1,810", "arXiv", "2605.22223"]
    lines = budget.least_table(budget.least_length(PYTHIA, tokens=1000)).splitlines()
    assert sum(line.startswith("left out: ") for line in lines) == 1
    (row,) = [line for line in lines if line.startswith("found by tuning")]
    assert row.split()[-4:] == ["90.4", "12", "arXiv", "2605.22223"]
    assert "a soft prompt needs at least 2 vectors (soft prompt, all its bits)" in lines


def test_the_bits_of_a_vector_are_those_of_theorem_one():
    found = budget.least_length(PYTHIA, facts=5, precision="fp32").bounds
    assert found["counting"].bits == bounds.counting_bits(768, 1, 32)
    assert found["prefix"].bits == bounds.counting_bits(2 * 12 * 768, 1, 32)
