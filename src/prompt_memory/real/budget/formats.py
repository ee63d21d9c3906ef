"""Number formats: their bits, and the widths from which the numbers within a radius are counted."""

import math
from typing import NamedTuple


class Format(NamedTuple):
    """A number format: all its bits, and the widths of exponent and fraction if the numbers in a range are counted.

    They are up to `counted_to`: IEEE formats everywhere; e4m3 without infinities differs from IEEE above 240.
    """

    bits: int
    exponent: int | None = None
    fraction: int | None = None
    counted_to: float = math.inf


FORMATS = {
    "fp64": Format(64, 11, 52),
    "fp32": Format(32, 8, 23),
    "bf16": Format(16, 8, 7),
    "fp16": Format(16, 5, 10),
    "fp8_e5m2": Format(8, 5, 2),
    "fp8_e4m3": Format(8, 4, 3, 240.0),
    "fp8": Format(8),
    "int8": Format(8),
    "fp4": Format(4),
    "int4": Format(4),
    "int2": Format(2),
    "int1": Format(1),
}
OTHER_NAMES = {"float64": "fp64", "double": "fp64", "float32": "fp32", "float": "fp32", "bfloat16": "bf16",
                "float16": "fp16", "half": "fp16", "float8_e5m2": "fp8_e5m2", "float8_e4m3fn": "fp8_e4m3"}  # fmt: skip


def number_format(name: str) -> tuple[str, Format]:
    """The usual name of a number format and its widths; ValueError that lists the formats if it is not one."""
    usual = OTHER_NAMES.get(str(name).lower(), str(name).lower())
    if usual not in FORMATS:
        raise ValueError(f"unknown number format {name!r}: choose one of {', '.join(FORMATS)}")
    return usual, FORMATS[usual]
