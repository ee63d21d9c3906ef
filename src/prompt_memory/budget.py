"""What a prompt can hold in a real model: every bound of the book that a configuration alone determines.

An architecture is read from a Hugging Face `config.json` or taken from the table `PUBLISHED`; `budget` puts it, a
prompt length and a number format into the functions of `prompt_memory.bounds`.  Weights are never read.  What only
weights or measurements can tell (radius, resolution, Lipschitz constant, range of the softmax logits) is asked for, not
guessed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from prompt_memory import bounds
from prompt_memory.architectures import Architecture, is_number, load_config, one_line
from prompt_memory.architectures import read as read
from prompt_memory.checks import integers

# --- number formats ------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """A number format: all its bits, and the widths of exponent and fraction if the numbers in a range are counted.

    They are up to `counted_to`: IEEE formats everywhere; e4m3 without infinities differs from IEEE above 240.
    """

    bits: int
    exponent: int | None = None
    fraction: int | None = None
    counted_to: float = math.inf


FORMATS = {
    "fp64": Format(64, 11, 52),
    "fp32": Format(32, 8, 23),
    "bf16": Format(16, 8, 7),
    "fp16": Format(16, 5, 10),
    "fp8_e5m2": Format(8, 5, 2),
    "fp8_e4m3": Format(8, 4, 3, 240.0),
    "fp8": Format(8),
    "int8": Format(8),
    "fp4": Format(4),
    "int4": Format(4),
    "int2": Format(2),
    "int1": Format(1),
}
_OTHER_NAMES = {"float64": "fp64", "double": "fp64", "float32": "fp32", "float": "fp32", "bfloat16": "bf16",
                "float16": "fp16", "half": "fp16", "float8_e5m2": "fp8_e5m2", "float8_e4m3fn": "fp8_e4m3"}  # fmt: skip


def number_format(name: str) -> tuple[str, Format]:
    """The usual name of a number format and its widths; ValueError that lists the formats if it is not one."""
    usual = _OTHER_NAMES.get(str(name).lower(), str(name).lower())
    if usual not in FORMATS:
        raise ValueError(f"unknown number format {name!r}: choose one of {', '.join(FORMATS)}")
    return usual, FORMATS[usual]


# --- architectures -------------------------------------------------------------------------------------------------


def load(source: str | Path) -> Architecture:
    """The architecture in a `config.json`, in the `config.json` of a folder, or of a name in `PUBLISHED`.

    ValueError, one sentence, if there is no such thing or it cannot be read.
    """
    path = Path(source)
    published = {known.lower(): known for known in PUBLISHED}
    if not _exists(path) and (known := published.get(str(source).lower())):
        return PUBLISHED[known].architecture
    if _exists(path) and path.is_dir():
        path = path / "config.json"
    if not _exists(path):
        known = ", ".join(PUBLISHED)
        raise ValueError(f"{one_line(str(source))} is no config.json, no folder with one, and none of: {known}")
    return load_config(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


class Published(NamedTuple):
    """A model with published measurements: radius of its prompt vectors, and slope in tokens of text a vector."""

    architecture: Architecture
    radius: float
    slope: float


def _published(
    name: str, family: str, width, vocabulary, radius, slope, layers, heads, kv_heads, head, context, window=None
):
    layer_norm = family == "gpt_neox"
    architecture = Architecture(
        name=name, family=family, width=width, layers=layers, heads=heads, kv_heads=kv_heads, key_dim=head,
        value_dim=head, vocabulary=vocabulary, context=context, norm="layer" if layer_norm else "rms",
        norm_eps=1e-5 if layer_norm or family == "llama" else 1e-6, positions="rotary",
        attention="full" if window is None else "window", window=window,
    )  # fmt: skip
    return name, Published(architecture, radius, slope)


# Width, vocabulary, radius and slope: the table of arXiv 2605.22223.  Layers, heads and context: the models' cards and
# configurations.
PUBLISHED = dict((
    #                                     d     V       radius  slope  layers heads kv head context window
    _published("Pythia-160M", "gpt_neox", 768, 50304, 63.62, 90.4, 12, 12, 12, 64, 2048),
    _published("Pythia-410M", "gpt_neox", 1024, 50304, 54.90, 112.4, 24, 16, 16, 64, 2048),
    _published("Pythia-1B", "gpt_neox", 2048, 50304, 65.68, 287.4, 16, 8, 8, 256, 2048),
    _published("Qwen2.5-0.5B", "qwen2", 896, 151936, 309.00, 71.0, 24, 14, 2, 64, 32768),
    _published("Qwen2.5-1.5B", "qwen2", 1536, 151936, 153.62, 79.6, 28, 12, 2, 128, 32768),
    _published("Llama-3.2-1B", "llama", 2048, 128256, 41.06, 137.8, 16, 32, 8, 64, 131072),
    _published("Gemma-3-270M", "gemma3_text", 640, 262144, 10.74, 44.5, 18, 4, 1, 256, 32768, 512),
))  # fmt: skip

# --- the budget ----------------------------------------------------------------------------------------------------


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
            "bounds": {key: _plain(bound) for key, bound in self.bounds.items()},
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
    m, n = integers(prompt_length=prompt_length, queries=queries)
    if length is not None:
        (length,) = integers(length=length)
    (degree,) = integers(0, degree=degree)
    given = {"radius": radius, "eps": eps, "lipschitz": lipschitz, "margin": margin, "logit_range": logit_range}
    for name, value in given.items():
        least = "> 0" if name != "lipschitz" and name != "logit_range" else ">= 0"
        if value is not None and not (is_number(value) and (value > 0 or (value == 0 and least == ">= 0"))):
            raise ValueError(f"{name} must be a finite number {least}, not {value!r}")
    if eps is not None and radius is None:
        raise ValueError("eps needs a radius: their ratio is what counts")
    if (lipschitz is None) != (margin is None) or (lipschitz is not None and radius is None):
        raise ValueError("Theorem 2 needs radius, lipschitz and margin together")
    if logit_range is None and a.logit_cap is not None:
        logit_range = 2 * a.logit_cap
    V = a.vocabulary
    if V < 2:
        raise ValueError(f"{a.name}: a vocabulary of one token carries no information")
    per_token = bounds.hard_prompt_bits(V, 1)
    found: dict[str, Bound] = {}

    def put(key, title, theorem, *, bits=None, unit="bits", value=None, needs=(), vacuous=False):
        tokens = None if bits is None else bits / per_token
        found[key] = Bound(title, theorem, unit, bits if unit == "bits" else value, bits, tokens, needs, vacuous)

    put("counting", "soft prompt, all its bits", "Theorem 1", bits=bounds.counting_bits(a.width, m, form.bits))
    bits, needs = None, ("radius",)
    if form.exponent is None or (radius is not None and radius > form.counted_to):
        needs = ()
    elif radius is not None:
        bits = a.width * m * bounds.float_bits(radius, exponent=form.exponent, fraction=form.fraction)
    put("counting_in_radius", "soft prompt, numbers within the radius", "Theorem 1", bits=bits, needs=needs)
    slope = None if eps is None else bounds.accessible_slope(a.width, V, radius, eps)
    bits, needs = None if slope is None else m * slope * per_token, ("radius", "eps")
    put("resolution", "soft prompt, only strings told apart at eps", SLOPE, bits=bits, needs=needs)
    bits = None if margin is None else bounds.entropy_bits(a.width, m, radius, lipschitz, margin / 2)
    needs = ("radius", "lipschitz", "margin")
    put("entropy", "soft prompt, answers with a margin", "Theorem 2", bits=bits, needs=needs)
    # keys and values that are computed from fewer numbers: what a prefix would be depends on the program
    bits = bounds.counting_bits(a.cached, m, form.bits) if a.compressed is None else None
    put("prefix", "prefix: keys and values in every layer", "Theorem 1", bits=bits)
    put("hard", "hard prompt of tokens", "Theorem 1", bits=bounds.hard_prompt_bits(V, m))

    soft = {key: found[key].bits for key in SOFT if found[key].bits is not None}
    smallest = min(soft, key=soft.get)
    B = soft[smallest]
    ambient = a.width - (a.norm == "layer")
    seen = bounds.visible_coordinates(ambient, a.cached if a.causal or a.layers == 1 else None, m)
    put("dimension", "soft prompt, coordinates that outputs can see", "Theorem 3", unit="reals", value=seen)
    seen = m * a.cached if a.compressed is None else None
    put("prefix_dimension", "prefix, coordinates that outputs can see", "Theorem 3", unit="reals", value=seen)
    per_vector, needs = "tokens per vector", ("radius", "eps")
    title = "random tokens a vector decides, told apart at eps"
    put("accessible_slope", title, SLOPE, unit=per_vector, value=slope, needs=needs)

    value = bounds.critical_length(B, V) if a.causal else None
    beyond = a.context is not None and value is not None and value > a.context
    title = "length from which half of all strings are out of reach"
    put("accessible_length", title, "Theorem 4", unit="tokens", value=value, vacuous=beyond)
    title, value, needs = "strings of that length within reach", None, ("length",)
    if length is not None and a.causal:
        value = bounds.accessible_fraction(B, length, V)
    put("accessible_fraction", title, "Theorem 4", unit="fraction", value=value, needs=needs, vacuous=value == 1)
    value = None if length is None else bounds.recall_ceiling(B, length, V)
    title = "recall of that many random tokens"
    put("recall", title, "Theorem 1", unit="fraction", value=value, needs=needs, vacuous=value == 1)

    value, positions = None, "weighted positions"
    if (a.causal or a.layers == 1) and a.attention != "other":
        value = bounds.caratheodory_count(n, 1, a.attended, own=True)
    title = "cache positions that serve the queries exactly"
    put("exact_compression", title, "Theorem 5", unit=positions, value=value, vacuous=_too_many(value, a.context))
    value = None
    if a.positions in ("learned", "rotary") and a.logit_cap is None and a.attention == "full":
        value = max(bounds.head_moment_count(degree, keys, values, heads) for heads, keys, values in set(a.caches))
    title = "cache positions of a layer with all its moments"
    put("moments", title, "Theorem 6", unit=positions, value=value, vacuous=_too_many(value, a.context))
    seen = a.context if a.window is None else a.window if a.context is None else min(a.window, a.context)
    covered = seen is not None and (a.attention == "full" or (a.attention == "window" and a.window is not None))
    value = bounds.dilution(seen, logit_range) if covered and logit_range is not None else None
    title = "attention on one token of a full context" + (" or window" if a.attention == "window" else "")
    needs = ("logit_range",) if covered else ()
    put("dilution", title, "Theorem 8", unit="fraction", value=value, needs=needs)
    given |= {"logit_range": logit_range, "queries": n, "degree": degree, "length": length}
    return Budget(a, m, precision, given, found, smallest)


def _too_many(count: int | None, context: int | None) -> bool:
    """Whether a compressed cache would be no shorter than the longest context."""
    return None not in (count, context) and count >= context


def _plain(bound: Bound) -> dict:
    """A bound as a dictionary; whole numbers as integers, infinity as a string (JSON has none)."""

    def number(value):
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value

    return {key: number(value) for key, value in (bound._asdict() | {"needs": list(bound.needs)}).items()}


# --- showing it ----------------------------------------------------------------------------------------------------


def table(result: Budget) -> str:
    """The budget as text: one line a bound, then what was given, what is smallest and what nobody can read off."""
    rows = [("bound", "bits", "tokens", "theorem")]
    for bound in result.bounds.values():
        if bound.value is None:
            missing = "needs " + ", ".join(bound.needs) if bound.needs else "not covered"
            rows.append((bound.title, missing, "", bound.theorem))
            continue
        note = " (vacuous)" if bound.vacuous else ""
        if bound.bits is not None:
            rows.append((bound.title, show(bound.bits) + note, show(bound.tokens), bound.theorem))
        elif bound.unit == "tokens":
            rows.append((bound.title, "", show(bound.value) + note, bound.theorem))
        else:
            unit = "" if bound.unit == "fraction" else f" {bound.unit}"
            rows.append((bound.title, f"{show(bound.value)}{unit}{note}", "", bound.theorem))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{r[0]:{widths[0]}}  {r[1]:>{widths[1]}}  {r[2]:>{widths[2]}}  {r[3]}".rstrip() for r in rows]
    m, form = result.prompt_length, FORMATS[result.precision]
    least = result.bounds[result.smallest]
    assumed = f", given {', '.join(least.needs)}" if least.needs else ""
    facts = [f"{key} {show(value)}" for key, value in result.given.items() if value is not None]
    best = f"{least.title}, {show(least.bits)} bits = {show(least.tokens)} tokens{assumed}"
    margin = ", so they are about answers with that margin" if result.smallest == "entropy" else ""
    return "\n".join([
        result.architecture.describe(),
        *(f"note: {note}" for note in result.architecture.notes),
        f"prompt of {m:,} vectors, {result.precision} ({form.bits} bits a number); {', '.join(facts)}",
        "",
        *lines,
        "",
        f"smallest bound on a soft prompt: {best}",
        f"length, strings and recall are counted with it{margin}",
        *(["told apart at eps: strings for which prompts at least eps apart can be chosen; others may exist, so these "
           "bits are in no other line"] if result.bounds["resolution"].value is not None else []),
        "not in a configuration: " + "; ".join(NOT_DETERMINED),
    ])  # fmt: skip


def show(value: float | int | None) -> str:
    """A number for people: whole numbers up to a trillion in full, others in five digits."""
    if value is None:
        return ""
    if isinstance(value, int) and value.bit_length() > 1000:  # more than a float can hold
        return f"about 10^{math.log10(value):.0f}"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e12 else f"{value:.5g}"


# What the page's calculator starts with and lets a reader change; its script has the same formulas as `bounds`.  Of
# what a configuration does not say only the published radius is taken as known.
START = {"model": "Pythia-160M", "prompt_length": 20, "precision": "bf16", "eps": 2.0**-10, "logit_range": 10.0,
         "queries": 1, "degree": 1, "length": 1000}  # fmt: skip
KNOWN = ("radius",)


def reference_cases() -> list[dict]:
    """Settings of the calculator, [{model, prompt_length, precision, …}, …], that a page is checked at.

    Every published architecture, every format and every option occurs, and numbers at the ends of their ranges.
    """
    names, formats = list(PUBLISHED), list(FORMATS)
    cases = []
    for index in range(3 * len(formats)):
        published = PUBLISHED[names[index % len(names)]]
        case = asdict(published.architecture) | {
            "prompt_length": (1, 20, 333, 10_000)[index % 4],
            "precision": formats[index % len(formats)],
            "queries": (1, 8)[index % 2],
            "degree": index % 5,
            "length": (1, 100, 5000)[index % 3],
        }
        if index % 3:
            case |= {"radius": published.radius, "eps": published.radius * 2.0 ** -(2 * index % 40)}
            case["logit_range"] = float(index)
        if index % 3 == 2:
            case |= {"lipschitz": 10.0 ** (index % 9 - 6), "margin": 0.1}
        if index % 5 == 4:
            case |= {"positions": "learned", "layers": 1}
        if index % 7 == 6:
            case |= {"causal": False, "logit_cap": 50.0, "context": None}
        if index % 4 == 1:
            case |= {"attention": "window", "window": (512, None, 10**6)[index % 3]}
        if index % 6 == 5:
            case |= {"cache": [[2, 64, 64], [1, 128, 32]], "written": 4096}
            case["attention"] = ("chunked", "full", "other")[index // 6 % 3]
        if index % 9 == 7:
            case |= {"compressed": 576, "value_dim": 48}
        cases.append(case)
    return cases


def evaluate(case: Mapping) -> dict:
    """The bounds of one case of the calculator, as `Budget.as_dict()` has them."""
    facts = set(Architecture.__dataclass_fields__)
    shape = {key: value for key, value in case.items() if key in facts}
    if shape.get("cache"):
        shape["cache"] = tuple(map(tuple, shape["cache"]))
    architecture = Architecture(**shape)
    options = {key: value for key, value in case.items() if key not in facts}
    return budget(architecture, **options).as_dict()


def calculator() -> str:
    """HTML of the interactive calculator: a place that `_static/budget.js` fills, and the data that it needs.

    The data are models, formats, the first setting, and a table of settings with the results of this module, with which
    the script compares its own before it shows any.
    """
    models = {
        name: asdict(published.architecture) | {"radius": published.radius, "slope": published.slope}
        for name, published in PUBLISHED.items()
    }
    formats = {name: _strict(form._asdict()) for name, form in FORMATS.items()}
    reference = [{"input": case, "bounds": _values(evaluate(case))} for case in reference_cases()]
    data = {"models": models, "formats": formats, "start": START, "known": KNOWN, "reference": reference}
    text = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("</", "<\\/")
    return (
        '<div class="budget" id="budget-calculator"><p class="budget-missing">The calculator is drawn by a script of '
        "the built book; what you see here is an open notebook, or a browser without scripts. The command "
        "<code>prompt-memory budget</code> computes the same numbers.</p></div>"
        f'<script type="application/json" id="budget-data">{text}</script>'
    )


def _strict(values: Mapping) -> dict:
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in values.items()}


def _values(result: Mapping) -> dict:
    """Of each bound its value, bits and tokens; and which one is smallest."""
    numbers = {key: [bound["value"], bound["bits"], bound["tokens"]] for key, bound in result["bounds"].items()}
    return {"values": numbers, "smallest": result["smallest"],
            "vacuous": sorted(key for key, bound in result["bounds"].items() if bound["vacuous"])}  # fmt: skip
