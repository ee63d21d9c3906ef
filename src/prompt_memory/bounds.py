"""What the theorems allow: one pure function a formula.

Scalars in, a float out, unless said otherwise.  Quantities called `*_bits` are in bits (log to base 2), recall and
distortion are fractions between 0 and 1.  Nothing here knows about torch: a `config` is anything with the attributes
of `prompt_memory.transformer.TransformerConfig`.
"""

import decimal
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import optimize, special, stats

from prompt_memory.checks import integers

# --- Theorem 1: counting -------------------------------------------------------------------------------------------


def counting_bits(d: int, m: int, bits_per_coordinate: int) -> float:
    """b·d·m, the bits in a prompt of m tokens of width d with b bits per coordinate.

    No frozen network, however deep, can be made to memorise more labelings than there are prompts, so this bounds
    Mem_γ(m) for every margin γ >= 0 (Theorem 1).  ValueError if an argument is not an integer >= 1.
    """
    d, m, b = integers(d=d, m=m, bits_per_coordinate=bits_per_coordinate)
    return float(b * d * m)


def multiset_bits(d: int, m: int, bits_per_coordinate: int) -> float:
    """log2 C(2^{bd} + m − 1, m), the bits in an unordered prompt of m tokens.

    Bounds Mem_γ(m) when the network cannot see the order of the prompt: without positions, bidirectional at any depth
    or with one layer (Theorem 1; in exact arithmetic, as floating-point sums depend on the order in their last bit).
    Once m is much larger than 2^{bd}, a doubling of m adds only about 2^{bd} − 1 bits.
    ValueError if an argument is not an integer >= 1.
    """
    d, m, b = integers(d=d, m=m, bits_per_coordinate=bits_per_coordinate)
    return _log2_binomial(2 ** (b * d) + m - 1, m)


def hard_prompt_bits(vocabulary: int, m: int) -> float:
    """m log2(vocabulary), the bits in a hard prompt of m tokens (Theorem 1).  ValueError unless both are >= 1."""
    vocabulary, m = integers(vocabulary=vocabulary, m=m)
    return m * math.log2(vocabulary)


def rate(distortion: float, q: int) -> float:
    """R_q(D) = log2 q − h_2(D) − D log2(q − 1) for D <= 1 − 1/q and 0 beyond, in bits per label.

    The rate–distortion function of a uniform source on q letters under Hamming loss: to recall a fraction 1 − D of
    random labels, this much information about each label is needed (Theorem 1).
    ValueError if D is outside [0, 1] or q is not an integer >= 2.
    """
    q = _classes(q)
    if not 0 <= distortion <= 1:
        raise ValueError(f"a distortion is a fraction between 0 and 1, not {distortion}")
    if distortion == 0:
        return math.log2(q)
    return 0.0 if distortion >= 1 - 1 / q else _rate_above_chance((1 - distortion) - 1 / q, q)


def recall_ceiling(bits: float, n: int, q: int) -> float:
    """The largest expected recall a in [1/q, 1] with n R_q(1 − a) <= bits, as a fraction.

    No tuning algorithm, given n uniform labels independent of network and queries, has a larger expected recall if
    its prompts show at most 2^bits behaviours (Theorem 1).  ValueError if bits < 0, n < 1 or q < 2.
    """
    n, q = _labels(bits, n, q)
    if bits >= n * math.log2(q):
        return 1.0
    low, high = 0.0, 1 - 1 / q  # bisection for the advantage over chance; its upper end errs on the safe side
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if n * _rate_above_chance(middle, q) < bits else (low, middle)
    return min(1.0, 1 / q + high)


def pinsker_recall_ceiling(bits: float, n: int, q: int) -> float:
    """1/q + √(bits·ln 2 / (2n)), at most 1: a simple ceiling above `recall_ceiling`, as a fraction.

    From R_q(1 − a) >= 2 (a − 1/q)² / ln 2, Pinsker's inequality (Theorem 1).  ValueError as in `recall_ceiling`.
    """
    n, q = _labels(bits, n, q)
    return min(1.0, 1 / q + math.sqrt(bits * math.log(2) / (2 * n)))


def recall_tail_bits(bits: float, n: int, q: int, recall: float) -> float:
    """log2 of the bound on Pr[some prompt recalls >= recall·n labels], at most 0.

    The sharp form of the strong converse: at most 2^bits behaviours, each of which agrees with uniform labels in
    Binomial(n, 1/q) places, so bits + log2 Pr[Binomial(n, 1/q) >= ⌈recall·n⌉].  Never above the closed form
    bits − n R_q(1 − recall) for recall >= 1/q, which is returned for n > 10^12, where the binomial tail cannot be
    computed to a bit (Theorem 1, part 3).  ValueError as in `recall_ceiling`, or if `recall` is not between 0 and 1.
    """
    n, q = _labels(bits, n, q)
    if not 0 <= recall <= 1:
        raise ValueError(f"recall is a fraction between 0 and 1, not {recall}")
    if n > 10**12:
        return min(0.0, bits - n * rate(1 - recall, q))
    hits = math.ceil(recall * n - 1e-9 - 1e-15 * n)  # recall = k/n must not round up to k + 1
    if hits <= 0:
        return 0.0
    # where probabilities underflow they fall so fast that a million terms hold all of the sum
    log_tail = _log_tails(hits, min(n, hits + 10**6), n, q)[0]
    return min(0.0, bits + float(log_tail) / math.log(2))


def best_recall_ceiling(bits: float, n: int, q: int) -> float:
    """(1/n) Σ_{k=1}^{n} min(1, 2^bits Pr[Binomial(n, 1/q) >= k]): a ceiling on expected best recall, as a fraction.

    Follows from the sharp converse by summing tails; unlike `recall_ceiling` it knows that n is finite, and is the
    smaller of the two in most of the range (Theorem 1, part 4).  ValueError as in `recall_ceiling`, or if n > 10^7.
    """
    n, q = _labels(bits, n, q)
    return float(np.exp(np.minimum(0.0, bits * math.log(2) + _log_tails(1, n, n, q))).mean())


def recall_quantile(bits: float, n: int, q: int, log2_probability: float) -> float:
    """The recall that some prompt exceeds with probability at most 2^log2_probability, as a fraction.

    The largest k/n with bits + log2 Pr[Binomial(n, 1/q) >= k] > log2_probability (Theorem 1, part 3).
    ValueError as in `recall_ceiling`, or if n > 10^7, or unless log2_probability < 0 is finite.
    """
    n, q = _labels(bits, n, q)
    _rare(log2_probability)
    likely = bits * math.log(2) + _log_tails(1, n, n, q) > log2_probability * math.log(2)
    return float(likely.sum() / n)


def mean_recall_quantile(bits: float, n: int, q: int, samples: int, log2_probability: float) -> float:
    """What the mean recall of `samples` labelings exceeds with probability at most 2^log2_probability, as a fraction.

    For S = `samples` independent uniform labelings of the same n queries, and a prompt for each of them, chosen by
    anything.  The smaller of two limits: the recall quantile of 2^{S·bits} behaviours on S·n labels; and
    inf_{s > 0} [ln E e^{sK} − ln(probability)/S]/(s n), Chernoff's bound, where K is distributed as the best number of
    hits can be at most, Pr[K >= k] = min(1, 2^bits Pr[Binomial(n, 1/q) >= k]).  Tends to `best_recall_ceiling` when S
    grows, and is `recall_quantile` for S = 1, or less (Theorem 1, part 5).
    ValueError as in `recall_quantile`, or if S·n > 10^7.
    """
    n, q = _labels(bits, n, q)
    (samples,) = integers(samples=samples)
    jointly = recall_quantile(samples * bits, samples * n, q, log2_probability)
    hits = np.arange(1, n + 1)
    log_tail = np.minimum(0.0, bits * math.log(2) + _log_tails(1, n, n, q))

    def limit(log_slope: float) -> float:  # every slope gives a valid one
        s = math.exp(log_slope)
        log_steps = s * hits + math.log(-math.expm1(-s))  # of e^{sk} − e^{s(k − 1)}
        log_moment = np.logaddexp(0.0, np.logaddexp.reduce(log_steps + log_tail))
        return float(log_moment - log2_probability * math.log(2) / samples) / (s * n)

    best = optimize.minimize_scalar(limit, bounds=(-18.0, 8.0), method="bounded", options={"xatol": 1e-6})
    return min(jointly, float(best.fun))


def random_code_recall(bits: float, n: int, q: int) -> float:
    """(1/n) Σ_{k=1}^{n} [1 − (1 − Pr[Binomial(n, 1/q) >= k])^{2^bits}], expected best recall of random behaviours.

    What 2^bits *independent uniform* behaviours would recall: a heuristic for a network, whose behaviours are neither,
    and exact for a random code.  Never above `best_recall_ceiling`.  ValueError as in `best_recall_ceiling`.
    """
    n, q = _labels(bits, n, q)
    log_tail = _log_tails(1, n, n, q)
    with np.errstate(divide="ignore", over="ignore"):  # certain successes, and more behaviours than a float counts
        # log of −log(1 − tail), which is the log of the tail itself where that is small
        log_hazard = np.where(log_tail < -30, log_tail, np.log(-np.log1p(-np.exp(log_tail))))
        missed = np.exp(-np.exp(bits * math.log(2) + log_hazard))
    return float((1 - missed).mean())


def binary_divergence(recall: float, chance: float) -> float:
    """d(a ‖ p) = a log2(a/p) + (1 − a) log2((1 − a)/(1 − p)) for a >= p and 0 below, in bits per label.

    What it takes to recall with probability a = `recall` a label that no fixed answer hits with a probability above
    p = `chance`: Σ_i d(a_i ‖ p_i) <= log2 N_n for independent labels (Theorem 1, part 6).  Equal to `rate` at p = 1/q.
    ValueError unless recall is between 0 and 1, and chance above 0 and at most 1.
    """
    a, p = _probability("recall", recall), _probability("chance", chance)
    if p == 0:
        raise ValueError("chance must be above 0")
    if a <= p:
        return 0.0
    if p < 1e-290 * a:  # a / p may overflow, and (1 − a) log2(1 − p) is nothing beside the rest
        unsure = float(special.xlog1py(1 - a, -a)) / math.log(2) if a < 1 else 0.0
        return a * (math.log2(a) - math.log2(p)) + unsure
    u, v = (a - p) / p, (a - p) / (1 - p)  # a = p (1 + u) and 1 − a = (1 − p)(1 − v)
    return (p * _bregman(u) + (1 - p) * _bregman(-v)) / math.log(2)


def independent_tail_bits(bits: float, chances: Float[np.ndarray, " n"], hits: int) -> float:
    """log2 of the bound on Pr[some prompt recalls >= hits labels], at most 0, for independent labels of any kind.

    bits + log2 Pr[B >= hits], where B is a sum of n independent coins with the probabilities `chances`, of which the
    i-th is at least that of every class for label i (Theorem 1, part 6).  Equal to `recall_tail_bits` at 1/q.
    ValueError for bits < 0, chances that are no probabilities, or hits that are not an integer from 0 to n <= 20,000.
    """
    chances = np.asarray(chances, dtype=float)
    if not bits >= 0:
        raise ValueError(f"bits must be a number >= 0, not {bits}")
    if chances.ndim != 1 or not 1 <= len(chances) <= 20_000 or not np.all((chances >= 0) & (chances <= 1)):
        raise ValueError("chances must be a list of 1 to 20,000 probabilities")
    (hits,) = integers(0, hits=hits)
    if hits > len(chances):
        raise ValueError(f"hits must be at most {len(chances)}, the number of labels, not {hits}")
    with np.errstate(divide="ignore"):
        log_hit, log_miss = np.log(chances), np.log1p(-chances)
    log_mass = np.full(len(chances) + 1, -np.inf)  # of 0 … n hits among the labels seen so far
    log_mass[0] = 0.0
    for hit, miss in zip(log_hit, log_miss, strict=True):
        log_mass[1:] = np.logaddexp(log_mass[1:] + miss, log_mass[:-1] + hit)
        log_mass[0] += miss
    return min(0.0, bits + float(np.logaddexp.reduce(log_mass[hits:])) / math.log(2))


