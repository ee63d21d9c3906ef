"""A network of `transformers` that reads vectors: what language models and encoders share."""

import hashlib
import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prompt_memory.network.transformer import Prefix, require_finite
from prompt_memory.real.sentences import first_line

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


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


class _Double(TorchFunctionMode):
    """Keeps float64 networks in float64: several families take norms and softmax in float32 whatever comes in."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if part is torch.float32 else part for part in args)
        kwargs = {name: torch.float64 if part is torch.float32 else part for name, part in kwargs.items()}
        return func(*args, **kwargs)


class WrappedNetwork(nn.Module):
    """A frozen network of `transformers` that reads vectors."""

    causal: bool

    def __init__(self, network: nn.Module, name: str = ""):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self._table = None
        self._fused = getattr(network.config, "_attn_implementation", "eager")
        self._name = name or getattr(network.config, "name_or_path", "") or type(network).__name__
        facts = network.config.to_dict() | {"_name_or_path": None}
        text = f"{require_transformers().__version__} {json.dumps(facts, sort_keys=True, default=str)}"
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


def dtype_of(dtype) -> torch.dtype:
    number = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if number not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return number


def require_transformers():
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"wrapped networks need the package transformers: {first_line(error)}") from error
    return transformers


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
