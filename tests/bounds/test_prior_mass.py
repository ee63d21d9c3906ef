"""Theorem 4e against complete lists: a law on few prompts, all strings of a tiny vocabulary."""

import itertools
import math

import numpy as np
import pytest

from prompt_memory import bounds

V = 3


def random_tree(rng, depth):
    """Masses of all strings up to a length: each splits its own among its children, and some of it ends."""
    masses = {(): 1.0}
    for n in range(depth):
        for string in itertools.product(range(V), repeat=n):
            shares = rng.dirichlet(0.3 * np.ones(V)) * rng.choice([1.0, 0.9])
            masses |= {(*string, a): masses[string] * shares[a] for a in range(V)}
    return masses


@pytest.mark.parametrize("seed", range(20))
def test_all_parts_by_enumeration(seed):
    """Few likely strings, few lucky beginnings, a cost above the entropy: for random trees of masses and sources."""
    rng = np.random.default_rng(seed)
    depth = 4
    masses, source = random_tree(rng, depth), random_tree(rng, depth)
    for string in itertools.product(range(V), repeat=depth):  # a source's probabilities add up to one
        total = math.fsum(source[s] for s in itertools.product(range(V), repeat=depth))
        source[string] /= total
    for n in reversed(range(depth)):
        for string in itertools.product(range(V), repeat=n):
            source[string] = sum(source[*string, a] for a in range(V))
    leaves = list(itertools.product(range(V), repeat=depth))
    for n in range(1, depth + 1):
        level = np.array([masses[s] for s in itertools.product(range(V), repeat=n)])
        assert level.sum() <= 1 + 1e-12
        for bits in range(9):
            assert (level >= 2.0**-bits).mean() <= bounds.accessible_fraction(bits, n, V) + 1e-12
        law = np.array([source[s] for s in itertools.product(range(V), repeat=n)])
        with np.errstate(divide="ignore", invalid="ignore"):
            assert -(law * np.log2(level)).sum() >= -(law * np.log2(law)).sum() - 1e-9
    for error in (0.5, 0.1, 0.01):
        lucky = 0.0
        for string in leaves:
            begins = [string[:n] for n in range(1, depth + 1)]
            lucky += source[string] * any(
                -math.log2(masses[b]) <= -math.log2(source[b]) + math.log2(error) for b in begins if masses[b]
            )
        assert lucky <= error + 1e-12


def test_markov_is_attained():
    """All mass on one of 2^s equally likely strings: it is cheap with probability 2^{−s} exactly."""
    for s in range(1, 6):
        cost, surprise = 0.0, float(s)
        assert cost >= bounds.least_cost_bits(surprise, 2.0**-s)
        assert cost < bounds.least_cost_bits(surprise, 2.0**-s * 1.01)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((-1.0, 0.1), "surprise_bits must be a finite number >= 0"),
        ((math.nan, 0.1), "surprise_bits must be a finite number >= 0"),
        ((1.0, 0.0), "error must lie in"),
        ((1.0, math.nan), "error must lie in"),
    ],
)
def test_mistakes_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        bounds.least_cost_bits(*arguments)
