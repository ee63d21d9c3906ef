"""Theorem 13: what no prompt changes in one layer whose sequences are read at a shared token."""

import math

import numpy as np
from jaxtyping import Float
from scipy import optimize

from prompt_memory.bounds._checks import classes
from prompt_memory.checks import integers


def shared_token_labelings(n: int, q: int) -> int:
    """C(n+q−1, q−1): the most labelings of n sequences, read at one shared token by one head, that prompts reach.

    For prompts of every length and real numbers; q^n labelings exist (Theorem 13, part 4).
    ValueError unless n >= 1 and q >= 2.
    """
    (n,) = integers(n=n)
    return math.comb(n + classes(q) - 1, q - 1)


def shared_token_bits(n: int, q: int, heads: int) -> float:
    """log2 of the most labelings of n sequences, read at one shared token by H heads, that prompts reach, in bits.

    min(n log2 q, H q log2(2e n (q−1))) by Warren's theorem, for n(q−1) >= 2H, else n log2 q; log2 C(n+q−1, q−1) for
    one head (Theorem 13, part 4).  Prompts of every length, no token-wise network.
    ValueError unless n, heads >= 1, q >= 2.
    """
    n, heads = integers(n=n, heads=heads)
    everything = n * math.log2(classes(q))
    if heads == 1:
        return math.log2(shared_token_labelings(n, q))
    if n * (q - 1) < 2 * heads:
        return everything
    return min(everything, heads * q * math.log2(2 * math.e * n * (q - 1)))


def two_sequence_floor(
    masses: Float[np.ndarray, " 2"], logits: Float[np.ndarray, "2 q"], targets: Float[np.ndarray, "2 q"]
) -> tuple[float, float]:
    """(error, Z): the infimum over all prompts of Σ_i ‖F(P; X_i) − y_i‖², for two sequences with a shared read token.

    One head, no token-wise network, no norm before the logits.  `masses` Z_i is the sum of exponentials over the
    sequence's own tokens, `logits` F_i are those without a prompt, both [2]; the infimum is the least value of
    ‖Z(y_1 − y_2) − D‖²/Σ_i (Z + Z_i)², D = Z_1(F_1 − y_1) − Z_2(F_2 − y_2), over the prompt's mass Z in [0, ∞]
    (Theorem 13, part 2).  Attained if 0 < Z < ∞ and one token can have any mass and value.
    ValueError if shapes disagree, for masses that are not > 0 or numbers that are not finite.
    """
    masses, logits, targets = (np.asarray(part, dtype=float) for part in (masses, logits, targets))
    if masses.shape != (2,) or logits.shape != targets.shape or logits.ndim != 2 or len(logits) != 2:
        raise ValueError(f"two masses and two rows of logits and targets are needed, not {logits.shape}")
    if not (np.isfinite(masses).all() and (masses > 0).all()):
        raise ValueError("masses must be finite and > 0")
    if not (np.isfinite(logits).all() and np.isfinite(targets).all()):
        raise ValueError("logits and targets must be finite")
    scale = masses.max()
    z1, z2 = masses / scale
    delta, D = targets[0] - targets[1], z1 * (logits[0] - targets[0]) - z2 * (logits[1] - targets[1])
    a, b, c, s, e = delta @ delta, delta @ D, D @ D, z1 + z2, z1**2 + z2**2
    # where the derivative of (aZ² − 2bZ + c)/(2Z² + 2sZ + e) vanishes
    roots = np.roots([a * s + 2 * b, a * e - 2 * c, -(b * e + c * s)])
    inside = [float(z.real) for z in roots if abs(z.imag) < 1e-9 and z.real > 0]
    found = [(float((delta * z - D) @ (delta * z - D)) / ((z + z1) ** 2 + (z + z2) ** 2), z) for z in [0.0, *inside]]
    error, z = min([*found, (float(a / 2), math.inf)])
    return error, z * float(scale)


def equal_mass_floor(
    values: Float[np.ndarray, "n H q"], targets: Float[np.ndarray, "n q"]
) -> tuple[float, Float[np.ndarray, " H"]]:
    """(error, λ): a floor under Σ_i ‖F(P; X_i) − y_i‖² for n sequences with a shared read token and equal masses.

    min over λ in [0, 1]^H of Σ_i ‖(y_i − ȳ) − Σ_h λ_h (φ_ih − φ̄_h)‖², bars for means over sequences; `values` φ_ih is
    what head h adds to the logits without a prompt, [n, H, q] (Theorem 13, part 3).  Any number of heads, no
    token-wise network, no norm before the logits, prompts of every length; the infimum itself if one token can have
    any mass and any value in every head.  ValueError if shapes disagree or something is not finite.
    """
    values, targets = np.asarray(values, dtype=float), np.asarray(targets, dtype=float)
    if values.ndim != 3 or targets.shape != (len(values), values.shape[2]) or not values.size:
        raise ValueError(f"values [n, H, q] and targets [n, q] are needed, not {values.shape} and {targets.shape}")
    if not (np.isfinite(values).all() and np.isfinite(targets).all()):
        raise ValueError("values and targets must be finite")
    left = (values - values.mean(0)).transpose(0, 2, 1).reshape(-1, values.shape[1])
    right = (targets - targets.mean(0)).reshape(-1)
    solution = optimize.lsq_linear(left, right, bounds=(0, 1), method="bvls", tol=1e-14)
    return float(((left @ solution.x - right) ** 2).sum()), solution.x


def low_rank_floor(changes: Float[np.ndarray, "n q"], rank: int) -> float:
    """Σ_{k > r} σ_k², σ the singular values of the n changes of logits: the floor under a value update of rank r.

    The least Σ_i ‖F_i − y_i‖² over all updates of rank r of the value matrix, for one head, no token-wise network and
    no final norm, if the sequences' mean tokens are independent (Theorem 13, part 5).  ValueError unless rank >= 0.
    """
    (rank,) = integers(0, rank=rank)
    changes = np.asarray(changes, dtype=float)
    if changes.ndim != 2 or not np.isfinite(changes).all():
        raise ValueError("changes must be a finite matrix [n, q]")
    return float((np.linalg.svd(changes, compute_uv=False)[rank:] ** 2).sum())
