"""Language models: what they learn, on which texts, and that they are kept with their recipe."""

import math
from dataclasses import replace

import pytest
import torch

from prompt_memory import pretrain
from prompt_memory.network.transformer import TransformerConfig
from prompt_memory.tasks import language

torch.set_num_threads(1)

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
    small = pretrain.RECIPES["bit-reader-small"]  # of another family
    for other in (*others, small):
        monkeypatch.setitem(pretrain.RECIPES, "speaker", other)
        with pytest.raises(ValueError, match="was written by another recipe: delete it"):
            pretrain.load("speaker", tmp_path)
    pretrain.save(pretrain.FrozenModel(small), tmp_path / "small.safetensors")
    monkeypatch.setitem(pretrain.RECIPES, "small", TINY_LANGUAGE)
    with pytest.raises(ValueError, match="was written by another recipe: delete it"):
        pretrain.load("small", tmp_path)
