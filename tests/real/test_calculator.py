"""The calculator in a real browser."""

import html
import json
import math

import pytest
from calculator import check_page, standalone

from prompt_memory.real import architectures, budget


def test_a_number_that_is_none_switches_the_calculator_off(page, tmp_path):
    page.goto(standalone(tmp_path))
    worst = page.evaluate("""() => {
      const data = JSON.parse(document.getElementById("budget-data").textContent);
      const [first, second] = Object.values(data.reference[0].bounds.values).filter(numbers => numbers[0] !== null);
      first[0] = NaN;
      second[0] *= 1 + 1e-12;
      return window.promptMemoryBudget.worstDifference(data.reference, data.formats);
    }""")
    assert not worst <= 1e-9


def test_the_calculator_agrees_with_python(page, tmp_path):
    check_page(page, standalone(tmp_path))


def test_a_calculator_that_disagrees_shows_no_number(page, tmp_path):
    text = budget.calculator()
    before = '"counting": [12288, 12288, '
    assert before in text
    page.goto(standalone(tmp_path, text.replace(before, '"counting": [12288, 12288.0001, ', 1)))
    place = page.locator("#budget-calculator")
    assert float(place.get_attribute("data-worst")) == pytest.approx(8.1e-9, rel=0.01)
    assert "switched off" in place.inner_text()
    assert page.locator("#budget-calculator input, #budget-calculator table").count() == 0


def test_controls_by_keyboard_and_by_hand(page, tmp_path):
    page.goto(standalone(tmp_path))

    def bits(key: str) -> float:
        return float(page.locator(f'tr[data-bound="{key}"]').get_attribute("data-bits"))

    page.locator("#budget-prompt_length-slider").focus()
    page.keyboard.press("ArrowRight")
    m = int(page.locator("#budget-prompt_length").input_value())
    assert m == 21  # many positions of the slider round to one number, yet a step is a step
    assert bits("counting") == 16 * 768 * m
    page.keyboard.press("Home")
    assert bits("counting") == 16 * 768
    page.locator("#budget-precision").select_option("int4")
    assert bits("counting") == 4 * 768
    page.locator("#budget-model").select_option("Qwen2.5-0.5B")
    assert bits("prefix") == 4 * 24 * 2 * 128
    page.locator("#budget-width").fill("1000")
    assert bits("counting") == 4 * 1000
    assert page.locator("#budget-model").input_value() == "your own"
    assert "4,000 bits" in page.locator(".budget-summary").inner_text()
    page.locator("#budget-width").fill("0")  # out of range: marked, and the last number stays
    assert page.locator("#budget-width").get_attribute("aria-invalid") == "true"
    assert bits("counting") == 4 * 1000
    fields = page.locator("#budget-calculator :is(input, select)").all()
    assert all(field.get_attribute("aria-label") or page.locator(f'label[for="{field.get_attribute("id")}"]').count()
               for field in fields)  # fmt: skip


