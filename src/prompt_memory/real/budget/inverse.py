"""From an amount to be held to the shortest prompt that the bounds allow: the inverse of `budget`."""

import bisect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

from prompt_memory import bounds
from prompt_memory.checks import integers
from prompt_memory.real.architectures import SOURCE, Architecture, found_slope
from prompt_memory.real.budget.formats import FORMATS, number_format
from prompt_memory.real.budget.forward import (
    NOT_DETERMINED,
    SOFT,
    check_given,
    plain_number,
    plain_numbers,
    prompt_bounds,
)


class Least(NamedTuple):
    """What one position holds at most by one bound, and the least number of positions that it allows.

    `length` is None if something that the bound `needs` was not given, or if it does not cover the architecture, and
    infinite if a position holds nothing.
    """

    title: str
    theorem: str
    bits: float | None = None
    tokens: float | None = None
    length: int | float | None = None
    needs: tuple[str, ...] = ()


class Found(NamedTuple):
    """A published measurement, no bound: tokens of text a vector, and the vectors that so many tokens would take."""

    tokens: float
    length: int | None
    source: str = SOURCE


@dataclass(frozen=True)
class LeastLength:
    """The shortest prompts that may hold an amount.  `largest` names the strictest bound on a soft prompt.

    The amount is `facts` random labels of `labels` values each, or random `tokens`, worth `bits` in all.
    """

    architecture: Architecture
    facts: int | None
    labels: int | None
    tokens: int | None
    bits: float
    precision: str
    given: dict
    bounds: dict[str, Least]
    largest: str
    found: Found | None

    @property
    def length(self) -> int | float:
        """The least number of vectors of a soft prompt."""
        return self.bounds[self.largest].length

    def as_dict(self) -> dict:
        """Everything as plain numbers, strings, lists and dictionaries."""
        return {
            "model": asdict(self.architecture),
            "facts": self.facts,
            "labels": self.labels,
            "tokens": self.tokens,
            "bits": plain_number(self.bits),
            "precision": self.precision,
            "bits_per_number": FORMATS[self.precision].bits,
            "given": self.given,
            "bounds": {key: plain_numbers(least) for key, least in self.bounds.items()},
            "largest": self.largest,
            "found": None if self.found is None else self.found._asdict(),
            "not_determined": list(NOT_DETERMINED),
        }


def least_length(
    architecture: Architecture,
    *,
    facts: int | None = None,
    labels: int = 2,
    tokens: int | None = None,
    precision: str = "bf16",
    radius: float | None = None,
    eps: float | None = None,
    lipschitz: float | None = None,
    margin: float | None = None,
) -> LeastLength:
    """The least prompt length at which the bounds of `budget` allow that everything is held, for each kind of prompt.

    Either `facts`, the number n of queries with uniform labels of `labels` values, n log2(labels) bits; or `tokens`, a
    string of n uniform tokens of the vocabulary V, n log2 V bits.  A prompt that holds fewer bits cannot have all of
    them right for every choice of labels or tokens (Theorem 1), whatever tunes it; the least length m of a bound has
    bits(m) at least that and bits(m − 1) less.  That such a prompt exists, or that a search finds it, is not said.

    `radius`, `eps`, `lipschitz` and `margin` as in `budget`.  ValueError for numbers out of range, or unless one of
    facts and tokens is given.
    """
    a, (precision, form) = architecture, number_format(precision)
    if (facts is None) == (tokens is None):
        raise ValueError("give either facts or tokens")
    given = check_given(radius=radius, eps=eps, lipschitz=lipschitz, margin=margin)
    if tokens is not None:
        (tokens,), labels = integers(tokens=tokens), None
        bits = bounds.hard_prompt_bits(a.vocabulary, tokens)
    else:
        (facts,), (labels,) = integers(facts=facts), integers(2, labels=labels)
        bits = facts * math.log2(labels)
    found = {}
    for key, one in prompt_bounds(a, 1, form, given).items():
        length = _least(lambda m, key=key: prompt_bounds(a, m, form, given)[key].bits, bits)
        found[key] = Least(one.title, one.theorem, one.bits, one.tokens, length, one.needs)
    soft = {key: found[key].length for key in SOFT if found[key].length is not None}
    slope = found_slope(a)
    measured = None if slope is None else Found(slope, None if tokens is None else math.ceil(tokens / slope))
    return LeastLength(a, facts, labels, tokens, bits, precision, given, found, max(soft, key=soft.get), measured)


def _least(held: Callable[[int], float | None], bits: float) -> int | float | None:
    """The least m >= 1 with held(m) >= bits, where held(m) is m·held(1) up to rounding."""
    one = held(1)
    if not one:
        return None if one is None else math.inf
    enough = 2 * math.ceil(bits / one) + 1
    return bisect.bisect_left(range(enough + 1), bits, lo=1, key=held)
