"""Chapter 4: its sentences follow the data, its sums follow their definitions."""

import itertools
import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds
from prompt_memory.experiments import accessible_strings as chapter
from prompt_memory.experiments import accessible_strings_protocol as protocol
from prompt_memory.network.transformer import Transformer, TransformerConfig


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        ({}, "Two prompt lengths say nothing about straightness."),
        ({"random": (0.8, 1.2)}, "For no kind of string do the intervals exclude a straight line."),
        ({"random": (0.8, 0.99), "natural": (0.5, 1.5)}, "fewer tokens than the first for random."),
        ({"random": (1.01, 1.2)}, "they add more for random"),
    ],
)
def test_straightness_is_judged_by_the_intervals(ends, sentence):
    bend = {kind: (1.0, np.array(interval)) for kind, interval in ends.items()}
    assert sentence in chapter.curvature(bend)


def test_survival_beyond_n50_is_judged_against_the_least_possible():
    assert "cannot be told" in chapter.survival(0, 9, 27)
    assert "more is left here: the number" in chapter.survival(40, 60, 27)
    assert "0.67 survives" in chapter.survival(40, 60, 27)
    assert "nothing is known" in chapter.survival(0, 0, 27)


def test_sentences_about_the_enumeration():
    assert "the ratio grows (1.10 to 1.40)" in chapter.growth([1.1, 1.4], [4, 10], 0.1, 0.2)
    assert "does not grow" in chapter.growth([1.4, 1.1], [4, 10], 0.3, 0.2)
    assert chapter.duplicates(0.2).startswith("Few prompts")
    assert chapter.duplicates(3.0).startswith("Many prompts")


def test_surprising_mass_is_that_of_all_strings_with_such_a_beginning():
    """Letters of probability 3/4 and 1/4, all eight strings of three letters accessible but one."""
    accessible = [s for s in itertools.product((0, 1), repeat=3) if s != (1, 1, 1)]

    def log2(strings):
        return np.array([sum(math.log2((0.75, 0.25)[letter]) for letter in s) for s in strings])

    rows = [sorted({s[:n] for s in accessible}) for n in (1, 2, 3)]
    counts = np.array([len(r) for r in rows])
    found = protocol.Enumerated(1, 3, 2, counts, [log2(r) for r in rows], [log2([s[:-1] for s in r]) for r in rows])
    for threshold in (0.1, 1.0, 2.5, 3.9):
        surprising = {r for row in rows for r in row if -log2([r])[0] > threshold}
        mass = sum(
            2.0 ** log2([s])[0]
            for s in itertools.product((0, 1), repeat=3)
            if any(s[:n] in surprising for n in (1, 2, 3))
        )
        assert found.surprising_mass(threshold) == pytest.approx(mass)


def test_searched_strings_are_counted_by_their_longest_beginnings():
    found = protocol.Searched(1, 3, np.array([0, 1, 3, 3]), None)
    assert found.reached.tolist() == [3, 2, 2]
    assert found.half == pytest.approx(2.0)


def test_margins_are_the_least_up_to_each_token():
    config = TransformerConfig(d=4, q=3, causal=True)
    model = Transformer(config, generator=torch.Generator().manual_seed(0)).double()
    prompts = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(1)).double()
    strings, gaps = protocol.clear_strings(model, prompts, 4)
    for row in range(5):
        least = math.inf
        for n in range(4):
            before = model.embedding[torch.from_numpy(strings[row, :n].astype(int))]
            logits = model.stream(torch.cat([prompts[row], before])[None])[0, -1]
            top = logits.topk(2)
            assert top.indices[0] == strings[row, n]
            least = min(least, float(top.values[0] - top.values[1]))
            assert gaps[row, n] == pytest.approx(least, abs=1e-9)


def test_the_built_model_attains_the_bound_of_part_2():
    built = next(clear for clear in protocol.with_margin(torch.Generator().manual_seed(0)) if clear.model == "built")
    assert built.bits == 1
    assert built.bound == pytest.approx(bounds.entropy_bits(1, 1, 1.0, 1.0, 0.999), rel=1e-6)