def test_a_model_of_ones_own_inherits_nothing(page, tmp_path):
    """Llama-3-8B is typed in, from a page that shows Pythia-160M."""
    page.goto(standalone(tmp_path))
    summary = page.locator(".budget-summary")
    assert summary.inner_text().startswith("If all vectors stay within r = 63.62: at most ")
    fields = {"width": 4096, "layers": 32, "kv_heads": 8, "key_dim": 128, "vocabulary": 128256, "context": 8192}
    for name, value in fields.items():
        page.locator(f"#budget-{name}").fill(str(value))
    facts = page.locator(".budget-facts")
    assert page.locator("#budget-model").input_value() == "your own"
    assert page.locator("#budget-heads").input_value() == ""
    assert page.locator('li[data-bound="exact_compression"]').count() == 0
    assert "give H, the heads with queries" in facts.inner_text()
    page.locator("#budget-heads").fill("30")
    assert "H must be a multiple" in facts.inner_text()
    page.locator("#budget-heads").fill("32")

    def value(key: str) -> float:
        return float(page.locator(f'[data-bound="{key}"]').get_attribute("data-value"))

    assert (value("dimension"), value("exact_compression")) == (81920, 131072)
    assert page.locator("#budget-value_dim").input_value() == "128"
    assert summary.inner_text().startswith("At most 1,310,720 bits in this soft prompt, or 77,243")
    for name in ("radius", "eps", "logit_range", "window"):
        assert not page.locator(f"#budget-{name}-known").is_checked()
    for key in ("counting_in_radius", "resolution", "accessible_slope", "dilution", "moments"):
        assert page.locator(f'[data-bound="{key}"]').count() == 0, key
    page.locator("#budget-norm").select_option("layer")
    assert value("dimension") == 81900
    page.locator("#budget-positions").select_option("rotary")
    assert value("moments") == 8 * (129 * 129 - 1) + 1
    page.locator("#budget-window").fill("512")  # typing says that it is known
    page.locator("#budget-logit_range-known").check()
    assert value("dilution") == pytest.approx(1 / (1 + 511 * math.exp(-10)))
    assert page.locator('[data-bound="moments"]').count() == 0
    page.locator("#budget-value_dim").fill("64")
    page.locator("#budget-key_dim").fill("256")
    assert (page.locator("#budget-value_dim").input_value(), value("exact_compression")) == ("64", 65536)
    page.locator("#budget-causal").select_option("false")
    assert page.locator('[data-bound="accessible_length"]').count() == 0
    page.locator("#budget-radius").fill("3")
    assert summary.inner_text().startswith("If all vectors stay within r = 3: at most ")
    page.locator("#budget-eps").fill("0.1")  # more is shown, and the headline stays: not all strings are told apart
    before = summary.inner_text()
    told_apart = float(page.locator('tr[data-bound="resolution"]').get_attribute("data-bits"))
    assert told_apart == pytest.approx(20 * 4096 * math.log2(61))
    assert summary.inner_text() == before
    page.locator("#budget-model").select_option("Gemma-3-270M")
    assert (page.locator("#budget-heads").input_value(), page.locator("#budget-window").input_value()) == ("4", "512")
    assert page.locator("#budget-window-known").is_checked()
    assert value("exact_compression") == 18 * 4 * 256


def test_leaving_a_published_model_by_any_field_forgets_its_radius(page, tmp_path):
    for change in ("heads", "value_dim", "kv_heads", "context", "window"):
        page.goto(standalone(tmp_path))
        page.locator(f"#budget-{change}").fill("48")
        assert page.locator("#budget-model").input_value() == "your own"
        assert not page.locator("#budget-radius-known").is_checked()
        assert page.locator(".budget-summary").inner_text().startswith("At most ")
        assert page.locator("#budget-norm").input_value() == "none"
    page.goto(standalone(tmp_path))
    page.locator("#budget-radius").fill("5")  # a question about the same model
    assert page.locator("#budget-model").input_value() == "Pythia-160M"
    page.locator("#budget-radius").fill("")
    assert page.locator(".budget-summary").inner_text().startswith("At most 245,760 bits")


@pytest.mark.parametrize(("width", "theme"), [(320, "dark"), (1280, "light")])
def test_nothing_overlaps_or_leaves_the_page(page, tmp_path, width, theme):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(standalone(tmp_path))
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    for prompt_length, precision in (("1", "fp64"), ("10000", "int1")):
        page.locator("#budget-prompt_length").fill(prompt_length)
        page.locator("#budget-precision").select_option(precision)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        boxes = page.evaluate(
            """() => [...document.querySelectorAll("#budget-calculator svg text")].map(e => {
              const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom, e.textContent]; })"""
        )
        frame = page.locator("#budget-calculator svg").bounding_box()
        for i, (left, top, right, bottom, text) in enumerate(boxes):
            assert left >= frame["x"] - 1, text
            assert right <= frame["x"] + frame["width"] + 1, text
            for other in boxes[:i]:
                apart = left >= other[2] or right <= other[0] or top >= other[3] - 2 or bottom <= other[1] + 2
                assert apart, f"{text!r} covers {other[4]!r}"


