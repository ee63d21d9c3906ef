"""The network written by hand: against its formula in numpy, over all patterns, and where its condition fails."""

import itertools
import math

import numpy as np
import pytest
import torch

from prompt_memory import bounds, measure, tune
from prompt_memory.network import construct
from prompt_memory.network.transformer import TransformerConfig
from prompt_memory.tasks import all_labels

CODES = {
    "hypercube": (construct.hypercube_code(3), 7),
    "hadamard": (construct.hadamard_code(4), 6),
    "simplex": (construct.simplex_code(6), 8),
    "circle": (construct.circle_code(5), 3),
    "signs": (construct.random_code(16, 40, 0.5, generator=torch.Generator().manual_seed(0)), 20),
    "sphere": (construct.random_code(8, 30, 0.6, generator=torch.Generator().manual_seed(0), signs=False), 11),
}


def gram(code):
    return (code @ code.T).numpy()


def largest_cosine(code):
    return float((code @ code.T - 2 * torch.eye(len(code))).max())


def formula(memory, prompt, keys, coordinates, thresholds, own_token):
    """v̂ − t from the statement of the theorem, with loops, in numpy."""
    d_k, r = memory.codewords.shape[1], memory.radius
    readings = []
    for key, c, t in zip(keys, coordinates, thresholds, strict=True):
        logits = [memory.logit_range / memory.key_norm * float(np.dot(key, p[:d_k])) for p in prompt]
        values = [p[d_k + c] for p in prompt]
        if own_token:
            logits.append(-memory.logit_range)
            values.append((2 * r + 1 - t) / (2 * r + 2))
        weights = np.exp(np.array(logits) - max(logits))
        readings.append(float(weights @ values / weights.sum()) - t)
    return np.array(readings)


# --- the network is the formula ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_token", [False, True])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("key_norm", [None, 0.7, 5.0])
def test_logits_are_the_formula_on_the_whole_ball(own_token, dtype, accuracy, key_norm):
    generator = torch.Generator().manual_seed(1)
    memory = construct.build_memory(construct.simplex_code(4), 7, 3.3, key_norm=key_norm, dtype=dtype)
    prompts = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    prompts *= memory.radius / prompts.norm(dim=-1, keepdim=True)  # on the sphere: values far beyond [−1, 1] as well
    prompts[0, 0] = 0
    prompts[1, 1] = -memory.radius * torch.eye(7)[4]
    keys = torch.nn.functional.normalize(torch.randn(12, 3, generator=generator, dtype=torch.float64), dim=1)
    coordinates = torch.arange(12) % 4
    thresholds = torch.linspace(-1, 1, 12, dtype=torch.float64)
    queries = memory.ask(keys, coordinates, thresholds)
    logits = memory.transformer(prompts.to(dtype), queries, own_token=own_token)
    assert logits.dtype == dtype
    assert logits.shape == (4, 12, 2)
    for prompt, shown in zip(prompts.to(dtype).double().numpy(), logits.double().numpy(), strict=True):
        wanted = formula(memory, prompt, keys.numpy(), coordinates.tolist(), thresholds.numpy(), own_token)
        assert np.abs(shown[:, 1] - wanted).max() < accuracy
        assert np.abs(shown[:, 0] + wanted).max() < accuracy
    assert torch.equal(
        memory.read(prompts.to(dtype), queries, own_token=own_token), (logits[..., 1] - logits[..., 0]) / 2
    )


