"""The two languages of the book: a source whose string probabilities are known, and text that every Python carries.

Strings are rows of token ids, [S, n].  The known source is a Markov chain over word classes with disjoint Zipf-like
lexicons: a string can be read in one way only, so its probability is a product.
"""

import hashlib
import math
import pydoc_data.topics
import string
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

LETTERS = " " + string.ascii_lowercase  # of the known source; a space ends a word
PRINTABLE = "\n" + "".join(map(chr, range(32, 127)))  # of natural text
STRETCH = 2000  # letters; natural text is held out in pieces of this length

_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "—": "-", "–": "-", "\t": " "})


class Lexicon:
    """A source of words: classes follow a Markov chain, each class has its own words, frequent ones shorter.

    A string starts at the beginning of a word, with the class drawn from the stationary distribution.  Within a class
    the word of rank r has probability proportional to 1/(r + 2).  Everything follows from `seed`.
    """

    alphabet = LETTERS

    def __init__(self, *, classes: int = 3, words: int = 64, seed: int = 0):
        if classes < 1 or words < 1:
            raise ValueError(f"a lexicon needs at least one class and one word, not {classes} and {words}")
        generator = np.random.default_rng(seed)
        letters = generator.dirichlet(np.full(26, 2.0))
        seen = set()
        self.words: list[list[str]] = []  # by class and rank
        for _ in range(classes):
            lexicon = []
            while len(lexicon) < words:
                length = 1 + round(math.log2(2 + len(lexicon))) + int(generator.integers(2))
                word = "".join(LETTERS[1 + i] for i in generator.choice(26, size=length, p=letters))
                if word not in seen:
                    seen.add(word)
                    lexicon.append(word)
            self.words.append(lexicon)
        weights = 1 / (np.arange(words) + 2.0)
        self.word_probability: Float[np.ndarray, " words"] = weights / weights.sum()
        self.transition: Float[np.ndarray, "classes classes"] = generator.dirichlet(np.full(classes, 0.7), size=classes)
        powers = np.linalg.matrix_power(self.transition, 2**12)
        self.stationary: Float[np.ndarray, " classes"] = powers[0] / powers[0].sum()

    def sample(self, strings: int, n: int, *, generator: torch.Generator) -> Int[Tensor, "S n"]:
        """`strings` strings of n letters each, cut where n is reached, [S, n]."""
        random = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        rows = [encode(self._text(n, random)[:n], self.alphabet) for _ in range(strings)]
        return torch.stack(rows) if rows else torch.empty(0, n, dtype=torch.long)

    def _text(self, letters: int, random: np.random.Generator) -> str:
        pieces, length, state = [], 0, random.choice(len(self.stationary), p=self.stationary)
        while length < letters:
            word = self.words[state][random.choice(len(self.word_probability), p=self.word_probability)]
            pieces.append(word)
            length += len(word) + 1
            state = random.choice(len(self.stationary), p=self.transition[state])
        return " ".join(pieces) + " "

    def log2_probability(self, strings: Int[Tensor, "S n"]) -> Float[np.ndarray, " S"]:
        """log2 μ(t), exactly: the probability that a string of this length equals t; −inf for impossible ones, [S]."""
        return np.array([self._log2_probability(decode(row, self.alphabet)) for row in strings])

    def _log2_probability(self, text: str) -> float:
        *whole, rest = text.split(" ")
        log2, classes = 0.0, self.stationary  # distribution of the class of the next word
        for word in whole:
            if word not in self._place:
                return -math.inf
            state, rank = self._place[word]
            log2 += _log2(classes[state] * self.word_probability[rank])
            classes = self.transition[state]
        if rest not in self._beginning:
            return -math.inf
        return log2 + _log2(classes @ self._beginning[rest])

    @cached_property
    def _place(self) -> dict[str, tuple[int, int]]:
        return {word: (state, rank) for state, lexicon in enumerate(self.words) for rank, word in enumerate(lexicon)}

    @cached_property
    def _beginning(self) -> dict[str, Float[np.ndarray, " classes"]]:
        """For each beginning of a word: the probability, by class, that a word starts like this (1 for nothing)."""
        found: dict[str, np.ndarray] = {}
        for word, (state, rank) in self._place.items():
            for end in range(len(word) + 1):
                found.setdefault(word[:end], np.zeros(len(self.words)))[state] += self.word_probability[rank]
        return found

    @cached_property
    def entropy_rate(self) -> float:
        """Entropy in bits per letter of an endless text, the space included."""
        p, P = self.word_probability, self.transition
        word_bits = -(p * np.log2(p)).sum() - (self.stationary @ np.where(P > 0, P * np.log2(P), 0.0)).sum()
        lengths = np.array([[len(word) + 1 for word in lexicon] for lexicon in self.words])
        return float(word_bits / (self.stationary @ lengths @ p))


