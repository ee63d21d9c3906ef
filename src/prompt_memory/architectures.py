"""The shape of a real language model: width, caches, heads, windows, read from a `config.json`.

Where `transformers` knows the family, its own class fills in what the file leaves out, and the network that it builds
is run on three tokens without any weights (on torch's device "meta"): caches, heads and widths are then those of the
network and not of a reading of field names.  Families that it does not know, and networks that cannot be run so, are
read from the fields; a field that could change the cache and is not understood is refused.
"""

import contextlib
import importlib.util
import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from prompt_memory.checks import integers


@dataclass(frozen=True)
class Architecture:
    """What the bounds need of a network.

    `width` is that of the vectors a prompt is made of; `kv_heads` counts the heads with keys and values of their own
    (fewer than `heads` with grouped queries).  `norm` is "layer" only where the mean of a token is never read: the
    counts with "rms" and "none" are the same.  `context`, `window` and `logit_cap` may be unknown or absent (None).

    `attention` is "window" if some layer sees the last `window` positions only, "chunked" if some layer sees positions
    of one chunk, "other" if a position's weight is no softmax of its own logit (top-k, differences of two softmaxes, or
    not known).  `cache` lists (heads, d_k, d_v) of every layer with a cache of its own where layers differ; `written`
    counts the numbers H d_v that attention writes in all layers where that is not L H d_v; `compressed` counts those
    that a layer stores of a position to compute keys and values from.  `notes` are sentences on how it was read.
    """

    name: str
    family: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    vocabulary: int
    context: int | None = None
    norm: Literal["none", "rms", "layer"] = "none"
    norm_eps: float = 1e-5
    positions: Literal["learned", "rotary", "alibi", "unknown"] = "unknown"
    causal: bool = True
    logit_cap: float | None = None
    attention: Literal["full", "window", "chunked", "other"] = "full"
    window: int | None = None
    cache: tuple[tuple[int, int, int], ...] | None = None
    written: int | None = None
    compressed: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def caches(self) -> tuple[tuple[int, int, int], ...]:
        """(heads, d_k, d_v) of every layer with keys and values of its own."""
        return self.cache or ((self.kv_heads, self.key_dim, self.value_dim),) * self.layers

    @property
    def cached(self) -> int:
        """Numbers in the cache for one position: keys and values of every layer, the sum of H_kv (d_k + d_v)."""
        if self.compressed is not None:
            return self.layers * self.compressed
        return sum(heads * (keys + values) for heads, keys, values in self.caches)

    @property
    def attended(self) -> int:
        """Coordinates that attention writes for one position, the sum of H d_v over layers."""
        return self.layers * self.heads * self.value_dim if self.written is None else self.written

    def describe(self) -> str:
        """One line of facts."""
        shared = "" if self.kv_heads == self.heads else f" ({self.kv_heads} for keys and values)"
        context = "context unknown" if self.context is None else f"context {self.context:,}"
        window = {"window": f", window {self.window:,}" if self.window else "", "chunked": ", attention in chunks",
                  "other": ", attention of another kind"}.get(self.attention, "")  # fmt: skip
        differ = f", layers differ ({len(self.cache)} caches)" if self.cache else ""
        return (
            f"{self.name}: width {self.width:,}, {self.layers} layers, {self.heads} heads{shared} of dimension "
            f"{self.key_dim}{differ}, {self.cached:,} numbers cached a position, vocabulary {self.vocabulary:,}, "
            f"{context}{window}"
        )


# --- facts about families --------------------------------------------------------------------------------------------

# Every reading of the residual stream passes through a LayerNorm here, so the mean of a prompt vector is invisible.
_LAYER_NORM = {"gpt2", "gpt_neo", "gptj", "gpt_neox", "gpt_bigcode", "codegen", "opt", "bloom", "phi", "falcon",
               "starcoder2", "stablelm", "bert"}  # fmt: skip
