"""Searches for strings, against one run at a time with loops: what is returned is what was scored."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tuning import READER, SEARCH, reader, some_strings

from prompt_memory import measure, tune

torch.set_num_threads(1)


# --- the slow search -----------------------------------------------------------------------------------------------


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
        run = slow_descent(
            model, tune.strings._start(string, start, m, model, search["scale"], seed), string, n, **search
        )
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
        begin = tune.strings._start(string, start, m, model, search["scale"], seed)
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


# --- batches -------------------------------------------------------------------------------------------------------


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


# --- what is returned ----------------------------------------------------------------------------------------------


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

    monkeypatch.setattr(tune.strings, "greedy", other)
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
    starts = torch.stack([tune.strings._start(string, 0, 2, model, 1.0, 4) for string in strings])
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
        prompts = torch.stack([tune.strings._start(string, start, 2, model, 1.0, 0) for string in strings])
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


def test_the_example_of_the_readme_runs_as_it_is_written():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("print(", "shown = ("), names)
    assert names["shown"].all()
