"""What is to be memorised: labels, real targets, facts, and strings of two languages."""

from prompt_memory.tasks.instances import (
    generic_instance,
    planted_targets,
)
from prompt_memory.tasks.labels import (
    all_labels,
    digits,
    grid,
    grid_prompts,
    hard_prompts,
    line_prompts,
    multisets,
    random_labels,
    random_queries,
    signs,
)
