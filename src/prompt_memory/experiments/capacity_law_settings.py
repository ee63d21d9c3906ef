"""Settings of chapter 11: what is changed, one parameter at a time, how much is run, and step sizes from pilot runs."""

import math
from dataclasses import dataclass, field

import torch

from prompt_memory.network.transformer import TransformerConfig
from prompt_memory.tune import capacity

SYMBOL = {"d_k": "$d_k$", "β": "$\\beta$"}
SAME = ("H", "d_k", "L", "β", "norm")  # what bounds in d, m, r, b and q do not see

EXACT_BASE = {
    "m": 2, "b": 1, "heads": 2, "d_k": 3, "d_v": 3, "norm": "rms", "causal": True, "positions": "learned",
    "inverse_temperature": 4.0,
}  # fmt: skip
EXACT_RADIUS = 1.5
EXACT_AT_BASE = {("H", 2), ("d_k", 3), ("L", 1), ("β", 4.0), ("norm", "rms")}  # the base network, drawn again
FITTED = ("m", "d", "b", "H", "d_k", "L", "β")

BASE = {
    "d": 8, "m": 4, "heads": 2, "norm": "rms", "norm_eps": 0.0, "causal": True, "positions": "learned",
    "inverse_temperature": 4.0, "radius": 3.0, "bits": None,
}  # fmt: skip
SWEEP = {  # parameter: (how it is changed, values)
    "m": (lambda v: {"m": v}, (1, 2, 4, 8)),
    "d": (lambda v: {"d": v}, (4, 8, 16)),
    "H": (lambda v: {"heads": v}, (1, 2, 4, 8)),
    "d_k": (lambda v: {"d_k": v, "d_v": 4}, (1, 2, 4, 8)),
    "L": (lambda v: {"depth": v}, (1, 2, 3)),
    "β": (lambda v: {"inverse_temperature": v}, (0.5, 1.0, 2.0, 4.0)),
    "r": (lambda v: {"radius": v}, (0.75, 1.5, 3.0, 6.0)),
    "q": (lambda v: {"q": v}, (2, 4, 8)),
    "b": (lambda v: {"bits": v}, (1, 2, 4, 8)),
    "norm": (lambda v: {"norm": v}, ("none", "rms", "layer")),
    "m, β = 1/2": (lambda v: {"m": v, "inverse_temperature": 0.5}, (1, 2, 4, 8)),
}
NUMERIC = ("m", "d", "H", "d_k", "L", "β", "r", "q", "b")
BASE_AT = {"m": 4, "d": 8, "H": 2, "d_k": 4, "L": 1, "β": 4.0, "r": 3.0, "q": 2}

RATES = (0.1, 0.3, 0.6, 1.2)
# Mean labels found with each of RATES: 16 samples, one restart, 60 and then 120 steps without progress.
PILOT = {
    ("m", 1): (5.6, 5.9, 5.4, 5.7), ("m", 2): (8.7, 8.4, 10.6, 9.6), ("m", 4): (13.1, 16.4, 17.2, 17.4),
    ("m", 8): (22.4, 28.1, 27.9, 28.9),
    ("d", 4): (7.5, 6.9, 7.7, 8.9), ("d", 16): (22.2, 32.2, 31.0, 31.0),
    ("H", 1): (9.6, 14.3, 14.2, 15.1), ("H", 4): (14.8, 14.8, 16.6, 16.2), ("H", 8): (10.4, 12.1, 12.8, 13.3),
    ("d_k", 1): (8.5, 8.4, 9.4, 10.2), ("d_k", 2): (11.4, 11.8, 13.8, 12.2), ("d_k", 8): (12.4, 17.8, 16.5, 14.5),
    ("L", 2): (21.2, 21.9, 22.9, 19.9), ("L", 3): (17.2, 19.3, 20.2, 17.5),
    ("β", 0.5): (6.8, 7.4, 7.6, 8.9), ("β", 1.0): (9.5, 11.4, 11.8, 11.9), ("β", 2.0): (11.4, 16.8, 16.8, 16.6),
    ("r", 0.75): (13.9, 15.6, 14.7, 14.1), ("r", 1.5): (14.1, 17.8, 18.8, 18.0), ("r", 6.0): (13.3, 15.0, 14.3, 16.8),
    ("q", 4): (7.1, 8.2, 7.9, 8.1), ("q", 8): (3.4, 3.7, 4.0, 4.2),
    ("b", 1): (6.5, 7.5, 7.1, 7.6), ("b", 2): (11.4, 12.6, 12.2, 14.1), ("b", 4): (15.8, 15.4, 17.2, 16.7),
    ("b", 8): (13.8, 17.5, 17.8, 18.1),
    ("norm", "none"): (20.9, 16.3, 19.4, 15.7), ("norm", "layer"): (13.9, 14.4, 16.0, 16.1),
    ("m, β = 1/2", 1): (5.1, 5.1, 5.2, 5.4), ("m, β = 1/2", 2): (5.5, 6.5, 6.9, 6.6),
    ("m, β = 1/2", 8): (9.8, 10.2, 9.9, 11.4),
}  # fmt: skip
AFFINE_RATES = (0.3, 0.6, 1.2, 2.4)
AFFINE_PILOT = {  # the same for affine problems in D coordinates
    4: (8.0, 8.5, 8.4, 8.6), 8: (14.4, 14.3, 14.6, 15.2), 16: (28.0, 29.0, 30.1, 30.2), 32: (54.6, 55.6, 56.2, 55.9),
    64: (119.3, 120.4, 120.9, 122.9),
}  # fmt: skip
ONE_BIT_PILOT = (5.00, 5.12, 5.38, 5.50)  # the same for the base network of the first experiment
PILOT_SEED, PILOT_SAMPLES, PILOT_STEPS = 2026, 16, (60, 120)

