"""Chapter 0, a memory made of luck: the best of N tables of guesses, enumerated and sampled.

`run` records one claim of each kind that the book has: a theorem checked on every case, a forecast, a sampled claim.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from prompt_memory import bounds
from prompt_memory.book import claims, figures
from prompt_memory.book.figures import COLOURS


@dataclass(frozen=True)
class Settings:
    """How often fresh labels and tables are drawn."""

    repetitions: int


PROFILES = {"smoke": Settings(6000), "standard": Settings(20000), "full": Settings(200000)}
FEW, LABELS, CLASSES = 10, 12, 4  # labels of two classes, all labelings enumerated; labels and classes when sampled


@dataclass
class Result:
    """Recall of the best of N tables: expected by theory, measured, and the ceiling of the proposition."""

    repetitions: int
    sizes: Int[np.ndarray, " K"]  # N
    expected: Float[np.ndarray, " K"]
    measured: Float[np.ndarray, " K"]
    interval: tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]  # at 95 %, all at once
    ceiling: Float[np.ndarray, " K"]
    numbers: dict[str, str] = field(default_factory=dict)


def ceilings(sizes, n: int, q: int) -> Float[np.ndarray, " K"]:
    """The proposition's ceiling for the expected recall of the best of N tables."""
    return np.array([bounds.recall_ceiling(np.log2(N), n, q) for N in sizes])


def every_labeling(rng: np.random.Generator):
    """(sizes N, expected recall of the best of the first N tables over all labelings of a few labels)."""
    labelings = (np.arange(2**FEW)[:, None] >> np.arange(FEW)) & 1  # [labelings, n]
    tables = rng.permutation(labelings)  # [N, n]
    agree = (labelings[:, None, :] == tables[None, :, :]).mean(-1)  # [labelings, N]
    sizes = 2 ** np.arange(FEW + 1)
    return sizes, np.maximum.accumulate(agree, axis=1)[:, sizes - 1].mean(0)


def expected_recall(sizes: Int[np.ndarray, " K"], n: int, q: int) -> Float[np.ndarray, " K"]:
    """E A = (1/n) Σ_k (1 − (1 − Pr[Bin(n, 1/q) ≥ k])^N) for the best of N independent random tables."""
    tail = stats.binom.sf(np.arange(n), n, 1 / q)  # Pr[Bin >= k], k = 1 … n
    return (1 - (1 - tail[None, :]) ** sizes[:, None]).mean(1)


def best_recalls(
    rng: np.random.Generator, repetitions: int, n: int, q: int, sizes: Int[np.ndarray, " K"]
) -> Float[np.ndarray, "R K"]:  # fmt: skip
    """Recall of the best of the first N random tables, for every N of `sizes`; fresh labels and tables each time."""
    best = np.empty((repetitions, len(sizes)))
    for repetition in range(repetitions):
        labels = rng.integers(q, size=n, dtype=np.int8)
        tables = rng.integers(q, size=(sizes[-1], n), dtype=np.int8)
        best[repetition] = np.maximum.accumulate((tables == labels).mean(1))[sizes - 1]
    return best


