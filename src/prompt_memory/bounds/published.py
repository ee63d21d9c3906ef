"""The bound that others published on the slope of accessible strings (chapter 4d)."""

import math

from prompt_memory.bounds._checks import positive
from prompt_memory.checks import integers


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
    return d * math.log1p(2 * positive("radius", radius) / positive("eps", eps)) / math.log(vocabulary)
