"""Ranks from random products, against the whole Jacobian."""

import math

import numpy as np
import pytest
import torch
from checkpoints import MARKS, D, Q, normal, refused, seeded, some_tokens

from prompt_memory import measure
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.real import models
from prompt_memory.real.ranks import sketched_rank

pytestmark = MARKS


@pytest.mark.parametrize(("m", "n", "copies", "rows"), [(1, 6, 1, 32), (3, 2, 1, 46), (3, 1, 6, 32)])
def test_the_sketch_has_the_rank_of_the_whole_jacobian(family, folder, m, n, copies, rows):
    model, prompt, queries = models.load(folder), normal(m, D), some_tokens(n, 2).repeat(copies, 1)
    found = sketched_rank(model, prompt, queries, rows=4, generator=seeded())
    values = measure.singular_values(model, prompt, queries)
    assert found.rank == measure.jacobian_rank(model, prompt, queries)
    # LayerNorm hides the mean of the coordinates of a token and of an output, RMSNorm with ε₀ > 0 hides nothing
    width = D - 1 if family in ("gpt2", "gpt_neox") else D
    assert found.rank == min(m, n) * width
    assert (found.rows, found.complete) == (rows, True)
    assert found.gap > 1e4
    ratio = found.values[: found.rank].numpy() / values[: found.rank]
    assert (ratio > 0.1).all()
    assert (ratio < 5).all()
    if rows == n * copies * Q:  # all of the Jacobian
        np.testing.assert_allclose(ratio, 1, rtol=1e-5)
    assert model.dtype == torch.float32


def test_strings_are_queries_too(folder):
    """Read at every token, a string gives T·q numbers; the first is read after its first token."""
    model, prompt, string = models.load(folder), normal(1, D), some_tokens(1, 4)
    one = sketched_rank(model, prompt, string[:, :1], generator=seeded(), dtype=None, tolerance=1e-5)
    every = sketched_rank(model, prompt, string, read="all", generator=seeded())
    double = models.load(folder, "float64")
    J = torch.autograd.functional.jacobian(lambda p: double(p[None], string, read="all").flatten(), prompt.double())
    assert every.rank == torch.linalg.matrix_rank(J.flatten(1), rtol=1e-9)
    assert one.values.dtype == torch.float32
    assert one.rank <= every.rank


def test_the_sketch_counts_what_is_there_and_says_when_it_ended_early():
    config = TransformerConfig(d=6, q=3, depth=1, norm="rms", norm_eps=0.0)  # one coordinate of each token is lost
    model, prompt, queries = Transformer(config, generator=seeded()), normal(4, 6), normal(40, 6, seed=1)
    whole = sketched_rank(model, prompt, queries, rows=3, generator=seeded())
    assert (whole.rank, whole.complete) == (20, True)
    assert whole.rank == measure.jacobian_rank(model, prompt, queries)
    early = sketched_rank(model, prompt, queries, rows=3, most=7, generator=seeded())
    assert (early.rank, early.rows, early.complete, early.gap) == (7, 7, False, math.inf)
    assert sketched_rank(model, prompt, queries, rows=3, most=40, generator=seeded()).complete
    same, other = (sketched_rank(model, prompt, queries, rows=3, generator=seeded(s)) for s in (0, 1))
    assert torch.equal(whole.values, same.values)
    assert not torch.equal(whole.values, other.values)
    model.unembedding.zero_()
    assert sketched_rank(model, prompt, queries, rows=3, generator=seeded())[0] == 0


def test_bad_input_to_a_rank_gets_one_sentence(folders):
    model, prompt, ids = models.load(folders["llama"]), normal(2, D), some_tokens(2, 3)

    def rank(*arguments, **settings):
        return sketched_rank(model, *arguments, generator=seeded(), **settings)

    refused(lambda: rank(prompt * math.nan, ids), "must be finite$")
    refused(lambda: rank(prompt, ids[:0]), "at least one query")
    refused(lambda: rank(normal(2, 2, D), ids), "of one prompt, not of a batch of 2$")
    refused(lambda: rank(prompt, ids, tolerance=1.0), "tolerance must lie between 0 and 1")
    refused(lambda: rank(prompt, ids, rows=0), "rows must be an integer >= 1, not 0$")
    refused(lambda: rank(prompt, ids, most=2.5), "most must be an integer >= 1, not 2.5$")
