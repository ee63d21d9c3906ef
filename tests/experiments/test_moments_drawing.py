"""The drawing of chapter 6: its numbers are what they say, and its slider works by keyboard and without a network."""

import re
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

import prompt_memory
from prompt_memory import bounds, compress

SVG = (Path(prompt_memory.__file__).parent / "book" / "drawings" / "moments.svg").read_text()
B = 3.0


@pytest.fixture(scope="module")
def drawn():
    return BeautifulSoup(SVG, "html.parser")


def output(prompt, x):
    """The head's output at the queries x; prompt rows are key, value, weight."""
    tokens, queries = prompt[:, :2], np.stack([x, np.zeros_like(x)], 1)
    return compress.attend(tokens, queries, np.diag([B, 0]), np.array([[0.0, 1]]), weights=prompt[:, 2])[:, 0]


def test_few_tokens_have_the_moments_of_the_cloud_and_the_difference_that_is_written(drawn):
    dots = np.array(re.findall(r"M([\d.]+) ([\d.]+)h0", drawn.select_one(".cloud")["d"]), float)
    cloud = np.column_stack([(dots[:, 0] - 155) / 130, (165 - dots[:, 1]) / 115, np.full(len(dots), 1 / len(dots))])
    assert len(cloud) == 160
    x = np.linspace(-1, 1, 41)
    written = drawn.svg["data-difference"].split()
    for k, listed in enumerate(drawn.svg["data-few"].split(";")):
        few = np.array([token.split(",") for token in listed.split(" ")], float)
        assert len(few) == 2 * k + 2
        assert np.abs(few[:, None, :2] - cloud[None, :, :2]).max(2).min(1).max() < 1e-9  # its own tokens
        first, second = (
            (p[:, 2:] * p[:, :1] ** np.arange(k + 1)).T @ np.column_stack([np.ones(len(p)), p[:, 1]])
            for p in (few, cloud)
        )  # means of u^a and u^a v, a <= k
        np.testing.assert_allclose(first, second, atol=5e-5)  # weights are written with five digits
        difference = np.abs(output(few, x) - output(cloud, x)).max()
        assert difference <= bounds.moment_error(k, B, 1.0)
        assert difference == pytest.approx(float(written[k]), abs=0.6 * 10.0 ** -len(written[k].split(".")[1]))


def test_without_a_script_the_drawing_shows_one_of_the_prompts(drawn):
    k, tokens, equal, difference = re.match(
        r"k = (\d): (\d+) tokens, (\d+) equal moments, difference ([\d.]+)", drawn.select_one(".status").get_text()
    ).groups()
    assert (int(tokens), int(equal)) == (2 * int(k) + 2, 2 * int(k) + 1)
    assert len(drawn.select(".discs .few")) == int(tokens)
    assert difference == drawn.svg["data-difference"].split()[int(k)]


def test_the_slider_works_by_keyboard(page):
    page.set_content(f"<figure><div class='drawing'>{SVG}</div></figure>")
    slider, curve = page.locator("input[type=range]"), page.locator(".idea-moments .short")
    before = curve.get_attribute("d")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator(".status").text_content().startswith("k = 6: 14 tokens, 13 equal moments")
    assert slider.get_attribute("aria-valuetext").startswith("k = 6")
    assert page.locator(".discs .few").count() == 14
    assert curve.get_attribute("d") != before
