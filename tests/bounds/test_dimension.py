"""Theorem 3: the effective dimension against measured ranks of random networks."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from prompt_memory import bounds, measure, tasks
from prompt_memory.measure import witness
from prompt_memory.network.transformer import TransformerConfig

torch.set_num_threads(1)
# torch's own forward-mode derivatives still use it
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def measured_rank(config, m, tuning, read, own_token, *, n, seed):
    """rank DΦ at a random prompt of a random network, for more queries than coordinates unless `n` is given."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = config.d if tuning == "soft" else config.depth * config.heads * (config.d_k + config.d_v)
    n = n or 2 * m * coordinates + 8
    model, prompt, queries = tasks.generic_instance(config, m, n, tuning=tuning, read=read, generator=generator)
    if read == "moving" and seed % 2:  # another token before the one that is read
        queries = torch.cat([torch.randn(queries.shape, generator=generator), queries], 1)
    if config.d - (config.norm == "layer") == 1 and config.norm != "none" and config.norm_eps == 0:
        # all that a layer reads is a sign, and a rank relative to rounding errors means nothing
        assert measure.prompt_jacobian(model, prompt, queries, own_token=own_token).abs().max() < 1e-9
        return 0
    return measure.jacobian_rank(model, prompt, queries, own_token=own_token)


def assert_rank(wanted, config, m, tuning="soft", read="moving", own_token=True, *, n=None, seed=0, draws=8):
    """The rank is `wanted` at some prompt and never above; returns how many draws it took.

    A rank below the maximum happens on a set of measure zero, but near it, where a softmax saturates, the smallest
    singular values drown in rounding.  Then another network is drawn.
    """
    for draw in range(draws):
        rank = measured_rank(config, m, tuning, read, own_token, n=n, seed=seed + 10**6 * draw)
        assert rank <= wanted, (config, m, tuning, read, own_token)
        if rank == wanted:
            return draw + 1
    raise AssertionError(f"rank {rank}, never {wanted}: {(config, m, tuning, read, own_token)}")


WIDE = TransformerConfig(d=5, q=6, depth=1, heads=2, d_k=3, d_v=3, mlp=7)
TABLE = [
    # what is changed, and D_eff / m for soft prompts of width 5
    ({}, 5),
    ({"depth": 2}, 5),
    ({"heads": 1, "d_k": 1, "d_v": 2}, 3),
    ({"heads": 1, "d_k": 1, "d_v": 2, "mlp": 0}, 3),
    ({"norm": "rms", "norm_eps": 0.0}, 4),
    ({"norm": "rms", "norm_eps": 0.0, "depth": 2}, 5),
    ({"norm": "rms", "norm_eps": 0.1}, 5),
    ({"norm": "rms", "norm_eps": 0.1, "depth": 2}, 5),
    ({"norm": "layer", "norm_eps": 0.0}, 3),
    ({"norm": "layer", "norm_eps": 0.0, "depth": 2}, 4),
    ({"norm": "layer", "norm_eps": 0.1}, 4),
    ({"norm": "layer", "norm_eps": 0.1, "depth": 2}, 4),
    ({"norm": "rms", "norm_eps": 0.0, "depth": 2, "causal": True, "positions": "learned"}, 5),
    ({"norm": "rms", "norm_eps": 0.0, "positions": "rotary", "d_k": 2}, 4),
    ({"norm": "layer", "norm_eps": 0.0, "depth": 2, "mlp": 0}, 4),
    ({"causal": True, "depth": 2, "heads": 1, "d_k": 1, "d_v": 1}, 4),
    ({"causal": True, "depth": 3, "heads": 1, "d_k": 1, "d_v": 1}, 5),
]


