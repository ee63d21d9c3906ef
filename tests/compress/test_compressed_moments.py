"""Theorem 6: prompts compressed by moments."""

import itertools
import math

import numpy as np
import pytest

from prompt_memory import bounds, compress

RANDOM = np.random.default_rng


def ball(rng, m, d):
    x = rng.normal(size=(m, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True) * rng.random((m, 1)) ** (1 / d)


def monomials(points, degree):
    """All monomials of total degree <= degree, one product at a time."""
    powers = itertools.product(range(degree + 1), repeat=points.shape[1])
    return np.stack([np.prod(points**p, axis=1) for p in map(np.array, powers) if p.sum() <= degree], 1)


# --- compression ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "degree", "m"), [(1, 9, 500), (2, 5, 3000), (3, 3, 700), (4, 2, 20_000), (2, 3, 7)])
def test_moments_match(d, degree, m):
    rng = RANDOM(d)
    tokens = 3 + ball(rng, m, d) * rng.uniform(0.5, 2, d)
    short = compress.moments(tokens, degree)
    assert len(short.indices) <= min(m, math.comb(d + degree, degree))
    assert np.all(np.diff(short.indices) > 0)
    assert np.all(short.weights >= 0)
    assert short.weights.sum() == pytest.approx(1, abs=1e-14)
    around = tokens - 3
    assert short.weights @ monomials(around[short.indices], degree) == pytest.approx(
        monomials(around, degree).mean(0), abs=1e-11
    )


def test_weights_of_the_prompt_count():
    rng = RANDOM(5)
    tokens, weights = ball(rng, 400, 2), rng.random(400) * (rng.random(400) < 0.5)
    short = compress.moments(tokens, 3, weights=weights)
    wanted = weights @ monomials(tokens, 3) / weights.sum()
    assert short.weights @ monomials(tokens[short.indices], 3) == pytest.approx(wanted, abs=1e-13)
    assert np.all(weights[short.indices] > 0)


def test_tokens_on_a_sphere_or_a_line_need_fewer():
    x = RANDOM(1).normal(size=(900, 3))
    on_sphere = compress.moments(x / np.linalg.norm(x, axis=1, keepdims=True), 4)
    assert len(on_sphere.indices) == 25  # harmonics of degree <= 4: 1 + 3 + 5 + 7 + 9, of 35 polynomials
    on_line = compress.moments(x[:, :1] * np.array([1.0, -2.0, 0.5]) + 1, 4)
    assert len(on_line.indices) == 5
    assert len(compress.moments(np.ones((50, 3)), 4).indices) == 1


@pytest.mark.parametrize(
    ("m", "d", "rank", "degree"), [(20, 4096, 20, 1), (30, 768, 4, 1), (60, 768, 3, 2), (5, 2, 2, 0)]
)
def test_prompts_of_any_width(m, d, rank, degree):
    rng = RANDOM(d)
    tokens = rng.normal(size=(m, rank)) @ rng.normal(size=(rank, d)) + 5
    r = min(m - 1, rank)
    assert compress.spanned(tokens) == r
    short = compress.moments(tokens, degree)
    assert len(short.indices) == min(m, math.comb(r + degree, degree))
    if degree:
        assert short.weights @ tokens[short.indices] == pytest.approx(tokens.mean(0), abs=1e-11)
    if r == m - 1 and degree:  # nothing can be saved
        assert short.weights == pytest.approx(np.full(m, 1 / m))


@pytest.mark.parametrize(("k", "B", "heads"), [(1, 1.0, 1), (3, 1.5, 2), (5, 2.5, 1)])
def test_error_stays_below_its_bound(k, B, heads):
    rng, d = RANDOM(k), 2
    A, V = (rng.normal(size=(heads, d, d)) for _ in "AV")
    A, V = (M / np.linalg.norm(M, 2, axis=(1, 2))[:, None, None] for M in (A * 1.0, V))
    tokens, queries = ball(rng, 600, d), ball(rng, 500, d)
    short = compress.moments(tokens, k + 1)
    found = compress.largest_difference(tokens, short, B * A, V, queries, radius=1.0)
    plain = compress.attend(tokens, queries, B * A, V) - compress.attend(
        tokens[short.indices], queries, B * A, V, weights=short.weights
    )
    assert np.linalg.norm(plain.sum(1), axis=1).max() <= found * (1 + 1e-12)  # ascent never loses its start
    assert found <= bounds.moment_error(k, B, heads)
    lower = compress.moments(tokens, 1)
    assert found < compress.largest_difference(tokens, lower, B * A, V, queries, radius=1.0)


def test_the_slope_of_the_ascent_is_the_gradient():
    rng = RANDOM(3)
    A, V, tokens, x = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 2, 3)), ball(rng, 30, 3), ball(rng, 1, 3)
    prompts = [(tokens[:20], np.full(20, 0.05)), (tokens[20:], np.full(10, 0.1))]
    value, slope = compress.attention._difference(prompts, A, V, x)
    steps = 1e-6 * np.eye(3)
    numeric = [
        (
            compress.attention._difference(prompts, A, V, x + s)[0]
            - compress.attention._difference(prompts, A, V, x - s)[0]
        )[0]
        for s in steps
    ]
    assert slope[0] / value[0] == pytest.approx(np.array(numeric) / 2e-6, rel=1e-6)


