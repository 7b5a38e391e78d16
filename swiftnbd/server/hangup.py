# SPDX-License-Identifier: MIT
"""SIGHUP: a terminal that is gone, or somebody who wants the configuration to be read again."""

import asyncio
import os
from collections.abc import Callable

# When the process that had the terminal ends, the kernel sends the signal first and takes the
# terminal away then.
SETTLE_SECONDS = 0.2


class Hangup:
    """What SIGHUP means for a process that had a terminal, or none, when this was made."""

    def __init__(self, reload: Callable[[], None] | None, stop: asyncio.Event) -> None:
        """``reload`` is called, or ``stop`` set."""
        self._reload = reload
        self._stop = stop
        self._had_terminal = has_terminal()

    def came(self) -> None:
        """The signal has come. To lose the terminal while ending cuts nothing short."""
        if self._stop.is_set():
            return
        asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._act)

    def _act(self) -> None:
        if self._reload is None or (self._had_terminal and not has_terminal()):
            self._stop.set()
        elif not self._stop.is_set():
            self._reload()


def has_terminal() -> bool:
    """Whether this process has a controlling terminal that has not hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
