"""Theorem 5: how few weighted tokens give fixed queries the same outputs."""

import math

import numpy as np
from jaxtyping import Float

from prompt_memory.bounds._checks import positive
from prompt_memory.checks import integers


def caratheodory_count(n: int, heads: int, d_v: int, *, own: bool = False, tokens: int | None = None) -> int:
    """n·H·d_v + 1, or n·H·d_v if queries attend themselves: weighted tokens that replace a prompt of any length.

    One attention layer, before and after it any token-wise maps, n fixed queries: some weighting of so many of the
    prompt's own `tokens` (never more than there are, if given) gives each query the output of the whole prompt.
    A query that also reads other fixed tokens counts like one that attends itself.  For the cache of a causal network
    of L layers take n·L in place of n (Theorem 5).  ValueError unless all counts are integers >= 1.
    """
    n, heads, d_v = integers(n=n, heads=heads, d_v=d_v)
    count = n * heads * d_v + (not own)
    return count if tokens is None else min(count, *integers(tokens=tokens))


def polygon_constant(m: int, beta: float) -> float:
    """c = Σ_k e^{β cos θ_k} cos θ_k / Σ_k e^{β cos θ_k}, θ_k = 2πk/m: each of m equal corners reads c times itself.

    The corners of a regular polygon attend each other with logits β⟨z_j, z_k⟩ (Proposition 5b).
    ValueError unless m >= 3 is an integer and beta > 0.
    """
    return _polygon(m, beta)[1]


def polygon_floor(m: int, beta: float) -> float:
    """(λ e^{−β} / (m (m − 1)))², at most the two-layer output Ψ(w) of any weights on fewer than m corners.

    λ is the second smallest eigenvalue of Q_jk = e^{β cos(θ_j − θ_k)} (cos(θ_j − θ_k) − c).  Ψ is the w-mean of
    |g_j(w) − c z_j|², where g_j(w) is what corner j reads from the corners with the weights w; with equal weights it
    is 0 (Proposition 5b).  ValueError as `polygon_constant`.
    """
    cosine, c = _polygon(m, beta)
    eigenvalue = np.linalg.eigvalsh(np.exp(beta * cosine) * (cosine - c))[1]
    return float((eigenvalue * math.exp(-beta) / (m * (m - 1))) ** 2)


def _polygon(m: int, beta: float) -> tuple[Float[np.ndarray, "m m"], float]:
    """cos(θ_j − θ_k), and the constant c."""
    (m,), beta = integers(m=m), positive("beta", beta)
    if m < 3:
        raise ValueError(f"a polygon has m >= 3 corners, not {m}")
    angle = 2 * np.pi * np.arange(m) / m
    cosine = np.cos(angle[:, None] - angle)
    return cosine, float((np.exp(beta * cosine) * cosine).sum() / np.exp(beta * cosine).sum())
