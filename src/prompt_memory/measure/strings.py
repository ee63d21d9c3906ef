"""Strings that a network yields after a prompt, and the length at which half of them are still accessible."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import optimize
from torch import Tensor

from prompt_memory.network.transformer import Transformer


@torch.no_grad()
def greedy(model: Transformer, prompts: Float[Tensor, "R m d"], n: int) -> Int[Tensor, "R n"]:
    """The n tokens that greedy decoding yields after each prompt, [R, n]; of tied tokens the first."""
    x = prompts
    tokens = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    for _ in range(n):
        token = model.stream(x)[:, -1:].argmax(-1)  # [R, 1]
        tokens = torch.cat([tokens, token], 1)
        x = torch.cat([x, model.embedding[token]], 1)
    return tokens


@torch.no_grad()
def sampled_strings(
    model: Transformer, prompts: Float[Tensor, "R m d"], n: int, *, generator: torch.Generator
) -> tuple[Int[Tensor, "R n"], Float[Tensor, "R n"]]:
    """n tokens drawn from the model after each prompt, [R, n], and log2 of the probabilities of all beginnings, [R, n].

    Column i of the second array belongs to the first i + 1 tokens.
    """
    x, tokens, log2 = prompts, [], []
    for _ in range(n):
        probability = model.stream(x)[:, -1].double().softmax(-1)  # [R, q]
        tokens.append(torch.multinomial(probability, 1, generator=generator))
        log2.append(probability.gather(-1, tokens[-1]).log2())
        x = torch.cat([x, model.embedding[tokens[-1]]], 1)
    return torch.cat(tokens, 1), torch.cat(log2, 1).cumsum(1)


def n50(lengths: Int[np.ndarray, " S"], longest: int | None = None) -> float:
    """The number of tokens at which half of the strings are still accessible, from their longest accessible lengths.

    Maximum likelihood for the sigmoid Pr[length >= n] = 1/(1 + e^{(n − n50)/w}), n >= 1; equal lengths a give a + 1/2.
    A length of `longest`, where the strings ended, counts as "at least".  No string accessible at all: 0; every string
    to its end: infinity.  It is the centre of a sigmoid and no bound's half point: lengths with a long upper tail raise
    it (Pr[length >= n] = 0.8^{n − 5} falls to one half at 8.1 and gives 8.9); for bounds take `half_length`.
    ValueError without strings.
    """
    lengths = np.asarray(lengths)
    if not lengths.size:
        raise ValueError("n50 needs at least one string")
    ended = lengths == longest
    if ended.all():
        return math.inf
    if not lengths.any():
        return 0.0

    values, counts = np.unique(lengths, return_counts=True)
    groups = list(zip(values.tolist(), (counts / len(lengths)).tolist(), strict=True))

    def at_least(n: int, centre: float, width: float) -> float:
        steep = (n - centre) / width
        return 1.0 if n < 1 else 1 / (1 + math.exp(steep)) if steep < 700 else 0.0

    def cost(parameters):
        centre, width = float(parameters[0]), math.exp(parameters[1])
        total = 1e-4 * float(parameters[1]) ** 2  # equal lengths have no width
        for n, share in groups:
            mass = at_least(n, centre, width) - (0.0 if n == longest else at_least(n + 1, centre, width))
            total -= share * math.log(max(mass, 1e-12))
        return total

    start = (lengths.mean() + 0.5, math.log(max(0.3, 0.55 * lengths.std())))
    fit = optimize.minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-8})
    return max(0.0, float(fit.x[0]))


def half_crossing(log2_fractions: Float[np.ndarray, " N"]) -> float:
    """Where the fractions 2^f_n at n = 1, 2, … first fall to one half, f being joined by straight lines from f_0 = 0.

    A fraction 2^B V^{−n} has f on a straight line and falls to one half at (B + 1)/log2 V exactly; fractions that are
    never above it do so no later.  Infinite if they do not fall so far.
    """
    curve = np.concatenate([[0.0], np.asarray(log2_fractions, dtype=float)])
    below = np.flatnonzero(curve <= -1)
    if not len(below):
        return math.inf
    n = int(below[0])
    return n - (-1 - curve[n]) / (curve[n - 1] - curve[n])


def half_length(lengths: Int[np.ndarray, " S"], longest: int | None = None) -> float:
    """The number of tokens at which half of the strings are still accessible: `half_crossing` of the fractions left.

    An estimate of what Theorem 4 bounds by (B + 1)/log2 V, from the longest accessible lengths.  Where no string is
    left, half a string is counted, so that the logarithm is finite.  If the strings end at `longest`, nothing is known
    beyond; infinite if more than half of them reach it.  ValueError without strings.
    """
    lengths = np.asarray(lengths)
    if not lengths.size:
        raise ValueError("half_length needs at least one string")
    end = int(lengths.max()) + 1 if longest is None else longest
    left = (lengths[:, None] >= np.arange(1, end + 1)).sum(0)
    return half_crossing(np.log2(np.maximum(left, 0.5) / len(lengths)))
