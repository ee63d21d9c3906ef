"""Measurements against definitions: loops, sets, finite differences and maps of known rank."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from prompt_memory import measure, tasks
from prompt_memory.transformer import Prefix, Transformer, TransformerConfig

torch.set_num_threads(1)
# torch's own forward-mode derivatives still use it
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CONFIG = TransformerConfig(d=3, q=4, depth=2, heads=2, d_k=2, d_v=1, mlp=5, norm="rms", causal=True)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(config=CONFIG):
    return Transformer(config).double()


# --- behaviours and recall -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_behaviours_are_the_argmaxes_of_every_prompt_in_order(chunk):
    model, queries, values = Transformer(CONFIG), normal(5, 3, dtype=torch.float32), tasks.grid(1)

    def prompts(numbers):
        assert len(numbers) <= chunk
        return tasks.grid_prompts(numbers, 3, 2, values)

    table = measure.behaviours(model, prompts, 64, queries, chunk=chunk)
    assert table.dtype == np.uint8
    for number, signs in enumerate(itertools.product((-1.0, 1.0), repeat=6)):
        logits = model(torch.tensor(signs).reshape(1, 2, 3), queries)[0]
        assert table[number].tolist() == [max(range(4), key=row.__getitem__) for row in logits.tolist()]


class Leaky(Transformer):
    """A network whose answers depend on the batch that a prompt is in."""

    def forward(self, prompt, queries, **rest):
        logits = super().forward(prompt, queries, **rest)
        return logits + logits.mean(0, keepdim=True)


def test_a_network_shows_one_behaviour_a_prompt_unless_batches_leak():
    values, queries, numbers = tasks.grid(2).double(), normal(9, 3), torch.arange(40, 640)
    for kind, leaks in ((Transformer, False), (Leaky, True)):
        model = kind(CONFIG).double()

        def prompts(index):
            return tasks.grid_prompts(index, 3, 2, values)

        generator = torch.Generator().manual_seed(0)
        pairs = measure.behaviour_pairs(model, prompts, numbers, queries, generator=generator)
        assert len(numbers) < pairs <= 2 * len(numbers) if leaks else pairs == len(numbers)


def test_both_modes_give_one_jacobian():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4, 6, generator=generator, dtype=torch.float64)

    def outputs(p):
        return torch.stack([p.prod(1), p.square().sum(1), p[:, 0].sin()], 1)

    forward = measure.jacobian(outputs, points)
    assert forward.shape == (4, 3, 6)
    torch.testing.assert_close(measure.jacobian(outputs, points, reverse=True), forward)


def test_behaviours_of_256_classes_fit_into_bytes_and_of_257_do_not():
    queries = normal(300, 3, dtype=torch.float32)
    for q in (256, 257):
        model = Transformer(TransformerConfig(d=3, q=q))

        def show(model=model):
            return measure.behaviours(model, lambda i: torch.ones(len(i), 1, 3), 1, queries)

        if q == 256:
            assert show().max() > 127
            assert show()[0].tolist() == model(torch.ones(1, 1, 3), queries)[0].argmax(-1).tolist()
        else:
            with pytest.raises(ValueError, match="q must be at most 256, not 257"):
                show()


@pytest.mark.parametrize("columns", [1, 3, 9])
def test_distinct_rows_are_a_sorted_set(columns):
    table = np.random.default_rng(columns).integers(0, 256, (500, columns)).astype(np.uint8)
    table[:, 1:] //= 100
    table = np.vstack([table, table[::3]])
    assert measure.distinct(table).tolist() == [list(row) for row in sorted({tuple(row) for row in table.tolist()})]
    assert measure.distinct(table[:, ::-1]).shape == measure.distinct(table).shape
    assert measure.distinct(table[:1]).tolist() == table[:1].tolist()


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_best_recall_compares_every_row_with_every_labeling(chunk):
    rng = np.random.default_rng(0)
    table = rng.integers(0, 3, (11, 6)).astype(np.uint8)
    labels = tasks.all_labels(6, 3)
    found = measure.best_recall(table, labels, 3, chunk=chunk)
    wanted = [max(sum(a == b for a, b in zip(row, y, strict=True)) for row in table) / 6 for y in labels.tolist()]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert found.dtype == np.float64
    assert (found == 1).sum() == len(measure.distinct(table))


def test_recall_is_the_fraction_of_argmaxes_and_a_tie_goes_to_the_first_class():
    logits = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [1.0, 1.0]], [[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]])
    assert measure.recall(logits, torch.tensor([[1, 0, 0], [0, 1, 1]])).tolist() == pytest.approx([1, 1 / 3])
    assert measure.recall(logits, torch.tensor([[1, 0, 0], [0, 1, 1]])).dtype == torch.float64


# --- margins and strings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("q", [2, 5])
def test_margins_are_the_distance_to_the_best_other_logit(shape, q):
    logits = normal(*shape, q).round(decimals=1)
    labels = torch.randint(q, shape, generator=torch.Generator().manual_seed(1))
    untouched = logits.clone()
    found = measure.logit_margins(logits, labels)
    assert found.shape == shape
    for place in itertools.product(*map(range, shape)):
        row, label = logits[place].tolist(), int(labels[place])
        assert found[place].item() == row[label] - max(row[:label] + row[label + 1 :])
    assert torch.equal(logits, untouched)


def test_a_tie_has_no_margin_and_a_single_class_any():
    logits = torch.tensor([[2.0, 2.0, 1.0]]).repeat(3, 1)
    assert measure.logit_margins(logits, torch.tensor([0, 1, 2])).tolist() == [0, 0, -1]
    assert measure.logit_margins(torch.zeros(2, 1), torch.tensor([0, 0])).tolist() == [math.inf] * 2


READERS = [
    TransformerConfig(d=4, q=5, depth=2, heads=2, mlp=8, norm="layer", causal=True, positions=positions, context=9)
    for positions in ("learned", "rotary")
]


@pytest.mark.parametrize("config", READERS, ids=lambda c: c.positions)
def test_greedy_decoding_feeds_each_token_back(config):
    model, prompts, n = network(config), normal(30, 3, 4), 7
    found = measure.greedy(model, prompts, n)
    assert (found.shape, found.dtype) == ((30, n), torch.long)
    for prompt, tokens in zip(prompts, found.tolist(), strict=True):
        query, said = prompt[-1:], []
        for _ in range(n):
            logits = model(prompt[None, :-1], query[None])[0, 0].tolist()
            said.append(max(range(5), key=logits.__getitem__))
            query = torch.cat([query, model.embedding[said[-1]][None]])
        assert tokens == said
    assert len(torch.unique(found, dim=0)) > 10
    assert torch.equal(measure.greedy(model, prompts, 3), found[:, :3])
    assert measure.greedy(model, prompts, 0).shape == (30, 0)
    assert measure.greedy(model, prompts[:0], 4).shape == (0, 4)
    assert not measure.greedy(model, prompts.requires_grad_(), 2).requires_grad


def test_greedy_decoding_prefers_the_first_of_tied_tokens():
    model = network(READERS[0])
    found = measure.greedy(model, normal(20, 2, 4), 5)
    model.unembedding[:, 1:] = model.unembedding[:, :1]
    assert not (found == 0).all()
    assert (measure.greedy(model, normal(20, 2, 4), 5) == 0).all()


@pytest.mark.parametrize("config", READERS, ids=lambda c: c.positions)
def test_greedy_decoding_yields_a_string_if_and_only_if_every_token_is_right_under_teacher_forcing(config):
    model, prompts, n = network(config), normal(60, 2, 4), 6
    strings = measure.greedy(model, prompts, n)
    place = torch.arange(60) % (n + 1)  # one token is replaced, or none
    wrong = (place < n).nonzero()[:, 0]
    strings[wrong, place[wrong]] = (strings[wrong, place[wrong]] + 1 + wrong % 4) % 5
    logits = model.stream(torch.cat([prompts, model.embedding[strings[:, :-1]]], 1))[:, 1:]
    right = measure.logit_margins(logits, strings) > 0
    yields = measure.greedy(model, prompts, n) == strings
    assert torch.equal(right.all(1), yields.all(1))
    assert torch.equal(right.all(1), place == n)
    # up to the first wrong token both agree; afterwards teacher forcing goes on with the string, decoding without it
    assert torch.equal(right.long().cumprod(1).sum(1), place)
    assert torch.equal(yields.long().cumprod(1).sum(1), place)


# --- Jacobians -----------------------------------------------------------------------------------------------------


def test_the_jacobian_of_each_row_is_that_of_autograd():
    weight = normal(70, 9)

    def outputs(x):
        return torch.sin(x @ weight) * x[:, :9].square()

    points = normal(3, 70, seed=1)
    found = measure.jacobian(outputs, points)
    assert found.shape == (3, 9, 70)
    for row, point in zip(found, points, strict=True):
        wanted = torch.autograd.functional.jacobian(lambda x: outputs(x[None])[0], point)
        torch.testing.assert_close(row, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("own_token", [True, False])
@pytest.mark.parametrize("tuning", ["soft", "prefix"])
def test_the_prompt_jacobian_is_that_of_finite_differences(tuning, own_token):
    model, queries = network(), normal(4, 2, 3, seed=1)
    parts = [normal(2, 3)]
    if tuning == "prefix":
        parts = [normal(1, 2, 2, 3, 2), normal(1, 2, 2, 3, 1, seed=2)]
    prompt = Prefix(*parts) if tuning == "prefix" else parts[0]
    found = measure.prompt_jacobian(model, prompt, queries, own_token=own_token)
    flat = torch.cat([part.flatten() for part in parts])
    assert found.shape == (4 * 4, len(flat))

    def outputs(x):
        shaped = [y.reshape(part.shape) for y, part in zip(x.split([p.numel() for p in parts]), parts, strict=True)]
        return model(Prefix(*shaped) if tuning == "prefix" else shaped[0][None], queries, own_token=own_token).flatten()

    step = 1e-6
    for column, direction in enumerate(torch.eye(len(flat), dtype=torch.float64)):
        slope = (outputs(flat + step * direction) - outputs(flat - step * direction)) / (2 * step)
        torch.testing.assert_close(found[:, column], slope, rtol=1e-6, atol=1e-8)


def test_the_model_that_is_measured_keeps_its_precision():
    model, queries, prompt = Transformer(CONFIG), normal(4, 3).float(), normal(2, 3).float()
    jacobian = measure.prompt_jacobian(model, prompt, queries)
    assert jacobian.dtype == torch.float64
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    exact = measure.prompt_jacobian(model.double(), prompt.double(), queries.double())
    assert torch.equal(jacobian, exact)


def test_token_queries_are_measured_too():
    model, ids = network(), torch.tensor([[0, 1], [2, 3]])
    assert torch.equal(
        measure.prompt_jacobian(model, normal(2, 3), ids),
        measure.prompt_jacobian(model, normal(2, 3), model.embed(ids)),
    )


# --- ranks ---------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Stands in for a network: Φ(P) = A vec(P) with singular values that we choose."""

    def __init__(self, singular, n=4, q=2, m=2, d=3):
        super().__init__()
        left, _ = torch.linalg.qr(normal(n * q, len(singular)))
        right, _ = torch.linalg.qr(normal(m * d, len(singular), seed=1))
        self.matrix = nn.Parameter(left @ torch.diag(torch.tensor(singular).double()) @ right.T, requires_grad=False)
        self.shape = (n, q)

    def require_finite(self):
        return self

    def forward(self, prompt, queries, *, own_token):
        return (prompt.flatten(1) @ self.matrix.T).unflatten(-1, self.shape)


