"""Chapter 7, second half: histograms that are far apart, and memory that stops growing with the prompt."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from prompt_memory import bounds, measure, tasks
from prompt_memory.book import claims
from prompt_memory.experiments.mean_field_slopes import constants, random_network, reader
from prompt_memory.network.transformer import Transformer, TransformerConfig

FINE, COARSE = "reader, ε = Λ/12", "reader, ε = Λ/3"
LENGTHS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32)  # of prompts on the line
PLACES = np.linspace(-1, 1, 5)
QUERIES = torch.linspace(-1, 1, 65, dtype=torch.float64)[:, None]
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
PLANE = {"d": 2, "radius": 1.0, "lipschitz": 1.0, "wasserstein": 2.4}  # ratio of constants: the reader's at B = 1/4


# --- histograms ----------------------------------------------------------------------------------------------------


class Packing(NamedTuple):
    """Histograms on M cells that were found pairwise further apart than τ, of so many points of a grid."""

    cells: int
    tau: Fraction
    found: int
    points: int

    @property
    def bits(self) -> float:
        """What Theorem 7, part 2, allows."""
        return bounds.histogram_bits(self.cells, float(self.tau))


def greedy_packing(cells: int, grid: int, tau: Fraction, tries: int, rng: np.random.Generator) -> Packing:
    """The most histograms with the denominator `grid` that a greedy choice finds, in `tries` orders."""
    points = tasks.multisets(cells, grid)
    near = np.abs(points[:, None] - points).sum(-1) <= 2 * tau * grid  # in integers: twice the variation times the grid
    best = 0
    for turn in range(tries):
        left, size = np.ones(len(points), dtype=bool), 0
        for i in np.arange(len(points)) if turn == 0 else rng.permutation(len(points)):
            if left[i]:
                left &= ~near[i]
                size += 1
        best = max(best, size)
    return Packing(cells, tau, best, len(points))


def histograms(record: claims.Recorder, rng: np.random.Generator) -> list[Packing]:
    """Histograms pairwise further apart than τ, for two to four cells."""
    cases = ((2, 600, 3), (2, 600, 10), (3, 24, 3), (3, 24, 6), (4, 12, 3), (4, 12, 4))
    found = [greedy_packing(cells, grid, Fraction(1, part), 60, rng) for cells, grid, part in cases]
    record.theorem(
        "histograms", theorem="Theorem 7, part 2",
        statement="Histograms found pairwise further apart than $\\tau$ in total variation: at most the volume bound"
        " (bits)",
        measured=[math.log2(each.found) for each in found], bound=[each.bits for each in found],
        possible=[math.log2(each.points) for each in found],
        parameters={"cells, τ": [[each.cells, str(each.tau)] for each in found]},
    )  # fmt: skip
    return found


# --- prompts on a line ---------------------------------------------------------------------------------------------


@dataclass
class Memory:
    """One network on a line: labelings counted at each prompt length, and what the theorems allow, in bits."""

    model: Transformer
    eps: float
    constants: tuple[float, float]  # Λ, Λ_W
    queries: list[int]  # those chosen from the pool
    counts: list[int]
    linear: Float[np.ndarray, " L"]
    multisets: Float[np.ndarray, " L"]
    certified: int | None = None  # labelings at any length, at most

    def __post_init__(self):
        self.bits = np.log2(np.maximum(1, self.counts))
        how = {"d": 1, "radius": 1.0, "lipschitz": self.constants[0], "wasserstein": self.constants[1], "eps": self.eps}
        self.flat, self.simple = bounds.mean_field_packing_bits(**how), bounds.mean_field_bits(**how)
        self.overtakes = math.ceil(self.flat / bounds.entropy_bits(1, 1, 1.0, self.constants[0], self.eps))


@dataclass
class Line:
    """All networks on the line; prompts of the coarse reader that differ pairwise, of how many, by prompt length."""

    lengths: list[int]
    memory: dict[str, Memory] = field(default_factory=dict)
    packed: dict[int, tuple[int, int]] = field(default_factory=dict)

    def grown(self, name: str) -> float:
        """Bits that the last quarter of prompt lengths adds."""
        bits = self.memory[name].bits
        return bits[-1] - bits[np.searchsorted(self.lengths, 0.75 * self.lengths[-1])]

    def growth(self) -> str:
        """In how many networks memory has stopped growing, in a sentence."""
        growing = sum(self.grown(name) > 0.3 for name in self.memory)
        if not growing:
            return f"In each of the {len(self.memory)} networks run, the last quarter of lengths adds nearly nothing."
        return f"The last quarter of lengths still adds more than 0.3 bits in {growing} of {len(self.memory)} networks."


def line(record: claims.Recorder, generator: torch.Generator, *, longest: int) -> Line:
    """All prompts of m tokens on five places of a line, up to the longest m, before four networks."""
    cases = {
        FINE: (reader(0.25), 12),
        COARSE: (reader(0.25), 3),
        "random, one layer": (random_network(generator, d=1, d_k=2, d_v=2, mlp=4), 12),
        "random, two layers": (random_network(generator, d=1, depth=2), 12),
    }
    found = Line([m for m in LENGTHS if m <= longest])
    record.predict(
        "saturation", theorem="Theorem 7", predicted=np.zeros(len(cases)), possible=(-65.0, 65.0), absolute=0.3,
        statement="Bits memorised by all prompts on five places stop growing: the last quarter of prompt lengths adds"
        " at most 0.3 bits",
        parameters={"networks": list(cases), "m": found.lengths},
    )  # fmt: skip
    for name, (model, resolution) in cases.items():
        found.memory[name] = count_labelings(model, resolution, found.lengths)
    record.measure("saturation", [found.grown(name) for name in cases])
    record.theorem(
        "labelings", theorem="Theorem 7, remark (b), and Theorem 2",
        statement="Labelings memorised with margin $2\\varepsilon$ by prompts of $m$ tokens, counted: at most what"
        " multisets of cells and Theorem 2 allow (bits)",
        measured=[each.bits for each in found.memory.values()],
        bound=[np.minimum(each.linear, each.multisets) for each in found.memory.values()],
        possible=[[len(each.queries)] for each in found.memory.values()],
        parameters={"networks": list(cases), "m": found.lengths},
    )  # fmt: skip
    pack_prompts(record, found)
    certify(record, found)
    return found


def count_labelings(model: Transformer, resolution: int, lengths: list[int]) -> Memory:
    """Labelings with margin 2ε = 2Λ/resolution that prompts of m tokens memorise; queries are chosen at the last m."""
    lipschitz, wasserstein = constants(model)
    eps = lipschitz / resolution
    tables = [measure.labels_and_gaps(model, tasks.line_prompts(PLACES, m), QUERIES, own_token=False) for m in lengths]
    labels, gaps = tables[-1]
    some = slice(None, None, max(1, len(labels) // 4000))
    columns = measure.choose_queries(labels[some], gaps[some], 2 * eps) or [0]
    counts = [int((measure.best_margins(y[:, columns], gap[:, columns]) > 2 * eps).sum()) for y, gap in tables]
    return Memory(
        model, eps, (lipschitz, wasserstein), columns, counts,
        linear=np.array([bounds.entropy_bits(1, m, 1.0, lipschitz, eps) for m in lengths]),
        multisets=np.array([bounds.snapped_multiset_bits(1, m, 1.0, lipschitz, eps) for m in lengths]),
    )  # fmt: skip


def separated(outputs: Float[np.ndarray, "N n"], gap: float) -> int:
    """How many rows are chosen, one after the other, that differ pairwise by more than `gap` in some column."""
    count = 0
    while len(outputs):
        count, outputs = count + 1, outputs[np.abs(outputs - outputs[0]).max(1) > gap]
    return count


def pack_prompts(record: claims.Recorder, found: Line) -> None:
    """Part 3 bounds all prompts that some query tells apart, so pack those of the coarse reader, B = 1/4."""
    coarse = found.memory[COARSE]
    raised = np.exp(0.25 * np.outer(QUERIES[::8, 0], PLACES))  # [9 queries, 5 places]
    for m in (16, 24, 32, 64):
        counts = tasks.multisets(len(PLACES), m)
        outputs = counts @ (raised * PLACES).T / (counts @ raised.T)
        found.packed[m] = separated(outputs, 2 * coarse.eps), len(counts)
    record.theorem(
        "packing", theorem="Theorem 7, part 3",
        statement="Prompts of $m$ tokens on five places that differ pairwise by more than $2\\varepsilon$ at some"
        " query, found greedily: at most what the theorem allows (bits)",
        measured=[math.log2(chosen) for chosen, _ in found.packed.values()], bound=coarse.flat,
        possible=[math.log2(several) for _, several in found.packed.values()],
        parameters={"network": COARSE, "m": list(found.packed)},
    )  # fmt: skip


def certify(record: claims.Recorder, found: Line, *, cells: int = 6, m0: int = 16) -> None:
    """The theorem's argument backwards: finitely many prompts stand for those of every length, with a smaller margin.

    Every prompt is within η of one of m0 tokens at the centres of the cells: tokens are rounded to centres, then the
    distribution function to multiples of 1/m0.
    """
    coarse = found.memory[COARSE]
    centres = -1 + (2 * np.arange(cells) + 1) / cells
    eta = coarse.constants[0] / cells + coarse.constants[1] * (cells - 1) / (cells * m0)
    assert eta < coarse.eps
    labels, gaps = measure.labels_and_gaps(
        coarse.model, tasks.line_prompts(centres, m0), QUERIES[coarse.queries], own_token=False
    )
    coarse.certified = int((measure.best_margins(labels, gaps) > 2 * (coarse.eps - eta)).sum())
    record.theorem(
        "certificate", theorem="Theorem 7, part 3, its argument backwards",
        statement="Labelings counted at every length: at most those that are memorised with the smaller margin on the"
        " centres (bits)",
        measured=coarse.bits, bound=math.log2(coarse.certified), possible=len(coarse.queries),
        parameters={"network": COARSE, "cells": cells, "m0": m0, "m": found.lengths},
    )  # fmt: skip


def line_numbers(found: Line) -> dict[str, str]:
    """Numbers about the two readers."""
    fine, coarse = found.memory[FINE], found.memory[COARSE]
    (lipschitz, _), m = coarse.constants, 64
    packed, several = found.packed[m]
    multisets = bounds.snapped_multiset_bits(1, m, 1.0, lipschitz, coarse.eps)
    assert coarse.flat < min(multisets, bounds.entropy_bits(1, m, 1.0, lipschitz, coarse.eps))
    return {
        "line_flat": f"{fine.flat:.0f}", "line_simple": f"{fine.simple:.0f}", "line_count": f"{max(fine.counts)}",
        "longest": f"{found.lengths[-1]}",
        "coarse_count": f"{max(coarse.counts)}", "coarse_certified": f"{coarse.certified}",
        "coarse_queries": f"{len(coarse.queries)}", "coarse_all": f"{2 ** len(coarse.queries)}",
        "packed": f"{packed}", "packed_of": f"{several:,}", "packed_bits": f"{math.log2(packed):.1f}",
        "packed_allowed": f"{coarse.flat:.1f}", "packed_multisets": f"{multisets:.1f}",
    }  # fmt: skip


# --- networks of the usual scale -----------------------------------------------------------------------------------


class Scaled(NamedTuple):
    """A random layer of width d: its constants, bits a token by Theorem 2, log10 of the bits of Theorem 7."""

    d: int
    lipschitz: float
    wasserstein: float
    linear: float
    digits: float

    @property
    def overtakes(self) -> float:
        """The decimal logarithm of the prompt length from which on Theorem 7 is below Theorem 2."""
        return self.digits - math.log10(self.linear)


class Blocks(NamedTuple):
    """Part 4 for a causal network on a line at half margin ε: blocks that are enough, log10 of the bits."""

    eps: float
    blocks: int
    digits: float


@dataclass
class Scale:
    """How large the bounds are: random layers by width, the plane by margin (over rΛ), a causal line."""

    layers: list[Scaled]
    margins: Float[np.ndarray, " E"]
    simple: Float[np.ndarray, " E"]
    sharp: Float[np.ndarray, " E"]
    linear: Float[np.ndarray, " E"]
    causal: list[Blocks]


def scale(generator: torch.Generator, seed: int) -> Scale:
    """The bounds for random networks at the usual scale of weights, r = ε = 1, and where they are useful."""
    layers = []
    for d in WIDTHS:
        config = TransformerConfig(d=d, q=2, heads=max(1, d // 16), norm="rms", norm_eps=0.1, mlp=4 * d)
        lipschitz, wasserstein = constants(Transformer(config, generator=generator))
        how = {"d": d, "radius": 1.0, "lipschitz": lipschitz, "wasserstein": wasserstein, "eps": 1.0}
        linear = bounds.entropy_bits(d, 1, 1.0, lipschitz, 1.0)
        layers.append(Scaled(d, lipschitz, wasserstein, linear, bounds.mean_field_log10_bits(**how)))
    margins = np.geomspace(0.05, 20, 60)
    return Scale(
        layers, margins,
        simple=np.array([bounds.mean_field_bits(**PLANE, eps=eps) for eps in margins]),
        sharp=np.array([bounds.mean_field_packing_bits(**PLANE, eps=eps) for eps in margins]),
        linear=np.array([bounds.entropy_bits(2, 1000, 1.0, 1.0, eps) for eps in margins]),
        causal=[causal_line(eps, seed) for eps in (1.0, 0.3, 0.1)],
    )  # fmt: skip


def causal_line(eps: float, seed: int) -> Blocks:
    """Part 4 for a causal network on a line, two layers deep, ε in units of Λ: K grows until E_K <= ε/2."""
    config = TransformerConfig(d=1, q=2, depth=2, causal=True, inverse_temperature=0.3)
    model = Transformer(config, generator=torch.Generator().manual_seed(seed))
    lipschitz, wasserstein = constants(model)
    weights, K, how = measure.numpy_weights(model), 1, {"radius": 1.0, "query_radius": 1.0, "differences": True}
    while bounds.block_error(config, weights, K, **how) > eps * lipschitz / 2:
        K = math.ceil(1.1 * K)
    allowed = bounds.causal_mean_field_bits(
        d=1, radius=1.0, lipschitz=lipschitz, wasserstein=wasserstein, eps=eps * lipschitz, blocks=K
    )
    return Blocks(eps, K, math.log10(allowed))


def scale_numbers(found: Scale) -> dict[str, str]:
    """From which power of ten of tokens on the theorem says more than Theorem 2, at two widths."""
    overtakes = {each.d: each.overtakes for each in found.layers}
    return {"cross2": f"{overtakes[2]:.0f}", "cross64": f"{overtakes[64]:.0f}"}
