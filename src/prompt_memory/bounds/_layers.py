"""Lipschitz constants of the parts of a frozen transformer, which Theorems 2, 7 and 8 follow through its layers.

A `config` is anything with the attributes of `prompt_memory.network.transformer.TransformerConfig`, `weights` holds
arrays under the names of the network's state; tokens are row vectors.  Norms of matrices are spectral.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prompt_memory.bounds._checks import head_matrices, nonnegative
from prompt_memory.checks import integers

# the largest slope of GELU, x ↦ x·Φ(x): its second derivative is φ(x)(2 − x²), so it lies at √2; the least is 1 − this
GELU_LIPSCHITZ = 0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi)


# --- one head ------------------------------------------------------------------------------------------------------


def softmax_slope(a: float, keys: float, query: float, key_moves: float, query_moves: float, *, rotary: bool) -> float:
    """One head over ‖V‖, when keys in a ball move by `key_moves` and the query by `query_moves`; a = ‖A‖ (Lemma 2a).

    √(1 + B²) κ + a r² ξ with B = a·keys·query, r = keys, κ and ξ the moves.  With rotary positions ⟨A x, z_j⟩ has
    another A of the same norm for every j, and 1 + B takes the place of √(1 + B²).
    """
    B = a * keys * query
    return (1 + B if rotary else math.hypot(1, B)) * key_moves + a * keys**2 * query_moves


def measure_slope(a: float, keys: float, query: float, measure_moves: float, query_moves: float) -> float:
    """One head over ‖V‖, when the measure of its keys moves by `measure_moves` in W₁ and the query by `query_moves`.

    The largest of k e^B (cosh B + y sinh B)(1 + B(1 + y)) + ξ a r²(1 − y²) over 0 <= y <= 1, where y is the length of
    the mean under the softmax, over r (Lemma 7a); at y = 1, k e^{2B}(1 + 2B), if the query moves no faster.
    """
    B = a * keys * query
    if B > 300:
        return math.inf if measure_moves > 0 else query_moves * a * keys**2
    k, own = measure_moves, query_moves * a * keys**2
    cosh, sinh = (math.exp(2 * B) + 1) / 2, math.expm1(2 * B) / 2
    constant, linear, square = k * cosh * (1 + B) + own, k * (sinh * (1 + B) + cosh * B), k * sinh * B - own
    if linear < -2 * square:  # the top of the parabola lies inside
        return constant - linear**2 / (4 * square)
    return k * (cosh + sinh) * (1 + 2 * B)


def over_heads(slopes: list[float], M: list[Float[np.ndarray, "d d"]]) -> float:
    """A bound on max over unit w of Σ_h κ_h ‖M_hᵀ w‖, at most Σ_h κ_h ‖M_h‖, by Cauchy and Schwarz (Lemma 2b)."""
    norms = [_spectral(each) for each in M]
    total = sum(k * n for k, n in zip(slopes, norms, strict=True))
    if total == 0 or not math.isfinite(total):
        return total
    # weights divided by the total, so that nothing overflows
    joint = sum((k / total) / n * (each @ each.T) for k, n, each in zip(slopes, norms, M, strict=True) if n > 0)
    return min(total, total * math.sqrt(_spectral(joint)))


def head_sizes(A, V, radius: float, query_radius: float | None = None) -> tuple[float, float, float, float]:
    """(‖A‖, ‖V‖, largest length of keys, of the query) of one head, checked; a query is no longer than keys if None.

    ValueError unless A is square, V has as many columns, all entries are finite and the radii are finite and >= 0.
    """
    A, V = head_matrices(A, V)
    keys = nonnegative("radius", radius)
    return _spectral(A), _spectral(V), keys, keys if query_radius is None else nonnegative("query_radius", query_radius)


def _spectral(matrix: np.ndarray) -> float:
    """The largest singular value."""
    return float(np.linalg.norm(matrix, 2))


# --- layers of a network -------------------------------------------------------------------------------------------


class LayerConstants(NamedTuple):
    """What a bound needs to know of one layer."""

    A: list[float]  # ‖A_h‖ of each head: its softmax logits are ⟨A_h x, z⟩, of tokens behind the norm
    M: list[Float[np.ndarray, "d d"]]  # M_h of each head: it adds M_h times a mean of tokens behind the norm
    prompt: float  # the largest length of what attention reads at a token of the prompt
    query: float  # the same at a token of the query
    token_wise: float  # 1 + Lip(token-wise network), 1 without one

    @property
    def keys(self) -> float:
        """The largest length of what attention reads anywhere."""
        return max(self.prompt, self.query)

    def moved_by_tokens(self, reach: float, moved: float, own: float, *, rotary: bool) -> float:
        """How far attention moves a token of length `reach` that has moved by `own`, all tokens by `moved` at most."""
        return over_heads([softmax_slope(a, self.keys, reach, moved, own, rotary=rotary) for a in self.A], self.M)

    def moved_by_measure(self, reach: float, moved: float = 1.0, own: float = 0.0) -> float:
        """The same where the measure of all tokens has moved by `moved` in W₁."""
        return over_heads([measure_slope(a, self.keys, reach, moved, own) for a in self.A], self.M)

    def moved_by_query(self) -> float:
        """The same for a token of any length that has moved by 1, among tokens that stay."""
        return over_heads([a * self.keys**2 for a in self.A], self.M)


class NetworkConstants(NamedTuple):
    """What a bound needs to know of a whole network."""

    layers: list[LayerConstants]
    reading: float  # the largest column of the last norm's gain and the unembedding, or half a difference of two
    norm_slope: float  # Lipschitz constant of a norm, its gain apart: 1 without norms, infinite if one divides by zero


def network_constants(
    config,
    weights: Mapping[str, Float[np.ndarray, "..."]],
    radius: float,
    query_radius: float,
    *,
    least_norm: float,
    differences: bool,
    keys: int | None = None,
) -> NetworkConstants:
    """The constants of all parts of a network, for prompt tokens in a ball of `radius`, query tokens of `query_radius`.

    Arguments as in `network_lipschitz`.  ValueError for wrong shapes, entries that are not finite, negative radii, or
    missing `keys`.
    """
    c, W = config, _arrays(config, weights)
    radii = nonnegative("radius", radius), nonnegative("query_radius", query_radius)
    scale, slope = _logit_scale(c, keys), _norm_slope(c, least_norm)
    if c.positions == "learned":
        longest = float(np.linalg.norm(W["position"], axis=1).max())
        radii = radii[0] + longest, radii[1] + longest
    layers = []
    for number in range(c.depth):
        w = {name.split(".", 2)[2]: array for name, array in W.items() if name.startswith(f"blocks.{number}.")}
        A, M = _heads(c, w, scale)
        token_wise, stretch, shift = _token_wise(c, w, slope)
        reach = radii if c.norm == "none" else (math.sqrt(c.d),) * 2  # a norm returns vectors no longer than √d
        layer = LayerConstants(A, M, *reach, token_wise)
        written = over_heads([1.0] * c.heads, M) * layer.keys
        radii = tuple((each + written) * stretch + shift for each in radii)
        layers.append(layer)
    return NetworkConstants(layers, _reading(c, W, differences), slope)


def _logit_scale(config, keys: int | None) -> float:
    """The factor of softmax logits; `keys` is the largest number of tokens that any token sees."""
    scale = config.inverse_temperature / math.sqrt(config.d_k)
    if config.context_scaling != "log":
        return scale
    if keys is None:
        raise ValueError("the softmax is scaled with the context: give keys, the largest number of tokens seen")
    return scale * math.log(integers(keys=keys)[0])


def _norm_slope(config, least_norm: float) -> float:
    """1/√(ρ²/d + ε₀) for inputs of length at least ρ."""
    if config.norm == "none":
        return 1.0
    square = config.norm_eps + nonnegative("least_norm", least_norm) ** 2 / config.d
    return 1 / math.sqrt(square) if square else math.inf


def _heads(config, w: dict[str, np.ndarray], scale: float) -> tuple[list[float], list[np.ndarray]]:
    """(‖A_h‖, M_h) of all heads; ‖K‖‖Q‖ for ‖A_h‖ with rotary positions, which turn keys against queries."""
    N, rotary = _norm_matrix(config, w.get("norm1.gain")), config.positions == "rotary"
    # along which axis the weights of the heads lie side by side
    split = [np.split(w[name], config.heads, axis)
             for name, axis in (("query", 1), ("key", 1), ("value", 1), ("output", 0))]  # fmt: skip
    A, M = [], []
    for query, key, value, output in zip(*split, strict=True):
        q, k = N @ query, N @ key
        A.append((_spectral(q) * _spectral(k) if rotary else _spectral(k @ q.T)) * scale)
        M.append((N @ value @ output).T)
    return A, M


def _token_wise(config, w: dict[str, np.ndarray], norm_slope: float) -> tuple[float, float, float]:
    """(1 + Lip, a, b) of x + down σ(up x): lengths grow to at most a‖x‖ + b.

    As σ' lies within Lip σ − ½ of ½, the Lipschitz constant is ½‖down up‖ + (Lip σ − ½)‖down‖‖up‖; and σ(t) lies within
    |t|/2 of t/2.
    """
    if not config.mlp:
        return 1.0, 1.0, 0.0
    up, down = (_norm_matrix(config, w.get("norm2.gain")) @ w["up"]).T, w["down"].T
    joint, first, second = _spectral(down @ up), _spectral(up), _spectral(down)
    excess = (GELU_LIPSCHITZ if config.activation == "gelu" else 1.0) - 0.5
    lipschitz = joint / 2 + excess * second * first
    shift = (_length(down @ w["up_bias"]) + second * _length(w["up_bias"])) / 2 + _length(w["down_bias"])
    return 1 + norm_slope * lipschitz, 1 + (joint + second * first) / 2, shift


def _reading(config, W: dict[str, np.ndarray], differences: bool) -> float:
    """The longest column of the unembedding behind the last norm, or half the longest difference of two."""
    columns = (_norm_matrix(config, W.get("norm.gain")) @ W["unembedding"]).T  # [q, d]
    if differences:
        return float(np.linalg.norm(columns[:, None] - columns[None], axis=-1).max()) / 2
    return float(np.linalg.norm(columns, axis=-1).max())


def _norm_matrix(config, gain: np.ndarray | None) -> Float[np.ndarray, "d d"]:
    """N with norm(x) = (x̂ / √(mean x̂² + ε₀)) N for row vectors, where x̂ is x, centred if LayerNorm."""
    if config.norm == "none":
        return np.eye(config.d)
    centre = np.eye(config.d) - (1 / config.d if config.norm == "layer" else 0.0)
    return centre * gain


def _arrays(config, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as float64 arrays; ValueError if one is missing, has another shape or is not finite."""
    c = config
    heads = {"query": (c.d, c.heads * c.d_k), "key": (c.d, c.heads * c.d_k)}
    block = heads | {"value": (c.d, c.heads * c.d_v), "output": (c.heads * c.d_v, c.d)}
    if c.mlp:
        block |= {"up": (c.d, c.mlp), "up_bias": (c.mlp,), "down": (c.mlp, c.d), "down_bias": (c.d,)}
    if c.norm != "none":
        block |= {"norm1.gain": (c.d,)} | ({"norm2.gain": (c.d,)} if c.mlp else {})
    shapes = {f"blocks.{layer}.{name}": shape for layer in range(c.depth) for name, shape in block.items()}
    shapes |= {"unembedding": (c.d, c.q)} | ({"norm.gain": (c.d,)} if c.norm != "none" else {})
    shapes |= {"position": (c.context, c.d)} if c.positions == "learned" else {}
    arrays = {}
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"the weight {name} is missing")
        arrays[name] = np.asarray(weights[name], dtype=np.float64)
        if arrays[name].shape != shape:
            raise ValueError(f"the weight {name} must have the shape {list(shape)}, not {list(arrays[name].shape)}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"the weight {name} holds NaN or infinite entries")
    return arrays


def _length(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))
