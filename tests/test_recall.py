"""The recalling family, the statistics that predict it, and the formulas of Theorem 8, against brute force."""

import itertools
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import stats

from prompt_memory import bounds, measure, pretrain, recall, tasks
from prompt_memory.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)

TINY = recall.RecallFamily(head_sizes=(3, 6), values=(2, 5), facts=(4,), copies=1, d_v=6, steps=150, batch=16, seed=1)


@pytest.fixture(scope="module")
def family():
    return pretrain.train(TINY).transformer


def facts_of(family, member, count, seed=0):
    h, q, *_ = family.members[member]
    normal, unit = recall.random_facts(torch.Generator().manual_seed(seed), count, family.width)
    return recall.keys_of(normal, h), (unit * q).long()


def outputs(family, member, keys, labels, asked):
    """Logits [n, q] by the book's transformer."""
    h = family.members[member].head
    pad = torch.nn.functional.pad
    tokens = torch.cat([pad(keys, (0, family.width - h)), torch.nn.functional.one_hot(labels, family.q)], 1)
    return family.transformer(member)(tokens[None], pad(asked, (0, family.d - h)), own_token=False)[0]


# --- the family ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", range(4))
def test_a_member_is_the_transformer_of_the_book(family, member):
    keys, labels = facts_of(family, member, 4)
    h, q, *_ = family.members[member]
    wanted = outputs(family, member, keys, labels, keys)
    r = recall.reader(family, member)
    weights = r.scores(keys.double(), keys.double(), labels).softmax(-1)
    direct = weights @ r.votes(keys.double(), labels) + keys.double() @ r.residual
    torch.testing.assert_close(direct.float(), wanted, atol=2e-4, rtol=1e-4)
    # the training pass, for all members at once: facts beyond the training length are not seen
    R = len(family.members)
    padded = torch.nn.functional.pad(keys, (0, family.width - h))
    more = torch.cat([padded, torch.randn(3, family.width)])[None, None].expand(R, 1, -1, -1)
    every = family(
        more, torch.cat([labels, torch.zeros(3, dtype=torch.long)]).expand(R, 1, -1), padded.expand(R, 1, -1, -1)
    )
    torch.testing.assert_close(every[member, 0, :, :q], wanted, atol=2e-4, rtol=1e-4)
    assert torch.isinf(every[member, 0, :, q:]).all()


def test_training_teaches_every_member_and_repeats_itself(family):
    generator = torch.Generator().manual_seed(5)
    before = recall.Recaller(TINY)
    found = recall.measure_recall(family, 4, 50, 4, (0.0,), generator=generator).recall.mean((1, 2))
    untrained = recall.measure_recall(before, 4, 50, 4, (0.0,), generator=generator).recall.mean((1, 2))
    assert (found > untrained + 0.2).all()
    again = pretrain.train(TINY).transformer
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), family.state_dict().values(), strict=True)
    )
    assert not torch.equal(pretrain.train(replace(TINY, seed=2, steps=1)).transformer.key, again.key)


