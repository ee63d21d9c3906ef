"""Least squares: the step is the damped Gauss–Newton step, nothing gets worse, and planted targets are solved."""

import itertools
import math

import pytest
import torch
from tuning import poisoned, seeded

from prompt_memory import bounds, tasks, tune
from prompt_memory.network.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)
# torch's own forward-mode derivatives still use it
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CONFIG = TransformerConfig(d=4, q=4, depth=2, heads=2, mlp=8, norm="rms", norm_eps=0.1)
M = 2  # prompt tokens: D_eff = 8


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


@pytest.mark.parametrize("N", [3, 8, 20])  # fewer outputs than numbers, as many, more
def test_the_step_is_the_damped_gauss_newton_step(N):
    generator = torch.Generator().manual_seed(N)
    A, start = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, 8), (4, 8)))
    targets = torch.randn(4, N, generator=generator, dtype=torch.float64)
    fit = tune.least_squares(lambda p: p @ A.T, targets, start, steps=1)
    residual = start @ A.T - targets
    wanted = start - torch.linalg.solve(A.T @ A + 1e-2 * torch.eye(8, dtype=torch.float64), (residual @ A).T).T
    assert fit.steps.tolist() == [1] * 4
    torch.testing.assert_close(fit.prompts, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fit.error, (wanted @ A.T - targets).square().mean(1), rtol=1e-6, atol=1e-12)


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
    dimension = bounds.effective_dimension(config, M, rank_checked=True)
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
