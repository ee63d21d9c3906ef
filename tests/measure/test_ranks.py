"""Jacobians and ranks against finite differences and maps of known rank."""

import math

import numpy as np
import pytest
import torch
from networks import CONFIG, network, normal, poisoned
from torch import nn

from prompt_memory import measure, tasks
from prompt_memory.network.transformer import Prefix, Transformer, TransformerConfig

torch.set_num_threads(1)
# torch's own forward-mode derivatives still use it
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def test_both_modes_give_one_jacobian():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(4, 6, generator=generator, dtype=torch.float64)

    def outputs(p):
        return torch.stack([p.prod(1), p.square().sum(1), p[:, 0].sin()], 1)

    forward = measure.jacobian(outputs, points)
    assert forward.shape == (4, 3, 6)
    torch.testing.assert_close(measure.jacobian(outputs, points, reverse=True), forward)


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


NAN = torch.full((2, 3), math.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
