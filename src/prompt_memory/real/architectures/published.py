"""Published measurements of real models: what a search found, by others, kept in this one place.

Source: arXiv 2605.22223, a follow-up by the authors of the paper that this book accompanies.  A slope is the number of
tokens of *natural text* that one more prompt vector could be tuned to produce, by gradient descent; it bounds nothing.
"""

from typing import NamedTuple

from prompt_memory.real.architectures.architecture import Architecture

SOURCE = "arXiv 2605.22223"


class Published(NamedTuple):
    """A model with published measurements: radius of its prompt vectors, and slope in tokens of text a vector."""

    architecture: Architecture
    radius: float
    slope: float


def _published(
    name: str, family: str, width, vocabulary, radius, slope, layers, heads, kv_heads, head, context, window=None
):
    layer_norm = family == "gpt_neox"
    architecture = Architecture(
        name=name, family=family, width=width, layers=layers, heads=heads, kv_heads=kv_heads, key_dim=head,
        value_dim=head, vocabulary=vocabulary, context=context, norm="layer" if layer_norm else "rms",
        norm_eps=1e-5 if layer_norm or family == "llama" else 1e-6, positions="rotary",
        attention="full" if window is None else "window", window=window,
    )  # fmt: skip
    return name, Published(architecture, radius, slope)


# Width, vocabulary, radius and slope: the paper's table.  Layers, heads and context: the models' cards and
# configurations.
PUBLISHED = dict((
    #                                     d     V       radius  slope  layers heads kv head context window
    _published("Pythia-160M", "gpt_neox", 768, 50304, 63.62, 90.4, 12, 12, 12, 64, 2048),
    _published("Pythia-410M", "gpt_neox", 1024, 50304, 54.90, 112.4, 24, 16, 16, 64, 2048),
    _published("Pythia-1B", "gpt_neox", 2048, 50304, 65.68, 287.4, 16, 8, 8, 256, 2048),
    _published("Qwen2.5-0.5B", "qwen2", 896, 151936, 309.00, 71.0, 24, 14, 2, 64, 32768),
    _published("Qwen2.5-1.5B", "qwen2", 1536, 151936, 153.62, 79.6, 28, 12, 2, 128, 32768),
    _published("Llama-3.2-1B", "llama", 2048, 128256, 41.06, 137.8, 16, 32, 8, 64, 131072),
    _published("Gemma-3-270M", "gemma3_text", 640, 262144, 10.74, 44.5, 18, 4, 1, 256, 32768, 512),
))  # fmt: skip


class Larger(NamedTuple):
    """A larger model: width, vocabulary, slope, and the printed ratios of bound to slope, for the ball and the box."""

    width: int
    vocabulary: int
    slope: float
    ball: float
    box: float


# Printed by th_bounds_estimation.ipynb in the authors' repository transformers_accessibility.
LARGER = {
    "Pythia-1.4B": Larger(2048, 50304, 261.4, 6.019802, 4.316811),
    "Pythia-2.8B": Larger(2560, 50304, 197.9, 9.939214, 7.161607),
    "Pythia-6.9B": Larger(4096, 50304, 283.55, 11.099110, 7.704780),
}


def found_slope(architecture: Architecture) -> float | None:
    """The published slope of the model of this name, width and depth; None if there is none."""
    model = PUBLISHED.get(architecture.name)
    if model is None:
        return None
    same = (model.architecture.width, model.architecture.layers) == (architecture.width, architecture.layers)
    return model.slope if same else None
