"""How many facts a context holds, against whole tables and exhaustive searches."""

import itertools
import math

import numpy as np
import pytest

from prompt_memory import measure, tasks
from prompt_memory.measure import load
from prompt_memory.network import associative


def test_argmax_recalls_random_distinct_keys():
    rng = np.random.default_rng(3)
    keys, values = associative.random_keys(2000, 2, rng), tasks.signs((2, 2000), rng)
    assert (associative.readings(keys, values, math.inf) == values).all()
    tie = associative.readings(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, -1.0]]), math.inf)
    assert (tie == 0).all()  # equal keys share


@pytest.mark.parametrize(("n", "d_k", "B"), [(2, 2, 1.0), (30, 3, 8.0), (60, 8, 9.0)])
def test_random_recall_is_that_of_whole_tables(n, d_k, B):
    rng, eps, tables = np.random.default_rng(4), 0.5, 3000
    recalled = []
    for _ in range(tables):
        keys, labels = associative.random_keys(n, d_k, rng), tasks.signs((1, n), rng)
        recalled.append(load.recalled(associative.readings(keys, labels, B), labels, eps)[0])
    trials = 20_000
    found = load.random_recall(n, d_k, B, eps=eps, trials=trials, rng=rng, chunk=1000 * n) / trials
    error = math.hypot(np.std(recalled) / math.sqrt(tables), 0.5 / math.sqrt(trials))
    assert abs(found - np.mean(recalled)) < 5 * error
    assert 0.02 < found < 0.98
    with pytest.raises(ValueError, match="d_k >= 2"):
        load.random_recall(n, 1, B, eps=eps, trials=2, rng=rng)


def test_best_load_finds_what_an_exhaustive_search_finds():
    """Exact recall of every M up to 12 at B = 4 by enumerating labels, against the sampled search."""
    exact = {}
    for M in range(1, 13):
        labels = np.array(list(itertools.product((-1.0, 1.0), repeat=M)))
        recall = load.recalled(associative.circle_readings(labels, 4.0), labels, 0.5).mean()
        exact[M] = measure.retained_bits(recall, M)
    rng = np.random.default_rng(6)
    best = load.best_load(100, lambda n: 4.0, associative.circle_readings, eps=0.5, trials=64, rng=rng)
    assert best.facts == max(exact, key=exact.get) == 6
    assert best.bits == pytest.approx(6)
    # the temperature is that of the tokens used: 3 facts on 5 tokens make 3 tokens, not 5
    seen = []
    load.best_load(5, lambda n: seen.append(n) or 1.0, associative.circle_readings, eps=0.5, trials=2, rng=rng, most=3)
    assert set(seen) == {5, 4, 3}


def test_retained_bits_and_recall():
    labels = np.array([[1.0, 1, -1, -1]])
    read = np.array([[0.6, 0.5, -0.7, 0.9]])
    assert load.recalled(read, labels, 0.5) == pytest.approx([0.5])  # 0.5 is not above 0.5
    assert measure.retained_bits(1.0, 9) == 9
    assert measure.retained_bits(0.5, 9) == 0
    assert measure.retained_bits(0.75, 4) == pytest.approx(4 * (1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))


def test_growth_tells_the_laws_apart():
    sizes = 2.0 ** np.arange(4, 20)
    power = load.growth(sizes, 3 * sizes**0.7)
    assert power.power == pytest.approx(0.7)
    assert power.better == "power"
    assert power.held_power < 1e-9
    log = load.growth(sizes, 2 * np.log(sizes) ** 1.5)
    assert log.polylog == pytest.approx(1.5)
    assert log.better == "polylog"
    # the last quarter of the octaves is hidden: what happens there changes no fitted line
    bent = 2 * np.log(sizes) ** 1.5
    bent[-1] *= 2
    assert load.growth(sizes, bent).held_polylog == pytest.approx(math.log(2) / 4)


def test_poisson_limit_against_a_long_circle():
    rng = np.random.default_rng(7)
    limit = load.poisson_recall(0.5, eps=0.5, samples=40_000, rng=rng)
    found = []
    for _ in range(20):
        keys, labels = associative.random_keys(500, 2, rng), tasks.signs((1, 500), rng)
        found.append(load.recalled(associative.readings(keys, labels, 0.5 * 500**2), labels, 0.5).mean())
    assert np.mean(found) == pytest.approx(limit, abs=0.02)  # standard error below 0.005


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: load.growth([2, 4], [1, 1]), "six sizes"),
        (lambda: load.poisson_recall(0.0, eps=0.5, samples=9, rng=np.random.default_rng(0)), "kappa"),
        (
            lambda: load.best_load(
                5, abs, associative.circle_readings, eps=0.5, trials=2, rng=np.random.default_rng(0), most=0
            ),
            "most",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
