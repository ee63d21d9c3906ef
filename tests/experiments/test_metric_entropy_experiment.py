"""Chapter 2's experiment: readers, grids, and the sentence on depth."""

import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds, measure
from prompt_memory.experiments import metric_entropy
from prompt_memory.experiments import metric_entropy_labelings as labelings
from prompt_memory.network.transformer import Transformer, TransformerConfig


@metric_entropy.doubles()
def test_the_reader_of_one_number_memorises_all_that_fits():
    model = labelings.reader(1)
    assert math.isclose(metric_entropy.constant(model, query_radius=1.0), 1)
    prompts, _ = labelings.fine_prompts(1, 1, 1025)
    shown = measure.labels_and_gaps(model, prompts, labelings.thresholds(model, 8), own_token=False)
    assert (measure.best_margins(*shown) > 2 * 0.999 / 8).sum() == 9 == math.ceil(8 / 0.999)


@pytest.mark.parametrize(("d", "m", "count"), [(1, 1, 101), (1, 2, 2500), (2, 1, 2500)])
@metric_entropy.doubles()
def test_a_grid_covers_its_balls(d, m, count):
    prompts, cover = labelings.fine_prompts(d, m, count)
    assert 0.8 * count <= len(prompts) <= 1.2 * count
    others = metric_entropy.vectors(200, m, d, radius=1.0, generator=torch.Generator().manual_seed(0))
    distances = (others[:, None] - prompts).norm(dim=-1).amax(-1).amin(1)
    assert prompts.norm(dim=-1).max() <= 1 + 1e-12
    assert distances.max() <= cover


@metric_entropy.doubles()
def test_the_recursion_never_loses_against_the_product_form():
    config = TransformerConfig(d=6, q=3, depth=2, heads=2, mlp=8, norm="rms", norm_eps=0.1)
    model = Transformer(config, generator=torch.Generator().manual_seed(1)).double()
    refined = bounds.network_lipschitz(config, measure.numpy_weights(model), radius=1.0, query_radius=1.0)
    assert metric_entropy.product_form(model) >= refined


@pytest.mark.parametrize(("worth", "start"), [((4, 20), "From 2 layers on"), ((4, 8), "At the largest depth")])
def test_the_sentence_on_depth_follows_the_constants(worth, start):
    networks = {
        (norm, depth): [metric_entropy.Slopes(0.1 * (2**bits - 1), 1.0)]
        for norm in metric_entropy.NORMS for depth, bits in enumerate(worth, 1)
    }  # fmt: skip
    result = metric_entropy.Result((1,), (1, 2), (4,), networks=networks)
    assert metric_entropy.vacuous(result).startswith(start)


def test_outside_the_experiment_torch_keeps_its_type():
    before = torch.get_default_dtype()
    with metric_entropy.doubles():
        assert torch.zeros(1).dtype == torch.float64
    assert torch.get_default_dtype() == before


def test_the_channel_has_no_less_than_no_bits():
    grid = labelings.Grid(1, 3, 1.0, 1.0, 0.1, np.zeros((1, 1), np.uint8), np.zeros((1, 1)), np.full(3, 1e-9))
    assert grid.channel(1.0) == 0
