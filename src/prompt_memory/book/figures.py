"""One look for every figure of the book: inline, light and dark, legible on a phone, the same bytes every time."""

import base64
import contextlib
import csv
import html
import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.optimize import isotonic_regression

from prompt_memory.book.verdicts import mathjax, power_of_ten, readable

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
_PHONE = 600  # CSS pixels: pages that are not wider show the narrow version
NARROW = 3.9  # inches: the width of that version


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
    """A drawn figure as Jupyter and the book display it: images for light and dark pages, for a desk and a phone.

    With a `name` it is a numbered figure of its page: the build writes the chapter's number into it and into the links
    to `#fig-<name>`.
    """

    def __init__(self, images: dict[str, dict[str, str]], alt: str, width: int, *, name="", finding="", caption="",
                 data: str = ""):  # fmt: skip
        self.images, self.alt, self.width = images, alt, width
        self.name, self.finding, self.caption, self.data = name, finding, caption, data

    def _repr_html_(self) -> str:
        tags = "".join(
            # Where no theme switches (JupyterLab), the inline style leaves only the light one.
            f'<picture><source media="(max-width: {_PHONE}px)" srcset="{of["narrow"]}">'
            f'<img class="only-{mode}" alt="{html.escape(self.alt)}" src="{of["wide"]}"'
            f' style="max-width:100%;width:{self.width}px;height:auto;'
            f'display:{"block" if mode == "light" else "none"}"></picture>'
            for mode, of in self.images.items()
        )
        return _figure(tags, self.name, self.finding, self.caption, self.data)

    def __repr__(self) -> str:
        return f"Figure: {self.finding or self.alt}"


class Drawing:
    """A drawing of an idea, written by hand as SVG: it takes the colours of its page by itself."""

    def __init__(self, svg: str, alt: str, *, name: str, finding: str, caption: str = ""):
        self.svg, self.alt, self.name, self.finding, self.caption = svg, alt, name, finding, caption

    def _repr_html_(self) -> str:
        described = f'<div class="drawing" role="img" aria-label="{html.escape(self.alt)}">{self.svg}</div>'
        return _figure(described, self.name, self.finding, self.caption, "")

    def __repr__(self) -> str:
        return f"Drawing: {self.finding}"


def _figure(inside: str, name: str, finding: str, caption: str, data: str) -> str:
    if not name:
        return f'<div class="picture">{inside}</div>'
    link = ""
    if data:
        content = base64.b64encode(data.encode()).decode()
        link = f' <a class="figure-data" download="{name}.csv" href="data:text/csv;base64,{content}">Data (CSV)</a>'
    words = f"<strong>{mathjax(html.escape(finding))}</strong> {mathjax(html.escape(caption))}{link}"
    number = '<span class="figure-number">Figure</span>. '
    return (
        f'<figure class="picture mathjax_process" id="fig-{name}">{inside}'
        f"<figcaption>{number}{words}</figcaption></figure>"
    )


def show(
    draw, *, alt: str, name: str = "", finding: str = "", caption: str = "",
    size: tuple[float, float] = (7, 4), panels: int = 1, raster: bool = False,
) -> Picture:  # fmt: skip
    """Draw a figure for light and dark pages, for a desk and for a phone.

    `draw(fig)` receives an empty matplotlib figure and fills it, taking colours from `COLOURS`; it is called four times
    (twice `size` inches, twice `NARROW` wide), so it must not change data. Panels side by side come from `panels(fig,
    k)`, which stacks them on a narrow figure; `panels=k` here gives those room. `alt` says in words what the figure
    shows; `finding` is one sentence that says what it found, `caption` the rest; both may hold $mathematics$. `name` is
    the figure's anchor, `#fig-name`. The data behind lines, points and bars are offered as a CSV file. `raster` makes
    PNG images (for more points than a vector image should hold). Returns an object that notebooks display.
    ValueError if `alt` is empty, or if a named figure has no finding.
    """
    if not alt or not alt.strip():
        raise ValueError("A figure needs alt text: say what it shows.")
    if bool(name) != bool(finding):
        raise ValueError("A numbered figure needs a name and a finding.")
    kind = "png" if raster else "svg+xml"
    sizes = {"wide": size, "narrow": (NARROW, panels * min(size[1], 3.3))}
    images = {mode: {} for mode in _MODES}
    for mode, (shape, inches) in itertools.product(_MODES, sizes.items()):
        encoded = base64.b64encode(drawn(draw, mode=mode, size=inches, raster=raster)).decode()
        images[mode][shape] = f"data:image/{kind};base64,{encoded}"
    data = points(draw, size) if name else ""
    return Picture(
        images, " ".join(alt.split()), round(size[0] * _DOTS_PER_INCH), name=name, finding=finding, caption=caption,
        data=data,
    )  # fmt: skip


