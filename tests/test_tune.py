"""Tuning: what is returned is what was scored, nothing gets worse, and small cases are compared with all prompts."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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


def test_adam_for_runs_of_different_age_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(5, 2, 1, 3, generator=generator, dtype=torch.float64)
    wanted = []
    for run, delay in ((0, 0), (1, 2)):  # the second run joins after two steps
        point = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([point], lr=1.0, betas=tune.BETAS)
        for slope in slopes[delay:, run]:
            point.grad = slope
            adam.step()
        wanted.append(point.detach())
    first = second = point = torch.zeros(2, 1, 3, dtype=torch.float64)
    for step, slope in enumerate(slopes):
        age = torch.tensor([step + 1, max(1, step - 1)], dtype=torch.float64)[:, None, None]
        running = torch.tensor([True, step >= 2])[:, None, None]
        direction, *moments = tune.adam_direction(slope, first, second, age, tune.BETAS)
        first, second = (torch.where(running, new, old) for new, old in zip(moments, (first, second), strict=True))
        point = torch.where(running, point - direction, point)
    torch.testing.assert_close(point, torch.stack(wanted))


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


# --- strings: the slow search --------------------------------------------------------------------------------------

READER = TransformerConfig(
    d=16, q=4, heads=2, mlp=32, activation="relu", norm="layer", causal=True, positions="learned", context=9
)
SEARCH = {"steps": 30, "learning_rate": 0.5, "scale": 1.0, "margin": 1e-3}


def reader(dtype=torch.float64, config=READER, seed=0):
    return Transformer(config, generator=seeded(seed)).to(dtype)


def some_strings(count, n, q=4, seed=1):
    return torch.randint(q, (count, n), generator=seeded(seed))


def slow_logits(model, prompt, string):
    """The logits of the tokens of one string, [n, q], by `forward`: the last prompt vector is the first query token."""
    query = torch.cat([prompt[-1:], model.embedding[string[:-1]]])
    return model(prompt[None, :-1], query[None], read="all")[0, 0]


def slow_margins(model, prompt, string):
    rows = zip(slow_logits(model, prompt, string).tolist(), string.tolist(), strict=True)
    return torch.tensor([row[token] - max(row[:token] + row[token + 1 :]) for row, token in rows])


def slow_descent(model, prompt, string, aim, *, steps, learning_rate, margin, **_):
    """One run with torch's Adam: yields the age, prompt and margins of each evaluation; asks for the next aim."""
    prompt, age = prompt.clone(), 0
    moving = prompt.requires_grad_()
    adam = torch.optim.Adam([moving], betas=(0.8, 0.95), eps=1e-8)
    while age <= steps:
        seen = slow_margins(model, moving, string[:aim])
        next_aim = yield age, moving.detach().clone(), seen
        if next_aim != aim:  # a new run from here
            aim, age = next_aim, 0
            adam = torch.optim.Adam([moving], betas=(0.8, 0.95), eps=1e-8)
            continue
        chosen = slow_logits(model, moving, string[:aim]).log_softmax(-1)
        cost = -torch.stack([row[token] for row, token in zip(chosen, string[:aim].tolist(), strict=True)])
        (moving.grad,) = torch.autograd.grad((cost * cost.detach().clamp(max=3)).sum(), moving)
        adam.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * age / max(1, steps))) / 2
        adam.step()
        age += 1


def slow_cram(model, string, m, *, restarts, seed=0, **search):
    """(prompt, success, steps, evaluations) of one string, run after run."""
    n, best, kept, evaluations = len(string), -1, None, 0
    for start in range(restarts):
        run = slow_descent(model, tune._start(string, start, m, model, search["scale"], seed), string, n, **search)
        evaluation = next(run)
        while evaluation is not None:
            age, prompt, seen = evaluation
            evaluations += 1
            right = int((seen > search["margin"]).sum())
            if right > best:
                best, kept = right, prompt
            if right == n:
                return kept, True, age, evaluations
            try:
                evaluation = run.send(n)
            except StopIteration:
                break
    return kept, False, search["steps"], evaluations


