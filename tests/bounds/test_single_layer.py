"""Theorem 13: floors against brute force and against tuned prompts, labelings against Warren's theorem."""

import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds, measure, tasks, tune
from prompt_memory.network.shared_token import shared_texts, shared_token_data
from prompt_memory.network.transformer import TransformerConfig

torch.set_num_threads(1)
# torch's own forward-mode rules are compiled by what torch itself has declared deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def network(seed=0, **architecture):
    generator = torch.Generator().manual_seed(seed)
    return tasks.generic_instance(TransformerConfig(**architecture), 1, 1, generator=generator)[0], generator


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


ONE = dict(d=9, q=5, heads=1, d_k=4, d_v=5)


# --- floors ----------------------------------------------------------------------------------------------------------


def test_two_sequence_floor_is_the_minimum_over_mass_and_value():
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(40):
        masses, logits, targets = rng.uniform(0.1, 3, 2), rng.normal(size=(2, 3)), 2 * rng.normal(size=(2, 3))
        error, mass = bounds.two_sequence_floor(masses, logits, targets)
        kinds.add("0" if mass == 0 else "inf" if mass == math.inf else "inside")
        # least squares for ν at each mass of a fine grid: F(P; X_i) = (ν + Z_i F_i)/(Z + Z_i)
        grid = np.r_[0.0, np.logspace(-6, 6, 4001)]
        beta = 1 / (grid[:, None] + masses)
        rest = targets - (beta * masses)[..., None] * logits
        nu = (beta[..., None] * rest).sum(1) / (beta**2).sum(1, keepdims=True)
        errors = ((beta[..., None] * nu[:, None] - rest) ** 2).sum((1, 2))
        assert error <= errors.min() + 1e-9
        assert error >= errors.min() * (1 - 1e-4)
        assert bounds.two_sequence_floor(7 * masses, logits, targets)[0] == pytest.approx(error)
    assert kinds == {"0", "inf", "inside"}


def test_a_swap_costs_half_the_squared_distance_whatever_the_masses():
    rng = np.random.default_rng(4)
    for masses in (*rng.uniform(0.01, 5, (20, 2)), [1e-3, 1e3]):
        logits = rng.normal(size=(2, 3))
        error, mass = bounds.two_sequence_floor(masses, logits, logits[::-1])
        assert error == pytest.approx(((logits[0] - logits[1]) ** 2).sum() / 2, rel=1e-12)
        assert mass == math.inf
    # in a network whose texts weigh differently: search stops there
    model, generator = network(13, **ONE)
    contents, read = normal(generator, 2, 9), normal(generator, 9)
    logits, masses, _ = measure.without_prompt(model, contents, read)
    assert masses.max() > 2 * masses.min()
    queries, y = shared_texts(contents, read), logits.flip(0)
    errors = tune.levenberg_marquardt(model, queries, y.expand(4, -1, -1), normal(generator, 4, 3, 9), steps=60).error
    errors = errors * y.numel()
    floor = (logits[0] - logits[1]).square().sum() / 2
    assert floor * (1 - 1e-12) <= errors.min() < 1.01 * floor


def test_equal_mass_floor_is_the_minimum_over_a_grid_and_closed_forms():
    rng = np.random.default_rng(1)
    values, targets = rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 4))
    error, best = bounds.equal_mass_floor(values, targets)
    grid = np.linspace(0, 1, 201)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    centred, goal = values - values.mean(0), targets - targets.mean(0)
    left = a[..., None, None] * centred[:, 0] + b[..., None, None] * centred[:, 1]
    errors = ((left - goal) ** 2).sum((2, 3))
    assert error <= errors.min() + 1e-12
    assert error >= errors.min() - 1e-2
    one = values[:, :1]
    for n in (2, 3):  # swap and circle: the same answer for all is best
        answers = one[:n, 0]
        error, best = bounds.equal_mass_floor(one[:n], np.roll(answers, 1, 0))
        assert error == pytest.approx(((answers - answers.mean(0)) ** 2).sum())
        assert best == pytest.approx(0)
    # and for two texts the general formula agrees with equal masses
    two = bounds.two_sequence_floor([2.0, 2.0], values[:2, 0], targets[:2])[0]
    assert two == pytest.approx(bounds.equal_mass_floor(values[:2, :1], targets[:2])[0])


