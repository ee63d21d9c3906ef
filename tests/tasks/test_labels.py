"""Everything that is enumerated is enumerated completely and once."""

import itertools
import math

import numpy as np
import pytest
import torch

from prompt_memory import tasks
from prompt_memory.network.transformer import Transformer, TransformerConfig

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


@pytest.mark.parametrize(("places", "m"), [(1, 3), (2, 1), (3, 4), (5, 2)])
def test_multisets_and_line_prompts_are_all_prompts_but_for_their_order(places, m):
    wanted = list(itertools.combinations_with_replacement(range(places), m))
    counts = tasks.multisets(places, m)
    assert len(counts) == math.comb(m + places - 1, m)
    assert {tuple(row) for row in counts.tolist()} == {tuple(map(each.count, range(places))) for each in wanted}
    values = np.linspace(-1, 1, places)
    prompts = tasks.line_prompts(values, m)
    assert prompts.shape == (len(counts), m, 1)
    assert prompts.dtype == torch.float64
    same = prompts == torch.from_numpy(values)  # [N, m, places]
    assert torch.equal(same.sum(1), torch.from_numpy(counts))


def test_labels_and_queries_follow_their_generator():
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return [tasks.random_labels(40, 50, 3, generator=generator) for _ in range(2)] + [
            tasks.random_queries(5, 4, generator=generator)
        ]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])  # a second call goes on
    counts = torch.bincount(first[0].flatten(), minlength=3)
    assert ((counts - 2000 / 3).abs() < 130).all()  # six standard deviations
