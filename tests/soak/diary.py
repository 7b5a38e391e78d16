# SPDX-License-Identifier: MIT
"""What a soak has done: counted for its account, told line by line if it fails."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.server_process import ServerProcess
from tests.support.swift_aio import RealSwift

SECONDS = float(os.environ.get("SOAK_SECONDS", "0"))  # 0: this is no long run
# A short run is the same each time, so that its end says something of the change it is run for.
SEED = os.environ.get("SOAK_SEED") or (
    str(random.SystemRandom().randrange(1 << 32)) if SECONDS else "3"
)

_LINES_SHOWN = 60
_LOG_LINES_SHOWN = 25
_LOGS_KEPT = 2  # servers whose whole log is evidence


@dataclass
class Diary:
    """What was done, when, and how often; ``servers`` are those that were started, in order."""

    began: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    servers: list[ServerProcess] = field(default_factory=list)

    def note(self, what: str, kind: str = "") -> None:
        """One more line; ``kind`` is counted."""
        self.lines.append(f"{time.monotonic() - self.began:9.3f} {what}")
        if kind:
            self.counts[kind] += 1

    def account(self) -> list[str]:
        """What was counted, a line each."""
        return [f"{kind:40} {count:14,}" for kind, count in sorted(self.counts.items())]

    def evidence(self, swift: RealSwift) -> str:
        """All of it, and what the servers said."""
        logs = [f"--- a server's log\n{each.log()}" for each in self.servers[-_LOGS_KEPT:]]
        return "\n".join([*self.lines, *logs, "--- Swift", swift.logs()])

    def last_lines(self) -> list[str]:
        """What was done in the end, and what the last server said."""
        log = self.servers[-1].stderr.lines[-_LOG_LINES_SHOWN:] if self.servers else []
        return [*self.lines[-_LINES_SHOWN:], "the server's log:", *log]


@contextmanager
def soaking(what: str, seconds: float, swift: RealSwift, workdir: Path) -> Iterator[Diary]:
    """A soak for so long. At its end its account is printed, and if it fails, how to repeat it."""
    diary, evidence = Diary(), workdir / "evidence"
    try:
        yield diary
    except BaseException as error:
        error.add_note("\n".join(diary.last_lines()))
        error.add_note(f"all that was done, and the servers' logs: {evidence}")
        error.add_note(f"to repeat it: SOAK_SEED={SEED} SOAK_SECONDS={seconds:.0f} tox -e soak")
        raise
    finally:
        evidence.write_text(diary.evidence(swift))
        took = time.monotonic() - diary.began
        head = f"soak of {what}: seed {SEED}, {seconds:.0f} s asked for, {took:.0f} s taken"
        print(f"\n{head}", *diary.account(), sep="\n  ")
