"""Chapter 3's experiment: what its sentences are chosen from."""

import numpy as np
import pytest
import torch

from prompt_memory import measure, tasks
from prompt_memory.experiments import dimension, dimension_figures
from prompt_memory.network.transformer import TransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def cliff(sizes, solved) -> dimension.Cliff:
    """A network with D_eff = 10 and one table at each size, solved or not."""
    errors = np.where(solved, 1e-30, 1e-4)[:, None]
    return dimension.Cliff(TransformerConfig(d=4, q=1), 3, 10, np.array(sizes), errors)


def test_the_reach_is_that_of_the_worst_network_and_ends_at_its_first_failure():
    result = dimension.Result(cliffs={
        "far": cliff([5, 8, 10, 15], [True, True, True, False]),
        "near": cliff([5, 8, 10, 15], [True, False, True, False]),
    })  # fmt: skip
    assert dimension_figures.reach(result) == 0.5
    result.cliffs["none"] = cliff([5, 8], [False, True])
    assert dimension_figures.reach(result) == 0


def test_beyond_the_dimension_a_table_must_be_closer_to_be_solved():
    case = dimension.Cliff(TransformerConfig(d=4, q=1), 3, 10, np.array([10, 11]), np.full((2, 1), 1e-27))
    assert case.solved.tolist() == [1, 0]


def test_a_power_law_has_its_exponent_and_no_width():
    sizes = 2 ** np.arange(2, 8)
    case = dimension.Density(TransformerConfig(d=2), 1, 2, sizes, np.array([sizes**2, 3 * sizes**2]), 10**9)
    assert np.isclose(case.exponent, 2)
    assert np.isclose(case.width, 0)
    few = dimension.Density(TransformerConfig(d=2), 1, 2, sizes, np.array([sizes**2, sizes**2]), 32 * 64)
    assert few.shown.tolist() == [True, True, False, False, False, False]


def test_the_kernel_of_one_layer_is_what_nothing_reads():
    config = TransformerConfig(d=6, q=2, heads=2, d_k=1, d_v=3)
    g = torch.Generator().manual_seed(0)
    model, prompt, queries = tasks.generic_instance(config, m=2, n=40, generator=g)
    reads = dimension.read_directions(model)
    seen = int(torch.linalg.matrix_rank(reads))
    assert reads.shape == (2 * (1 + 2), 6)
    assert measure.jacobian_rank(model, prompt, queries) == 2 * seen


def test_every_listed_and_drawn_architecture_says_how_it_is_read():
    rng = np.random.default_rng(0)
    cases = [case for listed in dimension.families().values() for case in listed]
    for case in cases + [dimension.random_case(rng) for _ in range(50)]:
        assert set(case.how) == {"tuning", "read", "own_token"}
        assert case.config.q == case.config.d + 1
