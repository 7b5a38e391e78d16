# SPDX-License-Identifier: MIT
"""Lists of networks, as flags and the secrets file have them: ``192.0.2.0/24, ::1, unix``."""

import ipaddress

from swiftnbd.errors import ConfigError
from swiftnbd.server.access import Family, IPNetwork, Rule

_NAMES: dict[str, Rule] = {
    "all": frozenset(Family),
    "allipv4": frozenset({Family.IPV4}),
    "allipv6": frozenset({Family.IPV6}),
    "unix": frozenset({Family.UNIX}),
}
NAMES = ", ".join(_NAMES)
_MAPPED_BITS = 96  # of ::ffff:192.0.2.1 before the IPv4 address


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a list with commas. ConfigError says which of them is none."""
    return tuple(_parse_rule(word.strip()) for word in text.split(","))


def rule_text(rule: Rule) -> str:
    """A rule as it was written, or means the same."""
    return next((name for name, named in _NAMES.items() if named == rule), str(rule))


def _parse_rule(word: str) -> Rule:
    rule = _NAMES.get(word)
    if rule is not None:
        return rule
    try:
        return _as_seen(ipaddress.ip_network(word, strict=False), word)
    except ValueError:
        raise ConfigError(
            f"{word!r} is neither an address (192.0.2.7, 2001:db8::7) nor a network "
            f"(192.0.2.0/24) nor one of {NAMES}"
        ) from None


def _as_seen(network: IPNetwork, word: str) -> IPNetwork:
    """The network as peers' addresses are compared with it: IPv4 in IPv6 counts as IPv4."""
    if "/" in word and ipaddress.ip_interface(word).ip != network.network_address:
        raise ConfigError(
            f"{word} is an address and no network: write {network}, or {word.partition('/')[0]}"
        )
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        inner = network.network_address.ipv4_mapped
        if inner is not None:
            return ipaddress.IPv4Network((inner, network.prefixlen - _MAPPED_BITS))
    return network