def drawing(name: str, *, alt: str, finding: str, caption: str = "") -> Drawing:
    """The drawing `drawings/<name>.svg` of this package as a numbered figure; arguments as in `show`."""
    svg = (Path(__file__).parent / "drawings" / f"{name}.svg").read_text(encoding="utf-8")
    return Drawing(svg, " ".join(alt.split()), name=name, finding=finding, caption=caption)


def panels(figure: Figure, count: int, **options) -> np.ndarray:
    """`count` axes side by side, or below each other where the figure is narrow; `options` as in `Figure.subplots`."""
    shape = (count, 1) if narrow(figure) else (1, count)
    return figure.subplots(*shape, squeeze=False, **options).ravel()


def narrow(figure: Figure) -> bool:
    """Is this the version for phones? Then leave out what does not fit."""
    return figure.get_figwidth() <= NARROW


def points(draw, size: tuple[float, float], limit: int = 20_000) -> str:
    """What is drawn as lines, points, bars and error bars, as CSV: panel, series, kind, x, y. "" if more than `limit`.

    A series is named by its label, else by the role of its colour.
    """
    with style("light"):
        figure = Figure(figsize=size)
        draw(figure)
    roles = {colours[0]: name for name, colours in _COLOURS.items()}
    rows = []
    for index, ax in enumerate(figure.axes):
        panel = ax.get_title(loc="left") or ax.get_title() or str(index + 1)

        def series(artist, colour):
            label = str(artist.get_label())
            return label if label and not label.startswith("_") else roles.get(to_hex(colour), "")

        for line in ax.lines:
            rows += [(panel, series(line, line.get_color()), "line", x, y) for x, y in line.get_xydata()]
        for found in ax.collections:
            colours = found.get_edgecolor() if len(found.get_edgecolor()) else found.get_facecolor()
            name = series(found, colours[0]) if len(colours) else ""
            if isinstance(found, PathCollection):
                rows += [(panel, name, "point", x, y) for x, y in np.ma.getdata(found.get_offsets())]
            elif isinstance(found, LineCollection):
                rows += [(panel, name, "segment", x, y) for part in found.get_segments() for x, y in part]
        for bar in (patch for patch in ax.patches if isinstance(patch, Rectangle)):
            x, width = bar.get_x(), bar.get_width()
            rows.append((panel, series(bar, bar.get_facecolor()), "bar", x + width / 2, bar.get_y() + bar.get_height()))
    if not rows or len(rows) > limit:
        return ""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("panel", "series", "kind", "x", "y"))
    writer.writerows((*row[:3], *(f"{float(value):.6g}" for value in row[3:])) for row in rows)
    return stream.getvalue()


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


def legend_below(figure: Figure, handles=None) -> None:
    """Names of lines and points, each in its colour, below all axes, where they cover nothing; `handles` or all."""
    handles = [each for ax in figure.axes for each in ax.get_legend_handles_labels()[0]] if handles is None else handles
    colours = [getattr(each, "lines", [each])[0].get_color() for each in handles]  # of an error bar: its line
    figure.legend(handles=handles, loc="outside lower left", ncols=1 if narrow(figure) else 2, labelcolor=colours)


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


def agreement(ax, line: np.ndarray) -> None:
    """Logarithmic axes with the diagonal over `line`, where measured is forecast, and the band of a third around it."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.fill_between(line, line * 2 / 3, line * 4 / 3, color=COLOURS["predicted"], alpha=0.18, linewidth=0)
    ax.plot(line, line, color=COLOURS["predicted"])


def forbid(ax, x, lower, upper, *, text: str | None = None):
    """Shade the region between `lower` and `upper` over `x` that a theorem forbids; `text` names it."""
    region = ax.fill_between(x, lower, upper, color=COLOURS["forbidden"], alpha=0.13, linewidth=0, zorder=0)
    if text is not None:
        ax.text(0.98, 0.95, text, transform=ax.transAxes, ha="right", va="top", fontsize=9, color=COLOURS["forbidden"])
    return region
