"""One layer and a shared read token: floors against brute force, written prompts and updates against the network."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from prompt_memory import bounds, construct, tasks, tune
from prompt_memory.transformer import Prefix, TransformerConfig

torch.set_num_threads(1)
# torch's own forward-mode rules are compiled by what torch itself has declared deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def network(seed=0, **architecture):
    generator = torch.Generator().manual_seed(seed)
    return tasks.generic_instance(TransformerConfig(**architecture), 1, 1, generator=generator)[0], generator


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


ONE = dict(d=9, q=5, heads=1, d_k=4, d_v=5)
ARCHITECTURES = [
    dict(d=8, q=8, heads=1, d_k=3, d_v=4),
    dict(d=8, q=8, heads=3, d_k=2, d_v=2, norm="layer", causal=True, mlp=8),
    dict(d=8, q=8, heads=2, d_k=4, d_v=4, norm="rms", positions="rotary", mlp=8),
    dict(d=8, q=8, heads=2, d_k=2, d_v=3, positions="rotary", causal=True, depth=3, norm="rms", mlp=5),
]


# --- a prefix scales and adds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("soft", [True, False])
def test_two_softmaxes_mixed_are_the_networks_one(architecture, soft):
    model, generator = network(1, **architecture)
    c = model.config
    texts = normal(generator, 3, 4, c.d)
    keys, values = (normal(generator, 1, c.depth, c.heads, 5, width) for width in (c.d_k, c.d_v))
    prompt = normal(generator, 5, c.d) if soft else Prefix(keys, values)
    layers, logits = construct.own_and_prompt(model, texts, prompt)
    expected = model(prompt[None] if soft else prompt, texts, read="all")[0]
    assert (logits - expected).abs().max() < 1e-10
    assert len(layers) == c.depth
    for seen in layers:
        assert ((seen.share > 0) & (seen.share < 1)).all()
        odds = (seen.prompt_log_mass - seen.log_mass).exp()
        assert torch.allclose(seen.share / (1 - seen.share), odds, rtol=1e-6)


def test_attention_among_the_text_in_the_joint_softmax():
    model, generator = network(2, **ARCHITECTURES[2])
    texts, prompt = normal(generator, 2, 5, 8), normal(generator, 7, 8)
    joint = construct.joint_attention(model, texts, prompt)
    assert joint.shape == (2, 2, 5, 12)
    assert torch.allclose(joint.sum(-1), torch.ones(2, 2, 5, dtype=torch.float64))
    (seen,), _ = construct.own_and_prompt(model, texts, prompt)
    (alone,), _ = construct.own_and_prompt(model, texts)
    assert torch.allclose(joint[..., :7].sum(-1), seen.share, atol=1e-13)
    assert torch.allclose(joint[..., 7:] / (1 - seen.share[..., None]), alone.pattern, atol=1e-11)
    assert (joint[..., 7:] - alone.pattern).abs().max() > 0.01  # the prompt does take a share


@pytest.mark.parametrize("architecture", ARCHITECTURES[:3])
def test_mass_and_mean_value_of_a_prompt_are_the_same_for_texts_that_share_the_read_token(architecture):
    model, generator = network(7, **architecture)
    texts, prompt = normal(generator, 3, 5, 8), normal(generator, 6, 8)
    texts[:, -1] = texts[0, -1].clone()
    (seen,), _ = construct.own_and_prompt(model, texts, prompt)
    for part in (seen.prompt_log_mass, seen.bias):
        assert (part[:, :, -1] - part[:1, :, -1]).abs().max() < 1e-12
        assert (part[:, :, 0] - part[:1, :, 0]).abs().max() > 1e-3  # other tokens differ


def test_the_second_layer_attends_differently_behind_a_prompt():
    model, generator = network(3, **ARCHITECTURES[3])
    text, prompt = normal(generator, 1, 6, 8), normal(generator, 4, 8)
    with_prompt, alone = (construct.own_and_prompt(model, text, p)[0] for p in (prompt, None))
    moved = [(a.pattern - b.pattern).abs().max() for a, b in zip(with_prompt, alone, strict=True)]
    assert moved[0] < 1e-13
    assert min(moved[1:]) > 1e-3


def test_what_a_prompt_changes_otherwise_is_refused():
    for more, message in (
        (dict(positions="learned"), "learned positions and context scaling"),
        (dict(context_scaling="log"), "learned positions and context scaling"),
        (dict(depth=2), "must be causal"),
    ):
        model, generator = network(0, d=4, q=2, **more)
        with pytest.raises(ValueError, match=message):
            construct.own_and_prompt(model, normal(generator, 1, 3, 4))


# --- data and floors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_shared_tokens_get_the_same_attention_in_every_head(norm, positions):
    model, generator = network(4, d=12, q=3, heads=3, d_k=4, d_v=2, norm=norm, positions=positions, causal=True)
    contents, read = construct.shared_token_data(model, 4, generator=generator)
    assert torch.linalg.matrix_rank(contents) == 4
    (seen,), _ = construct.own_and_prompt(model, construct.shared_texts(contents, read))
    assert (seen.pattern[..., -1, :] - seen.pattern[:1, :, -1]).abs().max() < 1e-10
    if norm == "none":
        assert (seen.pattern[..., -1, :] - 0.5).abs().max() < 1e-10
    with pytest.raises(ValueError, match="leaves 9 directions" if norm == "none" else "leaves 7 directions"):
        construct.shared_token_data(model, 10, generator=generator)


def test_two_sequence_floor_is_the_minimum_over_mass_and_value():
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(40):
        masses, logits, targets = rng.uniform(0.1, 3, 2), rng.normal(size=(2, 3)), 2 * rng.normal(size=(2, 3))
        error, mass = bounds.two_sequence_floor(masses, logits, targets)
        kinds.add("0" if mass == 0 else "inf" if mass == math.inf else "inside")
        # least squares for ν at each mass of a fine grid: F(P; X_i) = (ν + Z_i F_i)/(Z + Z_i)
        grid = np.r_[0.0, np.logspace(-6, 6, 4001)]
        beta = 1 / (grid[:, None] + masses)
        rest = targets - (beta * masses)[..., None] * logits
        nu = (beta[..., None] * rest).sum(1) / (beta**2).sum(1, keepdims=True)
        errors = ((beta[..., None] * nu[:, None] - rest) ** 2).sum((1, 2))
        assert error <= errors.min() + 1e-9
        assert error >= errors.min() * (1 - 1e-4)
        assert bounds.two_sequence_floor(7 * masses, logits, targets)[0] == pytest.approx(error)
    assert kinds == {"0", "inf", "inside"}


def test_a_swap_costs_half_the_squared_distance_whatever_the_masses():
    rng = np.random.default_rng(4)
    for masses in (*rng.uniform(0.01, 5, (20, 2)), [1e-3, 1e3]):
        logits = rng.normal(size=(2, 3))
        error, mass = bounds.two_sequence_floor(masses, logits, logits[::-1])
        assert error == pytest.approx(((logits[0] - logits[1]) ** 2).sum() / 2, rel=1e-12)
        assert mass == math.inf
    # in a network whose texts weigh differently: search stops there
    model, generator = network(13, **ONE)
    contents, read = normal(generator, 2, 9), normal(generator, 9)
    logits, masses, _ = construct.without_prompt(model, contents, read)
    assert masses.max() > 2 * masses.min()
    queries, y = construct.shared_texts(contents, read), logits.flip(0)
    errors = tune.levenberg_marquardt(model, queries, y.expand(4, -1, -1), normal(generator, 4, 3, 9), steps=60).error
    errors = errors * y.numel()
    floor = (logits[0] - logits[1]).square().sum() / 2
    assert floor * (1 - 1e-12) <= errors.min() < 1.01 * floor


def test_equal_mass_floor_is_the_minimum_over_a_grid_and_closed_forms():
    rng = np.random.default_rng(1)
    values, targets = rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 4))
    error, best = bounds.equal_mass_floor(values, targets)
    grid = np.linspace(0, 1, 201)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    centred, goal = values - values.mean(0), targets - targets.mean(0)
    left = a[..., None, None] * centred[:, 0] + b[..., None, None] * centred[:, 1]
    errors = ((left - goal) ** 2).sum((2, 3))
    assert error <= errors.min() + 1e-12
    assert error >= errors.min() - 1e-2
    one = values[:, :1]
    for n in (2, 3):  # swap and circle: the same answer for all is best
        answers = one[:n, 0]
        error, best = bounds.equal_mass_floor(one[:n], np.roll(answers, 1, 0))
        assert error == pytest.approx(((answers - answers.mean(0)) ** 2).sum())
        assert best == pytest.approx(0)
    # and for two texts the general formula agrees with equal masses
    two = bounds.two_sequence_floor([2.0, 2.0], values[:2, 0], targets[:2])[0]
    assert two == pytest.approx(bounds.equal_mass_floor(values[:2, :1], targets[:2])[0])


def test_no_prompt_is_below_the_floor_and_one_token_reaches_it():
    model, generator = network(5, **ONE)
    contents, read = construct.shared_token_data(model, 2, generator=generator)
    logits, _, values = construct.without_prompt(model, contents, read)
    assert (logits - (read @ model.unembedding + values.sum(1))).abs().max() < 1e-12
    assert (logits - model(contents[:, None], read[None, None])[:, 0]).abs().max() < 1e-12
    y, queries = logits.flip(0), construct.shared_texts(contents, read)
    floor, _ = bounds.equal_mass_floor(values.numpy(), y.numpy())
    assert floor == pytest.approx((logits[0] - logits[1]).square().sum().item() / 2)
    for m in (1, 20):
        start = normal(generator, 4, m, 9)
        prompts, errors, _ = tune.levenberg_marquardt(model, queries, y.expand(4, -1, -1), start, steps=60)
        again = (model(prompts, queries) - y).square().sum((1, 2))
        errors = errors * y.numel()
        assert torch.allclose(errors, again)
        assert floor * (1 - 1e-12) <= errors.min() < 1.01 * floor


def test_one_token_has_any_mass_and_value():
    model, generator = network(6, d=10, q=3, heads=2, d_k=3, d_v=4)
    read, log_mass, value = normal(generator, 10), normal(generator, 2), normal(generator, 2, 4)
    token = construct.prompt_token(model, read, log_mass, value)
    (seen,), _ = construct.own_and_prompt(model, read[None, None], token)
    assert (seen.prompt_log_mass[0, :, 0] - log_mass).abs().max() < 1e-10
    assert (seen.bias[0, :, 0] - value).abs().max() < 1e-10
    narrow, _ = network(6, d=8, q=3, heads=2, d_k=3, d_v=4)
    with pytest.raises(ValueError, match="10 conditions on a token of width 8"):
        construct.prompt_token(narrow, read[:8], log_mass, value)
    with pytest.raises(ValueError, match="without norms and positions"):
        construct.prompt_token(network(0, d=10, q=3, norm="rms")[0], read, log_mass[:1], value[:1])


# --- low-rank updates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "rank"), [([1, 0, 2, 3], 1), ([1, 2, 0, 3], 2), ([1, 0, 3, 2], 2), ([1, 2, 3, 0], 3), ([0, 1, 2, 3], 0)]
)
def test_value_swap_permutes_the_answers(order, rank):
    model, generator = network(
        8, d=12, q=4, heads=2, d_k=4, d_v=3, norm="layer", positions="rotary", causal=True, mlp=9
    )
    contents, read = construct.shared_token_data(model, 4, generator=generator)
    before = model(contents[:, None], read[None, None])[:, 0]
    A, B = construct.value_swap(model, contents, read, order)
    assert A.shape == (12, rank)
    assert B.shape == (rank, 6)
    weights = dict(model.named_parameters())
    weights["blocks.0.value"] = weights["blocks.0.value"] + A @ B
    after = functional_call(model, weights, (contents[:, None], read[None, None]))[:, 0]
    assert (after - before[order]).abs().max() < 1e-9
    assert rank == 0 or (after - before).abs().max() > 1e-3
    with pytest.raises(ValueError, match="permutation"):
        construct.value_swap(model, contents, read, [0, 0, 1, 2])


def test_low_rank_floor_is_eckart_young():
    rng = np.random.default_rng(2)
    changes = rng.normal(size=(4, 6))
    U, S, Vt = np.linalg.svd(changes, full_matrices=False)
    for rank in range(5):
        best = (U[:, :rank] * S[:rank]) @ Vt[:rank]
        assert bounds.low_rank_floor(changes, rank) == pytest.approx(((changes - best) ** 2).sum(), abs=1e-12)
        factors = rng.normal(size=(200, 4, rank)) @ rng.normal(size=(200, rank, 6))
        assert ((factors - changes) ** 2).sum((1, 2)).min() >= bounds.low_rank_floor(changes, rank) - 1e-12


# --- labelings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "q"), [(1, 2), (3, 2), (5, 2), (3, 3), (2, 4)])
def test_price_labelings_are_those_that_random_prices_give(n, q):
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(n, q))
    labels, prices = construct.price_labelings(scores)
    assert ((prices[:, None] + scores).argmax(-1) == labels).all()
    drawn = rng.normal(size=(200_000, q)) * 3
    seen = {tuple(y) for y in np.unique((drawn[:, None] + scores).argmax(-1), axis=0).tolist()}
    listed = {tuple(y) for y in labels.tolist()}
    assert seen == listed
    assert len(listed) == bounds.shared_token_labelings(n, q) == math.comb(n + q - 1, q - 1)


def test_ties_are_refused():
    with pytest.raises(ValueError, match="not unique"):
        construct.price_labelings(np.zeros((2, 2)))


def test_tuned_labelings_are_the_allowed_ones():
    model, generator = network(9, d=8, q=2, heads=1, d_k=4, d_v=5)
    contents, read = normal(generator, 4, 8), 0.5 * normal(generator, 8)
    logits, masses, _ = construct.without_prompt(model, contents, read)
    order = torch.argsort(masses[:, 0] * (logits[:, 1] - logits[:, 0]))
    thresholds = {tuple(int(i in order[k:]) for i in range(4)) for k in range(5)}  # an independent count
    allowed, _ = construct.price_labelings((masses * logits).numpy())
    assert {tuple(y) for y in allowed.tolist()} == thresholds
    labels = tasks.all_labels(4, 2).repeat_interleave(4, 0)
    queries = construct.shared_texts(contents, read)
    prompts, success = construct.tune_labels(model, queries, labels, normal(generator, 64, 3, 8), steps=150)
    assert (success == (model(prompts, queries).argmax(-1) == labels).all(1)).all()
    assert {tuple(y) for y in labels[success].tolist()} == thresholds


def test_bits_for_several_heads_are_warrens_and_never_more_than_all():
    assert bounds.shared_token_bits(5, 2, 1) == pytest.approx(math.log2(6))
    for n, q, heads in ((2, 2, 2), (6, 2, 2), (30, 2, 2), (200, 3, 4)):
        s, v = n * q * (q - 1) / 2, heads * q
        warren = v * math.log2(4 * math.e * heads * s / v) if s >= v else math.inf
        assert bounds.shared_token_bits(n, q, heads) == pytest.approx(min(n * math.log2(q), warren))
    assert bounds.shared_token_bits(30, 2, 2) < 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.shared_token_labelings(0, 2), "^n must be"),
        (lambda: bounds.shared_token_labelings(3, 1), "^q, the number of classes"),
        (lambda: bounds.two_sequence_floor([1, 0], np.ones((2, 3)), np.ones((2, 3))), "masses"),
        (lambda: bounds.two_sequence_floor([1, 1], np.ones((2, 3)), np.ones((2, 2))), "two masses"),
        (lambda: bounds.two_sequence_floor([1, 1], np.ones((2, 3)), np.full((2, 3), np.nan)), "finite"),
        (lambda: bounds.equal_mass_floor(np.ones((2, 3)), np.ones((2, 3))), "needed"),
        (lambda: bounds.equal_mass_floor(np.full((2, 1, 3), np.inf), np.ones((2, 3))), "finite"),
        (lambda: bounds.low_rank_floor(np.ones((2, 3)), -1), "rank"),
        (lambda: bounds.low_rank_floor(np.ones(3), 1), "matrix"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