def slow_longest(model, string, m, *, restarts, seed=0, **search):
    """(prompt, length, evaluations) of one string, run after run."""
    length, kept, evaluations = 0, torch.zeros(m, model.config.d, dtype=torch.float64), 0
    for start in range(restarts):
        begin = tune._start(string, start, m, model, search["scale"], seed)
        run = slow_descent(model, begin, string, length + 1, **search)
        evaluation = next(run)
        while evaluation is not None:
            _, prompt, seen = evaluation
            evaluations += 1
            if (seen > search["margin"]).all():
                length, kept = len(seen), prompt
            if length == len(string):
                return kept, length, evaluations
            try:
                evaluation = run.send(length + 1)
            except StopIteration:
                break
    return kept, length, evaluations


def watch(monkeypatch, model, m):
    """A list that gets the prompts of every pass of the search, [r, m, d] each, but not those of decoding."""
    seen, stream = [], model.stream

    def wrapped(x):
        if torch.is_grad_enabled():
            seen.append(x.detach()[:, :m].clone())
        return stream(x)

    monkeypatch.setattr(model, "stream", wrapped)
    return seen


@pytest.mark.parametrize(("norm", "m", "n", "q"), [("layer", 2, 3, 4), ("none", 3, 4, 6), ("rms", 2, 1, 4)])
def test_cramming_is_the_slow_search(monkeypatch, norm, m, n, q):
    model, strings = reader(config=replace(READER, norm=norm, q=q)), some_strings(9, n, q)
    seen = watch(monkeypatch, model, m)
    search = SEARCH | {"restarts": 2, "steps": 20}
    found = tune.cram(model, strings, m, batch=5, **search)
    evaluations = 0
    for row, string in enumerate(strings):
        prompt, success, steps, count = slow_cram(model, string, m, **search)
        assert (bool(found.success[row]), int(found.steps[row])) == (success, steps)
        torch.testing.assert_close(found.prompts[row], prompt, rtol=1e-7, atol=1e-7)
        evaluations += count
    assert sum(map(len, seen)) == evaluations  # and it does nothing else
    assert max(map(len, seen)) == 5
    assert (found.prompts.dtype, found.success.dtype, found.steps.dtype) == (torch.float64, torch.bool, torch.long)
    if norm == "layer":
        assert 0 < found.success.sum() < 9


def test_growing_is_the_slow_search(monkeypatch):
    model, strings = reader(), some_strings(6, 5)
    seen = watch(monkeypatch, model, 2)
    search = SEARCH | {"restarts": 2, "steps": 10}
    found = tune.longest_prefix(model, strings, 2, batch=4, **search)
    evaluations = 0
    for row, string in enumerate(strings):
        prompt, length, count = slow_longest(model, string, 2, **search)
        assert int(found.lengths[row]) == length
        torch.testing.assert_close(found.prompts[row], prompt, rtol=1e-7, atol=1e-7)
        evaluations += count
    assert sum(map(len, seen)) == evaluations
    assert len(found.lengths.unique()) > 2


# --- strings: batches ----------------------------------------------------------------------------------------------


def trajectories(monkeypatch, strings, batch, steps, dtype):
    """The prompts of every run at every step, [steps + 1, S, m, d], none of which can succeed."""
    model = reader(dtype)
    with monkeypatch.context() as patch:
        seen = watch(patch, model, 2)
        found = tune.cram(model, strings, 2, restarts=1, **SEARCH | {"steps": steps, "margin": 1e9}, batch=batch)
    assert not found.success.any()
    assert len(seen) == (steps + 1) * math.ceil(len(strings) / batch)
    rounds = [torch.stack(seen[first : first + steps + 1]) for first in range(0, len(seen), steps + 1)]
    return torch.cat(rounds, 1)


@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [(torch.float32, 1, 1e-5), (torch.float64, 20, 1e-9)])
def test_batched_is_looped(monkeypatch, dtype, steps, tolerance):
    strings = some_strings(13, 6)
    batched = trajectories(monkeypatch, strings, 13, steps, dtype)
    assert batched.dtype == dtype
    for batch in (1, 4):
        looped = trajectories(monkeypatch, strings, batch, steps, dtype)
        torch.testing.assert_close(batched, looped, rtol=0, atol=tolerance)
    moved = (batched[1:] - batched[:-1]).abs()
    assert (moved.flatten(1).amax(1)[:-1] > 100 * tolerance).all()