def test_no_prompt_is_below_the_floor_and_one_token_reaches_it():
    model, generator = network(5, **ONE)
    contents, read = shared_token_data(model, 2, generator=generator)
    logits, _, values = measure.without_prompt(model, contents, read)
    assert (logits - (read @ model.unembedding + values.sum(1))).abs().max() < 1e-12
    assert (logits - model(contents[:, None], read[None, None])[:, 0]).abs().max() < 1e-12
    y, queries = logits.flip(0), shared_texts(contents, read)
    floor, _ = bounds.equal_mass_floor(values.numpy(), y.numpy())
    assert floor == pytest.approx((logits[0] - logits[1]).square().sum().item() / 2)
    for m in (1, 20):
        start = normal(generator, 4, m, 9)
        prompts, errors, _ = tune.levenberg_marquardt(model, queries, y.expand(4, -1, -1), start, steps=60)
        again = (model(prompts, queries) - y).square().sum((1, 2))
        errors = errors * y.numel()
        assert torch.allclose(errors, again)
        assert floor * (1 - 1e-12) <= errors.min() < 1.01 * floor


def test_low_rank_floor_is_eckart_young():
    rng = np.random.default_rng(2)
    changes = rng.normal(size=(4, 6))
    U, S, Vt = np.linalg.svd(changes, full_matrices=False)
    for rank in range(5):
        best = (U[:, :rank] * S[:rank]) @ Vt[:rank]
        assert bounds.low_rank_floor(changes, rank) == pytest.approx(((changes - best) ** 2).sum(), abs=1e-12)
        factors = rng.normal(size=(200, 4, rank)) @ rng.normal(size=(200, rank, 6))
        assert ((factors - changes) ** 2).sum((1, 2)).min() >= bounds.low_rank_floor(changes, rank) - 1e-12


# --- labelings -------------------------------------------------------------------------------------------------------


def test_bits_for_several_heads_are_warrens_and_never_more_than_all():
    assert bounds.shared_token_bits(5, 2, 1) == pytest.approx(math.log2(6))
    for n, q, heads in ((2, 2, 2), (6, 2, 2), (30, 2, 2), (200, 3, 4)):
        s, v = n * q * (q - 1) / 2, heads * q
        warren = v * math.log2(4 * math.e * heads * s / v) if s >= v else math.inf
        assert bounds.shared_token_bits(n, q, heads) == pytest.approx(min(n * math.log2(q), warren))
    assert bounds.shared_token_bits(30, 2, 2) < 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.shared_token_labelings(0, 2), "^n must be"),
        (lambda: bounds.shared_token_labelings(3, 1), "^q, the number of classes"),
        (lambda: bounds.two_sequence_floor([1, 0], np.ones((2, 3)), np.ones((2, 3))), "masses"),
        (lambda: bounds.two_sequence_floor([1, 1], np.ones((2, 3)), np.ones((2, 2))), "two masses"),
        (lambda: bounds.two_sequence_floor([1, 1], np.ones((2, 3)), np.full((2, 3), np.nan)), "finite"),
        (lambda: bounds.equal_mass_floor(np.ones((2, 3)), np.ones((2, 3))), "needed"),
        (lambda: bounds.equal_mass_floor(np.full((2, 1, 3), np.inf), np.ones((2, 3))), "finite"),
        (lambda: bounds.low_rank_floor(np.ones((2, 3)), -1), "rank"),
        (lambda: bounds.low_rank_floor(np.ones(3), 1), "matrix"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
