"""Chapter 8b: what is counted of softmax weights, and sentences chosen from the data."""

import itertools
import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds
from prompt_memory.experiments import depth, depth_caches
from prompt_memory.network.deep_recall import DeepRecaller
from prompt_memory.network.transformer import TransformerConfig

torch.set_num_threads(1)


def member(**change):
    options = {"d": 8, "q": 2, "depth": 2, "heads": 2, "mlp": 8, "norm": "rms", "causal": True} | change
    return DeepRecaller(TransformerConfig(**options), 4, generator=torch.Generator().manual_seed(0))


def test_the_tally_is_that_of_all_values():
    weights = torch.tensor([[[0.3, 0.25, 0.2, 0.15, 0.04], [0.0, 0.5, 0.1, 0.1, 0.1]]])  # [1, 2, 5]
    combination = np.array([1.0, 0.2])
    votes = (torch.tensor([1.0, 0.2]) @ weights[0]).numpy()
    exact = np.mean([
        sum(v for v, y in zip(votes, values, strict=True) if y == values[0]) > votes.sum() / 2
        for values in itertools.product(range(2), repeat=5)
    ])  # fmt: skip
    g = torch.Generator().manual_seed(0)
    found = depth.tally(weights, torch.tensor([0]), combination, 2, g, draws=4000)
    assert found == pytest.approx(exact, abs=0.03)


def test_weights_are_split_into_the_asked_fact_and_the_others():
    network, g = member(), torch.Generator().manual_seed(1)
    keys, labels, asked = depth.context(network, 10, 4, g)
    reading = network.read(network.facts(keys, labels), network.questions(keys[asked]))
    weights = depth.weights_of(reading)
    assert weights.shape == (4, 4, 10)
    assert (weights.sum(-1) < 1).all()  # a question looks at itself as well
    layer, head, question = 1, 0, 2
    scores = torch.cat([reading.scores[layer, question, head], reading.own[layer, question, head][None]])
    assert torch.allclose(weights[question, 2 * layer + head], scores.softmax(-1)[:-1])
    own, gram = depth.split(weights, asked)
    assert own[2, 1] == pytest.approx(float(weights[2, 1, asked[2]]))
    others = np.delete(weights[2].double().numpy(), int(asked[2]), 1)
    assert gram[2] == pytest.approx(others @ others.T)
    assert 0 < depth.steepest(reading) <= 1


def test_the_lead_is_over_the_best_wrong_value():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 4.0]])
    assert depth.lead(logits, torch.tensor([0, 1])).tolist() == [1.0, -3.0]


def model(positions, critical, reads=0, layers=2):
    made = depth.Model(member(positions=positions, depth=layers), [32, 64])
    made.critical, made.share = critical, np.eye(4)[2 * reads]
    return made


def test_lengths_end_where_positions_and_settings_say():
    settings = depth.PROFILES["smoke"]
    assert settings.lengths(member(), 32)[-1] == 2**settings.longest
    assert settings.lengths(member(positions="rotary"), 32)[-1] == 2**settings.turned
    assert settings.count(32) == settings.contexts
    assert settings.count(2**20) == settings.contexts // 4


def test_sentences_follow_the_data():
    assert depth.spread_of([2.0, 1234.5], 1) == "2.0 to 1,234.5"
    assert depth.spread_of([-0.001, 0.001]) == "0.00"
    assert depth.spread_of([-0.5, math.inf]) == "−0.50 to ∞"
    plain, rotary = [model("none", 300.0), model("none", 330.0)], [model("rotary", 100.0), model("rotary", 150.0)]
    assert "at most 1.50" in depth.depth_sentence(plain, rotary)
    assert "2 times as far" in depth.depth_sentence(plain, rotary)
    assert depth.depth_sentence(plain[:1], rotary) == ""
    assert depth.depth_sentence(plain, [*rotary, model("rotary", math.inf)]) == ""
    assert model("none", 1.0, reads=1).reads == 1
    assert model("rotary", 1.0, layers=3).name == "three layers, rotary"
    for effect, word in ((-0.3, "gently"), (-0.9, "in step")):
        plain[0].slope = np.array([[effect], [-0.6]])
        assert word in depth.gain_sentence(depth.Result(plain[:1]))


def test_shortened_caches_count_kept_and_dropped_facts():
    made = depth.Model(member(positions="none", depth=1, d=4, heads=1, mlp=4, q=4), [16, 64])
    made.forecast = {"tally": np.array([1.0, 0.7])}
    made.share = np.ones(1)
    settings = depth_caches.Settings((0, 3), contexts=2, questions=40, resamples=10)
    assert settings.of(made) == [0]  # for degree 3 a layer would keep more than the 64 positions it has
    (run,) = depth_caches.shorten(made, settings, torch.Generator().manual_seed(0))
    assert (run.facts, run.degree) == (64, 0)
    assert run.positions < 64
    assert (run.kept[:, 1] + run.dropped[:, 1]).tolist() == [40, 40]
    assert (run.kept[:, 0] + run.dropped[:, 0]) / 40 == pytest.approx(run.moments)
    run.kept, run.dropped = np.array([[3.0, 4], [1, 4]]), np.array([[1.0, 10], [2, 5]])
    assert (run.kept_recall, run.dropped_recall) == (0.5, 0.2)


def test_the_least_degree_by_trying_all():
    for B in (0.5, 3.0):
        assert depth_caches.needed_degree(B) == next(k for k in range(60) if bounds.softmax_remainder(k, B) < 0.5)


def test_a_cache_is_shortened_at_the_longest_length_with_half_recall():
    made = depth.Model(member(), [8, 16, 32])
    for recall, longest in ((np.array([0.9, 0.6, 0.4]), 16), (np.array([0.4, 0.3, 0.2]), 8)):
        made.forecast = {"tally": recall}
        assert depth_caches.length(made) == longest
