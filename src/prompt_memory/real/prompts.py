"""One prompt in the files of `peft`, written and read."""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from prompt_memory.files import write_bytes
from prompt_memory.network.transformer import Transformer
from prompt_memory.real.models import WrappedNetwork
from prompt_memory.real.sentences import first_line


def save_prompt(folder: str | Path, prompt: Float[Tensor, "m d"], base_model_name: str) -> Path:
    """Write one prompt as a prompt-tuning adapter that `peft.PeftModel.from_pretrained(base, folder)` loads.

    `peft` keeps prompts in float32, so float32 is what is written: prompts of 16-bit numbers are kept exactly, those of
    float64 are rounded; then `load_prompt(folder)` is the prompt to be scored.  In batches with padding on the left
    `peft` puts the prompt in front of the padding, which is another input.  Returns the folder.  ValueError unless
    it is one finite prompt, [m, d] or [1, m, d].
    """
    try:
        from peft import PromptTuningConfig
    except ImportError as error:
        raise ValueError(f"adapters need the package peft: {first_line(error)}") from error
    shape = list(prompt.shape)
    prompt = prompt[0] if prompt.ndim == 3 and len(prompt) == 1 else prompt
    if prompt.ndim != 2 or not prompt.numel() or not prompt.is_floating_point():
        raise ValueError(f"an adapter holds one prompt, [m, d], not {shape}: write each prompt to a folder of its own")
    weights = prompt.detach().cpu().to(torch.float32).contiguous()
    if not torch.isfinite(weights).all():
        raise ValueError("the prompt holds NaN or infinite entries, or numbers beyond float32")
    m, d = weights.shape
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base_model_name),
        num_virtual_tokens=m,
        token_dim=d,
        num_transformer_submodules=1,
        inference_mode=True,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    write_bytes(folder / "adapter_model.safetensors", to_bytes({"prompt_embeddings": weights}, {"format": "pt"}))
    return folder


def load_prompt(folder: str | Path, model: WrappedNetwork | Transformer | None = None) -> Float[Tensor, "m d"]:
    """The prompt of a prompt-tuning adapter, [m, d], as `peft` or `save_prompt` wrote it.

    With `model` the prompt is given the model's number format and device.  ValueError with one sentence if there is no
    such adapter, if it is damaged or of another kind, or if the model has another width.
    """
    folder = Path(folder)
    settings, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in (settings, weights):
        if not path.is_file():
            raise ValueError(f"{folder} holds no adapter: there is no {path.name}")
    try:
        config = json.loads(settings.read_text(encoding="utf-8"))
        kind, m = config["peft_type"], config["num_virtual_tokens"] if config["peft_type"] == "PROMPT_TUNING" else 0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{settings} is not the configuration of an adapter: {first_line(error)}") from error
    if kind != "PROMPT_TUNING" or config.get("num_transformer_submodules") not in (None, 1):
        raise ValueError(f"{folder} holds an adapter of the kind {kind}, not one prompt of a causal language model")
    try:
        with safe_open(weights, framework="pt") as file:
            prompt = file.get_tensor("prompt_embeddings")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights} is damaged or holds no prompt: {first_line(error)}") from error
    if prompt.ndim != 2 or len(prompt) != m:
        raise ValueError(f"{weights} has the shape {list(prompt.shape)}, but its configuration tells of {m} vectors")
    if model is None:
        return prompt
    if prompt.shape[1] != model.config.d:
        raise ValueError(f"the prompt in {folder} has width {prompt.shape[1]}, the model {model.config.d}")
    return prompt.to(model.embedding)
