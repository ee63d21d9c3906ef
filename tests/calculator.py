"""The page of the calculator: drawn alone, and compared with Python in a browser."""

import contextlib
import random
import shutil
from pathlib import Path

import pytest
from building import ROOT

from prompt_memory.real import architectures, budget
from prompt_memory.real.budget.page import values_of

STATIC = ROOT / "book" / "_static"
SCRIPTS = ("budget", "budget-settings", "budget-formulas")
COMPARE = """([cases, tolerance]) => {
  const formats = JSON.parse(document.getElementById("budget-data").textContent).formats;
  const wrong = [];
  for (const { input, wanted, question, least } of cases) {
    const back = least && window.promptMemoryBudget.needed(input, question, formats);
    if (back && back.largest !== least.largest) wrong.push(["largest", back.largest, least.largest]);
    for (const [key, m] of Object.entries(least ? least.lengths : {})) {
      const x = back.lengths[key];
      const same = m > 2 ** 52 ? Math.abs(x - m) <= 1e-12 * m : x === (m === "inf" ? Infinity : m);
      if (!same) wrong.push([key, "length", back.lengths[key], m]);
    }
    const found = window.promptMemoryBudget.bounds(input, formats);
    if (found.smallest !== wanted.smallest) wrong.push(["smallest", found.smallest, wanted.smallest]);
    if (found.vacuous.join() !== wanted.vacuous.join()) wrong.push(["vacuous", found.vacuous, wanted.vacuous]);
    for (const [key, numbers] of Object.entries(wanted.values)) numbers.forEach((y, i) => {
      const x = found.values[key][i];
      const same = y === null ? x === null : x !== null && Math.abs(x - y) <= tolerance * Math.abs(y);
      if (!same) wrong.push([key, i, x, y]);
    });
  }
  return wrong;
}"""


def standalone(folder: Path, calculator: str | None = None) -> str:
    """A page with nothing but the calculator, its script and its style."""
    for path in STATIC.glob("budget*"):
        shutil.copy(path, folder / path.name)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += '<link rel="stylesheet" href="budget.css">'
    head += "".join(f'<script src="{name}.js"></script>' for name in SCRIPTS)  # the last first: any order will do
    body = f'<body style="font-family: DejaVu Sans, sans-serif">{calculator or budget.calculator()}</body>'
    (folder / "page.html").write_text(f'<!doctype html><html data-theme="light"><head>{head}</head>{body}</html>')
    return (folder / "page.html").as_uri()


def check_page(page, uri: str) -> None:
    """The calculator at `uri` agrees with Python at its own table, at random settings, and in what it shows."""
    page.goto(uri)
    assert float(page.locator("#budget-calculator").get_attribute("data-worst")) <= 1e-9
    assert page.evaluate(COMPARE, [random_cases(200), 1e-9]) == []
    shown = {row.get_attribute("data-bound"): float(row.get_attribute("data-bits"))
             for row in page.locator("#budget-calculator tr[data-bound]").all()}  # fmt: skip
    start = budget.START
    published = architectures.PUBLISHED[start["model"]]
    given = {name: start[name] for name in ("queries", "degree", "length")}
    wanted = budget.budget(published.architecture, start["prompt_length"], start["precision"], radius=published.radius,
                           **given).bounds  # fmt: skip
    assert set(shown) == {"counting", "counting_in_radius", "prefix", "hard"}  # nothing rests on what nobody knows
    for key, bits in shown.items():
        assert bits == pytest.approx(wanted[key].bits, rel=1e-9), key
    facts = {fact.get_attribute("data-bound"): float(fact.get_attribute("data-value"))
             for fact in page.locator("#budget-calculator li[data-bound]").all()}  # fmt: skip
    assert set(facts) == {"dimension", "accessible_length", "recall", "exact_compression", "moments"}
    for key, value in facts.items():
        assert value == pytest.approx(wanted[key].value, rel=1e-9), key


def random_cases(count: int) -> list[dict]:
    """Settings as a reader might choose them, with the results of the Python functions."""
    draw, cases = random.Random(5), []
    for _ in range(count):
        kv_heads, head = draw.choice((1, 2, 3, 8)), draw.choice((2, 17, 64, 256))
        case = {
            "name": "x", "family": "x", "width": draw.randint(2, 9000), "layers": draw.choice((1, 2, 40)),
            "heads": kv_heads * draw.choice((1, 4)), "kv_heads": kv_heads, "key_dim": head, "value_dim": head,
            "vocabulary": draw.choice((2, 3, 1000, 262144)), "context": draw.choice((None, 1, 100, 10**6)),
            "norm": draw.choice(("none", "rms", "layer")), "norm_eps": 1e-5, "causal": draw.random() < 0.8,
            "positions": draw.choice(("learned", "rotary", "alibi", "unknown")),
            "logit_cap": draw.choice((None, None, 30.0)),
            "attention": draw.choice(("full", "window", "chunked", "other")),
            "window": draw.choice((None, 1, 50, 10**7)), "written": draw.choice((None, None, 12345)),
            "cache": draw.choice((None, None, [[2, 64, 32], [1, 512, 512]])),
            "compressed": draw.choice((None, None, 576)),
            "prompt_length": draw.randint(1, 10**5),
            "precision": draw.choice(list(budget.FORMATS)), "queries": draw.randint(1, 50), "degree": draw.randrange(9),
            "length": draw.choice((None, 1, draw.randint(1, 10**6))),
        }  # fmt: skip
        if draw.random() < 0.8:
            case["radius"] = 10.0 ** draw.uniform(-3, 4)
            exponent = budget.FORMATS[case["precision"]].exponent
            if exponent and draw.random() < 0.7:  # near the smallest and the largest numbers of the format
                bias = 2 ** (exponent - 1) - 1
                power = draw.choice((-bias, -bias, bias)) + draw.randint(-2, 2)
                case["radius"] = 2.0 ** min(power, 1000) * draw.uniform(0.5, 1)
            if draw.random() < 0.8:
                case["eps"] = max(5e-324, case["radius"] * 10.0 ** draw.uniform(-9, 2))
            if draw.random() < 0.5 and case["radius"] < 1e200:
                case |= {"lipschitz": 10.0 ** draw.uniform(-3, 20), "margin": 10.0 ** draw.uniform(-3, 1)}
        if draw.random() < 0.5:
            case["logit_range"] = draw.uniform(0, 300)
        amount = draw.choice((1, draw.randint(1, 10**5), 10 ** draw.randint(0, 9), case["width"] * draw.randint(1, 99)))
        question = draw.choice(({"tokens": amount}, {"facts": amount, "labels": draw.choice((2, 3, 64, 10**6))}))
        one = {"input": case, "wanted": values_of(budget.evaluate(case))}
        with contextlib.suppress(OverflowError):  # a vector that holds next to nothing
            one |= {"question": question, "least": budget.evaluate_question(case, question)}
        cases.append(one)
    return cases
