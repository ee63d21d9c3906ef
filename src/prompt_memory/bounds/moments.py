"""Theorem 6: few weighted tokens with equal moments stand for a prompt of any length, at all queries at once."""

import decimal
import functools
import itertools
import math

import numpy as np
from jaxtyping import Float
from scipy import special

from prompt_memory.bounds._checks import nonnegative, positive
from prompt_memory.checks import integers


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
    return 2 * nonnegative("scale", scale) * softmax_remainder(k, B)


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
    scale, lipschitz = nonnegative("scale", scale), nonnegative("lipschitz", lipschitz)
    eps = positive("eps", eps)
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


def circle_amplitude(M: int, B: float) -> float:
    """a = 1 / max_i Σ_j |S⁻¹_ij|, where row i of S is the softmax of B cos(2π(i − j)/M) over j; 0 if rounding hides it.

    One head with d_k = 2, d_v = 1 and logits in [−B, B] reads M keys, evenly spaced on the circle, by M queries in
    their directions.  The values a S⁻¹ y lie in [−1, 1] for every labeling y and answer query i with a y_i, so
    Mem_{2ε} >= M for ε < a (Theorem 6, part 4, from below).  S is a circulant, so its inverse is one, too.
    ValueError unless M >= 1 is an integer and B >= 0 is finite.
    """
    (M,), B = integers(M=M), nonnegative("B", B)
    row = np.exp(B * (np.cos(2 * np.pi * np.arange(M) / M) - 1))
    eigenvalues = np.fft.fft(row / row.sum()).real
    return float(1 / np.abs(np.fft.ifft(1 / eigenvalues)).sum()) if eigenvalues.min() > 1e-10 else 0.0


def readings_volume_bits(B: float, eps: float, *, most: int = 60) -> float:
    """max_{M <= most} log2(|det S|/(2ε)^M), in bits: prompts that differ by more than 2ε at some query, from below.

    One head with d_k = d_v = 1 and logits Bxu reads prompts of M tokens, with evenly spaced keys u in [−1, 1] and any
    values v in [−1, 1].  At M queries x (Chebyshev points) the outputs are Sv, S_ij = e^{Bx_iu_j}/Σ_l e^{Bx_iu_l}: they
    fill the volume 2^M|det S|, which cubes of half side 2ε around a largest set of prompts with pairwise differences
    above 2ε cover.  The determinant is a product (Vandermonde).  Never above `moment_bits` with d_k = d_v = heads =
    scale = lipschitz = 1, and 0 where it would be negative (Theorem 6, part 4).
    ValueError unless B >= 0 and eps > 0 are finite and most is an integer >= 1.
    """
    B = nonnegative("B", B)
    eps = positive("eps", eps)
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
    B = nonnegative("B", B)
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
