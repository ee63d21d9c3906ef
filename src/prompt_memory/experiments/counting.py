"""Chapter 1, counting: every prompt of small frozen networks, then tuned prompts of larger ones.

`run` writes its forecasts down before anything is measured, runs the experiments and judges the claims.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prompt_memory import bounds, intervals, measure, pretrain, tasks, tune
from prompt_memory.book import claims, figures, verdicts
from prompt_memory.book.figures import COLOURS
from prompt_memory.network.transformer import Transformer, TransformerConfig

READER = "trained bit reader"
SIZES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)  # numbers of labels
LOADS = np.array([0.5, 1.0, 1.5, 2.0, 3.0])  # numbers of labels over the critical size, for tuned prompts
RARE = math.log2(claims.LEVEL / claims.FAMILY)  # log2 of the probability of what counts as impossible


@dataclass(frozen=True)
class Settings:
    """How much is run: queries of a network, labelings, prompts run twice; runs, steps, sweeps of the tuner."""

    queries: int
    labelings: int
    twice: int
    runs: int
    steps: int
    sweeps: int


PROFILES = {
    "smoke": Settings(queries=64, labelings=40, twice=512, runs=8, steps=60, sweeps=1),
    "standard": Settings(queries=128, labelings=400, twice=2048, runs=12, steps=200, sweeps=1),
    "full": Settings(queries=512, labelings=4000, twice=8192, runs=256, steps=400, sweeps=4),
}


class Case(NamedTuple):
    """A frozen network (its configuration, or the name of a trained one), m, bits a coordinate (None: hard)."""

    network: dict | str
    m: int
    bits: int | None


def cases(profile: str) -> dict[str, Case]:
    """The networks all of whose prompts are run: six random ones and a trained one (`smoke`: shorter prompts)."""
    two = {"depth": 2, "heads": 2, "d_k": 4, "d_v": 4, "mlp": 16, "causal": True, "norm": "rms"}
    m = 2 if profile == "smoke" else 4
    found = {
        "one layer, order unseen": Case(dict(d=4, heads=2, mlp=16, norm="rms"), m, 1),
        "two layers, order unseen": Case(dict(d=2, depth=2, d_k=4, d_v=4, mlp=16, norm="rms"), m, 2),
        "causal, rotary": Case(dict(two, d=4, norm="layer", positions="rotary"), m, 1),
        "causal, three classes": Case(dict(two, d=4, q=3, positions="learned"), 2, 1 if profile == "smoke" else 2),
        "hard prompts, 16 classes": Case(dict(two, d=8, q=16, positions="learned"), m, None),
        READER: Case("bit-reader-small", 2, 1),
    }
    if profile == "full":
        found["causal, a million prompts"] = Case(dict(two, d=5, depth=1, positions="learned"), 4, 1)
    return found


def tuned_cases(profile: str) -> dict[str, Case]:
    """The networks that are tuned: too many prompts to run them all."""
    wide = {"d": 8, "depth": 2, "heads": 2, "d_k": 8, "d_v": 8, "mlp": 32, "causal": True, "norm": "rms"}
    m = 2 if profile == "smoke" else 4
    trained = {} if profile == "smoke" else {READER: Case("bit-reader", 8, 1)}
    random = {f"random, {bits} bits a number": Case(dict(wide, positions="learned"), m, bits) for bits in (2, 4)}
    return trained | random


@dataclass
class Enumerated:
    """All prompts of one case: what they show, and the best recall of any of them."""

    config: TransformerConfig
    case: Case
    bits: float  # log2 of the number of prompts
    prompts: int
    pairs: float  # pairs (prompt, behaviour) over prompts, of those that were run twice
    samples: int  # labelings drawn at each size
    counted: Float[np.ndarray, " K"]  # log2 N_n at each size
    best: Float[np.ndarray, "K S"]  # best recall of each labeling
    few: Int[Tensor, "N 8"]  # behaviours on the first queries
    last: Int[Tensor, "N n"]  # different behaviours on all queries

    def __post_init__(self):
        q = self.config.q
        few = measure.distinct(self.few[:, : int(12 // math.log2(q))])
        self.exact = measure.best_recall(few, tasks.all_labels(few.shape[1], q), q).mean()
        self.exact_ceiling = ceiling(math.log2(len(few)), few.shape[1], q)
        self.mean = self.best.mean(1)


@dataclass
class Tuned:
    """Recall of tuned prompts of one network at each load."""

    bits: float
    n: Int[np.ndarray, " K"]
    recall: Float[np.ndarray, "K R"]
    interval: Float[np.ndarray, "2 K"] = None

    def __post_init__(self):
        self.mean = self.recall.mean(1)
        self.ceiling = np.array([ceiling(self.bits, n, 2) for n in self.n])


@dataclass
class Result:
    """Everything that chapter 1 measured."""

    profile: str
    sizes: Int[np.ndarray, " K"]
    enumerated: dict[str, Enumerated] = field(default_factory=dict)
    tuned: dict[str, Tuned] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)


def codebooks(labels: Int[np.ndarray, "S n"], generator: torch.Generator) -> dict[str, Int[np.ndarray, "N n"]]:
    """Three short lists of behaviours on the same queries: random rows, half of the labels for sure, repetition."""
    return {
        "random rows": labels[torch.randperm(len(labels), generator=generator)[:12]],
        "half of the labels for sure": labels[labels[:, 4:].sum(1) == 0],
        "repetition": np.repeat([[0], [1]], labels.shape[1], axis=1),
    }


def ceiling(bits: float, n: int, q: int) -> float:
    """The smaller one of the ceilings for the expected recall in parts 2 and 4."""
    return min(bounds.recall_ceiling(bits, int(n), q), bounds.best_recall_ceiling(bits, int(n), q))


def quantiles(bits, n, samples: int, q: int = 2) -> Float[np.ndarray, " K"]:
    """What the mean recall of `samples` labelings exceeds with probability 2^RARE only (part 5)."""
    return np.array([bounds.mean_recall_quantile(B, int(k), q, samples, RARE) for B, k in np.broadcast(bits, n)])


def load(network: dict | str, generator: torch.Generator, models_dir) -> tuple[Transformer, Tensor | None]:
    """The frozen network of a case, and the queries that it was trained for, if any."""
    if isinstance(network, str):
        frozen = pretrain.load(network, models_dir)
        return frozen.transformer, frozen.queries
    return Transformer(TransformerConfig(**network), generator=generator), None


def every_prompt(
    case: Case, sizes, settings: Settings, *, generator: torch.Generator, models_dir=None
) -> Enumerated:  # fmt: skip
    """Run all prompts of a case on the same queries; count behaviours and find the best one for random labels."""
    model, own = load(case.network, generator, models_dir)
    d, q, m, b = model.config.d, model.config.q, case.m, case.bits
    queries = tasks.random_queries(settings.queries - (0 if own is None else len(own)), d, generator=generator)
    queries = queries if own is None else torch.cat([own, queries])
    bits = bounds.hard_prompt_bits(q, m) if b is None else bounds.counting_bits(d, m, b)
    count = q**m if b is None else 2 ** (b * d * m)

    def prompts(index):
        if b is None:
            return tasks.hard_prompts(index, m, model)
        return tasks.grid_prompts(index, d, m, tasks.grid(b).to(model.embedding.dtype))

    if model.config.positions == "none":  # the last bit of a sum depends on the order: in float64 it decides no argmax
        model, queries = model.double(), queries.double()
    table = measure.behaviours(model, prompts, count, queries)
    some = torch.randperm(count, generator=generator)[: settings.twice]
    pairs = measure.behaviour_pairs(model.double(), prompts, some, queries.double(), generator=generator)
    samples = settings.labelings // (4 if len(table) > 2**17 else 1)
    counted, best = [], []
    for n in sizes:
        rows = measure.distinct(table[:, :n])
        labels = tasks.random_labels(samples, int(n), q, generator=generator)
        counted.append(math.log2(len(rows)))
        best.append(measure.best_recall(rows, labels, q))
    return Enumerated(
        model.config, case, bits, len(table), pairs / len(some), samples, np.array(counted), np.array(best),
        table[:, :8], rows,
    )  # fmt: skip


def tuned_prompts(case: Case, settings: Settings, *, generator: torch.Generator, models_dir=None) -> Tuned:
    """Tune quantised prompts to random labels, from half to three times as many labels as the prompt has bits."""
    model, own = load(case.network, generator, models_dir)
    critical = case.bits * model.config.d * case.m
    queries = tasks.random_queries(int(LOADS[-1] * critical), model.config.d, generator=generator)
    queries = queries if own is None else torch.cat([own, queries])
    sizes, recalls = (LOADS * critical).astype(int), []
    for n in sizes:
        labels = tasks.random_labels(settings.runs, int(n), 2, generator=generator)
        fit = tune.quantised(model, queries[:n], labels, tasks.grid(case.bits), case.m,
                             steps=settings.steps, sweeps=settings.sweeps, generator=generator)  # fmt: skip
        recalls.append(fit.recall.numpy())
    return Tuned(bounds.counting_bits(model.config.d, case.m, case.bits), sizes, np.array(recalls))


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, models_dir=None) -> Result:
    """Both experiments of the chapter; each forecast is written down before what it is about is measured."""
    settings = claims.settings(PROFILES, profile)
    result = Result(profile, np.array([n for n in SIZES if n <= settings.queries]))
    predict_reader(record, result)
    for name, case in cases(profile).items():
        result.enumerated[name] = every_prompt(
            case, result.sizes, settings, generator=generator, models_dir=models_dir
        )  # fmt: skip
    record.measure("reader-behaviours", result.enumerated[READER].counted)
    judge_behaviours(record, result, settings)
    judge_recall(record, result)
    judge_converse(record, result)
    judge_random_code(record, result, generator)
    if profile != "smoke":
        record.predict(
            "reader-tuned", theorem="Theorem 1, part 2", predicted=1.0, possible=(0, 1), absolute=0.01, searched=True,
            statement="At the critical size a tuned prompt of the trained reader recalls everything: the ceiling is"
            " reached",
        )  # fmt: skip
    for name, case in tuned_cases(profile).items():
        tuned = tuned_prompts(case, settings, generator=generator, models_dir=models_dir)
        ends = [intervals.bootstrap(x, np.mean, np.random.default_rng(record.seed)) for x in tuned.recall]
        tuned.interval = np.transpose(ends)
        result.tuned[name] = tuned
    judge_tuned(record, result, settings)
    return result


def predict_reader(record: claims.Recorder, result: Result) -> None:
    """The trained reader should show as many behaviours as there is room for."""
    room = np.minimum(result.sizes, cases(result.profile)[READER].m * 8)
    record.predict(
        "reader-behaviours", theorem="Theorem 1, part 1", predicted=room, possible=(0, room), absolute=0.001,
        statement="$\\log_2 N_n$ of the trained bit reader is $\\min\\{n, bdm\\}$ at every $n$, to a thousandth of a"
        " bit: the bound is attained",
        parameters={"n": result.sizes}, searched=True,
    )  # fmt: skip


def judge_behaviours(record: claims.Recorder, result: Result, settings: Settings) -> None:
    """Part 1: one behaviour a prompt; multisets where the order is not seen."""
    sizes, every = result.sizes, list(result.enumerated.values())
    unordered = [r for r in every if r.config.positions == "none"]
    record.theorem(
        "one-behaviour", theorem="Theorem 1, part 1",
        statement="Prompts run twice, in other batches and another order, behave the same both times: different pairs"
        " (prompt, behaviour) for each prompt",
        measured=[r.pairs for r in every], bound=1.0, possible=2.0,
        parameters={"networks": list(result.enumerated), "prompts": settings.twice},
    )  # fmt: skip
    record.theorem(
        "behaviours-multiset", theorem="Theorem 1, part 1",
        statement="$\\log_2 N_n \\le \\log_2 \\binom{2^{bd}+m-1}{m}$ where the order of the prompt is not seen",
        measured=[r.counted for r in unordered],
        bound=[[bounds.multiset_bits(r.config.d, r.case.m, r.case.bits)] for r in unordered],
        possible=[np.minimum(math.log2(r.prompts), sizes * math.log2(r.config.q)) for r in unordered],
        tolerance=1e-9, parameters={"n": sizes},
    )  # fmt: skip
    reader = result.enumerated[READER]
    plain = [r for name, r in result.enumerated.items() if name != READER]
    shares = [100 * r.counted[-1] / r.bits for r in plain]
    typical = min((r for r in plain if r.config.q == 2), key=lambda r: r.mean[-1])  # recalls least, of two classes
    result.numbers |= {
        "reader_room": f"{reader.prompts:,}", "reader_shown": f"{round(2 ** reader.counted[-1]):,}",
        "plain_low": f"{min(shares):.0f}", "plain_high": f"{max(shares):.0f}",
        "plain_recall": f"{typical.mean[-1]:.2f}",
        "plain_ceiling": f"{ceiling(typical.bits, int(sizes[-1]), 2):.2f}",
        "labelings": f"{settings.labelings}", "runs": f"{settings.runs}",
    }  # fmt: skip


def judge_recall(record: claims.Recorder, result: Result) -> None:
    """Parts 2, 4 and 5 for the best of all prompts."""
    names, every = list(result.enumerated), list(result.enumerated.values())
    record.theorem(
        "recall-enumerated", theorem="Theorem 1, parts 2 and 4",
        statement="Expected best recall over all labelings and all prompts is at most the ceiling at $\\log_2 N_n$"
        " bits",
        measured=[r.exact for r in every], bound=[r.exact_ceiling for r in every], possible=1.0, tolerance=1e-9,
        parameters={"networks": names},
    )  # fmt: skip
    for key, which, bits in (
        ("recall-prompts", "bits", "$\\log_2 |\\mathcal{P}|$ bits"),
        ("recall-counted", "counted", "the counted $\\log_2 N_n$ bits"),
    ):
        record.theorem(
            key, theorem="Theorem 1, part 5",
            statement=f"Mean recall of the best of all prompts is at most the value that {bits} let it exceed with"
            " probability $10^{-10}$",
            measured=[r.mean for r in every],
            bound=[quantiles(getattr(r, which), result.sizes, r.samples, r.config.q) for r in every],
            possible=1.0, tolerance=1e-9, tail=True,
            parameters={"networks": names, "n": result.sizes, "labelings": [r.samples for r in every]},
        )  # fmt: skip
    result.numbers["rare"] = verdicts.power_of_ten(round(math.log10(claims.LEVEL / claims.FAMILY)))


def judge_converse(record: claims.Recorder, result: Result) -> None:
    """Part 3, at the least recall where its bound lies below one half."""
    hits, tails, trials = [], [], []
    for r in result.enumerated.values():
        for counted, n, best in zip(r.counted, result.sizes, r.best, strict=True):
            tail = [bounds.recall_tail_bits(counted, int(n), r.config.q, k / n) for k in range(n + 1)]
            k = next((k for k in range(n + 1) if tail[k] < -1), None)
            if k is not None:  # with few labels no recall is that unlikely
                hits.append((best * n > k - 0.5).sum())
                tails.append(2 ** tail[k])
                trials.append(len(best))
    hits, tails, trials = map(np.array, (hits, tails, trials))
    record.sampled(
        "strong-converse", theorem="Theorem 1, part 3",
        statement="Some prompt recalls $\\ge k$ labels with probability at most"
        " $N_n \\Pr[\\mathrm{Bin}(n, 1/q) \\ge k]$",
        mean=hits / trials, samples=trials, successes=hits, bound=tails,
    )  # fmt: skip
    result.numbers |= {
        "converse_hits": f"{hits.sum():,}", "converse_trials": f"{trials.sum():,}", "converse_points": f"{len(hits)}",
        "converse_allowed": f"{int((tails * trials).sum()):,}",
    }  # fmt: skip


def judge_random_code(record: claims.Recorder, result: Result, generator: torch.Generator) -> None:
    """The heuristic that a network's behaviours are as good as random tables, on fresh labelings."""
    n, every = int(result.sizes[-1]), list(result.enumerated.values())
    expected = [bounds.random_code_recall(r.counted[-1], n, r.config.q) for r in every]
    record.predict(
        "random-code", theorem="Heuristic: random code", predicted=expected, possible=(0, 1), relative=0.05,
        statement="Best recall of each network is that of $N_n$ independent random tables",
        parameters={"networks": list(result.enumerated), "n": result.sizes[-1]},
    )  # fmt: skip
    fresh = []  # the labelings above were seen before this prediction was written down
    for r in every:
        labels = tasks.random_labels(r.samples, n, r.config.q, generator=generator)
        fresh.append(measure.best_recall(r.last, labels, r.config.q).mean())
    drawn = np.array([r.samples for r in every]) * n
    record.measure("random-code", fresh, interval=intervals.mcdiarmid_limit(fresh, drawn, 0.05 / len(fresh)))
    ratios = np.array(fresh) / expected
    result.numbers |= {"code_n": f"{n}", "code_low": f"{ratios.min():.2f}", "code_high": f"{ratios.max():.2f}"}


