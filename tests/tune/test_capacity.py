"""The capacity law: the search against brute force."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from prompt_memory import bounds, tasks
from prompt_memory.network import bitwise
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.tune import capacity

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
    found = capacity.longest_labels(outputs, labels, (1, 8), restarts=1, steps=(100, 200), generator=seeded())
    assert found.lengths.tolist() == [[3]] * 4
    assert found.curve.tolist() == [[[3, 3]]] * 4


def test_stages_are_one_search_with_growing_effort():
    networks = capacity.ensemble(CONFIG, 6, 60, generator=seeded())
    labels = torch.randint(2, (6, 60), generator=seeded(1))
    settings = {"restarts": 2, "radius": 1.5, "learning_rate": 0.6}
    short, long = (
        capacity.longest_labels(networks.outputs, labels, (2, 4), steps=steps, generator=seeded(2), **settings)
        for steps in ([8], [8, 16, 32])
    )
    first = long.curve[..., 0].double().mean() - short.curve.double().mean()
    assert abs(first) < 0.5  # the first stage does not know that others follow; batches differ in the last digits
    assert (long.curve.diff(dim=-1) >= 0).all()
    assert long.curve[..., -1].sum() > short.curve.sum()
    assert torch.equal(long.lengths, long.curve[..., -1])
    assert long.steps > short.steps
    for i, k in itertools.product(range(6), range(2)):
        answers = networks.network(i)(long.prompts[i, k][None], networks.queries[i])[0].argmax(-1)
        assert (answers == labels[i])[: long.lengths[i, k]].all()


def test_learning_rates_and_radii_belong_to_their_samples():
    outputs, labels, *_ = affine_problem(4, 30, 6)
    rate, radius = torch.tensor([1e-9, 0.5, 1e-9, 0.5]), torch.tensor([5.0, 5.0, 0.1, 0.1])
    found = capacity.longest_labels(
        outputs, labels, (1, 6), restarts=2, steps=30, generator=seeded(), learning_rate=rate, radius=radius
    )
    start = capacity.longest_labels(
        outputs, labels, (1, 6), restarts=2, steps=1, generator=seeded(), learning_rate=1e-9, radius=radius
    )
    assert torch.allclose(found.prompts[::2], start.prompts[::2], atol=1e-6)  # these cannot move
    assert found.lengths[1].min() > start.lengths[1].max()
    assert found.prompts[2:].abs().max() <= 0.1 < found.prompts[1].abs().max()


def test_a_pilot_runs_every_rate_on_the_same_samples():
    outputs, labels, *_ = affine_problem(6, 40, 6)
    settings = {"steps": (10, 20), "radius": 100.0}
    rates = (1e-9, 0.3)
    found = capacity.pilot(outputs, labels, (1, 6), rates, generator=seeded(), **settings)
    alone = capacity.longest_labels(
        outputs, labels, (1, 6), restarts=1, generator=seeded(), learning_rate=1e-9, steps=1, radius=100.0
    )
    assert len(found) == 2
    assert found[1] > found[0] + 2
    assert found[0] < alone.lengths.double().mean() + 2


def test_joined_ensembles_keep_their_logit_scales():
    soft = capacity.ensemble(replace(CONFIG, inverse_temperature=0.5), 2, 7, generator=seeded(3))
    both = capacity.joined([capacity.ensemble(CONFIG, 3, 5, generator=seeded()), soft])
    assert both.queries.shape == (5, 5, 4)
    prompts = torch.randn(2, 2, 4, generator=seeded(1))
    ours, theirs = both.outputs(torch.tensor([3, 4]), prompts, 5), soft.outputs(torch.tensor([0, 1]), prompts, 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="ensembles of different architectures cannot be joined"):
        capacity.joined([soft, capacity.ensemble(replace(CONFIG, depth=2), 2, 7, generator=seeded())])


def test_the_search_refuses_nonsense_and_names_a_run_that_diverges():
    outputs, labels, *_ = affine_problem(4, 3, 8)
    search = {"restarts": 2, "steps": 5, "generator": seeded()}
    for change, sentence in (
        ({"restarts": 0}, "m, d, restarts and steps must be at least 1, not [1, 8, 0, 5]"),
        ({"radius": 0.0}, "the radius must be positive and bits at least 1, not 0.0 and None"),
        ({"bits": 0}, "the radius must be positive and bits at least 1, not 3.0 and 0"),
        ({"steps": ()}, "m, d, restarts and steps must be at least 1, not [1, 8, 2]"),
        ({"learning_rate": 0.0}, "the learning rate must be a positive number, not 0.0"),
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


def test_the_longest_of_all_prompts_by_brute_force():
    rng = np.random.default_rng(2)
    answers, labels = (torch.tensor(rng.integers(0, 2, size=(rows, 9))) for rows in (20, 50))
    slow = [max(int(np.cumprod((row == wanted).numpy()).sum()) for row in answers) for wanted in labels]
    assert capacity.longest_of(answers, labels).tolist() == slow
    every = torch.tensor(list(itertools.product((0, 1), repeat=9)))
    counts = np.array([len({tuple(row[:n].tolist()) for row in answers}) for n in range(1, 10)])
    mean = (counts / 2.0 ** np.arange(1, 10)).sum()
    assert capacity.longest_of(answers, every).double().mean().item() == pytest.approx(mean)
    assert mean <= bounds.expected_length_ceiling(math.log2(20), 2)


def test_the_tent_network_attains_the_counting_bound():
    levels, N = 6, 18
    every = bitwise.tent_prompts(torch.arange(1 - 2**levels, 2**levels, 2)[:, None], levels)
    asked = bitwise.tent_queries(levels).repeat(3, 1)
    answers = bitwise.tent_network(levels)(every, asked, own_token=False).argmax(-1)
    counts = np.array([len({tuple(row[:n].tolist()) for row in answers}) for n in range(1, N + 1)])
    exact = (counts / 2.0 ** np.arange(1, N + 1)).sum()
    assert exact == pytest.approx(bounds.expected_length_ceiling(levels, 2), abs=2.0 ** (levels - N))
    assert bounds.expected_length_ceiling(levels - 1, 2) < exact  # one bit less would be passed


@pytest.mark.parametrize("q", [2, 3, 5])
def test_a_network_that_ignores_its_prompt_has_the_offset(q):
    assert capacity.expected_lengths(np.ones((2, 40)), q) == pytest.approx([1 / (q - 1)] * 2)
    assert bounds.expected_length_ceiling(0, q) == 1 / (q - 1)


def test_flat_attention_sees_the_mean_only():
    networks = capacity.ensemble(
        TransformerConfig(d=2, mlp=4, causal=True, positions="learned"), 1, 20, generator=seeded(4)
    )
    network, asked = networks.network(0).double(), networks.queries[0].double()
    network.blocks[0].query.zero_()
    values = tasks.grid(1, 1.5).double()
    for m in (1, 2, 3):
        counts = capacity.behaviour_counts(network, m, values, asked)
        assert counts[-1] <= (m + 1) ** 2
    assert counts[-1] > 2**2


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
    exact = capacity.exponent(x, [np.full(5, 3.0 * v**0.7) for v in x])
    assert exact == pytest.approx((0.7, 0.7, 0.7))
    assert capacity.exponent(x, [[3.0 * v**0.7] for v in x]) == pytest.approx((0.7, 0.7, 0.7))
    rng = np.random.default_rng(0)
    for n in (4, 16, 64):
        inside = 0
        for _ in range(400):
            samples = [rng.gamma(5, v**0.7, size=n) for v in x]
            _, low, high = capacity.exponent(x, samples)
            inside += low <= 0.7 <= high
        assert 364 <= inside <= 394, n  # 0.91 to 0.985 of nominal 0.95
    for x, samples in (([1, 1], [[1], [2]]), ([1, 2], [[1]]), ([1, 2], [[0], [0]]), ([0, 2], [[1], [2]])):
        with pytest.raises(ValueError, match=r"an exponent needs|a power law is fitted"):
            capacity.exponent(x, samples)


def test_an_offset_bends_an_exponent_and_is_gone_when_it_is_subtracted():
    bits = [3, 6, 9, 12]
    ceilings = [bounds.expected_length_ceiling(b, 2) for b in bits]
    assert capacity.exponent([1, 2, 3, 4], [[c] for c in ceilings])[0] == pytest.approx(0.848, abs=5e-4)
    assert capacity.exponent([1, 2, 3, 4], [[c - 1] for c in ceilings])[0] == pytest.approx(1.0)


def test_a_change_of_exponent_is_paired():
    rng = np.random.default_rng(3)
    x = [1, 2, 4]
    network = [rng.gamma(4, v, size=40) for v in x]
    later = [part * v**0.1 * rng.normal(1, 0.01, size=40) for part, v in zip(network, x, strict=True)]
    change, low, high = capacity.exponent(x, later, before=network)
    alone = [capacity.exponent(x, part) for part in (later, network)]
    assert change == pytest.approx(alone[0][0] - alone[1][0])
    assert low < 0.1 < high
    assert high - low < 0.2 * (alone[0][2] - alone[0][1])
    with pytest.raises(ValueError, match="paired samples need one number of each kind for every network"):
        capacity.exponent(x, later, before=[part[:5] for part in network])


def test_a_ratio_of_means():
    rng = np.random.default_rng(1)
    value, low, high = capacity.ratio(rng.normal(6, 1, 100), rng.normal(3, 1, 100))
    assert low < value < high
    assert low < 2 < high
    assert capacity.ratio([4.0, 4.0], [2.0]) == pytest.approx((2.0, 2.0, 2.0))
    network = rng.gamma(4, 1, size=50)
    wide, narrow = (capacity.ratio(1.2 * network, network, paired=paired) for paired in (False, True))
    assert wide[0] == pytest.approx(narrow[0]) == pytest.approx(1.2)
    assert wide[2] - wide[1] > 0.1
    assert narrow[2] - narrow[1] < 1e-9


def test_a_spread_is_one_statement_about_all_sets():
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        value, low, high, noise = capacity.spread([rng.gamma(5, 1, size=32) for _ in range(10)])
        assert 1 <= low <= value <= high <= value * noise
        inside += low == 1
    assert inside >= 185
    different = capacity.spread([rng.gamma(5, scale, size=64) for scale in (1, 1, 2)])
    assert different[1] > 1.25
    rows = capacity.means([[1.0, 2.0, 3.0], [4.0, 4.0]])
    assert rows[:, 0] == pytest.approx([2, 4])
    assert rows[0, 1] < 2 < rows[0, 2]
    assert rows[1] == pytest.approx([4, 4, 4])
    for samples in ([[1.0, 2.0]], [[1.0, 2.0], [1.0]], [[1.0, 2.0], [-1.0, 0.5]]):
        with pytest.raises(ValueError, match=r"a spread needs|intervals of means need|a power law is fitted"):
            capacity.spread(samples)
