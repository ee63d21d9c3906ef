"""Witnesses: ranks of DΦ that are proved, not only measured.

Every number is a *ball*, a midpoint in float64 with a radius that bounds what rounding may have done to it, through
the whole network and its derivative.  Where U^T J V of a ball matrix J is certainly so close to the identity that it
is invertible, the true derivative has at least that rank.  Trusted are IEEE arithmetic and the elementary functions of
numpy and scipy to 8 units in the last place.  The forward pass and its derivative are written out a second time here,
so that they also check `transformer` and automatic differentiation.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor

from prompt_memory.network.transformer import Prefix, Transformer, TransformerConfig
from prompt_memory.tasks import generic_instance

ULP = 2.0**-52  # twice the unit roundoff: charged for one operation
FUNCTION = 8 * ULP  # charged for an elementary function
TINY = 1e-300  # charged beside them, for underflow
GROW = 1 + 1e-10  # radii are computed in floating point too


class Ball:
    """An array of real numbers x known up to |x − mid| <= rad, entry by entry."""

    __array_ufunc__ = None  # an array on the left leaves the operation to the ball

    def __init__(self, mid, rad=0.0):
        self.mid = np.asarray(mid, dtype=np.float64)
        self.rad = np.broadcast_to(np.asarray(rad, dtype=np.float64), self.mid.shape)

    def __add__(self, other: "Ball") -> "Ball":
        return _rounded(self.mid + other.mid, self.rad + other.rad)

    def __mul__(self, other: "Ball") -> "Ball":
        return _rounded(self.mid * other.mid, np.abs(self.mid) * other.rad + self.rad * (np.abs(other.mid) + other.rad))

    def __matmul__(self, other: "Ball") -> "Ball":
        charge = (self.mid.shape[-1] + 2) * ULP
        size = np.abs(other.mid)
        rad = np.abs(self.mid) @ (other.rad + charge * size) + self.rad @ (size + other.rad)
        return _rounded(self.mid @ other.mid, rad + self.mid.shape[-1] * TINY)

    def sum(self, axis: int) -> "Ball":
        """The sum along an axis, which is kept with length one."""
        charge = (self.mid.shape[axis] + 2) * ULP
        return _rounded(
            self.mid.sum(axis, keepdims=True), (self.rad + charge * np.abs(self.mid)).sum(axis, keepdims=True)
        )

    def exp(self) -> "Ball":
        mid = np.exp(self.mid)
        # where e^mid underflows it is still below TINY
        return _rounded(mid, np.maximum(mid, TINY) * (np.expm1(self.rad) + FUNCTION))

    def power(self, exponent: float) -> "Ball":
        """x^exponent of positive numbers, for a negative exponent; ValueError if a number may be 0 or less."""
        low = self.mid - self.rad
        if not (low > 0).all():
            raise ValueError("a norm or a softmax divides by a number that may be zero")
        mid = self.mid**exponent
        return _rounded(mid, -exponent * low ** (exponent - 1) * self.rad + FUNCTION * mid)

    def normal(self) -> tuple["Ball", "Ball"]:
        """(Φ(x), φ(x)), distribution function and density of the standard normal law: slopes below 0.4 and 0.25."""
        error = FUNCTION * (1 + self.mid**2)  # the exponent is rounded as well
        return (
            _rounded(special.ndtr(self.mid), 0.4 * self.rad + error),
            _rounded(np.exp(-(self.mid**2) / 2) / math.sqrt(2 * math.pi), 0.25 * self.rad + error),
        )

    def map(self, move) -> "Ball":
        """Entries moved, copied or dropped."""
        return Ball(move(self.mid), move(self.rad))


def _rounded(mid, rad) -> Ball:
    return Ball(mid, (rad + ULP * np.abs(mid) + TINY) * GROW)


class Jet(NamedTuple):
    """A value [...] and its derivative [K, ...] in K trained numbers (None: it depends on none of them)."""

    value: Ball
    slope: Ball | None = None

    def __add__(self, other: "Jet") -> "Jet":
        return Jet(self.value + other.value, _sum(self.slope, other.slope))

    def _product(self, other: "Jet", times) -> "Jet":
        left = None if self.slope is None else times(self.slope, other.value)
        right = None if other.slope is None else times(self.value, other.slope)
        return Jet(times(self.value, other.value), _sum(left, right))

    def __mul__(self, other: "Jet") -> "Jet":
        return self._product(other, Ball.__mul__)

    def __matmul__(self, other: "Jet") -> "Jet":
        return self._product(other, Ball.__matmul__)

    def linear(self, move) -> "Jet":
        """The image under a linear map that works on balls with any leading axes."""
        return Jet(move(self.value), None if self.slope is None else move(self.slope))

    def chain(self, value: Ball, derivative: Ball) -> "Jet":
        return Jet(value, None if self.slope is None else derivative * self.slope)


def _sum(left: Ball | None, right: Ball | None) -> Ball | None:
    return left if right is None else right if left is None else left + right


def _times(x: Jet, constant, rad=0.0) -> Jet:
    return x.linear(lambda b: b * Ball(constant, rad))


def _matrix(x: Jet, weight: Tensor) -> Jet:
    return x.linear(lambda b: b @ Ball(weight.numpy()))


def _norm(x: Jet, norm) -> Jet:
    if norm.kind == "none":
        return x
    d = x.value.mid.shape[-1]
    if norm.kind == "layer":
        x = x + _times(x.linear(lambda b: b.sum(-1)), -1 / d, ULP)
    square = _times((x * x).linear(lambda b: b.sum(-1)), 1 / d, ULP)
    square = square + Jet(Ball(np.full_like(square.value.mid, norm.eps)))
    scale = square.chain(square.value.power(-0.5), square.value.power(-1.5) * Ball(-0.5))
    return _times(x * scale, norm.gain.numpy())


def _gelu(x: Jet) -> Jet:
    distribution, density = x.value.normal()
    return x.chain(x.value * distribution, distribution + x.value * density)


def _split(x: Jet, weight: Tensor, heads: int) -> Jet:
    """[..., T, d] to [..., H, T, d_h]."""
    return _matrix(x, weight).linear(lambda b: b.map(lambda a: a.reshape(*a.shape[:-1], heads, -1).swapaxes(-2, -3)))


def _turn(x: Jet, start: int, config: TransformerConfig) -> Jet:
    """Rotary positions."""
    if config.positions != "rotary":
        return x
    half = config.d_k // 2
    place = np.arange(start, start + x.value.mid.shape[-2])[:, None]
    angle = place * 10000.0 ** (-np.arange(half) / half)
    angle = np.concatenate([angle, angle], -1)
    sign = np.repeat([-1.0, 1.0], half)
    error = FUNCTION * (1 + 2 * angle)
    turned = x.linear(lambda b: b.map(lambda a: np.roll(a, half, -1)))
    return _times(x, np.cos(angle), error) + _times(turned, sign * np.sin(angle), error)


def _attend(query: Jet, groups, block) -> Jet:
    """Softmax attention over groups (keys, values, mask [T, keys])."""
    c = block.config
    scale = c.inverse_temperature / math.sqrt(c.d_k)
    scores = [_times(query @ k.linear(lambda b: b.map(lambda a: a.swapaxes(-1, -2))), scale, 4 * ULP * scale)
              for k, _, _ in groups]  # fmt: skip
    seen = [
        np.ones(s.value.mid.shape[-2:]) if mask is None else mask for s, (*_, mask) in zip(scores, groups, strict=True)
    ]
    if c.context_scaling == "log":
        factor = np.log(sum(mask.sum(-1, keepdims=True) for mask in seen))
        scores = [_times(s, factor, FUNCTION * factor) for s in scores]
    # a shift by a constant changes nothing; masked scores are left out
    top = [
        np.where(mask > 0, s.value.mid, -np.inf).max(-1, keepdims=True) for s, mask in zip(scores, seen, strict=True)
    ]
    shift = Jet(Ball(-np.maximum.reduce(np.broadcast_arrays(*top))))
    total = mixed = None
    for s, (_, value, _), mask in zip(scores, groups, seen, strict=True):
        s = s + shift
        s = s.linear(lambda b, mask=mask: b * Ball(mask))  # 0 where masked, so that nothing overflows
        e = s.value.exp()
        e = _times(s.chain(e, e), mask)
        part, weight = e @ value, e.linear(lambda b: b.sum(-1))
        total, mixed = (weight, part) if total is None else (total + weight, mixed + part)
    mixed = mixed * total.chain(total.value.power(-1.0), total.value.power(-2.0) * Ball(-1.0))
    joined = mixed.linear(lambda b: b.map(lambda a: a.swapaxes(-2, -3).reshape(*a.shape[:-3], a.shape[-2], -1)))
    return _matrix(joined, block.output)


def _token_wise(x: Jet, block) -> Jet:
    if not block.config.mlp:
        return x
    hidden = _matrix(_norm(x, block.norm2), block.up) + Jet(Ball(block.up_bias.numpy()))
    return x + _matrix(_gelu(hidden), block.down) + Jet(Ball(block.down_bias.numpy()))


def prompt_jacobian(
    model: Transformer, prompt: Float[Tensor, "m d"] | Prefix, queries: Tensor, *, own_token: bool = True
) -> Ball:
    """DΦ at one prompt as a ball matrix [N, D]: `measure.prompt_jacobian` with a proved error, for float64 networks.

    ValueError for rectifiers, for weights that are not float64, and where a norm may divide by zero.
    """
    c = model.config
    if c.activation != "gelu":
        raise ValueError("witnesses are for smooth networks: activation must be gelu")
    if model.unembedding.dtype != torch.float64:
        raise ValueError("a witness belongs to one network: give it in float64")
    x = model.embed(queries).numpy()
    if isinstance(prompt, Prefix):
        sizes = [part[0].numel() for part in prompt]
        unit = np.eye(sum(sizes))
        parts = [  # [1, H, m, ·] in every layer
            Jet(Ball(part.numpy()[:, layer]), Ball(columns.reshape(-1, *part.shape[1:])[:, None, layer]))
            for layer in range(c.depth)
            for part, columns in zip(prompt, np.split(unit, sizes[:1], 1), strict=True)
        ]
        p, m = None, prompt.keys.shape[-2]
    else:
        flat = prompt.numpy().reshape(1, -1, c.d)
        p, m = Jet(Ball(flat), Ball(np.eye(flat.size).reshape(-1, *flat.shape))), flat.shape[1]
    T = x.shape[1]
    if c.positions == "learned":
        position = model.position.numpy()
        x = Ball(x) + Ball(position[m : m + T])
        p = p and p + Jet(Ball(position[None, :m]))
    x = Jet(x if isinstance(x, Ball) else Ball(x))
    past = np.tri(T) if c.causal else None
    for layer, block in enumerate(model.blocks):
        last = layer == c.depth - 1
        h = _norm(x, block.norm1)
        q_x, k_x = (_turn(_split(h, w, c.heads), m, c) for w in (block.query, block.key))
        own = (k_x, _split(h, block.value, c.heads))
        if p is None:
            shown = (*parts[2 * layer : 2 * layer + 2], None)
        else:
            g = _norm(p, block.norm1)
            shown = (_turn(_split(g, block.key, c.heads), 0, c), _split(g, block.value, c.heads), None)
        if last:
            x, q_x = (y.linear(lambda b: b.map(lambda a: a[..., -1:, :])) for y in (x, q_x))
            past = None
        x = _token_wise(x + _attend(q_x, [shown, *([(*own, past)] if own_token else [])], block), block)
        if p is not None and not last:
            q_p = _turn(_split(g, block.query, c.heads), 0, c)
            groups = [(*shown[:2], np.tri(m) if c.causal else None)]
            groups += [(*own, None)] if own_token and not c.causal else []
            p = _token_wise(p + _attend(q_p, groups, block), block)
    logits = _matrix(_norm(x, model.norm), model.unembedding)
    return logits.slope.map(lambda a: np.broadcast_to(a, (a.shape[0], *logits.value.mid.shape)).reshape(len(a), -1).T)


def certified_rank(matrix: Ball) -> int:
    """A number r for which every matrix in the ball [N, D] has rank >= r, close to the largest one.

    With singular vectors u_i, v_i and values s_i of the midpoint, M = (u_i^T J v_j / s_j)_{i, j <= r} is invertible if
    the Frobenius norm of M − 1 is below 1.
    """
    left, values, right = np.linalg.svd(matrix.mid, full_matrices=False)
    scaled = right.T / np.where(values > 0, values, np.inf)
    product = (Ball(left.T) @ matrix) @ Ball(scaled)
    error = np.square((np.abs(product.mid - np.eye(len(values))) + product.rad) * GROW)
    leading = np.diagonal(error.cumsum(0).cumsum(1)) * GROW  # squared norms of the leading blocks
    return int((leading < 1).sum())


class Rank(NamedTuple):
    """What several draws show of one architecture.

    `rank` is the largest certified rank and `smallest` the relative singular value that it rests on; `draws` were
    needed for it.  `settled` is False where no draw certified enough and the singular values leave a doubt: then
    neither the rank nor an exception is established.
    """

    rank: int
    draws: int
    smallest: float
    settled: bool


def generic_rank(
    config: TransformerConfig,
    m: int,
    n: int,
    *,
    own_token: bool = True,
    enough: int,
    draws: int = 6,
    **instance,
) -> Rank:
    """A proved lower bound on the largest rank of DΦ for n queries, over all weights, queries and prompts.

    Networks in general position are drawn until one has a certified rank of at least `enough`, at most `draws` times;
    a query that attends to itself alone hides the prompt, so queries are weaker in later draws.  If all fail, the
    result is settled only if the same rank stands out in every draw: the singular values that count are above 1e-7 of
    the largest, the others below 1e-11.  `instance`: tuning, read and generator of `tasks.generic_instance`.
    """
    best, seen = Rank(-1, 0, math.nan, settled=False), set()
    for draw in range(draws):
        model, prompt, queries = generic_instance(config, m, n, **instance)
        for block in model.blocks:
            block.query.mul_(0.8**draw)
        J = prompt_jacobian(model, prompt, queries, own_token=own_token)
        values = np.linalg.svd(J.mid, compute_uv=False)
        values = values / values[0] if values[0] > 0 else values
        rank = certified_rank(J)
        seen.add(rank if (values[:rank] > 1e-7).all() and (values[rank:] < 1e-11).all() else None)
        if rank > best.rank:
            best = Rank(rank, draw + 1, float(values[rank - 1]) if rank else 1.0, settled=False)
        if rank >= enough:
            return best._replace(settled=True)
    return best._replace(settled=len(seen) == 1 and None not in seen)
