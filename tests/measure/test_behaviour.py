"""Behaviours and recall against definitions: loops and sets."""

import itertools

import numpy as np
import pytest
import torch
from networks import CONFIG, normal, poisoned

from prompt_memory import bounds, measure, tasks
from prompt_memory.network.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)


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


def test_retained_bits_are_those_of_theorem_1():
    assert measure.retained_bits(1.0, 30, 8) == pytest.approx(90)
    assert measure.retained_bits(0.125, 30, 8) == pytest.approx(0, abs=1e-9)
    assert measure.retained_bits(0.5, 10) == pytest.approx(0, abs=1e-9)
    assert measure.retained_bits(0.6, 14, 5) == pytest.approx(14 * bounds.rate(0.4, 5))


def test_first_occurrences_count_the_rows_of_every_beginning_of_a_table():
    table = np.random.default_rng(2).integers(0, 3, size=(200, 3)).astype(np.uint8)
    rows, first = measure.first_occurrences(table)
    for count in (1, 5, 40, 200):
        assert (first < count).sum() == len({tuple(row) for row in table[:count]})
    assert (table[first] == rows).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure.behaviours(poisoned(), lambda i: normal(len(i), 2, 3), 4, normal(4, 3)), "holds NaN"),
        (lambda: measure.retained_bits(1.2, 1, 7), "a distortion is a fraction between 0 and 1"),
        (lambda: measure.retained_bits(1.0, 0, 7), "labels must be an integer >= 1, not 0"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- grids ------------------------------------------------------------------------------------------------------------


def setting(own_token=True, d=3):
    generator = torch.Generator().manual_seed(3)
    config = TransformerConfig(d=d, q=3, depth=2, heads=1, mlp=5, activation="relu")
    model = Transformer(config, generator=generator).double()
    return (
        model,
        torch.randn(2, d, generator=generator, dtype=torch.float64),
        torch.randn(9, 1, d, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("own_token", [True, False])
def test_grid_behaviours_are_those_of_single_prompts(own_token):
    model, prompt, queries = setting()
    table = measure.grid_behaviours(
        model, prompt, queries, coordinates=2, bits=3, radius=2.0, own_token=own_token, chunk=10
    )
    assert table.shape == (8, 8, 9)
    for i, j in itertools.product(range(8), range(8)):
        changed = prompt.clone()
        changed[0, 0], changed[0, 1] = i / 2 - 2, j / 2 - 2
        expected = model(changed[None], queries, own_token=own_token)[0].argmax(-1)
        assert table[i, j].tolist() == expected.tolist()


def test_grid_bits_count_sub_grids():
    model, prompt, queries = setting()
    table = measure.grid_behaviours(model, prompt, queries, coordinates=2, bits=4, radius=4.0)
    for bits, n in [(0, 9), (1, 9), (3, 5), (4, 9)]:
        step = 16 // 2**bits
        rows = {tuple(table[i, j, :n]) for i in range(0, 16, step) for j in range(0, 16, step)}
        assert measure.grid_bits(table, bits, n) == pytest.approx(np.log2(len(rows)), abs=1e-12)
    assert measure.grid_bits(table, 4, 9) > measure.grid_bits(table, 1, 9)


@pytest.mark.parametrize(("coordinates", "bits"), [(0, 3), (4, 3), (1, 0)])
def test_grid_mistakes(coordinates, bits):
    model, prompt, queries = setting()
    with pytest.raises(ValueError, match="give 1 to 3 coordinates and bits >= 1"):
        measure.grid_behaviours(model, prompt, queries, coordinates=coordinates, bits=bits)


def changes_on_a_line(model, prompt, queries, own_token, radius=6.0, points=2**14):
    """The number of behaviours met on a fine grid along the first coordinate: a lower bound on the truth."""
    bits = int(np.log2(points))
    table = measure.grid_behaviours(
        model, prompt, queries, coordinates=1, bits=bits, radius=radius, own_token=own_token
    )
    return measure.grid_bits(table, bits, len(queries))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mlp", [0, 3])
def test_one_softmax_layer_stays_below_its_bound(seed, mlp):
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(TransformerConfig(d=3, heads=1, mlp=mlp, activation="relu"), generator=generator).double()
    for weight in (model.blocks[0].query, model.blocks[0].output):
        weight.mul_(4)
    prompt = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    queries = torch.randn(30, 1, 3, generator=generator, dtype=torch.float64)
    assert 0 < changes_on_a_line(model, prompt, queries, True) <= bounds.one_coordinate_bits(30, 1, mlp)


@pytest.mark.parametrize("seed", range(4))
def test_a_piecewise_linear_network_stays_below_its_bound(seed):
    generator = torch.Generator().manual_seed(seed)
    config = TransformerConfig(d=3, depth=2, heads=1, mlp=4, activation="relu")
    model = Transformer(config, generator=generator).double()
    prompt = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    queries = torch.randn(30, 1, 3, generator=generator, dtype=torch.float64)
    assert changes_on_a_line(model, prompt, queries, False) <= bounds.piecewise_linear_bits(30, 1, [8, 4])