def test_the_network_is_an_ordinary_one_and_knows_no_key():
    codes = construct.circle_code(3), construct.circle_code(7)
    first, second = (construct.build_memory(code, 5, 2.0) for code in codes)
    assert first.transformer.config == TransformerConfig(
        d=5, d_k=2, d_v=3, mlp=5, activation="relu", inverse_temperature=first.transformer.config.inverse_temperature
    )
    for one, other in zip(first.transformer.parameters(), second.transformer.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_token_and_query_lies_in_the_ball():
    for code, d in CODES.values():
        memory = construct.build_memory(code, d, 4.0, dtype=torch.float64)
        prompts = memory.write(torch.ones(1, len(code), memory.values))
        assert torch.allclose(prompts.norm(dim=-1), torch.tensor(memory.radius, dtype=torch.float64))
        thresholds = torch.tensor([-1.0, 0.0, 1.0])
        queries = memory.ask_all(len(code), thresholds)
        assert queries.norm(dim=-1).max() <= memory.radius + 1e-12
        assert ((queries[:, code.shape[1] :] >= 0) & (queries[:, code.shape[1] :] <= 1)).all()
    signs = construct.build_memory(construct.hypercube_code(3), 7, 4.0)
    assert (signs.write_bits(torch.ones(1, 8, 4, dtype=torch.long)).abs() - 1).abs().max() < 1e-6


def test_the_lipschitz_constant_is_attained_and_not_passed():
    generator = torch.Generator().manual_seed(2)
    memory = construct.build_memory(construct.circle_code(4), 5, 3.0, dtype=torch.float64)
    r, limit = memory.radius, math.sqrt(1 + memory.ball_range**2)
    query = memory.ask(torch.tensor([1]), torch.tensor([2]))

    def slope(prompt, own_token):
        prompt = prompt[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(memory.read(prompt, query, own_token=own_token).sum(), prompt)
        return float(gradient.norm(dim=-1).sum())

    extreme = torch.zeros(2, 5, dtype=torch.float64)
    extreme[:, 4] = torch.tensor([r, -r], dtype=torch.float64)
    assert slope(extreme, False) == pytest.approx(limit, rel=1e-12)
    assert 0.9 * limit < slope(extreme, True) < limit
    for _ in range(100):
        prompt = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        prompt *= r / prompt.norm(dim=-1, keepdim=True)
        assert slope(prompt, False) < limit
        assert slope(prompt, True) < limit


def test_own_constant_is_that_of_theorem_2():
    memory = construct.build_memory(construct.circle_code(4), 5, 3.0, key_norm=1.7, dtype=torch.float64)
    block, config = memory.transformer.blocks[0], memory.transformer.config
    A = config.inverse_temperature / math.sqrt(config.d_k) * (block.key @ block.query.T).numpy()
    head = bounds.head_lipschitz(A, block.value.T.numpy(), memory.radius, False, query_radius=memory.key_norm)
    assert head == pytest.approx(math.sqrt(1 + memory.ball_range**2), rel=1e-12)


# --- bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_token", [False, True])
@pytest.mark.parametrize("code", [construct.hypercube_code(2), construct.circle_code(4), construct.simplex_code(4)])
def test_all_patterns_are_recalled_and_the_worst_margin_is_known(code, own_token):
    d = code.shape[1] + 2
    B = bounds.code_logit_range(gram(code), own_token=own_token)
    memory = construct.build_memory(code, d, B, dtype=torch.float64)
    bits = all_labels(4 * 2, 2)
    readings = memory.read(memory.write_bits(bits.unflatten(1, (4, 2))), memory.ask_all(4), own_token=own_token)
    margins = 2 * readings * (2 * bits - 1)
    assert margins.min() >= 1 - 1e-12
    S = memory.attention(4, own_token=own_token)
    own = (1 - S.sum(1)) * (2 * memory.radius + 1) / (2 * memory.radius + 2)
    worst = (2 * (2 * S.diag() - S.sum(1) - own)).min()
    assert float(margins.min()) == pytest.approx(float(worst), abs=1e-12)
    if not own_token:
        assert float(worst) == pytest.approx(2 * (1 - 2 * bounds.softmax_leak(gram(code), B)), abs=1e-12)


@pytest.mark.parametrize("own_token", [False, True])
@pytest.mark.parametrize("name", CODES)
def test_the_condition_on_the_largest_cosine_is_enough(name, own_token):
    code, d = CODES[name]
    generator = torch.Generator().manual_seed(3)
    for leak in (0.05, 0.25, 0.45):
        B = bounds.cosine_logit_range(len(code), largest_cosine(code), leak=leak, own_token=own_token)
        assert bounds.code_logit_range(gram(code), leak=leak, own_token=own_token) - 1e-9 <= B
        memory = construct.build_memory(code, d, B, dtype=torch.float64)
        bits = torch.randint(2, (20, len(code), memory.values), generator=generator)
        worst = 2 * torch.eye(len(code), dtype=torch.long)[:, :, None].expand(-1, -1, memory.values) - 1
        bits = torch.cat([bits, (worst + 1) // 2, (1 - worst) // 2])
        for m in {1, 2, len(code) // 2, len(code)}:
            prompts = memory.write_bits(bits[:, :m])
            readings = memory.read(prompts, memory.ask_all(m), own_token=own_token)
            margins = 2 * readings * (2 * bits[:, :m].flatten(1) - 1)
            assert margins.min() >= 2 * (1 - 2 * leak) - 1e-12


def test_the_condition_is_sharp_for_equal_cosines():
    for m in (3, 6, 11):
        code = construct.simplex_code(m)
        for leak, wanted in ((0.25, 1.0), (0.5, 0.0)):
            B = bounds.cosine_logit_range(m, -1 / (m - 1), leak=leak)
            assert pytest.approx(bounds.code_logit_range(gram(code), leak=leak), rel=1e-9) == B
            assert pytest.approx(math.log((m - 1) * (1 - leak) / leak) * (m - 1) / m, rel=1e-12) == B
            for factor, sign in ((0.99, -1), (1.01, 1)):
                memory = construct.build_memory(code, m, B * factor, dtype=torch.float64)
                bits = torch.eye(m, dtype=torch.long)[None, :, :1]
                margin = 2 * memory.read(memory.write_bits(bits), memory.ask_all(m), own_token=False)[0, 0]
                assert np.sign(float(margin) - wanted) == sign


def test_float32_recalls_hundreds_of_tokens():
    code = construct.hypercube_code(8)
    B = bounds.code_logit_range(gram(code), own_token=True)
    memory = construct.build_memory(code, 14, B)
    bits = torch.randint(2, (3, 256, 6), generator=torch.Generator().manual_seed(4))
    readings = memory.read(memory.write_bits(bits), memory.ask_all(256))
    assert (2 * readings * (2 * bits.flatten(1) - 1)).min() >= 1 - 1e-4
    logits = memory.transformer(memory.write_bits(bits), memory.ask_all(256))  # default: the query sees itself
    assert torch.equal(logits.argmax(-1), bits.flatten(1))


# --- many levels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "B"), [(construct.circle_code(3), 2.0), (construct.circle_code(3), 0.3)])
def test_compensated_levels_are_read_exactly_and_all_tables_differ(code, B):
    memory = construct.build_memory(code, 3, B, dtype=torch.float64)
    a = memory.amplitude(3)
    for levels in (2, 3, 5):
        grid = torch.linspace(-a, a, levels, dtype=torch.float64)
        tables = grid[torch.cartesian_prod(*[torch.arange(levels)] * 3)][:, :, None]
        values = memory.compensate(tables)
        assert values.abs().max() <= 1 + 1e-9
        assert values.abs().max() == pytest.approx(1, abs=1e-9)  # a is the largest amplitude
        prompts = memory.write(values)
        assert torch.allclose(memory.read(prompts, memory.ask_all(3), own_token=False), tables[..., 0], atol=1e-12)
        middles = (grid[1:] + grid[:-1]) / 2
        readings = memory.read(prompts, memory.ask_all(3, middles), own_token=False)
        assert 2 * readings.abs().min() == pytest.approx(2 * a / (levels - 1), rel=1e-9)
        assert len((readings > 0).unique(dim=0)) == levels**3
        bits = bounds.fixed_key_bits(3, 2, 3, 2 * a / (levels - 1) * (1 - 1e-9), a)
        assert bits == pytest.approx(math.log2(levels**3))
        assert bits <= bounds.fixed_key_bits(3, 2, 3, 2 * a / (levels - 1) * (1 - 1e-9)) + 1e-12


def test_the_amplitude_is_the_best_margin_over_all_patterns():
    """By a linear program for every pattern: the worst of the best margins is 1/‖S⁻¹‖_∞, and at least 1 − 2ρ."""
    generator = torch.Generator().manual_seed(5)
    for m, B in ((2, 0.5), (3, 0.5), (4, 2.0), (5, 1.0)):
        code = construct.random_code(3, m, 0.95, generator=generator, signs=False)
        memory = construct.build_memory(code, 4, B, dtype=torch.float64)
        for own_token in (False, True):
            S = memory.attention(m, own_token=own_token).numpy()
            patterns = itertools.product((-1, 1), repeat=m)
            best = [measure.largest_margin(S, np.zeros(m), np.array(y)) / 2 for y in patterns]
            amplitude = memory.amplitude(m, own_token=own_token)
            assert min(best) == pytest.approx(amplitude, rel=1e-7)
            leak = bounds.softmax_leak(gram(code), B, own_token=own_token)
            assert amplitude >= 1 - 2 * leak - 1e-12
            assert bounds.necessary_logit_range(m, amplitude) <= B


def test_attention_is_what_the_network_does():
    code, d = CODES["signs"]
    memory = construct.build_memory(code, d, 3.0, dtype=torch.float64)
    for own_token in (False, True):
        S = memory.attention(7, own_token=own_token)
        one = torch.zeros(7, 7, memory.values)
        one[torch.arange(7), torch.arange(7)] = 1
        queries = memory.ask(torch.arange(7), torch.zeros(7, dtype=torch.long))
        empty = memory.read(memory.write(torch.zeros(1, 7, memory.values)), queries, own_token=own_token)
        assert torch.allclose(memory.read(memory.write(one), queries, own_token=own_token) - empty, S.T, atol=1e-12)
        assert torch.allclose(1 - S.sum(1) > 1e-12, torch.tensor(own_token))
    assert (1 - S.sum(1)).max() <= math.exp(-2 * 3.0)


def test_labelings_are_complete():
    """Against a fine grid of values, which finds every labeling whose cell it meets."""
    rng = np.random.default_rng(6)
    weights = rng.dirichlet([1, 1], size=6)
    thresholds = rng.uniform(-0.5, 0.5, 6)
    for margin in (0.2, 0.6):
        listed = {tuple(row) for row in measure.memorised_labelings(weights, thresholds, margin)}
        axis = np.linspace(-1, 1, 401)
        values = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        readings = values @ weights.T - thresholds
        clear = (2 * np.abs(readings) > margin).all(1)
        met = {tuple(row) for row in np.sign(readings[clear]).astype(int)}
        assert met <= listed
        assert len(listed - met) <= 1  # a cell smaller than the grid
        assert len(listed) <= 2 ** bounds.fixed_key_bits(2, 1, 2, margin)
        for row in met:
            reached = (2 * readings * row).min(1).max()
            best = measure.largest_margin(weights, thresholds, np.array(row))
            assert reached - 1e-9 <= best <= reached + 0.02  # the grid misses half a step of 1/200 at most


@pytest.mark.parametrize("margin", [0.3, 0.5, 0.9])
def test_no_queries_beat_the_bound_for_given_keys(margin):
    memory = construct.build_memory(construct.circle_code(2), 3, 1.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    counts = []
    for n in (2, 3, 4, 6, 9):
        keys = 3 * torch.randn(n, 2, generator=generator, dtype=torch.float64)  # not only unit vectors
        weights = (memory.logit_range * keys @ memory.codewords.T).softmax(1).numpy()
        thresholds = torch.rand(n, generator=generator).numpy() - 0.5
        counts.append(len(measure.memorised_labelings(weights, thresholds, margin)))
    assert max(counts) <= round(2 ** bounds.fixed_key_bits(3, 2, 2, margin))
    assert max(counts) >= 3  # or nothing was tested


def test_the_tuner_scores_what_it_returns_and_stays_in_the_ball():
    code = construct.circle_code(3)
    memory = construct.build_memory(code, 4, bounds.code_logit_range(gram(code), own_token=True))
    generator = torch.Generator().manual_seed(8)
    labels = torch.randint(2, (5, 6), generator=generator)
    start = torch.randn(5, 3, 4, generator=generator)
    prompts, margins = tune.tune_to_margin(memory, memory.ask_all(3), labels, start, margin=1.0, steps=200)
    readings = memory.read(prompts, memory.ask_all(3))
    assert torch.allclose(margins, (2 * readings * (2 * labels - 1)).amin(1), atol=1e-5)
    assert prompts.norm(dim=-1).max() <= memory.radius * (1 + 1e-6)
    assert (margins > 1).sum() >= 4
    before = (2 * memory.read(start, memory.ask_all(3)) * (2 * labels - 1)).amin(1)
    assert (before > 1).sum() <= 1
    with pytest.raises(ValueError, match=r"labels must have the shape \[5, 6\]"):
        tune.tune_to_margin(memory, memory.ask_all(3), labels[:4], start, margin=1.0, steps=1)


# --- keys ----------------------------------------------------------------------------------------------------------


def test_codes_have_their_cosines():
    for name, (code, _) in CODES.items():
        assert torch.allclose(code.norm(dim=1), torch.ones(len(code), dtype=torch.float64)), name
    assert largest_cosine(construct.hypercube_code(5)) == pytest.approx(1 - 2 / 5)
    assert len(construct.hypercube_code(5).unique(dim=0)) == 32
    hadamard = construct.hadamard_code(8)
    assert len(hadamard) == 16
    assert sorted(set((hadamard @ hadamard.T).round(decimals=9).flatten().tolist())) == [-1, 0, 1]
    for m in (2, 3, 9):
        simplex = construct.simplex_code(m)
        assert simplex.shape == (m, m - 1)
        assert np.allclose(gram(simplex), (1 + 1 / (m - 1)) * np.eye(m) - 1 / (m - 1))
    assert largest_cosine(construct.circle_code(9)) == pytest.approx(math.cos(2 * math.pi / 9))
    assert largest_cosine(CODES["signs"][0]) <= 0.5
    assert largest_cosine(CODES["sphere"][0]) <= 0.6


# --- bad input ------------------------------------------------------------------------------------


CODE = construct.circle_code(3)
MEMORY = construct.build_memory(CODE, 4, 1.0)
KEYS = torch.arange(2)


def steep(**architecture):
    config = TransformerConfig(d=2, q=2, **architecture)
    return construct.steep_network(config, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: construct.build_memory(CODE, 2, 1.0), "leave none of d = 2 for values: give d_k < d"),
        (lambda: construct.build_memory(CODE[0], 2, 1.0), r"codewords must have the shape \[M, d_k\]"),
        (lambda: construct.build_memory(2 * CODE, 4, 1.0), "codewords must be unit vectors"),
        (lambda: construct.build_memory(CODE, 4, 0.0), "logit_range must be a finite number > 0, not 0"),
        (lambda: construct.build_memory(CODE, 4, math.nan), "logit_range must be a finite number > 0, not nan"),
        (lambda: construct.build_memory(CODE, 4, 1.0, key_norm=-1.0), "key_norm must be a finite number > 0"),
        (lambda: MEMORY.write(torch.zeros(1, 4, 2)), r"with 3 codewords m must lie in 1 … 3, not 4"),
        (lambda: MEMORY.write(torch.zeros(1, 3, 3)), r"values must have the shape \[R, m, 2\]"),
        (lambda: MEMORY.write(torch.full((1, 3, 2), 1.5)), "values must lie between -1 and 1"),
        (lambda: MEMORY.write(torch.full((1, 3, 2), math.nan)), "values must lie between -1 and 1"),
        (lambda: MEMORY.write_bits(torch.full((1, 3, 2), 2)), "bits must be 0 or 1"),
        (lambda: MEMORY.ask(KEYS + 2, KEYS), r"keys must lie in 0 … 2"),
        (lambda: MEMORY.ask(KEYS, KEYS + 1), r"coordinates must lie in 0 … 1"),
        (lambda: MEMORY.ask(KEYS, KEYS, 1.1), "thresholds must lie between -1 and 1"),
        (lambda: MEMORY.ask_all(4), "m must lie in 1 … 3, not 4"),
        (lambda: MEMORY.attention(0), "m must lie in 1 … 3, not 0"),
        (lambda: construct.hypercube_code(0), "1 <= d_k <= 12, not 0"),
        (lambda: construct.hadamard_code(6), "powers of two, not for d_k = 6"),
        (lambda: construct.simplex_code(1), "m >= 2, not 1"),
        (lambda: construct.circle_code(0), "m must be at least 1, not 0"),
        (
            lambda: construct.random_code(2, 5, 0.5, generator=torch.Generator(), tries=2000),
            "2000 draws gave [2-4] keys with cosines <= 0.5 in d_k = 2, not m = 5",
        ),
        (lambda: steep(positions="learned"), "other than learned ones, d_v >= d"),
        (lambda: steep(norm="rms", norm_eps=0.0), "norms with norm_eps = 0 are not defined at the origin"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
