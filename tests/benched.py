"""Networks and settings that make a benchmark small."""

import torch

from prompt_memory.bench import Settings, peft_baseline

NAME = "lexicon-small"
CPU = torch.device("cpu")
TINY = Settings(
    repetitions=2, runs=8, batched_steps=3, single_steps=3, lengths=(1, 2), strings=4, trials=3, single_limit=20,
    patience=5, batched_limit=20, longest_limit=20, longest=2, counts=(1, 3), calls=1, matrices=(256,),
)  # fmt: skip


class Scripted(peft_baseline.OneAtATime):
    """One at a time, but what a step finds is decided by `find(length of the string, number of the step)`."""

    def __init__(self, find, m=1):
        self.find, self.m, self.lengths = find, m, []

    def begin(self, generator):
        self.taken = 0

    def step(self, string, adamw):
        self.taken += 1
        if self.taken == 1:
            self.lengths.append(string.shape[-1])
        return self.find(string.shape[-1], self.taken)
