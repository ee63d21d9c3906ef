"""Exact moments of logits and votes under random facts, and the recall that they predict, against brute force."""

import math

import numpy as np
import pytest
import torch
from recalling import facts_of, trained

from prompt_memory import bounds
from prompt_memory.measure import fact_moments
from prompt_memory.network import recall

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def family():
    return trained()


@pytest.mark.parametrize("member", [1, 2])
def test_statistics_are_those_of_a_large_sample(family, member):
    keys, labels = facts_of(family, member, 3)
    many, values = facts_of(family, member, 2**17, seed=1)
    r = recall.reader(family, member)
    found = fact_moments.statistics(r, keys, labels)
    x = keys.double()
    s = r.scores(x, many.double(), values)
    target = r.scores(x, x, labels).diagonal()
    ratio = (s - target[:, None]).exp().numpy()
    for i in range(3):
        votes = torch.cat([r.votes(many.double(), values) + x[i] @ r.residual, torch.ones(len(many), 1)], 1).numpy()
        for power, exact in ((1, found.mean[i]), (2, found.square[i])):
            terms = ratio[i][:, None] ** power * votes
            if power == 2:
                terms = (terms[:, :, None] * votes[:, None]).reshape(len(many), -1)
                exact = exact.ravel()
            error = terms.std(0) / math.sqrt(len(many))
            assert (np.abs(terms.mean(0) - exact) < 6 * error + 1e-12).all()
        own = torch.cat([r.votes(keys[i : i + 1].double(), labels[i : i + 1])[0] + x[i] @ r.residual, torch.ones(1)])
        np.testing.assert_allclose(found.signal[i], own, rtol=1e-10)
        logits = r.scores(x[i : i + 1], x[[i] * r.key_votes.shape[1]], torch.arange(r.key_votes.shape[1]))
        assert math.isclose(found.most[i], logits.max() - target[i], abs_tol=1e-10)
    np.testing.assert_allclose(
        fact_moments.mean_votes(r, keys) * np.exp(-target.numpy())[:, None], found.mean[:, :-1], rtol=1e-9
    )
    gaps = fact_moments.gaps(r, keys)
    q = r.key_votes.shape[1]
    everything = (
        r.scores(x.repeat_interleave(q, 0), x.repeat_interleave(q, 0), torch.arange(q).repeat(3))
        .diagonal()
        .exp()
        .mean()
    )
    assert math.isclose(gaps.mean, math.log(everything / s.exp().mean()), abs_tol=0.05)
    assert math.isclose(gaps.square, math.log(everything / (2 * s).exp().mean().sqrt()), abs_tol=0.1)


def test_statistics_on_the_sphere_by_quadrature(family):
    """Keys in three dimensions: Gauss and Legendre along the axis, equal angles around it."""
    heights, along = np.polynomial.legendre.leggauss(40)
    angles = 2 * np.pi * np.arange(80) / 80
    z, angle = (grid.ravel() for grid in np.meshgrid(heights, angles, indexing="ij"))
    round_ = np.sqrt(1 - z**2)
    keys = torch.from_numpy(np.stack([round_ * np.cos(angle), round_ * np.sin(angle), z], 1))
    weights = np.repeat(along, 80) / 160
    for member in (0, 1):
        q = family.members[member].q
        r = recall.reader(family, member)
        x, labels = facts_of(family, member, 4, seed=9)
        x = x.double()
        found = fact_moments.statistics(r, x, labels)
        target = r.scores(x, x, labels).diagonal()
        for i in range(4):
            mean, square = 0, 0
            for v in range(q):
                values = torch.full((len(keys),), v)
                e = (r.scores(x[i : i + 1], keys, values)[0] - target[i]).exp().numpy() * weights / q
                votes = torch.cat([r.votes(keys, values) + x[i] @ r.residual, torch.ones(len(keys), 1)], 1).numpy()
                mean = mean + e @ votes
                square = square + (votes * (e**2 / weights * q)[:, None]).T @ votes
            np.testing.assert_allclose(found.mean[i], mean, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(found.square[i], square, rtol=1e-7, atol=1e-9)


def test_predicted_recall_is_the_law_for_independent_normal_votes():
    q, N, snr = 5, 400, 3.0
    noise = math.sqrt(1 / (snr * (N - 1)))
    square = np.zeros((2000, q + 1, q + 1))
    square[:, range(q), range(q)] = noise**2
    own = np.eye(q + 1)[np.arange(2000) % q]
    own[:, -1] = 1
    exact = fact_moments.Statistics(own, np.zeros((2000, q + 1)), square, np.arange(2000) % q, np.zeros(2000))
    generator = torch.Generator().manual_seed(0)
    found = fact_moments.predicted_recall(exact, [N], (0.0,), generator=generator)[0, 0]
    assert abs(found - bounds.gaussian_recall(snr, q)) < 0.01
    biased = exact._replace(mean=np.tile([1.0, 0, 0, 0, 0, 0], (2000, 1)))
    biased.square[:, 0, 0] += 1  # the covariance stays what it was
    assert fact_moments.predicted_recall(biased, [N], (0.0,), generator=generator)[0, 0] == pytest.approx(
        1 / q, abs=0.01
    )
    calibrated = fact_moments.predicted_recall(biased, [N], (0.0,), generator=generator, biased=False)[0, 0]
    assert abs(calibrated - bounds.gaussian_recall(snr, q)) < 0.01
