"""Networks that average, with weights written down."""

import math

import torch

from prompt_memory.network.averaging import averaging_network


def test_a_tilted_average_is_softmax_attention_by_hand():
    model = averaging_network(2, causal=False, gain=0.5, tilt=2.0)
    prompt, x = [0.3, -0.8, 0.5], 0.7
    tokens, state = list(prompt), x
    for _ in range(2):
        seen = list(tokens)

        def read(at, seen=seen):
            weights = [math.exp(2.0 * at * z) for z in seen]
            return at + 0.5 * sum(w * z for w, z in zip(weights, seen, strict=True)) / sum(weights)

        state, tokens = read(state), [read(z) for z in tokens]
    logits = model(torch.tensor(prompt).double()[None, :, None], torch.tensor([[x]]).double(), own_token=False)[0, 0]
    assert torch.allclose(logits, torch.tensor([state, -state]).double(), atol=1e-7)
