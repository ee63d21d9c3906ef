"""The frozen models of the book: what they are asked, how they are trained, kept and refused."""

import sys
from dataclasses import replace

import pytest
import torch

from prompt_memory import pretrain, tasks
from prompt_memory.transformer import TransformerConfig

torch.set_num_threads(1)

TINY = pretrain.BitReader(
    TransformerConfig(d=2, depth=2, heads=2, mlp=8, norm="rms", causal=True, positions="learned", context=4),
    m=2,
    bits=1,
    steps=80,
    batch=16,
    learning_rate=0.05,
)

BOOK = pretrain.RECIPES


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    """The models of the book take minutes to train; this one takes none."""
    monkeypatch.setattr(pretrain, "RECIPES", {"tiny": TINY, "other": replace(TINY, seed=1)})


@pytest.mark.parametrize(("bits", "d", "m"), [(1, 3, 2), (1, 2, 5), (2, 2, 2), (2, 1, 3), (3, 1, 3), (3, 2, 2)])
def test_prompts_and_bit_strings_are_in_bijection(bits, d, m):
    count = 2 ** (bits * d * m)
    prompts = tasks.grid_prompts(torch.arange(count), d, m, tasks.grid(bits))
    strings = pretrain.bits_of(prompts, bits)
    assert strings.shape == (count, bits * d * m)
    assert set(strings.unique().tolist()) == {0, 1}
    assert len(torch.unique(strings, dim=0)) == count


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_one_step_on_the_grid_changes_one_bit_of_its_coordinate(bits):
    values = tasks.grid(bits)
    for token in range(2):
        for coordinate in range(3):
            prompts = values[torch.zeros(2**bits, 2, 3, dtype=torch.long)]
            prompts[:, token, coordinate] = values
            strings = pretrain.bits_of(prompts, bits)
            first = bits * (3 * token + coordinate)
            changed = strings[1:] != strings[:-1]
            assert changed.sum(1).tolist() == [1] * (2**bits - 1)
            assert not changed[:, :first].any()
            assert not changed[:, first + bits :].any()


def test_each_bit_has_a_query():
    model = pretrain.FrozenModel(replace(TINY, bits=3))
    assert model.queries.shape == (3 * 2 * 2, 1, 2)
    codes = model.queries.reshape(2, 2, 3, 2).double()  # token, coordinate, bit
    assert len(torch.unique(codes.flatten(0, 2), dim=0)) == 12
    for axis in range(3):  # sums of one code an axis: differences along an axis do not depend on the others
        steps = codes.diff(dim=axis).movedim(axis, 0).flatten(1, 2)
        torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-5, rtol=0)


def accuracy(model):
    prompts = tasks.grid_prompts(torch.arange(16), 2, 2, tasks.grid(1))
    found = model.transformer(prompts, model.queries).argmax(-1)
    return (found == pretrain.bits_of(prompts, 1)).double().mean().item()


def test_training_teaches_freezes_and_repeats_itself(tmp_path):
    before = pretrain.FrozenModel(TINY)
    files = []
    for name in "ab":
        model = pretrain.train(TINY)
        torch.rand(3)  # the global generator has no say
        pretrain.save(model, tmp_path / name / "tiny.safetensors")
        files.append((tmp_path / name / "tiny.safetensors").read_bytes())
    assert files[0] == files[1]
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not torch.equal(model.queries, before.queries)
    assert all(
        not torch.equal(old, new)
        for old, new in zip(before.transformer.blocks.parameters(), model.transformer.blocks.parameters(), strict=True)
    )
    assert accuracy(model) > max(0.6, accuracy(before) + 0.2)
    other = pretrain.train(replace(TINY, seed=1))
    assert not torch.equal(other.queries, model.queries)


def test_a_saved_model_comes_back_exactly(tmp_path):
    model = pretrain.train(TINY)
    pretrain.save(model, tmp_path / "deep" / "er" / "tiny.safetensors")
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["tiny.safetensors"]
    for loaded in (pretrain.load("tiny", tmp_path / "deep" / "er"), pretrain.load("tiny", str(tmp_path / "deep/er"))):
        assert loaded.recipe == TINY
        assert not any(weight.requires_grad for weight in loaded.parameters())
        wanted = model.state_dict()
        assert loaded.state_dict().keys() == wanted.keys()
        assert all(torch.equal(part, wanted[key]) for key, part in loaded.state_dict().items())
    trained = pretrain.load("tiny")  # without a directory
    assert torch.equal(trained.queries, model.queries)


def test_a_file_of_another_recipe_is_refused(tmp_path, monkeypatch):
    pretrain.save(pretrain.FrozenModel(TINY), tmp_path / "tiny.safetensors")
    assert pretrain.load("tiny", tmp_path).recipe == TINY
    for change in ({"steps": 81}, {"seed": 3}, {"config": replace(TINY.config, norm_eps=0.0)}, {"learning_rate": 0.1}):
        monkeypatch.setitem(pretrain.RECIPES, "tiny", replace(TINY, **change))
        with pytest.raises(ValueError, match="was written by another recipe: delete it") as error:
            pretrain.load("tiny", tmp_path)
        assert "\n" not in str(error.value)


def test_unknown_names_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown model 'huge': the models of the book are tiny, other") as error:
        pretrain.load("huge", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown model"):
        pretrain.load("huge")
    with pytest.raises(FileNotFoundError):
        pretrain.load("tiny", tmp_path)


def test_a_file_with_nan_weights_is_refused(tmp_path):
    model = pretrain.FrozenModel(TINY)
    model.transformer.unembedding[0, 0] = torch.nan
    pretrain.save(model, tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="the weight unembedding holds NaN"):
        pretrain.load("tiny", tmp_path)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pretrain", "tiny", "--output", str(tmp_path / "tiny.safetensors")])
    pretrain.main()
    assert torch.equal(pretrain.load("tiny", tmp_path).queries, pretrain.train(TINY).queries)
    monkeypatch.setattr(sys, "argv", ["pretrain", "nonsense", "--output", str(tmp_path / "nonsense.safetensors")])
    with pytest.raises(SystemExit) as ended:
        pretrain.main()
    assert ended.value.code not in (0, None)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith("error: unknown model 'nonsense': the models of the book are tiny, other")
    assert all(line.startswith(("usage:", " ")) for line in said[:-1])
    assert not (tmp_path / "nonsense.safetensors").exists()


@pytest.mark.parametrize("name", BOOK)
def test_the_recipes_of_the_book_fit_together(name):
    recipe = BOOK[name]
    model = pretrain.FrozenModel(recipe)
    prompts = torch.ones(2, recipe.m, recipe.config.d)
    assert model.transformer(prompts, model.queries).shape == (2, *pretrain.bits_of(prompts, recipe.bits).shape[1:], 2)