@pytest.mark.parametrize(("changes", "per_token"), TABLE, ids=str)
def test_the_table_of_soft_prompts(changes, per_token):
    config = replace(WIDE, **changes)
    for m in (1, 2, 3):
        assert bounds.effective_dimension(config, m) == per_token * m
        assert_rank(per_token * m, config, m)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_the_table_of_prefixes(norm):
    for depth, heads, d_k, d_v, m in ((1, 1, 2, 3, 2), (1, 2, 1, 2, 2), (2, 1, 2, 2, 1), (2, 2, 1, 1, 2)):
        config = TransformerConfig(d=5, q=6, depth=depth, heads=heads, d_k=d_k, d_v=d_v, norm=norm, norm_eps=0.0)
        wanted = depth * m * heads * (d_k + d_v)
        assert bounds.effective_dimension(config, m, tuning="prefix") == wanted
        assert_rank(wanted, config, m, "prefix")


@pytest.mark.parametrize("tuning", ["soft", "prefix"])
def test_one_layer_read_at_one_fixed_token(tuning):
    for heads, d_v in ((1, 2), (2, 1), (2, 2)):
        config = TransformerConfig(d=5, q=6, heads=heads, d_k=2, d_v=d_v)
        wanted = heads * (1 + d_v)
        for m in (3, 4):
            assert bounds.effective_dimension(config, m, tuning=tuning, read="fixed") == wanted
            assert_rank(wanted, config, m, tuning, "fixed", True)
            # without own tokens only the ratios of the sums are seen
            assert bounds.effective_dimension(config, m, tuning=tuning, read="fixed", own_token=False) == heads * d_v
            assert_rank(heads * d_v, config, m, tuning, "fixed", False)


def random_architecture(rng):
    positions = rng.choice(["none", "learned", "rotary"])
    causal = rng.random() < 0.5
    d = rng.randint(3, 6)  # exponentials of one real number are told apart only beyond float64
    config = TransformerConfig(
        d=d,
        q=d + 1,
        depth=rng.choice([1, 1, 2, 3]),
        heads=rng.choice([1, 1, 2, 3]),
        d_k=rng.choice([2, 4] if positions == "rotary" else [1, 2, 3]),
        d_v=rng.choice([1, 2, 3, 6]),
        mlp=rng.choice([0, 0, 8]),
        activation=rng.choice(["gelu", "relu"]),
        norm=rng.choice(["none", "rms", "layer"]),
        norm_eps=rng.choice([0.0, 0.1]),
        causal=causal,
        positions=positions,
        inverse_temperature=rng.choice([1.0, 1.7]),
        context_scaling=rng.choice(["none", "none", "log"]) if not causal else "none",
    )
    options = (rng.choice(["soft", "prefix"]), rng.choice(["fixed", "moving"]), rng.random() < 0.6)
    return config, rng.randint(1, 3), options


def test_a_fixed_token_asks_for_few_directions_in_the_last_layer():
    """Without an MLP its query spans its embedding and what the layers before have written, here 1 + 1 dimensions."""
    narrow = TransformerConfig(d=9, q=10, depth=2, d_k=4, d_v=1, causal=True)
    for tuning, read, per_token in (
        ("soft", "moving", 9),
        ("soft", "fixed", (4 + 1) + (2 + 1)),
        ("prefix", "moving", 2 * (4 + 1)),
        ("prefix", "fixed", (4 + 1) + (2 + 1)),
    ):
        for m in (1, 2):
            assert bounds.effective_dimension(narrow, m, tuning=tuning, read=read) == per_token * m
            assert_rank(per_token * m, narrow, m, tuning, read)


def test_a_norm_that_leaves_a_sign_shows_no_prompt():
    for d, norm in ((1, "rms"), (2, "layer")):
        for depth in (1, 2):
            config = TransformerConfig(d=d, q=d + 1, depth=depth, norm=norm, norm_eps=0.0)
            assert bounds.effective_dimension(config, 2) == 0
            assert_rank(0, config, 2)
            assert bounds.effective_dimension(replace(config, norm_eps=0.1), 2) == 2
            assert_rank(2, replace(config, norm_eps=0.1), 2)


