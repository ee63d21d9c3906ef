"""An architecture from the fields of a `config.json`, from the file, or from the name of a published model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from prompt_memory.real.architectures.architecture import Architecture, Shape
from prompt_memory.real.architectures.built import built_shape
from prompt_memory.real.architectures.families import (
    FIELDS,
    LAYER_NORM,
    OTHER_ATTENTION,
    SIZES,
    WITHOUT_SOFTMAX,
    WITHOUT_SOFTMAX_NAMES,
)
from prompt_memory.real.architectures.fields import count, is_number, shape_from_fields, size_of, without_none
from prompt_memory.real.architectures.library import (
    class_instance,
    field_of,
    is_used,
    notes_on_defaults,
    plain_fields,
    unknown_fields,
)
from prompt_memory.real.architectures.published import PUBLISHED
from prompt_memory.real.architectures.traits import (
    attention_window,
    causality,
    kind_of_positions,
    layer_kinds,
    refuse_at_sight,
)
from prompt_memory.real.sentences import all_lines, one_line


def read(config: Mapping, name: str = "model") -> Architecture:
    """The architecture in the fields of a Hugging Face `config.json`.

    `transformers` fills in and builds what it knows; other files are read by names of fields, those
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
            f"{name}: the configuration cannot be read ({type(error).__name__}: {all_lines(error)})"
        ) from error


class _Source(NamedTuple):
    """A configuration as it is read: the file, and what `transformers` makes of it."""

    name: str
    raw: Mapping  # the fields of the file, those about text
    whole: object | None  # the object of its class; None for a family that is not known, or a file of another program
    text: object | None  # the part of it about text
    filled: dict  # the fields with the defaults of the class
    family: str


def _read(config: Mapping, name: str) -> Architecture:
    source = _source(config, name)
    raw, filled, family = source.raw, source.filled, source.family
    causal, doubt = causality(raw, filled, source.whole, source.text, family, name)
    unknown = unknown_fields(source.text, raw)
    shape, odd, notes = _shape(source, causal, bool(unknown))
    cached = _cached(source, shape)
    attention, window = attention_window(filled, layer_kinds(filled), shape.window)
    if attention == "window" and not causal:
        window = None  # how many positions of a window lie on either side is not known
    if odd or family in OTHER_ATTENTION or str(raw.get("model_type")) in OTHER_ATTENTION:
        attention = "other"
    cap = filled.get("attn_logit_softcapping")
    if cap is not None and not (is_number(cap) and cap > 0):
        raise ValueError(f"{name}: attn_logit_softcapping must be a number > 0, not {one_line(repr(cap))}")
    vocabulary = count(filled, "vocabulary", name)
    if vocabulary < 2:
        raise ValueError(f"{name}: a vocabulary of one token carries no information")
    eps = next((filled[field] for field in FIELDS["norm_eps"] if is_number(filled.get(field))), 1e-5)
    return Architecture(
        name=name, family=one_line(family), width=shape.width, heads=shape.heads, vocabulary=vocabulary,
        context=count(raw, "context", name, optional=True) or count(filled, "context", name, optional=True),
        norm=_norm(source, shape, bool(unknown)), norm_eps=float(eps), positions=kind_of_positions(filled, family),
        causal=causal, logit_cap=None if cap is None else float(cap), attention=attention, window=window,
        notes=(*([doubt] if doubt else []), *notes), **cached,
    )  # fmt: skip


def _source(config: Mapping, name: str) -> _Source:
    """The fields of a file and the object of its class; ValueError for what the bounds do not cover."""
    if not isinstance(config, Mapping):
        raise ValueError(f"{name}: a configuration is a JSON object of fields, not {type(config).__name__}")
    raw = config
    if isinstance(config.get("text_config"), Mapping):
        raw = {"model_type": config.get("model_type"), "architectures": config.get("architectures")}
        raw |= {field: value for field, value in config["text_config"].items() if field != "model_type" or value}
    refuse_at_sight(raw, name)
    for kind in (*SIZES, "kv", "head", "context"):  # a size that is there is a positive integer, whoever reads it
        count(raw, kind, name, optional=True)
    whole = class_instance(config)
    text = whole if whole is None else whole.get_text_config(decoder=True)
    if text is not None and any(
        field in raw and not is_used(type(text), raw, field)
        for kind in ("hidden", "layers", "heads", "kv")
        for field in FIELDS[kind]
    ):
        whole = text = None  # a file of another program, that has the same name for its family
    filled = dict(raw) if text is None else plain_fields(text) | without_none(raw)
    family = str((raw.get("model_type") if text is None else text.model_type) or "unknown")
    if text is not None and any(field_of(part, "is_encoder_decoder", False) for part in (whole, text)):
        raise ValueError(f"{name}: an encoder with a decoder is not covered; give a model with one stack of layers")
    if WITHOUT_SOFTMAX.search(family.lower()) or family.lower() in WITHOUT_SOFTMAX_NAMES:
        raise ValueError(f"{name}: layers without softmax attention are not covered (the family {one_line(family)})")
    return _Source(name, raw, whole, text, filled, family)


