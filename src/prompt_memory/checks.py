"""What many functions ask of their arguments: a ValueError with one sentence otherwise."""

import numpy as np


def integers(least: int = 1, /, **values) -> list[int]:
    """The values as Python integers, which do not overflow; ValueError that names the first one below `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, not {value!r}")
    return [int(value) for value in values.values()]
