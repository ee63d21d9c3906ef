"""Theorem 4: bounds on accessible strings, how they are measured, and the search on a grid of prompts."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prompt_memory import bounds, language, measure, tasks, tune
from prompt_memory.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        d=8, q=5, depth=2, heads=2, mlp=16, norm="layer", causal=True, positions="learned", context=16
    )
    return Transformer(config, generator=torch.Generator().manual_seed(3))


@given(st.floats(0, 40), st.integers(1, 30), st.integers(2, 50))
def test_accessible_fraction_is_the_count_of_prompts_over_the_count_of_strings(bits, n, V):
    assert bounds.accessible_fraction(bits, n, V) == pytest.approx(min(1, 2**bits / V**n), rel=1e-9)


def test_at_the_critical_length_half_of_all_strings_are_left():
    for bits, V in ((10, 2), (33, 7), (2048, 96)):
        n = bounds.critical_length(bits, V)
        assert bits - n * math.log2(V) == pytest.approx(-1)
    assert bounds.critical_length(20, 4) - bounds.critical_length(10, 4) == pytest.approx(5)


def test_source_ceiling_is_the_best_set_of_that_size():
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(7))
    for bits in (0, 1, 2, 3.0, 9):
        size = min(7, int(2**bits))
        best = max(sum(chosen) for chosen in itertools.combinations(p, size))
        assert bounds.source_ceiling(np.log2(p), bits) == pytest.approx(best)


def test_mimo_bits_of_independent_levels():
    # 2^b − 1 steps of ε on each side: log2(1 + rσ/ε) = b
    assert bounds.mimo_bits(np.array([3.0, 0.0, 7.0]), 1.0, 1.0) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bounds.accessible_fraction(-1, 3, 4), "bits"),
        (lambda: bounds.critical_length(3, 1), ">= 2"),
        (lambda: bounds.source_ceiling(np.log2([0.5, 0.4]), 1), "add up to one"),
        (lambda: bounds.mimo_bits(np.array([-1.0]), 1, 1), "singular values"),
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


@pytest.mark.parametrize("seed", range(4))
def test_no_set_of_prompts_reaches_surprising_beginnings_more_often_than_the_excess_allows(seed):
    """Theorem 4, part 3, by brute force: any 2^B strings of a source of all strings of five letters."""
    random = np.random.default_rng(seed)
    V, N, bits = 3, 5, 3
    strings = np.array(list(itertools.product(range(V), repeat=N)))
    source = random.dirichlet(np.full(V**N, 0.3))
    surprise = np.array([[-np.log2(source[(strings[:, :n] == t[:n]).all(1)].sum()) for n in range(1, N + 1)]
                         for t in strings])  # fmt: skip
    for accessible in (random.choice(V**N, 2**bits, replace=False), np.argsort(source)[-(2**bits) :]):
        reach = np.zeros((V**N, N), dtype=bool)  # is this beginning of the string one of an accessible string?
        for i in accessible:
            reach |= (strings == strings[i]).cumprod(1).astype(bool)
        assert source[reach[:, -1]].sum() <= bounds.source_ceiling(np.log2(source), bits) + 1e-12
        for s in np.linspace(0, 4, 9):
            broken = (reach & (surprise > bits + s)).any(1)
            assert source[broken].sum() <= 2**-s + 1e-12
    # strings of equal probability: one prompt each attains it as the excess approaches their surprise
    s = N * math.log2(V) - bits
    assert 2**bits * V**-N == pytest.approx(2**-s)


def test_first_occurrences_count_the_rows_of_every_beginning_of_a_table():
    table = np.random.default_rng(2).integers(0, 3, size=(200, 3)).astype(np.uint8)
    rows, first = measure.first_occurrences(table)
    for count in (1, 5, 40, 200):
        assert (first < count).sum() == len({tuple(row) for row in table[:count]})
    assert (table[first] == rows).all()


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


@pytest.mark.parametrize("bits", [1, 2])
def test_search_on_a_grid_finds_what_enumeration_finds(model, bits):
    """All prompts of a small set are decoded; the search must reach the longest accessible beginning, never more."""
    k, m = 3, 2
    basis = 3 * torch.randn(k, 8, generator=torch.Generator().manual_seed(5))
    values = tasks.grid(bits)
    places = tasks.grid_prompts(torch.arange(len(values) ** (k * m)), k, m, values)
    everything = measure.greedy(model, places @ basis, 6)
    strings = language.random_strings(12, 6, 5, generator=torch.Generator().manual_seed(6))
    exact = torch.stack([(everything == t).long().cumprod(1).sum(1).max() for t in strings])
    fit = tune.longest_prefix_on_grid(
        model, strings, m, basis, values, chains=8, steps=80, generator=torch.Generator().manual_seed(7)
    )
    assert (fit.lengths <= exact).all()
    assert (fit.lengths == exact).float().mean() >= 0.9
    decoded = measure.greedy(model, fit.prompts, 6)
    assert ((decoded == strings).long().cumprod(1).sum(1) >= fit.lengths).all()
    coordinates = fit.prompts @ torch.linalg.pinv(basis)
    assert torch.isclose(coordinates[..., None], values, atol=1e-4).any(-1).all()


def test_search_on_a_grid_refuses_what_does_not_fit(model):
    strings = torch.zeros(1, 3, dtype=torch.long)
    arguments = dict(chains=1, steps=1, generator=torch.Generator())
    with pytest.raises(ValueError, match="a basis \\[k, 8\\] and at least two values"):
        tune.longest_prefix_on_grid(model, strings, 1, torch.zeros(2, 7), tasks.grid(1), **arguments)
    with pytest.raises(ValueError, match="m must be an integer >= 1, not 0"):
        tune.longest_prefix_on_grid(model, strings, 0, torch.zeros(2, 8), tasks.grid(1), **arguments)
    with pytest.raises(ValueError, match="string 0 has the token 5"):
        tune.longest_prefix_on_grid(model, strings + 5, 1, torch.zeros(2, 8), tasks.grid(1), **arguments)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_the_first_token_needs_the_constant_of_the_prompts_own_stream(norm):
    """Before the first letter logits are read at a prompt vector, which moves itself: Λ must cover that, too."""
    config = TransformerConfig(d=4, q=3, depth=1, heads=1, norm=norm, norm_eps=0.1, causal=True)
    frozen = Transformer(config, generator=torch.Generator().manual_seed(0)).double()
    frozen.blocks[0].output.mul_(0.01)  # attention hardly writes: strings after the first letter hardly see the prompt
    weights = measure.numpy_weights(frozen)
    arguments = dict(radius=1.0, query_radius=float(frozen.embedding.norm(dim=1).max()))
    proved = bounds.network_lipschitz(config, weights, read_prompt=True, **arguments)
    generator = torch.Generator().manual_seed(1)
    prompts = measure.into_ball(torch.randn(200, 2, 4, generator=generator, dtype=torch.float64), 1.0)
    prompts = prompts.requires_grad_()
    logits = frozen.stream(prompts)[:, -1]
    gradients = [torch.autograd.grad(logits[:, c].sum(), prompts, retain_graph=True)[0] for c in range(3)]
    steepest = max(float(g.norm(dim=-1).sum(-1).max()) for g in gradients)
    assert steepest <= proved
    assert steepest > bounds.network_lipschitz(config, weights, **arguments)