@pytest.mark.parametrize("search", [tune.cram, tune.longest_prefix])
def test_a_string_does_not_know_its_company(search):
    model, strings = reader(), some_strings(7, 4)
    strings[6] = strings[2]
    options = SEARCH | {"restarts": 3, "steps": 20}
    together = search(model, strings, 2, **options)
    order = torch.tensor([4, 6, 0, 2, 1, 3, 5])
    looped = [search(model, string[None], 2, **options) for string in strings]
    others = {
        "in other batches": search(model, strings, 2, batch=2, **options),
        "in other chunks": search(model, strings, 2, chunk=4, **options),
        "alone": [torch.cat(part) for part in zip(*looped, strict=True)],
        "in another order": [part[order.argsort()] for part in search(model, strings[order], 2, **options)],
    }
    for how, other in others.items():
        for part, same in zip(together, other, strict=True):
            torch.testing.assert_close(part, same, rtol=1e-9, atol=1e-9, msg=f"differs {how}")
    torch.testing.assert_close(together.prompts[2], together.prompts[6], rtol=1e-9, atol=1e-9)


def test_finished_runs_leave_and_others_take_their_place(monkeypatch):
    model, strings = reader(), some_strings(20, 3)
    with monkeypatch.context() as patch:
        seen = watch(patch, model, 2)
        found = tune.cram(model, strings, 2, restarts=1, **SEARCH)
    last = found.steps.tolist()
    assert len(set(last)) > 4
    assert [len(rows) for rows in seen] == [sum(step <= end for end in last) for step in range(31)]
    with monkeypatch.context() as patch:
        seen = watch(patch, model, 2)
        again = tune.cram(model, strings, 2, restarts=1, batch=6, **SEARCH)
    assert again.steps.tolist() == last
    assert sum(map(len, seen)) == sum(end + 1 for end in last)
    full = next(k for k in reversed(range(len(seen))) if len(seen[k]) == 6)
    assert {len(rows) for rows in seen[: full + 1]} <= {6}  # a free place is taken at once while strings wait


# --- strings: what is returned -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_prompts_returned_are_those_that_were_scored(monkeypatch, dtype):
    model, strings = reader(dtype), some_strings(12, 3)
    margin = 0.05
    for string in strings:
        with monkeypatch.context() as patch:
            passes = watch(patch, model, 2)
            found = tune.cram(model, string[None], 2, restarts=2, **SEARCH | {"margin": margin})
        seen = torch.cat(passes)
        smallest = slow_margins(model, found.prompts[0], string)
        right = [int((slow_margins(model, prompt, string) > margin).sum()) for prompt in seen]
        assert bool(found.success) == (int((smallest > margin).sum()) == 3)
        assert int((smallest > margin).sum()) == max(right)
        first = right.index(max(right))  # of equals the first
        assert torch.equal(found.prompts[0], seen[first])
        if found.success:
            assert first == len(seen) - 1
            assert int(found.steps) == first % 31  # steps of the run that succeeded, not of those before it
        else:
            assert len(seen) == 62
            assert int(found.steps) == 30


def test_successes_decode_and_failures_do_not():
    for dtype in (torch.float32, torch.float64):
        model, strings = reader(dtype), some_strings(30, 3)
        found = tune.cram(model, strings, 2, restarts=1, **SEARCH)
        decoded = (measure.greedy(model, found.prompts, 3) == strings).all(1)
        assert 3 < found.success.sum() < 27
        assert decoded[found.success].all()
        assert found.steps[found.success].max() <= 30
        assert (found.steps[~found.success] == 30).all()


def test_what_decoding_does_not_confirm_is_no_success(monkeypatch):
    model, strings = reader(), some_strings(12, 3)
    found = tune.cram(model, strings, 2, restarts=1, **SEARCH)
    grown = tune.longest_prefix(model, strings, 2, restarts=1, **SEARCH)
    assert found.success.any()
    assert (grown.lengths == 3).any()

    def other(model, prompts, n):  # decoding that goes astray at the second token
        tokens = measure.greedy(model, prompts, n)
        tokens[:, 1:2] = (tokens[:, 1:2] + 1) % 4
        return tokens

    monkeypatch.setattr(tune, "greedy", other)
    refused = tune.cram(model, strings, 2, restarts=1, **SEARCH)
    assert not refused.success.any()
    assert (refused.steps == 30).all()
    shorter = tune.longest_prefix(model, strings, 2, restarts=1, **SEARCH)
    assert torch.equal(shorter.lengths, grown.lengths.clamp(max=1))
    assert torch.equal(shorter.prompts, grown.prompts)


