# SPDX-License-Identifier: MIT
"""What a handshake asks of whoever drives it (`swiftnbd.protocol.handshake`)."""

from dataclasses import dataclass

from swiftnbd.protocol.constants import Option


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes for the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ListWanted:
    """Send `Handshake.list_replies`."""


@dataclass(frozen=True, slots=True)
class ExportWanted:
    """The client asks about (INFO) or chooses (GO, EXPORT_NAME) the export ``name``."""

    option: Option
    name: str
    wanted: frozenset[int] = frozenset()

    @property
    def chosen(self) -> bool:
        """Whether transmission begins if it is accepted."""
        return self.option is not Option.INFO


@dataclass(frozen=True, slots=True)
class ContextsWanted:
    """The client asks about, or selects, metadata contexts of the export ``name``.

    ``contexts`` are those that its queries found.
    """

    option: Option
    name: str
    contexts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aborted:
    """The client is done; send ``data``, then close."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send ``data``, start TLS, then go on with `Handshake.over_tls`.

    What came behind the option came in the clear: if `Handshake.rest` is not empty, close.
    """

    data: bytes


Event = Send | ListWanted | ExportWanted | ContextsWanted | Aborted | StartTls
