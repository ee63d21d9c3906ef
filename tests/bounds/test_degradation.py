"""The formulas of Theorem 8 against brute force, simulation and exact convolutions."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from prompt_memory import bounds
from prompt_memory.bounds import degradation


def test_dilution_is_attained_and_never_passed():
    rng = np.random.default_rng(0)
    for n, span in ((1, 3.0), (2, 0.0), (7, 2.5), (1000, 6.0)):
        worst = np.zeros(n)
        worst[0] = span
        attained = np.exp(worst[0]) / np.exp(worst).sum()
        assert bounds.dilution(n, span) == pytest.approx(attained, rel=1e-12)
        s = rng.uniform(0, span, size=(200, n))
        assert (np.exp(s).max(1) / np.exp(s).sum(1)).max() <= bounds.dilution(n, span) + 1e-12
    for wrong in ((0, 1.0), (2.5, 1.0), (3, -1.0), (3, math.inf)):
        with pytest.raises(ValueError, match="must be"):
            bounds.dilution(*wrong)


def test_dilution_range_is_what_a_share_needs():
    for n, share in ((2, 0.5), (1000, 0.1), (10**7, 0.9)):
        assert bounds.dilution(n, bounds.dilution_range(n, share)) == pytest.approx(share, rel=1e-12)
    assert bounds.dilution_range(1, 0.9) == bounds.dilution_range(10, 0.05) == 0
    for wrong in ((0, 0.5), (2, 0.0), (2, 1.0), (2, math.nan)):
        with pytest.raises(ValueError, match=r"integer|share"):
            bounds.dilution_range(*wrong)


def test_dilution_length_is_where_the_attention_is_too_small():
    for span, spread, eps in ((2.0, 10.0, 0.5), (5.0, 3.0, 0.1), (1.0, 1.0, 5.0)):
        N = bounds.dilution_length(span, spread, eps)
        if spread <= 4 * eps:
            assert N == 1
            continue
        assert spread * bounds.dilution(math.ceil(N), span) <= 4 * eps * (1 + 1e-12)
        assert spread * bounds.dilution(math.floor(N - 1e-9), span) > 4 * eps
    with pytest.raises(ValueError, match="eps"):
        bounds.dilution_length(1.0, 1.0, 0.0)


def test_diluted_recall_ceiling_against_a_simulated_sum():
    rng = np.random.default_rng(1)
    mu, m2, q, spread, eps = math.exp(0.5), math.exp(2.0), 4, 30.0, 0.25
    previous = 1.1
    for n in (10, 20, 40, 100, 400):
        weight = 1 / (1 + np.exp(rng.normal(size=(20000, n - 1))).sum(1))
        simulated = 1 / q + (1 - 1 / q) * (spread * weight > 4 * eps).mean()
        bound = bounds.diluted_recall_ceiling(n, q, mean=mu, square=m2, spread=spread, eps=eps)
        assert min(1, simulated) <= bound + 1e-9
        assert bound <= previous
        previous = bound
    assert previous == pytest.approx(1 / q, abs=1e-3)
    n, total = 30, 29 * mu
    theta = 1 - (spread / (4 * eps) - 1) / total
    wanted = 1 / q + (1 - 1 / q) * math.exp(-(theta**2) * total**2 / (2 * 29 * m2))
    assert bounds.diluted_recall_ceiling(n, q, mean=mu, square=m2, spread=spread, eps=eps) == pytest.approx(wanted)
    for few in (1, 2, 50):  # a spread of 4ε: no context is needed
        assert bounds.diluted_recall_ceiling(few, q, mean=mu, square=m2, spread=1.0, eps=0.25) == 1 / q
    assert bounds.diluted_recall_ceiling(1, q, mean=mu, square=m2, spread=1.01, eps=0.25) == 1
    with pytest.raises(ValueError, match="mean"):
        bounds.diluted_recall_ceiling(5, q, mean=2.0, square=1.0, spread=1.0, eps=1.0)


def exact_argmax_recall(values, law, own, n):
    """Two labels, one fact a token: others add `values` with the probabilities `law`, the fact asked for ±`own`."""
    total = np.array([1.0])
    for _ in range(n - 1):
        total = np.convolve(total, law)
    sums = (n - 1) * values[0] + np.arange(len(total))
    return (total[sums + own > 0].sum() + total[sums - own < 0].sum()) / 2


@pytest.mark.parametrize(("values", "law"), [((-1, 0, 1), (0.5, 0, 0.5)), ((-2, -1, 0, 1, 2), (0.1, 0.2, 0, 0.6, 0.1))])
def test_argmax_recall_ceiling_against_exact_convolutions(values, law):
    values, law, own = np.array(values), np.array(law), max(values)
    deviation = math.sqrt(law @ values**2 - (law @ values) ** 2)
    excess = []
    for n in (2, 3, 9, 64, 257):
        recalled = exact_argmax_recall(values, law, own, n)
        ceiling = bounds.argmax_recall_ceiling(n, 2, spread=2 * own, deviation=deviation)
        assert recalled <= ceiling
        excess.append((recalled - 0.5) * math.sqrt(n - 1) / (0.75 * 2 * own / deviation))
    if law @ values == 0:  # a normal sum without a bias has √(2/π)/3 = 0.266 of the bound
        assert excess[-1] == pytest.approx(math.sqrt(2 / math.pi) / 3, rel=0.02)
    assert max(excess) > 0.1


def test_the_constant_of_the_argmax_ceiling():
    """(1/K(θ)) √(π/c)/(2θ) with K(θ) = (sin(θ/2)/(θ/2))², c = (1 − cos 2θ)/4θ²: below 3/2 at θ = 4/3."""
    theta = 4 / 3
    kernel = (math.sin(theta / 2) / (theta / 2)) ** 2
    c = (1 - math.cos(2 * theta)) / (4 * theta**2)
    assert 1.498 < math.sqrt(math.pi / c) / (2 * theta * kernel) < 1.5
    with pytest.raises(ValueError, match="deviation"):
        bounds.argmax_recall_ceiling(5, 2, spread=1.0, deviation=0.6)
    assert bounds.argmax_recall_ceiling(1, 4, spread=1.0, deviation=0.5) == 1
    assert bounds.argmax_recall_ceiling(10_001, 4, spread=1.0, deviation=0.5) == pytest.approx(0.25 + 0.045)


def test_argmax_ceiling_for_three_values_by_counting():
    """Equal attention, votes for the own value: all counts of the other facts' labels."""
    for n in (10, 40):
        won = 0.0
        for a in range(n):
            for b in range(n - a):
                counts = np.array([a, b, n - 1 - a - b])
                probability = stats.multinomial.pmf(counts, n - 1, [1 / 3] * 3)
                won += probability * np.mean([counts[y] + 1 > np.delete(counts, y).max() for y in range(3)])
        # f_y − f_y' is 1, −1 or 0
        ceiling = bounds.argmax_recall_ceiling(n, 3, spread=2.0, deviation=math.sqrt(2 / 3))
        assert 1 / 3 + 0.05 * (ceiling - 1 / 3) < won <= ceiling


