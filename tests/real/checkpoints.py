"""Small networks with random weights, in memory and as checkpoints of `transformers`."""

import pytest
import torch
import transformers

MARKS = [
    # torch's own forward-mode derivatives still use it
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    # peft asks for an attribute that transformers has renamed
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
D, Q, CONTEXT = 16, 23, 24
SIZES = dict(
    hidden_size=D, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, max_position_embeddings=CONTEXT,
    vocab_size=Q, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    rms_norm_eps=0.1,
)  # fmt: skip
FAMILIES = {
    "gpt2": dict(
        n_embd=D, n_layer=2, n_head=2, n_positions=CONTEXT, vocab_size=Q, initializer_range=0.3, bos_token_id=None,
        eos_token_id=None,
    ),
    "gpt_neox": SIZES,
    "llama": SIZES | {"num_key_value_heads": 2},
    "qwen2": SIZES | {"num_key_value_heads": 2},
}  # fmt: skip
TINY = dict(vocab_size=Q, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def some_tokens(*shape, seed=1):
    return torch.randint(Q, shape, generator=seeded(seed))


def checkpoint(folder, family, auto=transformers.AutoModelForCausalLM, seed=0, **changes):
    """A network with random weights, biases and gains included, written as a checkpoint."""
    config = transformers.AutoConfig.for_model(family, **(FAMILIES.get(family, SIZES) | changes))
    network = auto.from_config(config)
    generator = seeded(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(
                0.3 * torch.randn(weight.shape, generator=generator) + (weight.ndim == 1 and "bias" not in name)
            )
    network.save_pretrained(folder)
    return folder


def own(folder, dtype=torch.float32):
    """The network as transformers loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def tiny(family, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(family, **TINY, **settings)
    ).to(dtype)


def generated(network, prompts, n):
    """What transformers itself says after each prompt, with its cache of keys and values."""
    network.generation_config.eos_token_id = network.generation_config.pad_token_id = None
    seen = torch.ones(prompts.shape[:2], dtype=torch.long)
    settings = dict(max_new_tokens=n, min_new_tokens=n, do_sample=False)
    return network.generate(inputs_embeds=prompts.to(network.dtype), attention_mask=seen, **settings)


def refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 420
