"""The capacity law: formulas against sums and linear programming, the search against brute force."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from prompt_memory import bounds, capacity, tasks
from prompt_memory.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)
CONFIG = TransformerConfig(d=4, heads=2, mlp=8, norm="rms", causal=True, positions="learned", inverse_temperature=4.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def affine_problem(samples, N, D, seed=0):
    """(outputs, labels, slopes, offsets) of random affine logits in D coordinates, for two classes."""
    generator = seeded(seed)
    slopes, offsets = torch.randn(samples, N, D, generator=generator), torch.randn(samples, N, generator=generator)

    def outputs(row, prompts, n):
        gap = offsets[row, :n] + (slopes[row, :n] @ prompts.flatten(1)[..., None])[..., 0]
        return torch.stack([-gap / 2, gap / 2], -1)

    return outputs, torch.randint(2, (samples, N), generator=generator), slopes.numpy(), offsets.numpy()


def feasible(slopes, offsets, labels):
    """Whether some point gives every affine function the sign that its label asks for."""
    sign = 2 * np.asarray(labels) - 1
    free = [(None, None)] * slopes.shape[1]
    return linprog(np.zeros(slopes.shape[1]), -sign[:, None] * slopes, sign * offsets - 1e-7, bounds=free).status == 0


# --- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "q"), [(0, 2), (12, 2), (12.5, 2), (10, 3), (7, 4), (30, 50)])
def test_the_expected_length_ceiling_is_the_sum(bits, q):
    terms = math.fsum(min(1.0, 2.0 ** (bits - n * math.log2(q))) for n in range(1, 200))
    assert bounds.expected_length_ceiling(bits, q) == pytest.approx(terms, rel=1e-12)


def test_the_expected_length_ceiling_at_whole_bits():
    assert [bounds.expected_length_ceiling(bits, 2) for bits in (0, 1, 64)] == [1, 2, 65]
    assert bounds.expected_length_ceiling(3 * math.log2(5), 5) == pytest.approx(3 + 1 / 4)  # a full power of q


@pytest.mark.parametrize("D", [1, 2, 5, 20])
def test_affine_length_is_the_sum_of_the_fractions(D):
    fractions = [bounds.affine_patterns(n, D) / 2**n for n in range(1, 60 + 20 * D)]
    assert math.fsum(fractions) == pytest.approx(bounds.affine_length(D), rel=1e-9)
    assert fractions[bounds.affine_length(D) - 1] == 0.5


def test_affine_labelings_by_linear_programming():
    _, _, slopes, offsets = affine_problem(1, 6, 2)
    held = sum(feasible(slopes[0], offsets[0], labels) for labels in itertools.product((0, 1), repeat=6))
    assert held == bounds.affine_patterns(6, 2) == 22


def test_bounds_refuse_nonsense():
    for bits, q in ((-1, 2), (math.nan, 2), (math.inf, 2), (3, 1)):
        with pytest.raises(ValueError, match=r"must be"):
            bounds.expected_length_ceiling(bits, q)
    with pytest.raises(ValueError, match="coordinates must be an integer >= 1, not 0"):
        bounds.affine_length(0)


# --- ensembles -----------------------------------------------------------------------------------------------------


def test_a_batch_of_networks_is_its_networks():
    networks = capacity.ensemble(CONFIG, 3, 5, generator=seeded())
    row = torch.tensor([2, 0, 2, 1])
    prompts = torch.randn(4, 2, 4, generator=seeded(1))
    logits = networks.outputs(row, prompts, 3)
    for i, r in enumerate(row.tolist()):
        alone = networks.network(r)(prompts[i : i + 1], networks.queries[r, :3])[0]
        torch.testing.assert_close(logits[i], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1])


def test_the_gain_multiplies_what_attention_writes_and_nothing_else():
    plain, strong = (capacity.ensemble(CONFIG, 2, 3, generator=seeded(), gain=gain) for gain in (1.0, 4.0))
    for name, weight in plain.weights.items():
        assert torch.equal(strong.weights[name], weight * (4 if name.endswith("output") else 1)), name
    original = Transformer(CONFIG, generator=seeded())
    assert torch.equal(plain.weights["blocks.0.query"][0], original.blocks[0].query)


def test_ensembles_refuse_nonsense():
    for samples, n, gain in ((0, 3, 1.0), (3, 0, 1.0), (3, 3, 0.0), (3, 3, math.nan)):
        with pytest.raises(ValueError, match=r"an ensemble needs|the gain must be"):
            capacity.ensemble(CONFIG, samples, n, generator=seeded(), gain=gain)


# --- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 2])
def test_the_prompt_that_is_returned_is_the_one_that_was_scored(bits):
    networks = capacity.ensemble(CONFIG, 6, 40, generator=seeded())
    labels = torch.randint(2, (6, 40), generator=seeded(1))
    found = capacity.longest_labels(
        networks.outputs, labels, (2, 4), restarts=2, steps=25, radius=1.5, bits=bits, generator=seeded(2)
    )
    assert found.prompts.shape == (6, 2, 2, 4)
    assert found.prompts.abs().max() <= 1.5
    if bits:
        assert (found.prompts[..., None] - tasks.grid(bits, 1.5)).abs().amin(-1).max() < 1e-6
    for i, k in itertools.product(range(6), range(2)):
        answers = networks.network(i)(found.prompts[i, k][None], networks.queries[i])[0].argmax(-1)
        right = (answers == labels[i]).long().cumprod(0).sum()
        # beyond its length the kept prompt may be right by less than the margin
        assert right >= found.lengths[i, k]
    assert 0 < found.lengths.double().mean() < 40


def test_lengths_on_affine_problems_are_possible_and_not_far_from_the_longest():
    outputs, labels, slopes, offsets = affine_problem(20, 40, 6)
    found = capacity.longest_labels(outputs, labels, (2, 3), restarts=2, steps=150, radius=1e3, generator=seeded(3))
    longest = [
        max(n for n in range(41) if n == 0 or feasible(slopes[i, :n], offsets[i, :n], labels[i, :n])) for i in range(20)
    ]
    best = found.lengths.amax(1).numpy()
    assert (best <= longest).all()
    assert best.sum() >= 0.65 * np.sum(longest)
    assert abs(np.mean(longest) - bounds.affine_length(6)) < 4 * np.std(longest) / math.sqrt(20)


def test_one_bit_prompts_found_are_no_better_than_all_prompts():
    networks = capacity.ensemble(CONFIG, 12, 16, generator=seeded())
    labels = torch.randint(2, (12, 16), generator=seeded(1))
    found = capacity.longest_labels(
        networks.outputs, labels, (2, 4), restarts=3, steps=60, radius=1.5, bits=1, margin=0.0, generator=seeded(2)
    ).lengths.amax(1)
    best = []
    every = tasks.grid_prompts(torch.arange(2**8), 4, 2, tasks.grid(1, 1.5))
    for i in range(12):
        answers = networks.network(i)(every, networks.queries[i]).argmax(-1)
        best.append(int((answers == labels[i]).long().cumprod(1).sum(1).max()))
    assert (found <= torch.tensor(best)).all()
    assert found.sum() >= 0.7 * sum(best)


def test_more_labels_than_can_be_asked_for_end_the_run():
    outputs, labels, *_ = affine_problem(4, 3, 8)  # three labels, eight numbers: all are found
    found = capacity.longest_labels(outputs, labels, (1, 8), restarts=1, steps=100, generator=seeded())
    assert found.lengths.tolist() == [[3]] * 4


def test_the_search_refuses_nonsense_and_names_a_run_that_diverges():
    outputs, labels, *_ = affine_problem(4, 3, 8)
    search = {"restarts": 2, "steps": 5, "generator": seeded()}
    for change, sentence in (
        ({"restarts": 0}, "m, d, restarts and steps must be at least 1, not [1, 8, 0, 5]"),
        ({"radius": 0.0}, "the radius must be positive and bits at least 1, not 0.0 and None"),
        ({"bits": 0}, "the radius must be positive and bits at least 1, not 3.0 and 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            capacity.longest_labels(outputs, labels, (1, 8), **(search | change))
    with pytest.raises(ValueError, match=re.escape("labels must have the shape [S, N] with S, N >= 1, not [0, 3]")):
        capacity.longest_labels(outputs, labels[:0], (1, 8), **search)

    def broken(row, prompts, n):
        logits = outputs(row, prompts, n)
        return torch.where((row == 2)[:, None, None], logits * math.nan, logits)

    with pytest.raises(RuntimeError, match="the loss of restart 0 of sample 2 is not finite"):
        capacity.longest_labels(broken, labels, (1, 8), **search)


# --- exact counts --------------------------------------------------------------------------------------------------


def test_behaviour_counts_are_those_of_sets():
    networks = capacity.ensemble(TransformerConfig(d=3, q=3, causal=True), 1, 6, generator=seeded(5))
    values = tasks.grid(2, 1.5)
    counts = capacity.behaviour_counts(networks.model, 1, values, networks.queries[0])
    every = [torch.tensor(p)[None, None] for p in itertools.product(values.tolist(), repeat=3)]
    answers = [tuple(networks.model(p, networks.queries[0])[0].argmax(-1).tolist()) for p in every]
    assert counts.tolist() == [len({a[:n] for a in answers}) for n in range(1, 7)]
    assert counts[-1] > counts[0]
    with pytest.raises(ValueError, match=re.escape("4^12 prompts are too many to run")):
        capacity.behaviour_counts(networks.model, 4, values, networks.queries[0])


def test_expected_lengths_are_averages_over_all_labelings():
    rows = np.random.default_rng(0).integers(0, 2, size=(3, 12))
    counts = np.array([[len({tuple(r[:n]) for r in rows}) for n in range(1, 13)]] * 2)
    longest = [
        max(int(np.cumprod(row == labels).sum()) for row in rows) for labels in itertools.product((0, 1), repeat=12)
    ]
    assert capacity.expected_lengths(counts, 2) == pytest.approx([np.mean(longest)] * 2)
    with pytest.raises(ValueError, match=re.escape("2 queries are too few: 0.75 of their labelings remain")):
        capacity.expected_lengths(np.array([2, 3]), 2)


# --- fits ----------------------------------------------------------------------------------------------------------


def test_an_exponent_is_recovered_and_its_interval_holds_it():
    x = [1, 2, 4, 8]
    exact = capacity.exponent(x, [np.full(5, 3.0 * v**0.7) for v in x], np.random.default_rng(0))
    assert exact == pytest.approx((0.7, 0.7, 0.7))
    inside = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        samples = [rng.normal(10 * v**0.7, 3 * v**0.7, size=40) for v in x]
        _, low, high = capacity.exponent(x, samples, rng, resamples=400)
        inside.append(low <= 0.7 <= high)
    assert 51 <= sum(inside) <= 60
    for x, samples in (([1, 1], [[1], [2]]), ([1, 2], [[1]]), ([1, 2], [[0], [0]]), ([0, 2], [[1], [2]])):
        with pytest.raises(ValueError, match=r"an exponent needs|a power law is fitted"):
            capacity.exponent(x, samples, np.random.default_rng(0))


def test_a_ratio_of_means():
    rng = np.random.default_rng(1)
    value, low, high = capacity.ratio(rng.normal(6, 1, 100), rng.normal(3, 1, 100), rng)
    assert low < value < high
    assert low < 2 < high
    assert capacity.ratio([4.0, 4.0], [2.0], rng) == (2.0, 2.0, 2.0)