def test_the_effective_dimension_is_the_rank_of_every_architecture():
    rng = random.Random(1)
    seen, options_seen = Counter(), Counter()
    for seed in range(300):
        config, m, options = random_architecture(rng)
        tuning, read, own_token = options
        seen["drawn"] += 1
        try:
            wanted = bounds.effective_dimension(config, m, tuning=tuning, read=read, own_token=own_token)
        except ValueError:
            continue  # not proved; that at most a fifth is refused is checked below
        seen["measured"] += 1
        options_seen[options] += 1
        seen["repeated"] += assert_rank(wanted, config, m, *options, seed=seed) > 1
    assert seen["measured"] >= max(240, 0.8 * seen["drawn"]), seen
    assert seen["repeated"] <= 0.05 * seen["measured"], seen
    assert len(options_seen) == 8
    assert min(options_seen.values()) >= 10, options_seen


def test_few_queries_show_n_times_c_coordinates():
    rng = random.Random(2)
    limited = 0
    for seed in range(50):
        config, m, _ = random_architecture(rng)
        config = replace(config, depth=max(2, config.depth), q=rng.choice([2, 3, config.d + 1]))
        if config.d - (config.norm == "layer") < 2:
            continue
        try:
            dimension = bounds.effective_dimension(config, m)
        except ValueError:
            continue
        for n in (1, 2, 3):
            shown = n * bounds.outputs_per_query(config, config.q)
            limited += shown < dimension
            assert_rank(min(dimension, shown), config, m, seed=seed, n=n)
    assert limited >= 40


def test_a_wide_key_needs_more_queries_than_the_count_of_outputs_suggests():
    """One layer and n queries see a key only through n logits, so that min(D_eff, n·c) is a bound and not the rank."""
    config = TransformerConfig(d=4, q=4, d_k=4, d_v=4)
    assert bounds.effective_dimension(config, 1, tuning="prefix") == 8
    assert bounds.outputs_per_query(config, 4) == 4
    for n, rank in ((1, 4), (2, 6), (3, 7), (4, 8)):
        assert_rank(rank, config, 1, "prefix", n=n)


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
def test_few_outputs_of_one_plain_layer_show_fewer_coordinates(positions):
    rng, smaller = random.Random(3), 0
    for seed in range(40):
        d, heads = rng.randint(1, 9), rng.choice([1, 1, 2])
        config = TransformerConfig(
            d=d, q=rng.randint(1, min(d, 3)), heads=heads, d_k=2, d_v=rng.randint(1, 6), positions=positions
        )
        m = rng.randint(1, 3)
        wanted = m * min(d, heads * (min(2, d) + min(config.d_v, config.q)))
        assert bounds.effective_dimension(config, m) == wanted
        smaller += wanted < bounds.effective_dimension(config, m, rank_checked=True)
        n, generator = 2 * d * m + 8, torch.Generator().manual_seed(seed)
        assert witness.generic_rank(config, m, n, enough=wanted, draws=10, generator=generator).rank == wanted
    assert smaller >= 5


def test_few_outputs_are_refused_unless_they_are_enough_or_checked():
    deep = replace(WIDE, depth=2, q=2)
    with pytest.raises(ValueError, match="with q = 2 outputs, fewer than the 5 that a query has"):
        bounds.effective_dimension(deep, 2)
    assert bounds.effective_dimension(deep, 2, rank_checked=True) == 10
    assert bounds.effective_dimension(replace(deep, norm="layer", q=4), 2) == 8
    for q in (1, 3, 9):  # without own tokens and with a fixed token all queries return one vector
        assert bounds.effective_dimension(replace(WIDE, q=q), 4, read="fixed", own_token=False) == min(q, 5)
        assert_rank(min(q, 5), replace(WIDE, q=q), 4, "soft", "fixed", False)