def test_the_data_survive_the_page():
    text = budget.calculator()
    inside = text.split('id="budget-data">')[1].split("</script>")[0]
    assert json.loads(inside)["start"] == budget.START
    assert "Infinity" not in inside
    assert "NaN" not in inside
    assert html.unescape(inside) == inside


def row(page, key: str, what: str) -> float:
    return float(page.locator(f'tr[data-bound="{key}"]').get_attribute(f"data-{what}"))


def test_the_other_way_is_the_inverse(page, tmp_path):
    """How many vectors: the lengths of Python's `least_length`, and what is asked of the prompt alone is put away."""
    page.goto(standalone(tmp_path))
    pythia = architectures.PUBLISHED["Pythia-160M"]
    for ask, fields in (
        ("tokens", {"tokens": 1000}), ("facts", {"facts": 5000}), ("facts", {"facts": 12288 * 7, "labels": 2}),
        ("facts", {"facts": 12288 * 7 + 1, "labels": 2}), ("tokens", {"tokens": 10**9}),
        ("facts", {"facts": 10**9, "labels": 3}),
    ):  # fmt: skip
        page.locator(f"#budget-ask-{ask}").check()
        for name, value in fields.items():
            page.locator(f"#budget-{name}").fill(str(value))
        wanted = budget.least_length(pythia.architecture, radius=pythia.radius, **fields)
        for key in ("counting", "counting_in_radius", "prefix", "hard"):
            assert row(page, key, "length") == wanted.bounds[key].length
        summary = page.locator(".budget-summary").inner_text()
        assert f"t least {wanted.length:,} vector{'s' * (wanted.length > 1)} for " in summary
        assert "no bound says" in summary
        assert page.locator(".budget-facts").is_hidden()
        assert page.locator("#budget-prompt_length").is_hidden()
        assert page.locator("#budget-labels").is_visible() == (ask == "facts")
    page.locator("#budget-facts").fill("0")
    assert page.locator("#budget-facts").get_attribute("aria-invalid") == "true"
    page.locator("#budget-precision").select_option("fp16")
    page.locator("#budget-radius").fill("0.01")
    page.locator("#budget-eps").fill("0.5")
    wanted = budget.least_length(pythia.architecture, facts=10**9, labels=3, precision="fp16", radius=0.01, eps=0.5)
    for key in ("counting_in_radius", "resolution"):
        assert row(page, key, "length") == wanted.bounds[key].length
    page.locator("#budget-ask-prompt").check()
    assert page.locator(".budget-facts").is_visible()


def test_a_wrong_least_length_switches_the_calculator_off(page, tmp_path):
    before, text = '"lengths": {"counting": ', budget.calculator()
    page.goto(standalone(tmp_path, text.replace(before, f"{before}1", 1)))  # one digit too many
    assert "switched off" in page.locator("#budget-calculator").inner_text()


def test_what_tuning_found_stands_beside_the_bound_and_is_none(page, tmp_path):
    page.goto(standalone(tmp_path))
    tuned, found = page.locator(".budget-tuned"), page.locator("tr[data-found]")
    for name, published in architectures.PUBLISHED.items():
        page.locator("#budget-model").select_option(name)
        assert float(found.get_attribute("data-found")) == published.slope
        assert "no bound" in found.inner_text()
        ratio = budget.found_ratio(budget.budget(published.architecture, 20, radius=published.radius))
        assert f"{published.slope:g} tokens a vector (natural text, {architectures.SOURCE})" in tuned.inner_text()
        assert f"smallest bound is {ratio:.3g} times" in tuned.inner_text()
        page.locator("#budget-ask-tokens").check()
        wanted = budget.least_length(published.architecture, tokens=1000).found.length
        assert f"about {wanted:,}" in found.inner_text()
        assert f"about {wanted:,} vectors for 1,000 tokens of text" in tuned.inner_text()
        page.locator("#budget-ask-facts").check()
        assert "nothing was measured" in tuned.inner_text()
        page.locator("#budget-ask-prompt").check()
    page.locator("#budget-width").fill("768")
    assert found.count() == 0
    published = architectures.PUBLISHED.values()
    ratios = [budget.found_ratio(budget.budget(one.architecture, 20, radius=one.radius)) for one in published]
    assert "nothing was measured" in tuned.inner_text()
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times" in tuned.inner_text()
    assert "no bound" in tuned.inner_text()


