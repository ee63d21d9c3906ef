"""Four ways to tune one frozen network: soft prompt, prefix, LoRA, all weights; and how many numbers each trains."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from prompt_memory.network.interop import export_gpt2, peft_gpt2
from prompt_memory.network.transformer import Transformer

KINDS = ("soft prompt", "prefix", "LoRA", "all weights")
TARGETS = ("c_attn", "c_proj", "c_fc")  # every matrix inside the layers of a GPT-2 (two of them are called c_proj)


@dataclass(frozen=True)
class Tuning:
    """Which numbers are trained: `size` is the number of virtual tokens, or the rank of LoRA; all weights have none.

    ValueError for an unknown kind, or a size that is not an integer >= 1 (0 for all weights).
    """

    kind: Literal["soft prompt", "prefix", "LoRA", "all weights"]
    size: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        if self.kind == "all weights" and self.size != 0:
            raise ValueError(f"all weights are trained, a size of {self.size!r} has no meaning")
        if self.kind != "all weights" and not (whole and self.size >= 1):
            raise ValueError(f"a {self.kind} needs a size that is an integer >= 1, not {self.size!r}")

    def __str__(self) -> str:
        return {"LoRA": f"LoRA, rank {self.size}", "all weights": "all weights"}.get(
            self.kind, f"{self.kind}, m = {self.size}"
        )


def adapt(model: Transformer, tuning: Tuning, *, seed: int = 0) -> nn.Module:
    """The network as a `transformers` GPT-2 in which exactly the numbers of `tuning` require gradients.

    Soft prompts start from normal noise with the standard deviation of the embeddings, prefixes from standard normal
    noise, LoRA as `peft` starts it (the network unchanged, no dropout, lora_alpha = rank, on every matrix inside the
    layers); all weights start from the frozen ones.  The same seed gives the same start.
    ValueError for a network that GPT-2 cannot be, or a prompt that leaves no position for a string.
    """
    c = model.config
    if tuning.kind in ("soft prompt", "prefix") and tuning.size >= c.context:
        raise ValueError(f"{tuning.size} virtual tokens leave nothing of the {c.context} learned positions")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if tuning.kind == "all weights":
            return export_gpt2(model).requires_grad_(True)
        from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig

        if tuning.kind == "LoRA":
            options = dict(target_modules=list(TARGETS), fan_in_fan_out=True, lora_alpha=tuning.size, lora_dropout=0.0)
            adapted = peft_gpt2(model, LoraConfig(task_type="CAUSAL_LM", r=tuning.size, **options))
        else:
            config = {"soft prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[tuning.kind]
            adapted = peft_gpt2(model, config(task_type="CAUSAL_LM", num_virtual_tokens=tuning.size))
            (prompt,) = trained(adapted)
            scale = float(model.embedding.std()) if tuning.kind == "soft prompt" else 1.0
            with torch.no_grad():
                prompt.normal_(0.0, scale)
    return adapted.eval()


def trained(adapted: nn.Module) -> list[nn.Parameter]:
    """The tensors of numbers that are trained."""
    return [weight for weight in adapted.parameters() if weight.requires_grad]


def trained_numbers(config, tuning: Tuning) -> int:
    """How many numbers a tuning trains in a GPT-2 with the given `config`, D.

    Soft prompt m·d; prefix m·2·L·d; LoRA r·L·(4d + 2d + 2(d + mlp)); all weights of the GPT-2, its biases included.
    """
    d, L, mlp = config.d, config.depth, config.mlp
    if tuning.kind == "soft prompt":
        return tuning.size * d
    if tuning.kind == "prefix":
        return tuning.size * 2 * L * d
    if tuning.kind == "LoRA":
        return tuning.size * L * (4 * d + 2 * d + 2 * (d + mlp))
    layer = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (2 * d * mlp + mlp + d)
    return L * layer + 2 * d + 2 * config.q * d + config.context * d
