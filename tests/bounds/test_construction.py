"""Theorem 4b: numbers of keys by brute force, leaks and logit ranges against written networks, and other theorems."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from prompt_memory import bounds
from prompt_memory.network import construct

CODES = [
    construct.hypercube_code(3),
    construct.hadamard_code(4),
    construct.simplex_code(6),
    construct.circle_code(5),
    construct.random_code(16, 40, 0.5, generator=torch.Generator().manual_seed(0)),
    construct.random_code(8, 30, 0.6, generator=torch.Generator().manual_seed(0), signs=False),
]


def gram(code):
    return (code @ code.T).numpy()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_the_number_of_keys_against_brute_force():
    for d_k, cosine in ((5, 0.2), (6, 0.0), (6, 0.34), (7, 0.5)):
        words = construct.hypercube_code(d_k)
        greedy = []
        for word in words:  # a code that cannot be enlarged, found by trying every sign vector
            if all(float(word @ kept) <= cosine + 1e-12 for kept in greedy):
                greedy.append(word)
        assert math.log2(len(greedy)) >= bounds.code_size_bits(d_k, cosine, signs=True) - 1e-12
        too_near = float(((words @ words[0]) > cosine + 1e-12).double().mean())
        assert 2 ** bounds.code_size_bits(d_k, cosine, signs=True) == pytest.approx(math.ceil(1 / too_near - 1e-9))
    assert bounds.code_size_bits(6, 1 - 2 / 6, signs=True) == 6  # the whole hypercube


def test_the_number_of_keys_on_the_sphere():
    rng = np.random.default_rng(9)
    for d_k, cosine in ((2, 0.3), (3, 0.5), (6, 0.4), (20, 0.3)):
        points = rng.standard_normal((200_000, d_k))
        near = (points[:, 0] / np.linalg.norm(points, axis=1) > cosine).mean()
        assert 0.97 / near <= 2 ** bounds.code_size_bits(d_k, cosine) <= 1.03 / near + 1
        # the closed forms in the docstring
        assert bounds.code_size_bits(d_k, cosine) >= 1 - (d_k - 1) / 2 * math.log2(1 - cosine**2) - 1e-9
    assert bounds.code_size_bits(2, math.cos(2 * math.pi / 9)) == pytest.approx(math.log2(5))  # caps of radius 2π/9
    for d_k in (10, 100, 1000, 100_000):
        for cosine in (0.1, 0.5, 0.9):
            assert bounds.code_size_bits(d_k, cosine) >= cosine**2 * (d_k - 1) / 2 / math.log(2)
            if d_k <= 1000:
                signs = bounds.code_size_bits(d_k, cosine, signs=True)
                assert signs >= cosine**2 * d_k / 2 / math.log(2)
                assert signs == pytest.approx(
                    -stats.binom.logcdf(math.ceil(d_k * (1 - cosine) / 2 - 1e-9) - 1, d_k, 0.5) / math.log(2), abs=1
                )


# --- leaks and logit ranges ------------------------------------------------------------------------------------------


def test_leak_and_range_are_inverse():
    for code in CODES:
        for own_token in (False, True):
            for leak in (0.01, 0.25, 0.5):
                B = bounds.code_logit_range(gram(code), leak=leak, own_token=own_token)
                assert bounds.softmax_leak(gram(code), B, own_token=own_token) == pytest.approx(leak, rel=1e-9)
                S = construct.build_memory(code, 40, B).attention(len(code), own_token=own_token)
                assert float(1 - S.diag().min()) == pytest.approx(leak, rel=1e-9)
    assert bounds.code_logit_range(np.eye(1)) == 0
    assert bounds.code_logit_range(np.eye(3), leak=0.9) == 0
    assert bounds.code_logit_range(np.eye(1), own_token=True) == pytest.approx(math.log(3) / 2)


def test_the_range_of_a_hypercube_in_closed_form():
    for d_k in (1, 2, 4, 7):
        closed = -d_k / 2 * math.log((4 / 3) ** (1 / d_k) - 1)
        assert bounds.code_logit_range(gram(construct.hypercube_code(d_k))) == pytest.approx(max(0, closed), rel=1e-9)


def test_unordered_prompts_lose_at_most_one_and_a_half_bits_a_token():
    for d, d_k in ((12, 2), (20, 5), (40, 8), (200, 10)):
        m = 2**d_k
        written = bounds.construction_bits(d, d_k, m)
        room = bounds.multiset_bits(d, m, 1)
        assert written <= room <= written + m * math.log2(math.e) * (1 + m / 2**d) + 1e-9
        assert room <= bounds.counting_bits(d, m, 1)


def test_the_construction_never_passes_theorem_2():
    for d, d_k, m in ((4, 2, 4), (12, 4, 16), (64, 6, 64)):
        memory = construct.build_memory(construct.hypercube_code(d_k), d, 5.0)
        for margin in (1.0, 0.1, 1e-3, 1e-9):
            stored = bounds.fixed_key_bits(d, d_k, m, margin, 0.5)
            lipschitz = math.sqrt(1 + memory.ball_range**2)
            assert stored <= bounds.entropy_bits(d, m, memory.radius, lipschitz, margin / 2)
            assert bounds.fixed_key_bits(d, d_k, m, margin) - stored <= m * (d - d_k) + 1e-9


def test_the_necessary_range_holds_for_any_attention():
    rng = np.random.default_rng(10)
    tried = 0
    for _ in range(200):
        m, B = int(rng.integers(2, 7)), rng.uniform(0.2, 3)
        logits = rng.uniform(-B, B, (m, m)) + np.diag(rng.uniform(0, 2 * B, m))
        S = np.exp(np.clip(logits, -B, B))
        S /= S.sum(1, keepdims=True)
        if np.linalg.cond(S) > 1e6:
            continue
        amplitude = 1 / np.abs(np.linalg.inv(S)).sum(1).max()
        tried += amplitude > 0.05
        assert bounds.necessary_logit_range(m, min(amplitude, 0.999999)) <= B
        assert amplitude <= (ceiling := bounds.amplitude_ceiling(m, B)) * (1 + 1e-12)
        assert bounds.necessary_logit_range(m, ceiling) == pytest.approx(B)
    assert tried > 50
    assert bounds.amplitude_ceiling(1, 0.0) == bounds.amplitude_ceiling(9, 700.0) == 1
    # readings of orthogonal keys come within a few per cent of it at a large range
    S = np.exp(5 * np.eye(2))
    assert 1 / np.abs(np.linalg.inv(S / S.sum(1))).sum(1).max() > 0.98 * bounds.amplitude_ceiling(2, 2.5)
    assert bounds.necessary_logit_range(1, 0.9) == 0
    assert bounds.necessary_logit_range(301, 0.5) == pytest.approx(math.log(100) / 2)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.construction_bits(4, 4, 3), "leave none of d = 4 for values: give d_k < d"),
        (lambda: bounds.construction_bits(4, 2, 0), "m must be an integer >= 1, not 0"),
        (lambda: bounds.fixed_key_bits(4, 2, 3, 0.0), "margin must be a finite number > 0, not 0"),
        (lambda: bounds.fixed_key_bits(4, 2, 3, 1.0, math.inf), "amplitude must be a finite number > 0, not inf"),
        (lambda: bounds.softmax_leak(np.ones((2, 3)), 1.0), "cosines must be a square matrix"),
        (lambda: bounds.softmax_leak(2 * np.eye(2), 1.0), "normalise the keys"),
        (lambda: bounds.softmax_leak(np.eye(2), -1.0), "logit_range must be a finite number >= 0, not -1"),
        (lambda: bounds.code_logit_range(np.ones((2, 2))), "two keys are equal"),
        (lambda: bounds.code_logit_range(np.eye(2), leak=1.0), "leak is a fraction between 0 and 1, not 1"),
        (lambda: bounds.cosine_logit_range(3, 1.0), r"must lie in \[-1, 1\), not 1"),
        (lambda: bounds.cosine_logit_range(0, 0.5), "m must be an integer >= 1, not 0"),
        (lambda: bounds.cosine_logit_range(3, 0.5, leak=0.0), "leak is a fraction between 0 and 1, not 0"),
        (lambda: bounds.necessary_logit_range(3, 1.0), "amplitude must lie between 0 and 1, not 1"),
        (lambda: bounds.amplitude_ceiling(3, -1.0), "logit_range must be a finite number >= 0, not -1"),
        (lambda: bounds.amplitude_ceiling(0, 1.0), "m must be an integer >= 1, not 0"),
        (lambda: bounds.necessary_logit_range(0, 0.5), "m must be an integer >= 1, not 0"),
        (lambda: bounds.code_size_bits(3, 1.0), r"must lie in \[0, 1\), not 1"),
        (lambda: bounds.code_size_bits(3, -0.1), r"must lie in \[0, 1\), not -0.1"),
        (lambda: bounds.code_size_bits(1, 0.5), "real keys need d_k >= 2"),
        (lambda: bounds.code_size_bits(0, 0.5), "d_k must be an integer >= 1, not 0"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
