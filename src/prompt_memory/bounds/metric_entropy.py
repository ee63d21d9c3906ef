"""Theorem 2: the bits of real tokens at a resolution, and the Lipschitz constants that say which."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from prompt_memory.bounds._checks import nonnegative, positive
from prompt_memory.bounds._layers import head_sizes, network_constants, softmax_slope
from prompt_memory.checks import integers


def entropy_bits(d: int, m: int, radius: float, lipschitz: float, eps: float) -> float:
    """d m log2(1 + rΛ/ε), the bits that m real tokens in a ball of radius r can hold with margin 2ε.

    Bounds Mem_{2ε}(m) for every network whose logits, up to a common shift, are Λ-Lipschitz in the prompt in the norm
    max_j ‖p_j‖, for any number of queries and classes (Theorem 2).  With ε/2 in place of ε it bounds the different
    tables of answers, when only answers with margin 2ε count.  `lipschitz` may be infinite: then so is the bound.
    ValueError unless d and m are integers >= 1, radius >= 0 is finite, lipschitz >= 0 and eps > 0 is finite.
    """
    d, m = integers(d=d, m=m)
    radius = nonnegative("radius", radius)
    lipschitz = nonnegative("lipschitz", lipschitz, finite=False)
    eps = positive("eps", eps)
    if radius == 0 or lipschitz == 0:
        return 0.0
    ratio = radius * lipschitz / eps
    if 1e-300 < ratio < math.inf:
        return d * m * math.log1p(ratio) / math.log(2)
    # the product overflows or vanishes, its logarithm does not
    return d * m * float(np.logaddexp(0, math.log(radius) + math.log(lipschitz) - math.log(eps))) / math.log(2)


def head_lipschitz(
    A: Float[np.ndarray, "d d"],
    V: Float[np.ndarray, "d_out d"],
    radius: float,
    moving_query: bool,
    *,
    query_radius: float | None = None,
) -> float:
    """‖V‖√(1 + B²) for a fixed query, ‖V‖(B_k + √(1 + B²)) for one that moves too: one head's Lipschitz constant.

    Of x, Z ↦ Σ_j softmax_j(⟨A x, z_j⟩) V z_j, from max_j ‖z_j‖ (and ‖x‖, if it moves) to the Euclidean norm, where all
    ‖z_j‖ <= radius and ‖x‖ <= query_radius (default: radius); B = ‖A‖·radius·query_radius, B_k = ‖A‖·radius², spectral
    norms.  It does not depend on the number of tokens; A includes the factor 1/√d_k (Lemma 2a).
    ValueError unless A is square, V has as many columns, all entries are finite and the radii are finite and >= 0.
    """
    a, v, keys, query = head_sizes(A, V, radius, query_radius)
    return v * softmax_slope(a, keys, query, 1.0, float(moving_query), rotary=False)


def frobenius_lipschitz(
    A: Float[np.ndarray, "d d"], V: Float[np.ndarray, "d_out d"], radius: float, tokens: int
) -> float:
    """‖V‖(B + √(1 + B²)·√(n / (1 + (n − 1)e^{−2B}))), for self-attention of n tokens in the Frobenius norm.

    The map of *all* tokens to all outputs, (z_i)_i ↦ (Σ_j softmax_j(⟨A z_i, z_j⟩) V z_j)_i, ‖z_i‖ <= radius, B = ‖A‖r².
    Grows like √n up to n ≈ e^{2B} and then stays below ‖V‖(B + √(1 + B²)e^B) (Proposition 2c).
    ValueError as in `head_lipschitz`, or unless `tokens` is an integer >= 1.
    """
    (n,) = integers(tokens=tokens)
    alone, moving = (head_lipschitz(A, V, radius, moving_query) for moving_query in (False, True))
    a, _, keys, _ = head_sizes(A, V, radius)
    B = a * keys**2
    attended = n / (1 + (n - 1) * math.exp(-2 * B))  # no token gets more attention from all n together
    return moving - alone + alone * math.sqrt(attended)


def network_lipschitz(
    config,
    weights: Mapping[str, Float[np.ndarray, "..."]],
    *,
    radius: float,
    query_radius: float,
    least_norm: float = 0.0,
    keys: int | None = None,
    differences: bool = False,
    read_prompt: bool = False,
) -> float:
    """Λ with ‖F(P; X) − F(P'; X)‖_∞ <= Λ max_j ‖p_j − p'_j‖, for a whole frozen transformer and soft prompts.

    `weights` holds the arrays of a `Transformer` under the names of its state; all prompt tokens have length at most
    `radius`, all query tokens at most `query_radius` (before positions are added).  Both streams are followed through
    the layers: with κ the constants of Lemma 2a, the prompt's constant p (at first 1) and the query's x (at first 0)
    become p + κ(p; p) and x + κ(x; p), and both are multiplied by 1 + Lip(token-wise network); the last norm and the
    largest column of the unembedding come last (Lemma 2b).

    `least_norm`: the constant then holds for pairs of prompts that keep every input of every norm at least that long
    (after centring, for LayerNorm).  `keys`: the largest number of tokens that any token sees, needed if the network
    scales its softmax with the context.  `differences`: Λ for half the largest difference of two logits, which is all
    that margins depend on; never larger.  `read_prompt`: logits are also read at tokens of the prompt, as those of a
    language model before its first token are (Theorem 4).  Returns a float, infinite if a norm may divide by zero.
    ValueError for wrong shapes, entries that are not finite, negative radii, or missing `keys`.
    """
    network = network_constants(
        config, weights, radius, query_radius, least_norm=least_norm, differences=differences, keys=keys
    )
    if math.isinf(network.norm_slope):
        return math.inf
    p, x, rotary = 1.0, 0.0, config.positions == "rotary"
    for layer in network.layers:
        moved = max(p, x)
        p, x = (
            layer.token_wise * (own + network.norm_slope * layer.moved_by_tokens(reach, moved, own, rotary=rotary))
            for reach, own in ((layer.prompt, p), (layer.query, x))
        )
    constant = network.reading * network.norm_slope * (max(p, x) if read_prompt else x)
    return math.inf if math.isnan(constant) else constant  # 0 · ∞ where radii overflow
