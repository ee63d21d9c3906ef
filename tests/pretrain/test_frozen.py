"""Frozen models: how they are trained, kept and refused."""

import sys
from dataclasses import replace

import chapters
import pytest
import torch

from prompt_memory import pretrain, tasks
from prompt_memory.network.transformer import TransformerConfig

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
def test_the_build_finds_the_module_of_a_recipe(name):
    """Without importing it: its other modules are read off the imports."""
    module = type(BOOK[name]).__module__.replace(".", "/")
    assert {f"src/{module}.py", "src/prompt_memory/pretrain/frozen.py"} <= set(chapters.pretrain_modules(name))
    others = {type(recipe).__module__ for recipe in BOOK.values()} - {type(BOOK[name]).__module__}
    assert not {f"src/{other.replace('.', '/')}.py" for other in others} & set(chapters.pretrain_modules(name))


@pytest.mark.parametrize("name", BOOK)
def test_the_recipes_of_the_book_fit_together(name):
    recipe = BOOK[name]
    model = pretrain.FrozenModel(recipe)
    if isinstance(recipe, pretrain.LanguageModel):
        assert recipe.config.q == len(recipe.alphabet)
        assert int(pretrain.training_text(recipe).max()) < recipe.config.q
        strings = torch.zeros(2, recipe.tokens, dtype=torch.long)
        assert pretrain.string_losses(model.transformer, strings).shape == (2, recipe.tokens - 1)
    elif isinstance(recipe, pretrain.RecallFamily | pretrain.DeepRecall):
        assert torch.isfinite(recipe.batch_loss(torch.Generator().manual_seed(0))(model, 0))
    else:
        prompts = torch.ones(2, recipe.m, recipe.config.d)
        asked = pretrain.bits_of(prompts, recipe.bits)
        assert model.transformer(prompts, model.queries).shape == (2, *asked.shape[1:], 2)