def test_as_many_outputs_as_a_query_has_lose_nothing():
    rng, measured = random.Random(4), 0
    for seed in range(120):
        config, m, (tuning, read, own_token) = random_architecture(rng)
        outputs = bounds.outputs_per_query(config)
        if not 1 <= outputs < config.d or config.activation != "gelu" or config.norm == "none":
            continue
        config = replace(config, q=outputs)
        try:
            wanted = bounds.effective_dimension(config, m, tuning=tuning, read=read, own_token=own_token)
        except ValueError:
            continue
        measured += 1
        assert_rank(wanted, config, m, tuning, read, own_token, seed=seed)
    assert measured >= 10


def test_the_ceiling_of_the_table_is_above_the_count_and_mostly_the_count():
    rng, seen = random.Random(5), Counter()
    for _ in range(600):
        config, m, (tuning, read, own_token) = random_architecture(rng)
        options = dict(tuning=tuning, read=read, own_token=own_token)
        try:
            count = bounds.effective_dimension(config, m, **options)
        except ValueError:
            with pytest.raises(ValueError, match="established"):
                bounds.dimension_ceiling(config, m, **options)
            continue
        ceiling = bounds.dimension_ceiling(config, m, **options)
        assert count <= ceiling
        seen[count == ceiling] += 1
    assert seen[True] > 2 * seen[False] > 0


def test_the_table_of_part_3_line_by_line():
    at = bounds.dimension_ceiling
    assert at(WIDE, 2) == 10
    assert at(replace(WIDE, norm="rms", norm_eps=0.0), 2) == 8
    assert at(replace(WIDE, norm="layer", norm_eps=0.0), 2) == 6
    assert at(replace(WIDE, norm="layer", norm_eps=0.0, depth=2), 2) == at(replace(WIDE, norm="layer"), 2) == 8
    assert at(replace(WIDE, heads=1, d_k=1, d_v=2), 3) == 9
    assert at(replace(WIDE, heads=1, d_k=1, d_v=1, depth=2, causal=True), 3) == 12
    assert at(WIDE, 3, tuning="prefix") == 36
    assert at(WIDE, 3, tuning="prefix", own_token=False) == 30
    assert at(WIDE, 9, read="fixed") == at(WIDE, 9, tuning="prefix", read="fixed") == 8


def test_a_random_target_is_rarely_near_a_curve():
    """One coordinate, two outputs: p ↦ (Λp, triangle wave of slope Λ) for |p| <= 1."""
    lipschitz, rng = 3.0, np.random.default_rng(0)
    p = np.linspace(-1, 1, 3001)
    curve = np.stack([lipschitz * p, np.abs((lipschitz * p + 1) % 4 - 2) - 1], 1)
    targets = rng.uniform(-1, 1, (1000, 2))
    distance = np.full(len(targets), np.inf)
    for part in np.array_split(curve, 20):
        distance = np.minimum(distance, np.abs(targets[:, None] - part).max(-1).min(1))
    for eps in (0.3, 0.1, 0.03, 0.01):
        bound = 2 ** bounds.within_log2_probability(1, 1, 1.0, lipschitz, eps, 2)
        assert (distance <= eps - 1e-3).mean() <= bound
        assert bound == pytest.approx(min(1, (1 + 2 * lipschitz / eps) * (2 * eps) ** 2))
    falls = [bounds.within_log2_probability(2, 3, 1.0, 5.0, 2.0**-k, 9) for k in (30, 31)]
    assert falls[0] - falls[1] == pytest.approx(9 - 6, abs=1e-6)
    assert bounds.within_log2_probability(2, 3, 1.0, 0.0, 0.25, 4) == -4
    assert bounds.within_log2_probability(2, 3, 1.0, 5.0, 0.9, 4) == 0
    assert type(bounds.within_log2_probability(2, 3, 1.0, 5.0, 0.9, 4)) is float


