"""Attention of prompt and text, taken apart, against the joint softmax of the network."""

import pytest
import torch
from networks import drawn, generic

from prompt_memory import measure
from prompt_memory.network.transformer import Prefix

torch.set_num_threads(1)
# torch's own forward-mode rules are compiled by what torch itself has declared deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


ARCHITECTURES = [
    dict(d=8, q=8, heads=1, d_k=3, d_v=4),
    dict(d=8, q=8, heads=3, d_k=2, d_v=2, norm="layer", causal=True, mlp=8),
    dict(d=8, q=8, heads=2, d_k=4, d_v=4, norm="rms", positions="rotary", mlp=8),
    dict(d=8, q=8, heads=2, d_k=2, d_v=3, positions="rotary", causal=True, depth=3, norm="rms", mlp=5),
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("soft", [True, False])
def test_two_softmaxes_mixed_are_the_networks_one(architecture, soft):
    model, generator = generic(1, **architecture)
    c = model.config
    texts = drawn(generator, 3, 4, c.d)
    keys, values = (drawn(generator, 1, c.depth, c.heads, 5, width) for width in (c.d_k, c.d_v))
    prompt = drawn(generator, 5, c.d) if soft else Prefix(keys, values)
    layers, logits = measure.own_and_prompt(model, texts, prompt)
    expected = model(prompt[None] if soft else prompt, texts, read="all")[0]
    assert (logits - expected).abs().max() < 1e-10
    assert len(layers) == c.depth
    for seen in layers:
        assert ((seen.share > 0) & (seen.share < 1)).all()
        odds = (seen.prompt_log_mass - seen.log_mass).exp()
        assert torch.allclose(seen.share / (1 - seen.share), odds, rtol=1e-6)


def test_attention_among_the_text_in_the_joint_softmax():
    model, generator = generic(2, **ARCHITECTURES[2])
    texts, prompt = drawn(generator, 2, 5, 8), drawn(generator, 7, 8)
    joint = measure.joint_attention(model, texts, prompt)
    assert joint.shape == (2, 2, 5, 12)
    assert torch.allclose(joint.sum(-1), torch.ones(2, 2, 5, dtype=torch.float64))
    (seen,), _ = measure.own_and_prompt(model, texts, prompt)
    (alone,), _ = measure.own_and_prompt(model, texts)
    assert torch.allclose(joint[..., :7].sum(-1), seen.share, atol=1e-13)
    assert torch.allclose(joint[..., 7:] / (1 - seen.share[..., None]), alone.pattern, atol=1e-11)
    assert (joint[..., 7:] - alone.pattern).abs().max() > 0.01  # the prompt does take a share


@pytest.mark.parametrize("architecture", ARCHITECTURES[:3])
def test_mass_and_mean_value_of_a_prompt_are_the_same_for_texts_that_share_the_read_token(architecture):
    model, generator = generic(7, **architecture)
    texts, prompt = drawn(generator, 3, 5, 8), drawn(generator, 6, 8)
    texts[:, -1] = texts[0, -1].clone()
    (seen,), _ = measure.own_and_prompt(model, texts, prompt)
    for part in (seen.prompt_log_mass, seen.bias):
        assert (part[:, :, -1] - part[:1, :, -1]).abs().max() < 1e-12
        assert (part[:, :, 0] - part[:1, :, 0]).abs().max() > 1e-3  # other tokens differ


def test_the_second_layer_attends_differently_behind_a_prompt():
    model, generator = generic(3, **ARCHITECTURES[3])
    text, prompt = drawn(generator, 1, 6, 8), drawn(generator, 4, 8)
    with_prompt, alone = (measure.own_and_prompt(model, text, p)[0] for p in (prompt, None))
    moved = [(a.pattern - b.pattern).abs().max() for a, b in zip(with_prompt, alone, strict=True)]
    assert moved[0] < 1e-13
    assert min(moved[1:]) > 1e-3


def test_what_a_prompt_changes_otherwise_is_refused():
    for more, message in (
        (dict(positions="learned"), "learned positions and context scaling"),
        (dict(context_scaling="log"), "learned positions and context scaling"),
        (dict(depth=2), "must be causal"),
    ):
        model, generator = generic(0, d=4, q=2, **more)
        with pytest.raises(ValueError, match=message):
            measure.own_and_prompt(model, drawn(generator, 1, 3, 4))
