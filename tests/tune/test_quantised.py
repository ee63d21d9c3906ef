"""Prompts on a grid have the recall returned, search never lowers it, and small cases are compared with all prompts."""

import itertools

import numpy as np
import pytest
import torch
from tuning import seeded

from prompt_memory import measure, tasks, tune
from prompt_memory.network.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)

M = 2


def labelled(n=8, d=3, q=3, runs=40, bits=2, seed=1):
    generator = seeded(seed)
    model = Transformer(TransformerConfig(d=d, q=q, depth=2, positions="learned"), generator=generator)
    queries = torch.randn(n, d, generator=generator)
    return model, queries, tasks.random_labels(runs, n, q, generator=generator), tasks.grid(bits)


def tuned(steps, sweeps, seed=0, radius=1.0, **sizes):
    model, queries, labels, values = labelled(**sizes)
    values = values * radius
    found = tune.quantised(model, queries, labels, values, M, steps=steps, sweeps=sweeps, generator=seeded(seed))
    return found, model, queries, labels, values


@pytest.mark.parametrize(("steps", "sweeps"), [(0, 0), (15, 0), (0, 2), (15, 2)])
@pytest.mark.parametrize(("bits", "radius"), [(1, 1.0), (2, 3.0), (3, 0.3)])
def test_prompts_lie_on_the_grid_and_have_the_recall_returned(bits, radius, steps, sweeps):
    found, model, queries, labels, values = tuned(steps, sweeps, bits=bits, radius=radius)
    assert found.prompts.shape == (40, M, 3)
    assert set(found.prompts.flatten().tolist()) <= set(values.tolist())
    assert len(found.prompts.unique()) == len(values)
    runs = zip(found.prompts, labels, strict=True)
    again = [(model(p[None], queries)[0].argmax(-1) == y).double().mean() for p, y in runs]
    assert found.recall.tolist() == pytest.approx([share.item() for share in again])


def test_coordinate_search_never_lowers_recall():
    for seed in range(3):
        recalls = [tuned(10, sweeps, seed=seed)[0].recall for sweeps in range(4)]
        for before, after in itertools.pairwise(recalls):
            assert (after >= before).all()
        assert (recalls[1] > recalls[0]).any()


def test_gradients_find_more_than_chance_before_any_search():
    start, trained = (tuned(steps, 0)[0].recall for steps in (0, 25))
    assert (trained >= start).all()  # the best prompt of a run is kept
    assert trained.mean() > start.mean() + 0.05


def test_the_generator_decides_everything():
    one, two, other = tuned(10, 1)[0], tuned(10, 1)[0], tuned(10, 1, seed=1)[0]
    assert torch.equal(one.prompts, two.prompts)
    assert not torch.equal(one.prompts, other.prompts)


@pytest.mark.parametrize(("bits", "d", "q"), [(1, 3, 2), (1, 4, 3), (2, 2, 2)])
def test_no_tuned_prompt_beats_all_prompts_and_most_are_as_good(bits, d, q):
    found, model, queries, labels, values = tuned(40, 3, bits=bits, d=d, q=q, runs=80)
    table = measure.behaviours(
        model, lambda numbers: tasks.grid_prompts(numbers, d, M, values), len(values) ** (d * M), queries
    )
    best = measure.best_recall(table, labels, q)
    recall = found.recall.numpy()
    assert (recall <= best + 1e-6).all()
    assert (recall >= best - 1e-6).mean() > 0.6
    assert np.mean(best - recall) < 0.06
