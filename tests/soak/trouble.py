# SPDX-License-Identifier: MIT
"""Trouble at random: Swift's servers stop and die, the server stands still, connections are cut.

The seed decides what is done, to whom, when and for how long. What the programs make of it is
a matter of microseconds, so a seed replays the trouble, and its outcome most of the time.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.soak.diary import Diary
from tests.support.server_process import ServerProcess
from tests.support.swift_aio import RealSwift
from tests.support.swift_conf import ROLES

PAUSE_SECONDS_MAX = 1.5  # between two events: something has to be done in between


class SwiftTrouble:
    """Hurts one Swift, and heals it. ``long_seconds``: how long one of its servers is away."""

    def __init__(self, swift: RealSwift, chance: random.Random, diary: Diary) -> None:
        self._swift, self._chance, self._diary = swift, chance, diary
        self._healed_at: dict[str, float] = {}  # when those that are hurt are to be healed
        self._killed: set[str] = set()

    async def hurt(self, seconds_max: float, *, stop_proxy: bool) -> None:
        """Stop or kill a server that is well, for some time."""
        role = self._chance.choices(ROLES, weights=[1, 2, 4, 3])[0]
        kills = self._chance.random() < 0.4 or (role == "proxy" and not stop_proxy)
        seconds = 0.02 + seconds_max * self._chance.random() ** 2  # most outages are short
        if role in self._healed_at:
            return
        what = "killed" if kills else "stopped"
        self._diary.note(f"Swift's {role} server is {what} for {seconds:.2f} s", f"swift {what}")
        self._healed_at[role] = time.monotonic() + seconds
        if kills:
            self._killed.add(role)
            await asyncio.to_thread(self._swift.kill, role)
        else:
            self._swift.signal(role, signal.SIGSTOP)

    async def heal(self, *, all_of_it: bool = False) -> None:
        """Heal what has been ill for long enough, or everything."""
        now = time.monotonic()
        for role, when in list(self._healed_at.items()):
            if all_of_it or when <= now:
                if role in self._killed:
                    await asyncio.to_thread(self._swift.restart, role)
                    self._killed.discard(role)
                else:
                    self._swift.signal(role, signal.SIGCONT)
                del self._healed_at[role]
                self._diary.note(f"Swift's {role} server is well again")

    @property
    def next_seconds(self) -> float:
        """How long until somebody is to be healed."""
        return min(self._healed_at.values(), default=float("inf")) - time.monotonic()


@dataclass
class Nature:
    """How bad it is. ``seconds_max``: of an outage of one of Swift's servers."""

    seconds_max: float
    stop_proxy: bool  # a proxy that wakes up may carry out a DELETE that was given up long ago


async def make_trouble(
    nature: Nature,
    seconds: float,
    trouble: SwiftTrouble,
    chance: random.Random,
    diary: Diary,
    server: ServerProcess,
    cut: Callable[[random.Random], Awaitable[None]] | None = None,
) -> None:
    """For so many seconds; what is ill at the end stays so. ``cut`` cuts a connection."""
    end = time.monotonic() + seconds
    stopped_until = 0.0
    try:
        while (now := time.monotonic()) < end:
            pause = min(chance.uniform(0.05, PAUSE_SECONDS_MAX), end - now)
            await asyncio.sleep(max(0.0, min(pause, trouble.next_seconds)))
            await trouble.heal()
            if stopped_until and time.monotonic() >= stopped_until:
                server.process.send_signal(signal.SIGCONT)
                stopped_until = 0.0
            event = chance.choices(["swift", "cut", "pause"], [5, 2, 1])[0]
            if event == "swift":
                await trouble.hurt(nature.seconds_max, stop_proxy=nature.stop_proxy)
            elif event == "cut" and cut is not None:
                await cut(chance)
            elif event == "pause" and not stopped_until:
                seconds_stopped = chance.uniform(0.02, 1.5)
                diary.note(f"the server stands still for {seconds_stopped:.2f} s", "server stopped")
                server.process.send_signal(signal.SIGSTOP)
                stopped_until = time.monotonic() + seconds_stopped
    finally:
        if stopped_until:
            with suppress(ProcessLookupError):
                server.process.send_signal(signal.SIGCONT)
