# SPDX-License-Identifier: MIT
"""How much memory Python's own objects take, at worst and in the end."""

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

LEFT_BYTES_MAX = 256 * 1024  # caches of the libraries and of the test itself


@contextmanager
def memory_comes_back(peak_max: int) -> Iterator[None]:
    """Fail if the block ever takes more than ``peak_max`` bytes, or leaves more than a little."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        gc.collect()
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= peak_max, f"{peak} bytes were in use"
    assert left <= LEFT_BYTES_MAX, f"{left} bytes are left"
