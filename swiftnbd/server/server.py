# SPDX-License-Identifier: MIT
"""The server: listens, looks after every connection from first byte to detach, and shuts down.

Shutdown (design: a signal, once): no new connections, handshakes end, requests at work
are finished, the exports written back and unlocked. A second signal cuts that short. What could
not be written back is named, and its container stays locked.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from swiftnbd.api.client import Client
from swiftnbd.api.device import Device
from swiftnbd.api.ending import ENDING
from swiftnbd.errors import ConfigError, ProtocolError, SwiftnbdError
from swiftnbd.export.base import BaseExport
from swiftnbd.log import Subject, about
from swiftnbd.metrics import StoreTraffic
from swiftnbd.server.access import Access, Origin
from swiftnbd.server.admission import Admission
from swiftnbd.server.budget import Budget
from swiftnbd.server.captive import Captive
from swiftnbd.server.config import OnEnd, ServerConfig, TcpAddress, TlsConfig
from swiftnbd.server.dropping import Dropping
from swiftnbd.server.hangup import Hangup
from swiftnbd.server.listeners import Listeners, Place
from swiftnbd.server.monitor import ConnectionStatus, Monitor
from swiftnbd.server.negotiation import Agreed, Negotiation, Upgraded
from swiftnbd.server.patience import Patience
from swiftnbd.server.peers import Peer, peer_of
from swiftnbd.server.sockets import close, closed, keep_alive
from swiftnbd.server.stats import log_stats_forever
from swiftnbd.server.stdio import StandardClient
from swiftnbd.server.supervision import Supervision
from swiftnbd.server.tls import server_tls
from swiftnbd.server.tls_transport import TLS_BYTES_MAX
from swiftnbd.server.transmission import CONNECTION_BYTES_MAX, Transmission

BYTES_AT_WORK_MAX = 256 * 1024 * 1024  # of all connections: eight requests of the largest size
# Without progress in writing back, beyond what a store operation may take: unlocking comes after
# it. systemd's own patience is 90 s, and what is lost should be told before that ends.
SHUTDOWN_SECONDS_MORE = 15.0
LEAVING_SECONDS_MAX = 5.0  # for what a left connection asked for, while its successor waits
LOST_RANGES_SHOWN_MAX = 10  # in one log line

if TYPE_CHECKING:
    from swiftnbd.server.http import HttpEndpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Session:
    """What a connection is used for."""

    export: BaseExport
    client: Client
    begin: float = field(default_factory=monotonic)


class Server:
    """Serves ``exports`` by name, each loaded already. ``coming`` ones may be added later."""

    def __init__(
        self,
        exports: Mapping[str, BaseExport],
        config: ServerConfig,
        coming: Mapping[str, BaseExport] | None = None,
        traffic: StoreTraffic | None = None,
    ) -> None:
        """``traffic`` is that of the Swift the exports are in. Raises `ConfigError` for TLS that
        cannot be."""
        self.http_url = ""  # where it can be watched, once it is started
        self._traffic = traffic
        self._http: HttpEndpoint | None = None
        self._exports = exports
        self._coming = coming or {}
        self._config = config
        self._tls = server_tls(config.tls) if config.tls else None
        self._budget = Budget(BYTES_AT_WORK_MAX)
        self._listeners = Listeners(self.accept)
        self._admission = Admission(config.connections_max, config.connections_per_address_max)
        self._standard: StandardClient | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._negotiations: set[Negotiation] = set()
        self._transmissions: dict[Transmission, _Session] = {}
        self._patience = Patience(self._budget)
        self._watch: asyncio.Task[None] | None = None
        self.supervision = Supervision(
            config.manager, exports, self._coming, lambda: len(self._transmissions)
        )
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._end: Callable[[], object] = self._stopping.set

    async def run(
        self,
        ready: Callable[[Sequence[Place]], None],
        captive: Callable[[Sequence[Place]], Captive] | None = None,
        reload: Callable[[], None] | None = None,
    ) -> int:
        """Serve until a signal; the exit code. ``ready`` is told where it listens.

        A ``captive`` command is run meanwhile, and its end ends the server. SIGHUP calls
        ``reload``, unless it is None or the terminal is gone: then it ends the server, too.
        """
        hangup = Hangup(reload, self._stopping)
        places = await self.start()
        loop = asyncio.get_running_loop()
        for number, handler in {
            signal.SIGTERM: self._on_signal,
            signal.SIGINT: self._on_signal,
            signal.SIGHUP: hangup.came,
        }.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                loop.add_signal_handler(number, handler)
        stats = loop.create_task(log_stats_forever(self._exports.values()))
        code = 0
        try:
            ready(places)
            self.supervision.ready()
            if captive is None:
                await self._stopping.wait()
            else:
                code = await captive(places).run(self._stopping, self._forced)
        finally:
            stats.cancel()
            whole = await self.stop()
        return code if code or whole else 1

    async def start(self) -> list[Place]:
        """Listen, and return where."""
        places = await self._listeners.open(self._config.listen)
        loop = asyncio.get_running_loop()
        self._end = partial(loop.call_soon_threadsafe, self._stopping.set)
        if self._config.http is not None:
            await self._open_http(self._config.http)
        ENDING.serve(self._end)
        watch = self._patience.watch_forever(self._transmissions.keys())
        self._watch = loop.create_task(watch)
        for place in places:
            log.info("serving on %s", place)
        exports = (*self._exports.values(), *self._coming.values())
        memory = memory_bytes_max(self._config, (export.cache_bytes_max or 0 for export in exports))
        log.info("clients can make it take %d MiB of memory at most", memory // (1024 * 1024))
        if self._config.connection is not None:
            self._standard = StandardClient(self._config.connection)
            await self._standard.open(self.accept)
            if not self._connections:  # it was refused
                self._stopping.set()
        return places

    async def stop(self) -> bool:
        """Shut down in order, or at once after a second signal; whether nothing was lost."""
        log.info("shutting down")
        self._stopping.set()
        ENDING.begin(self._end)
        if self._http is not None:
            self._http.monitor.is_stopping = True
        loop = asyncio.get_running_loop()
        orderly = loop.create_task(self._shut_down())
        forced = loop.create_task(self._forced.wait())
        patience = SHUTDOWN_SECONDS_MORE + max(
            (export.patience_seconds for export in self._exports.values()), default=0.0
        )
        self.supervision.ending(patience)
        to_do = (inf, inf)
        # slow is no reason to lose bytes: it must stand still
        while self.supervision.to_do < to_do:
            to_do = self.supervision.to_do
            done, _ = await asyncio.wait(
                {orderly, forced}, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                break
        forced.cancel()
        if orderly not in done:
            log.error("shutdown was cut short")
            self._forced.set()
            orderly.cancel()
            await asyncio.gather(orderly, return_exceptions=True)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        whole = [self._report_loss(export) for export in self._exports.values()]
        for export in list(self._exports.values()):
            await export.abandon()
        if self._http is not None:
            await self._http.close()
        self.supervision.ended()
        ENDING.is_over()
        log.info("exiting")
        return all(whole)

    async def _open_http(self, address: TcpAddress) -> None:
        from swiftnbd.server.http import HttpEndpoint  # it takes a while to import

        monitor = Monitor(self._exports, self.connections, self._traffic)
        http = HttpEndpoint(monitor, address)
        try:
            self.http_url = await http.open()
        except ConfigError:
            self._listeners.close()
            raise
        self._http = http
        log.info("metrics and status at %s", self.http_url)

    def change(self, tls: TlsConfig | None, access: Mapping[str, Access]) -> Callable[[], None]:
        """Read the files of TLS again; what is returned has new connections use them, and the
        rules for exports. Raises `ConfigError`, and then nothing has changed."""
        made = server_tls(tls) if tls else None

        def use() -> None:
            self._tls = made
            self._config = replace(self._config, tls=tls, export_access=access)

        return use

    def connections(self) -> list[ConnectionStatus]:
        """Those that have chosen an export."""
        now, clock = monotonic(), perf_counter()
        return [
            ConnectionStatus(
                client=str(session.client),
                export=session.export.name,
                seconds=now - session.begin,
                at_work=len(transmission.at_work),
                oldest_seconds=None
                if (begin := transmission.at_work.oldest_begin) is None
                else clock - begin,
            )
            for transmission, session in self._transmissions.items()
        ]

    async def _shut_down(self) -> None:
        self._listeners.close()
        for negotiation in self._negotiations:
            negotiation.shut_down()
        for transmission in self._transmissions:
            if self._config.on_end is OnEnd.CLOSE:
                transmission.end()
            else:
                transmission.shut_down()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._standard is not None:
            await self._standard.sent()
        await asyncio.gather(*(_let_go(export) for export in self._exports.values()))

    def _report_loss(self, export: BaseExport) -> bool:
        if not export.attached:
            return True
        ranges = export.device.dirty_ranges() if export.device else []
        shown = ", ".join(f"{start}-{end - 1}" for start, end in ranges[:LOST_RANGES_SHOWN_MAX])
        more = len(ranges) - LOST_RANGES_SHOWN_MAX
        log.error(
            "%s: %s; bytes not written back: %s%s",
            export.name,
            "its lock is lost" if export.is_lost else export.left_as,
            shown or "none",
            f" and {more} more ranges" if more > 0 else "",
        )
        return False

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._forced.set()
        self._stopping.set()

    # Connections

    def accept(self, transport: asyncio.Transport) -> None:
        """A client connected."""
        peer = peer_of(transport)
        client = peer.client
        if self._stopping.is_set():  # it was in the listener's queue
            transport.abort()
            return
        if not self._config.access.permits(peer.origin):
            log.warning("%s: refused, its address is not allowed here", client)
            transport.abort()
            return
        if reason := self._admission.refusal(peer):
            log.warning("%s: refused, %s", client, reason)
            transport.abort()
            return
        log.debug("%s: connected", client)
        dropping = Dropping(transport)
        keep_alive(transport)
        negotiation = Negotiation(
            transport,
            self._exports_for(peer.origin),
            replace(client, disconnect=dropping),
            self._attach,
            self._config,
            self._tls,
        )
        task = asyncio.get_running_loop().create_task(self._serve(transport, negotiation, dropping))
        self._connections.add(task)
        self._admission.enter(peer)
        task.add_done_callback(partial(self._left, peer, transport))

    def _left(self, peer: Peer, transport: asyncio.Transport, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before it began, it may be: then nothing has closed the socket
            transport.abort()
        self._connections.discard(task)
        self._admission.leave(peer)

    def _exports_for(self, origin: Origin) -> Mapping[str, BaseExport]:
        """Those that a peer from there may use; it cannot tell the others from unknown ones."""
        rules = self._config.export_access
        return {
            name: export
            for name, export in self._exports.items()
            if name not in rules or rules[name].permits(origin)
        }

    async def _serve(
        self, transport: asyncio.Transport, negotiation: Negotiation, dropping: Dropping
    ) -> None:
        """Look after a connection until its socket is closed: till then it counts."""
        client = negotiation.client
        about(client=str(client))
        try:
            outcome = await self._negotiate(negotiation)
            while isinstance(outcome, Upgraded):
                negotiation = outcome.negotiation
                outcome = await self._negotiate(negotiation)
            if outcome is not None:
                await self._transmit(negotiation.transport, outcome, negotiation.client, dropping)
                log.info("%s: disconnected from %s", client, outcome.export.name)
        except ProtocolError as error:
            log.info("%s: %s; closing the connection", client, error)
        except Exception:
            log.exception("%s: connection failed", client)
        finally:
            close(negotiation.transport)
            await closed(transport)  # below TLS
            if self._standard is not None:  # there will be no other
                self._stopping.set()

    async def _negotiate(self, negotiation: Negotiation) -> Agreed | Upgraded | None:
        self._negotiations.add(negotiation)
        if self._stopping.is_set():
            negotiation.shut_down()
        try:
            return await negotiation.run()
        finally:
            self._negotiations.discard(negotiation)

    async def _transmit(
        self, transport: asyncio.Transport, agreed: Agreed, client: Client, dropping: Dropping
    ) -> None:
        export = agreed.export
        transmission = Transmission(
            agreed.device,
            agreed.shape,
            self._budget,
            export.counters,
            Subject(f"{client} {export.name}", export=export.name, client=str(client)),
            is_shared=lambda: export.connections > 1,
            check_lock=export.check_lock,
        )
        self._transmissions[transmission] = _Session(export, client)
        dropping.transmission = transmission
        try:
            transmission.start(transport, agreed.received, writable=agreed.writable)
            if self._stopping.is_set():
                transmission.shut_down()
            await transmission.run()
        finally:
            del self._transmissions[transmission]
            if not self._forced.is_set():  # cut short: what is not let go now is reported
                await export.detach(agreed.device)

    async def _attach(self, export: BaseExport, client: Client, name: str) -> Device:
        """Attach, once nothing can take effect any more that a left connection had asked for.

        A client that lost its connection sends again on a new one what was not answered, and
        goes on. The old request landing after that would undo newer, acknowledged writes.
        """
        about(export=export.name, client=str(client))  # a certificate may have told who it is
        leaving = [
            transmission
            for transmission, session in self._transmissions.items()
            if session.export is export and transmission.is_leaving
        ]
        for transmission in leaving:
            transmission.end()
        try:
            async with asyncio.timeout(LEAVING_SECONDS_MAX):
                for transmission in leaving:
                    await transmission.ended.wait()
        except TimeoutError:
            for transmission in leaving:
                transmission.abort()
            for transmission in leaving:
                await transmission.ended.wait()
        return await export.attach(client, name)


def memory_bytes_max(config: ServerConfig, caches: Iterable[int]) -> int:
    """What clients, of whatever kind, can make a server take beyond what it takes when idle."""
    connection = CONNECTION_BYTES_MAX + (TLS_BYTES_MAX if config.tls else 0)
    connections = config.connections_max * connection
    cached = sum(caches)
    return BYTES_AT_WORK_MAX + connections + cached


async def _let_go(export: BaseExport) -> None:
    about(export=export.name)
    try:
        await export.shut_down()
    except SwiftnbdError as error:
        log.error("%s: %s", export.name, error)