def judge_tuned(record: claims.Recorder, result: Result, settings: Settings) -> None:
    """Part 5 for tuned prompts: they may not beat what is practically impossible for all prompts."""
    tuned = list(result.tuned.values())
    record.theorem(
        "recall-tuned", theorem="Theorem 1, part 5",
        statement="Mean recall of the tuned runs is at most the value that the bits of a prompt let it exceed with"
        " probability $10^{-10}$",
        measured=[r.mean for r in tuned], bound=[quantiles(r.bits, r.n, settings.runs) for r in tuned],
        possible=1.0, tolerance=1e-12, tail=True, searched=True,
        parameters={"networks": list(result.tuned), "load": LOADS, "runs": settings.runs, "steps": settings.steps},
    )  # fmt: skip
    name, first = next(iter(result.tuned.items()))  # the trained reader, if there was time to train it
    if READER in result.tuned:
        low, high = first.interval
        record.measure("reader-tuned", first.mean[1], interval=(low[1], high[1]))
    result.numbers |= {
        "tuned_shown": name, "tuned_bits": f"{int(first.bits)}", "tuned_n": f"{int(first.n[1])}",
        "tuned_recall": f"{first.mean[1]:.4f}", "tuned_twice": f"{first.mean[3]:.3f}",
        "tuned_twice_ceiling": f"{first.ceiling[3]:.3f}",
    }  # fmt: skip


