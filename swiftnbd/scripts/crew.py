# SPDX-License-Identifier: MIT
"""Threads that call a script: all that waits is done in one go, so that a change of threads is paid
once for many calls.

One thread is woken for what is put in during one turn of the event loop. Where there may be several
(`ThreadModel.PARALLEL`), the others are woken if something still waits a moment later: calls that
take no time are fastest in one thread, as only one can have the interpreter, and those that take
time do not wait for each other.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, TypeVar

from swiftnbd.api.device import Pending

SPREAD_SECONDS: Final = 0.001  # that calls may wait for one thread if there could be more
REPORT_SECONDS: Final = 0.001  # that results may wait for others of the same go

T = TypeVar("T")
# A call: what the thread calls first, who is told the outcome, the work and its arguments
_Call = tuple[Callable[[], None], Pending, Callable[..., Any], tuple[Any, ...]]
# What it came to: the work's result, or what it raised
_Outcome = tuple[Pending, Any, BaseException | None]


class _Awaited(Pending):
    """A call that a coroutine waits for."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        super().__init__()
        self.future = future

    def done(self, result: Any = None, error: BaseException | None = None) -> None:
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Crew:
    """Up to ``count`` threads, made when they are needed. Calls begin in their order."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Call | None] = deque()
        self._idle: list[Any] = []  # locks that threads wait for
        self._threads: list[threading.Thread] = []
        self._put_in = 0  # calls, ever
        self._waking: asyncio.Handle | None = None
        self._spreading: asyncio.TimerHandle | None = None

    def put(
        self, enter: Callable[[], None], pending: Pending, work: Callable[..., Any], *arguments: Any
    ) -> None:
        """Have a thread call ``enter`` and then ``work``. For the event loop's thread."""
        self._waiting.append((enter, pending, work, arguments))
        self._put_in += 1
        if self._waking is None:
            self._waking = self._loop.call_soon(self._wake_for_all)

    async def call(self, enter: Callable[[], None], work: Callable[..., T], *arguments: Any) -> T:
        """The result. Who is cancelled waits until nothing of it can happen any more."""
        future: asyncio.Future[T] = self._loop.create_future()
        pending = _Awaited(future)
        self.put(enter, pending, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            pending.is_wanted = False
            await asyncio.wait([future])
            future.exception()  # seen: nobody is left to be told
            raise

    def stop(self) -> None:
        """End the threads when all is done that was put in before."""
        if self._waking is not None:
            self._waking.cancel()
            self._wake_for_all()
        if self._spreading is not None:
            self._spreading.cancel()
        for _ in self._threads:
            self._waiting.append(None)
            self._wake()

    def _wake_for_all(self) -> None:
        """For all that was put in during this turn of the event loop."""
        self._waking = None
        self._wake()
        if self._count > 1 and self._spreading is None and len(self._waiting) > 1:
            self._spread_later()

    def _wake(self) -> None:
        try:
            lock = self._idle.pop()
        except IndexError:
            if len(self._threads) < self._count:
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        else:
            lock.release()

    def _spread_later(self) -> None:
        self._spreading = self._loop.call_later(SPREAD_SECONDS, self._spread, self._put_in)

    def _spread(self, put_in: int) -> None:
        """Wake others, if any of so many calls still waits; later ones have more time."""
        self._spreading = None
        waiting = len(self._waiting)
        if self._put_in - waiting < put_in:
            for _ in range(waiting):
                self._wake()
        elif waiting:
            self._spread_later()

    # In the threads

    def _serve(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        finished: list[_Outcome] = []
        began = perf_counter()
        while True:
            try:
                call = self._waiting.popleft()
            except IndexError:
                self._report(finished)
                finished = []
                self._idle.append(lock)
                if self._waiting and self._is_still_idle(lock):
                    continue
                lock.acquire()
                began = perf_counter()
                continue
            if call is None:
                self._report(finished)
                return
            finished.append(_carried_out(call))
            del call
            if perf_counter() - began > REPORT_SECONDS:
                self._report(finished)
                finished, began = [], perf_counter()

    def _is_still_idle(self, lock: Any) -> bool:
        """Whether nobody has woken this thread meanwhile; then it is idle no more."""
        try:
            self._idle.remove(lock)
        except ValueError:
            return False
        return True

    def _report(self, finished: list[_Outcome]) -> None:
        if finished:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                self._loop.call_soon_threadsafe(_done, finished)


def _carried_out(call: _Call) -> _Outcome:
    """What a call came to. What nobody wants any more does not happen."""
    enter, pending, work, arguments = call
    result, failure = None, None
    try:
        if pending.is_wanted:
            enter()
            result = work(*arguments)
    except BaseException as error:
        failure = error
    return pending, result, failure


def _done(finished: list[_Outcome]) -> None:
    for pending, result, error in finished:
        pending.done(result, error)
