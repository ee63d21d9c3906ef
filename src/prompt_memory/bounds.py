"""What the theorems allow: one pure function a formula.

Scalars in, a float out, unless said otherwise.  Quantities called `*_bits` are in bits (log to base 2), recall and
distortion are fractions between 0 and 1.  Nothing here knows about torch: a `config` is anything with the attributes
of `prompt_memory.transformer.TransformerConfig`.
"""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import special, stats

# --- Theorem 1: counting -------------------------------------------------------------------------------------------


def counting_bits(d: int, m: int, bits_per_coordinate: int) -> float:
    """b·d·m, the bits in a prompt of m tokens of width d with b bits per coordinate.

    No frozen network, however deep, can be made to memorise more labelings than there are prompts, so this bounds
    Mem_γ(m) for every margin γ >= 0 (Theorem 1).  ValueError if an argument is not an integer >= 1.
    """
    d, m, b = _positive_integers(d=d, m=m, bits_per_coordinate=bits_per_coordinate)
    return float(b * d * m)


def multiset_bits(d: int, m: int, bits_per_coordinate: int) -> float:
    """log2 C(2^{bd} + m − 1, m), the bits in an unordered prompt of m tokens.

    Bounds Mem_γ(m) when the network cannot see the order of the prompt: without positions, bidirectional at any depth
    or with one layer (Theorem 1; in exact arithmetic, as floating-point sums depend on the order in their last bit).
    Grows like (2^{bd} − 1) log2 m, not like m, once m is much larger than 2^{bd}.
    ValueError if an argument is not an integer >= 1.
    """
    d, m, b = _positive_integers(d=d, m=m, bits_per_coordinate=bits_per_coordinate)
    return _log2_binomial(2 ** (b * d) + m - 1, m)