@pytest.mark.parametrize("q", [2, 5, 16])
def test_gaussian_recall_critical_ratio_and_plateau(q):
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(200_000, q))
    for snr in (0.0, 0.5, 4.0):
        won = (noise[:, 0] + math.sqrt(snr) > noise[:, 1:].max(1)).mean()
        assert abs(bounds.gaussian_recall(snr, q) - won) < 0.006
    assert bounds.gaussian_recall(2.0, 2) == pytest.approx(stats.norm.cdf(1.0))
    assert bounds.gaussian_recall(0.0, q) == pytest.approx(1 / q)
    recall_ = (1 + 1 / q) / 2
    snr = bounds.critical_snr(q, recall_)
    assert bounds.gaussian_recall(snr, q) == pytest.approx(recall_, rel=1e-9)
    N = bounds.argmax_length(q, 1.7, recall_)
    assert N * snr == pytest.approx(q * math.exp(3.4))
    n = 1e9  # far beyond the critical length the bits are the plateau
    tail = n * bounds.rate(1 - bounds.gaussian_recall(q * math.exp(3.4) / n, q), q)
    assert bounds.argmax_plateau_bits(q, 1.7) == pytest.approx(tail, rel=2e-3)
    with pytest.raises(ValueError, match="strictly"):
        bounds.critical_snr(q, 1 / q)