_LEARNED = {"gpt2", "gpt_neo", "gpt_bigcode", "opt", "bert"}
_ROTARY = {"gptj", "codegen", "gpt_neox", "llama", "mistral", "qwen2", "gemma", "phi"}
# Without `transformers`; with it, its lists of classes decide.
_ENCODERS = {"albert", "bert", "big_bird", "bros", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2",
             "distilbert", "electra", "ernie", "esm", "esmc", "eurobert", "flaubert", "gte", "ibert",
             "jina_embeddings_v3", "layoutlm", "longformer", "megatron-bert", "mobilebert", "modernbert", "mpnet",
             "nomic_bert", "nystromformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
             "tapas", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod"}  # fmt: skip
_FACTORED = {"albert", "convbert", "electra", "mobilebert", "roformer"}  # embedding_size is the width of a token here
_WITHOUT_SOFTMAX = re.compile(r"rwkv|retnet|hgrn|delta_?net|xlstm|mamba|hyena|lightning|recurrent|griffin|^s4|^ttt")
_WITHOUT_SOFTMAX_NAMES = {"gla", "abc", "gsa", "based", "rebased", "linear_attn", "lfm2_first", "samba", "comba"}
_NOT_BY_FIELDS = {"blt", "longcat_flash"}  # several stacks, or several attentions a layer
# The weight of a position is not a softmax of its own logit among all that are seen, or was not looked at.
_OTHER_ATTENTION = {"axk2", "beam", "big_bird", "bigbird_pegasus", "deepseek_v32", "deepseek_v4", "diffllama", "doge",
                    "dots3_note", "dots3_note_text", "flint", "glm_moe_dsa", "hy_v4", "inkling2_text", "inkling_text",
                    "kolibri1", "laguna", "longformer", "minimax_m3_vl_text", "qwen4_exp", "qwen4_exp_text", "reformer",
                    "xlnet", "zaya"}  # fmt: skip

_FIELDS = {  # of a config.json, in the order in which they count
    "hidden": ("hidden_size", "n_embd", "n_embed", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocabulary": ("vocab_size", "padded_vocab_size", "n_vocab"),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length",
                "model_max_length"),
    "head": ("head_dim", "kv_channels", "attention_head_dim", "dim_head"),
    "kv": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "num_attention_groups", "num_query_groups",
           "kv_n_heads"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps",
                 "layernorm_epsilon"),
}  # fmt: skip
_NOT_SOFTMAX = ("ssm_", "mamba_", "linear_", "lru_", "attn_layer_period", "state_size", "block_types", "full_attn_idxs",
                "attn_type_list", "expand_k", "expand_v", "attn_layer_idx", "hybrid_override_pattern")  # fmt: skip

# Names that could change a cache, and those of them that are understood or change none.
_CACHE_NAME = re.compile(
    r"head|kv|key|quer|attn|attention|group|lora|latent|share|cross|layer_type|pattern|state_|ssm|conv|recurr|decay|"
    r"block|memory|window|sliding|chunk|sparse|topk|index|local|decoder_layers|encoder_layers|num_blocks|per_layer"
)
_PATTERN_NAME = re.compile(r"window|sliding|chunk|sparse|topk|index|local|dense_attention|log_?n_attn")
_HARMLESS = re.compile(
    r"dropout|pdrop|bias|flash|fp32|implementation|_impl$|_init|norm|scal|clip|token|label|monkey|precision|dtype|lm_head|"
    r"sdpa|is_decoder|add_cross_attention|cross_attention_hidden_size|chunk_size_feed_forward|block_type$|"
    r"block_group_size|cache_kernel|n_group|topk_group|topk_method|multiplier|pad_key|allocate|parallel_attn|cache_quant|moe|expert|router|softcap|query_pre_attn_scalar|keys_to_ignore"
)
_UNDERSTOOD = {"multi_query", "multi_query_attention", "multi_query_group_num", "new_decoder_architecture",
               "attn_config",
               "v_head_dim", "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "qk_head_dim",
               "layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "attention_chunk_size",
               "window_size", "attention_layers", "attention_types", "use_logn_attn", "sliding_window_pattern",
               "_sliding_window_pattern", "parallel_attn", "parallel_attention", "use_bidirectional_attention",
               "multiple_of", "num_kv_shared_layers"}  # fmt: skip
_UNDERSTOOD |= {field for fields in _FIELDS.values() for field in fields}
_ATTENTION_CONFIG = {"attn_type", "kv_n_heads", "alibi", "alibi_bias_max", "prefix_lm", "model_type",
                     "sliding_window_size",
                     "attn_uses_sequence_id", "rope", "rope_theta", "rope_impl"}  # fmt: skip
