# SPDX-License-Identifier: MIT
"""Handshake phase of one connection: drives `swiftnbd.protocol.handshake` over a transport.

The client is read from only while we wait for its bytes, so nothing piles up; that waiting is
what our patience is counted in, not the time that our own store and lock take. When the server
ends, whatever the client still asks for is refused, and for a moment only.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from swiftnbd.api.client import Client
from swiftnbd.api.device import Device
from swiftnbd.api.profile import Profile
from swiftnbd.errors import Locked, ProtocolError, SwiftnbdError
from swiftnbd.export.base import BaseExport
from swiftnbd.protocol.constants import OptionReply, TransmissionFlag
from swiftnbd.protocol.events import (
    Aborted,
    ContextsWanted,
    ExportWanted,
    ListWanted,
    Send,
    StartTls,
)
from swiftnbd.protocol.handshake import Handshake, Rules, Tls
from swiftnbd.protocol.options import ExportInfo
from swiftnbd.protocol.requests import ExportShape
from swiftnbd.server.config import ServerConfig
from swiftnbd.server.tls import ServerTls, certificate_names, identity_of
from swiftnbd.server.tls_transport import TlsTransport

GOODBYE_SECONDS_MAX = 1.0  # for a client to hear that the server ends, and to say ABORT

_NAME_SHOWN_MAX = 256  # what the specification recommends as a name's length

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a handshake led to: an attached export (to be detached), and what came behind it."""

    export: BaseExport
    device: Device
    shape: ExportShape
    received: bytes
    writable: bool  # or the client has not read our answers yet


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A handshake led to TLS: it goes on in there."""

    negotiation: "Negotiation"


class Negotiation(asyncio.Protocol):
    """Talks with one client until it has chosen an export or goes away.

    One that starts TLS ends there; another, which knows nothing but the handshake it got from
    it, goes on inside.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        exports: Mapping[str, BaseExport],
        client: Client,
        attach: Callable[[BaseExport, Client, str], Awaitable[Device]],
        config: ServerConfig,
        tls: ServerTls | None = None,
        handshake: Handshake | None = None,
    ) -> None:
        """``exports`` are those that this client may see. ``handshake`` goes on inside TLS."""
        self.transport = transport
        self._all_exports = self._exports = exports
        self._hides_exports = False
        self.client = client
        self._attach = attach
        self._config = config
        self._tls = tls
        self._greets = handshake is None
        if handshake is None:
            self._exports = {
                name: export for name, export in exports.items() if not export.tls_only
            }
            self._hides_exports = len(self._exports) < len(exports)
            handshake = Handshake(len(exports), tls.mode if tls else Tls.OFF, _rules(config))
        self._handshake = handshake
        self._upgraded: TlsTransport | None = None
        self._patience = config.handshake_seconds_max  # waited in all (CVE-2024-7409)
        self._event = asyncio.Event()  # bytes came, or can leave again, or never will
        self._gone = False
        self._writable = True
        self._shutting_down = False
        transport.pause_reading()
        transport.set_protocol(self)

    async def run(self) -> Agreed | Upgraded | None:
        """None if the client went away. Raises `ProtocolError`."""
        if self._greets:
            self.transport.write(self._handshake.greeting())
        while True:
            event = self._handshake.next_event()
            match event:
                case None:
                    if not await self._more_bytes():
                        return None
                case Send(data):
                    self.transport.write(data)
                case ListWanted():
                    self.transport.write(self._handshake.list_replies(await self._listed()))
                case Aborted(data):
                    self.transport.write(data)
                    return None
                case StartTls(data):
                    return await self._start_tls(data)
                case ContextsWanted():
                    self._answer_contexts(event)
                case ExportWanted():
                    agreed = await self._answer(event)
                    if agreed is not None:
                        return agreed
            if event is not None:  # all that a client sends at once would be answered in one go
                await asyncio.sleep(0)
            if not await self._drained():
                return None

    def shut_down(self) -> None:
        """The server ends: refuse what this client asks, and do not wait long for it."""
        self._shutting_down = True
        self._patience = min(self._patience, GOODBYE_SECONDS_MAX)
        self._handshake.shut_down()
        self._event.set()
        if self._upgraded is not None:
            self._upgraded.abort()

    async def _start_tls(self, acknowledgement: bytes) -> Upgraded:
        """Nothing is read in between, so what comes next is TLS."""
        if self._handshake.rest():
            # "MUST NOT send": somebody may have put it into the stream (CVE-2011-0411)
            raise ProtocolError("data in the clear behind STARTTLS")
        assert self._tls is not None
        self.transport.write(acknowledgement)
        self._upgraded = TlsTransport(self.transport, self._tls.context)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._upgraded.handshake(self._patience)
        log.debug("%s: %s", self.client, self._upgraded)
        inside = Negotiation(
            self._upgraded,
            self._all_exports,
            _over_tls(self.client, self._upgraded),
            self._attach,
            replace(self._config, handshake_seconds_max=self._patience - (loop.time() - began)),
            handshake=self._handshake.over_tls(),
        )
        return Upgraded(inside)

    async def _answer(self, wanted: ExportWanted) -> Agreed | None:
        """Grant or refuse; an `Agreed` if transmission begins."""
        export = self._find(wanted.name)
        if export is None:
            self._refuse_unknown(wanted)
        elif wanted.chosen:
            return await self._answer_choice(wanted, export)
        else:
            await self._answer_query(wanted, export)
        return None

    async def _answer_query(self, wanted: ExportWanted, export: BaseExport) -> None:
        try:
            profile = await export.look(wanted.name)
        except SwiftnbdError as error:
            self._refuse_unusable(wanted, export, error)
        else:
            self.transport.write(
                self._handshake.accept(wanted, self._info(export, profile, wanted.name))
            )

    async def _answer_choice(self, wanted: ExportWanted, export: BaseExport) -> Agreed | None:
        try:
            device = await self._attach(export, self.client, wanted.name)
        except Locked as error:
            self._refuse(wanted, OptionReply.ERR_POLICY, str(error))
        except SwiftnbdError as error:
            self._refuse_unusable(wanted, export, error)
        else:
            if self._gone:  # while we locked
                await export.detach(device)
            elif self._shutting_down:
                await export.detach(device)
                self._refuse(wanted, OptionReply.ERR_SHUTDOWN, "the server is shutting down")
            else:
                return self._agree(wanted, export, device)
        return None

    def _agree(self, wanted: ExportWanted, export: BaseExport, device: Device) -> Agreed:
        profile = Profile.of(device)
        info = self._info(export, profile, wanted.name)
        contexts = self._handshake.contexts_of(wanted.name)
        shape = ExportShape(
            info.size, info.flags, contexts, profile.block_size_min, profile.block_size_max
        )
        self.transport.write(self._handshake.accept(wanted, info))
        log.info("%s: negotiated export: %s", self.client, export.name)
        return Agreed(export, device, shape, self._handshake.rest(), self._writable)

    def _answer_contexts(self, wanted: ContextsWanted) -> None:
        if self._find(wanted.name) is None:
            self._refuse_unknown(wanted)
        else:
            self.transport.write(self._handshake.accept_contexts(wanted))

    def _info(self, export: BaseExport, profile: Profile, wanted: str) -> ExportInfo:
        return export_info(export, profile, wanted, structured=self._handshake.structured)

    async def _listed(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for export in list(self._exports.values()):
            try:
                found += await export.listed(self.client)
            except SwiftnbdError as error:
                log.error("%s: %s", export.name, error)
        return found

    def _refuse_unusable(
        self, wanted: ExportWanted, export: BaseExport, error: SwiftnbdError
    ) -> None:
        # what is wrong with our store is nothing to tell a peer
        text = f"export {_shown(export.name)} is not available now; the server's log says why"
        self._refuse(wanted, OptionReply.ERR_UNKNOWN, text, reason=str(error))

    def _refuse_unknown(self, wanted: ExportWanted | ContextsWanted) -> None:
        if self._hides_exports:  # the same, whether there is such an export or not
            kind, text = OptionReply.ERR_TLS_REQD, "is not available without TLS"
        else:
            kind, text = OptionReply.ERR_UNKNOWN, "does not exist"
        self._refuse(wanted, kind, f"export {_shown(wanted.name)} {text}")

    def _refuse(
        self,
        wanted: ExportWanted | ContextsWanted,
        kind: OptionReply,
        text: str,
        *,
        reason: str = "",
    ) -> None:
        """Tell the client ``text``, and the log ``reason`` if that is not the same."""
        level = logging.INFO if self._shutting_down else logging.WARNING
        log.log(level, "%s: refused %s: %s", self.client, _shown(wanted.name), reason or text)
        self.transport.write(self._handshake.refuse(wanted, kind, text))

    def _find(self, name: str) -> BaseExport | None:
        """Names match to the letter. The empty one means the default or the only export; what
        nothing matches is for the export that answers to any name, if there is one."""
        if name in self._exports:
            return self._exports[name]
        if not name and self._config.default_export is not None:
            return self._exports.get(self._config.default_export)
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return next((each for each in self._exports.values() if each.any_name), None)

    async def _more_bytes(self) -> bool:
        """Wait for bytes from the client, or for the server's end; False if none will come."""
        self._event.clear()
        if not self._gone:
            self.transport.resume_reading()
            await self._wait()
        return not self._gone

    async def _drained(self) -> bool:
        """Wait until the client has read most of what we wrote; False if it never will."""
        while not (self._writable or self._gone):
            self._event.clear()
            await self._wait()
        return not self._gone

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._patience):
                await self._event.wait()
        except TimeoutError:
            if not self._shutting_down:
                raise ProtocolError("the handshake takes too long") from None
            self._gone = True  # to us
        self._patience -= loop.time() - began

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self.transport.pause_reading()  # here: uvloop would read on before our task runs
        self._handshake.feed(data)
        self._event.set()

    def eof_received(self) -> bool:
        self._gone = True
        self._event.set()
        return True  # we close

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._event.set()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._event.set()


