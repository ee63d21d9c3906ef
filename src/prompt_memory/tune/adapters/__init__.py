"""One frozen network tuned in four ways: soft prompt, prefix, LoRA, all weights; and what each of them memorises.

The network is a `transformers` GPT-2 with our weights; soft prompt, prefix and LoRA are those of `peft`: they start
there and are judged there.  Many tables are trained at once by `logits_together`, the same function without its common
work (the tests compare logits and gradients).  All tunings get the same task, a *table*: K different random keys, each
followed by a string of random labels, to be held by one adaptation.  Shapes: `K` entries, `T` tokens in a key, `n`
labels in a string, `R` tables that are learned at once, each by its own adaptation.
"""

from prompt_memory.tune.adapters.memory import (
    START,
    Memory,
    likelihood_gain,
    memorise,
    random_guesses,
    recall_when_rounded,
    rounded,
)
from prompt_memory.tune.adapters.ranks import lora_gauge, measured_rank, visible_numbers
from prompt_memory.tune.adapters.tables import Table, label_logits, random_table, recalled
from prompt_memory.tune.adapters.together import logits_together
from prompt_memory.tune.adapters.training import tune, tune_together
from prompt_memory.tune.adapters.tunings import KINDS, TARGETS, Tuning, adapt, trained, trained_numbers
