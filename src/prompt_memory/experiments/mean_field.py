"""Chapter 7, mean field: a prompt as a measure of tokens, and what a bounded memory that gives at any length and depth.

`run` writes each forecast down before what it is about is measured, and judges the claims; the parts are
`mean_field_slopes` (one head, whole networks), `mean_field_memory` and `mean_field_causal`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from prompt_memory.book import claims
from prompt_memory.experiments import mean_field_causal as causal
from prompt_memory.experiments import mean_field_memory as memory
from prompt_memory.experiments import mean_field_slopes as slopes


@dataclass(frozen=True)
class Settings:
    """How much is run, in the order of the chapter."""

    steps: int  # of the ascent of one head
    ranges: tuple[float, ...]  # B
    lengths: tuple[int, ...]  # m, for one head
    networks: int  # of each kind
    pairs: int  # of prompts, for each network
    ascent: int  # steps, for a whole network
    longest: int  # prompt on the line
    tokens: int  # of a prompt of a causal network
    blocks: tuple[int, ...]  # K
    causal: int  # causal networks of each depth
    directions: int = 8  # along which tokens are sorted
    shuffles: int = 16


PROFILES = {
    "smoke": Settings(
        steps=60, ranges=(1.0,), lengths=(1, 4, 16, 64), networks=1, pairs=6, ascent=12, longest=16, tokens=256,
        blocks=(2, 4, 8, 16), causal=4,
    ),
    "standard": Settings(
        steps=400, ranges=(0.25, 0.5, 1.0, 2.0), lengths=tuple(2**k for k in range(10)), networks=2, pairs=60,
        ascent=80, longest=24, tokens=512, blocks=(2, 4, 8, 16, 32, 64), causal=6,
    ),
    "full": Settings(
        steps=1000, ranges=(0.25, 0.5, 1.0, 2.0, 3.0), lengths=tuple(2**k for k in range(12)), networks=4, pairs=300,
        ascent=200, longest=32, tokens=1024, blocks=(2, 4, 8, 16, 32, 64, 128), causal=10, directions=16,
    ),
}  # fmt: skip


@dataclass
class Result:
    """Everything that chapter 7 measured."""

    heads: slopes.Heads
    networks: slopes.Networks
    histograms: list[memory.Packing]
    line: memory.Line
    causal: causal.Causal
    scale: memory.Scale
    numbers: dict[str, str] = field(default_factory=dict)


def run(profile: str, *, record: claims.Recorder, generator: torch.Generator, rng: np.random.Generator) -> Result:
    """All experiments of the chapter; each forecast is written down before what it is about is measured."""
    s = claims.settings(PROFILES, profile)
    slopes.check_rounding(rng)
    slopes.check_layer(generator, rng)
    result = Result(
        heads=slopes.heads(record, generator, steps=s.steps, ranges=s.ranges, lengths=s.lengths),
        networks=slopes.networks(record, generator, rng, each=s.networks, pairs=s.pairs, ascent=s.ascent),
        histograms=memory.histograms(record, rng),
        line=memory.line(record, generator, longest=s.longest),
        causal=causal.causal(
            record, generator, tokens=s.tokens, blocks=s.blocks, directions=s.directions, shuffles=s.shuffles,
            networks=s.causal,
        ),
        scale=memory.scale(generator, record.seed),
    )  # fmt: skip
    result.numbers |= slopes.head_numbers(result.heads) | slopes.network_numbers(result.networks)
    result.numbers |= memory.line_numbers(result.line) | memory.scale_numbers(result.scale)
    result.numbers |= causal.numbers(result.causal)
    return result
