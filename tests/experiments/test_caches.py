"""Chapter 6b: constructed caches and memories against what they are meant to be."""

import numpy as np
import pytest

from prompt_memory import bounds
from prompt_memory.experiments import caches


@pytest.mark.parametrize("k", [0, 2, 5])
def test_the_chain_is_written_by_hand(k):
    """o_1 = ±ρ_k, then o ↦ o + tanh o: what the network reads, and a bound that doubles with each layer."""
    B = 1.0
    o = bounds.softmax_remainder(k, B)
    for depth in (1, 2, 3):
        seen, allowed = caches.chain(k, B, depth)
        assert seen == pytest.approx(2 * o, abs=1e-13)
        assert allowed == pytest.approx(2 ** (depth - 1) * bounds.moment_error(k, B, 1.0))
        o += np.tanh(o)


@pytest.mark.parametrize(("M", "depth"), [(1, 1), (2, 1), (5, 1), (1, 2), (4, 2), (5, 3)])
def test_amplitude_is_that_of_the_whole_matrix(M, depth):
    B, rest = 1.3, 2.0 if depth > 1 else 0.0
    angle = 2 * np.pi * np.subtract.outer(np.arange(M), np.arange(M)) / M
    S = np.exp(B * np.cos(angle))
    block = S / (S.sum(1, keepdims=True) + rest)
    K = np.kron(np.eye(depth), block - 1 / (M + rest)) + 1 / (M + rest)
    wanted = 1 / np.abs(np.linalg.inv(K)).sum(1).max()
    assert caches.circles_amplitude(M, B, depth, rest) == pytest.approx(wanted, rel=1e-9)


def test_circles_in_every_layer_are_read_by_networks_of_this_book():
    caches.check_circles(M=2, B=1.0, depth=3)
    caches.check_circles()
    labels = caches.circles([(2.0, 0.01, depth) for depth in (1, 2, 4)])[:, 0]
    assert list(labels / labels[0]) == [1, 2, 4]  # each layer holds as many


def test_a_climbing_query_is_no_better_than_its_start():
    settings = caches.Settings(150, 40, (1,), 2, (1,), (100,))
    model, cache, _ = caches.prepare("ordinary", settings, np.random.default_rng(0))
    short = caches.compress.compress_cache(model, cache, 1)
    queries = caches.ball(np.random.default_rng(1), 40, 4)
    whole, _ = caches.compress.read_cache(model, cache, queries, position=150)
    seen, _ = caches.compress.read_cache(model, short, queries, position=150)
    start = caches.half_spread(seen - whole).max()
    worst, asked = caches.worst_query(model, cache, short, queries, settings, np.random.default_rng(2))
    assert worst >= start
    assert len(asked) == 2 * (40 + 2 * 200)
