"""What fields say besides sizes: causality, positions, windows, and what is refused at sight."""

import re
from collections.abc import Mapping

from prompt_memory.real.architectures.families import (
    ENCODERS,
    LEARNED,
    NOT_SOFTMAX,
    ROTARY,
    SEES_LATER_NAME,
    WRITES_NAME,
)
from prompt_memory.real.architectures.library import class_of, knows, transformers_package
from prompt_memory.real.sentences import one_line


def refuse_at_sight(raw: Mapping, name: str) -> None:
    """ValueError for what no reading of the rest could mend."""
    if raw.get("is_encoder_decoder"):
        raise ValueError(f"{name}: an encoder with a decoder is not covered; give a model with one stack of layers")
    if raw.get("kv_lora_rank") is not None and raw.get("qk_rope_head_dim") is None:
        known = class_of(raw.get("model_type"))
        if known is None or not knows(known, "kv_lora_rank"):
            raise ValueError(f"{name}: kv_lora_rank without qk_rope_head_dim does not tell the size of the cache")
    kinds = raw.get("layer_types")
    if kinds is not None and not isinstance(kinds, list | tuple):
        raise ValueError(f"{name}: layer_types must be a list of names, not {one_line(repr(kinds))}")
    odd = [str(kind) for kind in kinds or () if not _is_softmax(str(kind))]
    if not kinds:  # a list of layers says more than fields that may be leftovers
        odd += [field for field in raw if str(field).startswith(NOT_SOFTMAX) and raw[field] is not None]
    if odd:
        raise ValueError(f"{name}: layers without softmax attention are not covered ({one_line(sorted(odd)[0])})")


def _is_softmax(kind: str) -> bool:
    return kind in ("attention", "global", "local") or (kind.endswith("_attention") and "linear" not in kind)


def layer_kinds(filled: Mapping) -> list[str] | None:
    """The kind of attention of each layer, where the file lists them."""
    kinds = filled.get("layer_types") or filled.get("attention_layers")
    return [str(kind) for kind in kinds] if isinstance(kinds, list | tuple) else None


def attention_window(filled: Mapping, kinds: list[str] | None, found: int | None) -> tuple[str, int | None]:
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


def kind_of_positions(filled: Mapping, family: str) -> str:
    """How positions enter: learned, rotary, alibi, or unknown."""
    attn = filled.get("attn_config")
    alibi = filled.get("alibi") or (isinstance(attn, Mapping) and attn.get("alibi"))
    if alibi or family in ("bloom", "mpt") or filled.get("position_embedding_type") == "alibi":
        return "alibi"
    rope = any(filled.get(field) for field in ("rope_theta", "rope_parameters", "rope_scaling", "rope", "rotary_dim"))
    if isinstance(attn, Mapping) and (attn.get("rope") or attn.get("rope_theta")):
        rope = True
    if family in ROTARY or rope:
        return "rotary"
    return "learned" if family in LEARNED else "unknown"


def causality(raw, filled, whole, text, family: str, name: str) -> tuple[bool, str | None]:
    """Whether tokens see earlier ones only, and a sentence where that is taken on trust."""
    attn = raw.get("attn_config")
    if any(raw.get(field) is False for field in ("causal", "is_causal", "use_causal_mask")):
        return False, None
    if raw.get("use_bidirectional_attention") in (True, "all") or raw.get("bidirectional") is True:
        return False, None
    if isinstance(attn, Mapping) and attn.get("prefix_lm"):
        return False, None
    told = [str(part) for part in raw.get("architectures") or () if isinstance(part, str)]
    if any(SEES_LATER_NAME.search(part) for part in told) and not raw.get("is_decoder"):
        return False, None
    writes = any(WRITES_NAME.search(part) for part in told)
    who = f"{one_line(told[0])} does not tell" if told else "the file does not say"
    trust = f"taken as causal: {who} whether tokens see later ones"
    if "diffusion" in family or (raw.get("mask_token_id") is not None and text is None):
        return False, None
    known = {str(raw.get("model_type"))} if whole is None else {str(whole.model_type), str(text.model_type)}
    if whole is None and class_of(raw.get("model_type")) is None:
        old = raw.get("type_vocab_size") or family in ENCODERS or "bert" in family.lower()
        if old and not writes:
            return bool(raw.get("is_decoder")), None
        return True, None if writes or raw.get("causal") or raw.get("is_causal") else trust
    auto = transformers_package().models.auto.modeling_auto
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
    if any(known & set(getattr(auto, part)) for part in tasks) or kind_of_positions(filled, family) != "rotary":
        raise ValueError(f"{name}: the family {one_line(family)} is not a language model with one stack of layers")
    return True, trust
