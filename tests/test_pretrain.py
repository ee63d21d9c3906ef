"""The frozen models of the book: what they are asked, how they are trained, kept and refused."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from prompt_memory import language, pretrain, tasks
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

TINY_LANGUAGE = pretrain.LanguageModel(
    TransformerConfig(
        d=16, q=27, heads=2, mlp=32, activation="relu", norm="layer", causal=True, positions="learned", context=24
    ),
    "lexicon",
    steps=150,
    batch=16,
    tokens=24,
    learning_rate=0.02,
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
    if isinstance(recipe, pretrain.LanguageModel):
        assert recipe.config.q == len(recipe.alphabet)
        assert int(pretrain.training_text(recipe).max()) < recipe.config.q
        strings = torch.zeros(2, recipe.tokens, dtype=torch.long)
        assert pretrain.string_losses(model.transformer, strings).shape == (2, recipe.tokens - 1)
    elif isinstance(recipe, pretrain.RecallFamily):
        assert torch.isfinite(model.transformer.training_loss(torch.Generator().manual_seed(0)))
    else:
        prompts = torch.ones(2, recipe.m, recipe.config.d)
        asked = pretrain.bits_of(prompts, recipe.bits)
        assert model.transformer(prompts, model.queries).shape == (2, *asked.shape[1:], 2)


# --- language models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker():
    return pretrain.train(TINY_LANGUAGE)


def test_a_language_model_learns_more_than_how_frequent_letters_are(speaker):
    fresh = language.Lexicon().sample(200, 24, generator=torch.Generator().manual_seed(77))
    losses = pretrain.string_losses(speaker.transformer, fresh)
    before = pretrain.string_losses(pretrain.FrozenModel(TINY_LANGUAGE).transformer, fresh)
    share = torch.bincount(fresh[:, 1:].flatten(), minlength=27).double() / fresh[:, 1:].numel()
    unigram = -torch.special.xlogy(share, share).sum().item()  # the least that any letter frequencies can cost
    assert losses.mean().item() < unigram - 0.1
    assert before.mean().item() > unigram + 0.1
    # nobody predicts a source better than the source itself, up to fluctuations of a fresh sample
    source = language.Lexicon()
    cost = -torch.from_numpy(source.log2_probability(fresh) - source.log2_probability(fresh[:, :1])) * math.log(2)
    surplus = losses.double().sum(1) - cost
    assert surplus.mean() > 5 * surplus.std() / math.sqrt(len(surplus))


def test_language_training_freezes_and_repeats_itself(speaker):
    assert not any(weight.requires_grad for weight in speaker.parameters())
    assert not hasattr(speaker, "queries")
    short = replace(TINY_LANGUAGE, steps=3)
    before, one = pretrain.FrozenModel(short).state_dict(), pretrain.train(short).state_dict()
    torch.rand(3)  # the global generator has no say
    two, other = pretrain.train(short).state_dict(), pretrain.train(replace(short, seed=1)).state_dict()
    assert all(torch.equal(part, two[key]) for key, part in one.items())
    assert not any(torch.equal(part, other[key]) for key, part in one.items() if part.ndim == 2)
    assert not any(torch.equal(part, before[key]) for key, part in one.items())


def test_the_losses_of_a_string_are_those_of_its_letters(speaker):
    strings = language.Lexicon().sample(3, 9, generator=torch.Generator().manual_seed(5))
    model = speaker.transformer
    losses = pretrain.string_losses(model, strings)
    assert losses.shape == (3, 8)
    for string, row in zip(strings, losses.tolist(), strict=True):
        for t in range(1, 8):  # the letter after string[: t + 1]
            prompt, query = model.embedding[string[:1]], string[None, 1 : t + 1]
            logits = model(prompt[None], query)[0, 0].double().tolist()
            total = math.log(sum(math.exp(logit) for logit in logits))
            assert row[t] == pytest.approx(total - logits[string[t + 1]], abs=1e-4)
    moved = strings.clone()
    moved[:, 4] = (moved[:, 4] + 1) % 27
    again = pretrain.string_losses(model, moved)
    torch.testing.assert_close(again[:, :3], losses[:, :3])
    assert not torch.isclose(again[:, 3:5], losses[:, 3:5]).any()


def test_training_texts_are_the_language_without_what_is_held_out():
    lexicon = pretrain.training_text(TINY_LANGUAGE)
    assert lexicon.shape == (400_000,)
    assert math.isfinite(language.Lexicon().log2_probability(lexicon[None, :2000])[0])
    assert not torch.equal(lexicon, pretrain.training_text(replace(TINY_LANGUAGE, seed=1)))
    natural = pretrain.training_text(replace(TINY_LANGUAGE, corpus="natural"))
    text = language.natural_text()
    kept = [text[i : i + language.STRETCH] for i in range(0, len(text), language.STRETCH)]
    assert language.decode(natural.tolist(), language.PRINTABLE) == "".join(
        piece for number, piece in enumerate(kept) if number % 10 != 9
    )


def test_language_models_are_saved_with_their_recipe(tmp_path, monkeypatch, speaker):
    monkeypatch.setitem(pretrain.RECIPES, "speaker", TINY_LANGUAGE)
    pretrain.save(speaker, tmp_path / "speaker.safetensors")
    loaded = pretrain.load("speaker", tmp_path)
    assert loaded.recipe == TINY_LANGUAGE
    assert loaded.state_dict().keys() == speaker.state_dict().keys()
    assert all(torch.equal(part, speaker.state_dict()[key]) for key, part in loaded.state_dict().items())
    assert not any(weight.requires_grad for weight in loaded.parameters())
    others = [replace(TINY_LANGUAGE, **change) for change in ({"corpus": "natural"}, {"tokens": 23}, {"seed": 1})]
    for other in (*others, TINY):
        monkeypatch.setitem(pretrain.RECIPES, "speaker", other)
        with pytest.raises(ValueError, match="was written by another recipe: delete it"):
            pretrain.load("speaker", tmp_path)
    pretrain.save(pretrain.FrozenModel(TINY), tmp_path / "tiny.safetensors")
    monkeypatch.setitem(pretrain.RECIPES, "tiny", TINY_LANGUAGE)
    with pytest.raises(ValueError, match="was written by another recipe: delete it"):
        pretrain.load("tiny", tmp_path)
