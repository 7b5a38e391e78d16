# SPDX-License-Identifier: MIT
"""A disk in memory, as a script for nbdkit's Python: what `benchmarks.python_plugin` serves."""

from typing import Any

import nbdkit

API_VERSION = 2

disk = bytearray()
model = nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def config(key: str, value: str) -> None:
    global disk, model
    if key == "size":
        disk = bytearray(int(value))
    else:
        model = getattr(nbdkit, f"THREAD_MODEL_{value}")


def thread_model() -> Any:
    return model


def open(readonly: bool) -> int:
    return 1


def get_size(h: int) -> int:
    return len(disk)


def pread(h: int, buf: memoryview, offset: int, flags: int) -> None:
    buf[:] = disk[offset : offset + len(buf)]


def pwrite(h: int, buf: memoryview, offset: int, flags: int) -> None:
    disk[offset : offset + len(buf)] = buf


def flush(h: int, flags: int) -> None:
    pass
