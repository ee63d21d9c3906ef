"""Theorem 7: what a network reads of a prompt as a measure bounds what prompts of any length hold."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy import special

from prompt_memory.bounds._checks import nonnegative, positive
from prompt_memory.bounds._layers import (
    head_sizes,
    measure_slope,
    network_constants,
    over_heads,
)
from prompt_memory.bounds._numerics import log2_binomial
from prompt_memory.bounds.coverage import require
from prompt_memory.checks import integers


def wasserstein_constant(
    A: Float[np.ndarray, "d d"],
    V: Float[np.ndarray, "d_out d"],
    radius: float,
    *,
    query_radius: float | None = None,
    tokens: int | None = None,
) -> float:
    """‖V‖e^{2B}(1 + 2B): how fast one head moves with the measure of its tokens, in the Wasserstein distance W₁.

    The Lipschitz constant of μ ↦ ∫ e^{⟨Ax,z⟩} V z dμ(z) / ∫ e^{⟨Ax,z⟩} dμ(z) from W₁ to the Euclidean norm, for
    probability measures on the ball of that radius and one query ‖x‖ <= query_radius (default: radius), where
    B = ‖A‖·radius·query_radius with spectral norms and A includes 1/√d_k; infinite where it overflows.  With equal
    radii also the constant in max(‖x − x'‖, W₁(μ, μ')).  `tokens`: for two prompts of so many tokens each, where it is
    ‖V‖ m max_x s(B(1 − s) + √(B²(1 − s)² + 1 + (1 − s)x)) with s = e^x/(e^x + m − 1), 0 <= x <= 2B, and on a line
    (d = 1) ‖V‖ m max_x s(1 + (1 − s)x); attained if A and V are multiples of orthogonal matrices (Lemma 7a).
    ValueError as in `head_lipschitz`, or unless `tokens` is an integer >= 1.
    """
    a, v, keys, query = head_sizes(A, V, radius, query_radius)
    if v == 0:
        return 0.0
    if tokens is None:
        return v * measure_slope(a, keys, query, 1.0, 0.0)
    (m,) = integers(tokens=tokens)
    B = a * keys * query
    if m == 1 or math.isinf(B):  # one token has all the attention
        return v if m == 1 else math.inf
    return v * m * _token_share(m, B, line=len(A) == 1)


def _token_share(m: int, B: float, *, line: bool) -> float:
    """The largest s‖I + (1 − s)ay^T‖ of one of m > 1 tokens, as in `wasserstein_constant`, over 0 <= x <= 2B."""

    def share(x):
        s = 1 / (1 + (m - 1) * np.exp(-x))
        half = 0.0 if line else B * (1 - s)
        return s * (1 + (1 - s) * x if line else half + np.sqrt(half**2 + 1 + (1 - s) * x))

    x = np.unique(np.clip([*np.linspace(0, 2 * B, 500), *(math.log(m) + np.linspace(-5, 60, 500))], 0, 2 * B))
    for _ in range(5):  # each time 50 times finer, around the best so far
        best = int(np.argmax(share(x)))
        x = np.linspace(x[max(best - 1, 0)], x[min(best + 1, len(x) - 1)], 101)
    return float(share(x).max())


def network_wasserstein(
    config,
    weights: Mapping[str, Float[np.ndarray, "..."]],
    *,
    radius: float,
    query_radius: float,
    least_norm: float = 0.0,
    differences: bool = False,
    moving_query: bool = False,
) -> float:
    """Λ_W with ‖F(P; X) − F(P'; X)‖_∞ <= Λ_W W₁(Ω, Ω'), for a whole frozen transformer and prompts of any lengths.

    Ω is the empirical measure of all tokens that attention sees, prompt and query (of the prompt alone where queries do
    not see themselves), with their positions, where these are added; W₁(Ω, Ω') <= W₁(μ_P, μ_P') for prompts of equal
    length.  If positions are added, prompts must have *one* length, for the token that reads has another position
    behind another length; or take `moving_query`: then the bound is Λ_W max{W₁(Ω, Ω'), ‖x − x'‖}, where x and x' are
    the token that reads, with its position, behind either prompt.

    Arguments as in `network_lipschitz`.  Two constants are followed through the layers, of the measure of all tokens
    (at first 1) and of the token that reads (at first 0, or 1 if it moves): k becomes k + (κ + β) k and x becomes
    x + κ(x; k), with the constants of Lemma 7a, then both are multiplied by 1 + Lip(token-wise network) (Theorem 7,
    part 1).  For a causal network the constant is that of its block version, in the largest W₁ of two blocks (part 4).
    Returns a float, infinite if it overflows or a norm may divide by zero.  ValueError as in `network_lipschitz`, or
    for rotary positions and logits scaled with the context.
    """
    require(f"Theorem 7, part{' 4' if config.causal else 's 1 to 3'}", config)
    layers, reading, slope = network_constants(
        config, weights, radius, query_radius, least_norm=least_norm, differences=differences
    )
    k, x = 1.0, float(moving_query)
    for layer in layers:
        x = layer.token_wise * (x + slope * layer.moved_by_measure(layer.query, k, x))
        k = layer.token_wise * (k + slope * k * (layer.moved_by_measure(layer.keys) + layer.moved_by_query()))
    constant = reading * slope * x
    return math.inf if math.isnan(constant) else constant


def histogram_bits(cells: float, distance: float) -> float:
    """log2 of Σ_k C(n, k)² (1 + 2/τ)^k / C(2n, n), n = cells − 1: histograms that are far apart, in bits.

    No more probability vectors with so many entries have pairwise total variation distances above τ = `distance`: balls
    of that distance are copies of the difference body of the simplex, and volumes are compared (Theorem 7, part 2).
    Beyond 2000 cells its upper bound 2n log2((1 + √(1 + 2/τ))/2) + log2(2√n).  `cells` may be infinite.
    ValueError unless cells >= 1 and 0 < distance.
    """
    cells, distance = (nonnegative(*each, finite=False) for each in (("cells", cells), ("distance", distance)))
    if not cells >= 1 or not distance > 0:
        raise ValueError(f"cells must be >= 1 and distance > 0, not {cells!r} and {distance!r}")
    if cells < 2 or distance >= 1:
        return 0.0
    n, s = math.floor(cells) - 1 if math.isfinite(cells) else math.inf, 1 + 2 / distance
    if n > 2000 or math.isinf(s):
        return 2 * n * math.log2((1 + math.sqrt(s)) / 2) + 1 + math.log2(n) / 2
    k = np.arange(n + 1)
    log_terms = 2 * (special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)) + k * math.log(s)
    log_sum = special.logsumexp(log_terms) - special.gammaln(2 * n + 1) + 2 * special.gammaln(n + 1)
    return max(0.0, float(log_sum) / math.log(2))


def mean_field_bits(*, d: int, radius: float, lipschitz: float, wasserstein: float, eps: float) -> float:
    """(1 + 4rΛ/ε)^d log2(e(1 + rΛ_W/ε)): what prompts of *any* length can hold with margin 2ε, in bits.

    Bounds Mem_{2ε}(m) for every m, if logits are Λ-Lipschitz in the prompt in the norm max_j ‖p_j‖ and Λ_W-Lipschitz in
    its empirical measure in W₁, for weighted prompts too (a `least_norm` must hold for these): tokens in a ball of
    radius r in R^d (with their positions, where these are added) are sorted into cells, and histograms of cells are
    counted (Theorem 7, part 2).  Infinite where it overflows: then see `mean_field_log10_bits`.
    ValueError unless d is an integer >= 1, radius >= 0 is finite, the constants are >= 0 and eps > 0 is finite.
    """
    exponent = mean_field_log10_bits(d=d, radius=radius, lipschitz=lipschitz, wasserstein=wasserstein, eps=eps)
    return 10.0**exponent if exponent < 308 else math.inf


def mean_field_log10_bits(*, d: int, radius: float, lipschitz: float, wasserstein: float, eps: float) -> float:
    """The logarithm to base 10 of `mean_field_bits`, where the number itself overflows; −∞ for none."""
    d, radius, lipschitz, wasserstein, eps = _mean_field(d, radius, lipschitz, wasserstein, eps)
    if radius == 0 or lipschitz == 0 or wasserstein == 0:
        return -math.inf
    each = (1 + math.log1p(radius * wasserstein / eps)) / math.log(2)
    return d * math.log1p(4 * radius * lipschitz / eps) / math.log(10) + math.log10(each)


def mean_field_packing_bits(*, d: int, radius: float, lipschitz: float, wasserstein: float, eps: float) -> float:
    """The smallest value that the proof of Theorem 7 gives, in bits: never above `mean_field_bits`.

    Cells have the diameter 2θε/Λ, histograms in different classes the total variation distance (1 − θ)ε/(rΛ_W), counted
    by `histogram_bits`, with the best θ in (0, 1); there are at most (1 + 2rΛ/(θε))^d cells, or, by cubes,
    ⌈√d rΛ/(θε)⌉^d.  For d = 1 also the better count of monotone distribution functions, log2 C(M + K − 2, M − 1) for
    M > rΛ/ε intervals and K = ⌈(M − 1) rΛ_W / (Mε − rΛ)⌉ levels, with the best M (Theorem 7, parts 2 and 3).
    ValueError as in `mean_field_bits`.
    """
    d, radius, lipschitz, wasserstein, eps = _mean_field(d, radius, lipschitz, wasserstein, eps)
    if radius * lipschitz <= eps or wasserstein * radius <= eps:  # all outputs lie within ε of those of one prompt
        return 0.0
    ratio, best = radius * lipschitz / eps, math.inf
    if math.isinf(ratio) or math.isinf(radius * wasserstein / eps):
        return math.inf
    for theta in (0.5, *(1 - np.geomspace(1e-4, 0.9, 60))):
        log_cells = d * min(math.log1p(2 * ratio / theta), math.log(math.ceil(math.sqrt(d) * ratio / theta)))
        cells = math.exp(log_cells) if log_cells < 700 else math.inf
        best = min(best, histogram_bits(cells + 1e-9 * cells, (1 - theta) * eps / (radius * wasserstein)))
    if d == 1:
        least = np.floor(ratio * (1 + 1e-12)) + 1  # an integer that misses an integer by rounding is one
        M = np.unique(least + np.floor(np.geomspace(1, 4 * ratio + 100, 400) - 1))
        K = np.maximum(1, np.ceil((M - 1) * (radius * wasserstein / eps) / (M - ratio) * (1 - 1e-12)))
        counts = special.gammaln(M + K - 1) - special.gammaln(M) - special.gammaln(K)
        best = min(best, max(0.0, float(counts.min()) / math.log(2)))
    return best


def snapped_multiset_bits(d: int, m: int, radius: float, lipschitz: float, eps: float) -> float:
    """log2 C(M + m − 1, m) with M = (1 + 2rΛ/ε)^d cells (⌈rΛ/ε⌉ on a line), in bits.

    Bounds Mem_{2ε}(m) for a network that does not see the order of its m prompt tokens: two prompts with the same
    number of tokens in every cell of diameter 2ε/Λ differ by at most 2ε.  Grows like M log2 m: below Theorem 2 for long
    prompts, above Theorem 7 for longer ones.  ValueError as in `entropy_bits`.
    """
    d, m = integers(d=d, m=m)
    ratio = nonnegative("radius", radius) * nonnegative("lipschitz", lipschitz, finite=False)
    eps = positive("eps", eps)
    ratio = ratio / eps if radius else 0.0
    if d * math.log10(1 + 2 * ratio) > 300:
        return math.inf
    cells = max(1, math.ceil(ratio)) if d == 1 else math.floor((1 + 2 * ratio) ** d * (1 + 1e-12))
    return log2_binomial(cells + m - 1, m)


def block_error(
    config,
    weights: Mapping[str, Float[np.ndarray, "..."]],
    blocks: int,
    *,
    radius: float,
    query_radius: float,
    least_norm: float = 0.0,
    differences: bool = False,
) -> float:
    """How much the logits of a causal network move, at most, if each prompt token sees all of its block; any length.

    The prompt is cut into K = `blocks` blocks ending at ⌈bm/K⌉, and each of its tokens attends to all tokens up to the
    end of its block.  The bound is Σ_{j >= 1} c_j (1/K) Σ_{i <= j} (ln K)^i / i! with j < L, whose coefficients follow
    from the constants of Lemma 7a layer by layer; 0 for one layer (Theorem 7, part 4).  Positions may be added to
    tokens: the masks are compared for the same token vectors.  Arguments and ValueError as in `network_wasserstein`;
    `blocks` is an integer >= 1.  Networks that are not causal are refused.
    """
    (K,) = integers(blocks=blocks)
    require("Theorem 7, part 4", config)
    layers, reading, slope = network_constants(
        config, weights, radius, query_radius, least_norm=least_norm, differences=differences
    )
    # coefficients of the means of means: of a token and of the token that reads
    e, x = np.zeros(config.depth + 1), np.zeros(config.depth + 1)
    for layer in layers:
        kappa = layer.moved_by_measure(layer.keys)
        shares = [math.exp(2 * B) if (B := a * layer.keys**2) < 300 else math.inf for a in layer.A]
        mean = np.concatenate([[0.0], e[:-1]])  # one mean more
        with np.errstate(over="ignore", invalid="ignore"):
            x = layer.token_wise * (x + slope * kappa * mean)
            e = layer.token_wise * (e + slope * kappa * mean)
            e[0] += layer.token_wise * over_heads(shares, layer.M) * 2 * layer.keys
        if not (np.isfinite(e).all() and np.isfinite(x).all()):
            return math.inf if config.depth > 1 else 0.0
    terms = np.cumsum([math.log(K) ** i / math.factorial(i) for i in range(config.depth + 1)]) / K
    return reading * slope * float(x @ np.minimum(terms, 1.0))


def causal_mean_field_bits(
    *, d: int, radius: float, lipschitz: float, wasserstein: float, eps: float, blocks: int
) -> float:
    """K (1 + 8rΛ/ε)^d log2(e(1 + 2rΛ_W/ε)): what prompts of any length hold in a *causal* network, in bits.

    Bounds Mem_{2ε}(m) for every m if `block_error` at K = `blocks` is at most ε/2 and positions are not rotary: K times
    `mean_field_bits` at ε/2 (Theorem 7, part 4).  ValueError as there, or unless `blocks` is an integer >= 1.
    """
    (K,) = integers(blocks=blocks)
    return K * mean_field_bits(d=d, radius=radius, lipschitz=lipschitz, wasserstein=wasserstein, eps=eps / 2)


def _mean_field(d, radius, lipschitz, wasserstein, eps) -> tuple[int, float, float, float, float]:
    (d,) = integers(d=d)
    eps = positive("eps", eps)
    constants = (nonnegative(name, value, finite=False) for name, value in
                 (("lipschitz", lipschitz), ("wasserstein", wasserstein)))  # fmt: skip
    return d, nonnegative("radius", radius), *constants, eps
