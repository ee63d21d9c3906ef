"""Theorem 3: how many real coordinates of a prompt the outputs can see."""

import math
from typing import Literal, get_args

from prompt_memory.bounds._checks import nonnegative, positive
from prompt_memory.checks import integers

_Tuning = Literal["soft", "prefix"]
_Read = Literal["fixed", "moving"]


def effective_dimension(
    config,
    m: int,
    *,
    tuning: _Tuning = "soft",
    read: _Read = "moving",
    own_token: bool = True,
    rank_checked: bool = False,
) -> int:
    """D_eff = max rank DΦ, the number of real coordinates of a prompt that the outputs can see (Theorem 3).

    For generic weights, queries and prompts, smooth activations and enough queries.  `read="moving"`: the token at
    which the output is read differs between queries; `"fixed"`: it is always the same, at the same position, and only
    the other tokens of the query vary.  `own_token=False`: queries see the prompt only, not themselves.
    `config.norm_eps` decides whether the norms are exactly scale-invariant.

    With e the dimensions that norms leave to a token (d; d − 1 for LayerNorm; one less for one layer and norm_eps = 0):
    one layer gives m·min(e, H(d_k + d_v)), causal depth L gives m·min(e, L H(d_k + d_v)), bidirectional depth m·e,
    prefix tuning L m H(d_k + d_v), one layer read at a fixed token at most H(1 + d_v); without own tokens the shifts
    that a softmax cannot see are subtracted.

    `config.q`, the number of outputs, matters only below c = `outputs_per_query(config)`.  Then one layer without norm
    and token-wise network gives m·min(d, H(d_k + min(d_v, q))), queries that all return the same vector give at most q,
    and other networks are refused, unless `rank_checked` says that the caller has measured that fewer outputs lose
    nothing.  (The count for q >= c, which is then returned, is an upper bound in any case.)  A config without q counts
    as one with enough outputs.  For few outputs and rotary positions, which part 4 excludes, the count is
    tested on random configurations, without an exception, and not proved.
    Returns an int.  ValueError for m < 1, an unknown option, or a network for which no formula is established.
    """
    (m,) = integers(m=m)
    for name, value, allowed in (("tuning", tuning, get_args(_Tuning)), ("read", read, get_args(_Read))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    if config.norm == "layer" and config.d == 1:
        raise ValueError("LayerNorm of a single coordinate is always zero: give d >= 2")
    count = _soft_dimension if tuning == "soft" else _prefix_dimension
    dimension = count(config, m, read == "fixed", own_token)
    q = getattr(config, "q", None)
    if read == "fixed" and not own_token:  # every query returns the same vector
        return min(dimension, outputs_per_query(config, q))
    if q is None or rank_checked or q >= outputs_per_query(config):
        return dimension
    plain = config.depth == 1 and config.norm == "none" and not config.mlp
    if plain and tuning == "soft" and read == "moving" and own_token:
        return m * min(config.d, config.heads * (min(config.d_k, config.d) + min(config.d_v, q)))
    raise ValueError(
        f"with q = {q} outputs, fewer than the {outputs_per_query(config)} that a query has, D_eff is not established: "
        "measure the rank and give rank_checked=True if nothing is lost"
    )


def dimension_ceiling(
    config, m: int, *, tuning: _Tuning = "soft", read: _Read = "moving", own_token: bool = True
) -> int:
    """The least entry of the table of Theorem 3, part 3, that fits the network: a proved upper bound on D_eff.

    `effective_dimension` is at most this, and equal unless one of its refinements applies.  Returns an int.
    ValueError as there.
    """
    effective_dimension(config, m, tuning=tuning, read=read, own_token=own_token, rank_checked=True)
    L, H, d = config.depth, config.heads, config.d
    d_k, d_v = min(config.d_k, d), min(config.d_v, d)
    cached = L * m * H * (d_k + d_v)
    if tuning == "prefix":
        found = [cached - (0 if own_token else L * H * d_k)]
    else:
        lost = int(config.norm == "layer") + int(config.norm != "none" and L == 1 and config.norm_eps == 0)
        found = [m * (d - lost)] + ([cached] if config.causal or L == 1 else [])
    return min(found + ([H * (1 + d_v)] if L == 1 and read == "fixed" else []))


def within_log2_probability(d: int, m: int, radius: float, lipschitz: float, eps: float, numbers: int) -> float:
    """log2 of min(1, (1 + 2rΛ/ε)^{dm} (2ε)^N), the chance of a random target to lie near an output (Theorem 3, part 1).

    For N = `numbers` real targets, uniform in [−1, 1], prompts of m vectors of norm at most r = `radius` and outputs
    that move by at most Λ = `lipschitz` times the largest move of a vector: probability that some prompt has all
    outputs within ε = `eps` of the target.  Falls like ε^{N − dm}.  Returns bits, <= 0.
    ValueError unless d, m and numbers are integers >= 1, radius and lipschitz finite and >= 0, eps finite and > 0.
    """
    d, m, numbers = integers(d=d, m=m, numbers=numbers)
    reach, eps = 2 * nonnegative("radius", radius) * nonnegative("lipschitz", lipschitz), positive("eps", eps)
    return min(0.0, d * m * math.log1p(reach / eps) / math.log(2) + numbers * math.log2(2 * eps))


def visible_coordinates(width: int, cached: int | None, m: int) -> int:
    """m·min(width, cached), an upper bound on the coordinates of a soft prompt that outputs of any network can see.

    `width` dimensions of a prompt vector are read (d, or d − 1 where only LayerNorms read it); `cached` numbers stand
    for it where queries look, the sum of H_kv(d_k + d_v) over layers that may differ (None: not only there, as in a
    bidirectional network of several layers).  Theorem 3, part 3, without its lower bound.
    """
    width, cached = integers(0, width=width, cached=width if cached is None else cached)
    return integers(m=m)[0] * min(width, cached)


def outputs_per_query(config, q: int | None = None) -> int:
    """c, the independent outputs of one query: min(q, dimensions the last norm leaves, dimensions attention writes).

    n generic queries have min(D_eff, n) <= rank DΦ <= min(D_eff, n·c) (Theorem 3).  `q=None`: as many outputs as one
    likes.
    """
    ambient, sphere = _token_space(config)
    written = config.depth * config.heads * min(config.d_v, ambient)
    return min(ambient - sphere, written, *([] if q is None else [q]))


def _token_space(config) -> tuple[int, int]:
    """(dimensions of a token that a layer reads, 1 if its length is lost): LayerNorm drops the mean, ε₀ = 0 length."""
    ambient = config.d - (config.norm == "layer")
    return ambient, int(config.norm != "none" and config.norm_eps == 0)


def _soft_dimension(config, m: int, fixed: bool, own_token: bool) -> int:
    L, H = config.depth, config.heads
    ambient, sphere = _token_space(config)
    if ambient <= sphere:  # a norm that leaves a sign shows no prompt at all
        return 0
    d_k, d_v = min(config.d_k, ambient), min(config.d_v, ambient)
    e = ambient - (sphere if L == 1 else 0)  # from the second layer on the residual stream shows the length again
    if L == 1 and fixed:
        return min(m * e, _fixed_read_sums(config, own_token))
    if L == 1:
        return m * min(e, H * (d_k + d_v)) - (0 if own_token else _shift_invariance(config, m))
    if not own_token and H * d_v < e:
        raise ValueError(
            "without own tokens and with more than one layer, D_eff is established only for heads * d_v >= d"
        )
    if not own_token:
        return m * e
    reads = (L - 1) * H * (d_k + d_v) + H * ((min(d_k, _fixed_query_span(config)) if fixed else d_k) + d_v)
    if config.causal:
        return m * min(e, reads)
    if e > reads + (L - 1) * H * d_k and config.mlp < config.d:
        raise ValueError("for heads so narrow, D_eff of a deep bidirectional network is not established")
    return m * e


def _prefix_dimension(config, m: int, fixed: bool, own_token: bool) -> int:
    L, H = config.depth, config.heads
    ambient, sphere = _token_space(config)
    if ambient <= sphere:
        raise ValueError(f"with norm = {config.norm!r}, norm_eps = 0 and d = {config.d} a query is only a sign")
    if config.positions == "rotary" and config.d_k > ambient:
        raise ValueError("with rotary positions D_eff of a prefix is established only for d_k <= d")
    if not own_token and L > 1 and config.mlp < config.d:
        raise ValueError("without own tokens, D_eff of a prefix of several layers is established only for mlp >= d")
    d_k, d_v = min(config.d_k, ambient), min(config.d_v, ambient)
    if L == 1 and fixed:
        return _fixed_read_sums(config, own_token)
    seen = L * m * H * (d_k + d_v)
    if fixed:  # in the last layer only the read token looks at the prefix, and its query spans few directions
        seen -= m * H * (d_k - min(d_k, _fixed_query_span(config)))
    # shifting all keys of a head, or the values of several heads against each other, changes nothing
    return seen if own_token else seen - L * (H * d_k + max(0, H * d_v - ambient))


def _fixed_read_sums(config, own_token: bool) -> int:
    """Sums over a one-layer prompt that a fixed read token sees: Σ_j e^{s_j} V z_j and Σ_j e^{s_j} in every head."""
    ambient, sphere = _token_space(config)
    values = config.heads * min(config.d_v, ambient)
    if not own_token:
        return values  # only the ratios
    if config.heads == 1 and values == ambient and sphere and not config.mlp:
        return values  # the last norm sees N + Z·x, where x lies in the range of the values
    return values + config.heads


def _shift_invariance(config, m: int) -> int:
    """One layer, no own tokens: dimensions of the moves of a prompt that keep its values and shift all logits alike.

    Counted beyond the directions that no head reads, and for tokens on a sphere if the norm loses their length.
    """
    ambient, sphere = _token_space(config)
    keys, values = (config.heads * min(width, ambient) for width in (config.d_k, config.d_v))
    unread = max(0, ambient - sphere - values)  # per token, the directions that move keys only
    if config.positions == "rotary" and unread:
        raise ValueError("with rotary positions and without own tokens, D_eff is established only for heads * d_v >= d")
    if keys <= unread:
        return keys
    return unread if m == 1 else max(0, ambient - values - m * sphere)


def _fixed_query_span(config) -> int:
    """Dimensions spanned in the last layer by a read token that is the same in every query."""
    ambient, _ = _token_space(config)
    return min(ambient, 1 + (config.depth - 1) * (config.heads * min(config.d_v, ambient) + config.mlp))
