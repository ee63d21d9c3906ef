"""Certified ranks: balls against exact and 50-digit arithmetic, the second network against the first, known ranks."""

import math
import random
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from prompt_memory import bounds, measure, tasks
from prompt_memory.measure import witness
from prompt_memory.measure.witness import Ball
from prompt_memory.network.transformer import Prefix, Transformer, TransformerConfig

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def contains(ball, exact):
    """Does the ball hold these exact numbers, an object array of Fractions or mpmath numbers?"""
    flat = zip(ball.mid.ravel(), ball.rad.ravel(), np.asarray(exact, dtype=object).ravel(), strict=True)
    return all(abs(type(x)(m) - x) <= type(x)(r) for m, r, x in flat)


def corners(ball, rng):
    """Exact numbers inside a ball, at its ends or in its middle."""
    signs = rng.choice([-1, 0, 1], size=ball.mid.shape)
    return np.vectorize(lambda m, r, s: Fraction(float(m)) + int(s) * Fraction(float(r)), otypes=[object])(
        ball.mid, ball.rad, signs
    )


def test_sums_and_products_of_balls_hold_the_exact_values():
    rng = np.random.default_rng(0)
    for _ in range(60):
        scale = 10.0 ** rng.integers(-8, 8)
        a, b = (Ball(scale * rng.normal(size=s), scale * 1e-9 * rng.random(s)) for s in ((3, 4), (4, 3)))
        x, y = corners(a, rng), corners(b, rng)
        assert contains(a + b.map(np.transpose), x + y.T)
        assert contains(a * b.map(np.transpose), x * y.T)
        assert contains(a @ b, x @ y)
        assert contains(a.sum(-1), x.sum(-1, keepdims=True))


def test_functions_of_balls_hold_their_values_to_50_digits():
    rng = np.random.default_rng(1)
    with mpmath.workdps(50):
        for width in (0.0, 1e-13, 1e-3):
            ball = Ball(rng.uniform(-6, 6, 200), width * rng.random(200))
            for side in (-1, 0, 1):
                x = [
                    mpmath.mpf(float(m)) + side * mpmath.mpf(float(r)) for m, r in zip(ball.mid, ball.rad, strict=True)
                ]
                assert contains(ball.exp(), [mpmath.exp(t) for t in x])
                distribution, density = ball.normal()
                assert contains(distribution, [mpmath.ncdf(t) for t in x])
                assert contains(density, [mpmath.npdf(t) for t in x])
                positive = ball.map(lambda a: a)
                positive.mid = np.abs(ball.mid) + 0.01
                x = [
                    mpmath.mpf(float(m)) + side * mpmath.mpf(float(r))
                    for m, r in zip(positive.mid, positive.rad, strict=True)
                ]
                for exponent in (-0.5, -1.0, -1.5, -2.0):
                    assert contains(positive.power(exponent), [t**exponent for t in x])
    assert (Ball([1.0]).exp().rad < 1e-14).all()


@pytest.mark.parametrize(("mid", "rad"), [(-800.0, 200.0), (-740.0, 100.0), (-700.0, 1.0), (-1e4, 700.0)])
def test_the_exponential_of_a_ball_is_held_where_its_midpoint_underflows(mid, rad):
    ball = Ball([mid], [rad]).exp()
    with mpmath.workdps(50):
        for side in (-1, 0, 1):
            assert contains(ball, [mpmath.exp(mpmath.mpf(mid) + side * mpmath.mpf(rad))])


