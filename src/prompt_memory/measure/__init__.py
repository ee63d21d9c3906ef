"""What was memorised: behaviours, strings, ranks, margins, slopes, and the distances between prompts.

On their own: `witness`, ranks that are proved; `load`, `contexts`, `fact_moments` and `fact_recall`, memories of facts.
"""

from prompt_memory.measure.behaviour import (
    behaviour_pairs,
    behaviours,
    best_recall,
    distinct,
    first_occurrences,
    grid_behaviours,
    grid_bits,
    recall,
    retained_bits,
)
from prompt_memory.measure.decomposition import Seen, joint_attention, own_and_prompt, without_prompt
from prompt_memory.measure.margins import (
    best_margins,
    choose_queries,
    labels_and_gaps,
    largest_margin,
    logit_margins,
    memorised_labelings,
    price_labelings,
)
from prompt_memory.measure.prior_mass import Mass, Particles, Plan, least_margin, pilot, split
from prompt_memory.measure.ranks import jacobian, jacobian_rank, prompt_jacobian, singular_values
from prompt_memory.measure.slopes import (
    cluster_slope,
    head_slope,
    into_ball,
    local_lipschitz,
    numpy_weights,
    shortest_norm_input,
    steepest_clusters,
    steepest_head,
    steepest_network,
)
from prompt_memory.measure.strings import greedy, half_crossing, half_length, n50, sampled_strings
from prompt_memory.measure.transport import (
    blockwise,
    local_wasserstein,
    measure_slope,
    sorted_in_blocks,
    steepest_measure,
    steepest_network_measure,
    wasserstein,
)
