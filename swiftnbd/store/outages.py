# SPDX-License-Identifier: MIT
"""Outages: who waits while a Swift does not answer, how often it is asked, and what the log says.

Each container has a circuit. Closed, everybody may try; open, one after another::

               a try failed, or hangs, and nothing was answered since it began
    CLOSED ------------------------------------------------------------------> OPEN
      ^                                                                         |
      '------------------------------ an answer --------------------------------'

An open circuit lets a try through now and then (the requests themselves are the probes, so that
what is asked is what is wanted), and all circuits of a Swift share a pace: it is never asked more
often than that, however many containers and requests wait. A try that hangs holds up no other.

A circuit is one container's, because a container may be out of reach (its server hangs) while its
neighbours are well. They do not wait for it. But when one closes, all others are asked at once: the
whole Swift may be back.

What is no outage: an answer that says no (403, 404, 413, 507, ...), and one that says "not now" to
this request alone (429, 498: a limit of rate): see `swiftnbd.errors.StoreBusy`.

The log has one WARNING for an outage that lasts, whichever containers it hits, and one INFO when
the last circuit has closed. What begins again soon after is told at INFO: something flaps.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass

from swiftnbd.errors import StoreBusy, StoreUnavailable, afresh
from swiftnbd.units import counted

NAMES_SHOWN_MAX = 3  # containers in one log line

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Probing:
    """How a Swift in an outage is asked. Seconds.

    ``first``, ``longest``: from one try to the next of one container; it doubles. The longest is
    below a second, so that people see a recovery at once. ``gap``: between any two tries.
    ``hangs``: without any answer for so long, an outage has begun; above the 10 s for which a
    healthy proxy waits for a server that hangs before it asks another. ``told``: an outage that
    is over sooner is nobody's business. ``again``: one that begins so soon after the last is no
    news.
    """

    first: float = 0.1
    longest: float = 0.8
    gap: float = 0.1
    hangs: float = 12.0
    told: float = 1.0
    again: float = 60.0


class Circuit:
    """One container's. Get it with `Outages.circuit`."""

    def __init__(self, outages: "Outages", name: str) -> None:
        self.name = name
        self.is_open = False
        self.due = 0.0  # when the next try may be made, by the loop's clock
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.error: StoreUnavailable | None = None  # the last one, while it is open
        self._outages = outages
        self._interval = outages.probing.first
        self._answers = 0

    async def passing(self, seconds: float | None) -> None:
        """Return when a try may be made; raise what is wrong if none may within ``seconds``."""
        if not self.is_open:
            return
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        self._outages.pump()
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn in self.waiting:
                self.waiting.remove(turn)
            elif self.is_open and not turn.cancelled():
                self._outages.pump(self)  # it was our turn: it is somebody else's now
            if isinstance(error, TimeoutError):  # perhaps in the very moment when it closed
                why = self.error or StoreUnavailable(f"{self.name}: no turn to try")
                raise afresh(why) from None
            raise

    @property
    def episode(self) -> int:
        """Tells one outage from the next, for those who count."""
        return self._outages.episode

    @property
    def hangs_seconds(self) -> float:
        """How long a try may be without any answer before `suspect` is to be called."""
        return self._outages.probing.hangs

    def began(self) -> int:
        """A try begins. Hand the result to `suspect` and `failed`."""
        return self._answers

    def answered(self) -> None:
        """A try was answered, whatever the answer."""
        self._answers += 1
        if self.is_open:
            self._close()

    def suspect(self, began: int, error: StoreUnavailable) -> None:
        """A try goes on for long, and nothing else was answered meanwhile."""
        if began == self._answers and not self.is_open:
            self._open(error)

    def failed(self, began: int, error: StoreUnavailable) -> bool:
        """A try has failed; whether the next one has to be waited for with `passing`."""
        if isinstance(error, StoreBusy):
            self.answered()
            return False
        if self.is_open:
            self.error = error
        elif began == self._answers:
            self._open(error)
        if self.is_open and error.retry_after:
            asked = asyncio.get_running_loop().time() + error.retry_after
            self.due = max(self.due, asked)
        return self.is_open

    def held(self) -> None:
        """One more operation has to wait, or to be tried again, because of this outage."""
        self._outages.held += 1

    def gave_up(self) -> None:
        """One of them fails for good."""
        self._outages.failed += 1

    def pass_one(self, now: float) -> None:
        """Let the first who waits try."""
        self._interval = min(self._interval * 2, self._outages.probing.longest)
        self.due = now + self._interval
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def hurry(self) -> None:
        """There is news: try now."""
        self._interval = self._outages.probing.first
        self.due = 0.0

    def _open(self, error: StoreUnavailable) -> None:
        if self._outages.is_closed:
            return
        self.is_open, self.error = True, error
        self._interval = self._outages.probing.first
        self.due = asyncio.get_running_loop().time() + self._interval
        self._outages.opened(self)

    def _close(self) -> None:
        self.is_open, self.error = False, None
        waiting, self.waiting = self.waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
        self._outages.closed(self)


