# SPDX-License-Identifier: MIT
"""Which process holds a lock, told so that another one on the same machine can see it is dead.

A process number alone says nothing: it is another process's after a restart, on another machine
and in another container. So the claim says the boot, the name space of process numbers and the
moment at which the process began. In doubt a process is alive.
"""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Process:
    """``host`` by name, ``boot`` and ``space`` as Linux numbers them, ``started`` in its ticks."""

    host: str
    boot: str
    space: str
    pid: int
    started: int

    @property
    def is_sound(self) -> bool:
        """Whether it can be asked for: others may have written it."""
        names = (self.host, self.boot, self.space)
        is_number = isinstance(self.pid, int) and isinstance(self.started, int)
        return all(isinstance(each, str) for each in names) and is_number and 0 < self.pid < 1 << 31

    def is_dead(self) -> bool:
        """Whether it ran here, since this boot, and certainly does no more."""
        here = current_process()
        if here is None or (here.host, here.boot, here.space) != (self.host, self.boot, self.space):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it is there, and another user's
        stat = _stat(self.pid)
        if stat is None:
            return False  # hidden from us, or just gone: the next look will tell
        state, threads, started = stat
        # a zombie's other threads are gone if it counts only itself
        return started != self.started or (state in "ZX" and threads <= 1)


def current_process() -> Process | None:
    """This process; None where Linux does not say enough to tell it from all others."""
    with suppress(OSError):
        stat = _stat(os.getpid())
        with open(_BOOT_ID, encoding="utf-8") as file:  # which is loaded, whoever we are by now
            boot = file.read().strip()
        space = os.readlink("/proc/self/ns/pid")
        if stat is not None and boot:
            return Process(socket.gethostname(), boot, space, os.getpid(), stat[2])
    return None


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, number of threads and start time of a process; None if it cannot be looked at."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name in parentheses may contain anything
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[17]), int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
