"""The network against a slow one: explicit lists of tokens, one number at a time, no batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from prompt_memory.network.transformer import Prefix, Transformer, TransformerConfig

torch.set_num_threads(1)


def network(config, seed=0):
    """A float64 network whose gains and biases are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config, generator=generator).double()
    for name, weight in model.named_parameters():
        if name.endswith(("gain", "bias")):
            weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
    return model


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def random_prefix(config, m, runs, seed=0):
    widths = [normal(runs, config.depth, config.heads, m, width, seed=seed) for width in (config.d_k, config.d_v)]
    return Prefix(*widths)


# --- the slow network ----------------------------------------------------------------------------------------------


def slow_norm(config, gain, x):
    if config.norm == "none":
        return list(x)
    mean = sum(x) / len(x) if config.norm == "layer" else 0.0
    length = math.sqrt(sum((entry - mean) ** 2 for entry in x) / len(x) + config.norm_eps)
    return [g * (entry - mean) / length for g, entry in zip(gain, x, strict=True)]


def slow_turn(config, x, position):
    """Coordinates i and i + d_k/2 are one complex number, turned by position·10000^(−2i/d_k)."""
    if config.positions != "rotary":
        return np.array(x)
    half = len(x) // 2
    turned = [complex(x[i], x[i + half]) * np.exp(1j * position / 10000 ** (2 * i / config.d_k)) for i in range(half)]
    return np.array([z.real for z in turned] + [z.imag for z in turned])


def slow_mlp(config, block, x):
    hidden = np.array(x) @ block["up"] + block["up_bias"]
    if config.activation == "relu":
        hidden = [max(0.0, h) for h in hidden]
    else:
        hidden = [h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in hidden]
    return np.array(hidden) @ block["down"] + block["down_bias"]


def sees(config, i, j, m, own_token):
    """Whether token i of the list [prompt; query] looks at token j."""
    if i < m and j < m:
        return j <= i or not config.causal
    if i < m:
        return own_token and not config.causal
    return j < m or (own_token and (j <= i or not config.causal))


def slow(model, prompt, query, own_token=True):
    """Logits [T, q] for one prompt [m, d] (or one prefix) and one query [T, d], and the keys and values it made."""
    c = model.config
    weights = {name: weight.numpy() for name, weight in model.named_parameters()}
    prefix = isinstance(prompt, Prefix)
    m = prompt.keys.shape[-2] if prefix else len(prompt)
    total = m + len(query)
    tokens = [None] * m if prefix else [row.numpy().copy() for row in prompt]
    tokens += [row.numpy().copy() for row in query]
    if c.positions == "learned":
        tokens = [None if x is None else x + weights["position"][i] for i, x in enumerate(tokens)]
    cache = Prefix(np.zeros((c.depth, c.heads, m, c.d_k)), np.zeros((c.depth, c.heads, m, c.d_v)))
    for layer in range(c.depth):
        block = {name: weights.get(f"blocks.{layer}.{name}") for name in ("query", "key", "value", "output")}
        block |= {name: weights.get(f"blocks.{layer}.{name}") for name in ("up", "up_bias", "down", "down_bias")}
        gains = [weights.get(f"blocks.{layer}.norm{number}.gain") for number in (1, 2)]
        read = [None if x is None else np.array(slow_norm(c, gains[0], x)) for x in tokens]
        mixed = np.zeros((total, c.heads * c.d_v))
        for head in range(c.heads):
            of_head = slice(head * c.d_k, (head + 1) * c.d_k)
            out_of_head = slice(head * c.d_v, (head + 1) * c.d_v)
            keys, values = [], []
            for j in range(total):
                if prefix and j < m:
                    keys.append(prompt.keys[layer, head, j].numpy())
                    values.append(prompt.values[layer, head, j].numpy())
                else:
                    keys.append(slow_turn(c, read[j] @ block["key"][:, of_head], j))
                    values.append(read[j] @ block["value"][:, out_of_head])
                if j < m:
                    cache.keys[layer, head, j], cache.values[layer, head, j] = keys[-1], values[-1]
            for i in range(total):
                if read[i] is None:
                    continue
                asked = slow_turn(c, read[i] @ block["query"][:, of_head], i)
                visible = [j for j in range(total) if sees(c, i, j, m, own_token)]
                scores = [c.inverse_temperature * float(asked @ keys[j]) / math.sqrt(c.d_k) for j in visible]
                if c.context_scaling == "log":
                    scores = [math.log(len(visible)) * score for score in scores]
                shares = [math.exp(score - max(scores)) for score in scores]
                for j, share in zip(visible, shares, strict=True):
                    mixed[i, out_of_head] += share / sum(shares) * values[j]
        tokens = [None if x is None else x + mixed[i] @ block["output"] for i, x in enumerate(tokens)]
        if c.mlp:
            tokens = [
                None if x is None else x + slow_mlp(c, block, slow_norm(c, gains[1], x)) for i, x in enumerate(tokens)
            ]
    logits = [np.array(slow_norm(c, weights.get("norm.gain"), x)) @ weights["unembedding"] for x in tokens[m:]]
    return np.array(logits), cache