def _rate_above_chance(advantage: float, q: int) -> float:
    """R_q(1 − a) at a = 1/q + advantage, to full relative accuracy in the advantage."""
    u = q * advantage
    nats = (_bregman(min(u, q - 1.0)) + (q - 1) * _bregman(max(-1.0, -u / (q - 1)))) / q
    return nats / math.log(2)


def _bregman(x: float) -> float:
    """(1 + x) ln(1 + x) − x for x >= −1, which is x²/2 near 0 and never cancels here."""
    if abs(x) > 0.02:
        return float(special.xlog1py(1 + x, x)) - x
    return x * x * math.fsum((-x) ** (k - 2) / (k * (k - 1)) for k in range(2, 13))


def _rare(log2_probability: float) -> None:
    if not -math.inf < log2_probability < 0:
        raise ValueError(f"log2_probability must be a number < 0, not {log2_probability}")


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability, not {value}")
    return float(value)


def _log_tails(first: int, last: int, n: int, q: int) -> Float[np.ndarray, " K"]:
    """ln Pr[Binomial(n, 1/q) >= k] for k = first … last, where first >= 1.

    Where the probability underflows, the logarithms of the single probabilities are added up from `last` downwards;
    `last` must then be n, or so far out that what is beyond does not count.  ValueError for more than 10^7 of them.
    """
    if last - first >= 10**7:
        raise ValueError(f"all n tails are held in memory, and n = {n} exceeds ten million; use recall_ceiling instead")
    k = np.arange(first, last + 1)
    log_mass = (
        special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
        + (n - k) * math.log1p(-1 / q) - k * math.log(q)
    )  # fmt: skip
    summed = np.logaddexp.accumulate(log_mass[::-1])[::-1]
    tail = stats.binom.sf(k - 1, n, 1 / q)  # more accurate, where it is a normal number
    with np.errstate(divide="ignore"):
        return np.minimum(0.0, np.where(tail > 1e-290, np.log(tail), summed))


# --- Theorem 2: metric entropy -------------------------------------------------------------------------------------

# the largest slope of GELU, x ↦ x·Φ(x): its second derivative is φ(x)(2 − x²), so it lies at √2; the least is 1 − this
GELU_LIPSCHITZ = 0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi)


def entropy_bits(d: int, m: int, radius: float, lipschitz: float, eps: float) -> float:
    """d m log2(1 + rΛ/ε), the bits that m real tokens in a ball of radius r can hold with margin 2ε.

    Bounds Mem_{2ε}(m) for every network whose logits, up to a common shift, are Λ-Lipschitz in the prompt in the norm
    max_j ‖p_j‖, for any number of queries and classes (Theorem 2).  With ε/2 in place of ε it bounds the different
    tables of answers, when only answers with margin 2ε count.  `lipschitz` may be infinite: then so is the bound.
    ValueError unless d and m are integers >= 1, radius >= 0 is finite, lipschitz >= 0 and eps > 0 is finite.
    """
    d, m = integers(d=d, m=m)
    radius = _nonnegative("radius", radius)
    lipschitz = _nonnegative("lipschitz", lipschitz, finite=False)
    if not _nonnegative("eps", eps) > 0:
        raise ValueError(f"eps must be a finite number > 0, not {eps!r}")
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
    A, V = _matrix("A", A), _matrix("V", V)
    if A.shape[0] != A.shape[1] or V.shape[1] != A.shape[0]:
        raise ValueError(f"A must be square and V have as many columns, not {list(A.shape)} and {list(V.shape)}")
    keys = _nonnegative("radius", radius)
    query = keys if query_radius is None else _nonnegative("query_radius", query_radius)
    a = _spectral(A)
    return _spectral(V) * _softmax_slope(a, keys, query, 1.0, float(moving_query), rotary=False)


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
    B = _spectral(_matrix("A", A)) * float(radius) ** 2
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
    c = config
    W = _weights(c, weights)
    p_radius, x_radius = _nonnegative("radius", radius), _nonnegative("query_radius", query_radius)
    temperature = c.inverse_temperature / math.sqrt(c.d_k)
    if c.context_scaling == "log":
        if keys is None:
            raise ValueError("the softmax is scaled with the context: give keys, the largest number of tokens seen")
        temperature *= math.log(integers(keys=keys)[0])
    slope = 1.0  # of a norm, its gain apart
    if c.norm != "none":
        square = c.norm_eps + _nonnegative("least_norm", least_norm) ** 2 / c.d
        if square == 0:
            return math.inf
        slope = 1 / math.sqrt(square)
    if c.positions == "learned":
        longest = float(np.linalg.norm(W["position"], axis=1).max())
        p_radius, x_radius = p_radius + longest, x_radius + longest
    p, x = 1.0, 0.0
    for layer in range(c.depth):
        w = {name.split(".", 2)[2]: array for name, array in W.items() if name.startswith(f"blocks.{layer}.")}
        N = _norm_matrix(c, w.get("norm1.gain"))
        heads = [
            tuple(np.split(w[name], c.heads, axis)[h] for name, axis in _HEAD_AXES.items()) for h in range(c.heads)
        ]
        A = [_bilinear(N @ q, N @ k, rotary=c.positions == "rotary") * temperature for q, k, _, _ in heads]
        M = [(N @ v @ o).T for _, _, v, o in heads]
        p_reach, x_reach = (p_radius, x_radius) if c.norm == "none" else (math.sqrt(c.d),) * 2
        k_reach, key = max(p_reach, x_reach), max(p, x)

        def attended(reach, own, A=A, M=M, k_reach=k_reach, key=key):
            slopes = [_softmax_slope(a, k_reach, reach, key, own, rotary=c.positions == "rotary") for a in A]
            return slope * _over_heads(slopes, M)

        p, x = p + attended(p_reach, p), x + attended(x_reach, x)
        written = _over_heads([1.0] * c.heads, M) * k_reach
        p_radius, x_radius = p_radius + written, x_radius + written
        if c.mlp:
            up, down = (_norm_matrix(c, w.get("norm2.gain")) @ w["up"]).T, w["down"].T
            factor = 1 + slope * _token_wise_slope(c.activation, up, down)
            p, x = p * factor, x * factor
            # both activations lie within |t|/2 of t/2
            bias = (_norm(down @ w["up_bias"]) + _spectral(down) * _norm(w["up_bias"])) / 2 + _norm(w["down_bias"])
            grown = (1 + (_spectral(down @ up) + _spectral(down) * _spectral(up)) / 2, bias)
            p_radius, x_radius = p_radius * grown[0] + grown[1], x_radius * grown[0] + grown[1]
    read = (_norm_matrix(c, W.get("norm.gain")) @ W["unembedding"]).T  # [q, d]
    if differences:
        reading = float(np.linalg.norm(read[:, None] - read[None], axis=-1).max()) / 2
    else:
        reading = float(np.linalg.norm(read, axis=-1).max())
    constant = reading * slope * (max(p, x) if read_prompt else x)
    return math.inf if math.isnan(constant) else constant  # 0 · ∞ where radii overflow


_HEAD_AXES = {"query": 1, "key": 1, "value": 1, "output": 0}  # along which the weights of the heads lie side by side


def _softmax_slope(a: float, keys: float, query: float, key_moves: float, query_moves: float, *, rotary: bool) -> float:
    """One head over ‖V‖, when keys in a ball move by `key_moves` and the query by `query_moves`; a = ‖A‖.

    With rotary positions ⟨A x, z_j⟩ has another A of the same norm for every j, and 1 + B takes the place of √(1 + B²).
    """
    B = a * keys * query
    return (1 + B if rotary else math.hypot(1, B)) * key_moves + a * keys**2 * query_moves


def _over_heads(slopes: list[float], M: list[np.ndarray]) -> float:
    """A bound on max over unit w of Σ_h κ_h ‖M_hᵀ w‖, at most Σ_h κ_h ‖M_h‖, by Cauchy and Schwarz."""
    norms = [_spectral(each) for each in M]
    total = sum(k * n for k, n in zip(slopes, norms, strict=True))
    if total == 0 or not math.isfinite(total):
        return total
    # weights divided by the total, so that nothing overflows
    joint = sum((k / total) / n * (each @ each.T) for k, n, each in zip(slopes, norms, M, strict=True) if n > 0)
    return min(total, total * math.sqrt(_spectral(joint)))


def _token_wise_slope(activation: str, up: np.ndarray, down: np.ndarray) -> float:
    """Lipschitz constant of x ↦ down σ(up x): ½‖down up‖ + (Lip σ − ½)‖down‖‖up‖, as σ' lies within that of ½."""
    reach = (GELU_LIPSCHITZ if activation == "gelu" else 1.0) - 0.5
    return _spectral(down @ up) / 2 + reach * _spectral(down) * _spectral(up)


def _norm_matrix(config, gain: np.ndarray | None) -> np.ndarray:
    """N with norm(x) = (x̂ / √(mean x̂² + ε₀)) N for row vectors, where x̂ is x, centred if LayerNorm: [d, d]."""
    if config.norm == "none":
        return np.eye(config.d)
    centre = np.eye(config.d) - (1 / config.d if config.norm == "layer" else 0.0)
    return centre * gain


def _bilinear(query: np.ndarray, key: np.ndarray, *, rotary: bool) -> float:
    """‖K^T Q‖ for weights [d, d_k]; ‖K‖‖Q‖ with rotary positions, which turn keys against queries."""
    return _spectral(query) * _spectral(key) if rotary else _spectral(key @ query.T)


