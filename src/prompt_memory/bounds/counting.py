"""Theorem 1: a prompt of so many bits has at most so many behaviours, so what it makes a network recall is bounded."""

import math

import numpy as np
from jaxtyping import Float
from scipy import optimize, special, stats

from prompt_memory.bounds._checks import classes, labels
from prompt_memory.bounds._numerics import log2_binomial, threshold
from prompt_memory.checks import integers


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
    return log2_binomial(2 ** (b * d) + m - 1, m)


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
    q = classes(q)
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
    n, q = labels(bits, n, q)
    if bits >= n * math.log2(q):
        return 1.0
    advantage = threshold(lambda a: n * _rate_above_chance(a, q) < bits, 0.0, 1 - 1 / q)
    return min(1.0, 1 / q + advantage)  # rounded upwards: the safe side


def pinsker_recall_ceiling(bits: float, n: int, q: int) -> float:
    """1/q + √(bits·ln 2 / (2n)), at most 1: a simple ceiling above `recall_ceiling`, as a fraction.

    From R_q(1 − a) >= 2 (a − 1/q)² / ln 2, Pinsker's inequality (Theorem 1).  ValueError as in `recall_ceiling`.
    """
    n, q = labels(bits, n, q)
    return min(1.0, 1 / q + math.sqrt(bits * math.log(2) / (2 * n)))


def recall_tail_bits(bits: float, n: int, q: int, recall: float) -> float:
    """log2 of the bound on Pr[some prompt recalls >= recall·n labels], at most 0.

    The sharp form of the strong converse: at most 2^bits behaviours, each of which agrees with uniform labels in
    Binomial(n, 1/q) places, so bits + log2 Pr[Binomial(n, 1/q) >= ⌈recall·n⌉].  Never above the closed form
    bits − n R_q(1 − recall) for recall >= 1/q, which is returned for n > 10^12, where the binomial tail cannot be
    computed to a bit (Theorem 1, part 3).  ValueError as in `recall_ceiling`, or if `recall` is not between 0 and 1.
    """
    n, q = labels(bits, n, q)
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
    n, q = labels(bits, n, q)
    return float(np.exp(np.minimum(0.0, bits * math.log(2) + _log_tails(1, n, n, q))).mean())


def recall_quantile(bits: float, n: int, q: int, log2_probability: float) -> float:
    """The recall that some prompt exceeds with probability at most 2^log2_probability, as a fraction.

    The largest k/n with bits + log2 Pr[Binomial(n, 1/q) >= k] > log2_probability (Theorem 1, part 3).
    ValueError as in `recall_ceiling`, or if n > 10^7, or unless log2_probability < 0 is finite.
    """
    n, q = labels(bits, n, q)
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
    n, q = labels(bits, n, q)
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
    n, q = labels(bits, n, q)
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
