# SPDX-License-Identifier: MIT
"""Who may connect: lists of networks that are allowed or denied.

A peer that a rule of ``allow`` matches may; else one that a rule of ``deny`` matches may not;
else it may. So ``deny = all`` shuts out whatever ``allow`` does not name, a peer of unknown kind
included.
"""

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Family(enum.Enum):
    """By what kind of road a peer comes."""

    IPV4 = enum.auto()
    IPV6 = enum.auto()
    UNIX = enum.auto()
    OTHER = enum.auto()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a peer is: its ``address`` only if it has one."""

    family: Family = Family.OTHER
    address: IPAddress | None = None


Rule = IPNetwork | frozenset[Family]


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of a server or of an export; none let everybody in."""

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()

    def permits(self, origin: Origin) -> bool:
        """Whether a peer from there may connect."""
        return _matches(origin, self.allow) or not _matches(origin, self.deny)


def _matches(origin: Origin, rules: Iterable[Rule]) -> bool:
    for rule in rules:
        if isinstance(rule, frozenset):
            if origin.family in rule:
                return True
        elif origin.address is not None and origin.address in rule:
            return True
    return False
