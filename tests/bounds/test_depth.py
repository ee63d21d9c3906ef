"""Recall forecast from softmax weights: combinations of noisy votes."""

import numpy as np
import pytest

from prompt_memory import bounds

RNG = np.random.default_rng(0)
OWN = RNG.uniform(0.1, 1, (50, 3))
OTHERS = RNG.uniform(0, 0.2, (50, 3, 40))
GRAM = OTHERS @ OTHERS.transpose(0, 2, 1)


def test_one_head_alone_has_the_ratio_of_chapter_8():
    one = bounds.votes_snr(OWN, GRAM, np.array([0.0, 1.0, 0.0]), 4)
    assert one == pytest.approx(4 * OWN[:, 1] ** 2 / (OTHERS[:, 1] ** 2).sum(1))
    assert (bounds.votes_snr(OWN, GRAM, np.array([0.0, -1.0, 0.0]), 4) == 0).all()
    gap = 1.3  # all other logits equal: the law of `argmax_length`
    N = 200
    weight = np.full((1, 1), np.exp(gap))
    ratio = bounds.votes_snr(weight, np.full((1, 1, 1), N), np.ones(1), 4)[0]
    assert ratio == pytest.approx(bounds.critical_snr(4) * bounds.argmax_length(4, gap) / N)


def test_the_sum_is_the_best_of_independent_noises_and_one_combination_is_no_better():
    diagonal = GRAM * np.eye(3)
    pairs = zip(OWN, diagonal, strict=True)
    best = np.array([bounds.votes_snr(a[None], G[None], np.linalg.solve(G, a), 4)[0] for a, G in pairs])
    assert bounds.summed_snr(OWN, GRAM, 4) == pytest.approx(best)
    assert (bounds.votes_snr(OWN, diagonal, bounds.vote_weights(OWN, diagonal), 4) <= best + 1e-12).all()


def test_the_weights_are_those_with_the_best_mean_signal_for_its_mean_noise():
    weights = bounds.vote_weights(OWN, GRAM)
    assert np.linalg.norm(weights) == pytest.approx(1)

    def quality(u):
        return (OWN.mean(0) @ u) ** 2 / (u @ GRAM.mean(0) @ u)

    assert all(quality(weights) >= quality(weights + 0.1 * RNG.normal(size=3)) for _ in range(100))


def test_recalls_of_arrays_are_those_of_numbers():
    snr = np.array([[0.0, 0.01, 0.7], [3.0, 40.0, 1e6]])
    assert bounds.gaussian_recalls(snr, 4) == pytest.approx(
        np.array([[bounds.gaussian_recall(x, 4) for x in row] for row in snr]), abs=1e-5
    )
    for wrong in (-1.0, np.nan):
        with pytest.raises(ValueError, match="numbers >= 0"):
            bounds.gaussian_recalls(np.array([wrong]), 4)