def test_a_family_is_saved_and_comes_back(family, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "RECIPES", {"tiny": TINY, "other": replace(TINY, steps=2)})
    model = pretrain.FrozenModel(TINY)
    model.transformer.load_state_dict(family.state_dict())
    pretrain.save(model, tmp_path / "tiny.safetensors")
    loaded = pretrain.load("tiny", tmp_path)
    assert torch.equal(loaded.transformer.query, family.query)
    (tmp_path / "tiny.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="another recipe"):
        pretrain.load("other", tmp_path)
    assert len(asdict(TINY)["head_sizes"]) == 2
    family = recall.Recaller(TINY)
    family.key[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="the weight key"):
        family.require_finite()


# --- statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [1, 2])
def test_statistics_are_those_of_a_large_sample(family, member):
    keys, labels = facts_of(family, member, 3)
    many, values = facts_of(family, member, 2**17, seed=1)
    r = recall.reader(family, member)
    found = recall.statistics(r, keys, labels)
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
        recall.mean_votes(r, keys) * np.exp(-target.numpy())[:, None], found.mean[:, :-1], rtol=1e-9
    )
    gaps = recall.gaps(r, keys)
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
        found = recall.statistics(r, x, labels)
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
    exact = recall.Statistics(own, np.zeros((2000, q + 1)), square, np.arange(2000) % q, np.zeros(2000))
    generator = torch.Generator().manual_seed(0)
    found = recall.predicted_recall(exact, [N], (0.0,), generator=generator)[0, 0]
    assert abs(found - bounds.gaussian_recall(snr, q)) < 0.01
    biased = exact._replace(mean=np.tile([1.0, 0, 0, 0, 0, 0], (2000, 1)))
    biased.square[:, 0, 0] += 1  # the covariance stays what it was
    assert recall.predicted_recall(biased, [N], (0.0,), generator=generator)[0, 0] == pytest.approx(1 / q, abs=0.01)
    calibrated = recall.predicted_recall(biased, [N], (0.0,), generator=generator, biased=False)[0, 0]
    assert abs(calibrated - bounds.gaussian_recall(snr, q)) < 0.01


def test_spread_and_range_bound_what_they_say(family):
    for member in range(4):
        r = recall.reader(family, member)
        keys, labels = facts_of(family, member, 3000, seed=2)
        s = r.scores(keys.double(), keys.double(), labels)
        ranges = s.amax(1) - s.amin(1)
        assert ranges.max() <= recall.logit_range(r)
        assert ranges.max() > 0.7 * recall.logit_range(r)
        votes, q = r.votes(keys.double(), labels), r.key_votes.shape[1]
        spread = recall.vote_spread(r, keys[:20].double())
        for i in range(20):
            own = r.votes(keys[[i] * q].double(), torch.arange(q))
            brute = max(
                float(own[y, y] - own[y, z] - (votes[:, y] - votes[:, z]).min())
                for y, z in itertools.permutations(range(q), 2)
            )
            assert brute <= spread[i] <= 1.5 * brute


