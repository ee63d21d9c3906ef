"""Fewer weighted points with the same weighted sums: the step that all compressions share (Carathéodory)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg


def fewer(
    sums: Callable[..., Float[np.ndarray, "groups D"]], D: int, mass: Float[np.ndarray, " k"], negligible: float
) -> tuple[Int[np.ndarray, " a"], Float[np.ndarray, " a"]]:
    """Positions [a] and positive masses [a] of at most rank(rows) of k rows with the same sum Σ mass·row.

    The rows [k, D] are known by their sums: `sums(which, mass, edges)` is Σ mass·row over the groups of rows `which`
    that begin at `edges`.  While there are more than 2D rows, 2D groups of them are replaced by their centres of mass:
    what is left of the centres says which groups stay, and by how much their masses grow.
    """
    kept = np.arange(len(mass))
    while len(kept):
        groups = min(len(kept), 2 * D)
        edges = np.linspace(0, len(kept), groups + 1).astype(int)
        total = np.add.reduceat(mass, edges[:-1])
        centres = sums(kept, mass, edges) / total[:, None]
        factor = np.repeat(eliminate(centres, total, negligible) / total, np.diff(edges))
        done = groups == len(kept)  # every group was a single row
        kept, mass = kept[factor > 0], (mass * factor)[factor > 0]
        if done:
            break
    return kept, mass


def eliminate(rows: Float[np.ndarray, "k D"], mass: Float[np.ndarray, " k"], negligible: float):
    """Masses [k] >= 0 with the same sum Σ mass·row, at most rank(rows) of them positive.

    Walks along changes of the masses that leave the sum as it is, each time straight to the nearest face {mass_t = 0}:
    of all coordinates that one vanishes first.  The changes left over are those with no component t; a reflection
    keeps their basis orthonormal, so rounding errors do not grow.
    """
    basis_and_rest, R, _ = linalg.qr(rows, pivoting=True)
    size = np.abs(np.diag(R))
    rank = int((size > negligible * size.max(initial=0.0)).sum())
    basis = np.asfortranarray(basis_and_rest[:, rank:])  # of the changes: [k, k − rank]
    reach = np.einsum("kp,kp->k", basis, basis)  # squared: how fast a unit step can change this mass
    mass, alive = mass.copy(), np.ones(len(mass), bool)
    while basis.shape[1]:
        t = int(np.argmin(np.where(alive & (reach > 1e-20), mass, np.inf) / np.sqrt(np.maximum(reach, 1e-20))))
        row = basis[t].copy()
        size = np.sqrt(row @ row)
        along = basis @ row / size  # the unit step to the face
        mass = np.maximum(mass - mass[t] / size * along, 0.0)
        mass[t], alive[t] = 0.0, False
        turn = np.copysign(size, row[0])  # reflect the row onto the first axis, in place
        mirrored = along * size + turn * basis[:, 0]
        row[0] += turn
        basis = linalg.blas.dger(-2 / (row @ row), mirrored, row, a=basis, overwrite_a=True)[:, 1:]
        basis[t] = 0.0
        reach -= along**2
        near = alive & (reach < 1e-6)  # cancellation: once more
        reach[near] = np.einsum("kp,kp->k", basis[near], basis[near])
    return mass