def exact_outputs(model, prompt, queries):
    """A causal RMSNorm or LayerNorm network of one-token queries in mpmath, written from its definition."""
    c = model.config
    weight = {name: mpmath.matrix(w.tolist()) for name, w in model.named_parameters()}

    def norm(x, gain):
        if c.norm == "layer":
            mean = mpmath.fsum(x) / c.d
            x = [t - mean for t in x]
        scale = mpmath.sqrt(mpmath.fsum(t * t for t in x) / c.d + mpmath.mpf(c.norm_eps))
        return [t / scale * g for t, g in zip(x, gain, strict=True)]

    def times(x, matrix):
        return list(mpmath.matrix([x]) * matrix)

    out = []
    for query in queries:
        stream = [*prompt, query]
        for layer in range(c.depth):
            part = {name.split(".", 2)[2]: w for name, w in weight.items() if name.startswith(f"blocks.{layer}.")}
            seen = [norm(x, part["norm1.gain"]) for x in stream]
            q, k, v = ([times(x, part[name]) for x in seen] for name in ("query", "key", "value"))
            for t in range(len(stream)):
                mixed = []
                for h in range(c.heads):
                    own, values = slice(h * c.d_k, (h + 1) * c.d_k), slice(h * c.d_v, (h + 1) * c.d_v)
                    e = [mpmath.exp(mpmath.fdot(q[t][own], k[s][own]) / mpmath.sqrt(c.d_k)) for s in range(t + 1)]
                    mixed += [
                        mpmath.fdot(e, column) / mpmath.fsum(e)
                        for column in zip(*(v[s][values] for s in range(t + 1)), strict=True)
                    ]
                x = [a + b for a, b in zip(stream[t], times(mixed, part["output"]), strict=True)]
                hidden = times(norm(x, part["norm2.gain"]), part["up"])
                hidden = [a + b for a, b in zip(hidden, part["up_bias"], strict=True)]
                written = times([a * mpmath.ncdf(a) for a in hidden], part["down"])
                stream[t] = [a + b + c_ for a, b, c_ in zip(x, written, part["down_bias"], strict=True)]
        out += times(norm(stream[-1], weight["norm.gain"]), weight["unembedding"])
    return out


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_the_balls_of_a_network_hold_its_derivative_to_50_digits(norm):
    config = TransformerConfig(d=3, q=2, depth=2, heads=2, d_k=2, d_v=1, mlp=2, norm=norm, norm_eps=0.125, causal=True)
    generator = torch.Generator().manual_seed(0)
    model, prompt, queries = tasks.generic_instance(config, 2, 2, generator=generator)
    ball = witness.prompt_jacobian(model, prompt, queries)
    assert ball.rad.max() < 1e-6 * np.abs(ball.mid).max()
    with mpmath.workdps(60):
        step, columns = mpmath.mpf(10) ** -20, []
        for place in range(6):
            shifted = []
            for side in (1, -1):
                moved = [[mpmath.mpf(x) for x in row] for row in prompt.tolist()]
                moved[place // 3][place % 3] += side * step
                shifted.append(exact_outputs(model, moved, [[mpmath.mpf(x) for x in q[0]] for q in queries.tolist()]))
            columns.append([(a - b) / (2 * step) for a, b in zip(*shifted, strict=True)])  # error of order 1e-40
        assert contains(ball, np.array(columns, dtype=object).T)


def random_case(rng):
    positions = rng.choice(["none", "learned", "rotary"])
    causal = rng.random() < 0.5
    config = TransformerConfig(
        d=rng.randint(3, 6), q=rng.choice([1, 2, 7]), depth=rng.choice([1, 2, 3]), heads=rng.choice([1, 2]),
        d_k=rng.choice([2, 4]), d_v=rng.choice([1, 2, 6]), mlp=rng.choice([0, 1, 8]),
        norm=rng.choice(["none", "rms", "layer"]), norm_eps=rng.choice([0.0, 0.1]), causal=causal, positions=positions,
        inverse_temperature=rng.choice([1.0, 1.7]), context_scaling="none" if causal else rng.choice(["none", "log"]),
    )  # fmt: skip
    return config, rng.choice(["soft", "prefix"]), rng.choice(["fixed", "moving"]), rng.random() < 0.6


def test_the_second_network_is_the_first():
    rng = random.Random(0)
    for seed in range(40):
        config, tuning, read, own_token = random_case(rng)
        generator = torch.Generator().manual_seed(seed)
        model, prompt, queries = tasks.generic_instance(config, 2, 6, tuning=tuning, read=read, generator=generator)
        if read == "moving" and seed % 2:
            queries = torch.cat([torch.randn(queries.shape, generator=generator).double(), queries], 1)
        wanted = measure.prompt_jacobian(model, prompt, queries, own_token=own_token).numpy()
        found = witness.prompt_jacobian(model, prompt, queries, own_token=own_token)
        assert found.mid.shape == wanted.shape
        assert np.abs(found.mid - wanted).max() < 1e-11 * max(np.abs(wanted).max(), 1e-3), (config, tuning, read)


def test_forward_and_reverse_mode_agree_with_the_balls():
    config = TransformerConfig(d=5, q=6, depth=3, norm="layer", norm_eps=0.0, causal=True, mlp=10)
    model, prompt, queries = tasks.generic_instance(config, 3, 20, generator=torch.Generator().manual_seed(1))
    reverse = torch.autograd.functional.jacobian(lambda p: model(p[None], queries)[0].flatten(), prompt).flatten(1)
    ball = witness.prompt_jacobian(model, prompt, queries)
    assert np.abs(ball.mid - reverse.numpy()).max() < 1e-12 * np.abs(ball.mid).max()


@pytest.mark.parametrize("rank", [0, 1, 4, 6])
def test_the_certified_rank_of_matrices_of_known_rank(rank):
    rng = np.random.default_rng(rank)
    matrix = rng.integers(-5, 6, (9, rank)) @ rng.integers(-5, 6, (rank, 6)).astype(float)  # exact integers
    assert witness.certified_rank(Ball(matrix)) == rank
    assert witness.certified_rank(Ball(matrix * 1e-9)) == rank
    graded = matrix * 10.0 ** -np.arange(6)
    assert witness.certified_rank(Ball(graded)) == rank


def test_a_radius_takes_rank_away():
    """A ball that holds a matrix of lower rank certifies no more than that."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
    for small in range(1, 10):
        values = np.array([1, 1, 1, 1, 10.0**-small, 10.0**-small])
        matrix, lower = ((left * v) @ right for v in (values, [1, 1, 1, 1, 0, 0]))
        radius = np.abs(matrix - lower).max()
        assert witness.certified_rank(Ball(matrix, radius)) <= 4
        assert witness.certified_rank(Ball(matrix, radius / 100)) == 6


def test_bad_draws_are_repeated_and_the_count_is_never_passed():
    config = TransformerConfig(d=5, q=6, heads=2, d_k=2, d_v=2, mlp=10)
    D = bounds.effective_dimension(config, 4, read="fixed")
    found = [
        witness.generic_rank(config, 4, 20, read="fixed", enough=D, generator=torch.Generator().manual_seed(seed))
        for seed in range(100)
    ]
    assert all(each.rank == D and each.settled for each in found)
    assert any(each.draws > 1 for each in found)
    beyond = witness.generic_rank(
        config, 4, 20, read="fixed", enough=D + 1, draws=2, generator=torch.Generator().manual_seed(0)
    )
    assert beyond.rank == D
    assert beyond.settled  # the gap is clear in both draws: a count of D + 1 would be refuted


def test_bad_input_gets_one_sentence():
    relu = Transformer(TransformerConfig(d=3, q=4, mlp=3, activation="relu")).double()
    single, plain = (Transformer(TransformerConfig(d=3, q=4, norm="rms", norm_eps=0.0)) for _ in range(2))
    plain.double()
    prompt, queries = torch.ones(2, 3).double(), torch.ones(4, 3).double()
    for model, start, sentence in (
        (relu, prompt, "activation must be gelu"),
        (single, prompt, "give it in float64"),
        (plain, prompt * 0, "may be zero"),
    ):
        with pytest.raises(ValueError, match=sentence):
            witness.prompt_jacobian(model, start, queries)
    prefix = Prefix(torch.ones(1, 1, 1, 2, 3).double(), torch.ones(1, 1, 1, 2, 3).double())
    assert witness.prompt_jacobian(plain, prefix, queries).mid.shape == (16, 12)
    assert math.isfinite(witness.prompt_jacobian(plain, prefix, queries).rad.max())