_SIZES = ("hidden", "layers", "heads", "vocabulary")


class _Shape(NamedTuple):
    """Widths and caches of a network: of one that was built, or as fields tell."""

    width: int
    hidden: int
    caches: tuple[tuple[int, int, int], ...]
    heads: int
    written: int | None
    window: int | None


# --- reading ---------------------------------------------------------------------------------------------------------


def read(config: Mapping, name: str = "model") -> Architecture:
    """The architecture in the fields of a Hugging Face `config.json`.

    `transformers` fills in and builds what it knows (module docstring); other files are read by names of fields, those
    of a `text_config` inside as well.  ValueError, one sentence that begins with `name`, if a size is missing or no
    positive integer, for a field that is not understood, and for a network that the bounds do not cover: an encoder
    with a decoder, layers without softmax attention, no language model.
    """
    name = one_line(name)
    try:
        return _read(config, name)
    except RecursionError:
        raise ValueError(f"{name}: the configuration is nested too deeply") from None
    except ValueError:
        raise
    except Exception as error:  # whatever strange fields lead to; the cause is kept
        raise ValueError(
            f"{name}: the configuration cannot be read ({type(error).__name__}: {_line(error)})"
        ) from error


def _read(config: Mapping, name: str) -> Architecture:
    if not isinstance(config, Mapping):
        raise ValueError(f"{name}: a configuration is a JSON object of fields, not {type(config).__name__}")
    raw = config
    if isinstance(config.get("text_config"), Mapping):
        raw = {"model_type": config.get("model_type"), "architectures": config.get("architectures")}
        raw |= {field: value for field, value in config["text_config"].items() if field != "model_type" or value}
    _refuse_at_sight(raw, name)
    for kind in (*_SIZES, "kv", "head", "context"):  # a size that is there is a positive integer, whoever reads it
        _count(raw, kind, name, optional=True)

    whole = _of_transformers(config)  # None for a family that it does not know
    text = whole if whole is None else whole.get_text_config(decoder=True)
    if text is not None and any(
        field in raw and not _used(type(text), raw, field)
        for kind in ("hidden", "layers", "heads", "kv")
        for field in _FIELDS[kind]
    ):
        whole = text = None  # a file of another program, that has the same name for its family
    filled = dict(raw) if text is None else _plain_fields(text) | _without_none(raw)
    family = str((raw.get("model_type") if text is None else text.model_type) or "unknown")
    if text is not None and (_of(whole, "is_encoder_decoder", False) or _of(text, "is_encoder_decoder", False)):
        raise ValueError(f"{name}: an encoder with a decoder is not covered; give a model with one stack of layers")
    if _WITHOUT_SOFTMAX.search(family.lower()) or family.lower() in _WITHOUT_SOFTMAX_NAMES:
        raise ValueError(f"{name}: layers without softmax attention are not covered (the family {one_line(family)})")
    causal, doubt = _causality(raw, filled, whole, text, family, name)
    unknown = _unknown_to(text, raw)
    shape = None
    if text is not None and not unknown:
        shape = _built(text, whole, causal, name)
    notes = [doubt] if doubt else []
    if shape is not None:
        notes += _defaults(raw, filled, text)
    odd = False
    if shape is None:
        shape, odd = _from_fields(raw, filled, family, text is not None, name)

    latent = filled.get("kv_lora_rank")
    compressed = None
    heads_, key_dim, value_dim = max(shape.caches, key=lambda layer: layer[0] * (layer[1] + layer[2]))
    written = shape.written
    if latent is not None:
        rank, rope = (_number(filled, field, name) for field in ("kv_lora_rank", "qk_rope_head_dim"))
        compressed = rank + rope
        heads_ = shape.heads
        key_dim = rope + (_number(filled, "qk_nope_head_dim", name) if filled.get("qk_nope_head_dim") else 0)
        value_dim = _number(filled, "v_head_dim", name) if filled.get("v_head_dim") else key_dim
        written = len(shape.caches) * shape.heads * value_dim
    layers = len(shape.caches) if latent is not None else _count(filled, "layers", name)
    alike = set(shape.caches) == {(heads_, key_dim, value_dim)} and len(shape.caches) == layers
    kinds = _layer_kinds(filled)
    attention, window = _window(filled, kinds, shape.window)
    if attention == "window" and not causal:
        window = None  # how many positions of a window lie on either side is not known
    if odd or family in _OTHER_ATTENTION or str(raw.get("model_type")) in _OTHER_ATTENTION:
        attention = "other"
    cap = filled.get("attn_logit_softcapping")
    if cap is not None and not (is_number(cap) and cap > 0):
        raise ValueError(f"{name}: attn_logit_softcapping must be a number > 0, not {one_line(repr(cap))}")
    vocabulary = _count(filled, "vocabulary", name)
    if vocabulary < 2:
        raise ValueError(f"{name}: a vocabulary of one token carries no information")
    # a projection or a norm behind the residual connection lets the mean through, and dm is always an upper bound
    plain = filled.get("do_layer_norm_before", True) and not filled.get("_remove_final_layer_norm")
    plain = plain and shape.width == shape.hidden and not unknown
    norm = "layer" if family in _LAYER_NORM and plain else "rms" if "rms_norm_eps" in filled else "none"
    eps = next((filled[field] for field in _FIELDS["norm_eps"] if is_number(filled.get(field))), 1e-5)
    return Architecture(
        name=name, family=one_line(family), width=shape.width, layers=layers, heads=shape.heads, kv_heads=heads_,
        key_dim=key_dim, value_dim=value_dim, vocabulary=vocabulary,
        context=_count(raw, "context", name, optional=True) or _count(filled, "context", name, optional=True),
        norm=norm, norm_eps=float(eps), positions=_positions(filled, family), causal=causal,
        logit_cap=None if cap is None else float(cap), attention=attention, window=window,
        cache=None if alike or latent is not None else shape.caches,
        written=None if written == layers * shape.heads * value_dim else written, compressed=compressed,
        notes=tuple(notes),
    )  # fmt: skip