def _weights(config, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as float64 arrays; ValueError if one is missing, has another shape or is not finite."""
    c = config
    heads = {"query": (c.d, c.heads * c.d_k), "key": (c.d, c.heads * c.d_k)}
    block = heads | {"value": (c.d, c.heads * c.d_v), "output": (c.heads * c.d_v, c.d)}
    if c.mlp:
        block |= {"up": (c.d, c.mlp), "up_bias": (c.mlp,), "down": (c.mlp, c.d), "down_bias": (c.d,)}
    if c.norm != "none":
        block |= {"norm1.gain": (c.d,)} | ({"norm2.gain": (c.d,)} if c.mlp else {})
    shapes = {f"blocks.{layer}.{name}": shape for layer in range(c.depth) for name, shape in block.items()}
    shapes |= {"unembedding": (c.d, c.q)} | ({"norm.gain": (c.d,)} if c.norm != "none" else {})
    shapes |= {"position": (c.context, c.d)} if c.positions == "learned" else {}
    arrays = {}
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"the weight {name} is missing")
        arrays[name] = np.asarray(weights[name], dtype=np.float64)
        if arrays[name].shape != shape:
            raise ValueError(f"the weight {name} must have the shape {list(shape)}, not {list(arrays[name].shape)}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"the weight {name} holds NaN or infinite entries")
    return arrays


def _matrix(name: str, value) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a matrix, not an array of shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite entries")
    return array


def _nonnegative(name: str, value, *, finite: bool = True) -> float:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not value >= 0 or (finite and math.isinf(value)):
        raise ValueError(f"{name} must be a {'finite ' if finite else ''}number >= 0, not {value!r}")
    return float(value)


def _spectral(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix, 2))


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


# --- Theorem 3: dimension ------------------------------------------------------------------------------------------


def effective_dimension(
    config,
    m: int,
    *,
    tuning: Literal["soft", "prefix"] = "soft",
    read: Literal["fixed", "moving"] = "moving",
    own_token: bool = True,
    rank_checked: bool = False,
) -> int:
    """D_eff = max rank DΦ, the number of real coordinates of a prompt that the outputs can see (Theorem 3).

    For generic weights, queries and prompts, smooth activations and enough queries.  `read="moving"`: the token at
    which the output is read differs between queries; `"fixed"`: it is always the same, at the same position, and only
    the other tokens of the query vary.  `own_token=False`: queries see the prompt only, not themselves.
    `config.norm_eps` decides whether the norms are exactly scale-invariant.

    With e the dimensions that norms leave to a token (d; d − 1 for LayerNorm; one less for one layer and norm_eps = 0):
    one layer gives m·min(e, H(d_k + d_v)), causal depth L gives m·min(e, L H(d_k + d_v)), bidirectional depth m·e,
    prefix tuning L m H(d_k + d_v), one layer read at a fixed token at most H(1 + d_v); without own tokens the shifts
    that a softmax cannot see are subtracted.

    `config.q`, the number of outputs, matters only below c = `outputs_per_query(config)`.  Then one layer without norm
    and token-wise network gives m·min(d, H(d_k + min(d_v, q))), queries that all return the same vector give at most q,
    and other networks are refused, unless `rank_checked` says that the caller has measured that fewer outputs lose
    nothing.  (The count for q >= c, which is then returned, is an upper bound in any case.)  A config without q counts
    as one with enough outputs.  For few outputs and rotary positions, which part 4 excludes, the count is
    tested on random configurations, without an exception, and not proved.
    Returns an int.  ValueError for m < 1, an unknown option, or a network for which no formula is established.
    """
    (m,) = integers(m=m)
    for name, value, allowed in (("tuning", tuning, ("soft", "prefix")), ("read", read, ("fixed", "moving"))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    if config.norm == "layer" and config.d == 1:
        raise ValueError("LayerNorm of a single coordinate is always zero: give d >= 2")
    count = _soft_dimension if tuning == "soft" else _prefix_dimension
    dimension = count(config, m, read == "fixed", own_token)
    q = getattr(config, "q", None)
    if read == "fixed" and not own_token:  # every query returns the same vector
        return min(dimension, outputs_per_query(config, q))
    if q is None or rank_checked or q >= outputs_per_query(config):
        return dimension
    plain = config.depth == 1 and config.norm == "none" and not config.mlp
    if plain and tuning == "soft" and read == "moving" and own_token:
        return m * min(config.d, config.heads * (min(config.d_k, config.d) + min(config.d_v, q)))
    raise ValueError(
        f"with q = {q} outputs, fewer than the {outputs_per_query(config)} that a query has, D_eff is not established: "
        "measure the rank and give rank_checked=True if nothing is lost"
    )


def dimension_ceiling(
    config,
    m: int,
    *,
    tuning: Literal["soft", "prefix"] = "soft",
    read: Literal["fixed", "moving"] = "moving",
    own_token: bool = True,
) -> int:
    """The least entry of the table of Theorem 3, part 3, that fits the network: a proved upper bound on D_eff.

    `effective_dimension` is at most this, and equal unless one of its refinements applies.  Returns an int.
    ValueError as there.
    """
    effective_dimension(config, m, tuning=tuning, read=read, own_token=own_token, rank_checked=True)
    L, H, d = config.depth, config.heads, config.d
    d_k, d_v = min(config.d_k, d), min(config.d_v, d)
    cached = L * m * H * (d_k + d_v)
    if tuning == "prefix":
        found = [cached - (0 if own_token else L * H * d_k)]
    else:
        lost = int(config.norm == "layer") + int(config.norm != "none" and L == 1 and config.norm_eps == 0)
        found = [m * (d - lost)] + ([cached] if config.causal or L == 1 else [])
    return min(found + ([H * (1 + d_v)] if L == 1 and read == "fixed" else []))


def within_log2_probability(d: int, m: int, radius: float, lipschitz: float, eps: float, numbers: int) -> float:
    """log2 of min(1, (1 + 2rΛ/ε)^{dm} (2ε)^N), the chance of a random target to lie near an output (Theorem 3, part 1).

    For N = `numbers` real targets, uniform in [−1, 1], prompts of m vectors of norm at most r = `radius` and outputs
    that move by at most Λ = `lipschitz` times the largest move of a vector: probability that some prompt has all
    outputs within ε = `eps` of the target.  Falls like ε^{N − dm}.  Returns bits, <= 0.
    ValueError unless d, m and numbers are integers >= 1, radius and lipschitz finite and >= 0, eps finite and > 0.
    """
    d, m, numbers = integers(d=d, m=m, numbers=numbers)
    reach = 2 * _nonnegative("radius", radius) * _nonnegative("lipschitz", lipschitz)
    if not _nonnegative("eps", eps) > 0:
        raise ValueError(f"eps must be a finite number > 0, not {eps}")
    return min(0.0, d * m * math.log1p(reach / eps) / math.log(2) + numbers * math.log2(2 * eps))


def visible_coordinates(width: int, cached: int | None, m: int) -> int:
    """m·min(width, cached), an upper bound on the coordinates of a soft prompt that outputs of any network can see.

    `width` dimensions of a prompt vector are read (d, or d − 1 where only LayerNorms read it); `cached` numbers stand
    for it where queries look, the sum of H_kv(d_k + d_v) over layers that may differ (None: not only there, as in a
    bidirectional network of several layers).  Theorem 3, part 3, without its lower bound.
    """
    width, cached = integers(0, width=width, cached=width if cached is None else cached)
    return integers(m=m)[0] * min(width, cached)


def outputs_per_query(config, q: int | None = None) -> int:
    """c, the independent outputs of one query: min(q, dimensions the last norm leaves, dimensions attention writes).

    n generic queries have min(D_eff, n) <= rank DΦ <= min(D_eff, n·c) (Theorem 3).  `q=None`: as many outputs as one
    likes.
    """
    ambient, sphere = _token_space(config)
    written = config.depth * config.heads * min(config.d_v, ambient)
    return min(ambient - sphere, written, *([] if q is None else [q]))


def _token_space(config) -> tuple[int, int]:
    """(dimensions of a token that a layer reads, 1 if its length is lost): LayerNorm drops the mean, ε₀ = 0 length."""
    ambient = config.d - (config.norm == "layer")
    return ambient, int(config.norm != "none" and config.norm_eps == 0)


def _soft_dimension(config, m: int, fixed: bool, own_token: bool) -> int:
    L, H = config.depth, config.heads
    ambient, sphere = _token_space(config)
    if ambient <= sphere:  # a norm that leaves a sign shows no prompt at all
        return 0
    d_k, d_v = min(config.d_k, ambient), min(config.d_v, ambient)
    e = ambient - (sphere if L == 1 else 0)  # from the second layer on the residual stream shows the length again
    if L == 1 and fixed:
        return min(m * e, _fixed_read_sums(config, own_token))
    if L == 1:
        return m * min(e, H * (d_k + d_v)) - (0 if own_token else _shift_invariance(config, m))
    if not own_token and H * d_v < e:
        raise ValueError(
            "without own tokens and with more than one layer, D_eff is established only for heads * d_v >= d"
        )
    if not own_token:
        return m * e
    reads = (L - 1) * H * (d_k + d_v) + H * ((min(d_k, _fixed_query_span(config)) if fixed else d_k) + d_v)
    if config.causal:
        return m * min(e, reads)
    if e > reads + (L - 1) * H * d_k and config.mlp < config.d:
        raise ValueError("for heads so narrow, D_eff of a deep bidirectional network is not established")
    return m * e


def _prefix_dimension(config, m: int, fixed: bool, own_token: bool) -> int:
    L, H = config.depth, config.heads
    ambient, sphere = _token_space(config)
    if ambient <= sphere:
        raise ValueError(f"with norm = {config.norm!r}, norm_eps = 0 and d = {config.d} a query is only a sign")
    if config.positions == "rotary" and config.d_k > ambient:
        raise ValueError("with rotary positions D_eff of a prefix is established only for d_k <= d")
    if not own_token and L > 1 and config.mlp < config.d:
        raise ValueError("without own tokens, D_eff of a prefix of several layers is established only for mlp >= d")
    d_k, d_v = min(config.d_k, ambient), min(config.d_v, ambient)
    if L == 1 and fixed:
        return _fixed_read_sums(config, own_token)
    seen = L * m * H * (d_k + d_v)
    if fixed:  # in the last layer only the read token looks at the prefix, and its query spans few directions
        seen -= m * H * (d_k - min(d_k, _fixed_query_span(config)))
    # shifting all keys of a head, or the values of several heads against each other, changes nothing
    return seen if own_token else seen - L * (H * d_k + max(0, H * d_v - ambient))


def _fixed_read_sums(config, own_token: bool) -> int:
    """Sums over a one-layer prompt that a fixed read token sees: Σ_j e^{s_j} V z_j and Σ_j e^{s_j} in every head."""
    ambient, sphere = _token_space(config)
    values = config.heads * min(config.d_v, ambient)
    if not own_token:
        return values  # only the ratios
    if config.heads == 1 and values == ambient and sphere and not config.mlp:
        return values  # the last norm sees N + Z·x, where x lies in the range of the values
    return values + config.heads


def _shift_invariance(config, m: int) -> int:
    """One layer, no own tokens: dimensions of the moves of a prompt that keep its values and shift all logits alike.

    Counted beyond the directions that no head reads, and for tokens on a sphere if the norm loses their length.
    """
    ambient, sphere = _token_space(config)
    keys, values = (config.heads * min(width, ambient) for width in (config.d_k, config.d_v))
    unread = max(0, ambient - sphere - values)  # per token, the directions that move keys only
    if config.positions == "rotary" and unread:
        raise ValueError("with rotary positions and without own tokens, D_eff is established only for heads * d_v >= d")
    if keys <= unread:
        return keys
    return unread if m == 1 else max(0, ambient - values - m * sphere)


def _fixed_query_span(config) -> int:
    """Dimensions spanned in the last layer by a read token that is the same in every query."""
    ambient, _ = _token_space(config)
    return min(ambient, 1 + (config.depth - 1) * (config.heads * min(config.d_v, ambient) + config.mlp))


# --- Theorem 4: accessible sequences -------------------------------------------------------------------------------


def accessible_slope(d: int, vocabulary: int, radius: float, eps: float) -> float:
    """d·ln(1 + 2·radius/eps)/ln(vocabulary): the slope of the number of strings that are told apart at eps.

    Only strings count for which prompts can be chosen that lead to them and are at least eps apart (in the vector that
    moves most), such as strings that a prompt leads to together with all prompts closer than eps/2.  Of these there
    are at most (1 + 2·radius/eps)^(d m) for m vectors of a ball of that radius in any norm on R^d, and each token of a
    random string is worth log2(vocabulary) bits.  The value of the bound of arXiv 2605.22223 on the slope of accessible
    length against prompt length.  Returns tokens per prompt vector.
    ValueError unless d >= 1 and vocabulary >= 2 are integers and radius and eps are positive and finite.
    """
    d, vocabulary = integers(d=d, vocabulary=vocabulary)
    if vocabulary < 2:
        raise ValueError("a vocabulary of one token carries no information: give vocabulary >= 2")
    for name, value in (("radius", radius), ("eps", eps)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number > 0, not {value}")
    return d * math.log1p(2 * radius / eps) / math.log(vocabulary)


def accessible_fraction(bits: float, n: int, vocabulary: int) -> float:
    """min(1, 2^bits / V^n): the largest fraction of all strings of n tokens that 2^bits prompts can yield (Theorem 4).

    `bits` is log2 of the number of allowed prompts, or of a packing number of their outputs.  ValueError if bits < 0
    or NaN, n < 1 or the vocabulary has fewer than two tokens.
    """
    n, vocabulary = _labels(bits, n, vocabulary)
    return 2.0 ** min(0.0, bits - n * math.log2(vocabulary))


def critical_length(bits: float, vocabulary: int) -> float:
    """(bits + 1)/log2 V, in tokens: beyond it fewer than half of all strings are accessible (Theorem 4).

    Linear in the bits, hence in the prompt length.  ValueError as in `accessible_fraction`.
    """
    _, vocabulary = _labels(bits, 1, vocabulary)
    return (bits + 1) / math.log2(vocabulary)


def source_ceiling(log2_probabilities: Float[np.ndarray, " K"], bits: float) -> float:
    """The mass of the 2^bits likeliest strings: a ceiling on the probability that a string of the source is accessible.

    `log2_probabilities` are those of *all* strings of the length in question (Theorem 4).  ValueError if they do not
    add up to one within 1e-9, or if bits < 0 or NaN.
    """
    _labels(bits, 1, 2)
    mass = np.sort(np.exp2(np.asarray(log2_probabilities, dtype=float)))[::-1]
    if not abs(mass.sum() - 1) < 1e-9:
        raise ValueError(f"the probabilities of all strings add up to one, not to {mass.sum():.6g}")
    return min(1.0, float(mass[: int(min(len(mass), 2.0**bits))].sum()))


def mimo_bits(singular_values: Float[np.ndarray, " k"], radius: float, eps: float) -> float:
    """Σ_i log2(1 + r σ_i/ε), in bits: the prompt as a linear channel with singular values σ_i.  A heuristic, no bound.

    A linear map of a box of half-side r has about that many outputs a distance ε apart.  ValueError unless radius and
    eps are positive and the singular values nonnegative.
    """
    sigma = np.asarray(singular_values, dtype=float)
    if not (radius > 0 and eps > 0 and np.all(sigma >= 0)):
        raise ValueError("radius and eps must be > 0 and singular values >= 0")
    return float(np.log2(1 + radius * sigma / eps).sum())


# --- shared checks -------------------------------------------------------------------------------------------------


def _log2_binomial(n: int, k: int) -> float:
    """A sum of logarithms, as n may have thousands of digits, where factorials fail; Stirling's series for large k."""
    k = min(k, n - k)
    if k <= 10**5:
        return math.fsum(math.log2(n - i) - math.log2(i + 1) for i in range(k))
    share = k / n
    others = (1 / share - 1) * math.log1p(-share) if share > 1e-300 else -1.0  # (n − k)/k · ln(1 − k/n)
    square_root = (math.log2(n) - math.log2(n - k) - math.log2(2 * math.pi * k)) / 2
    series = (1 / n - 1 / k - 1 / (n - k)) / 12  # the next term is below 1/(360 k³)
    return k * (math.log2(n) - math.log2(k) - others / math.log(2)) + square_root + series / math.log(2)


def _classes(q: int) -> int:
    return integers(2, **{"q, the number of classes,": q})[0]


def _labels(bits: float, n: int, q: int) -> tuple[int, int]:
    """(n, q) checked, and bits checked with them."""
    if not bits >= 0:
        raise ValueError(f"bits must be a number >= 0, not {bits}")
    return integers(n=n)[0], _classes(q)


# --- Theorem 4′: construction --------------------------------------------------------------------------------------


def construction_bits(d: int, d_k: int, m: int, levels: int = 2) -> float:
    """m (d − d_k) log2(levels), the bits that the construction writes into a prompt of m tokens of width d.

    d_k coordinates of each token are its key, each of the others holds one of `levels` values (Theorem 4′).
    ValueError if an argument is not an integer >= 1, or unless d_k < d.
    """
    d, d_k, m, levels = integers(d=d, d_k=d_k, m=m, levels=levels)
    return m * _value_coordinates(d, d_k) * math.log2(levels)


def fixed_key_bits(d: int, d_k: int, m: int, margin: float, amplitude: float = 1.0) -> float:
    """m (d − d_k) log2⌈2·amplitude/margin⌉, in bits: what values in [−amplitude, amplitude] can hold.

    With amplitude 1 it bounds Mem_γ of prompts whose keys are given and whose values are real numbers in [−1, 1], over
    any number of key, coordinate and threshold queries.  With amplitude 1/‖S⁻¹‖_∞ it is attained (Theorem 4′).
    `margin` is γ, the difference of the two logits.  ValueError unless 0 < margin and 0 < amplitude are finite.
    """
    for name, value in (("margin", margin), ("amplitude", amplitude)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number > 0, not {value}")
    return construction_bits(d, d_k, m, levels=math.ceil(2 * amplitude / margin))


def softmax_leak(cosines: Float[np.ndarray, "m m"], logit_range: float, *, own_token: bool = False) -> float:
    """ρ = 1 − the least attention that a token gets from the query for its key, as a fraction.

    Logits are B times the cosine between keys, so that the weight on the right token is
    1 / (1 + Σ_{j≠i} e^{−B(1−cos_ij)}), with another e^{−2B} in the sum if the query attends to itself (Theorem 4′).
    ValueError unless `cosines` is a square matrix with ones on the diagonal and B is a finite number >= 0.
    """
    return (excess := _leak_odds(_gram(cosines), _range(logit_range), own_token)) / (1 + excess)


def code_logit_range(cosines: Float[np.ndarray, "m m"], *, leak: float = 0.25, own_token: bool = False) -> float:
    """The least B >= 0 at which keys with these cosines leak at most `leak`: inverse of `softmax_leak` (Theorem 4′).

    At most `cosine_logit_range` of the largest cosine.  ValueError as there, or if two keys are equal.
    """
    cosines, odds = _gram(cosines), _odds(leak)
    if len(cosines) > 1 and (cosines - 2 * np.eye(len(cosines))).max() >= 1 - 1e-12:
        raise ValueError("two keys are equal: no logit range tells them apart")
    low, high = 0.0, 1.0
    while _leak_odds(cosines, high, own_token) > odds:
        high *= 2
    if _leak_odds(cosines, low, own_token) <= odds:
        return low
    while low < (middle := (low + high) / 2) < high:  # the upper end errs on the safe side
        low, high = (middle, high) if _leak_odds(cosines, middle, own_token) > odds else (low, middle)
    return high


def cosine_logit_range(m: int, cosine: float, *, leak: float = 0.25, own_token: bool = False) -> float:
    """ln((m − 1)(1 − leak)/leak) / (1 − cosine), at least 0: a logit range B that serves m keys (Theorem 4′).

    If no two keys have a larger cosine, at most `leak` of the attention goes to wrong tokens; leak = 1/4 gives the
    condition B(1 − c) >= ln(3(m − 1)).  Sharp where all cosines are equal.  A query that attends to itself counts as
    one more token.  ValueError unless m >= 1, −1 <= cosine < 1 and 0 < leak < 1.
    """
    (m,) = integers(m=m)
    if not -1 <= cosine < 1:
        raise ValueError(f"the largest cosine must lie in [-1, 1), not {cosine}")
    odds, others = _odds(leak), m - 1 + bool(own_token)
    return max(0.0, math.log(others / odds) / (1 - cosine)) if others else 0.0


def necessary_logit_range(m: int, amplitude: float) -> float:
    """½ ln((m − 1) g²/(1 − g²)), at least 0: a logit range B that no choice of m keys and m key queries can do without.

    If values in [−1, 1] behind given keys can make the m read-outs of a coordinate have any pattern of signs, each
    with modulus >= g = `amplitude`, and logits lie in [−B, B], then B is at least this (Theorem 4′).
    ValueError unless m >= 1 and 0 < amplitude < 1.
    """
    (m,) = integers(m=m)
    if not 0 < amplitude < 1:
        raise ValueError(f"amplitude must lie between 0 and 1, not {amplitude}")
    return max(0.0, math.log((m - 1) * amplitude**2 / (1 - amplitude**2)) / 2) if m > 1 else 0.0


def amplitude_ceiling(m: int, logit_range: float) -> float:
    """1/√(1 + (m − 1)e^{−2B}), inverse of `necessary_logit_range`: no m keys and key queries reach a larger amplitude.

    Readings of one coordinate that take every pattern of m signs, from values in [−1, 1] behind given keys and with
    logits in [−B, B], cannot all have moduli above it (Theorem 4′, part 5).  A number in (0, 1].
    ValueError unless m >= 1 and B is a finite number >= 0.
    """
    (m,) = integers(m=m)
    return 1 / math.sqrt(1 + (m - 1) * math.exp(-2 * _range(logit_range)))


def code_size_bits(d_k: int, cosine: float, *, signs: bool = False) -> float:
    """log2 of a number of keys with pairwise cosine <= `cosine` that exist in R^{d_k}, in bits.

    A code that cannot be enlarged covers the sphere with its caps, so it has at least ⌈1/σ⌉ words, where σ is the
    fraction of the sphere at a larger cosine than c from a point: ½ I_{1−c²}((d_k−1)/2, ½), at most
    ½ (1−c²)^{(d_k−1)/2} for c >= 0.  With `signs` the keys are vectors of ±1 (over √d_k), and σ is the probability that
    fewer than d_k(1−c)/2 fair coins fall on one side, at most e^{−c²d_k/2} (Theorem 4′, part 4).
    ValueError unless d_k >= 1 (with real keys 2) and 0 <= cosine < 1.
    """
    (d_k,) = integers(d_k=d_k)
    if not 0 <= cosine < 1:
        raise ValueError(f"the largest cosine must lie in [0, 1), not {cosine}")
    if signs:
        near = math.ceil(d_k * (1 - cosine) / 2 - 1e-9)  # words at distances 0 … near − 1 are too close
        ball = sum(math.comb(d_k, h) for h in range(near))
        return math.log2(-(-(2**d_k) // ball))
    if d_k == 1:
        raise ValueError("real keys need d_k >= 2: on a line there are only two unit vectors")
    cap = float(special.betainc((d_k - 1) / 2, 0.5, 1 - cosine**2)) / 2
    if cap > 1e-290:
        return math.log2(math.ceil(1 / cap - 1e-9))
    return 1 - (d_k - 1) / 2 * math.log2(1 - cosine**2)


def _value_coordinates(d: int, d_k: int) -> int:
    if d_k >= d:
        raise ValueError(f"keys of d_k = {d_k} coordinates leave none of d = {d} for values: give d_k < d")
    return d - d_k


def _gram(cosines: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    cosines = np.asarray(cosines, dtype=float)
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1] or not cosines.size:
        raise ValueError(f"cosines must be a square matrix, not of shape {list(cosines.shape)}")
    if not (np.allclose(np.diag(cosines), 1, rtol=0, atol=1e-6) and np.abs(cosines).max() <= 1 + 1e-6):
        raise ValueError("cosines must lie in [-1, 1], with ones on the diagonal: normalise the keys")
    return cosines


def _leak_odds(cosines: Float[np.ndarray, "m m"], logit_range: float, own_token: bool) -> float:
    """The largest ratio of wrong to right attention, max_i Σ_{j≠i} e^{−B(1−cos_ij)}."""
    apart = np.exp(-logit_range * (1 - np.minimum(cosines, 1)))
    return float((apart.sum(1) - np.diag(apart)).max()) + bool(own_token) * math.exp(-2 * logit_range)


def _odds(leak: float) -> float:
    if not 0 < leak < 1:
        raise ValueError(f"leak is a fraction between 0 and 1, not {leak}")
    return leak / (1 - leak)


def _range(logit_range: float) -> float:
    if not (math.isfinite(logit_range) and logit_range >= 0):
        raise ValueError(f"logit_range must be a finite number >= 0, not {logit_range}")
    return logit_range


# --- precision -----------------------------------------------------------------------------------------------------


def affine_patterns(functions: int, dimension: int) -> int:
    """Σ_{i <= D} C(k, i): the patterns ([h_1(P) > 0] … [h_k(P) > 0]) that k affine functions show on R^D, at most.

    Equal to the number of regions of k hyperplanes in general position (Theorem 3′).  Exact, an int.
    ValueError unless functions >= 0 and dimension >= 1 are integers.
    """
    (dimension,) = integers(dimension=dimension)
    (functions,) = integers(0, functions=functions)
    return sum(math.comb(functions, i) for i in range(min(dimension, functions) + 1))


def piecewise_linear_bits(n: int, coordinates: int, widths, q: int = 2) -> float:
    """log2 of the behaviours on n queries of a network that is piecewise linear in D real coordinates, at most; bits.

    `widths` lists, round by round, how many ReLUs one query passes that depend on the prompt; each is applied to an
    affine function of the coordinates and of earlier ReLUs.  With Φ = `affine_patterns` the smallest of log2 Φ_D(nT),
    where T = Σ_l W_l Π_{i<l} Φ_D(W_i) + C(q, 2) Π_i Φ_D(W_i), and log2[Φ_D(n C(q, 2)) Π_l Φ_D(n W_l)], and n log2 q:
    the first grows like D log2 n, the second is linear in D (Theorem 3′, part 1).
    ValueError if a count is not an integer >= 1 or q < 2.
    """
    n, D, q = *integers(n=n, coordinates=coordinates), _classes(q)
    widths = [integers(width=width)[0] for width in widths]
    comparisons = q * (q - 1) // 2
    pieces, functions = 1, 0  # of one query
    for width in widths:
        functions += pieces * width
        pieces *= affine_patterns(width, D)
    functions += pieces * comparisons
    jointly = sum(math.log2(affine_patterns(n * width, D)) for width in (*widths, comparisons))
    return min(math.log2(affine_patterns(n * functions, D)), jointly, n * math.log2(q))


def one_coordinate_bits(n: int, heads: int, mlp: int, tokens: int = 1) -> float:
    """log2(1 + n (W Z + 1) Z), at most n: behaviours of one softmax layer when one real number is tuned, in bits.

    `tokens` prompt tokens move along a line, one layer with H heads and no norm reads them, W = `mlp` ReLUs follow
    (0: none), q = 2.  Z = 2 (tokens + 1)^H − 2 bounds the zeros of an exponential polynomial (Theorem 3′, part 2).
    ValueError if a count is not an integer >= 1 (mlp: >= 0).
    """
    n, heads, tokens = integers(n=n, heads=heads, tokens=tokens)
    (mlp,) = integers(0, mlp=mlp)
    zeros = 2 * (tokens + 1) ** heads - 2
    return min(float(n), math.log2(1 + n * (mlp * zeros + 1) * zeros))


def universality_tokens(eps: float, inputs: int, d: int, bits_per_coordinate: int) -> int:
    """⌈K^inputs / (b d)⌉ with K = ⌈1/(2 eps)⌉ − 1: the least prompt length that can be universal.

    If for every function from [0, 1]^inputs to [−1/2, 1/2] that is 1-Lipschitz (maximum norm) some prompt of m tokens
    makes the network's output differ from it by at most eps everywhere, then m is at least this (Theorem 1 applied to
    K^inputs bumps).  Exact for the number that the float eps is.
    ValueError unless 0 < eps < 1/2 and the counts are integers >= 1.
    """
    inputs, d, b = integers(inputs=inputs, d=d, bits_per_coordinate=bits_per_coordinate)
    if not 0 < eps < 0.5:
        raise ValueError(f"eps must lie strictly between 0 and 1/2, not {eps}")
    cells = math.ceil(1 / (2 * Fraction(eps))) - 1
    return -(-(cells**inputs) // (b * d))


def float_bits(radius: float, *, exponent: int, fraction: int) -> float:
    """log2 of how many different numbers of a binary floating-point format lie in [−radius, radius], in bits.

    IEEE 754 with `exponent` and `fraction` bits beside the sign (float16: 5, 10; bfloat16: 8, 7; float32: 8, 23), with
    subnormal numbers, without infinities; the two zeros count once.  The bits a coordinate of bounded size can hold in
    Theorem 1.  ValueError unless radius >= 0 and the widths are integers >= 1, exponent <= 11 and fraction <= 52.
    """
    exponent, fraction = integers(exponent=exponent, fraction=fraction)
    if exponent > 11 or fraction > 52:
        raise ValueError("formats wider than double precision are not counted")
    if not radius >= 0:
        raise ValueError(f"radius must be a number >= 0, not {radius}")
    bias = 2 ** (exponent - 1) - 1
    largest = (2**exponent - 1) * 2**fraction - 1  # numbers are counted upwards from zero
    if radius == math.inf:
        return math.log2(2 * largest + 1)
    mantissa, power = math.frexp(radius)  # radius = mantissa·2^power, 1/2 <= mantissa < 1
    if radius == 0 or power - 1 < 1 - bias:  # zero and the subnormal numbers
        index = math.floor(math.ldexp(radius, bias - 1 + fraction))
    else:
        index = (power - 1 + bias) * 2**fraction + math.floor((2 * mantissa - 1) * 2**fraction)
    return math.log2(2 * min(index, largest) + 1)


# --- Theorem 5: exact compression ----------------------------------------------------------------------------------


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


# --- Theorem 6: moments --------------------------------------------------------------------------------------------


def moment_count(d: int, k: int) -> int:
    """C(d + k + 1, k + 1), the monomials of degree at most k + 1 in d variables.

    So many weighted tokens stand for a prompt of any length in *all* heads at once, up to `moment_error`, if heads read
    at most d dimensions of a token and positions are not rotary (Theorem 6, part 3).
    ValueError unless d >= 1 and k >= 0 are integers.
    """
    return math.comb(*_degree(d, k, 1))


def head_moment_count(k: int, d_k: int, d_v: int, heads: int = 1) -> int:
    """H [C(d_k + k, k)(1 + d_v) − 1] + 1, the numbers that H heads read of a prompt up to degree k in its keys.

    These are the moments of u^α and u^α v_i, |α| <= k, of keys u (turned, if positions are rotary) and values v, and
    the constant once.  So many weighted tokens stand for a prompt of any length (Theorem 6, part 3).
    ValueError unless d_k, d_v, heads >= 1 and k >= 0 are integers.
    """
    d_v, heads = integers(d_v=d_v, heads=heads)
    return heads * (math.comb(*_degree(d_k, k, 0)) * (1 + d_v) - 1) + 1


def softmax_remainder(k: int, B: float) -> float:
    """ρ_k = min_{deg T <= k} max_{|s| <= B} |T(s)e^{−s} − 1|, how well a polynomial of degree k replaces e^s.

    By Remez exchange in decimal arithmetic with as many digits as it needs; checked from below by the alternation
    theorem, so that the result is right to rounding (Theorem 6, part 1; ρ_0 = tanh B, and about 2 J_{k+1}(B)).
    ValueError unless 0 <= k <= 40 is an integer and 0 <= B <= 40.
    """
    return _alternation(*_remainder_arguments(k, B))[2]


def softmax_alternation(k: int, B: float) -> tuple[Float[np.ndarray, " k+2"], Float[np.ndarray, " k+2"]]:
    """Points s_0 < … < s_{k+1} of [−B, B] and weights c_j > 0 with sum 1 that prove ρ_k from below.

    Σ_j (−1)^j c_j e^{−s_j} T(s_j) = 0 for every T of degree at most k, hence max_j |T(s_j)e^{−s_j} − 1| >=
    |Σ_j (−1)^j c_j| = ρ_k for every such T (Theorem 6, part 1).  ValueError as `softmax_remainder`, and for B = 0.
    """
    k, B = _remainder_arguments(k, B)
    if B == 0:
        raise ValueError("B must be > 0: there is nothing to approximate on a single point")
    points, weights, _ = _alternation(k, B)
    return np.array(points), np.array(weights)


def softmax_remainder_bound(k: int, B: float) -> float:
    """min{tanh B, 2 Σ_{n>k} |J_n(B)| + 2 e^B Σ_{n,j>k} |J_j(B)| B^{j+n}/(j+n)!}, a proved bound of ρ_k.

    J_n are Bessel functions; the double sum is tiny once k > B (Theorem 6, part 1).  ValueError as `softmax_remainder`.
    """
    k, B = _remainder_arguments(k, B)
    return min(math.tanh(B), sum(_bessel_terms(k, B))) * (1 + 1e-12)  # the factor covers rounding


def softmax_remainder_floor(k: int, B: float) -> float:
    """2 J_{k+1}(B) − 2 Σ_{n>k+1} |J_n(B)| − 2 e^B Σ_{n,j>k} |J_j(B)| B^{j+n}/(j+n)!, at least 0: at most ρ_k.

    For k + 1 >= B, so that with `softmax_remainder_bound` ρ_k is 2 J_{k+1}(B) up to smaller terms (Theorem 6, part 1).
    ValueError as `softmax_remainder`, and if k + 1 < B.
    """
    k, B = _remainder_arguments(k, B)
    if k + 1 < B:
        raise ValueError(f"the bound from below needs k + 1 >= B, not k = {k} and B = {B}")
    first, rest, folded = _bessel_terms(k, B)
    return max(0.0, first - rest - folded) * (1 - 1e-12)


def moment_error(k: int, B: float, scale: float) -> float:
    """2 · scale · ρ_k(B), the most that prompts with equal moments differ by in the attention output of any query.

    `scale` is Σ_h max ‖W_O^h V_h z‖ over tokens, at most R Σ_h ‖W_O^h V_h‖ (one head: ‖V‖R), and |logits| <= B.  Never
    more than 2 · scale, and attained where keys and values are independent (Theorem 6, part 2).
    ValueError as `softmax_remainder`, or unless scale >= 0 is finite.
    """
    return 2 * _nonnegative("scale", scale) * softmax_remainder(k, B)


def moment_bits(
    *,
    k: int | None,
    d_k: int,
    d_v: int,
    heads: int,
    B: float,
    scale: float,
    lipschitz: float,
    eps: float,
    width: int | None = None,
) -> float:
    """J log2(1 + 2κe^{2B} SΛ_g/(ε − 2SΛ_gτ)), in bits: Mem_{2ε} of one attention layer for prompts of any length.

    J = H[C(d_k+k, k)(1+d_v) − 1], or C(width+k+1, k+1) − 1 if that is smaller and `width` (the dimension of a token
    that attention reads; not with rotary positions) is given; S = scale, Λ_g = lipschitz, ρ = ρ_k(B),
    κ = (1+ρ)/(1−ρ), τ = tanh(½ artanh ρ) (Theorem 6, part 4).  S bounds the attention output as in `moment_error`, Λ_g
    is the Lipschitz constant from it to the logits, up to a common shift.  With ε/2 in place of ε it bounds the
    different tables of answers, when only answers with margin 2ε count.  `k` None: the best k.
    ValueError if 2SΛ_gτ >= ε (a larger k is needed; the sentence says which), for bad counts, or unless eps > 0.
    """
    scale, lipschitz = _nonnegative("scale", scale), _nonnegative("lipschitz", lipschitz)
    if not _nonnegative("eps", eps) > 0:
        raise ValueError(f"eps must be a finite number > 0, not {eps!r}")
    swing, (_, B) = scale * lipschitz, _remainder_arguments(0, B)

    def bits(degree: int) -> float:
        J = head_moment_count(degree, d_k, d_v, heads) - 1
        if width is not None:
            J = min(J, moment_count(width, degree) - 1)
        rho = softmax_remainder(degree, B)
        left = eps - 2 * swing * rho / (1 + math.sqrt(1 - rho * rho))
        if left <= 0 or rho >= 1:
            return math.inf
        return J * math.log1p(2 * (1 + rho) / (1 - rho) * math.exp(2 * B) * swing / left) / math.log(2)

    if k is not None and math.isfinite(found := bits(k)):
        return found
    best, least = math.inf, None
    # ρ_k falls in k: a degree that its bound from below rules out (τ >= ρ/2) rules out all before, without their ρ_k
    covered = range(max(0, math.ceil(B) - 1), _MOST_REMAINDER + 1)
    ruled_out = (degree for degree in covered if swing * softmax_remainder_floor(degree, B) >= eps)
    for degree in range(max(ruled_out, default=-1) + 1, _MOST_REMAINDER + 1):
        if (found := bits(degree)) < math.inf and least is None:
            least = degree
        best = min(best, found)
        if found > 2 * best < math.inf:  # J grows, and what it multiplies tends to a limit
            break
    if k is None and least is not None:
        return best
    advice = f"take k >= {least}" if least is not None else f"no k <= {_MOST_REMAINDER} will do"
    raise ValueError(f"ρ_k is too large for eps = {eps}{'' if k is None else f' at k = {k}'}: {advice}")


def readings_volume_bits(B: float, eps: float, *, most: int = 60) -> float:
    """max_{M <= most} log2(|det S|/(2ε)^M), in bits: prompts that differ by more than 2ε at some query, from below.

    One head with d_k = d_v = 1 and logits Bxu reads prompts of M tokens, with evenly spaced keys u in [−1, 1] and any
    values v in [−1, 1].  At M queries x (Chebyshev points) the outputs are Sv, S_ij = e^{Bx_iu_j}/Σ_l e^{Bx_iu_l}: they
    fill the volume 2^M|det S|, which cubes of half side 2ε around a largest set of prompts with pairwise differences
    above 2ε cover.  The determinant is a product (Vandermonde).  Never above `moment_bits` with d_k = d_v = heads =
    scale = lipschitz = 1, and 0 where it would be negative (Theorem 6, part 4).
    ValueError unless B >= 0 and eps > 0 are finite and most is an integer >= 1.
    """
    B = _nonnegative("B", B)
    if not _nonnegative("eps", eps) > 0:
        raise ValueError(f"eps must be a finite number > 0, not {eps!r}")
    best = max(0.0, -math.log2(2 * eps))  # one token
    for M in range(2, integers(most=most)[0] + 1):
        u, x = np.linspace(-1, 1, M), -np.cos(np.pi * np.arange(M) / (M - 1))
        first, second = np.triu_indices(M, 1)
        step = 2 * B / (M - 1)  # row i of e^{Bxu} is e^{−Bx_i} times the powers of t_i = e^{step·x_i}
        with np.errstate(divide="ignore"):
            log_det = (step * x[first] + np.log(np.expm1(step * (x[second] - x[first])))).sum()
        log_det -= (B * x + special.logsumexp(B * np.outer(x, u), axis=1)).sum()
        best = max(best, float(log_det) / math.log(2) - M * math.log2(2 * eps))
    return best


_MOST_REMAINDER = 40  # of k and of B


def _degree(d: int, k: int, more: int) -> tuple[int, int]:
    """(d + k + more, k + more), the arguments of a binomial coefficient."""
    (d,) = integers(d=d)
    (k,) = integers(0, k=k)
    return d + k + more, k + more


def _remainder_arguments(k: int, B: float) -> tuple[int, float]:
    _degree(1, k, 0)
    B = _nonnegative("B", B)
    if k > _MOST_REMAINDER or B > _MOST_REMAINDER:
        raise ValueError(f"ρ_k is computed for k and B up to {_MOST_REMAINDER}, not for k = {k}, B = {B}")
    return int(k), B


def _bessel_terms(k: int, B: float) -> tuple[float, float, float]:
    """2|J_{k+1}(B)|, 2 Σ_{n>k+1} |J_n(B)| and 2e^B Σ_{n,j>k} |J_j(B)| B^{j+n}/(j+n)!."""
    orders = np.arange(k + 1, k + 150)  # beyond them terms are below 1e-60 of the first
    bessel = np.minimum(
        np.where((exact := np.abs(special.jv(orders, B))) > 1e-290, exact, np.inf),  # below, rounding to zero
        np.exp(special.xlogy(orders, B / 2) - special.gammaln(orders + 1)),  # |J_n(B)| <= (B/2)^n/n!
    )
    total = np.add.outer(orders, orders)
    powers = np.exp(special.xlogy(total, B) - special.gammaln(total + 1))
    return 2 * bessel[0], 2 * bessel[1:].sum(), 2 * math.exp(B) * float((bessel[:, None] * powers).sum())


@functools.lru_cache(maxsize=1024)
def _alternation(k: int, B: float) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Alternation points and weights of the best approximation and ρ_k, by the Remez exchange.

    Everything is a polynomial in t = s/B in Newton's form.  The error e(t) = T(t)e^{−Bt} − 1 of each step alternates on
    k + 2 points, and e' = (T' − BT)e^{−Bt} has at most k zeros: so there is one zero of e between neighbouring points
    and one extremum between neighbouring zeros, and the ends of the interval belong to the next points.
    """
    if B == 0:
        return (0.0,), (1.0,), 0.0
    size = (k + 1) * math.log10(B / 2) - math.lgamma(k + 2) / math.log(10)  # of ρ_k
    with decimal.localcontext() as context:
        context.prec = 50 + k + math.ceil(B) + math.ceil(max(0.0, -size))
        context.Emin = decimal.MIN_EMIN
        b, one = decimal.Decimal(B), decimal.Decimal(1)
        angles = [math.pi * j / (k + 1) for j in range(k + 2)]
        if k + 1 > B:  # where the leading term J_{k+1}(B) cos((k+1)θ − B sin θ) alternates
            for _ in range(100):
                angles = [(math.pi * j + B * math.sin(a)) / (k + 1) for j, a in enumerate(angles)]
        points = [-one, *(decimal.Decimal(-math.cos(a)) for a in angles[1:-1]), one]
        for _ in range(100):
            weights, level, coefficients = _levelled(points, b)

            def error(t, nodes=points, c=coefficients):
                return _newton_form(nodes, c, t)[0] * (-b * t).exp() - 1

            def slope(t, nodes=points, c=coefficients):
                value, derivative = _newton_form(nodes, c, t)
                return derivative - b * value

            zeros = [_bisect(error, low, high, 12) for low, high in itertools.pairwise(points)]
            inner = [_bisect(slope, low, high, 34) for low, high in itertools.pairwise(zeros)]
            points = [-one, *inner, one]
            highest = max(abs(error(t)) for t in points)
            if highest - level <= level * decimal.Decimal("1e-17"):
                break
        else:
            raise ValueError(f"the Remez exchange did not settle for k = {k}, B = {B}")
        weights = _levelled(points, b)[0]
        # no bound may be rounded to zero
        return tuple(float(b * t) for t in points), tuple(map(float, weights)), max(float(highest), math.ulp(0.0))


def _levelled(points, b):
    """(c_j, E, Newton coefficients): the polynomial whose relative error at the k + 2 points is ±E, alternating.

    c_j > 0 with sum 1 such that Σ(−1)^j c_j e^{−b t_j} annihilates polynomials of degree k; then E = |Σ(−1)^j c_j|.
    """
    raised = [(b * t).exp() for t in points]
    spread = [abs(math.prod(t - other for other in points if other != t)) for t in points]
    weights = [e / product for e, product in zip(raised, spread, strict=True)]
    total = sum(weights)
    weights = [w / total for w in weights]
    signed = sum(-w if j % 2 else w for j, w in enumerate(weights))
    c = [e * (1 + (signed if j % 2 else -signed)) for j, e in enumerate(raised)][:-1]
    for order in range(1, len(c)):
        for i in range(len(c) - 1, order - 1, -1):
            c[i] = (c[i] - c[i - 1]) / (points[i] - points[i - order])
    return weights, abs(signed), c


def _newton_form(nodes, coefficients, t):
    """Value and derivative at t of Σ_i c_i Π_{l<i} (t − t_l)."""
    value = derivative = decimal.Decimal(0)
    for c, node in zip(reversed(coefficients), reversed(nodes[: len(coefficients)]), strict=True):
        derivative = derivative * (t - node) + value
        value = value * (t - node) + c
    return value, derivative


def _bisect(function, low, high, steps: int):
    """Where `function` changes its sign between low and high, to the fraction 2^−steps of the interval."""
    rises = function(high) > 0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if (function(middle) > 0) == rises else (middle, high)
    return (low + high) / 2


# --- Theorem 7: mean field -----------------------------------------------------------------------------------------


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
    A, V = _matrix("A", A), _matrix("V", V)
    if A.shape[0] != A.shape[1] or V.shape[1] != A.shape[0]:
        raise ValueError(f"A must be square and V have as many columns, not {list(A.shape)} and {list(V.shape)}")
    keys = _nonnegative("radius", radius)
    query = keys if query_radius is None else _nonnegative("query_radius", query_radius)
    a, v = _spectral(A), _spectral(V)
    if v == 0:
        return 0.0
    if tokens is None:
        return v * _measure_slope(a, keys, query, 1.0, 0.0)
    (m,) = integers(tokens=tokens)
    B = a * keys * query
    if m == 1 or math.isinf(B):  # one token has all the attention
        return v if m == 1 else math.inf
    return v * m * _token_share(m, B, line=A.shape[0] == 1)


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
    layers, reading, slope = _measure_layers(config, weights, radius, query_radius, least_norm, differences)
    k, x = 1.0, float(moving_query)
    for a, M, keys, query, factor in layers:
        by_measure = _over_heads([_measure_slope(each, keys, keys, 1, 0) for each in a], M)
        by_query = _over_heads([each * keys**2 for each in a], M)
        x = factor * (x + slope * _over_heads([_measure_slope(each, keys, query, k, x) for each in a], M))
        k = factor * (k + slope * k * (by_measure + by_query))
    constant = reading * slope * x
    return math.inf if math.isnan(constant) else constant


def histogram_bits(cells: float, distance: float) -> float:
    """log2 of Σ_k C(n, k)² (1 + 2/τ)^k / C(2n, n), n = cells − 1: histograms that are far apart, in bits.

    No more probability vectors with so many entries have pairwise total variation distances above τ = `distance`: balls
    of that distance are copies of the difference body of the simplex, and volumes are compared (Theorem 7, part 2).
    Beyond 2000 cells its upper bound 2n log2((1 + √(1 + 2/τ))/2) + log2(2√n).  `cells` may be infinite.
    ValueError unless cells >= 1 and 0 < distance.
    """
    cells, distance = (_nonnegative(*each, finite=False) for each in (("cells", cells), ("distance", distance)))
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
    ratio = _nonnegative("radius", radius) * _nonnegative("lipschitz", lipschitz, finite=False)
    if not _nonnegative("eps", eps) > 0:
        raise ValueError(f"eps must be a finite number > 0, not {eps!r}")
    ratio = ratio / eps if radius else 0.0
    if d * math.log10(1 + 2 * ratio) > 300:
        return math.inf
    cells = max(1, math.ceil(ratio)) if d == 1 else math.floor((1 + 2 * ratio) ** d * (1 + 1e-12))
    return _log2_binomial(cells + m - 1, m)


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
    if not config.causal:
        raise ValueError("blocks are defined for causal networks: others see the order of their prompt not at all")
    layers, reading, slope = _measure_layers(config, weights, radius, query_radius, least_norm, differences)
    e, x = np.zeros(config.depth + 1), np.zeros(config.depth + 1)  # coefficients of the means of means, of a token and
    for a, M, keys, _, factor in layers:  # of the token that reads
        kappa = _over_heads([_measure_slope(each, keys, keys, 1, 0) for each in a], M)
        added = _over_heads([math.exp(2 * B) if (B := each * keys**2) < 300 else math.inf for each in a], M)
        mean = np.concatenate([[0.0], e[:-1]])  # one mean more
        with np.errstate(over="ignore", invalid="ignore"):
            x = factor * (x + slope * kappa * mean)
            e = factor * (e + slope * kappa * mean)
            e[0] += factor * added * 2 * keys
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


def _measure_slope(a: float, keys: float, query: float, measure_moves: float, query_moves: float) -> float:
    """One head over ‖V‖, when the measure of its keys moves by `measure_moves` in W₁ and the query by `query_moves`.

    The largest of k e^B (cosh B + y sinh B)(1 + B(1 + y)) + ξ a r²(1 − y²) over 0 <= y <= 1, where y is the length of
    the mean under the softmax, over r (Lemma 7a); at y = 1, k e^{2B}(1 + 2B), if the query moves no faster.
    """
    B = a * keys * query
    if B > 300:
        return math.inf if measure_moves > 0 else query_moves * a * keys**2
    k, own = measure_moves, query_moves * a * keys**2
    cosh, sinh = (math.exp(2 * B) + 1) / 2, math.expm1(2 * B) / 2
    constant, linear, square = k * cosh * (1 + B) + own, k * (sinh * (1 + B) + cosh * B), k * sinh * B - own
    if linear < -2 * square:  # the top of the parabola lies inside
        return constant - linear**2 / (4 * square)
    return k * (cosh + sinh) * (1 + 2 * B)


def _measure_layers(
    config, weights, radius: float, query_radius: float, least_norm: float, differences: bool, rotary: bool = False
):
    """By layer (‖A_h‖, M_h, radii of keys and of the reading token, 1 + Lip(token-wise)); ‖reading‖; slope of norms."""
    c = config
    if (c.positions == "rotary" and not rotary) or c.context_scaling != "none":
        raise ValueError("rotary positions and logits scaled with the context are not maps of the measure of tokens")
    W = _weights(c, weights)
    p, x = _nonnegative("radius", radius), _nonnegative("query_radius", query_radius)
    slope = 1.0
    if c.norm != "none":
        square = c.norm_eps + _nonnegative("least_norm", least_norm) ** 2 / c.d
        slope = 1 / math.sqrt(square) if square else math.inf
    if c.positions == "learned":
        longest = float(np.linalg.norm(W["position"], axis=1).max())
        p, x = p + longest, x + longest
    layers = []
    for layer in range(c.depth):
        w = {name.split(".", 2)[2]: array for name, array in W.items() if name.startswith(f"blocks.{layer}.")}
        N = _norm_matrix(c, w.get("norm1.gain"))
        heads = [
            tuple(np.split(w[name], c.heads, axis)[h] for name, axis in _HEAD_AXES.items()) for h in range(c.heads)
        ]
        scale = c.inverse_temperature / math.sqrt(c.d_k)
        a = [scale * _bilinear(N @ q, N @ k, rotary=c.positions == "rotary") for q, k, _, _ in heads]
        M = [(N @ v @ o).T for _, _, v, o in heads]
        keys, query = (max(p, x), x) if c.norm == "none" else (math.sqrt(c.d),) * 2
        written, factor = _over_heads([1.0] * c.heads, M) * keys, 1.0
        p, x = p + written, x + written
        if c.mlp:
            up, down = (_norm_matrix(c, w.get("norm2.gain")) @ w["up"]).T, w["down"].T
            factor = 1 + slope * _token_wise_slope(c.activation, up, down)
            bias = (_norm(down @ w["up_bias"]) + _spectral(down) * _norm(w["up_bias"])) / 2 + _norm(w["down_bias"])
            grown = 1 + (_spectral(down @ up) + _spectral(down) * _spectral(up)) / 2
            p, x = p * grown + bias, x * grown + bias
        layers.append((a, M, keys, query, factor))
    read = (_norm_matrix(c, W.get("norm.gain")) @ W["unembedding"]).T  # [q, d]
    if differences:
        reading = float(np.linalg.norm(read[:, None] - read[None], axis=-1).max()) / 2
    else:
        reading = float(np.linalg.norm(read, axis=-1).max())
    return layers, reading, slope


def _mean_field(d, radius, lipschitz, wasserstein, eps) -> tuple[int, float, float, float, float]:
    (d,) = integers(d=d)
    if not _nonnegative("eps", eps) > 0:
        raise ValueError(f"eps must be a finite number > 0, not {eps!r}")
    constants = (_nonnegative(name, value, finite=False) for name, value in
                 (("lipschitz", lipschitz), ("wasserstein", wasserstein)))  # fmt: skip
    return d, _nonnegative("radius", radius), *constants, float(eps)


# --- Breaking hypotheses -------------------------------------------------------------------------------------------


def pairwise_gap(eps: float) -> float:
    """Δ = ln((1 + ε)/(1 − ε)), in nats: how much louder a fact must be than any other one at its own query.

    Values lie in [−1, 1] and a fact is recalled with margin 2ε (Proposition 9a).  ValueError unless 0 < ε < 1.
    """
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie strictly between 0 and 1, not {eps!r}")
    return math.log1p(eps) - math.log1p(-eps)


def addressed_facts(d_k: int, B: float, eps: float) -> float:
    """(1 + √(2B/Δ))^{d_k}: how many facts one head with keys of d_k coordinates can address, whatever the context.

    B is the product of the largest lengths of queries and keys, so that softmax logits lie in [−B, B]; keys do not
    depend on labels, values lie in [−1, 1] and move with their own label only; all 2^M labelings of the M facts are
    recalled with margin 2ε; Δ = `pairwise_gap`(ε).  Any number of tokens, of any multiplicity (Proposition 9a, part 1);
    inf above e^700.  ValueError unless d_k >= 1, B >= 0 is finite and 0 < ε < 1.
    """
    (d_k,) = integers(d_k=d_k)
    base = 1 + math.sqrt(2 * _range(B) / pairwise_gap(eps))
    return base**d_k if d_k * math.log(base) < 700 else math.inf


def several_heads_facts(d_k: int, B: Sequence[float], eps: float) -> float:
    """Σ_h (1 + √(2B_h/Δ))^{d_k}: how many facts several heads can address together, whatever the context.

    B holds, for each head, the product of the largest lengths of its queries and keys.  The reading is the sum of what
    the heads read; a fact's label moves it towards itself in every head, the values of head h lie in [−β_h, β_h] with
    Σ_h β_h = 1, and the rest is as in `addressed_facts` (Proposition 9a, part 3).  ValueError as there, or without a
    head.
    """
    if not len(B):
        raise ValueError("give the largest softmax logit of at least one head")
    return sum(addressed_facts(d_k, each, eps) for each in B)


def addressing_logit_range(d_k: int, facts: int, eps: float) -> float:
    """½ Δ (M^{1/d_k} − 1)², the least B at which `addressed_facts` is M (Proposition 9a, part 1).

    ValueError unless d_k >= 1, facts >= 1 and 0 < ε < 1.
    """
    d_k, M = integers(d_k=d_k, facts=facts)
    return pairwise_gap(eps) / 2 * (M ** (1 / d_k) - 1) ** 2


def sphere_facts(d_k: int, B: float, eps: float) -> float:
    """1/σ(φ/2) with cos φ = 1 − Δ/B: how many facts fit if each is asked with its own key and keys are unit vectors.

    Logits are B times cosines, and B(1 − cos) > Δ between any two keys; σ(ψ) = ½ I_{sin²ψ}((d_k−1)/2, ½) is the
    fraction of the sphere within the angle ψ of a point.  1 if 2B <= Δ; for d_k = 1 there are two keys.  Grows like
    B^{(d_k−1)/2} (Proposition 9a, part 2).  ValueError as in `addressed_facts`.
    """
    (d_k,) = integers(d_k=d_k)
    gap = pairwise_gap(eps)
    if 2 * _range(B) <= gap:
        return 1.0
    if d_k == 1:
        return 2.0
    share = float(special.betainc((d_k - 1) / 2, 0.5, gap / (2 * B)))
    return 2 / share if share > 1e-300 else math.inf


def circle_facts(B: float, eps: float) -> int:
    """The largest M for which M evenly spaced keys on a circle hold every labeling with margin 2ε, at this B; exact.

    That is Σ_{j=1}^{M−1} e^{−B(1−cos(2πj/M))} < (1−ε)/(1+ε): the worst labeling opposes one fact with all others.
    Grows like √B (Proposition 9b).  ValueError unless B >= 0 is finite and 0 < ε < 1.
    """
    odds, B = math.exp(-pairwise_gap(eps)), _range(B)

    def holds(M: int) -> bool:
        near = min(M // 2, 1 + math.ceil(M * math.sqrt(20 / max(B, 1e-300)))) if B else M // 2
        j = np.arange(1, min(near, M // 2) + 1)  # beyond, at sin² >= 80/B, a term is at most e^−160
        apart = np.exp(-2 * B * np.sin(math.pi * j / M) ** 2)
        return 2 * apart.sum() - (apart[-1] if len(j) and 2 * j[-1] == M else 0.0) < odds

    low, high = 1, 2
    while holds(high):  # more keys lie closer together: the sum grows with M
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def shell_logit_range(d_k: int, separation: float, eps: float) -> float:
    """A logit range B that serves *any* number of unit keys at distances >= s = `separation`, with margin 2ε.

    B = 2b/s², where b solves Σ_{t>=2} ((2t+1)^{d_k} − 1)(e^{−b(t−1)²} − e^{−bt²}) = (1−ε)/(1+ε): a ball of radius ts
    holds at most (2t+1)^{d_k} points at distances >= s (Proposition 9c).  Without the logarithm of the number of keys,
    which `cosine_logit_range` has.  ValueError unless d_k >= 1, 0 < separation <= 2 and 0 < ε < 1.
    """
    (d_k,) = integers(d_k=d_k)
    if not 0 < separation <= 2:
        raise ValueError(f"separation is a distance of unit vectors, above 0 and at most 2, not {separation!r}")
    odds, t = math.exp(-pairwise_gap(eps)), np.arange(2, 200 + 10 * d_k, dtype=float)
    inside = d_k * np.log(2 * t + 1) + np.log1p(-((2 * t + 1) ** -float(d_k)))  # logarithms: the powers overflow

    def leaked(b: float) -> float:
        with np.errstate(over="ignore"):  # inf is far above the odds
            return float((np.exp(inside - b * (t - 1) ** 2) * -np.expm1(-b * (2 * t - 1))).sum())

    low, high = 0.0, 0.1
    while leaked(high) > odds:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if leaked(middle) > odds else (low, middle)
    return 2 * high / separation**2


def expected_leak_odds(n: int, d_k: int, B: float) -> float:
    """(n − 1) e^{−B} ₀F₁(; d_k/2; B²/4): mean of Σ_{j≠i} e^{−B(1−cos_ij)} over independent uniform unit keys.

    At most (n − 1) e^{−B + B²/(2d_k)}.  By Markov's inequality a fact is then recalled with margin 2ε, whatever the
    labels, with probability at least 1 − odds·(1+ε)/(1−ε) (Proposition 9b).
    ValueError unless n >= 1, d_k >= 2 and B >= 0 is finite.
    """
    n, d_k = integers(n=n, d_k=d_k)
    if d_k < 2:
        raise ValueError("uniform keys need d_k >= 2")
    B, order = _range(B), d_k / 2 - 1
    if n == 1 or B == 0:
        return float(n - 1)
    # ₀F₁(; ν+1; B²/4) = Γ(ν+1) (2/B)^ν I_ν(B), with the exponential factor taken out
    scaled = float(special.ive(order, B))
    if not math.isfinite(scaled):  # scipy gives NaN for B of 10^10 or so; there this is exact to rounding
        scaled = 1 / math.sqrt(2 * math.pi) / math.sqrt(B)
    if scaled > 0:
        return (n - 1) * math.exp(math.lgamma(order + 1) + order * math.log(2 / B) + math.log(scaled))
    return (n - 1) * math.exp(-B) * float(special.hyp0f1(order + 1, B * B / 4))


def circle_gain_log2(n: int, B: float) -> float:
    """log2 of the least eigenvalue of the attention matrix of n evenly spaced keys on a circle, <= 0.

    The matrix is a circulant with eigenvalues Σ_{k∈Z} I_{l+kn}(B) / Σ_{k∈Z} I_{kn}(B), l = 0 … n − 1, all positive;
    the least has l = ⌊n/2⌋ and is about 2 (eB/n)^{n/2} for even n.  Values that make every label readable shrink
    the margin by about this factor (Proposition 9f).  ValueError unless n >= 1 and 0 < B <= 10^9.
    """
    (n,) = integers(n=n)
    if not 0 < _range(B) <= 1e9:
        raise ValueError(f"B must be > 0 and at most 1e9, not {B!r}")

    def log_sum(first: int) -> float:
        reach = math.ceil((60 * math.sqrt(B) + 200) / n) + 1  # I_j(B)/I_0(B) is about e^{−j²/2B} or less
        order = np.abs(first + n * np.arange(-reach, reach + 1)).astype(float)
        scaled = special.ive(order, B)  # e^{−B} I
        if scaled.max() > 1e-250:
            return B + math.log(scaled.sum())
        order = order[order <= 2 * order.min() + 1]  # log I_j is concave in j: others are below 1e−500
        log_bessel = order * math.log(B / 2) - special.gammaln(order + 1) + _log_hyp0f1(order + 1, 2 * math.log(B / 2))
        return float(special.logsumexp(log_bessel))

    return (log_sum(n // 2) - log_sum(0)) / math.log(2)


def _log_hyp0f1(c: Float[np.ndarray, " k"], log_x: float) -> Float[np.ndarray, " k"]:
    """ln ₀F₁(; c; x) for c >= 1 and x > 0, given by its logarithm, by the series of positive terms."""
    j = np.arange(0, 60 + math.ceil(6 * math.exp(log_x / 2)))[:, None]  # beyond √x terms fall faster than (√x/j)^2j
    terms = j * log_x - special.gammaln(j + 1) - special.gammaln(c + j) + special.gammaln(c)
    return special.logsumexp(terms, axis=0)


# --- Theorem 8: degradation with context ---------------------------------------------------------------------------


def dilution(n: int, logit_range: float) -> float:
    """1/(1 + (n − 1)e^{−Δ}), the largest attention that one of n tokens can get, as a fraction.

    For softmax logits in an interval of length Δ = `logit_range`; attained by one token at its top and all others at
    its bottom (Theorem 8, part 1).  ValueError unless n is an integer >= 1 and Δ is finite and >= 0.
    """
    (n,) = integers(n=n)
    return 1 / (1 + (n - 1) * math.exp(-_range(logit_range)))


def dilution_length(logit_range: float, spread: float, eps: float) -> float:
    """1 + e^Δ (D/(4ε) − 1), at least 1: in contexts of at least so many facts, recall with margin 2ε is chance.

    One token holds one fact, and D = `spread` bounds what a fact's token adds to the difference of two outputs more
    than another token would, attention being equal (Theorem 8, part 2).  A number of facts.
    ValueError unless Δ and D are finite and >= 0 and eps is finite and > 0.
    """
    return max(1.0, 1 + math.exp(_range(logit_range)) * (_diluted(spread, eps) - 1))


def diluted_recall_ceiling(n: int, q: int, *, mean: float, square: float, spread: float, eps: float) -> float:
    """1/q + (1 − 1/q) exp(−θ²(n − 1)μ²/(2 m₂)), with θ = 1 − (D/(4ε) − 1)/((n − 1)μ): recall with margin 2ε.

    The n − 1 other facts are independent and alike; of each, e^{s − s*} has the mean μ and the mean square m₂, where s*
    is the largest softmax logit that the fact in question can have.  D as in `dilution_length`; 1/q if D <= 4ε, 1 if
    θ < 0 (Theorem 8, part 2).  ValueError unless 0 < μ² <= m₂, n >= 1, q >= 2, D >= 0 and eps > 0.
    """
    n, q = *integers(n=n), _classes(q)
    if not 0 < mean**2 <= square * (1 + 1e-9):
        raise ValueError(f"mean and mean square must satisfy 0 < mean² <= square, not {mean} and {square}")
    total, needed = (n - 1) * mean, _diluted(spread, eps) - 1
    if needed <= 0:  # whatever the others say
        return 1 / q
    if total <= needed:
        return 1.0
    theta = 1 - needed / total
    return 1 / q + (1 - 1 / q) * math.exp(-(theta**2) * total * mean / (2 * square))


def exchange_effect(
    config,
    weights: Mapping[str, Float[np.ndarray, "..."]],
    n: int,
    *,
    radius: float,
    query_radius: float,
    change: float | None = None,
    least_norm: float = 0.0,
    differences: bool = True,
) -> float:
    """How much the logits of a whole network move, at most, if one of n prompt tokens is exchanged for another.

    The two tokens are `change` apart (default: 2·radius); the network may be causal or bidirectional, of any depth,
    with any number of heads, norms, and no, learned or rotary positions.  The bound is Σ_k x_k 𝒜_k·change, where 𝒜_k is
    1/n for a bidirectional network and h_{k−1}(1, 1/2, …, 1/n)/n for a causal one, with h the complete symmetric
    polynomial, at most Σ_{i<k} (ln n)^i / (i! n); the coefficients x_k follow from the constants of Lemma 7a layer by
    layer (Theorem 8, part 5).  Where half the largest difference of two logits moves by at most 2ε, at most one value
    of the token's fact is recalled with margin 2ε.  Arguments as in `network_wasserstein`, in logits; decreases with n;
    infinite if it overflows or a norm may divide by zero.  ValueError as there, but for rotary positions, or unless n
    is an integer >= 1 and change >= 0.
    """
    (n,) = integers(n=n)
    moved = 2 * _nonnegative("radius", radius) if change is None else _nonnegative("change", change)
    layers, reading, slope = _measure_layers(
        config, weights, radius, query_radius, least_norm, differences, rotary=True
    )
    powers = [float(special.digamma(n + 1) + np.euler_gamma)]  # power sums of 1, 1/2, …, 1/n
    powers += [float(special.zeta(i) - special.zeta(i, n + 1)) for i in range(2, config.depth + 1)]
    means = [0.0, 1 / n]  # of the exchanged token, over all tokens, once, twice, …
    for k in range(1, config.depth):  # Newton's identities
        means.append(
            sum(p * mean for p, mean in zip(powers, means[:0:-1], strict=False)) / k if config.causal else 1 / n
        )
    e, x = np.zeros(config.depth + 1), np.zeros(config.depth + 1)  # coefficients of these means, of a token and of the
    e[0] = 1.0  # token that reads; at first only the exchanged token has moved
    with np.errstate(over="ignore", invalid="ignore"):
        for a, M, keys, query, factor in layers:
            own = slope * _over_heads([each * keys**2 for each in a], M)
            seen = [slope * _over_heads([_measure_slope(each, keys, r, 1, 0) for each in a], M) for r in (query, keys)]
            mean = np.concatenate([[0.0], e[:-1]])
            x = factor * ((1 + own) * x + seen[0] * mean)
            e = factor * ((1 + own) * e + seen[1] * mean)
        effect = reading * slope * moved * float(x @ means)
    return math.inf if math.isnan(effect) else effect


def argmax_recall_ceiling(n: int, q: int, *, spread: float, deviation: float) -> float:
    """1/q + ¾ (q − 1) ρ/(σ√(n − 1)), at most 1: recall without a margin among n facts, one per token.

    The other facts are independent and alike.  For two values y ≠ y' a fact's token adds X = e^s (f_y − f_y' + b_y −
    b_y') to the comparison, s being its softmax logit and f its votes; ρ = `spread` is the length of an interval that
    holds X for all tokens that facts may have, σ = `deviation` the standard deviation of X, and ρ/σ the largest of any
    pair of values.  Numbers that depend on the query and on n only may be subtracted from a comparison (Theorem 8,
    part 4).
    ValueError unless 0 < deviation <= spread/2 are finite, n >= 1 and q >= 2.
    """
    n, q = *integers(n=n), _classes(q)
    if not 0 < deviation <= _nonnegative("spread", spread) / 2 * (1 + 1e-9):
        raise ValueError(f"the deviation must be > 0 and at most half the spread {spread}, not {deviation!r}")
    return min(1.0, 1 / q + 0.75 * (q - 1) * spread / (deviation * math.sqrt(n - 1))) if n > 1 else 1.0


def gaussian_recall(snr: float, q: int) -> float:
    """∫ φ(g) Φ(g + √snr)^{q−1} dg: how often a signal is the largest of q independent normal numbers, as a fraction.

    `snr` is the square of the signal over the variance.  1/q at snr = 0.  ValueError unless snr >= 0 and q >= 2.
    """
    q, signal = _classes(q), math.sqrt(_nonnegative("snr", snr))
    points = np.linspace(-12, 12, 4801)  # trapezoids: the integrand and its derivatives vanish at the ends
    weights = np.exp(-(points**2) / 2)
    return float((weights * special.ndtr(points + signal) ** (q - 1)).sum() / weights.sum())


def critical_snr(q: int, recall: float = 0.5) -> float:
    """The signal-to-noise ratio at which `gaussian_recall` is `recall`.  ValueError unless 1/q < recall < 1."""
    q = _classes(q)
    if not 1 / q < recall < 1:
        raise ValueError(f"recall must lie strictly between 1/q = {1 / q:g} and 1, not {recall}")
    low, high = 0.0, 1.0
    while gaussian_recall(high, q) < recall:
        high *= 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if gaussian_recall(middle, q) < recall else (low, middle)
    return high


def argmax_length(q: int, gap: float, recall: float = 0.5) -> float:
    """q e^{2Δ}/ρ with ρ = `critical_snr`: the number of facts at which argmax recall falls to `recall`; a heuristic.

    `gap` is Δ = ln(E e^{s_target}/√(E e^{2s})).  Sums of attention over the facts of each value are taken for
    independent normal numbers of equal variance (N/q) E e^{2s} and equal mean, votes for symmetric.  Not a bound.
    ValueError as in `critical_snr`, or unless gap is finite.
    """
    if not math.isfinite(gap):
        raise ValueError(f"gap must be a finite number, not {gap}")
    return _classes(q) * math.exp(2 * gap) / critical_snr(q, recall)


def argmax_plateau_bits(q: int, gap: float) -> float:
    """M_q² q e^{2Δ}/(2 ln 2 (q − 1)), in bits: the limit of N R_q(1 − recall) under the law of `argmax_length`.

    M_q is the mean of the largest of q standard normal numbers; recall exceeds 1/q by (M_q/q)√(q e^{2Δ}/N).
    A heuristic.  ValueError unless q >= 2 and gap is finite.
    """
    q = _classes(q)
    if not math.isfinite(gap):
        raise ValueError(f"gap must be a finite number, not {gap}")
    points = np.linspace(-12, 12, 4801)
    mass = np.exp(-(points**2) / 2) * special.ndtr(points) ** (q - 1)
    largest = float((points * mass).sum() / mass.sum())
    return largest**2 * q * math.exp(2 * gap) / (2 * math.log(2) * (q - 1))


def _diluted(spread: float, eps: float) -> float:
    """D/(4ε), checked."""
    if not _nonnegative("eps", eps) > 0:
        raise ValueError(f"eps must be a finite number > 0, not {eps!r}")
    return _nonnegative("spread", spread) / (4 * eps)


# --- Theorem 13: a shared read token in one layer -------------------------------------------------------------------


def shared_token_labelings(n: int, q: int) -> int:
    """C(n+q−1, q−1): the most labelings of n sequences, read at one shared token by one head, that prompts reach.

    For prompts of every length and real numbers; q^n labelings exist (Theorem 13, part 4).
    ValueError unless n >= 1 and q >= 2.
    """
    (n,) = integers(n=n)
    return math.comb(n + _classes(q) - 1, q - 1)


def shared_token_bits(n: int, q: int, heads: int) -> float:
    """log2 of the most labelings of n sequences, read at one shared token by H heads, that prompts reach, in bits.

    min(n log2 q, H q log2(2e n (q−1))) by Warren's theorem, for n(q−1) >= 2H, else n log2 q; log2 C(n+q−1, q−1) for
    one head (Theorem 13, part 4).  Prompts of every length, no token-wise network.
    ValueError unless n, heads >= 1, q >= 2.
    """
    n, heads = integers(n=n, heads=heads)
    everything = n * math.log2(_classes(q))
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


# --- Theorem 11: the capacity law ----------------------------------------------------------------------------------


def expected_length_ceiling(bits: float, q: int) -> float:
    """Σ_{n >= 1} min(1, 2^bits q^{−n}): how many of a sequence of random labels 2^bits prompts memorise on average.

    For labels uniform in q classes, the expectation of the longest beginning that some prompt memorises is at most
    this: k + 2^bits q^{−k}/(q − 1), k = ⌊bits/log2 q⌋; bits + 1 for q = 2 and whole bits (Theorem 11, part 1).
    Returns a number of labels.  ValueError unless bits >= 0 and q >= 2.
    """
    q = _classes(q)
    if not (math.isfinite(bits) and bits >= 0):
        raise ValueError(f"bits must be a finite number >= 0, not {bits}")
    whole = math.floor(bits / math.log2(q) + 1e-12)
    return whole + 2.0 ** (bits - whole * math.log2(q)) / (q - 1)


def affine_length(coordinates: int) -> int:
    """2D + 1: the expected longest beginning of random labels that D real coordinates memorise if logits are affine.

    For two classes and logit differences that are affine in D coordinates, in general position; it is also the number
    of labels at which exactly half of all labelings are memorised (Theorem 11, part 2; after Cover, 1965).
    ValueError unless D is an integer >= 1.
    """
    (D,) = integers(coordinates=coordinates)
    return 2 * D + 1
