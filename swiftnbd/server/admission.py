# SPDX-License-Identifier: MIT
"""How many connections there may be: in all, and from one address.

One peer must not be able to take every place there is. A peer is an address, or on a Unix socket
a process; all of an IPv6 network of 64 bits is one, since whoever has one address of it has all.
"""

import ipaddress
from collections import Counter
from collections.abc import Hashable

from swiftnbd.server.peers import Peer
from swiftnbd.units import counted

_IPV6_PREFIX = 64


class Admission:
    """Counts the connections there are."""

    def __init__(self, total_max: int, per_address_max: int) -> None:
        self._total_max = total_max
        self._per_address_max = per_address_max
        self._counts: Counter[Hashable] = Counter()
        self._total = 0

    def refusal(self, peer: Peer) -> str:
        """Why one more connection of this peer is one too many; empty if it is not."""
        if self._total >= self._total_max:
            are = "is" if self._total == 1 else "are"
            return f"there {are} {counted(self._total, 'connection')}"
        count = self._counts[_place_of(peer)]
        if count >= self._per_address_max:
            return f"it has {counted(count, 'connection')}"
        return ""

    def enter(self, peer: Peer) -> None:
        """One more connection."""
        self._counts[_place_of(peer)] += 1
        self._total += 1

    def leave(self, peer: Peer) -> None:
        """One less."""
        place = _place_of(peer)
        self._total -= 1
        self._counts[place] -= 1
        if not self._counts[place]:
            del self._counts[place]


def _place_of(peer: Peer) -> Hashable:
    address = peer.origin.address
    if isinstance(address, ipaddress.IPv6Address):
        return int(address) >> (128 - _IPV6_PREFIX)
    return address or peer.client.identity