def run_of(prompt, r):
    return Prefix(prompt.keys[r], prompt.values[r]) if isinstance(prompt, Prefix) else prompt[r]


def assert_like_the_slow_one(model, prompt, queries, own_token=True):
    runs = len(prompt.keys if isinstance(prompt, Prefix) else prompt)
    wanted = [[slow(model, run_of(prompt, r), query, own_token)[0] for query in queries] for r in range(runs)]
    everywhere = model(prompt, queries, own_token=own_token, read="all")
    last = model(prompt, queries, own_token=own_token)
    assert everywhere.shape == (runs, *queries.shape[:2], model.config.q)
    np.testing.assert_allclose(everywhere, np.array(wanted), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(last, np.array(wanted)[:, :, -1], rtol=1e-9, atol=1e-10)


WIDE = TransformerConfig(d=4, q=3, depth=3, heads=2, d_k=4, d_v=3, mlp=5)


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("norm", "norm_eps"), [("none", 0.0), ("rms", 0.0), ("rms", 0.3), ("layer", 0.0), ("layer", 0.3)]
)
def test_masks_norms_and_positions(norm, norm_eps, causal, positions):
    config = replace(WIDE, norm=norm, norm_eps=norm_eps, causal=causal, positions=positions)
    model = network(config, seed=1)
    for own_token in (True, False):
        for T, m in ((1, 3), (3, 2)):
            queries = normal(2, T, 4, seed=2)
            assert_like_the_slow_one(model, normal(2, m, 4, seed=3), queries, own_token)
            assert_like_the_slow_one(model, random_prefix(config, m, 2), queries, own_token)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 1},
        {"heads": 1, "d_k": 6, "d_v": 1},
        {"heads": 3, "d_k": 1, "d_v": 4},
        {"mlp": 0},
        {"activation": "relu"},
        {"inverse_temperature": 2.5},
        {"q": 7},
    ],
    ids=str,
)
def test_sizes_activations_and_temperature(change):
    for causal in (False, True):
        model = network(replace(WIDE, norm="rms", causal=causal, **change), seed=4)
        assert_like_the_slow_one(model, normal(3, 2, 4, seed=5), normal(3, 2, 4, seed=6))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("own_token", [False, True])
def test_log_scaling_counts_the_keys_that_a_token_sees(causal, own_token):
    model = network(replace(WIDE, norm="rms", causal=causal, context_scaling="log"), seed=7)
    for m in (1, 3):
        assert_like_the_slow_one(model, normal(2, m, 4, seed=8), normal(2, 2, 4, seed=9), own_token)
        assert_like_the_slow_one(model, random_prefix(model.config, m, 2), normal(2, 2, 4, seed=9), own_token)


# --- what must not change, and what must ---------------------------------------------------------------------------


