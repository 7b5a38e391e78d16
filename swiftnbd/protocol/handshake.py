# SPDX-License-Identifier: MIT
"""Handshake phase of one connection, fed with bytes and answering with events.

::

    FLAGS --client flags--> OPTIONS --EXPORT_NAME or GO, accepted--> DONE (transmission)
                            OPTIONS --ABORT--> DONE (close)
                            OPTIONS --STARTTLS--> DONE (TLS, then `Handshake.over_tls`)

`Handshake.feed` takes bytes however they are cut; `Handshake.next_event` gives the next thing
to do (`swiftnbd.protocol.events`), or None when more bytes are needed. What needs no knowledge
of exports comes out as `Send`. A `ProtocolError` means: close, the peer cannot be talked to.
After an `ExportWanted` the caller answers with `accept` or `refuse` before it asks for the next
event, and after a `ContextsWanted` with `accept_contexts` or `refuse`.
"""

import enum
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from swiftnbd.errors import ProtocolError
from swiftnbd.protocol import contexts, options
from swiftnbd.protocol.constants import OPTION_MAGIC, HandshakeFlag, Option, OptionReply
from swiftnbd.protocol.events import (
    Aborted,
    ContextsWanted,
    Event,
    ExportWanted,
    ListWanted,
    Send,
    StartTls,
)
from swiftnbd.protocol.options import ExportInfo, InvalidOption

OPTION_BYTES_MAX = 64 * 1024  # no option we know needs more; kept in memory while it arrives
SKIPPED_BYTES_MAX = 1024 * 1024  # of an option we refuse; more is not worth reading away
OPTIONS_MAX = 32  # plus 32 per listed export: a client asks a few things of each, then chooses
OPTIONS_PER_EXPORT_MAX = 32
LISTS_MAX = 8  # a client needs one; each answer is as long as there are exports

_CLIENT_FLAGS = struct.Struct(">I")


class Tls(enum.Enum):
    """What the handshake makes of TLS ("Establishing a TLS connection")."""

    OFF = enum.auto()  # the specification's NOTLS mode
    OFFERED = enum.auto()  # SELECTIVETLS, still in the clear
    REQUIRED = enum.auto()  # FORCEDTLS, still in the clear
    ACTIVE = enum.auto()  # whatever was agreed before is forgotten


@dataclass(frozen=True, slots=True)
class Rules:
    """What this server lets a client negotiate."""

    flags: HandshakeFlag = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    structured_replies: bool = True
    list_exports: bool = True


_RULES_DEFAULT = Rules()


@dataclass(frozen=True, slots=True)
class _Selected:
    """Metadata contexts of the export that the client called ``name``."""

    name: str = ""
    contexts: frozenset[str] = frozenset()


_NOTHING_SELECTED = _Selected()


class _State(enum.Enum):
    FLAGS = enum.auto()
    OPTIONS = enum.auto()
    SKIPPING = enum.auto()  # data of a refused option
    DECIDING = enum.auto()  # the caller looks the export up
    DONE = enum.auto()


