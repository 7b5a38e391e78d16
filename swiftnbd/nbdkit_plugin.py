# SPDX-License-Identifier: MIT
"""A container served by nbdkit: ``nbdkit python .../swiftnbd/nbdkit_plugin.py container=NAME``.

nbdkit runs this file as ``__main__`` in a Python of its own and calls the functions below, in many
threads at once (docs/nbdkit-python.md).
"""

import errno
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import nbdkit

# nbdkit's Python does not look where this file is: beside swiftnbd, in an environment's folder
sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

try:
    from swiftnbd import __version__
    from swiftnbd.api.device import Device
    from swiftnbd.cli.embedded import Engine, Opened
    from swiftnbd.cli.nbdkit_keys import plan_of
    from swiftnbd.errors import ExportError, SwiftnbdError
except ImportError as missing:
    raise ImportError(
        f"nbdkit's Python {sys.version_info[0]}.{sys.version_info[1]} cannot load swiftnbd "
        f"({missing}): install it for that version, let PYTHONPATH name its environment's "
        "site-packages, and let the first python3 in PATH be nbdkit's"
    ) from None

API_VERSION: Final = 2
_EXTENTS_MAX: Final = 4096  # of one answer: nbdkit asks again from where it ends
_EXTENTS_OF_ONE: Final = 8  # where one is wanted: neighbours may be of one kind

# What nbdkit has a word for; the rest would be EINVAL, and clients think that they did wrong.
_TOLD: Final = {
    errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ENOTSUP,
    errno.ESHUTDOWN,
}  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")

_pairs: list[tuple[str, str]] = []
_engine: Engine


def _told(callback: Callable[P, T]) -> Callable[P, T]:
    """Tell nbdkit the errno of what fails; it logs the exception itself."""

    @wraps(callback)
    def telling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return callback(*args, **kwargs)
        except (SwiftnbdError, OSError) as error:
            nbdkit.set_error(error.errno if error.errno in _TOLD else errno.EIO)
            raise error.with_traceback(None) from None  # its sentence is enough

    return telling


# The process


def dump_plugin() -> None:
    print(f"swiftnbd_version={__version__}", flush=True)


def config(key: str, value: str) -> None:
    _pairs.append((key, value))


@_told
def config_complete() -> None:
    global _engine
    _engine = Engine(plan_of(_pairs))


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


@_told
def get_ready() -> None:
    _engine.check()  # while whoever starts nbdkit still hears of it


@_told
def after_fork() -> None:
    _engine.start()


@_told
def cleanup() -> None:
    _engine.stop()


# A connection


@_told
def open(readonly: bool) -> Opened:
    return _engine.attach(read_only=readonly)


@_told
def close(h: Opened) -> None:
    _engine.detach(h)


def get_size(h: Opened) -> int:
    return h.device.size


def block_size(h: Opened) -> tuple[int, int, int]:
    device = h.device
    least, best, most = device.block_size_min, device.block_size, device.block_size_max
    return device.block_sizes_told or (least, best, most)


def export_description(h: Opened) -> str:
    return h.device.description


def is_rotational(h: Opened) -> bool:
    return h.device.is_rotational


def can_write(h: Opened) -> bool:
    return not h.device.read_only


def can_flush(h: Opened) -> bool:
    return h.device.can_flush


def can_fua(h: Opened) -> int:
    if h.device.can_fua is None:
        return int(nbdkit.FUA_NONE)
    return int(nbdkit.FUA_NATIVE if h.device.can_fua else nbdkit.FUA_EMULATE)


def can_trim(h: Opened) -> bool:
    return h.device.can_trim


def can_zero(h: Opened) -> bool:
    return h.device.can_zero


def can_fast_zero(h: Opened) -> bool:
    return h.device.can_fast_zero


def can_cache(h: Opened) -> int:
    return int(nbdkit.CACHE_NATIVE if h.device.can_prefetch else nbdkit.CACHE_NONE)


def can_extents(h: Opened) -> bool:
    return True


def can_multi_conn(h: Opened) -> bool:
    return h.multi_conn


# Its requests


@_told
def pread(h: Opened, buf: memoryview, offset: int, flags: int) -> None:
    async def read() -> None:
        for start, end in _parts(h.device, offset, len(buf)):
            at = start
            for piece in await h.device.read(offset + start, end - start):
                buf[at : at + len(piece)] = piece
                at += len(piece)

    _engine.call(h, read())


@_told
def pwrite(h: Opened, buf: memoryview, offset: int, flags: int) -> None:
    data = memoryview(bytes(buf))  # the device may keep it, and this one is nbdkit's again

    async def write() -> None:
        for start, end in _parts(h.device, offset, len(data)):
            await h.device.write(offset + start, data[start:end], **_fua(flags))

    _engine.call(h, write())


@_told
def flush(h: Opened, flags: int) -> None:
    _engine.call(h, h.device.flush())


@_told
def trim(h: Opened, count: int, offset: int, flags: int) -> None:
    _check_aligned(h.device, offset, count)
    _engine.call(h, h.device.trim(offset, count, **_fua(flags)))


@_told
def zero(h: Opened, count: int, offset: int, flags: int) -> None:
    _check_aligned(h.device, offset, count)
    no_hole, fast = not flags & nbdkit.FLAG_MAY_TRIM, bool(flags & nbdkit.FLAG_FAST_ZERO)
    _engine.call(h, h.device.zero(offset, count, no_hole=no_hole, fast=fast, **_fua(flags)))


@_told
def cache(h: Opened, count: int, offset: int, flags: int) -> None:
    _check_aligned(h.device, offset, count)
    _engine.call(h, h.device.prefetch(offset, count))


@_told
def extents(h: Opened, count: int, offset: int, flags: int) -> Iterable[tuple[int, int, int]]:
    _check_aligned(h.device, offset, count)
    most = _EXTENTS_OF_ONE if flags & nbdkit.FLAG_REQ_ONE else _EXTENTS_MAX
    told = []
    for length, hole, zeros in _engine.call(h, h.device.extents(offset, count, count=most)):
        kind = (nbdkit.EXTENT_HOLE if hole else 0) | (nbdkit.EXTENT_ZERO if zeros else 0)
        told.append((offset, length, kind))
        offset += length
    return told


def _fua(flags: int) -> dict[str, bool]:
    return {"fua": True} if flags & nbdkit.FLAG_FUA else {}


def _parts(device: Device, offset: int, length: int) -> Iterable[tuple[int, int]]:
    """Ranges from 0 to ``length``, none larger than the device takes at once."""
    _check_aligned(device, offset, length)
    most = device.block_size_max
    return ((start, min(start + most, length)) for start in range(0, length, most))


def _check_aligned(device: Device, offset: int, length: int) -> None:
    """nbdkit tells clients of the least block, and lets through what is smaller."""
    least = device.block_size_min
    if offset % least or length % least:
        raise ExportError(errno.EINVAL, f"{offset}+{length} is not in blocks of {least} bytes")
