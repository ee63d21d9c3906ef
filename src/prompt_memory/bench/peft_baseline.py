"""Prompt tuning of one string at a time with `peft`, as the published code does it."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from prompt_memory.network.interop import peft_gpt2
from prompt_memory.network.transformer import Transformer


class Attempt(NamedTuple):
    """One string: whether all its tokens were right under teacher forcing, and the steps taken."""

    solved: bool
    steps: int


class OneAtATime:
    """Prompt tuning of m vectors with `peft` for one string at a time, as the published code does it.

    A prompt starts from normal noise with the standard deviation of the embeddings; AdamW with learning rate 0.01,
    betas (0.9, 0.9), weight decay 0.01, up to `steps` steps; a run ends when every token is right under teacher
    forcing, or when `patience` steps have not raised the number of right tokens.  Differences from the published
    code: the model is kept, not loaded again for each string, and there is no progress bar (both save time here);
    numbers are float32; the first token of a string, which the published code gives away, is asked for, as by `cram`.
    """

    def __init__(self, model: Transformer, m: int):
        from peft import PromptTuningConfig

        self.model = peft_gpt2(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=m))
        self.m = m
        (self.prompt,) = (weight for weight in self.model.parameters() if weight.requires_grad)  # [m, d]
        self.scale = float(model.embedding.std())

    def begin(self, generator: torch.Generator) -> torch.optim.AdamW:
        """Draw a new prompt and return its optimiser."""
        with torch.no_grad():
            self.prompt.copy_(self.scale * torch.randn(self.prompt.shape, generator=generator))
        return torch.optim.AdamW([self.prompt], lr=1e-2, betas=(0.9, 0.9), weight_decay=0.01)

    def step(self, string: Int[Tensor, "1 n"], adamw: torch.optim.AdamW) -> float:
        """One optimiser step; the fraction of tokens that were right before it."""
        output = self.model(input_ids=string, labels=string)
        right = (output.logits[:, self.m - 1 : -1].argmax(-1) == string).float().mean().item()
        output.loss.backward()
        adamw.step()
        adamw.zero_grad()
        return right

    def attempt(
        self, string: Int[Tensor, "1 n"], *, generator: torch.Generator, steps: int = 3000, patience: int = 500
    ) -> Attempt:
        """Tune one prompt for one string."""
        adamw = self.begin(generator)
        best, since = 0.0, 0
        for step in range(1, steps + 1):
            right = self.step(string, adamw)
            best, since = (right, 0) if right > best else (best, since + 1)
            if best == 1:
                return Attempt(True, step)
            if since >= patience:
                break
        return Attempt(False, step)
