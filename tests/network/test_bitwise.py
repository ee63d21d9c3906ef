"""The tent network by hand: codes, exact arithmetic, and how many bits a coordinate holds in each format."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from prompt_memory import measure
from prompt_memory.network import bitwise

torch.set_num_threads(1)


def orbit_labels(code: int, levels: int) -> list[int]:
    """Signs along the orbit of the tent map, in exact arithmetic."""
    x, labels = Fraction(code, 2**levels), []
    for _ in range(levels):
        labels.append(int(x > 0))
        x = 1 - 2 * abs(x)
    return labels


def run(labels, levels, dtype=torch.float32):
    coordinates = labels.shape[1] // levels
    model = bitwise.tent_network(levels, coordinates).to(dtype)
    prompts = bitwise.tent_prompts(bitwise.tent_code(labels, levels), levels, dtype)
    return model(prompts, bitwise.tent_queries(levels, coordinates).to(dtype), own_token=False)


def random_labels(samples, levels, seed=0):
    return torch.randint(2, (samples, levels), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("levels", "coordinates"), [(1, 1), (2, 1), (7, 1), (3, 2), (2, 3)])
def test_every_labeling_is_held_with_margin_one(levels, coordinates):
    labels = torch.tensor(list(itertools.product([0, 1], repeat=levels * coordinates)))
    logits = run(labels, levels, torch.float64)
    assert torch.equal(logits.argmax(-1), labels)
    assert (logits[..., 1] - logits[..., 0]).abs().min() == 1
    assert len(torch.unique(bitwise.tent_code(labels, levels), dim=0)) == len(labels)


@pytest.mark.parametrize("levels", [1, 4, 9])
def test_codes_are_all_odd_numbers_and_show_their_labels(levels):
    labels = torch.tensor(list(itertools.product([0, 1], repeat=levels)))
    codes = bitwise.tent_code(labels, levels)[:, 0].tolist()
    assert sorted(codes) == list(range(1 - 2**levels, 2**levels, 2))
    assert [orbit_labels(code, levels) for code in codes] == labels.tolist()


def test_long_codes_in_exact_arithmetic():
    labels = random_labels(50, 62)
    codes = bitwise.tent_code(labels, 62)[:, 0].tolist()
    assert [orbit_labels(code, 62) for code in codes] == labels.tolist()


@pytest.mark.parametrize(("dtype", "significand"), [(torch.float32, 24), (torch.float64, 53)])
def test_a_coordinate_holds_its_significand_and_no_more(dtype, significand):
    labels = random_labels(200, significand)
    logits = run(labels, significand, dtype)
    assert torch.equal(logits.argmax(-1), labels)
    assert ((logits[..., 1] - logits[..., 0]).abs() >= 1).all()
    beyond = random_labels(200, significand + 1)
    held = (run(beyond, significand + 1, dtype).argmax(-1) == beyond).all(1)
    assert 0.5 < held.double().mean() < 1  # numbers below 1/2 are still exact


def test_real_numbers_follow_the_tent_map():
    levels = 6
    numbers = 2 * torch.rand(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    prompts = torch.nn.functional.pad(numbers, (0, 7 + levels))[:, None]
    logits = bitwise.tent_network(levels, 2).double()(
        prompts, bitwise.tent_queries(levels, 2).double(), own_token=False
    )
    x, expected = numbers, []
    for level in range(levels):
        expected.append(2 ** (levels - level) * x)
        x = 1 - 2 * x.abs()
    expected = torch.stack(expected, -1).flatten(1)  # coordinate by coordinate
    torch.testing.assert_close(logits[..., 1] - logits[..., 0], expected, rtol=0, atol=1e-12)


def test_the_lipschitz_constant_is_attained():
    levels = 8
    model = bitwise.tent_network(levels).double()
    prompt = bitwise.tent_prompts(torch.tensor([[77]]), levels, torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda p: model(p, bitwise.tent_queries(levels).double(), own_token=False)[0], prompt
    )[:, :, 0, 0]
    assert torch.equal(jacobian[..., 0].abs(), torch.full((levels, 2), 2.0 ** (levels - 1), dtype=torch.float64))
    assert not jacobian[..., 1:].any()  # nothing else of the prompt is read


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: bitwise.tent_network(0), "levels must lie between 1 and 62, where integers of 64 bits end, not 0"),
        (lambda: bitwise.tent_queries(63), "levels must lie between 1 and 62, where integers of 64 bits end, not 63"),
        (lambda: bitwise.tent_network(3, 0), "at least one coordinate is needed, not 0"),
        (lambda: bitwise.tent_code(torch.zeros(1, 5), 3), "5 labels do not fill coordinates of 3 bits"),
        (lambda: bitwise.tent_code(torch.full((1, 3), 2), 3), "labels must be 0 or 1"),
        (lambda: measure.grid_bits(np.zeros((4, 2), np.uint8), 3, 2), "has 4 values a coordinate, fewer than 2\\^3"),
    ],
)
def test_mistakes_are_named(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_one_bit_beyond_the_significand_some_number_holds_seven_eighths():
    for p in (3, 4, 5):
        found = set()
        for shift, odd, sign in itertools.product(range(p + 3), range(2**p), (1, -1)):
            x, labels = Fraction(sign * odd, 2 ** (p + shift)), []
            for _ in range(p + 1):
                labels.append(x > 0)
                x = 1 - 2 * abs(x)
            found.add(tuple(labels))
        assert len(found) == 7 * 2 ** (p - 2)
    # and the network itself, for every number of bfloat16 in [−1, 1], p = 8
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = numbers[numbers.abs() <= 1]
    prompts = bitwise.tent_prompts(torch.ones(len(numbers), 1, dtype=torch.long), 9, torch.bfloat16)
    prompts[:, 0, 0] = numbers
    model, queries = bitwise.tent_network(9).to(torch.bfloat16), bitwise.tent_queries(9).to(torch.bfloat16)
    answers = torch.cat([model(part, queries, own_token=False).argmax(-1) for part in prompts.split(2048)])
    assert len(torch.unique(answers, dim=0)) == 448