Key = tuple[str, object]  # a parameter and its value


@dataclass(frozen=True)
class Settings:
    """How much is run.

    Samples (network, queries, labels) a point that is searched, and of the base network; restarts; steps without
    progress of each stage; every how many values of a parameter; networks a point, bits of a prompt where all prompts
    are run; coordinates of the affine problems; whether the pilot runs are done anew.
    """

    samples: int
    base: int
    steps: tuple[int, ...]
    networks: int
    bits: int
    affine: tuple[int, ...]
    restarts: int = 2
    every: int = 1
    pilots: bool = field(default=False)

    @property
    def exact_queries(self) -> int:
        """Queries that all prompts are run on: labelings that are left have a share below 2^−12."""
        return self.bits + 12

    def exact_sweep(self) -> dict:
        """Parameter: (how it is changed, values), where all prompts are run."""
        top = self.bits
        return {
            "m": (lambda v: {"d": 3, "m": v}, range(1, top // 3 + 1)),
            "d": (lambda v: {"d": v}, range(3, top // 2 + 1)),
            "b": (lambda v: {"d": 3, "m": 1, "b": v}, range(1, top // 3 + 1)),
            "H": (lambda v: {"heads": v}, (1, 2, 4, 8)),
            "d_k": (lambda v: {"d_k": v}, (1, 2, 3, 6)),
            "L": (lambda v: {"depth": v}, (1, 2, 3, 4)),
            "β": (lambda v: {"inverse_temperature": v}, (0.25, 1.0, 4.0, 16.0)),
            "norm": (lambda v: {"norm": v}, ("none", "rms", "layer")),
        }

    def exact_values(self, name: str) -> list:
        return self.thin(self.exact_sweep()[name][1])

    def exact_parts(self, name: str | None = None, v=None) -> dict:
        """Everything about the networks of one point; of the base network without a name.  Two tokens of one bit a
        coordinate fill the budget of bits."""
        change = {} if name is None else self.exact_sweep()[name][0](v)
        return {"d": self.bits // 2} | EXACT_BASE | change

    def values(self, name: str) -> list:
        return self.thin(SWEEP[name][1])

    def thin(self, values) -> list:
        """The first value, every so many, and the last."""
        values = list(values)
        return sorted({*values[:: self.every], values[-1]}, key=values.index)


PROFILES = {
    "smoke": Settings(8, 8, (5, 10), networks=3, bits=8, affine=(4, 8), every=3),
    "standard": Settings(28, 128, (40, 80, 160), networks=24, bits=12, affine=(8, 16, 32)),
    "full": Settings(
        64, 128, (60, 120, 240, 480), networks=100, bits=16, affine=(8, 16, 32, 64), restarts=4, pilots=True
    ),
}


def setting(name: str, v) -> tuple[TransformerConfig, int, float, int | None]:
    """(network, m, radius, bits) of one point of the search."""
    parts = BASE | SWEEP[name][0](v)
    m, radius, bits = (parts.pop(key) for key in ("m", "radius", "bits"))
    return TransformerConfig(mlp=2 * parts["d"], **parts), m, radius, bits


def asked(config: TransformerConfig, m: int, samples: int, generator: torch.Generator):
    """(networks, labels): fresh ones, with more queries than will be memorised."""
    networks = capacity.ensemble(config, samples, min(40 + 4 * config.d * m, 120), generator=generator)
    return networks, torch.randint(config.q, networks.queries.shape[:2], generator=generator)


def prompt_bits(parts: dict) -> int:
    """b·d·m of the networks of one point."""
    return math.prod(parts[name] for name in "bdm")