def test_votes_of_symmetric_facts_fall_to_a_half_where_the_law_says():
    """Direct simulation: N facts, equal logits but for the target's, votes for the own value."""
    rng = np.random.default_rng(3)
    q, gap = 8, 2.2
    N = round(bounds.argmax_length(q, gap))
    votes = rng.multinomial(N - 1, np.full(q, 1 / q), size=20000).astype(float)
    won = (votes[:, 0] + math.exp(gap) > votes[:, 1:].max(1)).mean()
    assert abs(won - 0.5) < 0.03


def test_other_tokens_count_in_the_spread():
    """A remark on part 2: with fixed tokens in the context the swap inequality needs the minimum over them too."""
    rng = np.random.default_rng(5)
    broken, tight = 0, 0.0
    for _ in range(2000):
        votes, logits = rng.normal(size=2), 2 * rng.normal(size=2)  # f_0 − f_1 of the own token with label 0 and 1
        other, s = rng.choice([-20, 20]), rng.normal()
        weight = np.exp(logits) / (np.exp(logits) + np.exp(s))
        gap = other + weight * (votes - other)
        effect = gap[0] - gap[1]
        facts, everything = (
            max(votes[0] - min(*votes, *more), max(*votes, *more) - votes[1]) * weight.max() for more in ((), (other,))
        )
        assert effect <= everything + 1e-12
        broken += effect > facts
        tight = max(tight, effect / everything)
    assert broken > 100
    assert tight > 0.9


@pytest.mark.parametrize("copies", [1, 3])
def test_one_fact_said_again_has_its_signal_multiplied(copies):
    """Without bias the critical length of a fact that stands r times is r² as large."""
    rng = np.random.default_rng(6)
    q, gap = 8, 3.0
    N = round(copies**2 * bounds.argmax_length(q, gap))
    votes = rng.multinomial(N - copies, np.full(q, 1 / q), size=20000).astype(float)
    won = (votes[:, 0] + copies * math.exp(gap) > votes[:, 1:].max(1)).mean()
    assert abs(won - 0.5) < 0.02


def test_part_three_exactly_on_small_tables():
    """Σ over all labelings: the best row of any list of tables with blanks, against log2 of its length."""
    rng = np.random.default_rng(4)
    for q, n, rows in ((2, 6, 3), (3, 4, 5), (2, 7, 16)):
        tables = rng.integers(0, q + 1, size=(rows, n))  # q is a blank
        labels = np.array(list(itertools.product(range(q), repeat=n)))
        best = (tables[None] == labels[:, None]).mean(2).max(1).mean()
        assert n * bounds.rate(1 - best, q) <= math.log2(rows) + 1e-12
        assert best <= bounds.pinsker_recall_ceiling(math.log2(rows), n, q) + 1e-12


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_an_exchanged_token_spreads_as_means_of_means_do(n):
    """The means of Theorem 8, part 5, by powers of the matrix that averages; the first token is seen most."""
    flat, causal = np.full((n, n), 1 / n), np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    for averages, masked in ((flat, False), (causal, True)):
        wanted = [np.linalg.matrix_power(averages, k)[-1].max() for k in range(1, 5)]
        assert degradation._exchanged_means(n, 4, masked) == pytest.approx([0.0, *wanted])