def _shape(source: _Source, causal: bool, unknown: bool) -> tuple[Shape, bool, list[str]]:
    """Widths and caches of the network if it can be built, or by fields; whether its attention is odd; notes."""
    name, raw, whole, text, filled, family = source
    if text is not None and not unknown:
        shape = built_shape(text, whole, causal, name)
        if shape is not None:
            return shape, False, notes_on_defaults(raw, filled, text)
    return *shape_from_fields(raw, filled, family, text is not None, name), []


def _cached(source: _Source, shape: Shape) -> dict:
    """What `Architecture` says of heads and caches."""
    name, filled = source.name, source.filled
    heads, key_dim, value_dim = max(shape.caches, key=lambda layer: layer[0] * (layer[1] + layer[2]))
    if filled.get("kv_lora_rank") is not None:  # keys and values are computed from fewer numbers
        rank, rope = (size_of(filled, field, name) for field in ("kv_lora_rank", "qk_rope_head_dim"))
        key_dim = rope + (size_of(filled, "qk_nope_head_dim", name) if filled.get("qk_nope_head_dim") else 0)
        value_dim = size_of(filled, "v_head_dim", name) if filled.get("v_head_dim") else key_dim
        return {"layers": len(shape.caches), "kv_heads": shape.heads, "key_dim": key_dim, "value_dim": value_dim,
                "compressed": rank + rope}  # fmt: skip
    layers = count(filled, "layers", name)
    alike = set(shape.caches) == {(heads, key_dim, value_dim)} and len(shape.caches) == layers
    return {"layers": layers, "kv_heads": heads, "key_dim": key_dim, "value_dim": value_dim,
            "cache": None if alike else shape.caches,
            "written": None if shape.written == layers * shape.heads * value_dim else shape.written}  # fmt: skip


def _norm(source: _Source, shape: Shape, unknown: bool) -> str:
    """The kind of norm, where it matters: a projection or a norm behind the residual connection lets the mean through.

    Then the mean counts as read, so that the count of coordinates is an upper bound in any case.
    """
    filled = source.filled
    plain = filled.get("do_layer_norm_before", True) and not filled.get("_remove_final_layer_norm")
    if source.family in LAYER_NORM and plain and shape.width == shape.hidden and not unknown:
        return "layer"
    return "rms" if "rms_norm_eps" in filled else "none"


def load(source: str | Path) -> Architecture:
    """The architecture in a `config.json`, in the `config.json` of a folder, or of a name in `PUBLISHED`.

    ValueError, one sentence, if there is no such thing or it cannot be read.
    """
    path = Path(source)
    published = {known.lower(): known for known in PUBLISHED}
    if not _exists(path) and (known := published.get(str(source).lower())):
        return PUBLISHED[known].architecture
    if _exists(path) and path.is_dir():
        path = path / "config.json"
    if not _exists(path):
        known = ", ".join(PUBLISHED)
        raise ValueError(f"{one_line(str(source))} is no config.json, no folder with one, and none of: {known}")
    return _load_config(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _load_config(path: Path) -> Architecture:
    """The architecture in a file; ValueError, one sentence that names it, if it cannot be read."""
    shown = one_line(str(path))
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{shown} cannot be read as JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:  # not UTF-8 and not JSON are ValueErrors
        raise ValueError(f"{shown} cannot be read as JSON: {all_lines(error)}") from None
    return read(config, path.parent.resolve().name if path.name == "config.json" else path.stem)
