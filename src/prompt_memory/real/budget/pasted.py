"""The rules by which the page reads a pasted `config.json`: a table of plain decoder families, from the package's own.

`architectures.read` reads any configuration; a browser can read the families whose layers are all alike and whose
fields say everything.  What the table does not settle, the page's script refuses.
"""

import json
from collections.abc import Iterable

from prompt_memory.real.architectures.families import (
    CACHE_NAME,
    FIELDS,
    HARMLESS,
    LAYER_NORM,
    NOT_SOFTMAX,
    SEES_LATER_NAME,
    SIZES,
    WRITES_NAME,
)
from prompt_memory.real.architectures.fields import changes_cache
from prompt_memory.real.architectures.library import class_of, knows, plain_fields, without_remarks
from prompt_memory.real.architectures.traits import kind_of_positions
from prompt_memory.real.budget.formats import FORMATS, OTHER_NAMES

# Decoders whose layers have caches of one size, told by the usual fields.
PLAIN = ("bloom", "cohere", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite",
         "llama", "mistral", "mixtral", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm",
         "starcoder2")  # fmt: skip
KINDS = (*SIZES, "kv", "head")
# A field that has another value belongs to a network that is not a plain decoder.
MUST = {"is_encoder_decoder": False, "causal": True, "is_causal": True, "use_causal_mask": True, "bidirectional": False,
        "do_layer_norm_before": True, "_remove_final_layer_norm": False}  # fmt: skip

TYPES = {"bool": "boolean", "int": "number", "float": "number", "str": "string", "None": "null", "list[int]": "list",
         "dict": "object", "dict[int, str]": "object", "dict[str, str]": "object", "dict[str, int]": "object",
         "transformers.modeling_rope_utils.RopeParameters": "object"}  # fmt: skip


def rules() -> dict:
    """What the page's script needs to read a configuration, as plain numbers, strings, lists and dictionaries.

    No families where `transformers` is not installed: defaults are those of its classes.
    """
    kinds = {family: class_of(family) for family in PLAIN}
    return {
        "families": {family: _family(family, kind) for family, kind in kinds.items() if kind is not None},
        "names": {kind: list(FIELDS[kind]) for kind in (*KINDS, "context")},
        "cache_name": CACHE_NAME.pattern,
        "harmless": HARMLESS.pattern,
        "not_softmax": list(NOT_SOFTMAX),
        "must": MUST,
        "writes": WRITES_NAME.pattern,
        "sees_later": SEES_LATER_NAME.pattern,
        "types": _types(kind for kind in kinds.values() if kind is not None),
        "formats": {name: name for name in FORMATS} | OTHER_NAMES,
    }


def _family(family: str, kind) -> dict:
    """One family: the names of its sizes with their defaults, its windows, and what else the bounds need."""
    with without_remarks():
        filled = plain_fields(kind())
    sizes = {size: {"names": [name for name in FIELDS[size] if knows(kind, name) or name in filled]} for size in KINDS}
    for size in sizes.values():
        size["usual"] = next((_default(kind, name) for name in size["names"]), None)
    window = _window(kind, filled)
    read = {"none": [], "all": ["sliding_window"], "some": ["sliding_window", "layer_types"],
             "optional": ["sliding_window", "layer_types", "use_sliding_window"]}[window["rule"]]  # fmt: skip
    read += ["max_window_layers"] if window["first"] is not None else []
    read += ["multi_query"] if knows(kind, "multi_query") else []
    sized = {name for names in FIELDS.values() for name in names}
    usual = {name: value for name, value in filled.items()
             if name not in read and name not in sized and changes_cache(name, value)}  # fmt: skip
    if "_sliding_window_pattern" in usual:  # as files write it
        usual["sliding_window_pattern"] = usual["_sliding_window_pattern"]
    return {
        "sizes": sizes,
        "window": window,
        "read": read,
        "usual": json.loads(json.dumps(usual)),
        "multi_query": _default(kind, "multi_query") if knows(kind, "multi_query") else None,
        "context": next((filled[name] for name in FIELDS["context"] if filled.get(name) is not None), None),
        "norm": "layer" if family in LAYER_NORM else "none",
        "positions": kind_of_positions(filled, family),
        "logit_cap": filled.get("attn_logit_softcapping"),
    }


def _types(kinds: Iterable) -> dict[str, list[str]]:
    """The types in JSON that a field may have, where all classes together name plain ones: others are mistakes."""
    found: dict[str, set[str]] = {}
    for kind in kinds:
        for name, field in kind.__dataclass_fields__.items():
            written = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
            found.setdefault(name, set()).update(str(field.type if " | " in str(field.type) else written).split(" | "))
    found["rope_scaling"] = found.get("rope_parameters", set())  # its older name
    return {name: sorted({TYPES[one] for one in types}) for name, types in found.items() if types <= set(TYPES)}


def _default(kind, name: str):
    """What a class takes for a field that a file leaves out; None if it follows from other fields."""
    field = kind.__dataclass_fields__.get(kind.attribute_map.get(name, name))
    return None if field is None else field.default


def _window(kind, filled: dict) -> dict:
    """Which layers see a window only: none, all, some from the first on, or those that further fields name."""
    if not knows(kind, "sliding_window"):
        return {"rule": "none", "usual": None, "first": None}
    optional = knows(kind, "use_sliding_window")
    rule = "optional" if optional else "some" if filled.get("layer_types") else "all"
    first = _default(kind, "max_window_layers") if optional and knows(kind, "max_window_layers") else None
    return {"rule": rule, "usual": _default(kind, "sliding_window"), "first": first}
