"""Chapter 2, metric entropy: labelings with a margin, counted on fine grids of prompts.

`run` writes its forecasts down before anything is measured, counts and judges the claims.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from prompt_memory import bounds, measure, tasks
from prompt_memory.book import claims, figures
from prompt_memory.experiments.metric_entropy import PROFILES, Settings, constant, doubles, vectors
from prompt_memory.network.transformer import Transformer, TransformerConfig

SLICES = {1: (2, 4, 8, 16, 32), 2: (4, 6, 8)}  # slices of the readers' balls, by d
TIGHT = {1: 0.999, 2: 0.9}  # ε over half a slice; in the plane a grid must find the cells
RESOLUTIONS = (4, 16, 64)  # r times the steepest slope found, over ε
RECALLED = 32  # labels, for partial recall
NETWORKS = {
    "one head, d = 1, m = 2": ({"d": 1}, 2),
    "one head, d = 1, m = 3": ({"d": 1}, 3),
    "one head, d = 2, m = 1": ({"d": 2}, 1),
    "RMSNorm, d = 2, m = 1": ({"d": 2, "norm": "rms", "norm_eps": 0.1}, 1),
    "two layers, d = 1, m = 2": ({"d": 1, "depth": 2, "mlp": 4}, 2),
}


@dataclass
class Grid:
    """A network that nobody built, and what a grid of its prompts answers to a pool of queries."""

    d: int
    m: int
    slope: float  # Λ from the weights
    found: float  # the steepest slope found
    cover: float  # covering radius of the grid
    labels: UInt8[np.ndarray, "N pool"]
    gaps: Float[np.ndarray, "N pool"]
    singular: Float[np.ndarray, " k"]  # of the derivative of half differences, over the root of the pool

    def channel(self, eps: float) -> float:
        """The heuristic: Σ log2(1 + rσ_i/ε) − log2 m!, not below 0."""
        return max(0.0, np.log2(1 + self.singular / eps).sum() - math.log2(math.factorial(self.m)))


@dataclass
class Counted:
    """Labelings that some prompt of a grid memorises with margin 2ε, in bits, beside what part 1 allows."""

    name: str
    size: int  # d·m
    resolution: float  # rΛ/ε
    bits: float
    bound: float
    possible: float  # what the grid and the queries could have shown
    row: tuple = ()  # for the table


@dataclass
class Labelings:
    """Everything that was counted."""

    counted: list[Counted] = field(default_factory=list)
    grids: dict[str, Grid] = field(default_factory=dict)
    numbers: dict[str, object] = field(default_factory=dict)

    def of(self, name: str) -> list[Counted]:
        """The counts of one network, in the order of the resolutions."""
        return [each for each in self.counted if each.name == name]


def reader(d: int) -> Transformer:
    """A network that copies its only prompt token into the residual stream; d = 1: two classes, d = 2: three."""
    model = Transformer(TransformerConfig(d=d, q=d + 1, d_k=1, d_v=d)).double()
    block, angle = model.blocks[0], torch.arange(3) * 2 * math.pi / 3
    block.query.zero_(), block.key.zero_(), block.value.copy_(torch.eye(d)), block.output.copy_(torch.eye(d))
    line, plane = torch.tensor([[1.0, -1.0]]), torch.stack([angle.cos(), angle.sin()]) * 2 / 3**0.5
    model.unembedding.copy_(line if d == 1 else plane)
    return model


def thresholds(model: Transformer, count: int) -> Float[Tensor, "n 1 d"]:
    """Queries that cut the ball of a reader's prompt into slices of width 2/count, in one or two directions."""
    at = (torch.arange(count) + 0.5) * 2 / count - 1
    if model.config.d == 1:
        return -at[:, None, None]
    classes = model.unembedding.T  # far out between two classes only these two compete
    pairs = [((a - b) / (a - b).norm(), 20 * (a + b) / (a + b).norm()) for a, b in (classes[:2], classes[1:])]
    return torch.cat([far - at[:, None] * across for across, far in pairs])[:, None]


