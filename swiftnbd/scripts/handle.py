# SPDX-License-Identifier: MIT
"""What a script opened for one connection: what it can do, and its callbacks with all that nbdkit
does around them. Called in the script's threads."""

from collections.abc import Callable
from errno import EINVAL, ENOTSUP
from functools import partial
from sys import getrefcount
from typing import Any, Final

from swiftnbd.api.client import Client
from swiftnbd.api.device import PAYLOAD_BYTES_MAX, Extent
from swiftnbd.buffers import Buffer, hole
from swiftnbd.errors import ExportError
from swiftnbd.scripts.module import Cache, ExtentType, Flag, Fua, here
from swiftnbd.scripts.script import UNSUPPORTED, Script

CHUNK_BYTES: Final = 32 * 1024 * 1024  # of zeros that are written and of what is read ahead
TEXT_BYTES_MAX: Final = 4096
PREFERRED_MAX: Final = 32 * 1024 * 1024
ANY_SIZE: Final = (1 << 32) - 1


class Handle:
    """One call of `open`, until `close`. The constructor raises `ExportError`.

    All that a client is told is asked for at once: ``size``, ``block_sizes`` (least, best and
    most; None for no answer) and what it can do.
    """

    def __init__(self, script: Script, client: Client | None, name: str, read_only: bool) -> None:
        self._script = script
        self._client, self._name = client, name
        self.enter()
        script.optional("preconnect", read_only)
        if not name:
            name = script.optional("default_export", read_only, _is_tls(client), default="")
            if not isinstance(name, str):
                raise script.failure("default_export", "it did not return a string")
            self._name = here.export_name = name
        self._handle = script.call("open", read_only)
        try:
            self._ask(read_only)
        except BaseException:
            self.close()
            raise
        self._is_first_version = script.api_version == 1
        self._pread: Callable[..., Any] = script.callback("pread") or _no_pread
        self._pwrite = script.callback("pwrite")

    def enter(self) -> None:
        """Be whom this thread works for."""
        here.client, here.export_name = self._client, self._name

    def close(self) -> None:
        """Its end. That it fails is nobody's but the log's, as in nbdkit."""
        self._script.optional("close", self._handle)
        self._handle = None

    # What it can do

    def _ask(self, read_only: bool) -> None:
        call = self._script.optional
        self.size = self._number("get_size")
        self.block_sizes = self._block_sizes()
        self.can_write = not read_only and self._can("can_write", "pwrite")
        self.can_zero = self.can_write and self._can("can_zero", "zero")
        self.can_fast_zero = self.can_write and self._can_fast_zero()
        self.can_trim = self.can_write and self._can("can_trim", "trim")
        self.can_flush = self._can("can_flush", "flush")
        has_flush = self._script.callback("flush") is not None
        fua = call("can_fua", self._handle, default=Fua.EMULATE if has_flush else Fua.NONE)
        self.fua = Fua(self._one_of("can_fua", fua, Fua)) if self.can_write else Fua.NONE
        self.is_rotational = self._can("is_rotational")
        self.multi_conn = self._can("can_multi_conn")
        has_cache = self._script.callback("cache") is not None
        cache = call("can_cache", self._handle, default=Cache.NATIVE if has_cache else Cache.NONE)
        self.cache_kind = Cache(self._one_of("can_cache", cache, Cache))
        self.can_extents = self._can("can_extents", "extents")
        description = call("export_description", self._handle, default="")
        if not isinstance(description, str):
            raise self._script.failure("export_description", "it did not return a string")
        self.description = description if is_sendable(description) else ""

    def _can(self, name: str, callback: str = "") -> bool:
        """What it answers, for which only True is yes; else whether it has the callback."""
        if self._script.callback(name) is not None:
            return self._script.call(name, self._handle) is True
        return bool(callback) and self._script.callback(callback) is not None

    def _can_fast_zero(self) -> bool:
        if self._script.callback("can_fast_zero") is not None:
            return self._can("can_fast_zero")
        return not self.can_zero  # to be told so at once is fast

    def _number(self, name: str) -> int:
        number = self._script.call(name, self._handle)
        if not isinstance(number, int) or not 0 <= number < 1 << 63:
            raise self._script.failure(name, f"it returned {number!r}, which is no size")
        return number

    def _one_of(self, name: str, number: Any, kinds: type[Fua] | type[Cache]) -> int:
        if number not in list(kinds):
            raise self._script.failure(name, f"it returned {number!r}")
        return int(number)

    def _block_sizes(self) -> tuple[int, int, int] | None:
        answer = self._script.optional("block_size", self._handle)
        if answer is None or answer == (0, 0, 0):
            return None
        try:
            least, best, most = (int(each) for each in answer)
        except (TypeError, ValueError):
            raise self._script.failure("block_size", f"it returned {answer!r}") from None
        for rule, holds in {
            "the minimum is a power of 2 from 1 to 64K": _is_power(least) and least <= 65536,
            "the preferred one is a power of 2 from 512 to 32M": _is_power(best)
            and 512 <= best <= PREFERRED_MAX,
            "the maximum is -1 or a multiple of the minimum": most == ANY_SIZE
            or not most % max(least, 1),
            "the minimum is at most the preferred, and that at most the maximum": least
            <= best
            <= most,
        }.items():
            if not holds:
                raise self._script.failure("block_size", f"{answer!r}, but {rule}")
        # a device's are multiples of the least one, and payloads have a limit
        return least, best, max(best, min(most, PAYLOAD_BYTES_MAX) // least * least)

    # Requests

    def read(self, length: int, offset: int) -> tuple[Buffer]:
        """So many bytes, in one piece, which never change afterwards."""
        if self._is_first_version:
            return (self._read_v1(length, offset),)
        here.error = 0
        data = bytearray(length)
        view = memoryview(data)
        try:
            self._pread(self._handle, view, offset, 0)
        except BaseException as error:
            raise self._script.raised("pread", error) from None
        # A script that kept it, or a part of it, must not change what is being sent: views of parts
        # refer to the bytes, as do we and the call that counts.
        try:
            view.release()
        except BufferError:
            return (bytes(data),)
        return (data,) if getrefcount(data) == 2 else (bytes(data),)

    def _read_v1(self, length: int, offset: int) -> bytes:
        answer = self._script.call("pread", self._handle, length, offset)
        try:
            data = bytes(memoryview(answer).cast("B")[:length])
        except TypeError:
            raise self._script.failure("pread", "it did not return a buffer") from None
        if len(data) < length:
            raise self._script.failure("pread", f"it returned {len(data)} bytes of {length}")
        return data

    def pwrite(self, data: Buffer, offset: int, flags: int = 0) -> None:
        """Write them."""
        if flags:
            self._with_fua(flags, partial(self._write, data, offset))
        else:
            self._write(data, offset, 0)

    def _write(self, data: Buffer, offset: int, flags: int) -> None:
        here.error = 0
        if self._pwrite is None:
            raise self._script.failure("pwrite", "pwrite not implemented")
        view = memoryview(data).toreadonly()
        try:
            if self._is_first_version:
                self._pwrite(self._handle, view, offset)
            else:
                self._pwrite(self._handle, view, offset, flags)
        except BaseException as error:
            raise self._script.raised("pwrite", error) from None

    def flush(self) -> None:
        """What was written is durable."""
        flags = () if self._script.api_version == 1 else (0,)
        self._script.call("flush", self._handle, *flags)

    def trim(self, length: int, offset: int, flags: int = 0) -> None:
        """The range is not needed."""
        v1 = self._script.api_version == 1

        def trim(flags: int) -> None:
            more = () if v1 else (flags,)
            self._script.call("trim", self._handle, length, offset, *more)

        self._with_fua(flags, trim)

    def zero(self, length: int, offset: int, flags: int) -> None:
        """The range reads as zeros; written if the script can do no better."""
        self._with_fua(flags, partial(self._zero, length, offset))

    def _zero(self, length: int, offset: int, flags: int) -> None:
        if self.can_zero and self._zero_natively(length, offset, flags):
            return
        if flags & Flag.FAST_ZERO:
            raise ExportError(ENOTSUP, f"{self._script.shown}: zeros are written")
        end = offset + length
        while offset < end:
            here_bytes = min(CHUNK_BYTES, end - offset)
            self._write(hole(here_bytes), offset, flags & Flag.FUA)
            offset += here_bytes

    def _zero_natively(self, length: int, offset: int, flags: int) -> bool:
        """False if the script has no way, or says so by its error: raised or not."""
        zero = self._script.callback("zero")
        if zero is None:
            return False
        v1 = self._script.api_version == 1
        here.error, failure = 0, None
        try:
            zero(self._handle, length, offset, bool(flags & Flag.MAY_TRIM) if v1 else flags)
        except BaseException as error:
            failure = error
        if here.error in UNSUPPORTED:
            return False
        if failure is not None:
            raise self._script.raised("zero", failure) from None
        return True

    def _with_fua(self, flags: int, work: Callable[[int], None]) -> None:
        """Do it with the flags that the script knows, and flush where it knows no FUA."""
        if flags & Flag.FUA and self.fua is not Fua.NATIVE:
            work(flags & ~Flag.FUA)
            self.flush()
        else:
            work(flags)

    def cache(self, length: int, offset: int) -> None:
        """Read ahead."""
        if self.cache_kind is Cache.NATIVE:
            self._script.call("cache", self._handle, length, offset, 0)
            return
        end = offset + length
        while offset < end:
            here_bytes = min(CHUNK_BYTES, end - offset)
            self.read(here_bytes, offset)
            offset += here_bytes

    def extents(self, length: int, offset: int, count: int) -> list[Extent]:
        """What lies in the range, from its start; at most so many."""
        if not self.can_extents or self._script.callback("extents") is None:
            return [Extent(length, hole=False, zero=False)]
        answer = self._script.call("extents", self._handle, length, offset, 0)
        here.error = 0
        try:
            return self._extents(answer, length, offset, count)
        except ExportError:
            raise
        except BaseException as error:
            raise self._script.raised("extents", error) from None

    def _extents(self, answer: Any, length: int, offset: int, count: int) -> list[Extent]:
        found: list[Extent] = []
        position, end, following = offset, offset + length, None
        for each in answer:
            if not isinstance(each, tuple) or len(each) != 3:
                raise self._script.failure("extents", "it did not return tuples of three")
            start, bytes_, kind = each
            if not 0 <= start < 1 << 64 or not 0 <= bytes_ < 1 << 64 or not 0 <= kind < 1 << 32:
                raise self._script.failure("extents", f"{each!r} is out of range")
            if following not in (None, start):
                raise self._script.failure("extents", "they are not one behind the other")
            following = start + bytes_
            if following <= position:
                continue  # empty, or before the range
            if start > position:
                raise self._script.failure("extents", f"the first one begins after {offset}")
            found.append(
                Extent(
                    min(following, end) - position,
                    hole=bool(kind & ExtentType.HOLE),
                    zero=bool(kind & ExtentType.ZERO),
                )
            )
            position = following
            if position >= end or len(found) == count:
                break
        if following is None:
            raise self._script.failure("extents", "there are none")
        if not found:
            raise self._script.failure("extents", "there is none at the start", EINVAL)
        return found


def _no_pread(*_: object) -> None:
    raise AssertionError("the script was checked to have it")


def _is_tls(client: Client | None) -> bool:
    return client is not None and client.is_encrypted


def is_sendable(text: str) -> bool:
    """Whether NBD has a way to say it: UTF-8, and no more than its longest string."""
    return len(text.encode(errors="replace")) <= TEXT_BYTES_MAX and text.isprintable()


def _is_power(number: int) -> bool:
    return number > 0 and not number & (number - 1)
