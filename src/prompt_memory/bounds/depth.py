"""Chapter 8b, depth: recall forecast from softmax weights of several heads in several layers.  Heuristics, no bounds.

Head k of K (all heads of all layers) gives the asked fact the softmax weight a_k and every other fact j the weight
w_jk.  If heads vote for the values of what they look at, and the network adds their votes with weights u, the q values
gather noise of variance Σ_j (u·w_j)²/q and the right one the signal u·a: a signal-to-noise ratio of q (u·a)²/(uᵀ G u)
with the Gram matrix G = Σ_j w_j w_jᵀ.
"""

import functools

import numpy as np
from jaxtyping import Float
from scipy import special

from prompt_memory.bounds._checks import classes


def votes_snr(
    own: Float[np.ndarray, "n K"], gram: Float[np.ndarray, "n K K"], weights: Float[np.ndarray, " K"], q: int
) -> Float[np.ndarray, " n"]:
    """q (u·a)²/(uᵀ G u) for n questions, one combination u = `weights` for all; 0 where u·a is not positive."""
    signal = np.maximum(own @ weights, 0)
    return classes(q) * signal**2 / np.einsum("k,nkl,l->n", weights, gram, weights)


def summed_snr(own: Float[np.ndarray, "n K"], gram: Float[np.ndarray, "n K K"], q: int) -> Float[np.ndarray, " n"]:
    """Σ_k q a_k²/G_kk for n questions: the best combination, chosen anew for each question, of independent noises.

    As in maximal-ratio combining of radio antennas (Brennan, Proceedings of the IRE 47, 1959).
    """
    return classes(q) * (own**2 / np.einsum("nkk->nk", gram)).sum(1)


def vote_weights(own: Float[np.ndarray, "n K"], gram: Float[np.ndarray, "n K K"]) -> Float[np.ndarray, " K"]:
    """(E G)⁻¹ E a, of length one: the combination with the best mean signal for its mean noise (Fisher's)."""
    weights = np.linalg.solve(gram.mean(0), own.mean(0))
    return weights / np.linalg.norm(weights)


def gaussian_recalls(snr: Float[np.ndarray, "*B"], q: int) -> Float[np.ndarray, "*B"]:
    """`gaussian_recall` of whole arrays, between points of a table to 1e-5.  ValueError for a negative ratio or NaN."""
    snr = np.asarray(snr, float)
    if not (snr >= 0).all():
        raise ValueError("signal-to-noise ratios must be numbers >= 0")
    return np.interp(np.sqrt(snr), *_recall_table(classes(q)))


@functools.cache
def _recall_table(q: int) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """Signals in standard deviations, up to where all is recalled, and the recall at each."""
    signals, points = np.linspace(0, 12, 601), np.linspace(-12, 12, 1201)
    density = np.exp(-(points**2) / 2)
    return signals, (density * special.ndtr(points + signals[:, None]) ** (q - 1)).sum(1) / density.sum()