def test_no_steps_judge_the_starts():
    model = reader()
    strings = torch.cartesian_prod(*[torch.arange(4)] * 2)
    found = tune.cram(model, strings, 2, restarts=1, seed=4, **SEARCH | {"steps": 0})
    starts = torch.stack([tune._start(string, 0, 2, model, 1.0, 4) for string in strings])
    assert torch.equal(found.prompts, starts)
    assert torch.equal(found.success, (measure.greedy(model, starts, 2) == strings).all(1))
    assert 0 < found.success.sum() < 16
    assert found.steps.tolist() == [0] * 16
    longer = tune.cram(model, strings, 2, restarts=1, seed=4, **SEARCH)
    assert torch.equal(longer.steps == 0, found.success)
    assert torch.equal(longer.prompts[found.success], starts[found.success])


def test_restarts_leave_fewer_failures_and_keep_earlier_successes():
    model, strings = reader(), some_strings(24, 3)
    found = [tune.cram(model, strings, 2, restarts=restarts, **SEARCH) for restarts in (1, 2, 4)]
    assert found[2].success.sum() > found[0].success.sum()
    for fewer, more in itertools.pairwise(found):
        assert more.success[fewer.success].all()
        for part, same in zip(fewer, more, strict=True):
            torch.testing.assert_close(part[fewer.success], same[fewer.success], rtol=1e-9, atol=1e-9)