def run(profile: str, *, record: claims.Recorder, rng: np.random.Generator) -> Result:
    """One claim of each kind; the forecast is written down before its measurement."""
    settings = claims.settings(PROFILES, profile)
    few, exact = every_labeling(rng)
    record.theorem(
        "luck-enumerated", theorem="Proposition, ch. 0",
        statement="Expected best recall of $N$ tables, over all labelings, is at most the ceiling at $\\log_2 N$ bits",
        measured=exact, bound=ceilings(few, FEW, 2), possible=1.0, tolerance=1e-12,
        parameters={"n": FEW, "q": 2, "N": few},
    )  # fmt: skip
    sizes = 2 ** np.arange(1, 11)
    expected = expected_recall(sizes, LABELS, CLASSES)
    parameters = {"n": LABELS, "q": CLASSES, "N": sizes}
    record.predict(
        "luck-predicted", theorem="Order statistics", predicted=expected, possible=(0, 1), absolute=0.01,
        statement="Expected best recall of $N$ random tables, from the binomial distribution",
        parameters=parameters | {"repetitions": settings.repetitions},
    )  # fmt: skip
    recalls = best_recalls(rng, settings.repetitions, LABELS, CLASSES, sizes)
    measured, spread = recalls.mean(0), stats.sem(recalls)
    interval = stats.norm.interval(1 - 0.05 / len(sizes), measured, spread)  # all at once, at 95 %
    result = Result(settings.repetitions, sizes, expected, measured, interval, ceilings(sizes, LABELS, CLASSES))
    record.measure("luck-predicted", measured, interval=interval)
    record.sampled(
        "luck-sampled", theorem="Proposition, ch. 0",
        statement="Expected best recall of $N$ random tables is at most the ceiling at $\\log_2 N$ bits",
        mean=measured, samples=settings.repetitions, bound=result.ceiling, parameters=parameters,
    )  # fmt: skip
    result.numbers = {
        "labelings": f"{2**FEW:,}", "labels_small": f"{FEW}", "sizes": f"{len(few)}", "n": f"{LABELS}",
        "q": f"{CLASSES}", "repetitions": f"{settings.repetitions:,}", "chance": f"{1 / CLASSES:.2f}",
        "best_tables": f"{sizes[-1]:,}", "best_bits": f"{int(np.log2(sizes[-1]))}", "best_mean": f"{measured[-1]:.3f}",
        "best_ceiling": f"{result.ceiling[-1]:.3f}", "level": figures.scientific(claims.LEVEL, up=True),
    }  # fmt: skip
    return result


def luck_figure(result: Result) -> figures.Picture:
    """Recall of the best table against the bits that choose it."""
    bits, (low, high) = np.log2(result.sizes), result.interval

    def draw(figure):
        ax = figure.subplots()
        ax.set_ylim(0, 1)
        figures.forbid(ax, bits, result.ceiling, 1)
        ax.text(bits[0] + 0.2, 0.95, "forbidden", va="top", fontsize=9, color=COLOURS["forbidden"])
        ax.plot(bits, result.ceiling, color=COLOURS["bound"])
        ax.plot(bits, result.expected, color=COLOURS["predicted"], linestyle="--")
        ax.errorbar(bits, result.measured, [result.measured - low, high - result.measured], fmt="o",
                    color=COLOURS["measured"])  # fmt: skip
        ax.axhline(1 / CLASSES, color=COLOURS["neutral"], linewidth=0.8)
        figures.label_line(ax, bits, result.ceiling, "ceiling", colour="bound", where=0.5, xytext=(-4, 6), ha="right")
        figures.label_line(ax, bits, result.measured, "measured; dashed: forecast", colour="measured", where=0.35,
                           above=False, xytext=(6, -12))  # fmt: skip
        ax.text(bits[-1], 1 / CLASSES - 0.02, "chance", ha="right", va="top", fontsize=9, color=COLOURS["neutral"])
        ax.set_xlabel("bits that choose the table, log₂ N")
        ax.set_ylabel("recall (fraction of labels)")

    below = bool((result.measured <= result.ceiling).all())
    finding = "More tables recall more"
    finding += ", and never more than the choice can hold." if below else "; here chance lifts them above the ceiling."
    return figures.show(
        draw, name="luck", finding=finding,
        caption=f"Recall of {LABELS} labels of {CLASSES} classes by the best of N tables of guesses. Intervals at 95 %,"
        " all at once; the dashed curve was computed before the measurement.",
        alt="Recall against the bits that choose a table. The measured points follow the dashed forecast, which rises"
        " from chance and stays below the ceiling of the proposition; the region above the ceiling is shaded as"
        " forbidden.",
    )  # fmt: skip
