# SPDX-License-Identifier: MIT
"""Counters of one export, plain integers that only ever grow."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Bytes from and to clients, and from and to the store."""

    client_in: int = 0
    client_out: int = 0
    store_in: int = 0
    store_out: int = 0
