# SPDX-License-Identifier: MIT
"""What the C library does with memory that is free again.

By default glibc gives the end of its heap back to the kernel whenever 128 KiB of it are free, and
takes it again for the next large request: with payloads of 256 KiB that is a page fault for every
few KiB, which costs more than copying them.
"""

from typing import Final

KEPT_BYTES: Final = 16 * 1024 * 1024  # a little more than one connection has at work at once
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MMAP_BYTES: Final = 32 * 1024 * 1024  # the most that glibc accepts: no request is as long


def keep_free_memory() -> None:
    """Let this process keep up to `KEPT_BYTES` of free memory for its next requests."""
    try:
        import ctypes  # which a Python that was built without libffi lacks
    except ImportError:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none, and needs none
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)  # or larger requests would be mapped each time
