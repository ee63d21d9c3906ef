"""What a bit reader is asked: every bit string belongs to one prompt, every bit has its query."""

import pytest
import torch

from prompt_memory import pretrain, tasks
from prompt_memory.network.transformer import TransformerConfig

torch.set_num_threads(1)


@pytest.mark.parametrize(("bits", "d", "m"), [(1, 3, 2), (1, 2, 5), (2, 2, 2), (2, 1, 3), (3, 1, 3), (3, 2, 2)])
def test_prompts_and_bit_strings_are_in_bijection(bits, d, m):
    count = 2 ** (bits * d * m)
    prompts = tasks.grid_prompts(torch.arange(count), d, m, tasks.grid(bits))
    strings = pretrain.bits_of(prompts, bits)
    assert strings.shape == (count, bits * d * m)
    assert set(strings.unique().tolist()) == {0, 1}
    assert len(torch.unique(strings, dim=0)) == count


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_one_step_on_the_grid_changes_one_bit_of_its_coordinate(bits):
    values = tasks.grid(bits)
    for token in range(2):
        for coordinate in range(3):
            prompts = values[torch.zeros(2**bits, 2, 3, dtype=torch.long)]
            prompts[:, token, coordinate] = values
            strings = pretrain.bits_of(prompts, bits)
            first = bits * (3 * token + coordinate)
            changed = strings[1:] != strings[:-1]
            assert changed.sum(1).tolist() == [1] * (2**bits - 1)
            assert not changed[:, :first].any()
            assert not changed[:, first + bits :].any()


def test_each_bit_has_a_query():
    model = pretrain.FrozenModel(pretrain.BitReader(TransformerConfig(d=2), m=2, bits=3, steps=1))
    assert model.queries.shape == (3 * 2 * 2, 1, 2)
    codes = model.queries.reshape(2, 2, 3, 2).double()  # token, coordinate, bit
    assert len(torch.unique(codes.flatten(0, 2), dim=0)) == 12
    for axis in range(3):  # sums of one code an axis: differences along an axis do not depend on the others
        steps = codes.diff(dim=axis).movedim(axis, 0).flatten(1, 2)
        torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-5, rtol=0)