# --- measurement ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [0, 3])
def test_measured_recall_is_that_of_the_transformer_with_every_value(family, member):
    N, n, margins = 40, 6, (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    found = recall.measure_recall(
        family, N, 1, n, margins, generator=torch.Generator().manual_seed(7), members=[member]
    )
    _h, q, *_ = family.members[member]
    keys, labels = facts_of(family, member, N, seed=7)
    right, attention, excess, counts = np.zeros((n, q, 6)), 0, -np.inf, np.zeros((n, 6))
    r = recall.reader(family, member)
    spread = recall.vote_spread(r, keys[:n].double())
    for i in range(n):
        F, w = [], []
        for y in range(q):
            swapped = labels.clone()
            swapped[i] = y
            logits = outputs(family, member, keys, swapped, keys[i : i + 1])[0].double()
            lead = logits[y] - torch.cat([logits[:y], logits[y + 1 :]]).max()
            right[i, y] = [lead > margin for margin in margins]
            F.append(logits)
            w.append(r.scores(keys[i : i + 1].double(), keys.double(), swapped).softmax(-1)[0, i])
        s = r.scores(keys[i : i + 1].double(), keys.double(), labels)[0]
        attention = max(attention, s.softmax(0).max() / bounds.dilution(N, float(s.max() - s.min())))
        effect = max(F[y][y] - F[y][z] + F[z][z] - F[z][y] for y, z in itertools.permutations(range(q), 2))
        excess = max(excess, float(effect - spread[i] * max(w)))
        counts[i] = [spread[i] * max(w) <= 2 * margin for margin in margins]
    np.testing.assert_allclose(found.recall[0, 0], right.mean((0, 1)), atol=1e-6)
    assert found.attention[0] == pytest.approx(float(attention), abs=1e-5)
    assert found.excess[0] == pytest.approx(excess, abs=1e-3)
    assert found.diluted[0].tolist() == counts.sum(0).tolist()
    assert 0 < counts.mean() < 1
    assert len(set(found.diluted[0].tolist())) > 2


def test_sharper_logits_are_larger_keys_and_calibration_removes_a_bias(family):
    doubled, biased = recall.Recaller(TINY), recall.Recaller(TINY)
    doubled.load_state_dict(family.state_dict())
    doubled.key *= 2
    arguments = (100, 5, 20, (0.0, 0.3))
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    sharp = recall.measure_recall(family, *arguments, generator=generators[0], sharpen=np.full(4, 2.0))
    keyed = recall.measure_recall(doubled, *arguments, generator=generators[1])
    np.testing.assert_allclose(sharp.recall, keyed.recall, atol=0.02)
    np.testing.assert_allclose(sharp.excess, keyed.excess, atol=1e-3)
    assert np.abs(sharp.recall - recall.measure_recall(family, *arguments, generator=generators[2]).recall).max() > 0.02
    biased.load_state_dict(family.state_dict())
    biased.unembedding[:, :, 0] *= 1.5  # facts with value 0 cast heavier votes
    generator = torch.Generator().manual_seed(4)
    long = recall.measure_recall(biased, 300, 40, 30, (0.0,), generator=generator)
    assert (long.calibrated.mean(1) > long.recall.mean((1, 2)) + 0.004).all()


def test_diluted_questions_recall_one_value_at_most(family):
    found = recall.measure_recall(family, 400, 5, 20, (0.5, 4.0), generator=torch.Generator().manual_seed(3))
    assert (found.diluted > 0).any()
    assert (found.values <= 1).all()
    assert (found.excess <= 1e-4).all()
    assert (found.tight > 0.3).any()


def test_critical_length_interpolates_in_the_logarithm():
    assert recall.critical_length([8, 32, 128], [0.9, 0.6, 0.4]) == pytest.approx(64)
    assert recall.critical_length([8, 32], [0.9, 0.6]) == math.inf  # open ends
    assert recall.critical_length([8, 32], [0.4, 0.3]) == pytest.approx(8)
    many = recall.critical_length([8, 32, 128], [[[0.9, 0.6, 0.4], [1, 1, 1]], [[0.5, 0.9, 0.1], [0.7, 0.3, 0.6]]])
    np.testing.assert_allclose(many, [[64, np.inf], [8, 16]])


def test_retained_bits_of_arrays():
    lengths, curve = [2, 10, 50, 100], np.array([[1.0, 0.7, 0.26, 0.1], [0.99, 0.4, 0.25, 0.0]])
    for q in (2, 4, 7):
        wanted = [[N * bounds.rate(1 - a, q) for N, a in zip(lengths, row, strict=True)] for row in curve]
        np.testing.assert_allclose(recall.retained(lengths, curve, q), wanted, atol=1e-12)


def test_bootstrap_of_whole_curves():
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(60, 3, 2))
    draws = recall.resampled(values, rng, 4000)
    assert draws.shape == (4000, 3, 2)
    np.testing.assert_allclose(draws.std(0), values.std(0) / math.sqrt(60), rtol=0.1)
    low, high = recall.simultaneous(draws[:, :, 0])
    single = np.quantile(draws[:, 0, 0], [0.025, 0.975])
    assert low[0] < single[0] < values[:, 0, 0].mean() < single[1] < high[0]
    together = ((draws[:, :, 0] >= low) & (draws[:, :, 0] <= high)).all(1).mean()
    assert 0.94 < together < 0.97
    ends = np.array([[8.0, np.inf], [9.0, 40.0], [8.0, np.inf]])
    low, high = recall.critical_interval(ends, [8, 16, 32])
    assert low.tolist() == [0.0, 32.0]
    assert high.tolist() == [9.0, np.inf]
    low, high = recall.simultaneous(np.array([1.0, np.inf, 2.0, np.inf] * 100))
    assert (low, high) == (1.0, np.inf)


