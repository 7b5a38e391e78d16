# SPDX-License-Identifier: MIT
"""What there is to see of a running server, as plain values: read-only, made when asked for."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import swiftnbd
from swiftnbd.export.base import BaseExport
from swiftnbd.export.block_map import CELLS_MAX
from swiftnbd.export.status import ExportState
from swiftnbd.metrics import StoreTraffic
from swiftnbd.server.history import EXPORTS_PER_TURN, Recorder, RequestsAtWork
from swiftnbd.units import format_seconds

CLIENTS_SHOWN_MAX = 100  # of one answer; how many there are is said in any case


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One connection in the transmission phase."""

    client: str
    export: str
    seconds: float  # since it chose the export
    at_work: int  # requests
    oldest_seconds: float | None  # for how long the oldest of them has been; None if there is none


class NoSuchRange(ValueError):
    """Blocks that an export does not have."""


class Monitor:
    """Watches ``exports`` while they are served. ``connections`` are those there are now."""

    def __init__(
        self,
        exports: Mapping[str, BaseExport],
        connections: Callable[[], Sequence[ConnectionStatus]],
        traffic: StoreTraffic | None = None,
    ) -> None:
        """``traffic`` None: what serves the exports is no Swift."""
        self.exports = exports
        self.connections = connections
        self.traffic = traffic
        self.recorder = Recorder(exports, self.at_work)
        self.is_stopping = False
        self.started_at = time.time()
        self._begin = time.monotonic()
        self._drawing = asyncio.Lock()

    @property
    def trouble(self) -> list[str]:
        """What is wrong, in sentences; the worst first."""
        states = {name: export.status.state for name, export in self.exports.items()}
        found = [
            f"{name}: {sentence}"
            for state, sentence in _SENTENCES.items()
            for name, its in states.items()
            if its is state
        ]
        if self.traffic is not None and (seconds := self.traffic.trouble_seconds) is not None:
            since = format_seconds(seconds)
            found.append(f"Swift has been failing for {since}; what is not stored yet is kept")
        return found

    @property
    def is_healthy(self) -> bool:
        """Whether it is of use to let this server go on: only a lost export needs a restart.

        An outage of the store does not: writes that are not stored yet would be lost.
        """
        return not any(export.status.state is ExportState.LOST for export in self.exports.values())

    async def status(self) -> dict[str, Any]:
        """Everything, but for the histories and maps."""
        connections = self.connections()
        exports = []
        for number, export in enumerate(list(self.exports.values())):
            if number % EXPORTS_PER_TURN == EXPORTS_PER_TURN - 1:
                await asyncio.sleep(0)
            exports.append(self._export(export))
        return {
            "version": swiftnbd.__version__,
            "uptime_seconds": time.monotonic() - self._begin,
            "is_stopping": self.is_stopping,
            "trouble": self.trouble,
            "loop_lag_seconds": self.recorder.lag_seconds,
            "store": self._store(),
            "connections": len(connections),
            "clients": [asdict(each) for each in connections[:CLIENTS_SHOWN_MAX]],
            "exports": exports,
        }

    def at_work(self) -> dict[str, RequestsAtWork]:
        """The requests that are not answered yet, of the exports that have any, by name."""
        found: dict[str, RequestsAtWork] = {}
        for each in self.connections():
            if each.oldest_seconds is not None:
                found.setdefault(each.export, RequestsAtWork()).add(
                    each.at_work, each.oldest_seconds
                )
        return found

    def _store(self) -> dict[str, Any]:
        traffic = self.traffic
        if traffic is None:
            stored = any(each.cache_bytes_max is not None for each in self.exports.values())
            return {"kind": "directory" if stored else "none"}
        return {
            "kind": "swift",
            "trouble_seconds": traffic.trouble_seconds,
            "requests": traffic.requests.total(),
            "under_way": traffic.under_way,
            "retries": traffic.retries,
        }

    def _export(self, export: BaseExport) -> dict[str, Any]:
        status = export.status
        last = self.recorder.history(export.name).last
        return {
            "name": export.name,
            "size_bytes": export.facts.size,
            "object_bytes": export.facts.object_bytes,
            "read_only": export.read_only,
            "state": status.state,
            "connections": status.connections,
            "holder": status.holder,
            "lease_seconds": status.lease_seconds,
            "cache_limit_bytes": export.cache_bytes_max,
            **({} if status.cache is None else asdict(status.cache)),
            "errors": export.counters.errors.total(),
            "now": last,
        }

    def history(self, name: str, since: int) -> dict[str, Any]:
        """The samples of an export after the first ``since``. KeyError if there is none such."""
        history = self.recorder.history(name)
        return {"export": name, "count": history.count, "samples": history.since(since)}

    async def block_map(self, name: str, first: int, end: int | None, cells: int) -> dict[str, Any]:
        """A map of blocks of an export; without any while nobody uses it, since then nothing is
        known of them. One is drawn at a time.

        KeyError if there is no such export, `NoSuchRange`.
        """
        export = self.exports[name]
        async with self._drawing:
            device = export.device
            if device is None:
                return {"export": name, "blocks": 0}
            end = device.blocks if end is None else min(end, device.blocks)
            if not (0 <= first < end and 0 < cells <= CELLS_MAX):
                raise NoSuchRange(
                    f"no map of blocks {first} to {end} in {cells} cells: there are "
                    f"{device.blocks} blocks, and at most {CELLS_MAX} cells"
                )
            drawn = await device.block_map(first, end, cells)
        return {"export": name, **asdict(drawn)}


_SENTENCES = {
    ExportState.LOST: "somebody else took its lock; restart the server to use it again",
    ExportState.SUSPENDED: "suspended, its lock could not be renewed",
    ExportState.KEPT: "its client is gone, and not all it wrote is stored yet",
}