def load_config(path: Path) -> Architecture:
    """The architecture in a file; ValueError, one sentence that names it, if it cannot be read."""
    shown = one_line(str(path))
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{shown} cannot be read as JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:  # not UTF-8 and not JSON are ValueErrors
        raise ValueError(f"{shown} cannot be read as JSON: {_line(error)}") from None
    return read(config, path.parent.resolve().name if path.name == "config.json" else path.stem)


# --- what fields say -------------------------------------------------------------------------------------------------


def _refuse_at_sight(raw: Mapping, name: str) -> None:
    """ValueError for what no reading of the rest could mend."""
    if raw.get("is_encoder_decoder"):
        raise ValueError(f"{name}: an encoder with a decoder is not covered; give a model with one stack of layers")
    if raw.get("kv_lora_rank") is not None and raw.get("qk_rope_head_dim") is None:
        known = _class_of(raw.get("model_type"))
        if known is None or not _knows(known, "kv_lora_rank"):
            raise ValueError(f"{name}: kv_lora_rank without qk_rope_head_dim does not tell the size of the cache")
    kinds = raw.get("layer_types")
    if kinds is not None and not isinstance(kinds, list | tuple):
        raise ValueError(f"{name}: layer_types must be a list of names, not {one_line(repr(kinds))}")
    odd = [str(kind) for kind in kinds or () if not _is_softmax(str(kind))]
    if not kinds:  # a list of layers says more than fields that may be leftovers
        odd += [field for field in raw if str(field).startswith(_NOT_SOFTMAX) and raw[field] is not None]
    if odd:
        raise ValueError(f"{name}: layers without softmax attention are not covered ({one_line(sorted(odd)[0])})")


def _is_softmax(kind: str) -> bool:
    return kind in ("attention", "global", "local") or (kind.endswith("_attention") and "linear" not in kind)


def _layer_kinds(filled: Mapping) -> list[str] | None:
    kinds = filled.get("layer_types") or filled.get("attention_layers")
    return [str(kind) for kind in kinds] if isinstance(kinds, list | tuple) else None


