"""Lemma 2b against brute force: whole networks are differentiated, and networks are built that attain the constant."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_memory import bounds, measure
from prompt_memory.bounds._layers import over_heads
from prompt_memory.network import construct
from prompt_memory.network.transformer import Transformer, TransformerConfig

torch.set_num_threads(1)
quick = settings(deadline=None, max_examples=60, derandomize=True)
DOUBLE = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def orthogonal(d, seed):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


# --- norms and activations -------------------------------------------------------------------------------------------


def test_the_slope_of_gelu():
    x = torch.linspace(-6, 6, 200_001, dtype=DOUBLE, requires_grad=True)
    torch.nn.functional.gelu(x).sum().backward()
    assert x.grad.max().item() == pytest.approx(bounds.GELU_LIPSCHITZ, abs=1e-9)
    assert x.grad.min().item() == pytest.approx(1 - bounds.GELU_LIPSCHITZ, abs=1e-9)
    assert 1.128 < bounds.GELU_LIPSCHITZ < 1.129


@quick
@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), eps=st.floats(0, 1), scale=st.floats(1e-3, 1e3))
def test_a_norm_contracts_by_the_length_of_the_shorter_vector(seed, d, eps, scale):
    """The step that needs no convexity: ‖n(x) − n(y)‖ <= ‖x − y‖ / √(min(‖x‖, ‖y‖)²/d + ε₀)."""
    x, y = (normal(500, d, seed=seed + k) * scale * normal(500, 1, seed=seed + 9 + k).exp() for k in (0, 1))
    out = [v / (v.square().mean(-1, keepdim=True) + eps).sqrt() for v in (x, y)]
    least = torch.minimum(x.norm(dim=-1), y.norm(dim=-1))
    allowed = (x - y).norm(dim=-1) / (least**2 / d + eps).sqrt()
    assert ((out[0] - out[1]).norm(dim=-1) <= allowed * (1 + 1e-9) + 1e-12).all()


# --- whole networks --------------------------------------------------------------------------------------------------


def constant(model, **options):
    options = {"radius": 1.0, "query_radius": 1.0} | options
    return bounds.network_lipschitz(model.config, measure.numpy_weights(model), **options)


def random_network(rng):
    norm = str(rng.choice(["none", "rms", "layer"]))
    positions = str(rng.choice(["none", "none", "learned", "rotary"]))
    config = TransformerConfig(
        d=int(rng.integers(2, 5)), q=int(rng.integers(2, 5)), depth=int(rng.integers(1, 4)),
        heads=int(rng.integers(1, 4)), d_k=2, d_v=int(rng.integers(1, 4)), mlp=int(rng.choice([0, 0, 1, 6])),
        activation=str(rng.choice(["gelu", "relu"])), norm=norm, norm_eps=float(rng.choice([1e-3, 0.3])),
        causal=bool(rng.integers(2)), positions=positions, context=8,
        inverse_temperature=float(rng.choice([0.3, 1.0, 4.0])),
        context_scaling=str(rng.choice(["none", "none", "log"])),
    )  # fmt: skip
    model = Transformer(config, generator=seeded(int(rng.integers(10**6)))).double()
    for name, weight in model.named_parameters():
        if name.endswith(("gain", "bias")):
            weight.copy_(normal(*weight.shape, seed=int(rng.integers(10**6))))
        elif rng.random() < 0.3:
            weight.mul_(float(rng.choice([0.1, 3.0])))
    return model


@pytest.mark.parametrize("seed", range(40))
def test_no_network_is_steeper_than_its_constant(seed):
    """Finite differences of any size, derivatives, and all options of the architecture at once."""
    rng = np.random.default_rng(seed)
    model = random_network(rng)
    c, m, R, T = model.config, int(rng.integers(1, 4)), 40, int(rng.integers(1, 3))
    r, r_x = float(rng.choice([0.2, 1.0, 5.0])), float(rng.choice([0.2, 1.0, 5.0]))
    first, moved = (measure.into_ball(2 * r * normal(R, m, c.d, seed=seed + k), r) for k in (1, 2))
    near = measure.into_ball(first + 1e-5 * normal(R, m, c.d, seed=seed + 3), r)
    queries = measure.into_ball(2 * r_x * normal(5, T, c.d, seed=seed + 4), r_x)
    own = bool(rng.integers(2))
    options = {"radius": r, "query_radius": r_x, "keys": m + T}
    whole, half = (constant(model, differences=d, **options) for d in (False, True))
    assert 0 < half <= whole * (1 + 1e-12) < math.inf
    for second in (moved, near):
        change = model(first, queries, own_token=own) - model(second, queries, own_token=own)  # [R, n, q]
        move = (first - second).norm(dim=-1).amax(1)[:, None]
        assert (change.abs().amax(-1) / move).max() <= whole * (1 + 1e-6)
        spread = (change.amax(-1) - change.amin(-1)) / 2
        assert (spread / move).max() <= half * (1 + 1e-6)
    for differences, bound in ((False, whole), (True, half)):
        local = measure.local_lipschitz(model, first[:5], queries, own_token=own, differences=differences)
        assert local.max() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("seed", range(6))
def test_a_least_norm_bounds_the_slope_at_each_prompt(norm, seed):
    config = TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=6, norm=norm, norm_eps=1e-6, causal=bool(seed % 2))
    model = Transformer(config, generator=seeded(seed)).double()
    for run in range(10):
        prompt, query = normal(1, 3, 4, seed=run), normal(1, 1, 4, seed=run + 50)
        bound = constant(model, least_norm=measure.shortest_norm_input(model, prompt, query))
        assert slope(model, prompt, query) <= bound * (1 + 1e-9)
        assert bound < 1e-3 * constant(model)
        assert not any(part._forward_pre_hooks for part in model.modules())


def slope(model, prompt, query, *, own_token=True, differences=False):
    J = torch.autograd.functional.jacobian(lambda p: model(p, query, own_token=own_token)[0, 0], prompt)[:, 0]
    J = torch.stack([(a - b) / 2 for a, b in itertools.combinations(J, 2)]) if differences else J
    return J.norm(dim=-1).sum(-1).max().item()


def reader(d, *, q=None, norm="none", **architecture):
    """One head that writes the mean of what it sees into the residual stream, and reads every coordinate."""
    config = TransformerConfig(d=d, q=q or d, d_k=2, d_v=d, norm=norm, **architecture)
    model = Transformer(config).double()
    for block in model.blocks:
        block.query.zero_(), block.key.zero_()
        block.value.copy_(torch.eye(d).repeat(1, config.heads))
        block.output.copy_(torch.eye(d).repeat(config.heads, 1))
    model.unembedding.copy_(torch.eye(d)[:, : config.q])
    return model


def test_built_networks_attain_the_constant():
    """Each factor of the constant is needed: in these networks, where it is exact, a smaller one would be wrong."""
    zero, one = torch.zeros(1, 1, 2, dtype=DOUBLE), torch.ones(1, 1, 2, dtype=DOUBLE) / 2

    def exact(model, prompt, query, **options):
        found = measure.local_lipschitz(model, prompt, query, own_token=False, **options).item()
        return found, constant(model, **options)

    for depth, slope_ in ((1, 1), (2, 3), (3, 7)):  # p doubles, x collects
        found, bound = exact(reader(2, depth=depth), one, zero)
        assert found == pytest.approx(slope_) == bound
    found, bound = exact(reader(2, heads=3), one, zero)
    assert found == pytest.approx(3) == bound
    for norm in ("rms", "layer"):  # at the origin a norm is steepest: once for the prompt, once at the end
        model = reader(2, norm=norm, norm_eps=0.01)
        model.blocks[0].norm1.gain.mul_(3)
        model.norm.gain.mul_(2)
        centred = (1 - 0.5) ** 0.5 if norm == "layer" else 1  # the length of a unit vector without its mean
        found, bound = exact(model, zero, zero)
        assert found == pytest.approx(6 * 100 * centred)
        assert bound == pytest.approx(6 * 100 * centred)
    model = reader(1, mlp=1)
    model.blocks[0].up.fill_(2), model.blocks[0].down.fill_(1.5)
    model.blocks[0].up_bias.fill_(math.sqrt(2))
    origin = torch.zeros(1, 1, 1, dtype=DOUBLE)
    found, bound = exact(model, origin, origin)
    assert found == pytest.approx(1 + 3 * bounds.GELU_LIPSCHITZ) == bound
    model = reader(1, mlp=1, norm="rms", norm_eps=0.01)  # three norms, each at its steepest
    model.blocks[0].norm2.gain.mul_(4)
    model.blocks[0].up.fill_(2), model.blocks[0].down.fill_(1.5)
    model.blocks[0].up_bias.fill_(math.sqrt(2))
    model.blocks[0].down_bias.fill_(-1.5 * torch.nn.functional.gelu(torch.tensor(2.0, dtype=DOUBLE).sqrt()).item())
    found, bound = exact(model, origin, origin)
    assert found == pytest.approx(10 * (1 + 10 * 4 * 3 * bounds.GELU_LIPSCHITZ) * 10) == bound
    model = reader(1, depth=2, mlp=1, activation="relu")  # p: 2·4, x: 4 and then (4 + 8)·4
    for block in model.blocks:
        block.up.fill_(2), block.down.fill_(1.5)
    found, bound = exact(model, origin + 1, origin)
    assert found == pytest.approx(48) == bound
    model = reader(2, q=2)
    model.unembedding.copy_(torch.tensor([[1.0, -1], [0, 2]]))
    found, bound = exact(model, one, zero)
    assert found == pytest.approx(math.sqrt(5)) == bound
    found, bound = exact(model, one, zero, differences=True)
    assert found == pytest.approx(math.sqrt(8) / 2) == bound


def test_two_layers_by_hand():
    """Every number that enters the constant of a network without norms, from diagonal weights; the query is longer."""
    a, v, r, r_x, up, down = 0.3, 0.5, 1.0, 2.0, 0.7, 0.4
    model, eye = reader(2, depth=2, mlp=2, activation="relu"), torch.eye(2, dtype=DOUBLE)
    for block in model.blocks:
        block.query.copy_(a * math.sqrt(2) * eye), block.key.copy_(eye), block.value.mul_(v)
        block.up.copy_(up * eye), block.down.copy_(down * eye)
        block.up_bias.copy_(torch.tensor([3.0, 4])), block.down_bias.copy_(torch.tensor([0.0, 2]))
    p, x = 1.0, 0.0
    for _ in range(2):
        longest, key = max(r, r_x), max(p, x)
        p, x = (
            own + v * (math.sqrt(1 + (a * longest * reach) ** 2) * key + a * longest**2 * own)
            for own, reach in ((p, r), (x, r_x))
        )
        p, x = (own * (1 + up * down) for own in (p, x))
        r, r_x = ((reach + v * longest) * (1 + up * down) + 5 * down + 2 for reach in (r, r_x))
    assert constant(model, query_radius=2.0) == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_heads_together_are_bounded_by_their_sum_or_better(seed):
    """max over unit w of Σ_h κ_h ‖M_hᵀ w‖, by a scan of the circle."""
    M = list(normal(3, 2, 2, seed=seed).numpy())
    slopes = list(np.random.default_rng(seed).uniform(0, 3, 3))
    angle = np.linspace(0, np.pi, 2001)
    w = np.stack([np.cos(angle), np.sin(angle)])
    scanned = sum(k * np.linalg.norm(each.T @ w, axis=0) for k, each in zip(slopes, M, strict=True)).max()
    total = sum(k * np.linalg.norm(each, 2) for k, each in zip(slopes, M, strict=True))
    assert scanned * (1 - 1e-12) <= over_heads(slopes, M) < total
    apart = [np.diag([2.0, 0]), np.diag([0, 2.0]), np.zeros((2, 2))]  # |w_1| + |w_2| is at most √2
    assert over_heads([3.0, 3.0, 9.0], apart) == pytest.approx(6 * math.sqrt(2))
    assert over_heads([3.0], M[:1]) == pytest.approx(3 * np.linalg.norm(M[0], 2))


def test_attention_behind_a_norm_sees_tokens_of_length_root_d():
    """Tokens across from their own direction: all of the constant but the 1 under the root is attained."""
    R, B = 5.0, 8.0
    config = TransformerConfig(d=3, q=3, d_k=3, d_v=3, norm="rms", norm_eps=1e-9)
    model = Transformer(config).double()
    block = model.blocks[0]
    block.query.copy_(B / 3 * math.sqrt(3) * torch.eye(3)), block.key.copy_(torch.eye(3))
    block.value.copy_(torch.eye(3).roll(1, 1)), block.output.copy_(torch.eye(3))  # e2 is written as e3
    model.unembedding.copy_(torch.eye(3))
    e1, e2, _ = R * torch.eye(3, dtype=DOUBLE)
    found = measure.local_lipschitz(model, torch.stack([e2, -e2])[None], e1[None, None], own_token=False).item()
    assert found == pytest.approx(3 / R**2 * B, rel=1e-6)
    assert constant(model, least_norm=R) == pytest.approx(3 / R**2 * math.hypot(1, B), rel=1e-6)


@pytest.mark.parametrize("d", [2, 4])
def test_a_built_head_inside_a_network_attains_the_constant(d):
    model = Transformer(TransformerConfig(d=d, q=2, d_k=d, d_v=d, inverse_temperature=1.7)).double()
    block = model.blocks[0]
    block.query.copy_(3 * orthogonal(d, 1)), block.key.copy_(orthogonal(d, 2))
    block.value.copy_(2 * orthogonal(d, 3)), block.output.copy_(orthogonal(d, 4))
    A = (block.key @ block.query.T) * 1.7 / math.sqrt(d)
    M = (block.value @ block.output).T
    seen = torch.zeros(d, dtype=DOUBLE)
    seen[0] = 1
    u = torch.zeros(d, dtype=DOUBLE)
    u[1] = 1
    model.unembedding.copy_(torch.stack([M @ u, -(M @ u)], 1))
    query = 0.5 * torch.linalg.solve(A, seen) / torch.linalg.solve(A, seen).norm()
    prompt = 2 * torch.stack([u, -u])[None]
    found = measure.local_lipschitz(model, prompt, query[None, None], own_token=False).item()
    assert found == pytest.approx(constant(model, radius=2.0, query_radius=0.5), rel=1e-12)
    assert found == pytest.approx(4 * math.hypot(1, 3 * 1.7 / math.sqrt(d)), rel=1e-12)


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize(("mlp", "activation"), [(0, "relu"), (4, "relu"), (6, "gelu")])
def test_without_softmax_logits_the_constant_is_attained_at_every_depth(norm, depth, mlp, activation):
    """Lemma 2b, part 5: every inequality of part 4 is an equality at the origin."""
    config = TransformerConfig(
        d=4, q=3, depth=depth, heads=2, d_k=3, d_v=5, mlp=mlp, activation=activation, norm=norm, norm_eps=0.1
    )
    model = construct.steep_network(config, generator=seeded(depth))
    origin = torch.zeros(1, 3, 4, dtype=DOUBLE)
    assert model(origin, origin[:, :1], own_token=False).abs().max() < 1e-14 * constant(model)  # all stays at 0
    for differences in (False, True):
        found = slope(model, origin, origin[:, :1], own_token=False, differences=differences)
        assert found == pytest.approx(constant(model, differences=differences), rel=1e-12)
    # one token or many; a query that also sees itself moves less
    assert slope(model, origin[:, :1], origin[:, :1], own_token=False) == pytest.approx(constant(model), rel=1e-12)
    assert slope(model, origin, origin[:, :1]) < 0.99 * constant(model)


def test_rotary_positions_are_steeper_and_their_constant_is_attained():
    """Positions 22 and 44 before the query are turned by almost π and 0: A x points away from one, to the other."""
    m, B = 44, 8.0
    config = TransformerConfig(d=2, q=2, d_k=2, d_v=2, positions="rotary", inverse_temperature=B * math.sqrt(2))
    model = Transformer(config).double()
    block = model.blocks[0]
    for weight in (block.query, block.key, block.value, block.output, model.unembedding):
        weight.copy_(torch.eye(2))
    up = torch.tensor([1.0, 0], dtype=DOUBLE)
    turns = m - torch.arange(m)  # relative positions
    angle = turns.double()
    prompt = -torch.stack([angle.cos(), angle.sin()], 1)  # nobody is looked at …
    prompt[turns == 44], prompt[turns == 22] = up, -up  # … but these
    found = measure.local_lipschitz(model, prompt[None], up[None, None], own_token=False).item()
    assert math.hypot(1, B) < 0.98 * (1 + B) < found <= constant(model) == pytest.approx(1 + B)


def test_the_constant_of_a_long_context():
    model = Transformer(TransformerConfig(d=2, context_scaling="log")).double()
    assert constant(model, keys=1) < constant(model, keys=10) < constant(model, keys=1000)


def test_the_constant_grows_with_everything_it_should():
    model = Transformer(TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8)).double()
    assert constant(model) < constant(model, radius=1.1)
    assert constant(model) < constant(model, query_radius=1.1)
    normed = Transformer(TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8, norm="rms", norm_eps=0.01)).double()
    assert constant(normed) == constant(normed, radius=100.0, query_radius=50.0)  # a norm hides the radius
    assert constant(normed, least_norm=0.5) < constant(normed)
    learned = Transformer(TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8, positions="learned")).double()
    longest = learned.position.norm(dim=-1).max().item()
    learned.position.zero_()
    shifted = constant(learned, radius=1 + longest, query_radius=1 + longest)
    learned = Transformer(TransformerConfig(d=4, q=3, depth=2, heads=2, mlp=8, positions="learned")).double()
    assert constant(learned) == pytest.approx(shifted, rel=1e-12)


def test_a_norm_that_may_divide_by_zero_has_no_constant():
    model = Transformer(TransformerConfig(d=4, norm="rms", norm_eps=0.0)).double()
    assert constant(model) == math.inf
    assert constant(model, least_norm=0.1) < math.inf
    deep = Transformer(TransformerConfig(d=4, depth=40, mlp=16)).double()
    assert constant(deep) == math.inf  # larger than any float: no bound, and no exception


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_the_first_token_needs_the_constant_of_the_prompts_own_stream(norm):
    """Before the first letter logits are read at a prompt vector, which moves itself: Λ must cover that, too."""
    config = TransformerConfig(d=4, q=3, depth=1, heads=1, norm=norm, norm_eps=0.1, causal=True)
    frozen = Transformer(config, generator=seeded(0)).double()
    frozen.blocks[0].output.mul_(0.01)  # attention hardly writes: strings after the first letter hardly see the prompt
    weights = measure.numpy_weights(frozen)
    arguments = dict(radius=1.0, query_radius=float(frozen.embedding.norm(dim=1).max()))
    proved = bounds.network_lipschitz(config, weights, read_prompt=True, **arguments)
    generator = seeded(1)
    prompts = measure.into_ball(torch.randn(200, 2, 4, generator=generator, dtype=DOUBLE), 1.0)
    prompts = prompts.requires_grad_()
    logits = frozen.stream(prompts)[:, -1]
    gradients = [torch.autograd.grad(logits[:, c].sum(), prompts, retain_graph=True)[0] for c in range(3)]
    steepest = max(float(g.norm(dim=-1).sum(-1).max()) for g in gradients)
    assert steepest <= proved
    assert steepest > bounds.network_lipschitz(config, weights, **arguments)


# --- bad input -----------------------------------------------------------------------------------------------------

SMALL = Transformer(TransformerConfig(d=2, norm="rms", mlp=3, positions="learned", context=4))
WEIGHTS = measure.numpy_weights(SMALL)


def network(weights=WEIGHTS, config=SMALL.config, **options):
    return bounds.network_lipschitz(config, weights, **({"radius": 1.0, "query_radius": 1.0} | options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: network(radius=-1), "radius must be"),
        (lambda: network(query_radius=math.inf), "query_radius must be"),
        (lambda: network(least_norm=-0.1), "least_norm must be"),
        (lambda: network(WEIGHTS | {"position": np.ones((3, 2))}), r"position must have the shape \[4, 2\], not \[3,"),
        (lambda: network({}), "the weight blocks.0.query is missing"),
        (lambda: network(WEIGHTS | {"unembedding": np.full((2, 2), math.nan)}), "unembedding holds NaN or infinite"),
        (lambda: network(config=replace(SMALL.config, context_scaling="log")), "give keys"),
        (lambda: network(config=replace(SMALL.config, context_scaling="log"), keys=0), "keys must be an integer >= 1"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