def behaviours_figure(result: Result) -> figures.Picture:
    """Different behaviours against queries, for all prompts of three networks."""
    sizes, bits = result.sizes, result.enumerated[READER].bits
    shown = {READER: "o", "causal, rotary": "s", "one layer, order unseen": "^"}

    def draw(figure):
        ax = figure.subplots()
        bound = np.minimum(sizes, bits)
        ax.set_xscale("log", base=2)
        ax.set_ylim(0, bits + 3)
        figures.forbid(ax, sizes, bound, bits + 3)
        ax.text(0.03, 0.95, "forbidden", transform=ax.transAxes, va="top", fontsize=9, color=COLOURS["forbidden"])
        ax.plot(sizes, bound, color=COLOURS["bound"])
        for name, marker in shown.items():
            counted = result.enumerated[name].counted
            face = COLOURS["measured"] if marker == "o" else COLOURS["page"]
            ax.plot(sizes, counted, marker, color=COLOURS["measured"], mfc=face, label=name)
            ax.plot(sizes, counted, ":", color=COLOURS["measured"], linewidth=1)
            if result.enumerated[name].bits < bits:  # shorter prompts have a limit of their own
                ax.axhline(result.enumerated[name].bits, color=COLOURS["bound"], linestyle=":", linewidth=1)
        ax.legend(loc="lower right", labelcolor=COLOURS["measured"])
        unseen = result.enumerated["one layer, order unseen"]
        level = bounds.multiset_bits(unseen.config.d, unseen.case.m, unseen.case.bits)
        ax.axhline(level, color=COLOURS["bound"], linestyle="--", linewidth=1.2)
        figures.label_line(ax, [sizes[0]], [level], "multisets (for △ only)", colour="bound", where=0)
        ax.set_xlabel("number of queries n")
        ax.set_ylabel("log₂ of the number of behaviours (bits)")

    return figures.show(
        draw, name="behaviours",
        finding="No network shows more behaviours than it has prompts; a trained one shows as many.",
        caption="All prompts of three networks are run; the forbidden region holds more behaviours than there are"
        " prompts or labelings. The dashed line is for the network that cannot see the order of its prompt.",
        alt="Bits of different behaviours against the number of queries, for all prompts of three networks. The trained"
        " bit reader lies on the bound, which rises with n and is flat from the prompt's bits on; the random networks"
        " stay below; the network that cannot see the order stays below the lower line for multisets.",
    )  # fmt: skip