def _window(filled: Mapping, kinds: list[str] | None, found: int | None) -> tuple[str, int | None]:
    """(kind of attention, the smallest window) from the fields and from the caches of the network."""
    if kinds is None:
        local, chunked = True, filled.get("attention_chunk_size") is not None
    else:
        local = any(re.search("sliding|local|window", kind) for kind in kinds)
        chunked = any("chunk" in kind for kind in kinds)
    if chunked:
        return "chunked", None
    names = ["window_size", "sliding_window_size", "local_attention"]
    if filled.get("use_sliding_window") is not False:
        names.append("sliding_window")
    attn = filled.get("attn_config")
    values = [filled.get(field) for field in names] + [
        attn.get("sliding_window_size") if isinstance(attn, Mapping) else 0
    ]
    given = [value for value in values if value not in (None, False, 0, -1)]
    if local and any(not isinstance(value, int) or value < 1 for value in given):
        return "other", None  # a window for each layer, or one that is not understood
    windows = [value for value in given if local] + ([found] if found else [])
    return ("window", min(windows, default=None)) if windows or (local and kinds) else ("full", None)


def _positions(filled: Mapping, family: str) -> str:
    attn = filled.get("attn_config")
    alibi = filled.get("alibi") or (isinstance(attn, Mapping) and attn.get("alibi"))
    if alibi or family in ("bloom", "mpt") or filled.get("position_embedding_type") == "alibi":
        return "alibi"
    rope = any(filled.get(field) for field in ("rope_theta", "rope_parameters", "rope_scaling", "rope", "rotary_dim"))
    if isinstance(attn, Mapping) and (attn.get("rope") or attn.get("rope_theta")):
        rope = True
    if family in _ROTARY or rope:
        return "rotary"
    return "learned" if family in _LEARNED else "unknown"


def _causality(raw, filled, whole, text, family: str, name: str) -> tuple[bool, str | None]:
    """Whether tokens see earlier ones only, and a sentence where that is taken on trust."""
    attn = raw.get("attn_config")
    if any(raw.get(field) is False for field in ("causal", "is_causal", "use_causal_mask")):
        return False, None
    if raw.get("use_bidirectional_attention") in (True, "all") or raw.get("bidirectional") is True:
        return False, None
    if isinstance(attn, Mapping) and attn.get("prefix_lm"):
        return False, None
    told = [str(part) for part in raw.get("architectures") or () if isinstance(part, str)]
    if any(re.search(r"MaskedLM|Encoder|Bidirectional|Bi(Model|For|Forward)|BertModel$", part) for part in told) and (
        not raw.get("is_decoder")
    ):
        return False, None
    writes = any(re.search(r"CausalLM|LMHead|ConditionalGeneration", part) for part in told)
    who = f"{one_line(told[0])} does not tell" if told else "the file does not say"
    trust = f"taken as causal: {who} whether tokens see later ones"
    if "diffusion" in family or (raw.get("mask_token_id") is not None and text is None):
        return False, None
    known = {str(raw.get("model_type"))} if whole is None else {str(whole.model_type), str(text.model_type)}
    if whole is None and _class_of(raw.get("model_type")) is None:
        old = raw.get("type_vocab_size") or family in _ENCODERS or "bert" in family.lower()
        if old and not writes:
            return bool(raw.get("is_decoder")), None
        return True, None if writes or raw.get("causal") or raw.get("is_causal") else trust
    auto = _transformers().models.auto.modeling_auto
    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if known & set(masked):
        return bool(known & set(causal)) and bool(raw.get("is_decoder")), None
    if "bert" in family and "decoder" not in family and not raw.get("is_decoder"):
        return False, None
    if known & {*causal, *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} or writes:
        return True, trust if told and not writes else None
    tasks = [part for part in vars(auto) if part.startswith("MODEL_FOR_") and part.endswith("_MAPPING_NAMES")]
    tasks = [part for part in tasks if part != "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"]
    # what is left are parts of larger networks: those that write have positions that turn
    if any(known & set(getattr(auto, part)) for part in tasks) or _positions(filled, family) != "rotary":
        raise ValueError(f"{name}: the family {one_line(family)} is not a language model with one stack of layers")
    return True, trust


# --- what transformers knows -----------------------------------------------------------------------------------------


def _transformers():
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    return transformers


