# SPDX-License-Identifier: MIT
"""Memory of a program that is loaded and now begins to move data.

By default glibc gives the end of its heap back to the kernel whenever 128 KiB of it are free, and
takes it again for the next large request: with payloads of 256 KiB that is a page fault for every
few KiB, which costs more than copying them. And Python's collector looks at all objects again and
again, those of the program itself among them, which stay: that takes 30 ms, and then all wait.
"""

import gc
from typing import Final

KEPT_BYTES: Final = 16 * 1024 * 1024  # a little more than one connection has at work at once
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MMAP_BYTES: Final = 32 * 1024 * 1024  # the most that glibc accepts: no request is as long


def settle() -> None:
    """What was loaded so far stays; up to `KEPT_BYTES` of free memory are kept for what comes."""
    gc.freeze()
    _keep_free_memory()


def _keep_free_memory() -> None:
    try:
        import ctypes  # which a Python that was built without libffi lacks
    except ImportError:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none, and needs none
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)  # or larger requests would be mapped each time
