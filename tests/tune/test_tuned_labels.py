"""Labelings that tuning finds are those that are allowed."""

import pytest
import torch
from networks import drawn, generic

from prompt_memory import measure, tasks, tune
from prompt_memory.network.shared_token import shared_texts

torch.set_num_threads(1)


def test_tuned_labelings_are_the_allowed_ones():
    model, generator = generic(9, d=8, q=2, heads=1, d_k=4, d_v=5)
    contents, read = drawn(generator, 4, 8), 0.5 * drawn(generator, 8)
    logits, masses, _ = measure.without_prompt(model, contents, read)
    order = torch.argsort(masses[:, 0] * (logits[:, 1] - logits[:, 0]))
    thresholds = {tuple(int(i in order[k:]) for i in range(4)) for k in range(5)}  # an independent count
    allowed, _ = measure.price_labelings((masses * logits).numpy())
    assert {tuple(y) for y in allowed.tolist()} == thresholds
    labels = tasks.all_labels(4, 2).repeat_interleave(4, 0)
    queries = shared_texts(contents, read)
    prompts, success = tune.tune_labels(model, queries, labels, drawn(generator, 64, 3, 8), steps=150)
    assert (success == (model(prompts, queries).argmax(-1) == labels).all(1)).all()
    assert {tuple(y) for y in labels[success].tolist()} == thresholds


@pytest.mark.parametrize(
    ("labels", "steps", "message"),
    [
        (torch.full((2, 4), 2), 5, r"labels must have the shape \[2, 4\] and lie in 0 … 1"),
        (torch.zeros(2, 3, dtype=torch.long), 5, r"labels must have the shape \[2, 4\] and lie in 0 … 1"),
        (torch.full((2, 4), -1), 5, r"labels must have the shape \[2, 4\] and lie in 0 … 1"),
        (torch.zeros(2, 4, dtype=torch.long), -1, "steps must be an integer >= 0, not -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, steps, message):
    model, generator = generic(9, d=8, q=2, heads=1, d_k=4, d_v=5)
    queries = shared_texts(drawn(generator, 4, 8), drawn(generator, 8))
    with pytest.raises(ValueError, match=f"^{message}$"):
        tune.tune_labels(model, queries, labels, drawn(generator, 2, 3, 8), steps=steps)