def test_starts_are_normal_and_depend_on_seed_string_and_number_only():
    strings = some_strings(200, 3, seed=8)
    model = reader()

    def starts(model=model, strings=strings, m=2, scale=1.0, **options):
        with pytest.MonkeyPatch.context() as patch:
            seen = watch(patch, model, m)
            tune.cram(model, strings, m, steps=0, margin=1e9, scale=scale, batch=1000, **options)
        return torch.stack(seen)  # [restarts, S, m, d]

    some = starts(restarts=2)
    assert len(some) == 2
    assert some.mean().abs() < 6 / some.numel() ** 0.5
    assert some.std().item() == pytest.approx(1, abs=6 / (2 * some.numel()) ** 0.5)
    distinct = len(torch.unique(strings, dim=0))
    assert len(torch.unique(some.flatten(0, 1).flatten(1), dim=0)) == 2 * distinct
    torch.manual_seed(77)
    torch.testing.assert_close(starts(restarts=1), some[:1])
    torch.testing.assert_close(starts(restarts=1, scale=2.5), 2.5 * some[:1])
    torch.testing.assert_close(starts(model=reader(seed=3), restarts=1), some[:1])
    torch.testing.assert_close(starts(model=reader(torch.float32), restarts=1), some[:1].float())
    assert not torch.isclose(starts(restarts=1, seed=1), some[:1]).any(-1).all()
    state = torch.get_rng_state()
    starts(restarts=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_larger_margin_is_kept():
    model, strings = reader(), some_strings(24, 2)
    for margin in (0.0, 0.3):
        found = tune.cram(model, strings, 2, restarts=1, **SEARCH | {"margin": margin})
        smallest = torch.stack([slow_margins(model, *pair).amin() for pair in zip(found.prompts, strings, strict=True)])
        assert torch.equal(smallest > margin, found.success)
        assert found.success.sum() > 5
        if margin == 0:
            assert (smallest[found.success] < 0.3).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_longest_beginning_decodes_and_the_next_token_does_not(dtype):
    model, strings = reader(dtype), some_strings(20, 6)
    found = tune.longest_prefix(model, strings, 2, restarts=2, **SEARCH)
    assert found.lengths.dtype == torch.long
    assert len(found.lengths.unique()) > 2
    decoded = measure.greedy(model, found.prompts, 6)
    agreed = (decoded == strings).long().cumprod(1).sum(1)
    assert (agreed >= found.lengths).all()
    for string, prompt, length in zip(strings, found.prompts, found.lengths.tolist(), strict=True):
        seen = slow_margins(model, prompt, string)
        assert (seen[:length] > 1e-3).all()
        assert length == 6 or seen[length] <= 1e-3  # else it would have gone on at no cost
    first = tune.longest_prefix(model, strings, 2, restarts=1, **SEARCH)
    assert (found.lengths >= first.lengths).all()
    assert found.lengths.sum() > first.lengths.sum()


def test_growing_without_steps_goes_as_far_as_the_starts_do():
    model, strings = reader(), some_strings(60, 4)
    found = tune.longest_prefix(model, strings, 2, restarts=3, **SEARCH | {"steps": 0})
    reached = []
    for start in range(3):
        prompts = torch.stack([tune._start(string, start, 2, model, 1.0, 0) for string in strings])
        reached.append((measure.greedy(model, prompts, 4) == strings).long().cumprod(1).sum(1))
    assert torch.equal(found.lengths, torch.stack(reached).amax(0))
    assert set(found.lengths.tolist()) >= {0, 1, 2}


def test_growing_reaches_whole_strings_and_may_reach_nothing():
    model, strings = reader(), some_strings(16, 1)
    found = tune.longest_prefix(model, strings, 2, restarts=3, **SEARCH)
    assert found.lengths.tolist() == [1] * 16
    assert torch.equal(measure.greedy(model, found.prompts, 1), strings)
    model.unembedding[:, 2] = model.unembedding[:, 1]  # a tie: these two can never exceed each other
    tied = tune.longest_prefix(model, strings, 2, restarts=2, **SEARCH)
    never = (strings[:, 0] == 1) | (strings[:, 0] == 2)
    assert 0 < never.sum() < 16
    assert torch.equal(tied.lengths == 0, never)


def test_integers_of_any_width_are_token_ids():
    model, strings = reader(), some_strings(6, 3)
    wanted = tune.cram(model, strings, 2, restarts=1, **SEARCH)
    for dtype in (torch.int32, torch.uint8):
        found = tune.cram(model, strings.to(dtype), 2, restarts=1, **SEARCH)
        assert all(torch.equal(part, same) for part, same in zip(found, wanted, strict=True))


def test_the_model_and_the_strings_are_left_alone():
    model, strings = reader(), some_strings(6, 3)
    weights, before = {key: part.clone() for key, part in model.state_dict().items()}, strings.clone()
    found = tune.cram(model, strings, 2, restarts=2, **SEARCH)
    assert torch.equal(strings, before)
    assert all(torch.equal(part, weights[key]) for key, part in model.state_dict().items())
    assert not any(part.requires_grad or part.grad is not None for part in (*model.parameters(), *found))


# --- strings: chunks on disk ---------------------------------------------------------------------------------------

CHUNKED = SEARCH | {"restarts": 2, "chunk": 3}


@pytest.fixture
def searches(monkeypatch):
    """Counts the chunks that are searched rather than read."""
    made, descend = [], tune._descend

    def counted(model, strings, *rest, **options):
        made.append(len(strings))
        return descend(model, strings, *rest, **options)

    counted.__wrapped__ = descend  # its source names the chunk
    monkeypatch.setattr(tune, "_descend", counted)
    return made


def assert_same(one, two):
    assert all(torch.equal(part, other) for part, other in zip(one, two, strict=True))


def test_the_aimed_loss_is_its_formula():
    """min(c, 3)·c for each label before the goal, c = −ln softmax, and its gradient with the factor held fixed."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(5, 6, 3, generator=generator, dtype=torch.float64)
    wanted = torch.randint(3, (5, 6), generator=generator)
    goal = torch.tensor([3, 1, 6, 2, 5])
    moving = logits.clone().requires_grad_()
    loss, won = tune.aimed_loss(moving, wanted, goal, 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), moving)
    capped = 0
    for run in range(5):
        expected = 0.0
        for place in range(6):
            row, label = logits[run, place].tolist(), int(wanted[run, place])
            others = max(x for k, x in enumerate(row) if k != label)
            assert bool(won[run, place]) == (row[label] - others > 0.5)
            if place >= goal[run]:
                assert not gradient[run, place].any()
                continue
            p = [math.exp(x) / sum(map(math.exp, row)) for x in row]
            cost = -math.log(p[label])
            capped += cost > 3
            expected += min(cost, 3) * cost
            slope = [min(cost, 3) * (p[k] - (k == label)) for k in range(3)]
            assert gradient[run, place].tolist() == pytest.approx(slope, rel=1e-9)
        assert loss[run].item() == pytest.approx(expected, rel=1e-12)
    assert capped


@pytest.mark.parametrize("search", [tune.cram, tune.longest_prefix])
def test_a_resumed_search_is_an_uninterrupted_one(tmp_path, searches, search):
    model, strings = reader(torch.float32), some_strings(8, 4)
    whole = search(model, strings, 2, **CHUNKED)
    assert searches == [3, 3, 2]
    assert_same(search(model, strings, 2, directory=tmp_path / "deep" / "er", **CHUNKED), whole)
    files = sorted((tmp_path / "deep" / "er").iterdir())
    assert [path.suffix for path in files] == [".safetensors"] * 3
    for lost in files:
        lost.rename(lost.with_name(lost.name + ".writing"))  # as if it had not been finished
        lost.with_name(lost.name + ".writing").write_bytes(b"half a ch")
        del searches[:]
        assert_same(search(model, strings, 2, directory=str(tmp_path / "deep" / "er"), **CHUNKED), whole)
        assert len(searches) == 1
        assert sorted((tmp_path / "deep" / "er").glob("*.safetensors")) == files
    del searches[:]
    assert_same(search(model, strings, 2, directory=tmp_path / "deep" / "er", **CHUNKED), whole)
    assert searches == []


def test_an_interrupted_search_loses_one_chunk_only(tmp_path, monkeypatch):
    model, strings = reader(torch.float32), some_strings(8, 4)
    whole = tune.cram(model, strings, 2, **CHUNKED)
    stream, passes = model.stream, []

    def interrupted(x):
        passes.append(len(x))
        if torch.equal(x[0, 2:], model.embedding[strings[3, :-1]]) and len(passes) > 40:
            raise KeyboardInterrupt
        return stream(x)

    with monkeypatch.context() as patch:
        patch.setattr(model, "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune.cram(model, strings, 2, directory=tmp_path, **CHUNKED)
    assert len(list(tmp_path.iterdir())) == 1
    assert_same(tune.cram(model, strings, 2, directory=tmp_path, **CHUNKED), whole)


def test_chunks_are_kept_apart_by_everything_that_matters(tmp_path, searches):
    model, strings = reader(torch.float32), some_strings(4, 6)
    options = SEARCH | {"restarts": 1, "steps": 2, "directory": tmp_path}
    changes = [{name: value} for name, value in SEARCH.items() if name != "steps"]
    changed = [{name: 2 * value} for change in changes for name, value in change.items()]
    changed += [{"steps": 3}, {"restarts": 2}, {"seed": 1}, {"batch": 5}]
    other = reader(torch.float32)
    other.blocks[0].down[0, 0] += 1e-3
    calls = [
        lambda: tune.cram(model, strings, 2, **options),
        *(lambda change=change: tune.cram(model, strings, 2, **options | change) for change in changed),
        lambda: tune.longest_prefix(model, strings, 2, **options),
        lambda: tune.cram(model, strings, 3, **options),
        lambda: tune.cram(model, strings.flip(0), 2, **options),
        lambda: tune.cram(model, strings.reshape(6, 4), 2, **options),  # the same numbers
        lambda: tune.cram(model, strings.reshape(3, 8), 2, **options),
        lambda: tune.cram(other, strings, 2, **options),
        lambda: tune.cram(reader(), strings, 2, **options),
        lambda: tune.cram(reader(torch.float32, replace(READER, norm_eps=0.1)), strings, 2, **options),
    ]
    results = [call() for call in calls]
    assert len(list(tmp_path.iterdir())) == len(searches) == len(calls)
    for call, result in zip(calls, results, strict=True):
        assert_same(call(), result)
    assert len(searches) == len(calls)
    tune.cram(model, strings.to(torch.int32), 2, **options)  # is the same
    tune.cram(model, strings, 2, chunk=4, **options)
    assert len(searches) == len(calls)


def test_a_chunk_of_other_code_or_other_threads_is_not_read(tmp_path, searches, monkeypatch):
    model, strings = reader(torch.float32), some_strings(2, 3)
    options = SEARCH | {"restarts": 1, "steps": 2, "directory": tmp_path}
    tune.cram(model, strings, 2, **options)
    with monkeypatch.context() as patch:
        patch.setattr(tune, "BETAS", (0.9, 0.95))
        tune.cram(model, strings, 2, **options)
    assert len(searches) == 2
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 64)
        tune.cram(model, strings, 2, **options)
    assert len(searches) == 3
    with monkeypatch.context() as patch:
        patch.setattr(tune, "_start", lambda *parts, start=tune._start: start(*parts))
        tune.cram(model, strings, 2, **options)
    assert len(searches) == 4
    tune.cram(model, strings, 2, **options)
    assert len(searches) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"nonsense" * 20),
        lambda path: save_file({"prompts": torch.zeros(1)}, path, metadata={"lost": "[]"}),
        lambda path: save_file({name: torch.zeros(1) for name in ("prompts", "lengths", "steps")}, path),
    ],
)
def test_a_damaged_chunk_is_named(tmp_path, damage):
    model, strings = reader(torch.float32), some_strings(4, 3)
    options = CHUNKED | {"directory": tmp_path}
    whole = tune.cram(model, strings, 2, **options)
    path = sorted(tmp_path.iterdir())[0]
    damage(path)
    with pytest.raises(ValueError, match=r"^.*\.safetensors is damaged: delete it and call again$") as error:
        tune.cram(model, strings, 2, **options)
    assert str(path) in str(error.value)
    path.unlink()
    assert_same(tune.cram(model, strings, 2, **options), whole)


# --- strings: losses that are not finite ---------------------------------------------------------------------------


def explosive():
    """A reader whose finite weights overflow once token 3 is read, which the last token of a string never is."""
    model = reader(torch.float32)
    model.embedding[3] = 3e38
    return model.require_finite()


@pytest.mark.parametrize("search", [tune.cram, tune.longest_prefix])
def test_a_loss_that_is_not_finite_names_the_run_and_spares_the_others(tmp_path, searches, search):
    model, strings = explosive(), some_strings(8, 4, q=3)
    strings[1, 3] = strings[4, 1] = strings[6, 2] = 3
    good = torch.tensor([0, 1, 2, 3, 5, 7])
    wanted = search(model, strings[good], 2, **CHUNKED)
    with pytest.raises(tune.NonFiniteLoss) as error:
        search(model, strings, 2, directory=tmp_path, **CHUNKED)
    if search is tune.cram:
        assert error.value.runs == [(4, 0), (4, 1), (6, 0), (6, 1)]
        assert str(error.value) == (
            "the loss is not finite in start 0 of string 4, start 1 of string 4, start 0 of string 6, "
            "start 1 of string 6: lower the learning rate; all other runs finished"
        )
        assert not error.value.result.success[[4, 6]].any()
        assert (error.value.result.steps[[4, 6]] == 30).all()
    else:
        # the overflow is met only where a run reads the token: the tokens before and it itself are found as ever
        assert {string for string, _ in error.value.runs} <= {4, 6}
        assert (4, 0) in error.value.runs
        assert error.value.result.lengths[4] == 2
        assert 0 < error.value.result.lengths[6] <= 3
    assert type(error.value.result) is type(wanted)
    assert torch.isfinite(error.value.result.prompts).all()
    for part, same in zip(error.value.result, wanted, strict=True):
        torch.testing.assert_close(part[good], same, rtol=1e-3, atol=1e-3)
    assert len(list(tmp_path.iterdir())) == 3
    del searches[:]
    with pytest.raises(tune.NonFiniteLoss) as again:
        search(model, strings, 2, directory=tmp_path, **CHUNKED)
    assert searches == []
    assert str(again.value) == str(error.value)
    assert again.value.runs == error.value.runs
    assert_same(again.value.result, error.value.result)


def test_a_run_that_leaves_the_finite_numbers_keeps_what_it_had():
    model, strings = reader(torch.float32), torch.cartesian_prod(*[torch.arange(4)] * 2)
    starts = tune.cram(model, strings, 2, restarts=1, seed=4, **SEARCH | {"steps": 0})
    assert starts.success.any()
    with pytest.raises(tune.NonFiniteLoss) as error:
        tune.cram(model, strings, 2, restarts=1, seed=4, **SEARCH | {"learning_rate": 1e30})
    assert error.value.runs == [(string, 0) for string in (~starts.success).nonzero()[:, 0].tolist()]
    found = error.value.result
    assert torch.equal(found.prompts, starts.prompts)
    assert torch.equal(found.success, starts.success)
    assert torch.equal(found.steps, torch.where(starts.success, 0, 30))
    assert f"and {len(error.value.runs) - 5} more: lower the learning rate" in str(error.value)


def test_a_success_needs_no_gradient(monkeypatch):
    model, strings = reader(), torch.cartesian_prod(*[torch.arange(4)] * 2)
    starts = tune.cram(model, strings, 2, restarts=1, seed=4, **SEARCH | {"steps": 0})
    assert starts.success.any()
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, x: (torch.full_like(x, math.nan),))
    with pytest.raises(tune.NonFiniteLoss) as error:
        tune.cram(model, strings, 2, restarts=1, seed=4, **SEARCH)
    assert error.value.runs == [(string, 0) for string in (~starts.success).nonzero()[:, 0].tolist()]
    assert torch.equal(error.value.result.success, starts.success)


def test_a_later_start_may_succeed_where_an_earlier_one_was_lost(monkeypatch):
    model, strings = reader(), some_strings(10, 2)
    wanted = tune.cram(model, strings, 2, restarts=2, **SEARCH)
    start = tune._start
    monkeypatch.setattr(tune, "_start", lambda s, r, *rest: start(s, max(r - 1, 0), *rest) * (math.inf if not r else 1))
    with pytest.raises(tune.NonFiniteLoss) as error:
        tune.cram(model, strings, 2, restarts=3, **SEARCH)
    assert error.value.runs == [(string, 0) for string in range(10)]
    assert_same(error.value.result, wanted)
    assert wanted.success.sum() > 4


# --- strings: bad input --------------------------------------------------------------------------------------------


def bad(strings=None, m=2, search=tune.cram, model=None, **options):
    return lambda: search(model or reader(), some_strings(5, 3) if strings is None else strings, m, **options)


def with_token(token):
    strings = some_strings(5, 3)
    strings[3, 1] = token
    return strings


@pytest.mark.parametrize("search", [tune.cram, tune.longest_prefix])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strings": with_token(4)}, "string 3 has the token 4 at place 1: token ids must lie in 0 … 3"),
        ({"strings": with_token(-1)}, "string 3 has the token -1 at place 1: token ids must lie in 0 … 3"),
        ({"m": 0}, "m must be an integer >= 1, not 0"),
        ({"m": -2}, "m must be an integer >= 1, not -2"),
        ({"m": 2.0}, "m must be an integer >= 1, not 2.0"),
        ({"m": True}, "m must be an integer >= 1, not True"),
        ({"restarts": 0}, "restarts must be an integer >= 1, not 0"),
        ({"batch": 0}, "batch must be an integer >= 1, not 0"),
        ({"chunk": 0}, "chunk must be an integer >= 1, not 0"),
        ({"steps": -1}, "steps must be an integer >= 0, not -1"),
        ({"steps": 1.5}, "steps must be an integer >= 0, not 1.5"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number >= 0, not nan"),
        ({"learning_rate": -0.1}, "learning_rate must be a finite number >= 0, not -0.1"),
        ({"scale": math.inf}, "scale must be a finite number >= 0, not inf"),
        ({"margin": -1e-3}, "margin must be a finite number >= 0, not -0.001"),
        ({"strings": torch.zeros(3, 9, dtype=torch.long)}, None),
        ({"strings": some_strings(1, 3)[0]}, "strings must be token ids of the shape [S, n], S and n >= 1, not [3]"),
        (
            {"strings": torch.zeros(2, 0, dtype=torch.long)},
            "strings must be token ids of the shape [S, n], S and n >= 1, not [2, 0]",
        ),
        (
            {"strings": torch.zeros(0, 3, dtype=torch.long)},
            "strings must be token ids of the shape [S, n], S and n >= 1, not [0, 3]",
        ),
        (
            {"strings": some_strings(2, 3).double()},
            "strings must be token ids of the shape [S, n], S and n >= 1, not [2, 3]",
        ),
        (
            {"strings": some_strings(2, 3) > 0},
            "strings must be token ids of the shape [S, n], S and n >= 1, not [2, 3]",
        ),
        ({"model": poisoned(reader())}, "the weight embedding holds NaN or infinite entries"),
        (
            {"model": reader(config=replace(READER, causal=False))},
            "stream needs a causal network without context scaling",
        ),
    ],
)
def test_bad_strings_get_one_sentence(tmp_path, search, options, message):
    message = message or "2 prompt vectors and strings of 9 tokens need 10 positions, more than the 9 of the model"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bad(search=search, directory=tmp_path, **options)()
    assert list(tmp_path.iterdir()) == []


def test_the_whole_context_can_be_used():
    model = reader()
    for m, n in ((2, 8), (9, 1), (1, 9)):
        found = tune.cram(model, some_strings(2, n), m, restarts=1, **SEARCH | {"steps": 1})
        assert found.prompts.shape == (2, m, 16)
    endless = reader(config=replace(READER, positions="rotary"))
    assert tune.cram(endless, some_strings(2, 20), 2, restarts=1, **SEARCH | {"steps": 1}).prompts.shape == (2, 2, 16)
