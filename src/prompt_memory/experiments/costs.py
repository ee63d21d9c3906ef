"""What a call costs: time, and memory besides what it was given."""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any


def cost(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, its seconds, and MiB beyond what was there before; `tracemalloc` slows it, short calls most."""
    tracemalloc.start()
    try:
        begin = time.perf_counter()
        result = call()
        return result, time.perf_counter() - begin, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
