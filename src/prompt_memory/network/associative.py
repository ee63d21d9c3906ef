"""One attention head as an associative memory, written by hand: what it retains when a hypothesis is dropped.

A fact is a key on the unit sphere of R^{d_k} and a label ±1.  Its token carries both; the query for fact i is its key,
the softmax logit of key j is B⟨k_i, k_j⟩, and the reading v̂_i is the attention-weighted mean of the labels.  The two
output logits are ±v̂_i: fact i is recalled with margin 2ε if label·v̂_i > ε.  A context of N tokens may hold M <= N
facts, each repeated ⌊N/M⌋ times; attention is a weighted mean, so repetition changes nothing but N.

Shapes at the end of a line: `T` labelings, `M` facts.  Everything is float64 numpy, but for the network itself
(`head_network`).
"""

import math

import numpy as np
import torch
from jaxtyping import Float

from prompt_memory.checks import integers
from prompt_memory.network.transformer import Transformer, TransformerConfig

# --- keys ----------------------------------------------------------------------------------------------------------


def circle_keys(n: int) -> Float[np.ndarray, "n 2"]:
    """n keys evenly spaced on the circle: the best code in d_k = 2.  ValueError for n < 1."""
    integers(n=n)
    angle = 2 * math.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def fibonacci_keys(n: int) -> Float[np.ndarray, "n 3"]:
    """n keys on the sphere, d_k = 3, along the golden spiral: a good code, not the best one.  ValueError for n < 1."""
    integers(n=n)
    height = 1 - (2 * np.arange(n) + 1) / n
    angle = math.pi * (3 - math.sqrt(5)) * np.arange(n)
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)


def random_keys(n: int, d_k: int, rng: np.random.Generator) -> Float[np.ndarray, "n d_k"]:
    """n keys uniform on the sphere of R^{d_k}, independent.  ValueError for n < 1 or d_k < 1."""
    integers(n=n, d_k=d_k)
    keys = rng.standard_normal((n, d_k))
    return keys / np.linalg.norm(keys, axis=1, keepdims=True)


def ball_keys(d_k: int, spacing: float) -> Float[np.ndarray, "M d_k"]:
    """A lattice in the closed unit ball: d_k = 1 evenly spaced, d_k = 2 hexagonal, nearest distance `spacing`.

    ValueError unless d_k is 1 or 2 and 0 < spacing <= 2.
    """
    if d_k not in (1, 2):
        raise ValueError(f"lattices are listed for d_k = 1 and 2, not {d_k!r}")
    if not 0 < spacing <= 2:
        raise ValueError(f"spacing must be above 0 and at most 2, not {spacing!r}")
    if d_k == 1:
        steps = math.floor(2 / spacing + 1e-9)
        return (spacing * (np.arange(steps + 1) - steps / 2))[:, None]
    reach = math.ceil(2.4 / spacing) + 1
    a, b = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    points = spacing * np.stack([(a + b / 2).ravel(), (b * math.sqrt(3) / 2).ravel()], 1)
    return points[np.linalg.norm(points, axis=1) <= 1 + 1e-12]


# --- reading -------------------------------------------------------------------------------------------------------


def readings(
    keys: Float[np.ndarray, "M d_k"],
    values: Float[np.ndarray, "T M"],
    logit_range: float,
    *,
    weights: Float[np.ndarray, " M"] | None = None,
    chunk: int = 1024,
) -> Float[np.ndarray, "T M"]:
    """v̂ at every key: Σ_j w_j e^{B⟨k_i, k_j⟩} u_j / Σ_j w_j e^{B⟨k_i, k_j⟩}, for T tables of values u.

    `weights` counts how often each token is repeated (default: equally often).  With B = ∞ attention is argmax: the
    weighted mean over the keys of the largest cosine, as computed.  ValueError for shapes that do not fit, B < 0, NaN.
    """
    keys, values = np.asarray(keys, float), np.asarray(values, float)
    if keys.ndim != 2 or values.ndim != 2 or values.shape[1] != len(keys) or not len(keys):
        raise ValueError(f"keys [M, d_k] and values [T, M] do not fit: {list(keys.shape)}, {list(values.shape)}")
    if not (np.isfinite(keys).all() and np.isfinite(values).all()):
        raise ValueError("keys and values must be finite")
    B = checked_logit_range(logit_range)
    weights = np.ones(len(keys)) if weights is None else np.asarray(weights, float)
    if weights.shape != (len(keys),) or not ((weights > 0) & np.isfinite(weights)).all():
        raise ValueError("weights must be one finite number > 0 for each key")
    result = np.empty_like(values)
    for start in range(0, len(keys), chunk):
        cosines = keys[start : start + chunk] @ keys.T  # [chunk, M]
        top = cosines.max(1, keepdims=True)
        attention = weights * (np.exp(B * (cosines - top)) if math.isfinite(B) else cosines == top)
        result[:, start : start + chunk] = (attention @ values.T / attention.sum(1, keepdims=True)).T
    return result