def recall_figure(result: Result) -> figures.Picture:
    """Best recall of all prompts against its ceilings, for the trained reader and a random network."""
    sizes = result.sizes

    def draw(figure):
        axes = figures.panels(figure, 2, sharey=True)
        for ax, name in zip(axes, (READER, "causal, rotary"), strict=True):
            r = result.enumerated[name]
            top = np.array([ceiling(r.bits, n, r.config.q) for n in sizes])
            low, high = intervals.mcdiarmid_limit(r.mean, r.samples * sizes, 0.05)
            ax.set_xscale("log", base=2)
            ax.set_ylim(0.45, 1.02)
            figures.forbid(ax, sizes, top, 1.02)
            ax.plot(sizes, top, color=COLOURS["bound"], label="ceiling, all prompts")
            counted = [ceiling(bits, n, r.config.q) for bits, n in zip(r.counted, sizes, strict=True)]
            ax.plot(sizes, counted, "--", color=COLOURS["bound"], linewidth=1.2, label="ceiling, counted behaviours")
            ax.errorbar(sizes, r.mean, [r.mean - low, high - r.mean], fmt="o", color=COLOURS["measured"])
            random = [bounds.random_code_recall(c, int(n), 2) for c, n in zip(r.counted, sizes, strict=True)]
            ax.plot(sizes, random, ":", color=COLOURS["heuristic"], label="random tables")
            ax.axhline(0.5, color=COLOURS["neutral"], linewidth=0.8)
            ax.set_title(name)
            ax.set_xlabel("number of labels n")
        axes[0].set_ylabel("expected best recall")
        key = (("bound", "— ceiling, all prompts"), ("bound", "- - ceiling, counted behaviours"),
               ("measured", "● best of all prompts"), ("heuristic", "··· random tables"))  # fmt: skip
        for row, (colour, text) in enumerate(key):
            place = {"transform": axes[0].transAxes, "color": COLOURS[colour], "fontsize": 9}
            axes[0].text(0.04, 0.44 - 0.08 * row, text, **place)

    return figures.show(
        draw, size=(7, 4.2), panels=2, name="best-recall",
        finding="The best of all prompts never passes its ceiling.",
        caption="Intervals at 95 % of the mean over the labelings drawn, valid for any distribution, so wide for few"
        " labels. Points below the dotted curve pay for behaviours that resemble each other. Grey: guessing.",
        alt="Expected best recall against the number of labels, for the trained bit reader and for a random causal"
        " network. Both stay below the ceiling for all prompts and below the ceiling for the counted behaviours; the"
        " reader recalls everything up to the critical size. A dotted curve shows what random tables would recall.",
    )  # fmt: skip


