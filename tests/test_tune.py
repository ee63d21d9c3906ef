"""Tuning: what is returned is what was scored, nothing gets worse, and small cases are compared with all prompts."""

import itertools
import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds, measure, tasks, tune
from prompt_memory.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)
# torch's own forward-mode derivatives still use it
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CONFIG = TransformerConfig(d=4, q=4, depth=2, heads=2, mlp=8, norm="rms", norm_eps=0.1)
M = 2  # prompt tokens: D_eff = 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Levenberg–Marquardt -------------------------------------------------------------------------------------------


def problem(n, tables=6, noise=1e-3, config=CONFIG, seed=0):
    generator = seeded(seed)
    model = Transformer(config, generator=generator).double()
    queries = tasks.random_queries(n, config.d, generator=generator).double()
    targets, _ = tasks.planted_targets(model, queries, m=M, tables=tables, noise=noise, generator=generator)
    return model, queries, targets, torch.randn(tables, M, config.d, generator=generator).double()


def mean_squared_error(model, queries, targets, prompts):
    return torch.stack(
        [(model(p[None], queries)[0] - y).square().mean() for p, y in zip(prompts, targets, strict=True)]
    )


@pytest.mark.parametrize("steps", [0, 1, 7, 60])
def test_the_error_is_that_of_the_prompts_returned(steps):
    model, queries, targets, start = problem(3)
    untouched = start.clone()
    fit = tune.levenberg_marquardt(model, queries, targets, start, steps=steps)
    assert torch.equal(start, untouched)
    torch.testing.assert_close(
        fit.error, mean_squared_error(model, queries, targets, fit.prompts), rtol=1e-6, atol=1e-27
    )
    assert (fit.steps <= steps).all()
    assert torch.equal(fit.prompts, start) == (steps == 0)


def test_runs_of_a_batch_do_not_know_of_each_other():
    model, queries, targets, start = problem(1)
    start[2] = tune.levenberg_marquardt(model, queries, targets, start).prompts[2]  # is finished before it begins
    batch = tune.levenberg_marquardt(model, queries, targets, start, steps=12, solved=1e-12)
    assert len(set(batch.steps.tolist())) >= 3
    assert batch.steps[2] == 0
    for r in range(len(start)):
        single = tune.levenberg_marquardt(model, queries, targets[r : r + 1], start[r : r + 1], steps=12, solved=1e-12)
        assert single.steps[0] == batch.steps[r]
        torch.testing.assert_close(single.prompts[0], batch.prompts[r], rtol=1e-6, atol=1e-6)


def test_no_step_makes_it_worse_and_bad_steps_are_refused():
    model, queries, targets, start = problem(4, seed=1)
    history = [tune.levenberg_marquardt(model, queries, targets, start, steps=k) for k in range(16)]
    refused = 0
    for before, after in itertools.pairwise(history):
        assert (after.error <= before.error).all()
        stayed = (after.prompts == before.prompts).flatten(1).all(1)
        assert torch.equal(stayed, after.error == before.error)
        refused += (stayed & (after.steps > before.steps)).sum().item()
    assert refused > 0
    assert (history[-1].error < history[0].error).all()


@pytest.mark.parametrize(
    ("n", "c", "norm_eps", "depth", "reachable"),
    [
        (3, 2, 0.1, 2, True),  # 6 of 8
        (1, 4, 0.1, 2, True),
        (5, 2, 0.1, 2, False),  # 10 of 8
        (3, 4, 0.1, 2, False),
        (2, 2, 0.0, 1, True),  # 4 of 6: one layer of RMSNorm loses a coordinate of each token
        (4, 2, 0.0, 1, False),  # 8 of 6
    ],
)
def test_planted_targets_are_solved_below_the_effective_dimension_only(n, c, norm_eps, depth, reachable):
    config = TransformerConfig(d=4, q=c, depth=depth, heads=2, mlp=8, norm="rms", norm_eps=norm_eps)
    dimension = bounds.effective_dimension(config, M)
    assert (n * c <= 0.75 * dimension) if reachable else (n * c >= 1.25 * dimension)
    model, queries, targets, _ = problem(n, tables=4, config=config)
    start = torch.randn(4 * 12, M, 4, generator=seeded(5)).double()
    fit = tune.levenberg_marquardt(
        model, queries, targets.repeat_interleave(12, 0), start, steps=200 if reachable else 80
    )
    best = fit.error.unflatten(0, (4, 12)).amin(1)
    if reachable:
        assert (best < 1e-24).all()
    else:
        assert (best > 1e-12).all()


def test_solved_runs_stop_and_stuck_runs_lose_patience():
    model, queries, targets, start = problem(1)
    fit = tune.levenberg_marquardt(model, queries, targets, start)
    assert (fit.error <= 1e-26).any()
    assert (fit.steps[fit.error <= 1e-26] < 200).all()
    loose = tune.levenberg_marquardt(model, queries, targets, start, solved=1e-4)
    assert (loose.steps <= fit.steps).all()
    assert (loose.steps < fit.steps).any()
    assert (loose.error[fit.error <= 1e-26] <= 1e-4).all()
    model.unembedding.zero_()  # nothing can be done
    stuck = tune.levenberg_marquardt(model, queries, targets, start, patience=9)
    assert stuck.steps.tolist() == [9] * len(start)
    assert torch.equal(stuck.prompts, start)


def test_a_prompt_with_unread_coordinates_is_still_fitted():
    model, queries, targets, start = problem(1, config=TransformerConfig(d=4, q=4))
    for weight in (model.blocks[0].key, model.blocks[0].value):
        weight[3] = 0
    targets, _ = tasks.planted_targets(model, queries, m=M, tables=6, noise=0, generator=seeded(3))
    fit = tune.levenberg_marquardt(model, queries, targets, start)
    assert (fit.error < 1e-24).any()
    torch.testing.assert_close(fit.prompts[:, :, 3], start[:, :, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, x, y, p: (f, x, y[:4], p), "4 target tables for 6 starting prompts: give one table a run"),
        (lambda f, x, y, p: (f, x, y * math.nan, p), "targets, starting prompts and queries must be finite"),
        (lambda f, x, y, p: (f, x, y, p / 0), "targets, starting prompts and queries must be finite"),
        (lambda f, x, y, p: (f, x * math.nan, y, p), "finite"),
        (lambda f, x, y, p: (f, x, y[:, :2], p), "target"),
        (lambda f, x, y, p: (f, x, y[:, :1, :1], p), "target"),
        (lambda f, x, y, p: (f, x, y.mT, p), "target"),
        (lambda f, x, y, p: (f, x, y, p[:, :, :3]), "prompts must have the shape"),
        (lambda f, x, y, p: (poisoned(f), x, y, p), "the weight embedding holds NaN or infinite entries"),
    ],
)
def test_bad_input_gets_one_sentence(change, message):
    with pytest.raises(ValueError, match=message) as error:
        tune.levenberg_marquardt(*change(*problem(3)), steps=1)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def poisoned(model):
    model.embedding[0, 0] = math.nan
    return model


# --- prompts on a grid ---------------------------------------------------------------------------------------------


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
