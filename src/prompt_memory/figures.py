"""One look for every figure of the book: inline, light and dark, legible on a phone, the same bytes every time."""

import base64
import contextlib
import html
import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from prompt_memory.claims import power_of_ten, readable

# Colour-blind-safe (after Okabe and Ito), lightened for dark pages. The same thing has the same colour everywhere.
_COLOURS = {
    #               light      dark
    "bound": ("#b3420a", "#ff9a5c"),
    "measured": ("#0b62a4", "#6fb8f0"),
    "constructed": ("#00785a", "#3fcf9f"),
    "heuristic": ("#8a3f78", "#e29cc8"),
    "predicted": ("#7a5c00", "#e8c547"),
    "forbidden": ("#b3420a", "#ff9a5c"),
    "neutral": ("#5c6670", "#a7b0ba"),
    "text": ("#1c2127", "#e3e7eb"),
    "page": ("#ffffff", "#14181e"),
}
_MODES = ("light", "dark")
_DOTS_PER_INCH = 96  # CSS pixels: a 7-inch figure is 672 pixels wide
_LEAST_WIDTH = "34rem"  # below it the labels of a 7-inch figure would be too small: the figure scrolls instead


class _Palette(Mapping):
    """Colour names to values; inside `show` the values of the mode that is being drawn, light ones elsewhere."""

    mode = "light"

    def __getitem__(self, name: str) -> str:
        return _COLOURS[name][_MODES.index(self.mode)]

    def __iter__(self):
        return iter(_COLOURS)

    def __len__(self) -> int:
        return len(_COLOURS)


COLOURS = _Palette()


@contextlib.contextmanager
def style(mode: str):
    """Draw in "light" or "dark" mode inside the block: matplotlib's settings and `COLOURS`."""
    text, neutral = (_COLOURS[name][_MODES.index(mode)] for name in ("text", "neutral"))
    settings = {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.color": neutral,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "svg.hashsalt": "prompt-memory",
        "svg.fonttype": "path",
    }
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), text)
    settings |= dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), neutral)
    settings |= dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), text)
    before, _Palette.mode = _Palette.mode, mode
    try:
        with matplotlib.style.context(settings, after_reset=True):  # a reader's matplotlibrc changes no picture
            yield
    finally:
        _Palette.mode = before


class Picture:
    """A drawn figure as Jupyter and the book display it: one image for light pages, one for dark ones."""

    def __init__(self, images: dict[str, str], alt: str, width: int):
        self.images, self.alt, self.width = images, alt, width

    def _repr_html_(self) -> str:
        look = f"max-width:100%;width:{self.width}px;min-width:min({_LEAST_WIDTH},{self.width}px);height:auto"
        tags = "".join(
            # Where no theme switches (JupyterLab), the inline style leaves only the light one.
            f'<img class="only-{mode}" alt="{html.escape(self.alt)}" src="{image}"'
            f' style="{look};display:{"block" if mode == "light" else "none"}">'
            for mode, image in self.images.items()
        )
        return f'<div class="picture" style="overflow-x:auto" tabindex="0">{tags}</div>'

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def show(draw, *, alt: str, size: tuple[float, float] = (7, 4), raster: bool = False) -> Picture:
    """Draw a figure once for light and once for dark pages.

    `draw(fig)` receives an empty matplotlib figure of `size` (inches) and fills it, taking colours from `COLOURS`; it
    is called twice, so it must not change data. `alt` says in words what the figure shows. `raster` makes PNG images
    (for more points than a vector image should hold). Returns an object that notebooks display.
    ValueError if `alt` is empty.
    """
    if not alt or not alt.strip():
        raise ValueError("A figure needs alt text: say what it shows.")
    kind = "png" if raster else "svg+xml"
    images = {}
    for mode in _MODES:
        encoded = base64.b64encode(drawn(draw, mode=mode, size=size, raster=raster)).decode()
        images[mode] = f"data:image/{kind};base64,{encoded}"
    return Picture(images, " ".join(alt.split()), round(size[0] * _DOTS_PER_INCH))


