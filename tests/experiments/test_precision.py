"""Chapter 4c: what its protocol calls held, retained and proved."""

import numpy as np
import pytest
import torch

from prompt_memory import bounds
from prompt_memory.experiments import precision_protocol as protocol


def test_a_format_holds_every_labeling_up_to_its_significand_and_a_known_fraction_beyond():
    generator = torch.Generator().manual_seed(0)
    assert protocol.held(torch.bfloat16, 8, 1, generator).all()
    beyond = protocol.held(torch.bfloat16, 9, 1, generator)
    assert len(beyond) == 2**9
    assert beyond.mean() == 0.75 + 2**-8


def test_a_bound_is_named_only_where_it_is_proved():
    kinds = protocol.KINDS | protocol.NO_RELU
    assert protocol.proved_bits(kinds["softmax, GELU, two layers"], 1, 64) is None
    assert protocol.proved_bits(kinds["softmax, ReLU, one layer"], 2, 64) is None
    no_relu = protocol.proved_bits(kinds["one prompt token, no ReLU, one layer"], 1, 64)
    assert no_relu == pytest.approx(np.log2(65))


def test_retained_bits_are_those_of_the_mean_recall_and_their_ratio_is_of_the_same_labelings():
    recall = np.array([0.75, 1.0, 0.875, 1.0])
    tuned = protocol.TunedBits(0, {(1, "float32"): recall, (2, "float32"): recall}, {1: recall})
    bits, low, high = tuned.bits[1, "float32"]
    assert bits == pytest.approx(protocol.LABELS * bounds.rate(1 - recall.mean(), 2) / protocol.COORDINATES)
    assert low <= bits <= high
    ratio, interval = tuned.ratio((2, "float32"), (1, "float32"))
    assert ratio == 1
    assert tuple(interval) == (1, 1)