# --- any encoder ---------------------------------------------------------------------------------------------------


def test_all_contexts_are_what_the_network_says():
    model = Transformer(TransformerConfig(d=3, q=3, heads=1, d_k=2, inverse_temperature=2.0))
    queries = tasks.random_queries(5, 3, generator=torch.Generator().manual_seed(0))
    table, counts = recall.all_contexts(model, queries, 5)
    assert len(counts) == sum(math.comb(m + 2, 2) for m in range(1, 6)) == len({tuple(row) for row in counts.tolist()})
    assert counts.sum(1).min() == 1
    assert counts.sum(1).max() == 5
    for row in (0, 7, -1):
        prompt = model.embedding[torch.from_numpy(np.repeat(range(3), counts[row]))][None]
        logits = model(prompt, queries, own_token=False)[0]
        np.testing.assert_allclose(table[row], (logits[:, 1] - logits[:, 0]) / 2, atol=1e-5)


def test_cells_cover_and_are_few():
    table = np.random.default_rng(0).uniform(size=(500, 1))
    assert 5 <= recall.cells(table, 0.1) <= 11  # a unit interval needs five balls of radius 0.1
    assert recall.cells(np.repeat(table[:3], 10, 0), 1e-9) == 3
    separated = np.array(list(itertools.product([0, 1], repeat=4)), dtype=float)
    assert recall.cells(separated, 0.49) == 16
    assert recall.cells(separated, 1.0) == 1


def test_tuned_contexts_recall_few_facts_and_are_scored_by_the_transformer(family):
    generator = torch.Generator().manual_seed(0)
    r = recall.reader(family, 0)
    x = recall.keys_of(torch.randn(6, 3, generator=generator), 3)
    labels = tasks.random_labels(4, 6, 2, generator=generator)
    margin = 0.2
    start = recall.encode(r, x, labels, 6, margin, steps=0, generator=generator)
    for row, score in zip(labels, start, strict=True):  # untuned: the facts themselves
        lead = (2 * row - 1) * outputs(family, 0, x, row, x).diff(dim=1)[:, 0]
        assert abs((lead > margin).double().mean() - score) <= 1 / 6 + 1e-9
    tuned = recall.encode(r, x, labels, 6, margin, steps=200, generator=generator)
    assert (tuned >= start - 1 / 6).all()
    assert tuned.mean() > start.mean()
    B, S = recall.swing(r)
    keys = torch.nn.functional.normalize(torch.randn(20000, 3, generator=generator).double(), dim=1)
    codes = torch.nn.functional.normalize(torch.randn(20000, 2, generator=generator).double(), dim=1)
    logits = (keys[:500] @ r.by_key) @ keys.T + (keys[:500] @ r.by_value) @ codes.T
    votes = keys @ r.key_votes + codes @ r.value_votes
    # keys and codes that are best together are rare among random ones
    assert 0.7 * B < logits.abs().max() <= B
    assert 0.8 * S < (votes[:, 1] - votes[:, 0]).abs().max() / 2 <= S


# --- the formulas of Theorem 8 -------------------------------------------------------------------------------------


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


