"""Sizes as the fields of a configuration tell them, for networks that cannot be built."""

import math
from collections.abc import Mapping

from prompt_memory.checks import integers
from prompt_memory.real.architectures.architecture import Shape
from prompt_memory.real.architectures.families import (
    ATTENTION_CONFIG,
    CACHE_NAME,
    FACTORED,
    FIELDS,
    HARMLESS,
    NOT_BY_FIELDS,
    NOT_SOFTMAX,
    PATTERN_NAME,
    UNDERSTOOD,
)
from prompt_memory.real.sentences import one_line


def count(config: Mapping, kind: str, name: str, optional: bool = False) -> int | None:
    """The size of a kind of `FIELDS`; None if it is not there and `optional`, otherwise ValueError."""
    field = next((field for field in FIELDS[kind] if config.get(field) is not None), None)
    if field is None and optional:
        return None
    if field is None:
        raise ValueError(f"{name}: the configuration lacks {' or '.join(FIELDS[kind])}")
    return size_of(config, field, name)


def size_of(config: Mapping, field: str, name: str) -> int:
    """A field that must be an integer >= 1; ValueError that names it otherwise."""
    value = config.get(field)
    try:
        return integers(**{f"{name}: {field}": value})[0]
    except ValueError:
        raise ValueError(f"{name}: {field} must be an integer >= 1, not {one_line(repr(value))}") from None


def is_number(value) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def without_none(raw: Mapping) -> dict:
    """The fields that are not null."""
    return {field: value for field, value in raw.items() if value is not None}


def changes_cache(field, value) -> bool:
    """Whether a field is one of those that could change what is cached, by its name."""
    empty = value is None or value is False or value in (0, "", -1) or (isinstance(value, list | dict) and not value)
    field = str(field).lower()
    return not empty and bool(CACHE_NAME.search(field)) and not HARMLESS.search(field)


def shape_from_fields(raw: Mapping, filled: Mapping, family: str, known: bool, name: str) -> tuple[Shape, bool]:
    """Widths and caches as fields tell, and whether attention is of another kind than a plain softmax."""
    refused = [field for field, value in raw.items() if field not in UNDERSTOOD and changes_cache(field, value)]
    if raw.get("layer_types"):  # all of them attention: sizes of other layers are leftovers
        refused = [field for field in refused if not str(field).startswith(NOT_SOFTMAX)]
    odd = [field for field in refused if PATTERN_NAME.search(str(field).lower())]
    refused = [field for field in refused if field not in odd]
    attn = raw.get("attn_config")
    if attn is not None and not isinstance(attn, Mapping):
        raise ValueError(f"{name}: attn_config must be a JSON object, not {one_line(repr(attn))}")
    refused += [
        f"attn_config.{field}"
        for field, value in (attn or {}).items()
        if field not in ATTENTION_CONFIG and value not in (None, False, 0, 1, -1) and not HARMLESS.search(str(field))
        and not str(field).startswith(("qk_", "clip"))
    ]  # fmt: skip
    if refused:
        raise ValueError(f"{name}: the field {one_line(str(refused[0]))} may change the cache and is not understood")
    if family in NOT_BY_FIELDS and known:
        raise ValueError(f"{name}: networks of the family {family} cannot be built here, and their fields do not tell")
    for kind in ("hidden", "layers", "heads"):
        told = {field: filled[field] for field in FIELDS[kind] if filled.get(field) is not None}
        if len(set(map(str, told.values()))) > 1:
            raise ValueError(f"{name}: {' and '.join(told)} differ, so its layers are not understood")
    hidden = count(filled, "hidden", name)
    width = hidden
    if filled.get("word_embed_proj_dim") is not None:
        width = size_of(filled, "word_embed_proj_dim", name)
    if filled.get("embedding_size") is not None and (family in FACTORED or known):
        width = size_of(filled, "embedding_size", name)
    elif filled.get("embedding_size") not in (None, hidden):
        size = size_of(filled, "embedding_size", name)
        if size < count(filled, "vocabulary", name):  # else it is the padded vocabulary
            raise ValueError(f"{name}: the field embedding_size may change the width of a prompt and is not understood")
    caches, heads = head_fields(filled | without_none(raw), name, family)
    return Shape(width, hidden, caches, heads, None, None), bool(odd)


def head_fields(filled: Mapping, name: str, family: str = "") -> tuple[tuple[tuple[int, int, int], ...], int]:
    """((heads of keys, d_k, d_v) of every layer, heads of queries) by the names of fields."""
    hidden, layers, heads = (count(filled, kind, name) for kind in ("hidden", "layers", "heads"))
    head = count(filled, "head", name, optional=True)
    family = family or str(filled.get("model_type"))
    if head is None and filled.get("kv_lora_rank") is None:
        if family.startswith("gemma"):
            head = 256  # the default of these families, whatever the width
        elif hidden % heads:
            raise ValueError(f"{name}: {hidden} is not divisible by {heads} heads and there is no head_dim")
        else:
            head = hidden // heads
    head = head or 1  # of compressed keys and values, whose size is told elsewhere
    values = size_of(filled, "v_head_dim", name) if filled.get("v_head_dim") is not None else head
    compressed = filled.get("kv_lora_rank") is not None  # then every head has keys of its own
    kv_heads = heads if compressed else _kv_heads(filled, family, heads, name)
    if heads % kv_heads:
        raise ValueError(f"{name}: {heads} heads cannot share {kv_heads} heads of keys and values evenly")
    if layers > 10**4:
        raise ValueError(f"{name}: {one_line(str(layers))} layers are more than any network has")
    shared = filled.get("num_kv_shared_layers") or 0  # the last layers read the caches of earlier ones
    if shared and not 1 <= size_of(filled, "num_kv_shared_layers", name) < layers:
        raise ValueError(f"{name}: of {layers} layers {one_line(str(shared))} cannot share their caches")
    return ((kv_heads, head, values),) * (layers - shared), heads


def _kv_heads(config: Mapping, family: str, heads: int, name: str) -> int:
    if family == "falcon" and config.get("multi_query", True) and not config.get("new_decoder_architecture"):
        return 1
    attn = config.get("attn_config")
    if isinstance(attn, Mapping):
        if attn.get("kv_n_heads") is not None:
            return size_of(attn, "kv_n_heads", name)
        if attn.get("attn_type") == "multiquery_attention":
            return 1
        if attn.get("attn_type") not in (None, "multihead_attention"):
            raise ValueError(
                f"{name}: attn_config says {one_line(str(attn['attn_type']))} and not how many heads it has"
            )
    for field in FIELDS["kv"]:
        if config.get(field) is not None:
            return size_of(config, field, name)
    if config.get("multi_query_attention") and config.get("multi_query_group_num") is not None:
        return size_of(config, "multi_query_group_num", name)
    return 1 if config.get("multi_query") or config.get("multi_query_attention") else heads
