"""The interactive calculator of the book's page: a place that its script fills, and the data that the script needs."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict

from prompt_memory.real.architectures import PUBLISHED, SOURCE, Architecture, found_slope
from prompt_memory.real.budget.formats import FORMATS
from prompt_memory.real.budget.forward import Budget, budget
from prompt_memory.real.budget.inverse import least_length
from prompt_memory.real.budget.pasted import rules

# What the page's calculator starts with and lets a reader change; its script has the same formulas as `bounds`.  Of
# what a configuration does not say only the published radius is taken as known.
START = {"model": "Pythia-160M", "ask": "prompt", "prompt_length": 20, "precision": "bf16", "eps": 2.0**-10,
         "logit_range": 10.0, "queries": 1, "degree": 1, "length": 1000, "facts": 5000, "labels": 2,
         "tokens": 1000, "window": 4096, "logit_cap": 50.0}  # fmt: skip
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


def reference_question(index: int) -> dict:
    """What the reference setting of that index asks the other way: {facts, labels} or {tokens}.

    Amounts from one to a billion, and some that fill a whole number of vectors to the last bit.
    """
    amount = (1, 1000, 768 * 16 * 5, 10**9, 12_289)[index % 5]
    return {"tokens": amount} if index % 3 == 0 else {"facts": amount, "labels": (2, 3, 16, 50_304)[index % 4]}


def found_ratio(result: Budget) -> float | None:
    """How many times the smallest bound on a soft prompt, in random tokens, is what tuning found, in tokens of text.

    A comparison, no bound: a token of text has fewer bits than a random one.  None for a model without a measurement.
    """
    slope = found_slope(result.architecture)
    return None if slope is None else result.bounds[result.smallest].tokens / (result.prompt_length * slope)


def evaluate(case: Mapping) -> dict:
    """The bounds of one case of the calculator, as `Budget.as_dict()` has them."""
    architecture, options = _split(case)
    return budget(architecture, **options).as_dict()


def evaluate_question(case: Mapping, question: Mapping) -> dict:
    """The least lengths of one case of the calculator, {bits, lengths of each bound, largest}; infinite is "inf"."""
    architecture, options = _split(case)
    options = {name: options[name] for name in ("precision", "radius", "eps", "lipschitz", "margin") if name in options}
    result = least_length(architecture, **options, **question).as_dict()
    return {"bits": result["bits"], "largest": result["largest"],
            "lengths": {key: least["length"] for key, least in result["bounds"].items()}}  # fmt: skip


def _split(case: Mapping) -> tuple[Architecture, dict]:
    """The architecture of a case, and the rest of it."""
    facts = set(Architecture.__dataclass_fields__)
    shape = {key: value for key, value in case.items() if key in facts}
    if shape.get("cache"):
        shape["cache"] = tuple(map(tuple, shape["cache"]))
    return Architecture(**shape), {key: value for key, value in case.items() if key not in facts}


def calculator() -> str:
    """HTML of the interactive calculator: a place that the scripts in `_static` fill, and the data that they need.

    The data are models, formats, the first setting, the rules for a pasted configuration, what tuning found, and a
    table of settings with the results of this module, with which the script compares its own before it shows any.
    """
    text = json.dumps(_data(), ensure_ascii=True, allow_nan=False).replace("</", "<\\/")
    return (
        '<div class="budget" id="budget-calculator"><p class="budget-missing">The calculator is drawn by a script of '
        "the built book; what you see here is an open notebook, or a browser without scripts. The command "
        "<code>prompt-memory budget</code> computes the same numbers.</p></div>"
        f'<script type="application/json" id="budget-data">{text}</script>'
    )


def _data() -> dict:
    """Everything that the scripts of the page need, as plain numbers, strings, lists and dictionaries."""
    ratios = [found_ratio(budget(p.architecture, 1, radius=p.radius)) for p in PUBLISHED.values()]
    cases = [(case, reference_question(index)) for index, case in enumerate(reference_cases())]
    return {
        "models": {
            name: asdict(published.architecture) | {"radius": published.radius, "slope": published.slope}
            for name, published in PUBLISHED.items()
        },
        "formats": {name: _strict(form._asdict()) for name, form in FORMATS.items()},
        "start": START,
        "known": KNOWN,
        "source": SOURCE,
        "ratio": [min(ratios), max(ratios)],
        "config": rules(),
        "reference": [
            {"input": case, "bounds": values_of(evaluate(case)), "question": question,
             "needed": evaluate_question(case, question)}
            for case, question in cases
        ],
    }  # fmt: skip


def _strict(values: Mapping) -> dict:
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in values.items()}


def values_of(result: Mapping) -> dict:
    """Of each bound its value, bits and tokens; and which one is smallest."""
    numbers = {key: [bound["value"], bound["bits"], bound["tokens"]] for key, bound in result["bounds"].items()}
    return {"values": numbers, "smallest": result["smallest"],
            "vacuous": sorted(key for key, bound in result["bounds"].items() if bound["vacuous"])}  # fmt: skip
