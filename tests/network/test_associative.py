"""One head as an associative memory: readings by loops, codes, and the network."""

import math

import numpy as np
import pytest

from prompt_memory import tasks
from prompt_memory.network import associative


def loops(keys, values, B, copies):
    """The reading at every key, with Python loops over single tokens."""
    result = []
    for query in keys:
        tokens = [(k, u) for k, u, c in zip(keys, values, copies, strict=True) for _ in range(c)]
        weights = [math.exp(B * float(query @ k)) for k, _ in tokens]
        result.append(sum(w * u for w, (_, u) in zip(weights, tokens, strict=True)) / sum(weights))
    return np.array(result)


def test_readings_with_repeated_tokens_by_loops():
    rng = np.random.default_rng(1)
    keys, values, copies = associative.random_keys(6, 3, rng), rng.uniform(-1, 1, (4, 6)), [1, 3, 2, 1, 5, 1]
    read = associative.readings(keys, values, 2.3, weights=copies, chunk=4)
    expected = [loops(keys, row, 2.3, copies) for row in values]
    np.testing.assert_allclose(read, expected, rtol=0, atol=1e-13)


def test_the_convolution_is_the_head():
    values = tasks.signs((3, 33), np.random.default_rng(2))
    for B in (0.0, 4.0, 1e5):
        np.testing.assert_allclose(
            associative.circle_readings(values, B),
            associative.readings(associative.circle_keys(33), values, B),
            atol=1e-9,
        )


def test_codes():
    for n in (1, 2, 50):
        np.testing.assert_allclose(np.linalg.norm(associative.fibonacci_keys(n), axis=1), 1)
    keys = associative.fibonacci_keys(1000)
    nearest = np.sort(np.linalg.norm(keys[:, None] - keys[None], axis=-1), axis=1)[:, 1]
    assert nearest.min() > 2.7 / math.sqrt(1000)  # the best codes have √(8π/√3) = 3.81
    for d_k, spacing in ((1, 0.4), (2, 0.3)):
        lattice = associative.ball_keys(d_k, spacing)
        apart = np.linalg.norm(lattice[:, None] - lattice[None], axis=-1) + 9 * np.eye(len(lattice))
        assert apart.min() == pytest.approx(spacing)
        assert np.linalg.norm(lattice, axis=1).max() <= 1 + 1e-9
    assert len(associative.ball_keys(1, 0.4)) == 6
    assert len(associative.ball_keys(2, 1.0)) == 7


@pytest.mark.parametrize("context_scaling", ["none", "log"])
def test_the_network_is_the_memory(context_scaling):
    rng = np.random.default_rng(4)
    keys, labels = associative.random_keys(5, 3, rng), tasks.signs((2, 5), rng)
    network = associative.head_network(3, 1.7, context_scaling=context_scaling)
    prompt = associative.head_prompt(keys, labels, length=0.8, copies=4)
    logits = network(prompt, associative.head_queries(keys), own_token=False)
    B = 1.7 * 0.8 * (math.log(20) if context_scaling == "log" else 1)
    read = associative.readings(keys, labels, B)
    np.testing.assert_allclose(logits.numpy(), np.stack([read, -read], -1), atol=1e-13)


def test_behind_a_norm_the_length_of_the_prompt_is_gone():
    """The formula of Proposition 9e, part 3, in numpy: logits κd·ρ/√(ρ²+1), values √d u/√(ρ²+1)."""
    rng = np.random.default_rng(5)
    keys, labels, d, kappa = associative.circle_keys(5), tasks.signs((3, 5), rng), 3, 1.3
    network = associative.head_network(2, kappa, norm="rms")
    for rho in (0.3, 1.0, 50.0):
        logits = network(
            associative.head_prompt(keys, labels, length=rho), associative.head_queries(keys), own_token=False
        ).numpy()
        stretch = math.sqrt(rho**2 + 1)
        read = associative.readings(keys, labels, kappa * d * rho / stretch) * math.sqrt(d) / stretch
        np.testing.assert_allclose(logits[..., 0], math.sqrt(d) * read / np.sqrt(1 + read**2), atol=1e-12)
        margins = logits[..., 0] - logits[..., 1]
        threshold = 1 / math.sqrt(4 * d - 1)
        assert ((np.abs(margins) > 1) == (np.abs(read) > threshold)).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: associative.readings(np.ones((3, 2)), np.ones((1, 4)), 1.0), "do not fit"),
        (lambda: associative.readings(np.ones((3, 2)), np.ones((1, 3)), math.nan), ">= 0"),
        (lambda: associative.circle_readings(np.ones((1, 3)), math.inf), "finite"),
        (lambda: associative.ball_keys(3, 0.5), "d_k = 1 and 2"),
        (lambda: associative.readings(np.full((2, 2), np.nan), np.ones((1, 2)), 1.0), "finite"),
        (lambda: associative.readings(np.ones((2, 2)), np.ones((1, 2)), 1.0, weights=[1, math.inf]), "finite"),
        (lambda: associative.circle_readings(np.ones(3), 1.0), "table"),
        (lambda: associative.head_prompt(np.eye(2), np.ones((1, 3))), "do not fit"),
        (lambda: associative.head_network(2, 0.0), "scale"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
