"""Theorem 4c: labels without a margin, universal prompts, and how many numbers a format has."""

import math
from fractions import Fraction

from prompt_memory.bounds._checks import classes
from prompt_memory.checks import integers


def affine_patterns(functions: int, dimension: int) -> int:
    """Σ_{i <= D} C(k, i): the patterns ([h_1(P) > 0] … [h_k(P) > 0]) that k affine functions show on R^D, at most.

    Equal to the number of regions of k hyperplanes in general position (Theorem 4c).  Exact, an int.
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
    the first grows like D log2 n, the second is linear in D (Theorem 4c, part 1).
    ValueError if a count is not an integer >= 1 or q < 2.
    """
    n, D, q = *integers(n=n, coordinates=coordinates), classes(q)
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
    (0: none), q = 2.  Z = 2 (tokens + 1)^H − 2 bounds the zeros of an exponential polynomial (Theorem 4c, part 2).
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