@pytest.mark.parametrize(
    ("singular", "tolerance", "rank"),
    [
        ([1, 1, 1, 1, 1, 1], 1e-9, 6),
        ([5, 3, 2], 1e-9, 3),
        ([1e-6, 1e-7], 1e-9, 2),
        ([1e6, 1e-2, 1e-4], 1e-9, 2),
        ([1e6, 1e-2, 1e-4], 1e-11, 3),
        ([1, 1e-3, 1e-6], 1e-2, 1),
    ],
)
def test_the_rank_of_a_map_of_known_singular_values(singular, tolerance, rank):
    arguments = Linear(singular), normal(2, 3), normal(4, 3)
    assert measure.jacobian_rank(*arguments, tolerance=tolerance) == rank
    assert type(measure.jacobian_rank(*arguments)) is int
    found = measure.singular_values(*arguments)[: len(singular)]
    np.testing.assert_allclose(found, np.array(singular) / singular[0], rtol=1e-6, atol=1e-15)


def test_the_rank_of_a_network_that_reads_or_shows_little():
    queries, prompt = normal(12, 3, seed=1), normal(2, 3)
    assert measure.jacobian_rank(network(), prompt, queries) == 6
    blind = Transformer(TransformerConfig(d=3, q=4)).double()
    assert measure.jacobian_rank(blind, prompt, queries) == 6
    blind.blocks[0].key[2], blind.blocks[0].value[2] = 0, 0  # nothing reads the last coordinate
    assert measure.jacobian_rank(blind, prompt, queries) == 4
    mute = network()
    mute.unembedding[:, 1:] = 0  # one output a query
    assert measure.jacobian_rank(mute, prompt, queries[:4]) == 4
    mute.unembedding.zero_()
    assert measure.jacobian_rank(mute, prompt, queries) == 0
    assert not measure.singular_values(mute, prompt, queries).any()


