"""Exact compression against softmax attention written out, linear programs, and all subsets of small prompts."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, nnls

from prompt_memory import bounds, compress, tasks
from prompt_memory.network.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)
SHAPES = [(1, 1, 1), (3, 1, 2), (2, 3, 1), (4, 2, 3)]  # n, heads, d_v


def instance(m, n, heads, d_v, d=6, sharpness=1.0, seed=0):
    rng = np.random.default_rng(seed)
    tokens, queries = rng.normal(size=(m, d)), rng.normal(size=(n, d))
    A = sharpness * rng.normal(size=(heads, d, d)) / np.sqrt(d)
    return tokens, queries, A, rng.normal(size=(heads, d_v, d)) / np.sqrt(d)


def plain(tokens, queries, A, V, weights=None, own=0.0):
    """Attention over weighted tokens, one query and head after the other: [n, H, d_v]."""
    weights = np.ones(len(tokens)) if weights is None else weights
    outputs = np.zeros((len(queries), len(A), V.shape[1]))
    for i, x in enumerate(queries):
        seen, masses = (np.vstack([tokens, x]), np.append(weights, own)) if own else (tokens, weights)
        for h in range(len(A)):
            logits = seen @ (A[h] @ x)
            p = masses * np.exp(logits - logits.max())
            outputs[i, h] = p @ (seen @ V[h].T) / p.sum()
    return outputs


def conditions(tokens, queries, A, V, own=0.0):
    """The matrix [N, m] of e^{s}(V z − o), rows scaled to their largest entry, and the right side of own tokens [N]."""
    outputs = plain(tokens, queries, A, V, own=own)
    rows, right = [], []
    for i, x in enumerate(queries):
        for h in range(len(A)):
            logits = tokens @ (A[h] @ x)
            e = np.exp(logits - logits.max())[:, None] * (tokens @ V[h].T - outputs[i, h])
            e_own = own * np.exp(x @ A[h] @ x - logits.max()) * (V[h] @ x - outputs[i, h])
            size = np.abs(e).max(0)
            rows += list((e / size).T)
            right += list(-e_own / size)
    return np.array(rows), np.array(right)


def least_residual(matrix, right):
    """min over w >= 0 of ‖matrix w − right‖, with Σ w = 1 if the right side is 0."""
    if not right.any():
        matrix, right = np.vstack([matrix, np.ones(matrix.shape[1])]), np.append(right, 1.0)
    return nnls(matrix, right)[1]


def check(c, arrays, own=0.0, weights=None, tolerance=1e-12):
    tokens, queries, A, V = arrays
    assert (c.weights > 0).all()
    assert c.weights.sum() == pytest.approx(1, abs=1e-14)
    assert (np.diff(c.indices) > 0).all()
    assert 0 <= c.indices.min() <= c.indices.max() < len(tokens)
    own_weight = c.own if own else 0.0
    short = plain(tokens[c.indices], queries, A, V, c.weights, own_weight)
    scale = np.abs(np.einsum("hvd,jd->hjv", V, tokens)).max()
    assert np.abs(short - plain(tokens, queries, A, V, weights, own)).max() <= 2 * tolerance * scale


@pytest.mark.parametrize("own", [0.0, 1.0, 0.03])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("m", [1, 2, 7, 40, 2000])
def test_few_tokens_give_the_same_outputs(shape, m, own):
    arrays = instance(m, *shape, seed=m)
    c = compress.caratheodory(*arrays, own=own)
    check(c, arrays, own=own)
    count = bounds.caratheodory_count(*shape, own=own > 0, tokens=m)
    assert len(c.indices) == count  # at most, says the theorem; a prompt in general position needs all of them


@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_linear_program_needs_as_many(shape, own):
    """A vertex of the same conditions, found by HiGHS from the matrix built here."""
    arrays = instance(200, *shape, seed=5)
    matrix, right = conditions(*arrays, own=own)
    if not own:
        matrix, right = np.vstack([matrix, np.ones(200)]), np.append(right, 1.0)
    cost = np.random.default_rng(0).uniform(size=200)
    w = linprog(cost, A_eq=matrix, b_eq=right, method="highs-ds").x
    assert (w > 1e-9).sum() == len(compress.caratheodory(*arrays, own=own).indices)
    tokens, queries, A, V = arrays
    scale, given = (w.sum(), own / w.sum()) if own else (w.sum(), 0.0)
    assert np.abs(plain(tokens, queries, A, V, w / scale, given) - plain(*arrays, own=own)).max() < 1e-6


@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1), (1, 2, 1), (3, 1, 1)])
def test_no_smaller_set_of_tokens_works(shape, own):
    arrays = instance(8, *shape, seed=2)
    matrix, right = conditions(*arrays, own=own)
    count = bounds.caratheodory_count(*shape, own=own > 0)

    def residuals(size):
        return [least_residual(matrix[:, s], right) for s in map(list, itertools.combinations(range(8), size))]

    assert min(residuals(count)) < 1e-12
    assert min(residuals(count - 1)) > 1e-4


def test_given_weights_count_and_tokens_without_weight_stay_out():
    arrays = instance(60, 2, 1, 2)
    weights = np.random.default_rng(1).uniform(size=60)
    weights[::3] = 0
    for own in (0.0, 1.0):
        c = compress.caratheodory(*arrays, weights=weights, own=own)
        check(c, arrays, own=own, weights=weights)
        assert (c.indices % 3 > 0).all()
        assert len(c.indices) == bounds.caratheodory_count(2, 1, 2, own=own > 0)
    # weights are relative to the own token: twice the weights are twice the prompt
    once, twice = (compress.caratheodory(*arrays, weights=f * weights, own=f * 0.5) for f in (1, 2))
    assert once.own == pytest.approx(twice.own, rel=1e-9)
    assert compress.caratheodory(*arrays, weights=[0] * 59 + [2.0]).indices == [59]


def test_dependent_conditions_need_fewer_tokens():
    tokens, queries, A, V = instance(500, 3, 2, 2)
    twice = np.concatenate([queries, queries])
    assert len(compress.caratheodory(tokens, twice, A, V).indices) == 3 * 2 * 2 + 1
    assert len(compress.caratheodory(tokens, twice, A, V, own=1.0).indices) == 3 * 2 * 2
    thin = np.concatenate([V[:, :1], 2 * V[:, :1]], axis=1)  # values of rank 1
    assert len(compress.caratheodory(tokens, queries, A, thin).indices) == 3 * 2 + 1
    assert len(compress.caratheodory(np.repeat(tokens[:4], 30, axis=0), queries, A, V).indices) <= 4
    assert len(compress.caratheodory(tokens, queries, A, 0 * V).indices) == 1


@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize("ratio", [1e-6, 1e-14, 1e-200])
def test_a_head_with_tiny_values_is_kept_as_well(ratio, own):
    tokens, queries, A, V = instance(300, 3, 2, 2)
    V = V * np.array([1, ratio])[:, None, None]
    c = compress.caratheodory(tokens, queries, A, V, own=own)
    assert len(c.indices) == bounds.caratheodory_count(3, 2, 2, own=own > 0)
    for h in range(2):  # each head in units of its own values
        check(c, (tokens, queries, A[h : h + 1], V[h : h + 1]), own=own)


def test_where_no_token_is_needed_weights_still_sum_to_one():
    tokens, queries, A, V = instance(50, 2, 1, 2)
    c = compress.caratheodory(tokens, queries, A, 0 * V, own=1.0)
    assert c.weights.sum() == 1
    assert c.own > 0
    far = 50 * queries  # they see themselves only
    c = compress.caratheodory(tokens, far, np.eye(6)[None], V, own=1.0)
    check(c, (tokens, far, np.eye(6)[None], V), own=1.0)


def test_one_head_may_come_without_its_axis():
    tokens, queries, A, V = instance(30, 2, 1, 2)
    indices, weights = compress.caratheodory(tokens, queries, A[0], V[0])
    same = compress.caratheodory(tokens, queries, A, V)
    assert (indices == same.indices).all()
    assert (weights == same.weights).all()


@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize("block", [1, 7, 100, 5000])
def test_blocks_of_any_size(block, own):
    arrays = instance(400, 3, 1, 2)
    c = compress.caratheodory(*arrays, own=own, block=block)
    check(c, arrays, own=own)
    assert len(c.indices) == bounds.caratheodory_count(3, 1, 2, own=own > 0)


@pytest.mark.parametrize("sharpness", [0.01, 3.0, 10.0, 30.0, 300.0])
@pytest.mark.parametrize("own", [0.0, 1.0])
def test_sharp_attention_gives_the_right_prompt_or_an_error(sharpness, own):
    refusals = []
    for seed in range(6):
        arrays = instance(500, 4, 2, 3, sharpness=sharpness, seed=seed)
        try:
            c = compress.caratheodory(*arrays, own=own)
        except ValueError as error:
            refusals.append(str(error))
        else:
            check(c, arrays, own=own)
    assert all("condition number" in refusal for refusal in refusals)
    # moderate attention is always compressed; at 10 and 30 both ends of the test are met
    assert len(refusals) < (1 if sharpness <= 3 else 6)
    assert refusals or sharpness not in (10.0, 30.0)


def test_queries_that_are_almost_equal():
    tokens, queries, A, V = instance(500, 3, 1, 2)
    for distance in (1e-3, 1e-7, 1e-12, 1e-15):
        arrays = (tokens, np.concatenate([queries, queries + distance]), A, V)
        c = compress.caratheodory(*arrays)
        check(c, arrays)
        assert len(c.indices) <= bounds.caratheodory_count(6, 1, 2)


def test_what_is_wrong_is_not_returned(monkeypatch):
    arrays = instance(100, 3, 1, 2)
    with pytest.raises(ValueError, match=r"off by \d.* more than the tolerance 0\.0e\+00.* condition number \d"):
        compress.caratheodory(*arrays, tolerance=0.0)
    # an elimination that forgets one token
    monkeypatch.setattr(
        compress.elimination, "eliminate", lambda rows, mass, negligible: mass * (np.arange(len(mass)) > 0)
    )
    monkeypatch.setattr(compress.exact, "_polish", lambda layer, indices, log_weights: log_weights)
    for own in (0.0, 1.0):
        with pytest.raises(ValueError, match="condition number"):
            compress.caratheodory(*arrays, own=own)


def test_bad_input():
    tokens, queries, A, V = instance(10, 2, 1, 2)
    for bad, message in (
        ({"weights": np.zeros(10)}, "all weights are 0"),
        ({"weights": np.zeros(10), "own": 1.0}, "no prompt to compress"),
        ({"weights": -np.ones(10)}, "weights must be finite numbers >= 0"),
        ({"weights": np.ones(9)}, "one weight for each of the 10 tokens"),
        ({"own": np.nan}, "finite"),
        ({"own": -1.0}, ">= 0"),
        ({"own": "1"}, "own, a weight, must be a finite number"),
        ({"own": None}, "own, a weight, must be a finite number"),
        ({"block": 0}, "block must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            compress.caratheodory(tokens, queries, A, V, **bad)
    with pytest.raises(ValueError, match="shapes do not fit"):
        compress.caratheodory(tokens, queries, A, V[:, :, :3])
    with pytest.raises(ValueError, match="tokens must be finite"):
        compress.caratheodory(tokens * np.inf, queries, A, V)
    with pytest.raises(ValueError, match="too large for float64"):
        compress.caratheodory(1e200 * tokens, 1e200 * queries, A, V)
    with pytest.raises(ValueError, match="shapes do not fit"):
        compress.caratheodory(tokens, queries, A, V[:, :0])


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_memory_does_not_grow_with_the_prompt(own):
    peaks = []
    for m in (16384, 163840):
        arrays, weights = instance(m, 1, 1, 1, d=2), np.full(m, 0.5) if own else None
        tracemalloc.start()
        compress.caratheodory(*arrays, weights=weights, own=own, block=4096)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 163840 / 10  # not a tenth of a byte a token


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "architecture",
    [
        {"heads": 2, "mlp": 12, "norm": "rms"},
        {"heads": 2, "mlp": 12, "norm": "layer", "positions": "learned", "causal": True},
        {"depth": 3, "heads": 2, "mlp": 12, "norm": "rms", "positions": "rotary", "causal": True, "d_k": 4, "d_v": 3},
        {"depth": 2, "norm": "none", "causal": True, "inverse_temperature": 0.5},
    ],
)
def test_a_cache_of_few_tokens_gives_the_logits_of_the_network(architecture, own):
    generator = torch.Generator().manual_seed(1)
    config = TransformerConfig(d=6, q=5, **architecture)
    model, prompt, queries = tasks.generic_instance(config, m=50, n=2, generator=generator)
    cache = compress.prompt_cache(model, prompt)
    logits, readers = compress.read_cache(model, cache, queries[:, 0], position=50, own=float(own))
    wanted = model(prompt[None], queries, own_token=own)[0].numpy()
    assert np.abs(logits - wanted).max() < 1e-12
    c = compress.caratheodory(cache, readers, *compress.cache_heads(config), own=float(own))
    count = bounds.caratheodory_count(2 * config.depth, config.heads, config.d_v, own=own, tokens=50)
    assert len(c.indices) <= count
    short, _ = compress.read_cache(
        model, cache[c.indices], queries[:, 0], position=50, weights=c.weights, own=c.own if own else 0.0
    )
    assert np.abs(short - wanted).max() < 1e-10
    assert np.abs(short - model(prompt[None, c.indices], queries, own_token=own)[0].numpy()).max() > 1e-3


def test_networks_whose_prompt_sees_the_query_have_no_cache():
    model = Transformer(TransformerConfig(d=4, depth=2))
    with pytest.raises(ValueError, match="does not cover several layers whose prompt sees the query"):
        compress.prompt_cache(model, torch.zeros(3, 4))


# --- two layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [3, 4, 5, 8, 11])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_energy_of_a_polygon_is_least_for_equal_weights_only(m, beta):
    """The matrix e^{β cos}(cos − c) of the second proposition has one zero eigenvalue and positive others."""
    angle = 2 * np.pi * np.subtract.outer(np.arange(m), np.arange(m)) / m
    kernel = np.exp(beta * np.cos(angle))
    matrix = kernel * (np.cos(angle) - (kernel * np.cos(angle)).sum() / kernel.sum())
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert abs(eigenvalues[0]) < 1e-13
    assert eigenvalues[1] > 1e-9
    assert np.abs(matrix.sum(1)).max() < 1e-12
