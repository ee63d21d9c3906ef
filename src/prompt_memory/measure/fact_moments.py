"""What the members of a recalling family do with random facts: exact moments, and the recall that they predict.

Shapes at the end of a line: `n` queries, `h` head size, `q` values, `L` lengths, `M` margins.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor

from prompt_memory.network.recall import Reader


class Statistics(NamedTuple):
    """For n held-out pairs of a query and its fact: votes and their moments under random facts, relative to e^{s_t}.

    s_t is the softmax logit of the query's own fact, s that of another.  Votes have one coordinate more, which is
    always 1: it counts the attention itself, and makes a margin linear.
    """

    signal: Float[np.ndarray, "n q+1"]  # vote of the own fact
    mean: Float[np.ndarray, "n q+1"]  # E e^{s − s_t} vote
    square: Float[np.ndarray, "n q+1 q+1"]  # E e^{2(s − s_t)} vote voteᵀ
    label: Int[np.ndarray, " n"]
    most: Float[np.ndarray, " n"]  # max over values of the own fact's logit, less s_t


def statistics(r: Reader, keys: Float[Tensor, "n h"], labels: Int[Tensor, " n"]) -> Statistics:
    """Exact moments over another fact's key (uniform on the sphere) and value (uniform), for each query, in float64.

    With t = ‖a‖, E e^{⟨a, k⟩} = ₀F₁(h/2; t²/4) =: φ, E e^{⟨a, k⟩} k = ψ a, where ψ = φ'(t)/t = ₀F₁(h/2 + 1; t²/4)/h,
    and E e^{⟨a, k⟩} k kᵀ = ψ I + (φ − hψ) a aᵀ/t².
    """
    x, y = keys.double(), labels
    h, q = r.key_votes.shape
    a, b = (x @ r.by_key).numpy(), (x @ r.by_value).numpy()  # [n, h], [n, q]
    own = (a * x.numpy()).sum(1)[:, None] + b  # [n, q], the own fact's logit for each value it might have
    at = np.arange(len(x)), y.numpy()
    votes = np.concatenate([r.value_votes.numpy(), np.ones((q, 1))], 1)[None]  # [1, v, q + 1]
    residual = np.concatenate([(x @ r.residual).numpy(), np.zeros((len(x), 1))], 1)
    votes = votes + residual[:, None]  # [n, v, q + 1]
    W = np.concatenate([r.key_votes.numpy(), np.zeros((h, 1))], 1)  # [h, q + 1]
    signal = votes[at] + x.numpy() @ W

    def moments(factor):
        t2 = factor**2 * (a**2).sum(1)
        phi, psi = special.hyp0f1(h / 2, t2 / 4), special.hyp0f1(h / 2 + 1, t2 / 4) / h
        p = np.exp(factor * (b - own[at][:, None])) / q  # [n, v]
        return phi, psi, p, factor * a, t2

    phi, psi, p, c, _ = moments(1)
    mean = phi[:, None] * np.einsum("nv,nvc->nc", p, votes) + (p.sum(1) * psi)[:, None] * (c @ W)
    phi, psi, p, c, t2 = moments(2)
    linear, along = np.einsum("nv,nvc->nc", p, votes), c @ W
    cross = psi[:, None, None] * linear[:, :, None] * along[:, None]
    square = phi[:, None, None] * np.einsum("nv,nvc,nve->nce", p, votes, votes) + cross + cross.transpose(0, 2, 1)
    bend = ((phi - h * psi) / t2)[:, None, None] * along[:, :, None] * along[:, None]
    square += p.sum(1)[:, None, None] * (psi[:, None, None] * (W.T @ W) + bend)
    return Statistics(signal, mean, square, y.numpy(), (own - own[at][:, None]).max(1))


def mean_votes(r: Reader, x: Float[Tensor, "n h"]) -> Float[np.ndarray, "n q"]:
    """E e^{s} vote over another random fact, for each query."""
    x = x.double()
    h, q = r.key_votes.shape
    a, p = x @ r.by_key, (x @ r.by_value).exp() / q
    t2 = a.square().sum(1).numpy() / 4
    phi, psi = (torch.from_numpy(f)[:, None] for f in (special.hyp0f1(h / 2, t2), special.hyp0f1(h / 2 + 1, t2) / h))
    own = p.sum(1, keepdim=True)
    return (phi * (p @ r.value_votes + own * (x @ r.residual)) + own * psi * (a @ r.key_votes)).numpy()


class Gaps(NamedTuple):
    """Attention alone: ln of E e^{s_t} over E e^s, and over √(E e^{2s})."""

    mean: float
    square: float


def gaps(r: Reader, keys: Float[Tensor, "n h"]) -> Gaps:
    """Δ₁ = ln(E e^{s_t} / E e^{s}) and Δ₂ = ln(E e^{s_t} / √(E e^{2s})), means over queries, facts and values."""
    x = keys.double()
    h, _q = r.key_votes.shape
    a, b = (x @ r.by_key).numpy(), (x @ r.by_value).numpy()
    t2 = (a**2).sum(1)
    target = special.logsumexp((a * x.numpy()).sum(1)[:, None] + b) - math.log(b.size)
    logs = [
        special.logsumexp(np.log(special.hyp0f1(h / 2, f**2 * t2 / 4))[:, None] + f * b) - math.log(b.size)
        for f in (1, 2)
    ]
    return Gaps(target - logs[0], target - logs[1] / 2)


def predicted_recall(
    s: Statistics,
    lengths,
    margins,
    *,
    generator: torch.Generator,
    draws: int = 32,
    biased: bool = True,
) -> Float[np.ndarray, "L M"]:
    """Fraction of facts recalled by more than each margin in contexts of each length, if sums of votes were normal.

    In the query, N − 1 random facts and the own one have the votes signal + (N − 1)·mean + √(N − 1)·noise, up to a
    positive factor.  `biased=False` leaves the mean out of the comparison of values (not of the attention): what a
    read-out that knows the mean and subtracts it would recall.  A heuristic: central limit theorem at finite N.
    """
    n, q1 = s.signal.shape
    covariance = s.square - s.mean[:, :, None] * s.mean[:, None]
    values, vectors = np.linalg.eigh(covariance)
    normal = torch.randn(n, q1, draws, generator=generator, dtype=torch.float64).numpy()
    noise = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ normal  # [n, q + 1, draws]
    drift = s.mean.copy()
    if not biased:
        drift[:, :-1] = 0
    table = np.zeros((len(lengths), len(margins)))
    for row, N in enumerate(lengths):
        total = (s.signal + (N - 1) * drift)[..., None] + math.sqrt(N - 1) * noise
        attention = np.maximum(total[:, -1], 0)  # the sum of positive numbers that the normal law does not know to be
        own = np.take_along_axis(total, s.label[:, None, None], 1)[:, 0]
        total[np.arange(n), s.label] = -np.inf
        lead = own - total[:, :-1].max(1)  # [n, draws]
        table[row] = [(lead > margin * attention).mean() for margin in margins]
    return table
