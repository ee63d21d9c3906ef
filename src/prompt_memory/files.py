"""Files that are whole or not there, and JSON that is the same bytes every time."""

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DIGITS = 12  # significant digits kept in a file; the rest is rounding noise of the machine


def plain(value):
    """A JSON value with floats rounded to 12 significant digits; infinities become the strings "inf", "-inf".

    ValueError for NaN and for anything that JSON cannot hold.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("A claim must not hold NaN.")
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(f"A claim holds numbers, strings and lists of them, not {type(value).__name__}.")


def write_json(path: Path, content) -> None:
    """Write deterministic JSON (sorted keys) as a whole file."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file so that a reader sees the old one or the whole new one, whoever else writes it; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}.writing")
    try:
        partial.write_bytes(content)
        return partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