def test_outputs_per_query():
    config = TransformerConfig(d=6, q=9, d_k=2, d_v=8)
    assert bounds.outputs_per_query(config) == 6
    assert bounds.outputs_per_query(config, 4) == 4
    assert bounds.outputs_per_query(replace(config, norm="rms", norm_eps=0.0)) == 5
    assert bounds.outputs_per_query(replace(config, norm="rms")) == 6
    assert bounds.outputs_per_query(replace(config, norm="layer", norm_eps=0.0)) == 4
    assert bounds.outputs_per_query(replace(config, norm="layer")) == 5
    assert bounds.outputs_per_query(replace(config, d_v=2)) == 2
    assert bounds.outputs_per_query(replace(config, d_v=2, depth=2)) == 4


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize(("depth", "heads", "width"), [(1, 1, 1), (1, 2, 3), (2, 1, 1), (3, 2, 2)])
def test_visible_coordinates_are_what_theorem_3_counts_where_layers_are_alike(norm, depth, heads, width):
    for d in (2, 5, 9, 40):
        narrow = min(width, d - 1)
        config = TransformerConfig(d=d, q=d, depth=depth, heads=heads, d_k=narrow, d_v=narrow, mlp=d, norm=norm,
                                   norm_eps=1e-5, causal=True, positions="none")  # fmt: skip
        cached = depth * heads * (config.d_k + config.d_v)
        found = bounds.visible_coordinates(d - (norm == "layer"), cached, 3)
        assert found == bounds.effective_dimension(config, 3)
    assert bounds.visible_coordinates(7, None, 2) == 14
    assert bounds.visible_coordinates(0, 4, 2) == 0
    for wrong in ((-1, 3, 1), (3, -1, 1), (3, 3, 0), (3.0, 3, 1)):
        with pytest.raises(ValueError, match="must be an integer"):
            bounds.visible_coordinates(*wrong)


# --- types and bad input -------------------------------------------------------------------------------------------


def test_dimensions_are_integers():
    assert type(bounds.effective_dimension(WIDE, 2)) is int
    assert type(bounds.outputs_per_query(WIDE)) is int


NARROW = TransformerConfig(d=8, q=9, depth=2, heads=1, d_k=1, d_v=1)
NAN = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.effective_dimension(WIDE, 0), "m must be an integer >= 1, not 0"),
        (lambda: bounds.effective_dimension(WIDE, 1, tuning="lora"), "tuning must be one of soft, prefix, not 'lora'"),
        (lambda: bounds.effective_dimension(WIDE, 1, read="last"), "read must be one of fixed, moving, not 'last'"),
        (lambda: bounds.within_log2_probability(1, 1, 1.0, 1.0, 0.0, 1), "eps must be a finite number > 0"),
        (lambda: bounds.within_log2_probability(1, 1, -1.0, 1.0, 0.1, 1), "radius must be a finite number >= 0"),
        (lambda: bounds.within_log2_probability(1, 1, 1.0, NAN, 0.1, 1), "lipschitz must be a finite number >= 0"),
        (lambda: bounds.within_log2_probability(1, 1, 1.0, 1.0, 0.1, 0), "numbers must be an integer >= 1"),
        (lambda: bounds.dimension_ceiling(WIDE, 0), "m must be an integer >= 1, not 0"),
        (lambda: bounds.effective_dimension(NARROW, 2), "heads so narrow"),
        (lambda: bounds.effective_dimension(NARROW, 2, own_token=False), "without own tokens"),
        (lambda: bounds.effective_dimension(NARROW, 2, tuning="prefix", own_token=False), "only for mlp >= d"),
        (
            lambda: bounds.effective_dimension(replace(NARROW, d=2, norm="layer", norm_eps=0.0), 2, tuning="prefix"),
            "only a sign",
        ),
        (
            lambda: bounds.effective_dimension(replace(NARROW, d=3, d_k=4, positions="rotary"), 2, tuning="prefix"),
            "d_k <= d",
        ),
        (
            lambda: bounds.effective_dimension(replace(NARROW, depth=1, d_k=2, positions="rotary"), 2, own_token=False),
            "heads \\* d_v >= d",
        ),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