def test_head_moments_serve_turned_keys():
    rng, m, k = RANDOM(4), 800, 4
    angle = 0.37 * np.arange(m)
    turn = np.stack([np.stack([np.cos(angle), -np.sin(angle)], 1), np.stack([np.sin(angle), np.cos(angle)], 1)], 1)
    keys = np.einsum("hmi,mji->hmj", np.stack([ball(rng, m, 2), ball(rng, m, 2)]), turn)
    values = np.stack([ball(rng, m, 1), ball(rng, m, 1)])
    short = compress.head_moments(keys, values, k)
    assert len(short.indices) <= bounds.head_moment_count(k, 2, 1, 2)
    for u, v in zip(keys, values, strict=True):
        A, V = np.diag([1.5, 1.5, 0.0]), np.array([[0.0, 0.0, 1.0]])
        tokens = np.concatenate([u, v], 1)
        queries = np.concatenate([ball(rng, 400, 2), np.zeros((400, 1))], 1)
        assert compress.largest_difference(tokens, short, A, V, queries, radius=1.0) <= bounds.moment_error(k, 1.5, 1.0)


def test_compression_refuses_what_it_cannot_verify():
    tokens = ball(RANDOM(0), 300, 2)
    with pytest.raises(ValueError, match="condition number"):
        compress.moments(tokens, 5, tolerance=0.0)
    with pytest.raises(ValueError, match="at most 3000"):
        compress.moments(ball(RANDOM(0), 300, 12), 8)
    for bad in (np.full((3, 2), np.nan), np.ones(3), np.ones((0, 2))):
        with pytest.raises(ValueError, match="tokens"):
            compress.moments(bad, 2)
    for degree in (-1, 1.5, True):
        with pytest.raises(ValueError, match="degree"):
            compress.moments(tokens, degree)
    for weights in (np.zeros(300), -np.ones(300), np.ones(299)):
        with pytest.raises(ValueError, match="weight"):
            compress.moments(tokens, 2, weights=weights)
    with pytest.raises(ValueError, match="keys and values"):
        compress.head_moments(np.ones((2, 5, 2)), np.ones((2, 4, 1)), 2)
    with pytest.raises(ValueError, match="keys and values"):  # no head: nothing would be matched
        compress.head_moments(np.ones((0, 5, 2)), np.ones((0, 5, 1)), 2)


def test_a_wrong_elimination_is_noticed(monkeypatch):
    monkeypatch.setattr(
        compress.elimination, "eliminate", lambda rows, mass, negligible: mass * (np.arange(len(mass)) < 3)
    )
    with pytest.raises(ValueError, match="misses a moment"):
        compress.moments(ball(RANDOM(0), 300, 2), 5)
