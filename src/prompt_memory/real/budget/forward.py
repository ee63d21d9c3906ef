"""From a prompt length to what it can hold: every bound that an architecture determines."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from prompt_memory import bounds
from prompt_memory.checks import integers
from prompt_memory.real.architectures import Architecture
from prompt_memory.real.architectures.fields import is_number
from prompt_memory.real.budget.formats import FORMATS, Format, number_format


class Bound(NamedTuple):
    """One bound: `value` in its own `unit`, and in bits and in tokens where it is an amount of information.

    A token is worth log2(vocabulary) bits.  `value` is None if something it `needs` was not given, or if the theorem
    does not cover the architecture (then `needs` is empty).  `vacuous`: true, but it forbids nothing here.
    """

    title: str
    theorem: str
    unit: str
    value: float | int | None = None
    bits: float | None = None
    tokens: float | None = None
    needs: tuple[str, ...] = ()
    vacuous: bool = False


SOFT = ("counting", "counting_in_radius", "entropy")  # what bounds a soft prompt; the last for answers with a margin
SLOPE = "Proposition (slope)"

NOT_DETERMINED = (
    "the radius of the prompt vectors that tuning may use",
    "the distance eps at which prompts of different strings can be told apart",
    "the Lipschitz constant of the logits in the prompt",
    "the range of the softmax logits, unless the configuration caps them",
    "how much of a bound a search for prompts finds",
)


@dataclass(frozen=True)
class Budget:
    """What a prompt can hold in one architecture.  `smallest` names the smallest bound on a soft prompt."""

    architecture: Architecture
    prompt_length: int
    precision: str
    given: dict
    bounds: dict[str, Bound]
    smallest: str

    def as_dict(self) -> dict:
        """Everything as plain numbers, strings, lists and dictionaries."""
        return {
            "model": asdict(self.architecture),
            "prompt_length": self.prompt_length,
            "precision": self.precision,
            "bits_per_number": FORMATS[self.precision].bits,
            "given": self.given,
            "bounds": {key: plain_numbers(bound) for key, bound in self.bounds.items()},
            "smallest": self.smallest,
            "not_determined": list(NOT_DETERMINED),
        }


def budget(
    architecture: Architecture,
    prompt_length: int,
    precision: str = "bf16",
    *,
    radius: float | None = None,
    eps: float | None = None,
    lipschitz: float | None = None,
    margin: float | None = None,
    logit_range: float | None = None,
    queries: int = 1,
    degree: int = 1,
    length: int | None = None,
) -> Budget:
    """Every bound of the book that the architecture determines, for a prompt of that many vectors and that format.

    What a configuration does not say may be added: `radius` of the prompt vectors; `eps`: then the strings are counted
    for which prompts can be chosen that lie at least eps apart, such as those that some prompt leads to together with
    all prompts closer than eps/2 (other strings may exist, so these bits never enter `smallest`); the `lipschitz`
    constant of the logits and the `margin` 2ε of an answer (with radius, Theorem 2); `logit_range`, the length of an
    interval with all softmax logits.  `queries` is the number of queries that an exact compression serves, `degree` the
    k of the moments, `length` the number of random tokens to be recalled.  Bounds on a soft prompt are those named in
    `SOFT`; that on a prefix, keys and values stored in the same format, holds for soft prompts of a causal network too
    if its cache is stored so.  ValueError for numbers out of range, or for eps without radius.
    """
    a, (precision, form) = architecture, number_format(precision)
    (m,) = integers(prompt_length=prompt_length)
    given = check_given(radius=radius, eps=eps, lipschitz=lipschitz, margin=margin, logit_range=logit_range)
    given |= check_counts(queries=queries, degree=degree, length=length)
    if logit_range is None and a.logit_cap is not None:
        given["logit_range"] = 2 * a.logit_cap
    found = prompt_bounds(a, m, form, given)
    soft = {key: found[key].bits for key in SOFT if found[key].bits is not None}
    smallest = min(soft, key=soft.get)
    found |= _coordinates(a, m, _slope(a, given)) | _strings(a, soft[smallest], length)
    found |= _compression(a, given["queries"], given["degree"]) | _dilution(a, given["logit_range"])
    return Budget(a, m, precision, given, found, smallest)


def check_given(**given) -> dict[str, float | None]:
    """What weights would tell, as it was given; ValueError for numbers out of range or of which one is missing."""
    for name, value in given.items():
        zero = name in ("lipschitz", "logit_range")
        if value is not None and not (is_number(value) and (value > 0 or (zero and value == 0))):
            raise ValueError(f"{name} must be a finite number {'>= 0' if zero else '> 0'}, not {value!r}")
    if given["eps"] is not None and given["radius"] is None:
        raise ValueError("eps needs a radius: their ratio is what counts")
    pair = [given[name] is not None for name in ("lipschitz", "margin")]
    if any(pair) and not (all(pair) and given["radius"] is not None):
        raise ValueError("Theorem 2 needs radius, lipschitz and margin together")
    return given


def check_counts(queries: int, degree: int, length: int | None) -> dict[str, int | None]:
    """The counts as Python integers; ValueError for one that is too small."""
    (queries,), (degree,) = integers(queries=queries), integers(0, degree=degree)
    if length is not None:
        (length,) = integers(length=length)
    return {"queries": queries, "degree": degree, "length": length}


def token_bits(a: Architecture) -> float:
    """log2 of the vocabulary, the bits of a random token; ValueError for a vocabulary of one."""
    if a.vocabulary < 2:
        raise ValueError(f"{a.name}: a vocabulary of one token carries no information")
    return bounds.hard_prompt_bits(a.vocabulary, 1)


def prompt_bounds(a: Architecture, m: int, form: Format, given: Mapping) -> dict[str, Bound]:
    """The bits of a prompt of m positions, by its kind and by what is given; each grows in proportion to m."""
    per_token, radius, margin = token_bits(a), given["radius"], given["margin"]

    def amount(title: str, theorem: str, bits: float | None, needs: tuple[str, ...] = ()) -> Bound:
        return Bound(title, theorem, "bits", bits, bits, None if bits is None else bits / per_token, needs)

    inside, needs = None, ("radius",)
    if form.exponent is None or (radius is not None and radius > form.counted_to):
        needs = ()
    elif radius is not None:
        inside = a.width * m * bounds.float_bits(radius, exponent=form.exponent, fraction=form.fraction)
    slope = _slope(a, given)
    apart = None if slope is None else m * slope * per_token
    sure = None if margin is None else bounds.entropy_bits(a.width, m, radius, given["lipschitz"], margin / 2)
    # keys and values that are computed from fewer numbers: what a prefix would be depends on the program
    prefix = bounds.counting_bits(a.cached, m, form.bits) if a.compressed is None else None
    bits = bounds.counting_bits(a.width, m, form.bits)
    return {
        "counting": amount("soft prompt, all its bits", "Theorem 1", bits),
        "counting_in_radius": amount("soft prompt, numbers within the radius", "Theorem 1", inside, needs),
        "resolution": amount("soft prompt, only strings told apart at eps", SLOPE, apart, ("radius", "eps")),
        "entropy": amount("soft prompt, answers with a margin", "Theorem 2", sure, ("radius", "lipschitz", "margin")),
        "prefix": amount("prefix: keys and values in every layer", "Theorem 1", prefix),
        "hard": amount("hard prompt of tokens", "Theorem 1", bounds.hard_prompt_bits(a.vocabulary, m)),
    }


def _slope(a: Architecture, given: Mapping) -> float | None:
    """Random tokens a vector of strings told apart at eps, where radius and eps are given."""
    radius, eps = given["radius"], given["eps"]
    return None if eps is None else bounds.accessible_slope(a.width, a.vocabulary, radius, eps)


def _coordinates(a: Architecture, m: int, slope: float | None) -> dict[str, Bound]:
    """What outputs can see of a prompt of m positions, and what one of its vectors decides."""
    ambient = a.width - (a.norm == "layer")
    seen = bounds.visible_coordinates(ambient, a.cached if a.causal or a.layers == 1 else None, m)
    in_prefix = m * a.cached if a.compressed is None else None
    decided = "random tokens a vector decides, told apart at eps"
    return {
        "dimension": Bound("soft prompt, coordinates that outputs can see", "Theorem 3", "reals", seen),
        "prefix_dimension": Bound("prefix, coordinates that outputs can see", "Theorem 3", "reals", in_prefix),
        "accessible_slope": Bound(decided, SLOPE, "tokens per vector", slope, needs=("radius", "eps")),
    }


def _strings(a: Architecture, B: float, length: int | None) -> dict[str, Bound]:
    """Strings within reach of B bits, and the recall of `length` random tokens."""
    V = a.vocabulary
    least = bounds.critical_length(B, V) if a.causal else None
    beyond = a.context is not None and least is not None and least > a.context
    share = bounds.accessible_fraction(B, length, V) if length is not None and a.causal else None
    recall = None if length is None else bounds.recall_ceiling(B, length, V)
    half = "length from which half of all strings are out of reach"
    within, recalled = "strings of that length within reach", "recall of that many random tokens"
    fraction = dict(unit="fraction", needs=("length",))
    return {
        "accessible_length": Bound(half, "Theorem 4", "tokens", least, vacuous=beyond),
        "accessible_fraction": Bound(within, "Theorem 4", value=share, vacuous=share == 1, **fraction),
        "recall": Bound(recalled, "Theorem 1", value=recall, vacuous=recall == 1, **fraction),
    }


def _compression(a: Architecture, queries: int, degree: int) -> dict[str, Bound]:
    """Weighted positions that stand for the cache of any prompt: exactly for some queries, or with all its moments."""
    exact = moments = None
    if (a.causal or a.layers == 1) and a.attention != "other":
        exact = bounds.caratheodory_count(queries, 1, a.attended, own=True)
    if a.positions in ("learned", "rotary") and a.logit_cap is None and a.attention == "full":
        moments = max(bounds.head_moment_count(degree, keys, values, heads) for heads, keys, values in set(a.caches))

    def positions(title: str, theorem: str, count: int | None) -> Bound:
        too_many = None not in (count, a.context) and count >= a.context  # no shorter than the longest context
        return Bound(title, theorem, "weighted positions", count, vacuous=too_many)

    return {
        "exact_compression": positions("cache positions that serve the queries exactly", "Theorem 5", exact),
        "moments": positions("cache positions of a layer with all its moments", "Theorem 6", moments),
    }


def _dilution(a: Architecture, logit_range: float | None) -> dict[str, Bound]:
    """The most attention on one token of a full context, or of the smallest window."""
    seen = a.context if a.window is None else a.window if a.context is None else min(a.window, a.context)
    covered = seen is not None and (a.attention == "full" or (a.attention == "window" and a.window is not None))
    most = bounds.dilution(seen, logit_range) if covered and logit_range is not None else None
    title = "attention on one token of a full context" + (" or window" if a.attention == "window" else "")
    return {"dilution": Bound(title, "Theorem 8", "fraction", most, needs=("logit_range",) if covered else ())}


def plain_number(value):
    """A value for JSON, which has no infinity: then a string; whole numbers as integers, others as they are."""
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def plain_numbers(bound: NamedTuple) -> dict:
    """A bound as a dictionary of plain numbers, strings and lists."""
    return {key: plain_number(value) for key, value in (bound._asdict() | {"needs": list(bound.needs)}).items()}