def weights_of(model):
    return {name: weight.double().numpy() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_exchange_effect_is_attained_by_uniform_attention(depth, causal):
    """Where attention is flat and values are the tokens, the first of n tokens moves the logits by just that much."""
    model = recall.averaging_network(depth, causal=causal)
    query = torch.zeros(1, 1, 1, dtype=torch.float64)
    for n in (1, 2, 7, 40):
        prompt, token = torch.zeros(n, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        moved = recall.exchanged(model, prompt, token, query, own_token=False)
        later = recall.exchanged(model, prompt, token, query, place=n - 1, own_token=False)
        assert later == pytest.approx(moved) if n == 1 or depth == 1 or not causal else later < moved
        effect = bounds.exchange_effect(model.config, weights_of(model), n, radius=1.0, query_radius=0.0, change=1.0)
        assert moved == pytest.approx(effect, rel=1e-12)
        closed = [sum(math.log(n) ** i / math.factorial(i) for i in range(k)) / n for k in range(1, depth + 1)]
        paths = [math.comb(depth, k) for k in range(1, depth + 1)]  # every layer passes on and averages
        if causal:
            assert effect <= np.dot(paths, closed) * (1 + 1e-12)
        else:
            assert effect == pytest.approx((2**depth - 1) / n)


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("own_token", [False, True])
def test_exchange_effect_bounds_what_one_token_does(positions, causal, own_token):
    generator = torch.Generator().manual_seed(8)

    def ball(*shape):
        return measure.into_ball(torch.randn(*shape, generator=generator, dtype=torch.float64), 1.0)

    most = 0.0
    for depth, norm, mlp in itertools.product((1, 2, 3), ("none", "rms"), (0, 6)):
        config = TransformerConfig(
            d=4, q=3, depth=depth, heads=2, mlp=mlp, norm=norm, norm_eps=0.5, causal=causal, positions=positions,
            inverse_temperature=0.3,
        )  # fmt: skip
        model = Transformer(config, generator=generator).double()
        for n, place in ((2, 0), (9, 0), (9, 8), (9, 4)):
            prompt, token, query = ball(n, 4), ball(1, 4)[0], ball(6, 2, 4)
            moved = recall.exchanged(model, prompt, token, query, place, own_token=own_token)
            effect = bounds.exchange_effect(
                config, weights_of(model), n, radius=1.0, query_radius=1.0, change=float((prompt[place] - token).norm())
            )
            most = max(most, moved / effect)
    assert 1e-3 < most <= 1


def test_exchange_effect_of_a_single_head_is_the_constant_of_lemma_7a():
    """One token at the top of the ball, all others at its bottom: e^{2B}(1 + 2B)/n in the limit of many."""
    model, n = Transformer(TransformerConfig(d=2, q=2)).double(), 20_000
    block = model.blocks[0]
    for weight in (block.query, block.key, block.value, block.output):
        weight.copy_(torch.eye(2))
    model.unembedding.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    prompt = torch.tensor([[-1.0, 0.0]], dtype=torch.float64).repeat(n, 1)
    prompt[0, 0] = 1
    query = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    moved = recall.exchanged(model, prompt, torch.tensor([1 - 1e-4, 0.0]).double(), query, own_token=False)
    effect = bounds.exchange_effect(model.config, weights_of(model), n, radius=1.0, query_radius=1.0, change=1e-4)
    B = 1 / math.sqrt(2)
    assert effect == pytest.approx(1e-4 * math.exp(2 * B) * (1 + 2 * B) / n)
    assert 0.999 < moved / effect <= 1
    for wrong in (dict(n=0), dict(change=-1.0), dict(radius=math.nan)):
        with pytest.raises(ValueError, match="must be"):
            bounds.exchange_effect(model.config, weights_of(model), **(dict(n=5, radius=1.0, query_radius=1.0) | wrong))
    scaled = replace(model.config, context_scaling="log")
    with pytest.raises(ValueError, match="context"):
        bounds.exchange_effect(scaled, weights_of(model), 5, radius=1.0, query_radius=1.0)


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


@pytest.mark.parametrize("contexts", [7, 24, 49])
def test_a_bootstrap_of_perfect_recall_is_perfect(contexts):
    """A mean of ones above one, by rounding, would be no recall: its bits are not a number."""
    draws = recall.resampled(np.ones((contexts, 3)), np.random.default_rng(0), 500)
    assert (draws == 1).all()
    assert np.isfinite(recall.retained([1, 2, 4], draws, 2)).all()
    with pytest.raises(ValueError, match="without NaN"):
        recall.simultaneous(np.array([[0.0], [np.nan]]))
