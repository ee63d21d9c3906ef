"""Searches for strings that are interrupted, leave the finite numbers, or are asked for what cannot be."""

import math
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tuning import READER, SEARCH, assert_same, poisoned, reader, some_strings

from prompt_memory import tune

torch.set_num_threads(1)


# --- chunks on disk ------------------------------------------------------------------------------------------------


CHUNKED = SEARCH | {"restarts": 2, "chunk": 3}


@pytest.fixture
def searches(monkeypatch):
    """Counts the chunks that are searched rather than read."""
    made, descend = [], tune.strings._descend

    def counted(model, strings, *rest, **options):
        made.append(len(strings))
        return descend(model, strings, *rest, **options)

    counted.__wrapped__ = descend  # its source names the chunk
    monkeypatch.setattr(tune.strings, "_descend", counted)
    return made


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
        patch.setattr(tune.strings, "BETAS", (0.9, 0.95))
        tune.cram(model, strings, 2, **options)
    assert len(searches) == 2
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 64)
        tune.cram(model, strings, 2, **options)
    assert len(searches) == 3
    with monkeypatch.context() as patch:
        patch.setattr(tune.strings, "_start", lambda *parts, start=tune.strings._start: start(*parts))
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


# --- losses that are not finite ------------------------------------------------------------------------------------


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
    start = tune.strings._start
    monkeypatch.setattr(
        tune.strings, "_start", lambda s, r, *rest: start(s, max(r - 1, 0), *rest) * (math.inf if not r else 1)
    )
    with pytest.raises(tune.NonFiniteLoss) as error:
        tune.cram(model, strings, 2, restarts=3, **SEARCH)
    assert error.value.runs == [(string, 0) for string in range(10)]
    assert_same(error.value.result, wanted)
    assert wanted.success.sum() > 4


# --- bad input -----------------------------------------------------------------------------------------------------


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
        ({"seed": 1.5}, "seed must be an integer >= 0, not 1.5"),
        ({"seed": "3"}, "seed must be an integer >= 0, not '3'"),
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
