"""What the theorems allow: one pure function a formula, one module a chapter.

Scalars in, a float out, unless said otherwise.  Quantities called `*_bits` are in bits (log to base 2), recall and
distortion are fractions between 0 and 1.  Nothing here knows about torch: a `config` is anything with the attributes
of `prompt_memory.network.transformer.TransformerConfig`.
"""

from prompt_memory.bounds._layers import GELU_LIPSCHITZ
from prompt_memory.bounds.accessible_strings import accessible_fraction, critical_length, mimo_bits, source_ceiling
from prompt_memory.bounds.caches import CacheLayer, cache_bits, cache_error, cache_layers, cache_positions
from prompt_memory.bounds.capacity_law import affine_length, expected_length_ceiling
from prompt_memory.bounds.construction import (
    amplitude_ceiling,
    code_logit_range,
    code_size_bits,
    construction_bits,
    cosine_logit_range,
    fixed_key_bits,
    necessary_logit_range,
    softmax_leak,
)
from prompt_memory.bounds.counting import (
    best_recall_ceiling,
    binary_divergence,
    counting_bits,
    hard_prompt_bits,
    independent_tail_bits,
    mean_recall_quantile,
    multiset_bits,
    pinsker_recall_ceiling,
    random_code_recall,
    rate,
    recall_ceiling,
    recall_quantile,
    recall_tail_bits,
)
from prompt_memory.bounds.coverage import THEOREMS, Coverage, require
from prompt_memory.bounds.degradation import (
    argmax_length,
    argmax_plateau_bits,
    argmax_recall_ceiling,
    critical_snr,
    diluted_recall_ceiling,
    dilution,
    dilution_length,
    dilution_range,
    exchange_effect,
    gaussian_recall,
)
from prompt_memory.bounds.depth import gaussian_recalls, summed_snr, vote_weights, votes_snr
from prompt_memory.bounds.dimension import (
    dimension_ceiling,
    effective_dimension,
    outputs_per_query,
    visible_coordinates,
    within_log2_probability,
)
from prompt_memory.bounds.exact_compression import caratheodory_count, polygon_constant, polygon_floor
from prompt_memory.bounds.hypotheses import (
    addressed_facts,
    addressing_logit_range,
    circle_facts,
    circle_gain_log2,
    expected_leak_odds,
    pairwise_gap,
    several_heads_facts,
    shell_logit_range,
    sphere_facts,
)
from prompt_memory.bounds.mean_field import (
    block_error,
    causal_mean_field_bits,
    histogram_bits,
    mean_field_bits,
    mean_field_log10_bits,
    mean_field_packing_bits,
    network_wasserstein,
    snapped_multiset_bits,
    wasserstein_constant,
)
from prompt_memory.bounds.metric_entropy import (
    entropy_bits,
    frobenius_lipschitz,
    head_lipschitz,
    network_lipschitz,
)
from prompt_memory.bounds.moments import (
    circle_amplitude,
    head_moment_count,
    moment_bits,
    moment_count,
    moment_error,
    readings_volume_bits,
    softmax_alternation,
    softmax_remainder,
    softmax_remainder_bound,
    softmax_remainder_floor,
)
from prompt_memory.bounds.precision import (
    affine_patterns,
    float_bits,
    one_coordinate_bits,
    piecewise_linear_bits,
    universality_tokens,
)
from prompt_memory.bounds.prior_mass import least_cost_bits
from prompt_memory.bounds.published import accessible_slope
from prompt_memory.bounds.single_layer import (
    equal_mass_floor,
    low_rank_floor,
    shared_token_bits,
    shared_token_labelings,
    two_sequence_floor,
)