def test_runs_and_queries_do_not_mix():
    model = network(replace(WIDE, norm="layer", positions="learned"))
    prompts, queries = normal(5, 3, 4), normal(4, 2, 4, seed=1)
    batched = model(prompts, queries)
    looped = torch.stack([torch.stack([model(p[None], x[None])[0, 0] for x in queries]) for p in prompts])
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=1e-12)


def test_token_queries_are_rows_of_the_embedding():
    model = network(replace(WIDE, positions="rotary"))
    ids = torch.tensor([[0, 2, 1], [1, 1, 0]])
    assert torch.equal(model(normal(2, 3, 4), ids), model(normal(2, 3, 4), model.embedding[ids]))
    assert torch.equal(model(normal(2, 3, 4), model.embedding), model(normal(2, 3, 4), model.embedding[:, None]))


@pytest.mark.parametrize(
    ("change", "blind"),
    [
        ({}, True),
        ({"causal": True, "depth": 1}, True),
        ({"causal": True}, False),
        ({"positions": "learned"}, False),
        ({"positions": "rotary"}, False),
    ],
    ids=str,
)
def test_which_networks_are_blind_to_the_order_of_the_prompt(change, blind):
    model = network(replace(WIDE, norm="rms", **change))
    prompt, queries = normal(1, 5, 4), normal(3, 4, seed=1)
    there, back = model(prompt, queries), model(prompt[:, [3, 0, 4, 2, 1]], queries)
    assert torch.allclose(there, back, rtol=1e-12, atol=1e-12) == blind


def test_a_prompt_sees_the_query_only_without_a_mask_and_below_the_last_layer():
    queries = normal(2, 2, 4, seed=1)
    queries[1, 1] = queries[0, 1]  # the token that is read is the same
    prompt = normal(1, 2, 4)
    for depth, causal, listens in ((1, False, False), (2, False, True), (2, True, False)):
        model = network(replace(WIDE, depth=depth, causal=causal))
        own = model(prompt, queries)[0]
        # a prompt frozen as it was for the first query
        frozen = slow(model, prompt[0], queries[0])[1]
        kept = model(Prefix(*(torch.from_numpy(part)[None] for part in frozen)), queries)[0]
        assert torch.allclose(own[0], kept[0], rtol=1e-10)
        assert torch.allclose(own[1], kept[1], rtol=1e-10) != listens
        assert not torch.allclose(own[0], own[1])
        alone = model(prompt, queries, own_token=False)[0]
        assert torch.equal(alone[0], alone[1])


def test_a_prefix_of_the_keys_and_values_of_a_soft_prompt_is_that_prompt():
    for positions in ("none", "learned", "rotary"):
        # causal or without own tokens, the prompt's states do not depend on the query at any depth
        for change, own_token in (({"depth": 1}, True), ({"causal": True}, True), ({}, False)):
            model = network(replace(WIDE, norm="rms", positions=positions, **change))
            prompt, queries = normal(1, 3, 4), normal(4, 2, 4, seed=1)
            _, cache = slow(model, prompt[0], normal(2, 4, seed=2), own_token)
            prefix = Prefix(*(torch.from_numpy(part)[None] for part in cache))
            torch.testing.assert_close(
                model(prefix, queries, own_token=own_token, read="all"),
                model(prompt, queries, own_token=own_token, read="all"),
                rtol=1e-10,
                atol=1e-10,
            )