def tuned_figure(result: Result) -> figures.Picture:
    """Recall of tuned prompts against labels over bits."""
    first = next(iter(result.tuned.values()))
    meets = bool((first.mean[:2] > 0.99).all())
    fine = np.geomspace(LOADS[0], LOADS[-1], 60)
    top = [ceiling(first.bits, max(1, round(x * first.bits)), 2) for x in fine]
    stored = np.minimum(1, 0.5 + 0.5 / fine)
    apart = max(abs(r.ceiling - first.ceiling).max() for r in result.tuned.values())

    def draw(figure):
        ax = figure.subplots()
        ax.set_xscale("log", base=2)
        ax.set_ylim(0.5, 1.02)
        figures.forbid(ax, fine, top, 1.02, text="forbidden")
        ax.plot(fine, top, color=COLOURS["bound"], label="ceiling")
        ax.plot(fine, stored, "--", color=COLOURS["constructed"], label="store some, guess the rest")
        for (name, r), marker in zip(result.tuned.items(), "os^", strict=False):
            low, high = r.interval
            ax.errorbar(LOADS, r.mean, [r.mean - low, high - r.mean], fmt=marker, color=COLOURS["measured"], label=name)
            figures.label_line(
                ax, LOADS, r.mean, name, colour="measured", where=0, xytext=(6, -5), above=False, ha="left"
            )
        figures.label_line(ax, fine, top, "ceiling", colour="bound", where=0.8, ha="left")
        where = {"where": 0.6, "above": False, "ha": "right", "xytext": (-6, 0)}
        figures.label_line(ax, fine, stored, "store some,\nguess the rest", colour="constructed", **where)
        ax.set_xlabel("labels over the critical size,\nn / (bits in the prompt)")
        ax.set_ylabel("expected recall")

    finding = "No tuned prompt passes the ceiling"
    finding += "; the network made for it meets it up to one label a bit." if meets else "."
    return figures.show(
        draw, name="tuned-recall", finding=finding,
        caption="Intervals at 95 % of the mean over runs. The dashed curve needs no tuner: it stores the first labels"
        f" and guesses the others. The ceiling is drawn for {first.bits:.0f} bits; at the loads shown those of other"
        f" prompts lie within {apart:.3f} of it.",
        alt="Recall of tuned prompts against the number of labels over the bits in the prompt, for "
        + ", ".join(result.tuned) + ", with the ceiling above them and the dashed curve of storing some labels and"
        " guessing the rest.",
    )  # fmt: skip


def recall_table(result: Result) -> figures.Table:
    """Best recall of each network beside its ceilings, at 64 labels."""
    at = int(np.argmin(abs(result.sizes - 64)))
    n = int(result.sizes[at])
    header = (f"network, n = {n} labels", "bits", "log₂ Nₙ", "best recall", "ceiling, counted", "ceiling, bits")
    return figures.Table(header, [
        (name, f"{r.bits:.0f}", f"{r.counted[at]:.2f}", f"{r.mean[at]:.3f}",
         f"{ceiling(r.counted[at], n, r.config.q):.3f}", f"{ceiling(r.bits, n, r.config.q):.3f}")
        for name, r in result.enumerated.items()
    ])  # fmt: skip
