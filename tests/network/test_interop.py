"""An exported network is the same network."""

import pytest
import torch
from networks import gpt2_config, gpt2_network

from prompt_memory.network import interop
from prompt_memory.network.transformer import Transformer


@pytest.mark.parametrize("changes", [{}, {"activation": "gelu", "heads": 4}, {"depth": 1, "norm_eps": 0.1}])
def test_the_exported_network_has_the_same_logits(changes):
    model = gpt2_network(**changes)
    strings = torch.randint(11, (5, 20), generator=torch.Generator().manual_seed(1))
    logits = interop.export_gpt2(model)(strings).logits
    assert logits.std() > 0.5
    torch.testing.assert_close(logits, model.stream(model.embedding[strings]), rtol=0, atol=1e-5)
    assert interop.export_error(model, strings) <= 1e-5


def test_a_weight_that_is_exported_wrongly_is_noticed(monkeypatch):
    model, strings = gpt2_network(), torch.randint(11, (5, 20))
    for name, _ in model.named_parameters():
        other = gpt2_network()
        other.get_parameter(name).mul_(1.01)
        exported = interop.export_gpt2(other)
        with monkeypatch.context() as patch:
            patch.setattr(interop, "export_gpt2", lambda _, exported=exported: exported)
            with pytest.raises(RuntimeError, match="the exported model's logits differ by"):
                interop.export_error(model, strings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rms"}, "GPT-2 needs norm = 'layer', and this network has 'rms'"),
        ({"positions": "rotary"}, "GPT-2 needs positions = 'learned'"),
        ({"causal": False}, "GPT-2 needs causal = True"),
        ({"inverse_temperature": 2.0}, "GPT-2 needs inverse_temperature"),
        ({"mlp": 0}, "GPT-2 needs a token-wise network"),
        ({"d_k": 8}, "GPT-2 needs a token-wise network and d = heads"),
    ],
)
def test_networks_that_gpt2_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        interop.export_gpt2(Transformer(gpt2_config(**changes)))
