# SPDX-License-Identifier: MIT
"""fio as a second checker: jobs with verification, beside our own clients, on the same disk."""

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.clients import find

JOBS = 3
_END_SECONDS_MAX = 200.0
_BAD = ("verify: bad", "verify failed", "crc32c: verify")


@dataclass
class Fio:
    """One fio run on ``[offset, offset + size)`` of an export, in `JOBS` parts."""

    uri: str
    offset: int
    size: int
    workdir: Path
    seed: int

    async def start(self, *, seconds: float = 0, only_verify: bool = False) -> None:
        """Write, again and again for ``seconds``, and read back what was written.

        ``only_verify``: only read what such a run wrote before.
        """
        self.workdir.mkdir(exist_ok=True)
        part = self.size // JOBS // 4096 * 4096
        options = [
            *("--name=soak", "--ioengine=nbd", f"--uri={self.uri}", "--rw=randwrite"),
            *(f"--offset={self.offset}", f"--size={part}", f"--offset_increment={part}"),
            *(f"--numjobs={JOBS}", "--bsrange=512-64k", "--iodepth=8", "--fsync=64"),
            *("--end_fsync=1", "--verify=crc32c", "--verify_fatal=1", f"--randseed={self.seed}"),
            *("--verify_state_save=0", "--eta=never"),
            *(("--time_based", f"--runtime={seconds:.0f}") if seconds else ()),
            *(("--verify_only",) if only_verify else ("--do_verify=1",)),
        ]
        self._process = await asyncio.create_subprocess_exec(
            find("fio"),
            *options,
            cwd=self.workdir,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._output = asyncio.create_task(self._process.communicate())

    async def finish(self, *, must_succeed: bool) -> None:
        """Wait for its end. If its server was killed it fails, but never over wrong bytes."""
        async with asyncio.timeout(_END_SECONDS_MAX):
            output, _ = await asyncio.shield(self._output)
        text = output.decode(errors="replace")
        assert not any(bad in text for bad in _BAD), f"fio read wrong bytes:\n{text}"
        assert not must_succeed or self._process.returncode == 0, f"fio failed:\n{text}"

    async def kill(self) -> None:
        """End it at once, with the processes of its jobs."""
        if not self._output.done():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.wait([self._output])
