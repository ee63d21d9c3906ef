"""The two languages: every probability against enumeration and frequencies, natural text against its own rules."""

import math

import numpy as np
import pytest
import torch

from prompt_memory.tasks import language

torch.set_num_threads(1)

SMALL = {"classes": 2, "words": 3}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the known source ----------------------------------------------------------------------------------------------


def enumerated(source, n):
    """All texts of n letters with their probabilities, by writing every sequence of words out, {text: probability}."""
    found = {}

    def write(text, state, probability):
        if len(text) >= n:
            found[text[:n]] = found.get(text[:n], 0.0) + probability
            return
        for word, share in zip(source.words[state], source.word_probability, strict=True):
            for following, change in enumerate(source.transition[state]):
                write(text + word + " ", following, probability * share * change)

    for state, share in enumerate(source.stationary):
        write("", state, share)
    return found


def ids_of(texts):
    return torch.stack([language.encode(text, language.LETTERS) for text in texts])


@pytest.mark.parametrize("sizes", [SMALL, {"classes": 3, "words": 2}, {"classes": 1, "words": 4}], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_probabilities_are_those_of_all_sequences_of_words(sizes, seed):
    source = language.Lexicon(seed=seed, **sizes)
    for n in (1, 2, 5, 11):
        wanted = enumerated(source, n)
        assert math.fsum(wanted.values()) == pytest.approx(1, abs=1e-12)
        found = source.log2_probability(ids_of(wanted))
        assert (found.shape, found.dtype) == ((len(wanted),), np.float64)
        np.testing.assert_allclose(found, np.log2(list(wanted.values())), rtol=1e-12, atol=1e-12)


def test_all_other_strings_are_impossible_and_the_sum_is_one():
    source = language.Lexicon(**SMALL)
    wanted = enumerated(source, 3)
    strings = torch.cartesian_prod(*[torch.arange(27)] * 3)
    log2 = source.log2_probability(strings)
    possible = {language.decode(row, language.LETTERS) for row in strings[torch.from_numpy(log2) > -math.inf]}
    assert possible == set(wanted)
    assert math.fsum(2.0**log2) == pytest.approx(1, abs=1e-12)
    assert set(log2[~np.isfinite(log2)]) == {-math.inf}


def test_each_beginning_is_as_likely_as_its_continuations_together():
    source = language.Lexicon()
    texts = source.sample(20, 30, generator=seeded())
    for n in (1, 7, 29):
        for string in texts[:, :n]:
            longer = torch.cat([string.expand(27, n), torch.arange(27)[:, None]], 1)
            total = math.fsum(2.0 ** source.log2_probability(longer))
            assert math.log2(total) == pytest.approx(source.log2_probability(string[None])[0], abs=1e-9)


def test_impossible_texts():
    source = language.Lexicon(**SMALL)
    word, other = source.words[0][0], source.words[1][2]
    for text in (" ", f" {word}", f"{word}  {other}", f"{word}q{other}", f"{other} zzzz", f"zz{word} "):
        assert source.log2_probability(ids_of([text])).tolist() == [-math.inf], text
    source.transition = np.array([[0.0, 1.0], [0.5, 0.5]])  # no word of class 0 follows another one
    second = source.words[0][1]
    begun = next(word[:2] for word in source.words[0] if not any(w.startswith(word[:2]) for w in source.words[1]))
    for text, possible in ((f"{word} {second} ", 0), (f"{word} {begun}", 0), (f"{other} {begun}", 1), (f"{word} ", 1)):
        assert np.isfinite(source.log2_probability(ids_of([text]))).tolist() == [bool(possible)], text


def test_samples_have_these_probabilities():
    source = language.Lexicon(**SMALL)
    count, n = 4000, 7
    wanted = enumerated(source, n)
    strings = source.sample(count, n, generator=seeded(3))
    texts = [language.decode(row, language.LETTERS) for row in strings]
    assert set(texts) <= set(wanted)
    squares = 0.0
    for text, probability in wanted.items():
        score = (texts.count(text) - count * probability) / math.sqrt(count * probability * (1 - probability))
        assert abs(score) < 6 or count * probability < 1, text
        squares += score**2 * (1 - probability)
    assert squares / (len(wanted) - 1) == pytest.approx(1, abs=1)  # Pearson's χ² a degree of freedom


@pytest.mark.parametrize("options", [{}, {"classes": 5, "words": 9, "seed": 2}], ids=str)
def test_the_entropy_rate_is_what_long_samples_cost(options):
    source = language.Lexicon(**options)
    strings = source.sample(300, 300, generator=seeded(1))
    # the same strings twice: what the unfinished word and the known beginning cost cancels but for its fluctuation
    cost = source.log2_probability(strings[:, :60]) - source.log2_probability(strings)
    error = cost.std(ddof=1) / math.sqrt(len(cost))
    assert error < 0.02 * cost.mean()
    assert abs(cost.mean() - 240 * source.entropy_rate) < 5 * error
    assert 0 < source.entropy_rate < math.log2(27)


def test_the_entropy_rate_of_one_class_is_that_of_independent_words():
    source = language.Lexicon(classes=1, words=10)
    p = [1 / (rank + 2) for rank in range(10)]
    p = [share / sum(p) for share in p]
    bits = -sum(share * math.log2(share) for share in p)
    letters = sum(share * (len(word) + 1) for share, word in zip(p, source.words[0], strict=True))
    assert source.entropy_rate == pytest.approx(bits / letters, rel=1e-12)


@pytest.mark.parametrize("options", [{}, SMALL, {"classes": 4, "words": 200, "seed": 5}], ids=str)
def test_a_text_can_be_read_in_one_way_only(options):
    source = language.Lexicon(**options)
    words = [word for lexicon in source.words for word in lexicon]
    assert len(set(words)) == len(words) == options.get("classes", 3) * options.get("words", 64)
    assert all(set(word) <= set(language.LETTERS[1:]) and word for word in words)
    assert source.word_probability.sum() == pytest.approx(1, abs=1e-14)
    assert (np.diff(source.word_probability) < 0).all()
    np.testing.assert_allclose(source.transition.sum(1), 1, atol=1e-14)
    np.testing.assert_allclose(source.stationary @ source.transition, source.stationary, atol=1e-13)
    assert source.stationary.sum() == pytest.approx(1, abs=1e-14)
    for lexicon in source.words:
        lengths = [len(word) for word in lexicon]
        assert np.polyfit(np.log2(np.arange(len(lengths)) + 2), lengths, 1)[0] > 0  # frequent ones are shorter


def test_no_seed_gives_two_classes_the_same_word():
    for seed in range(60):
        source = language.Lexicon(classes=30, words=2, seed=seed)
        assert len({word for lexicon in source.words for word in lexicon}) == 60


def test_seeds_decide_everything():
    source, same, other = language.Lexicon(), language.Lexicon(seed=0), language.Lexicon(seed=1)
    assert source.words == same.words
    assert source.words != other.words
    state = torch.get_rng_state()
    strings = source.sample(5, 40, generator=seeded(4))
    assert torch.equal(strings, same.sample(5, 40, generator=seeded(4)))
    assert not torch.equal(strings, source.sample(5, 40, generator=seeded(5)))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(torch.unique(strings, dim=0)) == 5
    generator = seeded(4)
    assert not torch.equal(source.sample(5, 40, generator=generator), source.sample(5, 40, generator=generator))
    assert (strings.shape, strings.dtype) == ((5, 40), torch.long)
    assert source.sample(0, 7, generator=seeded()).shape == (0, 7)
    assert source.sample(2, 0, generator=seeded()).shape == (2, 0)


# --- natural text --------------------------------------------------------------------------------------------------


def test_natural_text_is_printable_and_long():
    text = language.natural_text()
    assert len(text) > 200_000
    assert set(text) <= set(language.PRINTABLE)
    assert len(language.PRINTABLE) == len(set(language.PRINTABLE)) == 96
    assert all(word in text for word in ("statement", "The ", "    def ", '"""'))
    assert language.fingerprint(text) == language.fingerprint(language.natural_text())
    assert language.fingerprint(text) != language.fingerprint(text + " ")
    assert language.fingerprint("") == "e3b0c44298fc1c14"


@pytest.mark.parametrize("length", [0, 1, 17_999, 18_000, 20_000, 59_123])
def test_every_tenth_stretch_is_held_out(length):
    training, held = language.held_out(torch.arange(length))
    assert sorted([*training.tolist(), *held.tolist()]) == list(range(length))
    assert held.tolist() == [i for i in range(length) if i // language.STRETCH % 10 == 9]
    assert training.tolist() == sorted(training.tolist())


@pytest.mark.parametrize("n", [3, 40])
def test_natural_strings_are_held_out_and_begin_with_a_word(n):
    text = language.natural_text()
    allowed = set()
    for stretch in range(9, len(text) // language.STRETCH + 1, 10):
        piece = text[stretch * language.STRETCH : (stretch + 1) * language.STRETCH]
        allowed |= {
            piece[i : i + n] for i in range(1, len(piece) - n + 1) if piece[i - 1] in " \n" and piece[i] not in " \n"
        }
    strings = language.natural_strings(30_000, n, generator=seeded())
    assert (strings.shape, strings.dtype) == ((30_000, n), torch.long)
    found = {language.decode(row, language.PRINTABLE) for row in torch.unique(strings, dim=0)}
    assert found <= allowed
    assert len(found) > 0.95 * len(allowed)


def test_natural_strings_follow_the_generator():
    one, two, other = (language.natural_strings(6, 20, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("n", [0, -1, 2000])
def test_natural_strings_of_impossible_lengths_are_refused(n):
    with pytest.raises(ValueError, match=rf"^the length .* must lie in 1 … 1999, not {n}$"):
        language.natural_strings(3, n, generator=seeded())
    assert language.natural_strings(3, 1999, generator=seeded()).shape == (3, 1999)


# --- letters and numbers -------------------------------------------------------------------------------------------


def test_random_strings_are_uniform_and_independent():
    strings = language.random_strings(20_000, 3, 5, generator=seeded())
    assert (strings.shape, strings.dtype) == ((20_000, 3), torch.long)
    counts = torch.bincount(strings @ torch.tensor([25, 5, 1]), minlength=125).double()
    assert len(counts) == 125
    assert ((counts - 160).square() / 160).sum().item() / 124 == pytest.approx(1, abs=0.6)
    assert torch.equal(strings, language.random_strings(20_000, 3, 5, generator=seeded()))


@pytest.mark.parametrize("alphabet", [language.LETTERS, language.PRINTABLE])
def test_texts_survive_encoding(alphabet):
    assert language.encode(alphabet, alphabet).tolist() == list(range(len(alphabet)))
    for text in ("", "a", alphabet[::-1], alphabet[:5] * 3):
        ids = language.encode(text, alphabet)
        assert ids.dtype == torch.long
        assert language.decode(ids, alphabet) == text
        assert language.decode(ids.tolist(), alphabet) == text


def test_letters_and_numbers_outside_the_alphabet_are_refused():
    with pytest.raises(ValueError, match=r"^the letter 'X' is not in the alphabet of 27 letters$"):
        language.encode("seven Xylophones Y", language.LETTERS)
    with pytest.raises(ValueError, match=r"^the letter '\\t' is not in the alphabet of 96 letters$"):
        language.encode("tab\t", language.PRINTABLE)
    for wrong in (-1, 27):
        with pytest.raises(ValueError, match=r"^token ids must lie in 0 … 26$"):
            language.decode(torch.tensor([3, wrong, 4]), language.LETTERS)
        with pytest.raises(ValueError, match=r"^token ids must lie in 0 … 26$"):
            language.Lexicon(**SMALL).log2_probability(torch.tensor([[3, wrong, 4]]))


@pytest.mark.parametrize(("classes", "words"), [(0, 5), (2, 0), (-1, 3), (3, -1)])
def test_an_empty_lexicon_is_refused(classes, words):
    message = f"^a lexicon needs at least one class and one word, not {classes} and {words}$"
    with pytest.raises(ValueError, match=message):
        language.Lexicon(classes=classes, words=words)
