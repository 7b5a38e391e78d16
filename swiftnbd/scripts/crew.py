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
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, TypeVar

SPREAD_SECONDS: Final = 0.001  # that calls may wait for one thread if there could be more
REPORT_SECONDS: Final = 0.001  # that results may wait for others of the same go

T = TypeVar("T")


class Call:
    """``work(*arguments)``, in a thread; then ``done`` is called with this, in the event loop.

    ``given_up``: it is not to happen any more, unless it has begun.
    """

    __slots__ = ("arguments", "done", "error", "given_up", "result", "work")

    def __init__(
        self, done: Callable[["Call"], None], work: Callable[..., Any], *arguments: Any
    ) -> None:
        self.done, self.work, self.arguments = done, work, arguments
        self.result: Any = None
        self.error: BaseException | None = None
        self.given_up = False


class Crew:
    """Up to ``count`` threads, made when they are needed. Calls begin in their order.

    Each thread calls ``enter`` before the calls of a handle: see `put`.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[[], None], Call] | None] = deque()
        self._idle: list[Any] = []  # locks that threads wait for
        self._threads: list[threading.Thread] = []
        self._spreading: asyncio.TimerHandle | None = None

    def put(self, enter: Callable[[], None], calls: Sequence[Call]) -> None:
        """Have them done. For the event loop's thread."""
        self._waiting.extend([(enter, call) for call in calls])
        self._wake()
        if self._count > 1 and self._spreading is None and len(self._waiting) > 1:
            self._spreading = self._loop.call_later(SPREAD_SECONDS, self._spread)

    async def call(self, enter: Callable[[], None], work: Callable[..., T], *arguments: Any) -> T:
        """The result. Who is cancelled waits until nothing of it can happen any more."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(call: Call) -> None:
            if call.error is None:
                future.set_result(call.result)
            else:
                future.set_exception(call.error)

        call = Call(done, work, *arguments)
        self.put(enter, (call,))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            call.given_up = True
            await asyncio.wait([future])
            future.exception()  # seen: nobody is left to be told
            raise

    def stop(self) -> None:
        """End the threads when all is done that was put in before."""
        if self._spreading is not None:
            self._spreading.cancel()
        for _ in self._threads:
            self._waiting.append(None)
            self._wake()

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

    def _spread(self) -> None:
        self._spreading = None
        for _ in range(len(self._waiting)):
            self._wake()

    # In the threads

    def _serve(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        finished: list[Call] = []
        began = perf_counter()
        while True:
            try:
                job = self._waiting.popleft()
            except IndexError:
                self._report(finished)
                finished = []
                self._idle.append(lock)
                if self._waiting and self._is_still_idle(lock):
                    continue
                lock.acquire()
                began = perf_counter()
                continue
            if job is None:
                self._report(finished)
                return
            enter, call = job
            enter()
            try:
                call.result = None if call.given_up else call.work(*call.arguments)
            except BaseException as error:
                call.error = error
            finished.append(call)
            del job, call
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

    def _report(self, finished: list[Call]) -> None:
        if finished:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                self._loop.call_soon_threadsafe(_done, finished)


def _done(finished: list[Call]) -> None:
    for call in finished:
        call.done(call)