def natural_text() -> str:
    """The language reference that this Python carries (`pydoc_data.topics`), in printable ASCII and newlines.

    It differs between versions of Python: whatever depends on it records `fingerprint` and states a tolerance.
    """
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics)).translate(_PLAIN)
    return "".join(letter for letter in text if letter in PRINTABLE)


def fingerprint(text: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def held_out(ids: Int[Tensor, " N"]) -> tuple[Int[Tensor, " a"], Int[Tensor, " b"]]:
    """(training part, held-out part): every tenth stretch of `STRETCH` tokens is held out, [a] and [b]."""
    stretch = torch.arange(len(ids)) // STRETCH
    return ids[stretch % 10 != 9], ids[stretch % 10 == 9]


def natural_strings(strings: int, n: int, *, generator: torch.Generator) -> Int[Tensor, "S n"]:
    """Stretches of n letters of held-out natural text, each starting where a word starts, [S, n]."""
    if not 1 <= n < STRETCH:
        raise ValueError(f"the length of a string of natural text must lie in 1 … {STRETCH - 1}, not {n}")
    _, ids = held_out(encode(natural_text(), PRINTABLE))
    blank = (ids == PRINTABLE.index(" ")) | (ids == PRINTABLE.index("\n"))
    starts = 1 + torch.where(blank[:-n] & ~blank[1 : len(ids) - n + 1])[0]
    # string and blank within one held-out stretch: what precedes a stretch here does not precede it in the text
    starts = starts[(starts - 1) // STRETCH == (starts + n - 1) // STRETCH]
    chosen = starts[torch.randint(len(starts), (strings,), generator=generator)]
    return ids[chosen[:, None] + torch.arange(n)]


def random_strings(strings: int, n: int, vocabulary: int, *, generator: torch.Generator) -> Int[Tensor, "S n"]:
    """Strings of n independent uniform tokens, [S, n]."""
    return torch.randint(vocabulary, (strings, n), generator=generator)


def encode(text: str, alphabet: str) -> Int[Tensor, " n"]:
    """Token ids of a text, [n].  ValueError that names the first letter outside the alphabet."""
    number = {letter: index for index, letter in enumerate(alphabet)}
    unknown = next((letter for letter in text if letter not in number), None)
    if unknown is not None:
        raise ValueError(f"the letter {unknown!r} is not in the alphabet of {len(alphabet)} letters")
    return torch.tensor([number[letter] for letter in text], dtype=torch.long)


def decode(ids: Int[Tensor, " n"] | list[int], alphabet: str) -> str:
    """The text of token ids.  ValueError if one is outside the alphabet."""
    numbers = ids.tolist() if isinstance(ids, Tensor) else ids  # a loop over a tensor makes a tensor of each id
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(alphabet):
        raise ValueError(f"token ids must lie in 0 … {len(alphabet) - 1}")
    return "".join(alphabet[i] for i in numbers)


def _log2(x: float) -> float:
    return math.log2(x) if x > 0 else -math.inf