def _shown(name: str) -> str:
    """A peer's name for a message: quoted, control characters escaped, cut to a sane length."""
    return repr(name if len(name) <= _NAME_SHOWN_MAX else name[:_NAME_SHOWN_MAX] + "...")


def _over_tls(client: Client, transport: TlsTransport) -> Client:
    """Who a client is that goes on inside TLS."""
    subject, issuer = certificate_names(transport)
    return replace(
        client,
        identity=identity_of(transport) or client.identity,
        is_encrypted=True,
        certificate_subject=subject,
        certificate_issuer=issuer,
    )


def _rules(config: ServerConfig) -> Rules:
    return Rules(
        flags=Rules().flags & config.mask_handshake,
        structured_replies=config.structured_replies,
        list_exports=config.list_exports,
    )


def export_info(
    export: BaseExport, profile: Profile, wanted: str, *, structured: bool
) -> ExportInfo:
    """What we say of an export to who asks for the name ``wanted``, from one snapshot of it."""
    flags = flags_of(profile)
    shares = export.shares_device if profile.multi_conn is None else profile.multi_conn
    if export.multi_conn and shares:
        flags |= TransmissionFlag.CAN_MULTI_CONN
    if structured:
        flags |= TransmissionFlag.SEND_DF
    least, best, most = profile.told
    return ExportInfo(
        name=(wanted if export.any_name else "") or export.name,
        size=profile.size,
        flags=flags,
        description=profile.description,
        block_size=best,
        block_size_min=least,
        block_size_max=most,
    )


def flags_of(profile: Profile) -> TransmissionFlag:
    """The flags that a device of this profile has, whoever uses it."""
    flags = TransmissionFlag.HAS_FLAGS
    if profile.can_flush:
        flags |= TransmissionFlag.SEND_FLUSH
    if profile.can_prefetch:
        flags |= TransmissionFlag.SEND_CACHE
    if profile.is_rotational:
        flags |= TransmissionFlag.ROTATIONAL
    if profile.read_only:
        return flags | TransmissionFlag.READ_ONLY
    if profile.can_fua or (profile.can_flush and profile.can_fua is not None):
        flags |= TransmissionFlag.SEND_FUA
    if profile.can_trim:
        flags |= TransmissionFlag.SEND_TRIM
    if profile.can_zero:
        flags |= TransmissionFlag.SEND_WRITE_ZEROES
        if profile.can_fast_zero:
            flags |= TransmissionFlag.SEND_FAST_ZERO
    return flags
