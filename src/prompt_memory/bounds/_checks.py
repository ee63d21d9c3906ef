"""What several chapters ask of their arguments: a ValueError with one sentence otherwise."""

import math

import numpy as np

from prompt_memory.checks import integers


def nonnegative(name: str, value, *, finite: bool = True) -> float:
    """The value as a float; ValueError unless it is a number >= 0 (NaN is not), and a finite one unless said."""
    if not _number(value) or not value >= 0 or (finite and math.isinf(value)):
        raise ValueError(f"{name} must be a {'finite ' if finite else ''}number >= 0, not {value!r}")
    return float(value)


def positive(name: str, value) -> float:
    """The value as a float; ValueError unless it is a finite number > 0."""
    if not _number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, not {value!r}")
    return float(value)


def _number(value) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def classes(q: int) -> int:
    """The number of classes as an integer; ValueError unless it is one >= 2."""
    return integers(2, **{"q, the number of classes,": q})[0]


def labels(bits: float, n: int, q: int) -> tuple[int, int]:
    """(n, q): a number of labels and one of classes; ValueError unless n >= 1, q >= 2 and bits >= 0."""
    if not bits >= 0:
        raise ValueError(f"bits must be a number >= 0, not {bits}")
    return integers(n=n)[0], classes(q)


def head_matrices(A, V) -> tuple[np.ndarray, np.ndarray]:
    """The bilinear form [d, d] and the value map [d_out, d] of one head, in float64; ValueError if they do not fit."""
    A, V = _matrix("A", A), _matrix("V", V)
    if A.shape[0] != A.shape[1] or V.shape[1] != A.shape[0]:
        raise ValueError(f"A must be square and V have as many columns, not {list(A.shape)} and {list(V.shape)}")
    return A, V


def _matrix(name: str, value) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a matrix, not an array of shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite entries")
    return array