@contextlib.contextmanager
def _quiet():
    """No remarks of `transformers` on the fields of others."""
    logging = _transformers().utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _class_of(model_type):
    """The configuration class of a family, or None."""
    transformers = _transformers()
    if transformers is None or not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        return None
    try:
        return transformers.CONFIG_MAPPING[model_type]
    except Exception:  # a class whose own imports are missing
        return None


def _knows(kind, field: str) -> bool:
    return field in getattr(kind, "__dataclass_fields__", {}) or hasattr(kind, field) or field in kind.attribute_map


def _of_transformers(config: Mapping):
    """The configuration as an object of its class, or None where there is none for this family."""
    kind = _class_of(config.get("model_type"))
    if kind is None:
        return None
    try:
        return _from_class(kind, config)
    except Exception:  # each class has checks of its own: what it refuses is read by its fields, or not at all
        return None


def _plain_fields(text) -> dict:
    """All fields of a configuration, and its standard names where a family has others."""
    filled = text.to_dict()
    for standard, own in type(text).attribute_map.items():
        if filled.get(own) is not None:
            filled.setdefault(standard, filled[own])
    return filled


def _unknown_to(text, raw: Mapping) -> list[str]:
    """Fields of the file that could change the cache and that the class of `transformers` does not have."""
    if text is None:
        return []
    unknown = [
        field for field, value in raw.items() if _changes_cache(field, value) and not _used(type(text), raw, field)
    ]
    # two families have their attention in a part of its own, of which transformers' class knows a part
    return unknown + (["attn_config"] if isinstance(raw.get("attn_config"), Mapping) else [])


def _used(kind, raw: Mapping, field: str) -> bool:
    """Whether a configuration class does anything with a field: it has it, or others change with it."""
    if _knows(kind, field):
        return True
    with contextlib.suppress(Exception):  # a class without defaults
        if field in kind().to_dict():
            return True
    kept = [
        {name: value for name, value in _from_class(kind, raw, left_out).to_dict().items() if name != field}
        for left_out in ((), (field,))
    ]
    return kept[0] != kept[1]


def _from_class(kind, config: Mapping, without=()):
    drop = ("quantization_config", "auto_map", "torch_dtype", "dtype", "pruned_heads", "model_type", *without)
    fields = {field: value for field, value in config.items() if field not in drop and isinstance(field, str)}
    with _quiet():
        return kind.from_dict(json.loads(json.dumps(fields)))


def _changes_cache(field, value) -> bool:
    """Whether a field is one of those that could change what is cached, by its name."""
    empty = value is None or value is False or value in (0, "", -1) or (isinstance(value, list | dict) and not value)
    field = str(field).lower()
    return not empty and bool(_CACHE_NAME.search(field)) and not _HARMLESS.search(field)


