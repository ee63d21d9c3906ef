"""Speed of `tune.cram`, beside prompt tuning of one string at a time on the same frozen weights; `make bench`.

*One at a time* is what the published measurements of accessible strings do (the code of arXiv 2605.22223 and
2502.13063): a `transformers` GPT-2, here with our weights, the prompt tuning of `peft`, AdamW, one string after the
other.  *Batched* is `tune.cram`.  Both compute the forward pass, the gradient with respect to the prompt and a step of
the optimiser; both run in this process with the same number of threads, in turns.  Times never enter a claim.
"""

from prompt_memory.bench.report import compare as compare
from prompt_memory.bench.report import quick as quick
from prompt_memory.bench.report import rows as rows
from prompt_memory.bench.settings import QUICK as QUICK
from prompt_memory.bench.settings import Settings as Settings
