"""Widths and caches of the network that `transformers` builds from a configuration, without any weights."""

import contextlib

from prompt_memory.real.architectures.architecture import Shape
from prompt_memory.real.architectures.fields import count, head_fields
from prompt_memory.real.architectures.library import field_of, plain_fields, transformers_package, without_remarks

MOST_MODULES = 20_000  # layers times experts of a network that is built to be asked


def built_shape(text, whole, causal: bool, name: str) -> Shape | None:
    """Widths and caches of the network that `transformers` builds from a configuration; None if it cannot be run.

    It has no weights and is run on three tokens.  An encoder is only built.  ValueError for layers without softmax.
    """
    import torch

    transformers = transformers_package()
    experts = [field_of(text, field, 1) for field in ("num_experts", "num_local_experts", "n_routed_experts")]
    size = field_of(text, "num_hidden_layers", 1)
    size = size * max([part for part in experts if isinstance(part, int)] + [1]) if isinstance(size, int) else 0
    if not 0 < size <= MOST_MODULES:
        return None
    if isinstance(field_of(text, "pad_token_id", None), int) and text.pad_token_id >= count(
        text.to_dict(), "vocabulary", name
    ):
        text.pad_token_id = None
    plans = [(transformers.AutoModelForCausalLM, text), (transformers.AutoModelForCausalLM, whole),
             (transformers.AutoModelForImageTextToText, whole), (transformers.AutoModel, text)]  # fmt: skip
    for auto, config in plans if causal else plans[-1:]:
        if type(config) not in auto._model_mapping:
            continue
        try:
            with without_remarks(), torch.device("meta"), torch.no_grad(), _without_values():
                network = auto.from_config(config, attn_implementation="eager", dtype=torch.bfloat16).eval()
                table = network.get_input_embeddings()
                width = int(getattr(table, "embedding_dim", 0) or table.weight.shape[1])
                answer = _answer(network, width, torch) if causal else None
        except Exception:  # some networks need data to decide where to go: then fields are read
            continue
        hidden = int(field_of(text, "hidden_size", width))
        if not causal:
            caches, heads = head_fields(plain_fields(text), name)
            return Shape(width, hidden, caches, heads, None, None)
        found = _caches(answer, text, name)
        if found is not None:
            return Shape(width, hidden, *found)
    return None


@contextlib.contextmanager
def _without_values():
    """Weights are not drawn, which takes most of the time of building a network that has none."""
    from torch.distributions import Distribution

    checks = Distribution._validate_args  # which look at numbers
    Distribution.set_default_validate_args(False)
    try:
        try:
            from transformers.initialization import no_init_weights
        except ImportError:  # another version
            no_init_weights = contextlib.nullcontext
        with no_init_weights():
            yield
    finally:
        Distribution.set_default_validate_args(checks)


def _answer(network, width: int, torch):
    settings = dict(use_cache=True, output_attentions=True, return_dict=True)
    try:
        return network(input_ids=torch.zeros(1, 3, dtype=torch.long), **settings)
    except Exception:  # no ids in this family, each says so in its own way; vectors raise what is really wrong
        return network(inputs_embeds=torch.zeros(1, 3, width, dtype=torch.bfloat16), **settings)


def _caches(answer, text, name: str):
    """(caches, heads, numbers written, window) of a network that was run; None if it does not show them."""
    weights = [part for part in getattr(answer, "attentions", None) or () if part is not None]
    kept = getattr(answer, "past_key_values", None)
    if kept is None or not hasattr(kept, "layers"):
        if not weights:
            raise ValueError(f"{name}: layers without softmax attention are not covered ({text.model_type})")
        return None
    caches, windows = [], []
    for layer in kept.layers:
        if "Linear" in type(layer).__name__ or "Mamba" in type(layer).__name__ or hasattr(layer, "conv_states"):
            raise ValueError(f"{name}: layers without softmax attention are not covered ({text.model_type})")
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None:
            continue  # it reads the cache of another layer, or of a picture
        if keys.ndim != 4 or keys.shape[2] != 3 or values.shape[2] != 3:
            return None
        caches.append((int(keys.shape[1]), int(keys.shape[3]), int(values.shape[3])))
        if getattr(layer, "is_sliding", False) and getattr(layer, "sliding_window", None):
            windows.append(int(layer.sliding_window))
    if not caches:
        return None
    heads = max((int(part.shape[1]) for part in weights), default=field_of(text, "num_attention_heads", 0))
    values = max(layer[2] for layer in caches)
    layers = max(len(caches), field_of(text, "num_hidden_layers", 0))
    if len(weights) == len(caches):  # each layer's heads with the width of its own values
        written = sum(int(part.shape[1]) * layer[2] for part, layer in zip(weights, caches, strict=True))
        written += (layers - len(caches)) * heads * values
    else:
        written = max(len(weights), layers) * heads * values
    return tuple(caches), heads, written, min(windows, default=None)