class Outages:
    """The outages of one Swift, which may have several accounts."""

    def __init__(self, probing: Probing | None = None) -> None:
        self.probing = Probing() if probing is None else probing
        self.is_closed = False
        self.episode = 0
        self.held = self.failed = 0  # operations in this episode
        self._open: dict[Circuit, None] = {}  # in the order in which they opened
        self._names: dict[str, None] = {}  # of all containers that this episode hit
        self._due = 0.0  # when the next try of any of them may be made
        self._since = 0.0
        self._told = False
        self._told_at: float | None = None
        self._tell_timer: asyncio.TimerHandle | None = None
        self._pump_timer: asyncio.TimerHandle | None = None

    def circuit(self, name: str) -> Circuit:
        """The circuit of the container ``name``."""
        return Circuit(self, name)

    def close(self) -> None:
        """Nothing more is told. Whoever waits may try at once: nothing is left to wait for."""
        self.is_closed = True
        if self._tell_timer is not None:
            self._tell_timer.cancel()
        for circuit in list(self._open):
            circuit.answered()
        if self._pump_timer is not None:
            self._pump_timer.cancel()

    # For circuits

    def opened(self, circuit: Circuit) -> None:
        """A circuit is open now."""
        loop = asyncio.get_running_loop()
        if not self._open:
            self.episode += 1
            self.held = self.failed = 0
            self._names.clear()
            self._since, self._told = loop.time(), False
            self._tell_timer = loop.call_later(self.probing.told, self._tell)
        self._open[circuit] = None
        self._names[circuit.name] = None

    def closed(self, circuit: Circuit) -> None:
        """A circuit is closed again."""
        del self._open[circuit]
        if not self._open:
            self._end()
            return
        for each in self._open:
            each.hurry()
        self.pump()

    def pump(self, passing_on: Circuit | None = None) -> None:
        """Let through who is due, and see to it that the next one will be.

        ``passing_on``: one whose turn came has left without a try.
        """
        loop = asyncio.get_running_loop()
        if passing_on is not None:
            passing_on.due = self._due = 0.0
        if self._pump_timer is not None:
            self._pump_timer.cancel()
            self._pump_timer = None
        while ready := [circuit for circuit in self._open if circuit.waiting]:
            circuit = min(ready, key=lambda each: each.due)
            now, due = loop.time(), max(circuit.due, self._due)
            if due > now:
                self._pump_timer = loop.call_at(due, self.pump)
                return
            self._due = now + self.probing.gap
            circuit.pass_one(now)

    # The log

    @property
    def _hit(self) -> str:
        names = list(self._names)
        more = len(names) - NAMES_SHOWN_MAX
        return ", ".join(names[:NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")

    def _tell(self) -> None:
        now = asyncio.get_running_loop().time()
        error = next(circuit.error for circuit in self._open)
        is_news = self._told_at is None or now - self._told_at >= self.probing.again
        self._told, self._told_at = True, now
        level = logging.WARNING if is_news else logging.INFO
        log.log(level, "outage of %s: %s; requests wait, and it is asked again", self._hit, error)

    def _end(self) -> None:
        assert self._tell_timer is not None
        self._tell_timer.cancel()
        if self.is_closed:
            return
        seconds = asyncio.get_running_loop().time() - self._since
        if self._told:
            self._told_at = asyncio.get_running_loop().time()
        log.log(
            logging.INFO if self._told else logging.DEBUG,
            "outage of %s is over after %.1f s: %s had to wait, %d of them failed",
            self._hit,
            seconds,
            counted(self.held, "request"),
            self.failed,
        )
