"""How long the strings are that half of the prompts yield, and how likely strings are."""

import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds, measure, tasks
from prompt_memory.network.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        d=8, q=5, depth=2, heads=2, mlp=16, norm="layer", causal=True, positions="learned", context=16
    )
    return Transformer(config, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: measure.n50(np.array([])), "at least one string"),
        (lambda: measure.half_length(np.array([])), "at least one string"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_n50_finds_the_centre_of_a_sigmoid():
    random = np.random.default_rng(1)
    for centre, width in ((8.3, 0.7), (20.0, 2.0)):
        # Pr[length >= n] = 1/(1 + e^{(n − centre)/width}) means length = floor of a logistic variable
        lengths = np.maximum(0, np.floor(random.logistic(centre, width, size=4000)))
        assert measure.n50(lengths.astype(int)) == pytest.approx(centre, abs=0.15)
        cap = round(centre + width)  # strings that end there tell only "at least"
        assert measure.n50(np.minimum(lengths, cap).astype(int), cap) == pytest.approx(centre, abs=0.2)
        blind = measure.n50(np.minimum(lengths, cap).astype(int))
        assert blind < measure.n50(np.minimum(lengths, cap).astype(int), cap)
    assert measure.n50(np.full(9, 7)) == pytest.approx(7.5, abs=0.05)


def test_n50_of_nothing_and_of_everything():
    assert measure.n50(np.zeros(9, dtype=int), 4) == 0
    assert measure.n50(np.full(9, 4), 4) == math.inf
    assert 0 <= measure.n50(np.array([0] * 30 + [1]), 4) < 1
    assert 4 < measure.n50(np.array([4] * 30 + [3]), 4) < math.inf


def test_half_crossing_is_the_critical_length_of_the_bound_and_never_later_below_it():
    assert measure.half_crossing([0.0, -0.5, -1.5]) == pytest.approx(2.5)
    assert measure.half_crossing([0.0, -0.9]) == math.inf
    n = np.arange(1, 12)
    random = np.random.default_rng(0)
    for bits, V in ((5, 3), (16, 27), (9.5, 2)):
        line = bits - n * math.log2(V)
        critical = bounds.critical_length(bits, V)
        assert measure.half_crossing(line) == pytest.approx(critical)
        below = np.minimum(0, line) - random.random(len(n))
        assert measure.half_crossing(below) <= critical + 1e-12


@pytest.mark.parametrize(("bits", "V"), [(6, 27), (10, 27), (16, 27), (8, 96), (14, 96)])
def test_the_theorem_bounds_the_half_length_of_a_perfect_code_and_not_its_logistic_centre(bits, V):
    n = np.arange(12)
    fractions = np.minimum(1, 2.0**bits * V ** -n.astype(float))  # as many strings as prompts
    lengths = np.repeat(n, np.round(20_000 * (fractions - np.append(fractions[1:], 0))).astype(int))
    critical = bounds.critical_length(bits, V)
    assert 0.85 * critical < measure.half_length(lengths) <= critical + 1e-3
    assert measure.n50(lengths) > measure.half_length(lengths)
    if (bits, V) == (10, 27):
        assert measure.n50(lengths) > 1.15 * critical


def test_half_length_of_samples():
    assert measure.half_length([0] * 5 + [1] * 5) == 1  # half of them, exactly
    assert measure.half_length([0] * 9) == pytest.approx(1 / math.log2(18))  # half a string of nine is left
    assert measure.half_length([4] * 9) == pytest.approx(4 + 1 / math.log2(18))
    assert measure.half_length([4] * 9, 4) == math.inf
    assert measure.half_length([4] * 3 + [3] * 6, 4) == pytest.approx(3 + 1 / math.log2(3))
    assert measure.half_length([4] * 3 + [3] * 6, 9) == measure.half_length([4] * 3 + [3] * 6)
    skewed = 4 + np.random.default_rng(0).geometric(0.2, 20_000)  # Pr[length >= n] = 0.8^{n − 5}
    assert measure.half_length(skewed) == pytest.approx(5 + math.log(2) / math.log(1.25), abs=0.1)
    assert measure.n50(skewed) == pytest.approx(8.85, abs=0.15)


def test_sampled_strings_come_with_their_probability(model):
    prompts = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0)).expand(4000, 2, 8)
    strings, log2 = measure.sampled_strings(model, prompts, 2, generator=torch.Generator().manual_seed(1))
    logits = [model.stream(prompts[:1])[0, -1]]
    probability = {}
    for first in range(5):
        x = torch.cat([prompts[0], model.embedding[first][None]])[None]
        second = model.stream(x)[0, -1].softmax(-1)
        for b in range(5):
            probability[first, b] = float(logits[0].softmax(-1)[first] * second[b])
    assert sum(probability.values()) == pytest.approx(1, abs=1e-5)
    for pair, p in probability.items():
        rows = (strings == torch.tensor(pair)).all(1)
        assert float(rows.double().mean()) == pytest.approx(p, abs=5 * math.sqrt(p / 4000) + 1e-3)
        assert torch.allclose(log2[rows, 1].exp2(), torch.tensor(p).double(), rtol=1e-4)
        assert torch.allclose(log2[rows, 0].exp2(), logits[0].softmax(-1)[pair[0]].double(), rtol=1e-4)


def test_every_allowed_prompt_decoded_counts_no_more_strings_than_prompts(model):
    prompts = tasks.grid_prompts(torch.arange(2**8), 8, 1, tasks.grid(1))
    strings = measure.greedy(model, prompts, 6)
    for n in range(1, 7):
        count = len(torch.unique(strings[:, :n], dim=0))
        assert count / 5**n <= bounds.accessible_fraction(8, n, 5)
