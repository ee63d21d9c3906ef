import base64
import re

import numpy as np
import pytest

from prompt_memory.book import figures


def example(figure):
    ax = figure.subplots()
    x = np.arange(5.0)
    ax.plot(x, x, color=figures.COLOURS["bound"])
    figures.label_line(ax, x, x, "bound", colour="bound")
    figures.forbid(ax, x, x, 5, text="forbidden")
    ax.set_title("A title that is so long that it would never fit on one line above the axes of this figure, never")


def images(picture):
    return [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", picture._repr_html_())]


def test_light_and_dark_differ_and_repeat_byte_for_byte():
    first, second = (images(figures.show(example, alt="An example.")) for _ in range(2))
    assert len(first) == 4  # for a phone and for a desk, in light and in dark
    assert first == second
    assert figures.COLOURS["bound"].encode() in first[0]
    assert len(set(first)) == 4
    assert b"<dc:date>" not in first[0]


def test_html_is_switchable_responsive_and_described():
    html = figures.show(example, alt='Says "so" & more.')._repr_html_()
    assert html.count('alt="Says &quot;so&quot; &amp; more."') == 2
    assert 'class="only-light"' in html
    assert 'class="only-dark"' in html
    assert "max-width:100%" in html
    assert html.count("display:none") == 1  # only the light one where no theme switches


def test_a_numbered_figure_says_its_finding_outside_the_image_and_offers_its_data():
    def draw(figure):
        left, right = figures.panels(figure, 2)
        left.plot([1, 2], [0.5, 0.25], label="fit")
        right.scatter([3.0], [4.0], color=figures.COLOURS["measured"])
        assert figures.narrow(figure) == (figure.get_figwidth() < 5)
        assert (left.get_subplotspec().get_gridspec().ncols == 1) == figures.narrow(figure)

    shown = figures.show(draw, alt="x", name="every-prompt", finding="It holds & $a < b$.", caption="More.", panels=2)
    html = shown._repr_html_()
    assert '<figure class="picture mathjax_process" id="fig-every-prompt">' in html
    assert r"<strong>It holds &amp; \(a &lt; b\).</strong> More." in html
    assert '<source media="(max-width: 600px)"' in html
    data = base64.b64decode(re.search(r'text/csv;base64,([^"]+)"', html)[1]).decode()
    assert data.splitlines() == [
        "panel,series,kind,x,y", "1,fit,line,1,0.5", "1,fit,line,2,0.25", "2,measured,point,3,4",
    ]  # fmt: skip


def test_a_numbered_figure_needs_a_finding():
    with pytest.raises(ValueError, match="finding"):
        figures.show(example, alt="x", name="a")


def test_raster_images_are_png():
    assert all(data.startswith(b"\x89PNG") for data in images(figures.show(example, alt="x", raster=True)))


@pytest.mark.parametrize("alt", ["", "  "])
def test_alt_text_is_mandatory(alt):
    with pytest.raises(ValueError, match="alt text"):
        figures.show(example, alt=alt)


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_are_legible_on_their_page(mode):
    with figures.style(mode):
        page = luminance(figures.COLOURS["page"])
        for name in set(figures.COLOURS) - {"page"}:
            high, low = sorted((luminance(figures.COLOURS[name]), page), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_the_mode_ends_with_its_block():
    before = figures.COLOURS["text"]
    with pytest.raises(RuntimeError), figures.style("dark"):
        raise RuntimeError
    assert figures.COLOURS["text"] == before


def test_a_table_escapes_its_cells_and_scrolls():
    shown = figures.Table(["a<b", "n"], [["x & y", 1]])._repr_html_()
    assert "<th>a&lt;b</th>" in shown
    assert "<td>x &amp; y</td><td>1</td>" in shown
    assert "overflow-x:auto" in shown


def test_a_table_prints_numbers_as_a_book_does():
    row = [f"{3.15e4:.2e}", f"{-2e-16:.0e}", "-0.5", "in [-1, 1]", "Pythia-160M", "10-20", "1e5 and inf"]
    shown = figures.Table(["x"] * len(row), [row])._repr_html_()
    cells = ["3.15·10⁴", "−2·10⁻¹⁶", "−0.5", "in [−1, 1]", "Pythia-160M", "10-20", "1e5 and inf"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in shown


@pytest.mark.parametrize(
    ("value", "up", "text"),
    [
        (3.2e-10, True, "4·10⁻¹⁰"),
        (3.2e-10, False, "3·10⁻¹⁰"),
        (1e-6, True, "10⁻⁶"),
        (9.5e4, True, "10⁵"),
        (0, True, "0"),
    ],
)
def test_scientific_rounds_to_the_side_it_is_told(value, up, text):
    assert figures.scientific(value, up=up) == text


def test_scientific_refuses_what_it_cannot_write():
    with pytest.raises(ValueError, match="finite numbers >= 0"):
        figures.scientific(-1.0, up=True)


def test_labels_are_spread_apart_and_moved_as_little_as_can_be():
    wished = [1.0, 1.02, 0.99, 5.0, 1.02]
    placed = figures.spread(wished, 0.1)
    assert np.diff(np.sort(placed)).min() > 0.1 - 1e-9
    assert np.array_equal(np.argsort(placed, kind="stable"), np.argsort(wished, kind="stable"))
    assert placed[3] == 5.0
    assert np.mean(placed) == pytest.approx(np.mean(wished))  # a crowd spreads around its middle
    assert figures.spread([3.0, 1.0, 2.0], 0.5) == [3.0, 1.0, 2.0]
    assert figures.spread([], 1) == []
    with pytest.raises(ValueError, match="finite"):
        figures.spread([float("nan")], 1)
    with pytest.raises(ValueError, match="gap"):
        figures.spread([1.0], -1)
