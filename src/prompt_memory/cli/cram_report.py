"""The tables and the figure of a cramming sweep."""

import csv
import io
from pathlib import Path

from prompt_memory.files import write_bytes


class Report:
    """The tables and the figure of a cramming sweep; `cram.csv` is on disk after every chunk."""

    def __init__(self, folder: Path, places, longest: int, d: int, q: int, bits: int, seed: int):
        self.folder, self.places, self.longest, self.d, self.q = folder, places, longest, d, q
        self.bits, self.seed, self.lost = bits, seed, set()  # (m, string) of searches with runs that were lost

    def write(self, lengths: dict[int, list[int]]) -> None:
        """Write `cram.csv`: a row for each string of each prompt length."""
        rows = [
            (m, index, self.places[index], length, int(length == self.longest), int((m, index) in self.lost))
            for m, found in lengths.items()
            for index, length in enumerate(found)
        ]
        header = ("m", "string", "first_token", "longest_found", "ended", "not_finite")
        _write_csv(self.folder / "cram.csv", header, rows)

    def raise_for_lost(self) -> None:
        """RuntimeError if runs were lost to a loss that was not finite."""
        if self.lost:
            m, string = min(self.lost)
            raise RuntimeError(
                f"the loss was not finite in runs of {len(self.lost)} searches, string {string} at m = {m} first "
                "(not_finite in cram.csv): lower --learning-rate or --scale"
            )

    def summary(self, lengths, n50) -> list[tuple]:
        """A row for each m, written to `summary.csv`."""
        import numpy as np

        from prompt_memory import bounds, intervals

        def inside(found) -> float:
            return min(n50(np.asarray(found), self.longest), float(self.longest))

        random, rows = np.random.default_rng(self.seed), []
        for m, found in sorted(lengths.items()):
            centre = inside(found)
            low, high = intervals.bootstrap(found, inside, random, resamples=200)
            bound = bounds.critical_length(bounds.counting_bits(self.d, m, self.bits), self.q)
            ended = sum(length == self.longest for length in found)
            rows.append((m, len(found), centre, low, high, ended, bound))
        header = ("m", "strings", "n50", "low", "high", "ended", "bound")
        _write_csv(self.folder / "summary.csv", header, rows)
        return rows

    def table(self, rows) -> str:
        """The summary as text."""
        lines = [f"{'m':>5} {'strings':>8} {'n50':>8} {'95 % interval':>18} {'ended':>6} {'bound':>10}"]
        for m, strings, centre, low, high, ended, bound in rows:
            lines.append(f"{m:5} {strings:8} {centre:8.2f} {f'{low:.2f} to {high:.2f}':>18} {ended:6} {bound:10.1f}")
        lines.append(
            "n50: tokens at which half of the strings were still found; ended: strings found to their end, so that"
        )
        lines.append("n50 may be larger; bound: Theorem 4 with all bits of the prompt, for random strings")
        return "\n".join(lines)

    def files(self, lengths, rows, what: str) -> str:
        """The figure is drawn; what lies in the folder, in words."""
        written, lines = [self.folder / "cram.csv", self.folder / "summary.csv"], []
        try:
            from prompt_memory.book import figures
        except ImportError as error:
            lines.append(f"no figure: {error}")
        else:
            written.append(self._figure(figures, lengths, rows, what))
        return "\n".join([*lines, "written: " + ", ".join(map(str, written))])

    def _figure(self, figures, lengths, rows, what: str) -> Path:
        m, centre, low, high = ([row[column] for row in rows] for column in (0, 2, 3, 4))

        def draw(figure):
            ax = figure.subplots()
            grey = figures.COLOURS["neutral"]
            for length, found in lengths.items():
                ax.plot([length] * len(found), found, "_", color=grey, alpha=0.5)
            error = [[max(0.0, c - x) for c, x in zip(centre, low, strict=True)],
                     [max(0.0, x - c) for c, x in zip(centre, high, strict=True)]]  # fmt: skip
            ax.errorbar(m, centre, error, fmt="o-", color=figures.COLOURS["measured"])
            ax.axhline(self.longest, color=grey, linestyle=":", linewidth=1)
            ax.set_ylim(0, 1.2 * self.longest)
            ax.text(min(m), 1.02 * self.longest, "strings end here", fontsize=9, color=grey, va="bottom")
            name = what.replace("$", r"\$")  # which would begin a formula
            ax.set_title(f"Longest strings found, and n50 with 95 % intervals: {name}")
            ax.set_xlabel("prompt vectors m")
            ax.set_ylabel("tokens")
            ax.set_xticks(m)

        return write_bytes(self.folder / "cram.svg", figures.drawn(draw))


def _write_csv(path: Path, header, rows) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([header, *rows])
    write_bytes(path, buffer.getvalue().encode())
