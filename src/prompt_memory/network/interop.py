"""A frozen network in the layout of `transformers`, for its tools and for the adapters of `peft`."""

import warnings

import torch
from jaxtyping import Int
from torch import Tensor

from prompt_memory.network.transformer import Transformer

AGREEMENT = 1e-5  # allowed difference of the exported model's logits


def export_gpt2(model: Transformer):
    """The same network as a `transformers` GPT2LMHeadModel, in evaluation mode on the model's device.

    Biases that ours does not have are zero, the output matrix is not tied.  ValueError for a network that GPT-2 cannot
    be: it needs LayerNorm, learned positions, causal attention, a token-wise network and d_k = d_v = d / heads.
    """
    c = model.config
    needed = dict(norm="layer", positions="learned", causal=True, inverse_temperature=1.0, context_scaling="none")
    for name, value in needed.items():
        if getattr(c, name) != value:
            raise ValueError(f"GPT-2 needs {name} = {value!r}, and this network has {getattr(c, name)!r}")
    if not c.mlp or not c.d == c.heads * c.d_k == c.heads * c.d_v:
        raise ValueError("GPT-2 needs a token-wise network and d = heads * d_k = heads * d_v")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=c.q, n_positions=c.context, n_embd=c.d, n_layer=c.depth, n_head=c.heads, n_inner=c.mlp,
        activation_function=c.activation, layer_norm_epsilon=c.norm_eps, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, tie_word_embeddings=False, use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    gpt2 = GPT2LMHeadModel(config)
    weights = {name: torch.zeros_like(weight) for name, weight in gpt2.state_dict().items()}
    ours = {
        "transformer.wte.weight": model.embedding,
        "transformer.wpe.weight": model.position,
        "transformer.ln_f.weight": model.norm.gain,
        "lm_head.weight": model.unembedding.T,
    }
    for layer, block in enumerate(model.blocks):
        parts = {
            "ln_1.weight": block.norm1.gain,
            "attn.c_attn.weight": torch.cat([block.query, block.key, block.value], 1),
            "attn.c_proj.weight": block.output,
            "ln_2.weight": block.norm2.gain,
            "mlp.c_fc.weight": block.up,
            "mlp.c_fc.bias": block.up_bias,
            "mlp.c_proj.weight": block.down,
            "mlp.c_proj.bias": block.down_bias,
        }
        ours |= {f"transformer.h.{layer}.{name}": weight for name, weight in parts.items()}
    if unknown := ours.keys() - weights.keys():
        raise RuntimeError(f"this version of transformers has no {min(unknown)} in GPT-2")
    gpt2.load_state_dict(weights | ours)
    gpt2.loss_type = "ForCausalLM"  # what it falls back to, with a warning
    return gpt2.eval().to(model.embedding.device)


@torch.no_grad()
def export_error(model: Transformer, strings: Int[Tensor, "S T"]) -> float:
    """The largest difference of the exported model's logits from ours; RuntimeError if it exceeds `AGREEMENT`."""
    error = float((export_gpt2(model)(strings).logits - model.stream(model.embedding[strings])).abs().max())
    if not error <= AGREEMENT:
        raise RuntimeError(f"the exported model's logits differ by {error:.3g}, more than {AGREEMENT:g}: no comparison")
    return error


def peft_gpt2(model: Transformer, config) -> torch.nn.Module:
    """The exported model with an adapter of `peft`, in which the adapter's numbers alone require gradients."""
    gpt2 = export_gpt2(model)
    from peft import get_peft_model

    with warnings.catch_warnings():  # peft asks for an attribute that transformers has renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(gpt2, config)