def shown(page) -> tuple:
    """Every control and every result."""
    fields = "es => es.map(e => [e.id, e.type === 'checkbox' || e.type === 'radio' ? e.checked : e.value])"
    controls = page.locator("#budget-calculator :is(input:not([type=range]), select)").evaluate_all(fields)
    unknown = {f"budget-{name}" for name in ("context", "window", "logit_cap", "radius", "eps", "logit_range")
               if not page.locator(f"#budget-{name}-known").is_checked()}  # fmt: skip
    kept = [control for control in controls if control[0] not in unknown]  # a number that is not known says nothing
    return kept, page.locator(".budget-summary").inner_text(), page.locator("#budget-calculator table").inner_text()


def test_the_address_keeps_the_settings(page, tmp_path):
    start = standalone(tmp_path)
    page.goto(start)
    at_start = shown(page)
    assert page.url == start
    steps = (
        lambda: page.locator("#budget-prompt_length").fill("123"),
        lambda: page.locator("#budget-radius").fill("7.25"),
        lambda: page.locator("#budget-eps-known").check(),
        lambda: page.locator("#budget-model").select_option("Gemma-3-270M"),
        lambda: page.locator("#budget-ask-facts").check(),
        lambda: page.locator("#budget-labels").fill("7"),
        lambda: page.locator("#budget-precision").select_option("int4"),
        lambda: page.locator("#budget-key_dim").fill("96"),
        lambda: page.locator("#budget-heads").fill("8"),
        lambda: page.locator("#budget-logit_cap").fill("30"),
        lambda: page.locator("#budget-positions").select_option("alibi"),
        lambda: page.locator("#budget-causal").select_option("false"),
        lambda: page.locator("#budget-context-known").uncheck(),
        lambda: page.locator("#budget-ask-tokens").check(),
    )
    other = page.context.new_page()
    for step in steps:
        before = page.url
        step()
        page.wait_for_url(lambda url, before=before: url != before)  # the address follows after a moment
        assert page.url.startswith(f"{start}#budget-calculator?")
        other.goto("about:blank")
        other.goto(page.url)
        assert shown(other) == shown(page)
    page.goto("about:blank")
    page.goto(f"{start}#budget-calculator?prompt_length=21")
    page.locator("#budget-prompt_length").fill("20")
    page.wait_for_url(start)
    assert shown(page) == at_start


def test_an_address_that_cannot_be_read_shows_the_start(page, tmp_path):
    start = standalone(tmp_path)
    page.goto(start)
    at_start = shown(page)
    alert = page.locator(".budget-wrong")
    for part in (
        "width=5000", "model=your+own&width=abc", "model=your+own&width=1e9", "model=none", "prompt_length=1.5",
        "prompt_length=", "prompt_length=5&prompt_length=6", "what=5", "precision=fp99", "ask=everything",
        "__proto__=1", "causal=maybe", "model=your+own&norm=rms", "facts=-1", "radius=%E0%A4", "constructor=1",
        "radius=0x10000000",
    ):  # fmt: skip
        page.goto("about:blank")
        page.goto(f"{start}#budget-calculator?{part}")
        assert alert.is_visible(), part
        assert len(alert.inner_text().splitlines()) == 1
        assert shown(page) == at_start, part
        page.locator("#budget-prompt_length").fill("21")
        assert alert.is_hidden()
    page.goto("about:blank")
    page.goto(f"{start}#fig-budgets")  # another place of the page, which is none of the calculator's business
    assert alert.is_hidden()
    page.evaluate("location.hash = '#budget-calculator?precision=int4'")
    page.wait_for_function("document.getElementById('budget-precision').value === 'int4'")
    page.evaluate("location.hash = '#budget-calculator'")
    page.wait_for_function("document.getElementById('budget-precision').value === 'bf16'")
    assert shown(page) == at_start
