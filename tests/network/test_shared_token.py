"""Texts that share a read token: data, prompts and low-rank updates written down, against the network."""

import pytest
import torch
from networks import drawn, generic
from torch.func import functional_call

from prompt_memory import measure
from prompt_memory.network.shared_token import prompt_token, shared_texts, shared_token_data, value_swap

torch.set_num_threads(1)
# torch's own forward-mode rules are compiled by what torch itself has declared deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


ONE = dict(d=9, q=5, heads=1, d_k=4, d_v=5)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_shared_tokens_get_the_same_attention_in_every_head(norm, positions):
    model, generator = generic(4, d=12, q=3, heads=3, d_k=4, d_v=2, norm=norm, positions=positions, causal=True)
    contents, read = shared_token_data(model, 4, generator=generator)
    assert torch.linalg.matrix_rank(contents) == 4
    (seen,), _ = measure.own_and_prompt(model, shared_texts(contents, read))
    assert (seen.pattern[..., -1, :] - seen.pattern[:1, :, -1]).abs().max() < 1e-10
    if norm == "none":
        assert (seen.pattern[..., -1, :] - 0.5).abs().max() < 1e-10
    with pytest.raises(ValueError, match="leaves 9 directions" if norm == "none" else "leaves 7 directions"):
        shared_token_data(model, 10, generator=generator)


def test_one_token_has_any_mass_and_value():
    model, generator = generic(6, d=10, q=3, heads=2, d_k=3, d_v=4)
    read, log_mass, value = drawn(generator, 10), drawn(generator, 2), drawn(generator, 2, 4)
    token = prompt_token(model, read, log_mass, value)
    (seen,), _ = measure.own_and_prompt(model, read[None, None], token)
    assert (seen.prompt_log_mass[0, :, 0] - log_mass).abs().max() < 1e-10
    assert (seen.bias[0, :, 0] - value).abs().max() < 1e-10
    narrow, _ = generic(6, d=8, q=3, heads=2, d_k=3, d_v=4)
    with pytest.raises(ValueError, match="10 conditions on a token of width 8"):
        prompt_token(narrow, read[:8], log_mass, value)
    with pytest.raises(ValueError, match="without norms and positions"):
        prompt_token(generic(0, d=10, q=3, norm="rms")[0], read, log_mass[:1], value[:1])


@pytest.mark.parametrize(
    ("order", "rank"), [([1, 0, 2, 3], 1), ([1, 2, 0, 3], 2), ([1, 0, 3, 2], 2), ([1, 2, 3, 0], 3), ([0, 1, 2, 3], 0)]
)
def test_value_swap_permutes_the_answers(order, rank):
    model, generator = generic(
        8, d=12, q=4, heads=2, d_k=4, d_v=3, norm="layer", positions="rotary", causal=True, mlp=9
    )
    contents, read = shared_token_data(model, 4, generator=generator)
    before = model(contents[:, None], read[None, None])[:, 0]
    A, B = value_swap(model, contents, read, order)
    assert A.shape == (12, rank)
    assert B.shape == (rank, 6)
    weights = dict(model.named_parameters())
    weights["blocks.0.value"] = weights["blocks.0.value"] + A @ B
    after = functional_call(model, weights, (contents[:, None], read[None, None]))[:, 0]
    assert (after - before[order]).abs().max() < 1e-9
    assert rank == 0 or (after - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="permutation"):
        value_swap(model, contents, read, [0, 0, 1, 2])
