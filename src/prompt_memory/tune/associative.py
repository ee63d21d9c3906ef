"""Keys, queries and values found for the memory of `network.associative`, against its bounds."""

import math
from decimal import Decimal, localcontext

import numpy as np
import torch
from jaxtyping import Float, Int

from prompt_memory import bounds
from prompt_memory.checks import integers

# --- trying to beat the packing bound ------------------------------------------------------------------------------


def search_addresses(
    facts: int, d_k: int, logit_range: float, *, restarts: int, steps: int, generator: torch.Generator
) -> float:
    """The least leak odds found by gradient descent over keys, queries and multiplicities at once (Proposition 9a).

    Keys B·y_j and queries x_i lie in balls of radius B and 1, repeated tokens weigh any w_j > 0, one token a fact; the
    odds are max_i Σ_{j≠i} w_j e^{B⟨x_i, y_j⟩} / (w_i e^{B⟨x_i, y_i⟩}).  Found, not least: an optimiser's answer.
    ValueError for counts below 1 (2 for `facts`).
    """
    integers(2, facts=facts)
    integers(d_k=d_k, restarts=restarts, steps=steps)
    shape = (restarts, facts, d_k)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    jitter = torch.randn(shape, generator=generator, dtype=torch.float64)
    free = [start.clone(), start + 0.1 * jitter, torch.zeros(shape[:2], dtype=torch.float64)]
    free = [x.requires_grad_() for x in free]
    optimiser = torch.optim.Adam(free, lr=0.05)
    diagonal = torch.eye(facts, dtype=torch.bool)

    def log_odds() -> Float[torch.Tensor, "R M"]:
        keys, queries = (x / x.norm(dim=-1, keepdim=True).clamp(min=1) for x in free[:2])
        scores = logit_range * queries @ keys.transpose(1, 2) + free[2][:, None]
        own = scores.diagonal(dim1=1, dim2=2)
        return scores.masked_fill(diagonal, -torch.inf).logsumexp(-1) - own

    best = math.inf
    for step in range(steps):
        sharpness = 2 + 30 * step / steps  # a soft maximum that hardens
        value = log_odds()
        best = min(best, float(value.detach().amax(1).min()))
        optimiser.zero_grad()
        ((sharpness * value).logsumexp(1) / sharpness).sum().backward()
        optimiser.step()
    return math.exp(best)


# --- no margin -----------------------------------------------------------------------------------------------------


def compensated_values(
    labels: Int[np.ndarray, "T M"], logit_range: float, *, digits: int = 60
) -> tuple[list[list[Decimal]], list[Decimal]]:
    """Values in [−1, 1] that make a circle of M keys read every label with one modulus, and that modulus, per labeling.

    The attention matrix S of evenly spaced keys is a circulant with positive eigenvalues, so u = a S⁻¹y gives v̂ = a·y
    with a = 1/max|S⁻¹y|.  Computed with that many significant digits: a shrinks like the smallest eigenvalue, and
    `digits` must exceed its digits by far.  ValueError for labels other than ±1, or if the digits do not suffice.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.isin(labels, (-1, 1)).all():
        raise ValueError("labels must be a table [T, M] of -1 and 1")
    M = labels.shape[1]
    needed = 20 - math.floor(bounds.circle_gain_log2(M, logit_range) * math.log10(2))
    if digits < needed:
        raise ValueError(f"{M} facts at B = {logit_range} need {needed} digits, not {digits}")
    with localcontext() as context:
        context.prec = digits
        cosine = decimal_cosines(M)
        row = decimal_attention(M, logit_range)
        eigenvalues = [sum((row[j] * cosine[n * j % M] for j in range(M)), Decimal(0)) for n in range(M)]
        inverse = [sum((cosine[n * j % M] / eigenvalues[n] for n in range(M)), Decimal(0)) / M for j in range(M)]
        values, amplitudes = [], []
        for y in labels.tolist():
            u = [sum((inverse[(i - j) % M] * y[j] for j in range(M)), Decimal(0)) for i in range(M)]
            a = 1 / max(map(abs, u))
            values.append([a * x for x in u])
            amplitudes.append(a)
    return values, amplitudes


def decimal_attention(M: int, logit_range: float) -> list[Decimal]:
    """Softmax weights of a circle of M keys, seen from key 0, in the digits of the current decimal context."""
    row = [(Decimal(logit_range) * c).exp() for c in decimal_cosines(integers(M=M)[0])]
    total = sum(row)
    return [x / total for x in row]


def decimal_cosines(M: int) -> list[Decimal]:
    """cos(2πj/M), j < M, in the digits of the current decimal context (Machin's formula, then Taylor's)."""

    def arctan_inverse(k: int) -> Decimal:
        power, total, n = 1 / Decimal(k), Decimal(0), 1
        while total + power / n != total:
            total += power / n if n % 4 == 1 else -power / n
            power /= k * k
            n += 2
        return total

    with localcontext() as context:
        context.prec += 10
        pi = 4 * (4 * arctan_inverse(5) - arctan_inverse(239))
        result = []
        for j in range(M):
            x = 2 * pi * min(j, M - j) / M
            term, total, n = Decimal(1), Decimal(0), 0
            while total + term != total:
                total += term
                n += 2
                term *= -x * x / (n * (n - 1))
            result.append(total)
    return [+x for x in result]