class Handshake:
    """The server's side of one handshake. ``exports`` is how many `list_replies` would list."""

    def __init__(self, exports: int = 0, tls: Tls = Tls.OFF, rules: Rules = _RULES_DEFAULT) -> None:
        self._state = _State.FLAGS
        self._tls = tls
        self._rules = rules
        self._buffer = bytearray()
        self._no_zeroes = False
        self._fixed = False
        self._options_left = OPTIONS_MAX + OPTIONS_PER_EXPORT_MAX * exports
        self._lists_left = LISTS_MAX
        self._skip = 0
        self._after_skip: Event = Send(b"")
        self._shutting_down = False
        # what was agreed
        self._structured = False
        self._selected = _NOTHING_SELECTED

    def greeting(self) -> bytes:
        """The first bytes of the connection."""
        return options.greeting(self._rules.flags)

    def over_tls(self) -> "Handshake":
        """The handshake that goes on inside TLS, after `StartTls`.

        Of the one in the clear it knows the client's flags, which are not sent again, and how
        many options and LISTs are left; all else "MUST be discarded" (CVE-2021-3716), so it is
        not copied.
        """
        assert self._state is _State.DONE
        handshake = Handshake(tls=Tls.ACTIVE, rules=self._rules)
        handshake._state = _State.OPTIONS
        handshake._fixed = self._fixed
        handshake._no_zeroes = self._no_zeroes
        handshake._options_left = self._options_left
        handshake._lists_left = self._lists_left
        return handshake

    def shut_down(self) -> None:
        """From here on options get ERR_SHUTDOWN, except ABORT."""
        self._shutting_down = True

    @property
    def structured(self) -> bool:
        """Whether structured replies were agreed on."""
        return self._structured

    def contexts_of(self, name: str) -> frozenset[str]:
        """The metadata contexts selected for this export, if it is called just the same."""
        return self._selected.contexts if self._selected.name == name else frozenset()

    def feed(self, data: bytes | memoryview) -> None:
        """Add bytes from the peer."""
        self._buffer += data

    def rest(self) -> bytes:
        """Bytes after the handshake, the beginning of transmission. Takes them out."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def next_event(self) -> Event | None:
        """The next thing to do, or None if that needs more bytes.

        Raises `ProtocolError` if the connection must be closed.
        """
        if self._state is _State.FLAGS:
            self._take_flags()
        if self._state is _State.OPTIONS:
            event = self._take_option()
            if event is not None:
                return event
        return self._take_skipped()

    def list_replies(self, exports: Iterable[tuple[str, str]]) -> bytes:
        """The answer to LIST: names, and descriptions or ''."""
        replies = [options.server_reply(Option.LIST, *each) for each in exports]
        return b"".join([*replies, options.reply(Option.LIST, OptionReply.ACK)])

    def accept(self, event: ExportWanted, export: ExportInfo) -> bytes:
        """The answer that grants ``event``; after a chosen one, transmission begins."""
        assert self._state is _State.DECIDING
        self._state = _State.DONE if event.chosen else _State.OPTIONS
        if event.option is Option.EXPORT_NAME:
            return options.export_name_reply(export, no_zeroes=self._no_zeroes)
        return options.info_replies(event.option, export, event.wanted)

    def accept_contexts(self, event: ContextsWanted) -> bytes:
        """The answer that grants ``event``: the export exists."""
        assert self._state is _State.DECIDING
        self._state = _State.OPTIONS
        if event.option is Option.SET_META_CONTEXT:
            self._selected = _Selected(event.name, frozenset(event.contexts))
        return contexts.context_replies(event.option, event.contexts)

    def refuse(
        self, event: ExportWanted | ContextsWanted, kind: OptionReply, message: str
    ) -> bytes:
        """The answer that denies ``event``.

        Raises `ProtocolError` for EXPORT_NAME, which has no way to say no: "the server MUST
        terminate the session".
        """
        assert self._state is _State.DECIDING
        if event.option is Option.EXPORT_NAME:
            self._state = _State.DONE
            raise ProtocolError(message)
        self._state = _State.OPTIONS
        return options.error_reply(event.option, kind, message)

    def _take_flags(self) -> None:
        if len(self._buffer) < _CLIENT_FLAGS.size:
            return
        (flags,) = _CLIENT_FLAGS.unpack_from(self._buffer)
        del self._buffer[: _CLIENT_FLAGS.size]
        # int: the complement of an IntFlag has only the bits that have names
        if flags & ~int(self._rules.flags):
            raise ProtocolError(f"client flags {flags:#x} were not offered")  # "MUST drop the TCP"
        self._fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self._state = _State.OPTIONS

    def _take_option(self) -> Event | None:
        if len(self._buffer) < options.OPTION.size:
            return None
        magic, option, length = options.OPTION.unpack_from(self._buffer)
        if magic != OPTION_MAGIC:
            raise ProtocolError(f"option magic {magic:#018x} is wrong")
        if not self._fixed and option != Option.EXPORT_NAME:
            raise ProtocolError(f"option {option} from a client without fixed newstyle")
        if option == Option.SET_META_CONTEXT:
            self._selected = _NOTHING_SELECTED  # "including when this command fails"
        answer = self._answer_unread(option, length)
        if answer is not None:
            self._skip_data(option, length, answer)
            return None
        end = options.OPTION.size + length
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[options.OPTION.size : end])
        del self._buffer[:end]
        self._count_option()
        return _HANDLERS[option](self, data)

    def _answer_unread(self, option: int, length: int) -> Event | None:
        """The answer to an option whatever its data says, or None if that matters."""
        if option == Option.ABORT:  # "the server MUST reply with NBD_REP_ACK"
            return Aborted(options.reply(option, OptionReply.ACK))
        refusal = self._refusal(option, length)
        if refusal is None:
            return None
        if option == Option.EXPORT_NAME:
            raise ProtocolError(f"EXPORT_NAME with {length} bytes of data: {refusal[1]}")
        return Send(options.error_reply(option, *refusal))

    def _refusal(self, option: int, length: int) -> tuple[OptionReply, str] | None:
        """Why an option is refused whatever its data says, if it is."""
        if self._shutting_down:
            return OptionReply.ERR_SHUTDOWN, "the server is shutting down"
        if self._tls is Tls.REQUIRED and option != Option.STARTTLS:
            return OptionReply.ERR_TLS_REQD, "this server talks only over TLS"
        if option == Option.STARTTLS and self._tls is Tls.OFF:
            return OptionReply.ERR_POLICY, "this server does not use TLS"
        disabled = () if self._rules.structured_replies else _STRUCTURED_OPTIONS
        if option not in _HANDLERS or option in disabled:
            return OptionReply.ERR_UNSUP, f"option {option} is not supported"
        if length > OPTION_BYTES_MAX:
            return OptionReply.ERR_INVALID, f"{length} bytes of data are too many"
        return None

    def _skip_data(self, option: int, length: int, answer: Event) -> None:
        """Go on to SKIPPING: the data is read away in pieces, never kept, then answered."""
        if length > SKIPPED_BYTES_MAX:
            raise ProtocolError(f"option {option} with {length} bytes of data")
        self._count_option()
        del self._buffer[: options.OPTION.size]
        self._skip = length
        self._after_skip = answer
        self._state = _State.SKIPPING

    def _take_skipped(self) -> Event | None:
        if self._state is not _State.SKIPPING:
            return None
        here = min(self._skip, len(self._buffer))
        del self._buffer[:here]
        self._skip -= here
        if self._skip:
            return None
        event = self._after_skip
        self._state = _State.DONE if isinstance(event, Aborted) else _State.OPTIONS
        return event

    def _count_option(self) -> None:
        if self._options_left == 0:
            raise ProtocolError("too many options without choosing an export")
        self._options_left -= 1

    def _on_export_name(self, data: bytes) -> Event:
        try:
            name = options.parse_string(data)
        except InvalidOption as error:
            raise ProtocolError(str(error)) from None
        self._state = _State.DECIDING
        return ExportWanted(Option.EXPORT_NAME, name)

    def _on_list(self, data: bytes) -> Event:
        if data:
            return _refused(Option.LIST, "LIST takes no data")
        if not self._rules.list_exports:
            text = "this server does not list its exports"
            return _refused(Option.LIST, text, OptionReply.ERR_POLICY)
        if self._lists_left == 0:
            return _refused(Option.LIST, "too many LISTs", OptionReply.ERR_POLICY)
        self._lists_left -= 1
        return ListWanted()

    def _on_starttls(self, data: bytes) -> Event:
        if data or self._tls is Tls.ACTIVE:
            text = "STARTTLS takes no data" if data else "TLS is on already"
            return _refused(Option.STARTTLS, text)
        self._state = _State.DONE
        return StartTls(options.reply(Option.STARTTLS, OptionReply.ACK))

    def _on_info(self, data: bytes) -> Event:
        return self._on_info_or_go(Option.INFO, data)

    def _on_go(self, data: bytes) -> Event:
        return self._on_info_or_go(Option.GO, data)

    def _on_info_or_go(self, option: Option, data: bytes) -> Event:
        try:
            query = options.parse_info_query(data)
        except InvalidOption as error:
            return _refused(option, str(error))
        self._state = _State.DECIDING
        return ExportWanted(option, query.name, query.wanted)

    def _on_structured_reply(self, data: bytes) -> Event:
        if data or self._structured:
            text = "STRUCTURED_REPLY takes no data" if data else "structured replies are on already"
            return _refused(Option.STRUCTURED_REPLY, text)
        self._structured = True
        return Send(options.reply(Option.STRUCTURED_REPLY, OptionReply.ACK))

    def _on_list_meta_context(self, data: bytes) -> Event:
        return self._on_meta_context(Option.LIST_META_CONTEXT, data, contexts.listed)

    def _on_set_meta_context(self, data: bytes) -> Event:
        return self._on_meta_context(Option.SET_META_CONTEXT, data, contexts.selected)

    def _on_meta_context(
        self, option: Option, data: bytes, find: Callable[[Iterable[str]], Iterable[str]]
    ) -> Event:
        if not self._structured:
            return _refused(option, "structured replies must be negotiated first")
        try:
            query = contexts.parse_context_query(data)
        except contexts.TooManyQueries as error:
            return _refused(option, str(error), OptionReply.ERR_TOO_BIG)
        except InvalidOption as error:
            return _refused(option, str(error))
        self._state = _State.DECIDING
        return ContextsWanted(option, query.name, tuple(find(query.queries)))


def _refused(option: Option, text: str, kind: OptionReply = OptionReply.ERR_INVALID) -> Send:
    return Send(options.error_reply(option, kind, text))


_HANDLERS: dict[int, Callable[[Handshake, bytes], Event]] = {
    Option.EXPORT_NAME: Handshake._on_export_name,
    Option.LIST: Handshake._on_list,
    Option.STARTTLS: Handshake._on_starttls,
    Option.INFO: Handshake._on_info,
    Option.GO: Handshake._on_go,
    Option.STRUCTURED_REPLY: Handshake._on_structured_reply,
    Option.LIST_META_CONTEXT: Handshake._on_list_meta_context,
    Option.SET_META_CONTEXT: Handshake._on_set_meta_context,
}
# What servers without structured replies do not know
_STRUCTURED_OPTIONS = (
    Option.STRUCTURED_REPLY,
    Option.LIST_META_CONTEXT,
    Option.SET_META_CONTEXT,
)
