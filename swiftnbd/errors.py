# SPDX-License-Identifier: MIT
"""Every error swiftnbd raises on purpose.

``str(error)`` is a sentence for the person who reads it, with the values that matter. Two
families meet at a connection: a `ProtocolError` closes it, anything with an ``errno`` is
replied to the client (`swiftnbd.protocol.errors` narrows it to what NBD can say).
"""

from copy import copy
from errno import EBUSY, EEXIST, EIO, ENOENT, ENOSPC, EPERM, ESHUTDOWN
from typing import Any, TypeVar

E = TypeVar("E", bound=Exception)


class SwiftnbdError(Exception):
    """Base of all; ``errno`` is what a block device client is told."""

    errno: int = EIO

    def __reduce__(self) -> tuple[Any, ...]:
        """For `copy.copy`: not every one of them is made from its ``args``."""
        return type(self).__new__, (type(self), *self.args), self.__dict__.copy()


def afresh(error: E) -> E:
    """The same error, to be raised by one more who is told of it.

    Each time that one is raised, the frames that it comes through are added to its traceback: as
    long as it is kept they are, with the requests' bytes in them.
    """
    again = copy(error)
    again.__cause__ = error.__cause__
    return again


class ConfigError(SwiftnbdError):
    """A setting, a flag or a file of ours that cannot be used as it is."""


class ProtocolError(SwiftnbdError):
    """The peer broke the NBD protocol beyond repair: close the connection."""


class ExportError(SwiftnbdError):
    """A request on an export that fails with `errno`; the connection stays."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno


class ExportUnusable(SwiftnbdError):
    """This container cannot be served (not set up, or metadata that makes no sense)."""


class Locked(SwiftnbdError):
    """Somebody else holds the container; ``holder`` is their mark, ``HOST:PORT@UNIXTIME``."""

    errno = EBUSY

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


class LockLost(SwiftnbdError):
    """The lock we held is somebody else's now, or nobody's."""

    errno = ESHUTDOWN


class StoreError(SwiftnbdError):
    """The store failed for good: trying again will not help."""


class LeaseOver(StoreError):
    """The lease of our lock is over, so nothing was sent that would change anything."""


class StoreUnavailable(StoreError):
    """The store failed in passing: the same request may succeed later.

    ``retry_after`` is how many seconds the store asked to be left alone, if it did.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreBusy(StoreUnavailable):
    """The store answers, but not to this request now: a limit of rate, or a newer write nearby."""


class CorruptObject(StoreError):
    """An answer whose length or checksum is wrong. Another try may reach a good replica."""


class StoreFull(StoreError):
    """Quota or disk is exhausted."""

    errno = ENOSPC


class AccessRefused(StoreError):
    """The login was refused, or it may not touch this container."""

    errno = EPERM


class ObjectExists(StoreError):
    """``put(if_absent=True)`` found the name taken."""

    errno = EEXIST


class CopyUnsupported(StoreError):
    """The store cannot copy objects by itself."""


class ContainerMissing(StoreError):
    """The container does not exist."""

    errno = ENOENT


class ContainerNotEmpty(StoreError):
    """The container still holds objects, so it cannot be deleted."""
