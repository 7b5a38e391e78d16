# SPDX-License-Identifier: MIT
"""Who uses a device."""

from collections.abc import Callable
from dataclasses import dataclass, field


def _stays(force: bool) -> None:
    """Nobody can be asked to drop it."""


@dataclass(frozen=True, slots=True)
class Client:
    """Whoever is at the other end: connections with one ``identity`` are one client.

    ``host`` and ``port`` are for the mark in a container, ``shown`` is for messages.
    ``is_encrypted``: it came over TLS; ``certificate_subject`` and ``certificate_issuer`` are
    the distinguished names of the certificate it showed, '' without one. ``process``, ``user`` and
    ``group``: of a process of this machine, as far as the kernel knows them.

    ``disconnect`` drops this connection, from any thread: with True now, with False when what it
    has asked for is answered, and what it asks until then is refused.
    """

    identity: str
    host: str
    port: int
    shown: str = ""
    is_encrypted: bool = False
    certificate_subject: str = ""
    certificate_issuer: str = ""
    process: int | None = None
    user: int | None = None
    group: int | None = None
    disconnect: Callable[[bool], None] = field(default=_stays, repr=False, compare=False)

    def __str__(self) -> str:
        return self.shown or f"{self.host}:{self.port}"