def _wrap_titles(figure: Figure) -> None:
    """Break titles that are wider than their axes: matplotlib would cut them at the figure's edge."""
    for ax in figure.axes:
        place = ax.get_subplotspec()
        columns = place.get_gridspec().ncols if place else 1
        letters = int(figure.get_figwidth() * 72 / columns / (0.6 * matplotlib.rcParams["axes.titlesize"]))
        ax.set_title(textwrap.fill(ax.get_title(loc="left"), letters))


def drawn(draw, *, mode: str = "light", size: tuple[float, float] = (7, 4), raster: bool = False) -> bytes:
    """One figure, `draw` as in `show`, as an SVG file (or PNG with `raster`): the same bytes every time."""
    buffer = io.BytesIO()
    with style(mode):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        _wrap_titles(figure)
        if raster:
            figure.savefig(buffer, format="png", dpi=2 * _DOTS_PER_INCH, metadata={"Software": None})
        else:
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


class Table:
    """A table as Jupyter and the book display it; `header` and `rows` hold plain text.

    Numbers that Python writes as 3.1e-05 are shown as 3.1·10⁻⁵, and a minus sign before a digit as such.
    """

    def __init__(self, header, rows):
        self.header, self.rows = list(header), [list(row) for row in rows]

    def _repr_html_(self) -> str:
        def line(cells, tag):
            return "<tr>" + "".join(f"<{tag}>{html.escape(readable(str(cell)))}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        table = f"<table><thead>{line(self.header, 'th')}</thead><tbody>{body}</tbody></table>"
        return f'<div class="plain-table" style="overflow-x:auto" tabindex="0">{table}</div>'

    def __repr__(self) -> str:
        return "\n".join(" | ".join(map(str, row)) for row in [self.header, *self.rows])


def scientific(value: float, *, up: bool) -> str:
    """A positive number in one digit, such as 3·10⁻¹⁰, rounded up or down: the side on which a sentence stays true.

    ValueError if `value` is negative or not finite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"scientific writes finite numbers >= 0, not {value}")
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(value))
    digit = value / 10.0**exponent
    digit = math.ceil(digit - 1e-9) if up else math.floor(digit + 1e-9)
    if digit == 10:
        digit, exponent = 1, exponent + 1
    power = power_of_ten(exponent)
    return power if digit == 1 else f"{digit}·{power}"


def label_line(ax, x, y, text: str, *, colour: str, where: float = 1.0, above: bool = True, **options):
    """Write `text` on the line (x, y), in its colour, at the fraction `where` of its points: no legend needed."""
    index = min(len(x) - 1, max(0, round(where * (len(x) - 1))))
    defaults = {
        "xytext": (0, 5 if above else -5),
        "textcoords": "offset points",
        "ha": "right" if where > 0.5 else "left",
        "va": "bottom" if above else "top",
        "fontsize": 9,
    }
    return ax.annotate(text, (x[index], y[index]), color=COLOURS.get(colour, colour), **(defaults | options))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights for labels that keep their order and lie at least `gap` apart, as near to those wished for as can be.

    The least sum of squared shifts; ties keep the order given.  ValueError if a height is not finite or gap < 0.
    """
    wished = np.asarray(heights, dtype=float)
    if not (np.isfinite(wished).all() and math.isfinite(gap) and gap >= 0):
        raise ValueError("heights must be finite and the gap a finite number >= 0")
    if not wished.size:
        return []
    order = np.argsort(wished, kind="stable")
    steps = gap * np.arange(len(wished))
    placed = np.empty_like(wished)
    placed[order] = isotonic_regression(wished[order] - steps).x + steps
    return placed.tolist()


def forbid(ax, x, lower, upper, *, text: str | None = None):
    """Shade the region between `lower` and `upper` over `x` that a theorem forbids; `text` names it."""
    region = ax.fill_between(x, lower, upper, color=COLOURS["forbidden"], alpha=0.13, linewidth=0, zorder=0)
    if text is not None:
        ax.text(0.98, 0.95, text, transform=ax.transAxes, ha="right", va="top", fontsize=9, color=COLOURS["forbidden"])
    return region
