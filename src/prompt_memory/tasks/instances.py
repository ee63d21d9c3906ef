"""Real targets that a prompt can reach, and networks in general position."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prompt_memory.network.transformer import Prefix, Transformer, TransformerConfig


def planted_targets(
    model: Transformer, queries: Tensor, *, m: int, tables: int, noise: float, generator: torch.Generator
) -> tuple[Float[Tensor, "S n q"], Float[Tensor, "S m d"]]:
    """Targets near the image of Φ, [S, n, q]: the outputs of random prompts [S, m, d] plus Gaussian noise.

    Such tables are reachable where Φ is a submersion; tables drawn without a prompt are not always, because the image
    of Φ is an open set and not the whole space.  Returns (targets, planted prompts).
    """
    dtype = model.embedding.dtype
    prompts = torch.randn(tables, m, model.config.d, generator=generator, dtype=dtype)
    outputs = model(prompts, queries)
    return outputs + noise * torch.randn(outputs.shape, generator=generator, dtype=dtype), prompts


def generic_instance(
    config: TransformerConfig,
    m: int,
    n: int,
    *,
    tuning: Literal["soft", "prefix"] = "soft",
    read: Literal["fixed", "moving"] = "moving",
    generator: torch.Generator,
) -> tuple[Transformer, Float[Tensor, "m d"] | Prefix, Float[Tensor, "n T d"]]:
    """A network, a prompt and n queries in general position, in float64: where the rank of DΦ is read off.

    Gains and biases are drawn too, and queries and keys are enlarged, so that attention is neither flat nor saturated.
    With `read="fixed"` each query has two tokens, of which the last is the same for all.
    """
    model = Transformer(config, generator=generator).double()
    for name, weight in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "gain":
            weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
        elif kind.endswith("bias"):
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
        elif kind in ("query", "key"):
            weight.mul_(1.6)
    if tuning == "soft":
        prompt = torch.randn(m, config.d, generator=generator, dtype=torch.float64)
    else:
        shape = (1, config.depth, config.heads, m)
        prompt = Prefix(
            torch.randn(*shape, config.d_k, generator=generator, dtype=torch.float64),
            torch.randn(*shape, config.d_v, generator=generator, dtype=torch.float64),
        )
    queries = 1.5 * torch.randn(n, 1 + (read == "fixed"), config.d, generator=generator, dtype=torch.float64)
    if read == "fixed":
        queries[:, -1] = queries[0, -1].clone()
    return model, prompt, queries