def test_rounding_errors_have_no_rank():
    """RMSNorm of a single coordinate is a sign, so nothing depends on the prompt, but its derivative is not quite 0."""
    for d, norm in ((1, "rms"), (2, "layer")):
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            config = TransformerConfig(d=d, q=2, depth=2, norm=norm, norm_eps=0.0)
            assert measure.jacobian_rank(*tasks.generic_instance(config, 2, 8, generator=generator)) == 0


def poisoned():
    model = network()
    model.unembedding[0, 0] = math.nan
    return model


NAN = torch.full((2, 3), math.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure.behaviours(poisoned(), lambda i: normal(len(i), 2, 3), 4, normal(4, 3)), "holds NaN"),
        (lambda: measure.jacobian_rank(poisoned(), normal(2, 3), normal(4, 3)), "weight unembedding holds NaN"),
        (lambda: measure.jacobian_rank(network(), NAN, normal(4, 3)), "prompt hold NaN"),
        (lambda: measure.jacobian_rank(network(), normal(2, 3) / 0, normal(4, 3)), "prompt hold NaN or infinite"),
        (lambda: measure.jacobian_rank(network(), normal(2, 3), NAN), "queries hold NaN"),
        (
            lambda: measure.jacobian_rank(
                network(), Prefix(normal(1, 2, 2, 3, 2), normal(1, 2, 2, 3, 1) * math.nan), normal(4, 3)
            ),
            "prompt hold NaN",
        ),
        (lambda: measure.jacobian_rank(network(), normal(2, 4), normal(4, 3)), "prompts must have the shape"),
        (lambda: measure.jacobian_rank(network(), normal(2, 3), normal(4, 5)), "queries must have the shape"),
        (lambda: measure.jacobian_rank(network(), normal(2, 3), normal(4, 3), tolerance=0), "between 0 and 1, not 0"),
        (lambda: measure.jacobian_rank(network(), normal(2, 3), normal(4, 3), tolerance=1), "between 0 and 1, not 1"),
        (lambda: measure.jacobian_rank(network(), normal(2, 3), normal(4, 3), tolerance=math.nan), "not nan"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_network_without_a_value_at_this_prompt_gets_one_sentence():
    model = network(TransformerConfig(d=3, q=4, norm="rms", norm_eps=0.0))
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure.jacobian_rank(model, torch.zeros(2, 3), normal(4, 3))


def test_a_batch_of_one_prompt_is_a_prompt_and_a_larger_batch_is_refused():
    model = Transformer(TransformerConfig(d=3, q=2)).double()
    prompt, queries = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(
        measure.prompt_jacobian(model, prompt, queries), measure.prompt_jacobian(model, prompt[None], queries)
    )
    with pytest.raises(ValueError, match="one prompt, not of a batch of 2"):
        measure.jacobian_rank(model, prompt.expand(2, 2, 3), queries)
