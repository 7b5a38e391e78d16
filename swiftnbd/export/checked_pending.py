# SPDX-License-Identifier: MIT
"""Requests that other people's devices take on, as `swiftnbd.api.device.Pending` has it.

They are answered once, in the event loop's thread and after they were taken on, whatever such a
device does; it is told of what it does wrong.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from errno import EIO
from typing import Any

from swiftnbd.api.device import Pending
from swiftnbd.blame import said
from swiftnbd.buffers import Buffer
from swiftnbd.errors import ExportError

log = logging.getLogger(__name__)


class CheckedPending(Pending):
    """A request of ``inner`` that the device has; ``call`` is what it was asked, for people.

    ``wrong`` says what is wrong with the pieces it gives, or ''.
    """

    __slots__ = ("_call", "_inner", "_is_done", "_loop", "_thread", "_wrong")

    def __init__(self, inner: Pending, call: str, wrong: Callable[[object], str]) -> None:
        self._inner, self._call, self._wrong = inner, call, wrong
        self._is_done = False
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    @property
    def is_wanted(self) -> bool:  # type: ignore[override]
        return self._inner.is_wanted and not self._is_done

    def begin(self, ask: Callable[..., bool], *arguments: Any) -> bool:
        """Whether the device has taken it on. One that may have been, and went wrong, has failed:
        to ask for it in another way could do it twice."""
        error: Exception | None = None
        try:
            is_taken = ask(*arguments, self)
        except Exception as caught:
            log.debug("%s failed", self._call, exc_info=caught)
            error = ExportError(EIO, f"{self._call} failed: {said(caught)}")
        else:
            if is_taken is True or (is_taken is False and not self._is_done):
                return is_taken
            error = ExportError(EIO, f"{self._call} has to return True, or False and do nothing")
        if not self._is_done:
            self._finish(None, error)
        return True

    def done(
        self, pieces: Sequence[Buffer] | None = None, error: BaseException | None = None
    ) -> None:
        if self._is_done:
            log.error("%s: done is called again, or after it failed", self._call)
            return
        if error is None and self._inner.is_wanted and (wrong := self._wrong(pieces)):
            error = ExportError(EIO, f"{self._call} {wrong}")
        self._finish(pieces, error)

    def _finish(self, pieces: Sequence[Buffer] | None, error: BaseException | None) -> None:
        """Later, when whoever asked knows that it was taken on."""
        self._is_done = True
        answer = self._inner.done
        if threading.get_ident() == self._thread:
            self._loop.call_soon(answer, pieces, error)
        else:
            self._loop.call_soon_threadsafe(answer, pieces, error)