def leak_odds(
    keys: Float[np.ndarray, "M d_k"], logit_range: float, *, weights: Float[np.ndarray, " M"] | None = None
) -> float:
    """The largest ratio, over queries k_i, of attention on other facts to attention on fact i.

    Every labeling is recalled with margin 2ε exactly if it is below (1−ε)/(1+ε): the worst one opposes fact i with all
    others.  `weights` and ValueError as in `readings`.
    """
    alone = np.eye(len(keys))
    share = np.diag(readings(keys, alone, logit_range, weights=weights))
    return float((1 / share - 1).max()) if (share > 0).all() else math.inf


def circle_readings(values: Float[np.ndarray, "T M"], logit_range: float) -> Float[np.ndarray, "T M"]:
    """`readings` for evenly spaced keys on the circle, as a convolution: M log M instead of M² steps."""
    values = np.asarray(values, float)
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"values must be a table [T, M] with M >= 1, not of shape {list(values.shape)}")
    M, B = values.shape[1], checked_logit_range(logit_range)
    if not math.isfinite(B):
        raise ValueError("give a finite logit_range: argmax needs the keys, see readings")
    row = np.exp(-2 * B * np.sin(math.pi * np.arange(M) / M) ** 2)  # B(cos − 1), without cancellation
    return np.fft.irfft(np.fft.rfft(values) * np.fft.rfft(row / row.sum()), n=M)


def checked_logit_range(value: float) -> float:
    if not value >= 0:
        raise ValueError(f"logit_range must be a number >= 0, not {value}")
    return float(value)


# --- the same memory as a network ----------------------------------------------------------------------------------


def head_network(
    d_k: int, scale: float, *, norm: str = "none", context_scaling: str = "none", dtype: torch.dtype = torch.float64
) -> Transformer:
    """A frozen transformer of one layer, width d_k + 1, that reads (key, value) tokens: logits are ±v̂ without a norm.

    The softmax logit of the token (ρk, u) seen from the query (k', 0) is scale·ρ⟨k', k⟩, times ln(keys seen) with
    `context_scaling="log"`; the value is u.  With `norm="rms"` (ε₀ = 0) query and token are rescaled to the length
    √(d_k + 1) first, whatever ρ is.  Use it with `own_token=False`.  ValueError unless scale > 0 is finite.
    """
    (d_k,) = integers(d_k=d_k)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a finite number > 0, not {scale}")
    network = Transformer(
        TransformerConfig(
            d=d_k + 1, q=2, d_k=d_k, d_v=1, norm=norm, norm_eps=0.0, context_scaling=context_scaling,
            inverse_temperature=float(scale) * math.sqrt(d_k),
        )
    ).to(dtype)  # fmt: skip
    block, where, what = network.blocks[0], torch.eye(d_k + 1, d_k), torch.eye(d_k + 1)[:, -1:]
    weights = (block.query, where), (block.key, where), (block.value, what), (block.output, what.T)
    for weight, matrix in (*weights, (network.unembedding, torch.cat([what, -what], 1))):
        weight.copy_(matrix)
    return network


def head_prompt(
    keys: Float[np.ndarray, "M d_k"], values: Float[np.ndarray, "T M"], *, length: float = 1.0, copies: int = 1
) -> Float[torch.Tensor, "T m d"]:
    """Prompts of `copies` times M tokens (length·k_j, u_j) for `head_network`, float64; ValueError for bad shapes."""
    values = torch.as_tensor(np.asarray(values, float))
    if values.ndim != 2 or np.ndim(keys) != 2 or values.shape[1] != len(keys):
        raise ValueError(f"keys [M, d_k] and values [T, M] do not fit: {list(np.shape(keys))}, {list(values.shape)}")
    keys = (length * torch.as_tensor(np.asarray(keys, float))).expand(len(values), -1, -1)
    return torch.cat([keys, values[..., None]], -1).repeat(1, integers(copies=copies)[0], 1)


def head_queries(keys: Float[np.ndarray, "M d_k"]) -> Float[torch.Tensor, "M d"]:
    """The queries (k_i, 0) for `head_network`, float64."""
    keys = torch.as_tensor(np.asarray(keys, float))
    return torch.cat([keys, keys.new_zeros(len(keys), 1)], 1)
