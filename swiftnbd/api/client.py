# SPDX-License-Identifier: MIT
"""Who uses a device."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """Whoever is at the other end: connections with one ``identity`` are one client.

    ``host`` and ``port`` are for the mark in a container, ``shown`` is for messages.
    ``is_encrypted``: it came over TLS.
    """

    identity: str
    host: str
    port: int
    shown: str = ""
    is_encrypted: bool = False

    def __str__(self) -> str:
        return self.shown or f"{self.host}:{self.port}"