def test_rotary_positions_are_relative():
    """Dummy tokens that nobody listens to push all others along: nothing changes, if their keys turn as well."""
    config = TransformerConfig(d=4, q=3, d_k=4, d_v=3, positions="rotary")
    model = network(config)
    query, keys, values = normal(1, 4, seed=1), normal(2, 4, seed=2).numpy(), normal(2, 3, seed=3).numpy()

    def logits(shift, turned):
        m = shift + 2
        asked = slow_turn(config, query[0].numpy() @ model.blocks[0].query.numpy(), m)
        ignored = [-1e5 * asked / (asked @ asked)] * shift
        seen = [slow_turn(config, key, turned + j) for j, key in enumerate(keys)]
        parts = np.array(ignored + seen), np.concatenate([np.ones((shift, 3)), values])
        return model(Prefix(*(torch.from_numpy(part)[None, None, None] for part in parts)), query)

    for shift in (1, 5, 40):
        torch.testing.assert_close(logits(shift, turned=shift), logits(0, turned=0), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(logits(shift, turned=0), logits(0, turned=0), rtol=1e-3)


def test_a_norm_without_epsilon_does_not_see_lengths():
    prompt, queries = normal(1, 3, 4), normal(2, 4, seed=1)
    longer = prompt * torch.tensor([0.5, 2.0, 9.0])[:, None]
    for norm, norm_eps, depth, same in (
        ("rms", 0.0, 1, True),
        ("layer", 0.0, 1, True),
        ("rms", 0.0, 2, False),
        ("rms", 0.3, 1, False),
        ("none", 0.0, 1, False),
    ):
        model = network(replace(WIDE, norm=norm, norm_eps=norm_eps, depth=depth))
        assert torch.allclose(model(prompt, queries), model(longer, queries), rtol=1e-12, atol=1e-12) == same
    shifted = prompt + torch.tensor([1.0, -2.0, 3.0])[:, None]
    model = network(replace(WIDE, norm="layer"))
    torch.testing.assert_close(model(prompt, queries), model(shifted, queries), rtol=1e-11, atol=1e-11)


# --- streams -------------------------------------------------------------------------------------------------------


STREAMS = [
    replace(WIDE, causal=True, norm=norm, norm_eps=norm_eps, positions=positions)
    for norm, norm_eps in (("none", 0.0), ("rms", 0.0), ("rms", 0.3), ("layer", 0.0), ("layer", 0.3))
    for positions in ("none", "learned", "rotary")
] + [
    replace(WIDE, causal=True, norm="rms", **change)
    for change in (
        {"depth": 1},
        {"heads": 1, "d_k": 6, "d_v": 1},
        {"heads": 3, "d_k": 1, "d_v": 4, "positions": "learned"},
        {"d_k": 2, "d_v": 2},
        {"mlp": 0},
        {"activation": "relu"},
        {"inverse_temperature": 2.5, "positions": "rotary"},
    )
]


@pytest.mark.parametrize(
    "config", STREAMS, ids=lambda c: f"{c.norm}-{c.norm_eps}-{c.positions}-{c.d_k}-{c.d_v}-{c.mlp}"
)
def test_a_stream_is_prompt_and_tokens_of_its_own(config):
    model, x = network(config, seed=1), normal(4, 6, 4, seed=2)
    streamed = model.stream(x)
    assert streamed.shape == (4, 6, 3)
    for row, logits in zip(x, streamed, strict=True):
        np.testing.assert_allclose(logits, slow(model, row[:0], row)[0], rtol=1e-9, atol=1e-10)
    for m in (1, 4):  # wherever the prompt ends
        together = torch.cat([model(row[None, :m], row[None, m:], read="all")[0] for row in x])
        torch.testing.assert_close(streamed[:, m:], together, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.stream(x[:1, :1]), streamed[:1, :1], rtol=1e-12, atol=1e-12)


def test_a_stream_has_the_gradient_of_forward():
    for positions in ("learned", "rotary"):
        model = network(replace(WIDE, causal=True, norm="layer", positions=positions))
        prompts, tokens, readers = normal(3, 2, 4), normal(3, 3, 4, seed=1), normal(3, 3, 3, seed=2)
        one, two = prompts.clone().requires_grad_(), prompts.clone().requires_grad_()
        (model.stream(torch.cat([one, tokens], 1))[:, 2:] * readers).sum().backward()
        looped = [model(p[None], x[None], read="all")[0, 0] for p, x in zip(two, tokens, strict=True)]
        (torch.stack(looped) * readers).sum().backward()
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-10)
        assert (one.grad.abs() > 0).all()