def hard_prompt_bits(vocabulary: int, m: int) -> float:
    """m log2(vocabulary), the bits in a hard prompt of m tokens (Theorem 1).  ValueError unless both are >= 1."""
    vocabulary, m = _positive_integers(vocabulary=vocabulary, m=m)
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
    bits − n R_q(1 − recall) for recall >= 1/q (Theorem 1).  ValueError as in `recall_ceiling`, or if `recall` is not
    between 0 and 1.
    """
    n, q = _labels(bits, n, q)
    if not 0 <= recall <= 1:
        raise ValueError(f"recall is a fraction between 0 and 1, not {recall}")
    hits = math.ceil(recall * n - 1e-9 - 1e-15 * n)  # recall = k/n must not round up to k + 1
    if hits <= 0:
        return 0.0
    # where probabilities underflow they fall so fast that a million terms hold all of the sum
    log_tail = _log_tails(hits, min(n, hits + 10**6), n, q)[0]
    return min(0.0, bits + float(log_tail) / math.log(2))


def best_recall_ceiling(bits: float, n: int, q: int) -> float:
    """(1/n) Σ_{k=1}^{n} min(1, 2^bits Pr[Binomial(n, 1/q) >= k]): a ceiling on expected best recall, as a fraction.

    Follows from the sharp converse by summing tails; unlike `recall_ceiling` it knows that n is finite, and is the
    smaller of the two in most of the range (Theorem 1).  ValueError as in `recall_ceiling`.
    """
    n, q = _labels(bits, n, q)
    return float(np.exp(np.minimum(0.0, bits * math.log(2) + _log_tails(1, n, n, q))).mean())


def recall_quantile(bits: float, n: int, q: int, log2_probability: float) -> float:
    """The recall that some prompt exceeds with probability at most 2^log2_probability, as a fraction.

    The largest k/n with bits + log2 Pr[Binomial(n, 1/q) >= k] > log2_probability (Theorem 1, strong converse).
    ValueError as in `recall_ceiling`, or unless log2_probability < 0.
    """
    n, q = _labels(bits, n, q)
    if not log2_probability < 0:
        raise ValueError(f"log2_probability must be a number < 0, not {log2_probability}")
    likely = bits * math.log(2) + _log_tails(1, n, n, q) > log2_probability * math.log(2)
    return float(likely.sum() / n)


def random_code_recall(bits: float, n: int, q: int) -> float:
    """(1/n) Σ_{k=1}^{n} [1 − (1 − Pr[Binomial(n, 1/q) >= k])^{2^bits}], expected best recall of random behaviours.

    What 2^bits *independent uniform* behaviours would recall: a heuristic for a network, whose behaviours are neither,
    and exact for a random code.  Never above `best_recall_ceiling`.  ValueError as in `recall_ceiling`.
    """
    n, q = _labels(bits, n, q)
    log_tail = _log_tails(1, n, n, q)
    with np.errstate(divide="ignore", over="ignore"):  # certain successes, and more behaviours than a float counts
        # log of −log(1 − tail), which is the log of the tail itself where that is small
        log_hazard = np.where(log_tail < -30, log_tail, np.log(-np.log1p(-np.exp(log_tail))))
        missed = np.exp(-np.exp(bits * math.log(2) + log_hazard))
    return float((1 - missed).mean())


def _rate_above_chance(advantage: float, q: int) -> float:
    """R_q(1 − a) at a = 1/q + advantage, in a form that does not cancel near chance."""
    a = min(1.0, 1 / q + advantage)
    nats = special.xlog1py(a, q * advantage) + special.xlog1py(1 - a, max(-1.0, -q * advantage / (q - 1)))
    return max(0.0, float(nats) / math.log(2))


def _log_tails(first: int, last: int, n: int, q: int) -> Float[np.ndarray, " K"]:
    """ln Pr[Binomial(n, 1/q) >= k] for k = first … last, where first >= 1.

    Where the probability underflows, the logarithms of the single probabilities are added up from `last` downwards;
    `last` must then be n, or so far out that what is beyond does not count.
    """
    k = np.arange(first, last + 1)
    log_mass = (
        special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
        + (n - k) * math.log1p(-1 / q) - k * math.log(q)
    )  # fmt: skip
    summed = np.logaddexp.accumulate(log_mass[::-1])[::-1]
    tail = stats.binom.sf(k - 1, n, 1 / q)  # more accurate, where it is a normal number
    with np.errstate(divide="ignore"):
        return np.minimum(0.0, np.where(tail > 1e-290, np.log(tail), summed))


# --- Theorem 3: dimension ------------------------------------------------------------------------------------------


def effective_dimension(
    config,
    m: int,
    *,
    tuning: Literal["soft", "prefix"] = "soft",
    read: Literal["fixed", "moving"] = "moving",
    own_token: bool = True,
) -> int:
    """D_eff = max rank DΦ, the number of real coordinates of a prompt that the outputs can see (Theorem 3).

    For generic weights, queries and prompts, smooth activations, enough queries and q >= d outputs.  `read="moving"`:
    the token at which the output is read differs between queries; `"fixed"`: it is always the same, at the same
    position, and only the other tokens of the query vary.  `own_token=False`: queries see the prompt only, not
    themselves.  `config.norm_eps` decides whether the norms are exactly scale-invariant.

    With e the dimensions that norms leave to a token (d; d − 1 for LayerNorm; one less for one layer and norm_eps = 0):
    one layer gives m·min(e, H(d_k + d_v)), causal depth L gives m·min(e, L H(d_k + d_v)), bidirectional depth m·e,
    prefix tuning L m H(d_k + d_v), one layer read at a fixed token at most H(1 + d_v); without own tokens the shifts
    that a softmax cannot see are subtracted.  Returns an int.
    ValueError for m < 1, an unknown option, or a network for which no formula is established.
    """
    (m,) = _positive_integers(m=m)
    for name, value, allowed in (("tuning", tuning, ("soft", "prefix")), ("read", read, ("fixed", "moving"))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    if config.norm == "layer" and config.d == 1:
        raise ValueError("LayerNorm of a single coordinate is always zero: give d >= 2")
    count = _soft_dimension if tuning == "soft" else _prefix_dimension
    dimension = count(config, m, read == "fixed", own_token)
    if read == "fixed" and not own_token:  # every query returns the same vector
        dimension = min(dimension, outputs_per_query(config))
    return dimension


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


# --- shared checks -------------------------------------------------------------------------------------------------


def _log2_binomial(n: int, k: int) -> float:
    """A sum of logarithms: n may have thousands of digits, where factorials and their logarithms fail."""
    k = min(k, n - k)
    return math.fsum(math.log2(n - i) - math.log2(i + 1) for i in range(k))


def _positive_integers(**values) -> list[int]:
    """The values as Python integers, which do not overflow; ValueError that names the first one below 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, not {value!r}")
    return [int(value) for value in values.values()]


def _classes(q: int) -> int:
    if isinstance(q, bool) or not isinstance(q, int | np.integer) or q < 2:
        raise ValueError(f"q, the number of classes, must be an integer >= 2, not {q!r}")
    return int(q)


def _labels(bits: float, n: int, q: int) -> tuple[int, int]:
    """(n, q) checked, and bits checked with them."""
    if not bits >= 0:
        raise ValueError(f"bits must be a number >= 0, not {bits}")
    return _positive_integers(n=n)[0], _classes(q)
