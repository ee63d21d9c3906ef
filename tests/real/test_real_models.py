"""Wrapped language models: the numbers are transformers' own, and searches are confirmed by it."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import (
    CONTEXT,
    FAMILIES,
    MARKS,
    D,
    Q,
    checkpoint,
    generated,
    normal,
    own,
    refused,
    seeded,
    some_tokens,
    tiny,
)
from safetensors.torch import load_file
from torch.func import jvp

from prompt_memory import measure, tune
from prompt_memory.network.transformer import Transformer, TransformerConfig
from prompt_memory.real import models
from prompt_memory.real.ranks import sketched_rank

pytestmark = MARKS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_those_of_transformers(folder, dtype):
    model, network = models.load(folder, dtype), own(folder, models.DTYPES[dtype])
    x = normal(5, 7, D)
    wanted = network(inputs_embeds=x.to(network.dtype)).logits
    assert wanted.dtype == models.DTYPES[dtype]
    assert torch.equal(model.stream(x), wanted.float())
    assert model.stream(x).dtype == torch.float32
    assert torch.equal(model.embedding, network.get_input_embeddings().weight.float())
    tokens = some_tokens(5, 4)
    assert torch.equal(model.stream(model.embedding[tokens]), network(tokens).logits.float())
    assert not any(weight.requires_grad or network.training for weight in model.parameters())
    assert (model.config.d, model.config.q, model.config.causal, model.config.dtype) == (D, Q, True, dtype)


@pytest.mark.parametrize("read", ["last", "all"])
def test_every_prompt_meets_every_query(folder, read):
    model, network = models.load(folder), own(folder)
    prompts, ids = normal(3, 2, D), some_tokens(4, 5)
    embedded = network.get_input_embeddings()(ids)
    vectors = normal(4, D, seed=3)
    found = model(prompts, ids, read=read)
    again, single = model(prompts, embedded, read=read), model(prompts, vectors, read=read)
    assert torch.equal(found, again)
    for r, prompt in enumerate(prompts):
        for j in range(4):
            logits = network(inputs_embeds=torch.cat([prompt, embedded[j]])[None]).logits[0, 2:]
            one = network(inputs_embeds=torch.cat([prompt, vectors[j : j + 1]])[None]).logits[0, 2:]
            torch.testing.assert_close(found[r, j], logits if read == "all" else logits[-1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(single[r, j], one if read == "all" else one[-1], rtol=1e-5, atol=1e-5)
    assert model.network.config._attn_implementation == network.config._attn_implementation == "sdpa"


def test_a_double_network_is_double_throughout(folder):
    """Some families take norms and softmax in float32: slopes of differences with steps of 1e-6 would show it."""
    model, network = models.load(folder, "float64"), own(folder)
    prompts, queries, direction = (normal(*shape, dtype=torch.float64) for shape in ((1, 2, D), (3, D), (1, 2, D)))

    def logits(p):
        return model(p, queries)

    value, slope = jvp(logits, (prompts,), (direction,))
    step = 1e-6 * direction
    differences = (logits(prompts + step) - logits(prompts - step)) / 2e-6
    assert value.dtype == slope.dtype == torch.float64
    torch.testing.assert_close(slope, differences, rtol=1e-6, atol=1e-7)
    x = normal(2, 6, D, dtype=torch.float64)
    torch.testing.assert_close(model.stream(x).float(), network(inputs_embeds=x.float()).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.stream(x), models.load(folder).double().stream(x))  # converted or loaded: the same network


def test_embeddings_that_are_scaled_when_looked_up(tmp_path):
    folder = checkpoint(tmp_path, "gemma3_text", head_dim=4, num_key_value_heads=2, attention_bias=False)
    model, network, tokens = models.load(folder, "bfloat16"), own(folder, torch.bfloat16), some_tokens(3, 5)
    table = network.get_input_embeddings()(torch.arange(Q))
    assert (table.float() / network.get_input_embeddings().weight.float() - 4).abs().max() < 0.1
    assert torch.equal(model.embedding, table.float())
    assert torch.equal(model.stream(model.embedding[tokens]), network(tokens).logits.float())
    assert model.double().embedding.dtype == torch.float64
    assert sketched_rank(models.load(folder), normal(1, D), some_tokens(2, 2), generator=seeded()).rank == D


def test_a_batch_is_its_rows(folder):
    model, x = models.load(folder, "float64"), normal(9, 7, D, dtype=torch.float64)
    torch.testing.assert_close(model.stream(x), torch.cat([model.stream(row[None]) for row in x]), rtol=0, atol=1e-12)
    search = {"restarts": 2, "steps": 8} | models.search_settings(model)
    strings = some_tokens(3, 3)
    together = tune.cram(model, strings, 2, **search)
    for row, string in enumerate(strings):
        alone = tune.cram(model, string[None], 2, batch=1, **search)
        assert (alone.success[0], alone.steps[0]) == (together.success[row], together.steps[row])
        torch.testing.assert_close(alone.prompts[0], together.prompts[row], rtol=1e-6, atol=1e-6)


def test_a_learned_table_ends_and_computed_positions_do_not(family, folder):
    model, x = models.load(folder), normal(1, CONTEXT + 1, D)
    assert model.config.positions == ("learned" if family == "gpt2" else "computed")
    assert model.stream(x[:, 1:]).shape == (1, CONTEXT, Q)
    if family == "gpt2":
        with pytest.raises(ValueError, match=r"^25 tokens exceed the 24 learned positions$"):
            model.stream(x)
        with pytest.raises(ValueError, match="need 25 positions, more than the 24 of the model"):
            tune.cram(model, some_tokens(2, 23), 3)
    else:
        torch.testing.assert_close(model.stream(x)[:, :-1], model.stream(x[:, :-1]), rtol=1e-4, atol=1e-4)


ENDING = {  # tables that were computed beforehand, and the name of their length
    "codegen": dict(n_embd=D, n_layer=2, n_head=4, n_positions=CONTEXT, n_ctx=CONTEXT, rotary_dim=4),
    "gptj": dict(n_embd=D, n_layer=2, n_head=4, n_positions=CONTEXT, rotary_dim=4),
    "mpt": dict(d_model=D, n_layers=2, n_heads=4, max_seq_len=CONTEXT),
    "ctrl": dict(n_embd=D, n_layer=2, n_head=4, n_positions=CONTEXT, dff=32),
}  # fmt: skip


@pytest.mark.parametrize("family", ENDING)
def test_a_computed_table_ends_too(family):
    model = models.CausalLM(tiny(family, **ENDING[family]), "this")
    assert (model.config.positions, model.config.context) == ("learned", CONTEXT)
    assert model.stream(normal(1, CONTEXT, D)).shape == (1, CONTEXT, Q)
    with pytest.raises(ValueError, match=r"^25 tokens exceed the 24 learned positions$"):
        model.stream(normal(1, CONTEXT + 1, D))
    with pytest.raises(ValueError, match="need 25 positions, more than the 24 of the model"):
        tune.check_strings(model, some_tokens(2, 23), 3)


def test_positions_that_end_unexpectedly_are_one_sentence():
    model = models.CausalLM(tiny("codegen", **ENDING["codegen"]), "this")
    model._positions = "computed"  # as if the table had not been seen
    with pytest.raises(ValueError, match=r"^25 tokens exceed the 24 positions of the network$"):
        model.stream(normal(1, CONTEXT + 1, D))


def test_a_network_does_not_change_the_prompt_of_its_caller():
    """CTRL multiplies what it is given by the root of its width, in place."""
    model, prompt = models.CausalLM(tiny("ctrl", **ENDING["ctrl"])), normal(2, 3, D)
    before = prompt.clone()
    first, second = measure.greedy(model, prompt, 4), measure.greedy(model, prompt, 4)
    assert torch.equal(prompt, before)
    assert torch.equal(first, second)
    ids = some_tokens(1, 4)
    torch.testing.assert_close(model.stream(model.embedding[ids]), model.network(ids).logits)


def test_experts_in_double():
    settings = dict(hidden_size=D, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4)
    settings |= dict(num_key_value_heads=2, num_local_experts=4)
    model = models.CausalLM(tiny("mixtral", torch.float64, **settings))
    x = normal(1, 5, D, dtype=torch.float64)
    single = models.CausalLM(tiny("mixtral", **settings))
    torch.testing.assert_close(model.stream(x).float(), single.stream(x.float()), rtol=1e-4, atol=1e-5)
    kept = model.network.config._experts_implementation
    found = sketched_rank(single, normal(2, D), some_tokens(3, 4), read="all", generator=seeded())
    assert found.rank == 2 * D
    assert model.network.config._experts_implementation == kept != "eager"


def test_networks_that_want_token_ids_are_refused_in_one_sentence(monkeypatch):
    sizes = dict(hidden_size=D, num_hidden_layers=2, num_attention_heads=4, dim_head=4, dim_ff=24)
    refused(
        lambda: models.CausalLM(tiny("cpmant", **sizes), "this"), r"^this does not read vectors \(inputs_embeds\): "
    )
    network = tiny("llama", hidden_size=D, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    for error in (KeyError("x"), AttributeError("no\nsuch"), IndexError(), RuntimeError("inside"), AssertionError("a")):
        monkeypatch.setattr(type(network), "forward", lambda *_, _error=error, **__: (_ for _ in ()).throw(_error))
        refused(lambda: models.CausalLM(network, "this"), r"^this does not read vectors \(inputs_embeds\): ")
    monkeypatch.setattr(type(network), "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        models.CausalLM(network, "this")


def test_a_fingerprint_is_that_of_configuration_format_and_weights(folders):
    model = models.load(folders["llama"])
    others = [models.load(folders["llama"], dtype) for dtype in ("float32", "bfloat16")]
    prints = [network.fingerprint() for network in (model, *others)]
    with torch.no_grad():
        model.network.lm_head.weight[0, 0] += 1
    prints.append(model.fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(("family", "dtype"), [*((name, "float32") for name in FAMILIES), ("qwen2", "bfloat16")])
def test_what_was_crammed_is_what_transformers_generates(folders, family, dtype):
    model, network = (make(folders[family], models.DTYPES[dtype]) for make in (models.load, own))
    strings = some_tokens(8, 3)
    search = {"restarts": 2, "steps": 30} | models.search_settings(model)
    found = tune.cram(model, strings[:, :2], 4, **search)
    assert found.success.sum() >= 3
    same = (generated(network, found.prompts, 2) == strings[:, :2]).all(1)
    assert torch.equal(same, found.success)
    longest = tune.longest_prefix(model, strings, 1, **search)
    assert len(set(longest.lengths.tolist())) > 1
    said = generated(network, longest.prompts, 3)
    assert torch.equal((said == strings).long().cumprod(1).sum(1) >= longest.lengths, torch.ones(8, dtype=torch.bool))


def test_greedy_decoding_is_that_of_transformers(folder):
    prompts = normal(20, 2, D)
    found = measure.greedy(models.load(folder), prompts, 6)
    assert torch.equal(found, generated(own(folder), prompts, 6))
    assert len(torch.unique(found, dim=0)) > 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_search_is_resumed_for_the_same_network_only(folders, tmp_path, monkeypatch, dtype):
    calls, descend = [], tune.strings._descend
    monkeypatch.setattr(tune.strings, "_descend", lambda *a, **k: calls.append(1) or descend(*a, **k))
    strings, search = some_tokens(4, 2), {"restarts": 1, "steps": 3, "directory": tmp_path / "chunks"}

    def run(folder):
        calls.clear()
        return tune.cram(models.load(folder, dtype), strings, 1, **search), len(calls)

    first, computed = run(folders["llama"])
    assert computed == 1
    moved = shutil.copytree(folders["llama"], tmp_path / "elsewhere")
    again, computed = run(moved)
    assert computed == 0
    assert torch.equal(first.prompts, again.prompts)
    config = json.loads((moved / "config.json").read_text())
    config["rms_norm_eps"] = 0.5  # the weights stay the same
    (moved / "config.json").write_text(json.dumps(config))
    assert run(moved)[1] == 1
    assert run(checkpoint(tmp_path / "other", "llama", seed=1))[1] == 1


def test_search_settings_are_in_units_of_the_embeddings():
    ours = Transformer(TransformerConfig(d=64, q=200), generator=seeded())
    settings = models.search_settings(ours)
    assert settings == pytest.approx({"scale": 3.0, "learning_rate": 0.5}, rel=0.02)
    ours.embedding.mul_(0.02)
    assert models.search_settings(ours) == pytest.approx({name: 0.02 * x for name, x in settings.items()})


def test_the_radius_and_the_rounding_of_embeddings(folder):
    model = models.load(folder)
    rows = load_rows(folder)
    assert models.embedding_radius(model) == pytest.approx(max(math.hypot(*row) for row in rows), rel=1e-12)
    assert models.embedding_radius(model, math.inf) == max(abs(x) for row in rows for x in row)
    assert models.embedding_tolerance(model) == models.embedding_radius(model) / 2048
    assert models.embedding_tolerance(model, "bfloat16", math.inf) == models.embedding_radius(model, math.inf) / 256
    coordinates = (2 * torch.rand(10**5, generator=seeded(), dtype=torch.float64) - 1) * models.embedding_radius(model)
    for name in ("float16", "bfloat16", "float32"):
        moved = (coordinates.to(models.DTYPES[name]).double() - coordinates).abs().max()
        assert 0.4 * models.embedding_tolerance(model, name) < moved <= models.embedding_tolerance(model, name)


def load_rows(folder):
    weights = load_file(Path(folder) / "model.safetensors")
    (table,) = (w for name, w in weights.items() if name.split(".")[-2] in ("wte", "embed_in", "embed_tokens"))
    return table.double().tolist()
