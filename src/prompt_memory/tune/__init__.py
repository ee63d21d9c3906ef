"""Prompt tuning on a frozen network: R independent runs are one batch.

Real targets in `gauss_newton`, labels in `labels`, strings in `strings` and `grid_strings`, what they share in
`descent`.  On their own: `capacity`, `adapters`, `associative`, `encoder`.
"""

from prompt_memory.tune.descent import adam_direction, aimed_loss
from prompt_memory.tune.gauss_newton import Fit, least_squares, levenberg_marquardt
from prompt_memory.tune.grid_strings import longest_prefix_on_grid
from prompt_memory.tune.labels import Tuned, quantised, tune_labels, tune_to_margin
from prompt_memory.tune.strings import BETAS, Crammed, Longest, NonFiniteLoss, check_strings, cram, longest_prefix