def _defaults(raw: Mapping, filled: Mapping, text) -> list[str]:
    """A sentence on the sizes that the file leaves to the defaults of its class."""
    left = []
    heads, hidden = (_count(filled, kind, "", optional=True) for kind in ("heads", "hidden"))
    usual = {"kv": heads, "head": hidden // heads if heads and hidden else None}  # which need no words
    for kind in (*_SIZES, "kv", "head", "context"):
        if any(field in raw or type(text).attribute_map.get(field) in raw for field in _FIELDS[kind]):
            continue
        field = next((field for field in _FIELDS[kind] if isinstance(filled.get(field), int)), None)
        if field is not None and filled[field] != usual.get(kind):
            left.append(f"{field} = {filled[field]}")
    return [f"not in the file, taken from the defaults of {type(text).__name__}: {', '.join(left)}"] if left else []


MOST_MODULES = 20_000  # layers times experts of a network that is built to be asked


def _built(text, whole, causal: bool, name: str) -> _Shape | None:
    """Widths and caches of the network that `transformers` builds from a configuration; None if it cannot be run.

    It has no weights and is run on three tokens.  An encoder is only built.  ValueError for layers without softmax.
    """
    import torch

    transformers = _transformers()
    experts = [_of(text, field, 1) for field in ("num_experts", "num_local_experts", "n_routed_experts")]
    size = _of(text, "num_hidden_layers", 1)
    size = size * max([part for part in experts if isinstance(part, int)] + [1]) if isinstance(size, int) else 0
    if not 0 < size <= MOST_MODULES:
        return None
    if isinstance(_of(text, "pad_token_id", None), int) and text.pad_token_id >= _count(
        text.to_dict(), "vocabulary", name
    ):
        text.pad_token_id = None
    plans = [(transformers.AutoModelForCausalLM, text), (transformers.AutoModelForCausalLM, whole),
             (transformers.AutoModelForImageTextToText, whole), (transformers.AutoModel, text)]  # fmt: skip
    for auto, config in plans if causal else plans[-1:]:
        if type(config) not in auto._model_mapping:
            continue
        try:
            with _quiet(), torch.device("meta"), torch.no_grad(), _without_values():
                network = auto.from_config(config, attn_implementation="eager", dtype=torch.bfloat16).eval()
                table = network.get_input_embeddings()
                width = int(getattr(table, "embedding_dim", 0) or table.weight.shape[1])
                answer = _answer(network, width, torch) if causal else None
        except Exception:  # some networks need data to decide where to go: then fields are read
            continue
        hidden = int(_of(text, "hidden_size", width))
        if not causal:
            caches, heads = _head_fields(_plain_fields(text), name)
            return _Shape(width, hidden, caches, heads, None, None)
        found = _caches(answer, text, name)
        if found is not None:
            return _Shape(width, hidden, *found)
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
    heads = max((int(part.shape[1]) for part in weights), default=_of(text, "num_attention_heads", 0))
    values = max(layer[2] for layer in caches)
    layers = max(len(caches), _of(text, "num_hidden_layers", 0))
    if len(weights) == len(caches):  # each layer's heads with the width of its own values
        written = sum(int(part.shape[1]) * layer[2] for part, layer in zip(weights, caches, strict=True))
        written += (layers - len(caches)) * heads * values
    else:
        written = max(len(weights), layers) * heads * values
    return tuple(caches), heads, written, min(windows, default=None)


# --- without a network -----------------------------------------------------------------------------------------------


def _from_fields(raw: Mapping, filled: Mapping, family: str, known: bool, name: str) -> tuple[_Shape, bool]:
    """Widths and caches as fields tell, and whether attention is of another kind than a plain softmax."""
    refused = [field for field, value in raw.items() if field not in _UNDERSTOOD and _changes_cache(field, value)]
    if raw.get("layer_types"):  # all of them attention: sizes of other layers are leftovers
        refused = [field for field in refused if not str(field).startswith(_NOT_SOFTMAX)]
    odd = [field for field in refused if _PATTERN_NAME.search(str(field).lower())]
    refused = [field for field in refused if field not in odd]
    attn = raw.get("attn_config")
    if attn is not None and not isinstance(attn, Mapping):
        raise ValueError(f"{name}: attn_config must be a JSON object, not {one_line(repr(attn))}")
    refused += [
        f"attn_config.{field}"
        for field, value in (attn or {}).items()
        if field not in _ATTENTION_CONFIG and value not in (None, False, 0, 1, -1) and not _HARMLESS.search(str(field))
        and not str(field).startswith(("qk_", "clip"))
    ]  # fmt: skip
    if refused:
        raise ValueError(f"{name}: the field {one_line(str(refused[0]))} may change the cache and is not understood")
    if family in _NOT_BY_FIELDS and known:
        raise ValueError(f"{name}: networks of the family {family} cannot be built here, and their fields do not tell")
    for kind in ("hidden", "layers", "heads"):
        told = {field: filled[field] for field in _FIELDS[kind] if filled.get(field) is not None}
        if len(set(map(str, told.values()))) > 1:
            raise ValueError(f"{name}: {' and '.join(told)} differ, so its layers are not understood")
    hidden = _count(filled, "hidden", name)
    width = hidden
    if filled.get("word_embed_proj_dim") is not None:
        width = _number(filled, "word_embed_proj_dim", name)
    if filled.get("embedding_size") is not None and (family in _FACTORED or known):
        width = _number(filled, "embedding_size", name)
    elif filled.get("embedding_size") not in (None, hidden):
        size = _number(filled, "embedding_size", name)
        if size < _count(filled, "vocabulary", name):  # else it is the padded vocabulary
            raise ValueError(f"{name}: the field embedding_size may change the width of a prompt and is not understood")
    caches, heads = _head_fields(filled | _without_none(raw), name, family)
    return _Shape(width, hidden, caches, heads, None, None), bool(odd)


def _head_fields(filled: Mapping, name: str, family: str = "") -> tuple[tuple[tuple[int, int, int], ...], int]:
    """((heads of keys, d_k, d_v) of every layer, heads of queries) by the names of fields."""
    hidden, layers, heads = (_count(filled, kind, name) for kind in ("hidden", "layers", "heads"))
    head = _count(filled, "head", name, optional=True)
    family = family or str(filled.get("model_type"))
    if head is None and filled.get("kv_lora_rank") is None:
        if family.startswith("gemma"):
            head = 256  # the default of these families, whatever the width
        elif hidden % heads:
            raise ValueError(f"{name}: {hidden} is not divisible by {heads} heads and there is no head_dim")
        else:
            head = hidden // heads
    head = head or 1  # of compressed keys and values, whose size is told elsewhere
    values = _number(filled, "v_head_dim", name) if filled.get("v_head_dim") is not None else head
    compressed = filled.get("kv_lora_rank") is not None  # then every head has keys of its own
    kv_heads = heads if compressed else _kv_heads(filled, family, heads, name)
    if heads % kv_heads:
        raise ValueError(f"{name}: {heads} heads cannot share {kv_heads} heads of keys and values evenly")
    if layers > 10**4:
        raise ValueError(f"{name}: {one_line(str(layers))} layers are more than any network has")
    shared = filled.get("num_kv_shared_layers") or 0  # the last layers read the caches of earlier ones
    if shared and not 1 <= _number(filled, "num_kv_shared_layers", name) < layers:
        raise ValueError(f"{name}: of {layers} layers {one_line(str(shared))} cannot share their caches")
    return ((kv_heads, head, values),) * (layers - shared), heads


def _kv_heads(config: Mapping, family: str, heads: int, name: str) -> int:
    if family == "falcon" and config.get("multi_query", True) and not config.get("new_decoder_architecture"):
        return 1
    attn = config.get("attn_config")
    if isinstance(attn, Mapping):
        if attn.get("kv_n_heads") is not None:
            return _number(attn, "kv_n_heads", name)
        if attn.get("attn_type") == "multiquery_attention":
            return 1
        if attn.get("attn_type") not in (None, "multihead_attention"):
            raise ValueError(
                f"{name}: attn_config says {one_line(str(attn['attn_type']))} and not how many heads it has"
            )
    for field in _FIELDS["kv"]:
        if config.get(field) is not None:
            return _number(config, field, name)
    if config.get("multi_query_attention") and config.get("multi_query_group_num") is not None:
        return _number(config, "multi_query_group_num", name)
    return 1 if config.get("multi_query") or config.get("multi_query_attention") else heads


# --- small things ----------------------------------------------------------------------------------------------------


def _of(config, field: str, default=None):
    """A field of a configuration object; the default as well where it is not the same in all layers."""
    try:
        return getattr(config, field, default)
    except Exception:  # configuration classes raise errors of their own for a field that differs between layers
        return default


def _without_none(raw: Mapping) -> dict:
    return {field: value for field, value in raw.items() if value is not None}


def _count(config: Mapping, kind: str, name: str, optional: bool = False) -> int | None:
    field = next((field for field in _FIELDS[kind] if config.get(field) is not None), None)
    if field is None and optional:
        return None
    if field is None:
        raise ValueError(f"{name}: the configuration lacks {' or '.join(_FIELDS[kind])}")
    return _number(config, field, name)


def _number(config: Mapping, field: str, name: str) -> int:
    value = config.get(field)
    try:
        return integers(**{f"{name}: {field}": value})[0]
    except ValueError:
        raise ValueError(f"{name}: {field} must be an integer >= 1, not {one_line(repr(value))}") from None


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def one_line(text: str) -> str:
    """A name in one line of moderate length."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= 120 else text[:100] + "…"


def _line(error: BaseException) -> str:
    """What went wrong, in one line: the last line of a check that names a field first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(" ".join(lines)[:160].rstrip(" .:"))
