# SPDX-License-Identifier: MIT
"""The module ``nbdkit`` that scripts import: constants, and functions about whom they work for.

There is one for all scripts of a process. What its functions are about is what the calling thread
is at work for, so it is kept by thread, as nbdkit does.
"""

import logging
import os
import signal
import sys
import threading
import time
from enum import IntEnum, IntFlag
from operator import index
from types import ModuleType

from swiftnbd.api.client import Client
from swiftnbd.api.ending import ENDING
from swiftnbd.scripts import parsing

NAME = "nbdkit"

log = logging.getLogger(__name__)


class ThreadModel(IntEnum):
    """How many calls of a script there are at once."""

    SERIALIZE_CONNECTIONS = 0  # one connection
    SERIALIZE_ALL_REQUESTS = 1  # one call
    SERIALIZE_REQUESTS = 2  # one call for each connection
    PARALLEL = 3


class Flag(IntFlag):
    """What is asked for beside the command."""

    MAY_TRIM = 1
    FUA = 2
    REQ_ONE = 4
    FAST_ZERO = 8


class Fua(IntEnum):
    """What a script does for a write that shall be durable."""

    NONE = 0
    EMULATE = 1  # a flush behind it
    NATIVE = 2


class Cache(IntEnum):
    """What a script does to read ahead."""

    NONE = 0
    EMULATE = 1  # reads
    NATIVE = 2


class ExtentType(IntFlag):
    """Kinds of extents."""

    HOLE = 1
    ZERO = 2


class Here(threading.local):
    """What the calling thread works for. ``error`` is what `set_error` was given, or 0."""

    error: int = 0
    client: Client | None = None
    export_name: str | None = None


here = Here()


def install() -> None:
    """Have ``import nbdkit`` find it."""
    if NAME not in sys.modules:
        sys.modules[NAME] = _made()


def _made() -> ModuleType:
    module = ModuleType(NAME, "What scripts ask of the server, as nbdkit has it.")
    families: list[tuple[str, type[IntEnum] | type[IntFlag]]] = [
        ("THREAD_MODEL", ThreadModel),
        ("FLAG", Flag),
        ("FUA", Fua),
        ("CACHE", Cache),
        ("EXTENT", ExtentType),
    ]
    for prefix, family in families:
        for member in family:
            setattr(module, f"{prefix}_{member.name}", int(member))
    for function in _FUNCTIONS:
        setattr(module, function.__name__, function)
    return module


# What scripts may call


def debug(msg: str) -> None:
    """A line of the log, with -v."""
    if not isinstance(msg, str):
        raise TypeError(f"argument must be str, not {type(msg).__name__}")
    log.debug("%s", msg)


def export_name() -> str:
    """What the client asked for."""
    if here.export_name is None:
        raise RuntimeError("nbdkit.export_name failed")
    return here.export_name


def set_error(err: int) -> None:
    """The errno of the exception that is to be raised."""
    here.error = index(err)  # as C takes an int


def shutdown() -> None:
    """End the server, in order; returns at once. Asking again does not cut that short."""
    if not (ENDING.ask() or ENDING.has_begun):
        os.kill(os.getpid(), signal.SIGTERM)  # it is only about to start


def disconnect(force: bool) -> None:
    """Drop the client: now, or when what it has asked for is answered."""
    _client().disconnect(bool(force))


def stdio_safe() -> bool:
    """Whether standard input is for scripts: never, it may be the client's."""
    return False


def nanosleep(sec: int, nsec: int) -> None:
    """Sleep."""
    if sec < 0 or nsec < 0 or sec > parsing.SECONDS_MAX:
        raise ValueError("sleep time out of range")
    time.sleep(sec + nsec / 1e9)


def is_tls() -> bool:
    """Whether the client came over TLS."""
    return _client().is_encrypted


def peer_pid() -> int:
    """The process of a client on a Unix socket."""
    return _known(_client().process, "peer_pid")


def peer_uid() -> int:
    """Its user."""
    return _known(_client().user, "peer_uid")


def peer_gid() -> int:
    """Its group."""
    return _known(_client().group, "peer_gid")


def peer_tls_dn() -> str:
    """The subject of the client's certificate; '' if it showed none."""
    return _client().certificate_subject


def peer_tls_issuer_dn() -> str:
    """Who issued the client's certificate; '' if it showed none."""
    return _client().certificate_issuer


def _client() -> Client:
    if here.client is None:
        raise RuntimeError("nbdkit: there is no client in this thread")
    return here.client


def _known(number: int | None, what: str) -> int:
    if number is None:
        raise RuntimeError(f"nbdkit.{what} failed")
    return number


_FUNCTIONS = (
    debug,
    export_name,
    set_error,
    shutdown,
    disconnect,
    stdio_safe,
    nanosleep,
    is_tls,
    peer_pid,
    peer_uid,
    peer_gid,
    peer_tls_dn,
    peer_tls_issuer_dn,
    parsing.parse_size,
    parsing.parse_bool,
    parsing.parse_delay,
    parsing.parse_probability,
)