def test_a_stream_does_not_see_the_future_or_other_runs():
    for dtype in (torch.float32, torch.float64):
        model = network(replace(WIDE, causal=True, norm="layer", positions="learned")).to(dtype)
        x = normal(3, 7, 4).to(dtype)
        before = model.stream(x)
        for place in range(7):
            changed = x.clone()
            changed[1, place, 0] += 1
            after = model.stream(changed)
            same = torch.isclose(before, after, rtol=1e-6, atol=1e-6).all(-1)
            assert same[[0, 2]].all()
            assert same[1].tolist() == [t < place for t in range(7)]
        changed[1] = torch.nan
        assert torch.isfinite(model.stream(changed)[[0, 2]]).all()


# --- weights -------------------------------------------------------------------------------------------------------


def test_weights_come_from_the_generator_and_are_frozen():
    def weights(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        model = Transformer(replace(WIDE, positions="learned", norm="rms"), generator=generator)
        assert not any(weight.requires_grad for weight in model.parameters())
        return torch.cat([weight.flatten() for weight in model.parameters()])

    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(weights(3), weights(3))
    assert torch.equal(weights(None), weights(0))
    assert not torch.equal(weights(3), weights(4))
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the global generator


def test_weights_keep_activations_at_order_one():
    model = Transformer(TransformerConfig(d=256, q=64, d_k=128, d_v=64, mlp=512))
    block = model.blocks[0]
    for weight, fan_in in (
        (block.query, 256),
        (block.key, 256),
        (block.value, 256),
        (block.output, 64),
        (block.up, 256),
        (block.down, 512),
        (model.unembedding, 256),
    ):
        assert weight.shape[0] == fan_in
        assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.05)


def test_the_gradient_reaches_the_prompt_and_nothing_else():
    model = network(WIDE)
    prompt = normal(2, 3, 4).requires_grad_()
    model(prompt, normal(2, 4)).square().sum().backward()
    assert (prompt.grad.abs() > 0).all()
    assert all(weight.grad is None for weight in model.parameters())


def test_head_widths_default_to_an_even_split():
    config = TransformerConfig(d=12, heads=3, d_v=5)
    assert (config.d_k, config.d_v) == (4, 5)
    assert replace(config, norm="rms") == TransformerConfig(d=12, heads=3, d_k=4, d_v=5, norm="rms")


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d": 0}, "d must be an integer >= 1, not 0"),
        ({"d": -4}, "d must be an integer >= 1, not -4"),
        ({"d": 4.0}, r"d must be an integer >= 1, not 4\.0"),
        ({"q": 0}, "q must be an integer >= 1"),
        ({"depth": 0}, "depth must be an integer >= 1"),
        ({"depth": True}, "depth must be an integer >= 1, not True"),
        ({"heads": "2"}, "heads must be an integer >= 1, not '2'"),
        ({"context": 0}, "context must be an integer >= 1"),
        ({"mlp": -1}, "mlp must be an integer >= 0, not -1"),
        ({"causal": "no"}, "causal must be True or False, not 'no'"),
        ({"heads": 3}, "d_k must be given: d = 4 is not divisible by heads = 3"),
        ({"heads": 3, "d_k": 2}, "d_v must be given: d = 4 is not divisible by heads = 3"),
        ({"d_k": 0}, "d_k must be an integer >= 1, not 0"),
        ({"d_v": -2}, "d_v must be an integer >= 1, not -2"),
        ({"activation": "silu"}, "activation must be one of gelu, relu, not 'silu'"),
        ({"norm": "batch"}, "norm must be one of none, rms, layer, not 'batch'"),
        ({"positions": "alibi"}, "positions must be one of none, learned, rotary, not 'alibi'"),
        ({"context_scaling": "linear"}, "context_scaling must be one of none, log, not 'linear'"),
        ({"positions": "rotary", "d_k": 3}, "d_k must be even, not 3"),
        ({"norm_eps": -1e-5}, "norm_eps must be a finite number >= 0"),
        ({"norm_eps": math.nan}, "norm_eps must be a finite number >= 0, not nan"),
        ({"norm_eps": math.inf}, "norm_eps must be a finite number >= 0"),
        ({"inverse_temperature": 0.0}, r"inverse_temperature must be a finite number > 0, not 0\.0"),
        ({"inverse_temperature": math.inf}, "inverse_temperature must be a finite number > 0"),
    ],
    ids=str,
)
def test_a_bad_architecture_gets_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as error:
        TransformerConfig(**{"d": 4} | options)
    assert "\n" not in str(error.value)


