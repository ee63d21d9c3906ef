"""What `transformers` knows of a configuration: its class, the fields of that class and their defaults."""

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Mapping

from prompt_memory.real.architectures.families import FIELDS, SIZES
from prompt_memory.real.architectures.fields import changes_cache, count


def transformers_package():
    """The package `transformers`, or None if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    return transformers


@contextlib.contextmanager
def without_remarks():
    """No remarks of `transformers` on the fields of others."""
    logging = transformers_package().utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def class_of(model_type):
    """The configuration class of a family, or None."""
    transformers = transformers_package()
    if transformers is None or not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        return None
    try:
        return transformers.CONFIG_MAPPING[model_type]
    except Exception:  # a class whose own imports are missing
        return None


def knows(kind, field: str) -> bool:
    """Whether a configuration class has a field, by its own name or a standard one."""
    return field in getattr(kind, "__dataclass_fields__", {}) or hasattr(kind, field) or field in kind.attribute_map


def class_instance(config: Mapping):
    """The configuration as an object of its class, or None where there is none for this family."""
    kind = class_of(config.get("model_type"))
    if kind is None:
        return None
    try:
        return _from_class(kind, config)
    except Exception:  # each class has checks of its own: what it refuses is read by its fields, or not at all
        return None


def plain_fields(text) -> dict:
    """All fields of a configuration, and its standard names where a family has others."""
    filled = text.to_dict()
    for standard, own in type(text).attribute_map.items():
        if filled.get(own) is not None:
            filled.setdefault(standard, filled[own])
    return filled


def field_of(config, field: str, default=None):
    """A field of a configuration object; the default as well where it is not the same in all layers."""
    try:
        return getattr(config, field, default)
    except Exception:  # configuration classes raise errors of their own for a field that differs between layers
        return default


def unknown_fields(text, raw: Mapping) -> list[str]:
    """Fields of the file that could change the cache and that the class of `transformers` does not have."""
    if text is None:
        return []
    unknown = [
        field for field, value in raw.items() if changes_cache(field, value) and not is_used(type(text), raw, field)
    ]
    # two families have their attention in a part of its own, of which transformers' class knows a part
    return unknown + (["attn_config"] if isinstance(raw.get("attn_config"), Mapping) else [])


def is_used(kind, raw: Mapping, field: str) -> bool:
    """Whether a configuration class does anything with a field: it has it, or others change with it."""
    if knows(kind, field):
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
    with without_remarks():
        return kind.from_dict(json.loads(json.dumps(fields)))


def notes_on_defaults(raw: Mapping, filled: Mapping, text) -> list[str]:
    """A sentence on the sizes that the file leaves to the defaults of its class."""
    left = []
    heads, hidden = (count(filled, kind, "", optional=True) for kind in ("heads", "hidden"))
    usual = {"kv": heads, "head": hidden // heads if heads and hidden else None}  # which need no words
    for kind in (*SIZES, "kv", "head", "context"):
        if any(field in raw or type(text).attribute_map.get(field) in raw for field in FIELDS[kind]):
            continue
        field = next((field for field in FIELDS[kind] if isinstance(filled.get(field), int)), None)
        if field is not None and filled[field] != usual.get(kind):
            left.append(f"{field} = {filled[field]}")
    return [f"not in the file, taken from the defaults of {type(text).__name__}: {', '.join(left)}"] if left else []
