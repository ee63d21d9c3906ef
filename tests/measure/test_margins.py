"""Labelings with a margin: every one is listed once, and linear programs list those that are memorised."""

import math

import numpy as np
import pytest
import torch
from networks import normal

from prompt_memory import bounds, measure
from prompt_memory.network.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)


def test_best_margins_lists_every_labeling_once():
    model = Transformer(TransformerConfig(d=2, q=3)).double()
    prompts, queries = normal(50, 1, 2), normal(3, 1, 2, seed=1)
    labels, gaps = measure.labels_and_gaps(model, prompts, queries, chunk=7)
    margins = measure.best_margins(labels, gaps)
    logits = model(prompts, queries)
    best = {}
    for row in logits:
        top = row.sort(-1, descending=True).values
        label = tuple(row.argmax(-1).tolist())
        best[label] = max(best.get(label, 0), (top[:, 0] - top[:, 1]).min().item())
    assert len(margins) == len(best) > 1
    assert margins == pytest.approx(sorted(best.values(), reverse=True), rel=1e-12)
    assert gaps.shape == labels.shape == (50, 3)


def test_chosen_queries_memorise_more_than_one_alone_and_stop_in_time():
    """Three thresholds on a line: the outer two leave no room at the margin, so that greed must leave one out."""
    prompts = np.linspace(-1, 1, 201)
    slopes = prompts[:, None] - np.array([-0.4, 0.0, 0.05, 0.6, 5.0])
    labels, gaps = (slopes > 0).astype(np.uint8), np.abs(slopes)
    chosen = measure.choose_queries(labels, gaps, 0.15)
    assert sorted(chosen) in ([0, 1, 3], [0, 2, 3])
    assert (measure.best_margins(labels[:, chosen], gaps[:, chosen]) > 0.15).sum() == 4
    assert len(measure.choose_queries(labels, gaps, 0.15, most=2)) == 2
    assert measure.choose_queries(labels, gaps, 9.0) == []


@pytest.mark.parametrize(("n", "q"), [(1, 2), (3, 2), (5, 2), (3, 3), (2, 4)])
def test_price_labelings_are_those_that_random_prices_give(n, q):
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(n, q))
    labels, prices = measure.price_labelings(scores)
    assert ((prices[:, None] + scores).argmax(-1) == labels).all()
    drawn = rng.normal(size=(200_000, q)) * 3
    seen = {tuple(y) for y in np.unique((drawn[:, None] + scores).argmax(-1), axis=0).tolist()}
    listed = {tuple(y) for y in labels.tolist()}
    assert seen == listed
    assert len(listed) == bounds.shared_token_labelings(n, q) == math.comb(n + q - 1, q - 1)


def test_ties_are_refused():
    with pytest.raises(ValueError, match="not unique"):
        measure.price_labelings(np.zeros((2, 2)))
