"""Everything that is enumerated is enumerated completely and once."""

import itertools
import math

import pytest
import torch

from prompt_memory import tasks
from prompt_memory.transformer import Prefix, Transformer, TransformerConfig

torch.set_num_threads(1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "q"), [(1, 2), (5, 2), (3, 3), (2, 7), (1, 1), (20, 2)])
def test_all_labels_are_the_product_in_order(n, q):
    labels = tasks.all_labels(n, q)
    assert labels.shape == (q**n, n)
    if n < 20:
        assert labels.tolist() == [list(row) for row in itertools.product(range(q), repeat=n)]
    else:
        assert torch.equal(labels @ 2 ** torch.arange(19, -1, -1), torch.arange(2**20))


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_grid_is_even_and_symmetric(bits):
    for radius in (1.0, 2.5):
        values = tasks.grid(bits, radius)
        wanted = [radius * (2 * i / (2**bits - 1) - 1) for i in range(2**bits)]
        assert values.tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("bits", "d", "m"), [(1, 1, 1), (1, 3, 2), (2, 1, 3), (2, 2, 2), (3, 2, 1)])
def test_grid_prompts_are_all_prompts_once(bits, d, m):
    values = tasks.grid(bits)
    count = 2 ** (bits * d * m)
    prompts = tasks.grid_prompts(torch.arange(count), d, m, values)
    assert prompts.shape == (count, m, d)
    wanted = itertools.product(values.tolist(), repeat=d * m)
    assert prompts.flatten(1).tolist() == [list(row) for row in wanted]
    some = torch.tensor([count - 1, 0, count // 2])
    assert torch.equal(tasks.grid_prompts(some, d, m, values), prompts[some])


@pytest.mark.parametrize(("d", "m"), [(31, 2), (63, 1), (8, 8), (40, 2)])
def test_the_first_prompts_of_a_long_list(d, m):
    """The number of a prompt fits into 64 bits even where the number of prompts does not."""
    prompts = tasks.grid_prompts(torch.tensor([0, 1, 2, 5]), d, m, tasks.grid(1)).flatten(1)
    assert (prompts[:, :-3] == -1).all()
    assert prompts[:, -3:].tolist() == [[-1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, -1, 1]]


@pytest.mark.parametrize(("q", "m"), [(2, 3), (5, 2), (3, 1)])
def test_hard_prompts_are_all_strings_of_tokens(q, m):
    model = Transformer(TransformerConfig(d=4, q=q))
    prompts = tasks.hard_prompts(torch.arange(q**m), m, model)
    strings = torch.tensor(list(itertools.product(range(q), repeat=m)))
    assert torch.equal(prompts, model.embed(strings))
    assert len(torch.unique(prompts, dim=0)) == q**m


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.5])
def test_planted_targets_are_the_noise_away_from_their_prompts(noise):
    model = Transformer(TransformerConfig(d=4, q=3, mlp=6)).double()
    queries = tasks.random_queries(20, 4, generator=seeded()).double()
    targets, prompts = tasks.planted_targets(model, queries, m=2, tables=50, noise=noise, generator=seeded(1))
    assert targets.shape == (50, 20, 3)
    assert targets.dtype == prompts.dtype == torch.float64
    difference = targets - model(prompts, queries)
    if noise == 0:
        assert (difference == 0).all()
    else:  # 3000 draws: the standard deviation is known to about 1.3 %
        assert difference.std().item() == pytest.approx(noise, rel=0.07)
        assert abs(difference.mean().item()) < 0.1 * noise
    assert prompts.std().item() == pytest.approx(1, rel=0.2)
    again, _ = tasks.planted_targets(model, queries, m=2, tables=50, noise=noise, generator=seeded(1))
    assert torch.equal(again, targets)
    other, _ = tasks.planted_targets(model, queries, m=2, tables=50, noise=noise, generator=seeded(2))
    assert not torch.allclose(other, targets)


def test_random_labels_and_queries_come_from_their_generator():
    labels = tasks.random_labels(2000, 3, 5, generator=seeded())
    assert labels.shape == (2000, 3)
    shares = torch.bincount(labels.flatten(), minlength=5) / 6000
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.03)
    assert torch.equal(tasks.random_labels(2000, 3, 5, generator=seeded()), labels)
    queries = tasks.random_queries(500, 4, tokens=3, generator=seeded())
    assert queries.shape == (500, 3, 4)
    assert (queries.mean().item(), queries.std().item()) == pytest.approx((0, 1), abs=0.05)
    assert tasks.random_queries(2, 4, generator=seeded()).shape == (2, 1, 4)


def test_generic_instances_leave_nothing_at_its_default():
    config = TransformerConfig(d=4, q=5, depth=2, heads=2, d_v=3, mlp=6, norm="rms")
    for tuning in ("soft", "prefix"):
        for read, T in (("fixed", 2), ("moving", 1)):
            arguments = {"tuning": tuning, "read": read}
            model, prompt, queries = tasks.generic_instance(config, 3, 7, generator=seeded(), **arguments)
            for name, weight in model.named_parameters():
                assert weight.dtype == torch.float64
                assert len(torch.unique(weight)) == weight.numel(), name  # no row of zeros or ones
            assert queries.shape == (7, T, 4)
            assert len(torch.unique(queries[:, -1], dim=0)) == (1 if read == "fixed" else 7)
            assert len(torch.unique(queries[:, 0], dim=0)) == 7
            shapes = [part.shape for part in prompt] if isinstance(prompt, Prefix) else prompt.shape
            assert shapes == ([(1, 2, 2, 3, 2), (1, 2, 2, 3, 3)] if tuning == "prefix" else (3, 4))
            again = tasks.generic_instance(config, 3, 7, generator=seeded(), **arguments)
            assert torch.equal(again[2], queries)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tasks.all_labels(21, 2), r"2\^21 labelings are too many to list"),
        (lambda: tasks.all_labels(14, 3), r"3\^14 labelings are too many"),
        (lambda: tasks.grid(0), "at least one bit, not 0"),
        (lambda: tasks.grid(-math.inf), "at least one bit"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
