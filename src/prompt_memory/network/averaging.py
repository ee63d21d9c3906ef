"""Networks on a line that add averages, flat or tilted: what one token can do to the logits, it does."""

import torch

from prompt_memory.network.transformer import Transformer, TransformerConfig


def averaging_network(depth: int, *, causal: bool, gain: float = 1.0, tilt: float = 0.0) -> Transformer:
    """Layers that add `gain` times the mean of what they see, in one dimension; logits are ± the last state.

    A token z seen from x has the attention logit tilt·x·z.  With flat attention (tilt 0) and gain one a token moves the
    logits by exactly `bounds.exchange_effect`, if it is the first.  Float64.
    """
    model = Transformer(TransformerConfig(d=1, q=2, depth=depth, causal=causal)).double()
    for block in model.blocks:
        for weight, value in ((block.query, tilt), (block.key, 1.0), (block.value, 1.0), (block.output, gain)):
            weight.fill_(value)
    model.unembedding.copy_(torch.tensor([[1.0, -1.0]]))
    return model