def fine_prompts(d: int, m: int, count: int) -> tuple[Float[Tensor, "N m d"], float]:
    """A grid over a product of balls (d = 1, or d = 2 and m = 1) of about `count` prompts, and its covering radius."""
    if d == 1:
        line = 2 * (round(count ** (1 / m)) // 2) + 1
        return tasks.grid_prompts(torch.arange(line**m), 1, m, torch.linspace(-1, 1, line)), 1 / (line - 1)
    rings = round((count / 4) ** 0.5)
    radius, angle = torch.linspace(0, 1, rings)[:, None], torch.arange(4 * rings) * (2 * math.pi / (4 * rings))
    prompts = torch.stack([radius * angle.cos(), radius * angle.sin()], -1).reshape(-1, 1, 2)
    return prompts, math.hypot(0.5 / (rings - 1), math.pi / (4 * rings))


@doubles()
def run(profile: str, *, record: claims.Recorder, generator: torch.Generator) -> Labelings:
    """Count labelings of built readers and of random networks; then recall with a margin."""
    settings, result = claims.settings(PROFILES, profile), Labelings()
    readers(record, result, settings)
    random_networks(record, result, settings, generator)
    judge(record, result)
    partial_recall(record, result, settings, generator)
    return result


def readers(record: claims.Recorder, result: Labelings, settings: Settings) -> None:
    """Networks that are built to memorise: on a line all that part 1 allows, in the plane nearly so."""
    models = {d: reader(d) for d in SLICES}
    slopes = {d: constant(model, query_radius=21.0) for d, model in models.items()}
    top = {d: [bounds.entropy_bits(d, 1, 1.0, slopes[d], TIGHT[d] / k) for k in SLICES[d]] for d in SLICES}
    record.predict(
        "reader-line", theorem="Theorem 2, part 3", predicted=top[1], possible=(0, SLICES[1]), absolute=0.01,
        statement="The reader in $d = 1$ memorises $\\lceil r\\Lambda/\\varepsilon \\rceil$ labelings: part 1 within a"
        " hundredth of a bit",
    )  # fmt: skip
    record.predict(
        "reader-plane", theorem="Theorem 2, part 3", predicted=0.5, possible=(-math.inf, max(top[2]) / 2), absolute=0.5,
        statement="The reader in $d = 2$ is within a bit a coordinate of part 1",
    )  # fmt: skip
    for d, model in models.items():
        prompts, _ = fine_prompts(d, 1, 1025 if d == 1 else 4 * settings.prompts)
        for k, bound in zip(SLICES[d], top[d], strict=True):
            eps = TIGHT[d] / k
            labels, gaps = measure.labels_and_gaps(model, prompts, thresholds(model, k), own_token=False)
            memorised = math.log2((measure.best_margins(labels, gaps) > 2 * eps).sum())
            possible = min(math.log2(len(prompts)), labels.shape[1] * math.log2(model.config.q))
            result.counted.append(Counted(f"reader, d = {d}", d, slopes[d] / eps, memorised, bound, possible))
    missing = {d: [each.bound - each.bits for each in result.of(f"reader, d = {d}")] for d in SLICES}
    record.measure("reader-line", [each.bits for each in result.of("reader, d = 1")])
    record.measure("reader-plane", max(missing[2]) / 2)
    result.numbers |= {
        "plane": f"{min(missing[2]) / 2:.2f} to {max(missing[2]) / 2:.2f}", "line": f"{max(missing[1]):.3f}",
    }  # fmt: skip


def random_networks(record, result: Labelings, settings: Settings, generator: torch.Generator) -> None:
    """Run grids of prompts of networks that nobody built; forecast their bits by the channel heuristic."""
    for name, (architecture, m) in NETWORKS.items():
        config = TransformerConfig(q=2, d_k=2, d_v=2, **architecture)
        model, d = Transformer(config, generator=generator).double(), config.d
        many = vectors(100 * settings.pool, 1, d, radius=1.0, generator=generator)
        answers = model(vectors(32, m, d, radius=1.0, generator=generator), many).argmax(-1)
        pool = many[answers.amin(0) != answers.amax(0)][: settings.pool]  # what different prompts answer differently
        steepest, *_ = measure.steepest_network(model, m, 1.0, 1.0, restarts=4, steps=40, differences=True,
                                                generator=generator)  # fmt: skip
        prompts, cover = fine_prompts(d, m, settings.prompts)
        labels, gaps = measure.labels_and_gaps(model, prompts, pool)

        def half_differences(flat, model=model, m=m, d=d, pool=pool):
            return model(flat.unflatten(1, (m, d)), pool).diff(dim=-1)[..., 0] / 2

        J = measure.jacobian(half_differences, vectors(64, m, d, radius=1.0, generator=generator).flatten(1))
        singular = torch.linalg.svdvals(J).median(0).values.numpy() / len(pool) ** 0.5
        result.grids[name] = Grid(d, m, constant(model), steepest, cover, labels, gaps, singular)
    record.predict(
        "channel", theorem="Heuristic: prompt as a channel",
        statement="Bits memorised where $r/\\varepsilon$ is 64 over the steepest slope found are $\\sum_i \\log_2(1 +"
        " r\\sigma_i/\\varepsilon) - \\log_2 m!$, to a half of it",
        predicted=[grid.channel(grid.found / RESOLUTIONS[-1]) for grid in result.grids.values()],
        possible=(0, [math.log2(len(grid.labels)) for grid in result.grids.values()]),
        relative=0.5, searched=True, parameters={"networks": list(result.grids)},
    )  # fmt: skip


def count(name: str, grid: Grid, resolution: float) -> Counted:
    """Choose queries from the pool one by one, and count the labelings memorised with margin 2ε, exactly."""
    eps = grid.found / resolution
    every = slice(None, None, max(1, len(grid.labels) // 6000))  # queries are chosen on a part of the grid
    columns = measure.choose_queries(grid.labels[every], grid.gaps[every], 2 * eps) or [0]
    best = measure.best_margins(grid.labels[:, columns], grid.gaps[:, columns])
    counted, reachable = ((best > level).sum() for level in (2 * eps, 2 * eps - 2 * grid.slope * grid.cover))
    bits, most = (math.log2(max(1, each)) for each in (counted, reachable))
    bound = bounds.entropy_bits(grid.d, grid.m, 1.0, grid.slope, eps)
    possible = min(math.log2(len(grid.labels)), len(columns))
    ceiling = f"{most:.2f}" if grid.slope * grid.cover < eps else "–"
    row = (name, f"{grid.slope / eps:.3g}", len(columns), int(counted), f"{bits:.2f}", ceiling,
           f"{grid.channel(eps):.2f}", f"{bound:.2f}")  # fmt: skip
    return Counted(name, grid.d * grid.m, grid.slope / eps, bits, bound, possible, row)


def judge(record: claims.Recorder, result: Labelings) -> None:
    """Part 1: no network memorises more labelings than fit with a margin."""
    finest = []
    for name, grid in result.grids.items():
        result.counted += [count(name, grid, resolution) for resolution in RESOLUTIONS]
        finest.append(result.counted[-1])
    record.measure("channel", [each.bits for each in finest])
    record.theorem(
        "labelings", theorem="Theorem 2, part 1",
        statement="Labelings memorised with margin $2\\varepsilon$, counted on a grid of prompts: at most $d m"
        " \\log_2(1 + r\\Lambda/\\varepsilon)$ bits",
        measured=[each.bits for each in result.counted], bound=[each.bound for each in result.counted],
        possible=[each.possible for each in result.counted], searched=True,
        parameters={"networks": [each.name for each in result.counted],
                    "rΛ/ε": [round(each.resolution, 2) for each in result.counted]},
    )  # fmt: skip
    shares = [100 * each.bits / each.bound for each in finest]
    result.numbers["loose"] = f"{min(shares):.0f} to {max(shares):.0f}"


def partial_recall(record, result: Labelings, settings: Settings, generator: torch.Generator) -> None:
    """Part 2 on the same grids: the best prompt for random labels, where a label counts with margin 2ε only."""
    means, ceilings, n = [], [], RECALLED
    cases = [(grid.labels, grid.gaps, grid.d * grid.m, grid.slope / res, res)
             for grid in result.grids.values() for res in RESOLUTIONS[:2]]  # fmt: skip
    line = reader(1)
    shown = measure.labels_and_gaps(line, fine_prompts(1, 1, 1025)[0], thresholds(line, n), own_token=False)
    cases += [(*shown, 1, 1 / res, res) for res in RESOLUTIONS[:2]]
    for labels, gaps, size, eps, resolution in cases:
        columns = np.linspace(0, labels.shape[1] - 1, n).round().astype(int)  # repeats some if the pool is small
        clear = np.where(gaps[:, columns] > 2 * eps, labels[:, columns], 2).astype(np.uint8)  # 2: no answer
        wanted = tasks.random_labels(settings.labelings, n, 2, generator=generator)
        means.append(measure.best_recall(measure.distinct(clear), wanted, 3).mean())
        ceilings.append(bounds.best_recall_ceiling(bounds.entropy_bits(size, 1, 1.0, 1.0, 0.5 / resolution), n, 2))
    record.sampled(
        "recall-with-margin", theorem="Theorem 2, part 2",
        statement="Expected best recall with margin $2\\varepsilon$ is at most the ceiling of Theorem 1 at $d m \\log_2"
        " (1 + 2r\\Lambda/\\varepsilon)$ bits",
        mean=means, samples=settings.labelings, variables=settings.labelings * n, bound=ceilings,
        parameters={"networks": [*result.grids, "reader, d = 1"], "rΛ/ε": RESOLUTIONS[:2], "n": n},
    )  # fmt: skip
    result.numbers |= {
        "recall_best": f"{max(means):.2f}", "recall_ceilings": f"{min(ceilings):.2f} and {max(ceilings):.2f}",
    }  # fmt: skip


def labelings_table(result: Labelings) -> figures.Table:
    """Labelings of the networks that nobody built."""
    header = ("network", "rΛ/ε", "queries chosen", "labelings", "bits", "at most", "channel heuristic", "Theorem 2")
    return figures.Table(header, [each.row for each in result.counted if each.row])
