"""Both sides of the benchmark are the same network and the same gradient."""

import math

import pytest
import torch
from benched import Scripted
from networks import gpt2_network

from prompt_memory.bench import Settings, comparison, peft_baseline


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 6), (4, 12)])
def test_both_sides_have_the_same_gradient(m, n):
    model = gpt2_network()
    string = torch.randint(11, (1, n), generator=torch.Generator().manual_seed(2))
    single = peft_baseline.OneAtATime(model, m)
    adamw = single.begin(torch.Generator().manual_seed(3))
    start = single.prompt.detach().clone()
    assert start.shape == (m, 8)
    moving = start[None].requires_grad_()
    logits = model.stream(torch.cat([moving, model.embedding[string[:, :-1]]], 1))[:, m - 1 :]
    loss = torch.nn.functional.cross_entropy(logits[0], string[0])
    (gradient,) = torch.autograd.grad(loss, moving)

    output = single.model(input_ids=string, labels=string)
    output.loss.backward()
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(single.prompt.grad, gradient[0], rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 1e-3
    assert all(weight.grad is None for weight in single.model.parameters() if weight is not single.prompt)

    adamw.zero_grad()
    right = single.step(string, adamw)
    assert right == pytest.approx((logits.argmax(-1) == string).double().mean().item())
    # AdamW's first step: weight decay, then the learning rate in the direction of each coordinate's sign
    expected = start * (1 - 1e-2 * 0.01) - 1e-2 * gradient[0] / (gradient[0].abs() + 1e-8)
    torch.testing.assert_close(single.prompt.detach(), expected, rtol=0, atol=2e-5)
    assert adamw.defaults["betas"] == (0.9, 0.9)  # which a first step does not show


def test_a_prompt_starts_at_the_scale_of_the_embeddings(frozen):
    frozen.transformer.embedding.mul_(3)
    single = peft_baseline.OneAtATime(frozen.transformer, 40)
    frozen.transformer.embedding.div_(3)
    single.begin(torch.Generator().manual_seed(0))
    assert float(single.prompt.detach().std()) == pytest.approx(3 * float(frozen.transformer.embedding.std()), rel=0.1)


@pytest.mark.parametrize(
    ("find", "result"),
    [
        (lambda n, k: 1.0 if k == 3 else 0.5, (True, 3)),
        (lambda n, k: 0.5, (False, 11)),  # the first step was progress, then patience ran out
        (lambda n, k: 0.0, (False, 10)),
        (lambda n, k: k / 100, (False, 40)),  # progress until the steps are used up
        (lambda n, k: min(k, 8) / 10, (False, 18)),
    ],
)
def test_an_attempt_ends_with_success_lost_patience_or_the_last_step(find, result):
    string = torch.zeros(1, 10, dtype=torch.long)
    assert Scripted(find).attempt(string, generator=None, steps=40, patience=10) == result


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("half", [3, 9, 25])
def test_the_search_finds_the_length_that_is_solved_half_of_the_time(frozen, half, m):
    settings = Settings(trials=40, single_limit=1)
    generator = torch.Generator().manual_seed(0)
    sharp = Scripted(lambda n, _: float(n <= half), m)
    assert abs(comparison.single_n50(frozen, sharp, settings, generator=generator) - half) <= 1
    draws = torch.Generator().manual_seed(1)
    soft = Scripted(lambda n, _: float(torch.rand((), generator=draws) < 1 / (1 + math.exp((n - half) / 2))), m)
    assert abs(comparison.single_n50(frozen, soft, settings, generator=generator) - half) <= 3
    for single in (sharp, soft):
        assert max(single.lengths) <= frozen.transformer.config.context - m
