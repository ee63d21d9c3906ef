"""Prompts to fewer weighted tokens.

A long prompt acts through its empirical measure, and a few weighted atoms can stand for it.

Everything here is in float64 numpy: what is compressed is checked to rounding.  Tokens are rows.  One head is given by
`A = KᵀQ/√d_k` [d, d] and `V` [d_v, d] (without W_O); several heads by [H, d, d] and [H, d_v, d].  The softmax logit of
token z for the query x is ⟨A x, z⟩.
"""

from prompt_memory.compress.attention import Compressed, attend, check, largest_difference
from prompt_memory.compress.cache import (
    CompressedCache,
    cache_heads,
    cache_logits,
    compress_cache,
    prompt_cache,
    read_cache,
)
from prompt_memory.compress.exact import CompressedWithOwn, caratheodory
from prompt_memory.compress.polynomials import head_moments, moments, spanned