def poisoned(value):
    model = network(WIDE)
    model.blocks[1].up[2, 3] = value
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(normal(2, 3, 5), normal(2, 4)), r"prompts must have the shape .* d = 4, not \[2, 3, 5\]"),
        (lambda f: f(normal(3, 4), normal(2, 4)), r"prompts must have the shape .* not \[3, 4\]"),
        (lambda f: f(normal(2, 0, 4), normal(2, 4)), "at least one token, m >= 1"),
        (lambda f: f(normal(2, 3, 4), normal(2, 5)), r"queries must have the shape .* d = 4, not \[2, 1, 5\]"),
        (lambda f: f(normal(2, 3, 4), normal(4)), r"queries must have the shape .* not \[4\]"),
        (lambda f: f(normal(2, 3, 4), normal(2, 0, 4)), r"queries must have the shape .* not \[2, 0, 4\]"),
        (lambda f: f(normal(2, 3, 4), torch.tensor([0, 1])), r"token queries must have the shape \[n, T\], not \[2\]"),
        (lambda f: f(normal(2, 3, 4), torch.tensor([[3]])), "token ids must lie in 0 … 2"),
        (lambda f: f(normal(2, 3, 4), torch.tensor([[-1]])), "token ids must lie in 0 … 2"),
        (lambda f: f(normal(2, 7, 4), normal(2, 2, 4)), "7 prompt and 2 query tokens exceed the 8 learned positions"),
        (lambda f: f(random_prefix(replace(WIDE, depth=2), 2, 1), normal(2, 4)), "a prefix needs keys"),
        (lambda f: f(random_prefix(replace(WIDE, d_v=2), 2, 1), normal(2, 4)), r"and values .*\[3, 2, 2, 3\]"),
        (lambda f: f(random_prefix(WIDE, 0, 1), normal(2, 4)), "at least one token, m >= 1"),
        (lambda f: f(normal(2, 3, 4), normal(2, 4), read="first"), "read must be one of last, all, not 'first'"),
        (
            lambda f: f(Prefix(*(normal(r, 3, 2, 2, w) for r, w in ((1, 4), (2, 3)))), normal(2, 4)),
            "a prefix needs keys",
        ),
        (lambda f: poisoned(math.nan).require_finite(), r"the weight blocks\.1\.up holds NaN or infinite entries"),
        (lambda f: poisoned(math.inf).require_finite(), r"the weight blocks\.1\.up holds NaN or infinite entries"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    model = network(replace(WIDE, positions="learned", context=8))
    assert model.require_finite() is model
    with pytest.raises(ValueError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({"causal": False}, (2, 3, 4), "stream needs a causal network without context scaling"),
        ({"context_scaling": "log"}, (2, 3, 4), "stream needs a causal network without context scaling"),
        ({}, (2, 3, 5), r"sequences must have the shape \[R, T, d\] with d = 4, not \[2, 3, 5\]"),
        ({}, (3, 4), r"sequences must have the shape \[R, T, d\] with d = 4, not \[3, 4\]"),
        ({}, (2, 0, 4), r"sequences must have the shape \[R, T, d\] with d = 4, not \[2, 0, 4\]"),
        ({}, (2, 9, 4), "9 tokens exceed the 8 learned positions"),
    ],
)
def test_a_bad_stream_gets_one_sentence(change, shape, message):
    config = replace(WIDE, causal=True, positions="learned", context=8)
    with pytest.raises(ValueError, match=f"^{message}$"):
        network(replace(config, **change)).stream(normal(*shape))
    assert network(config).stream(normal(2, 8, 4)).shape == (2, 8, 3)
    assert network(replace(config, positions="rotary")).stream(normal(2, 9, 4)).shape == (2, 9, 3)
