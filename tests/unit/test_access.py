# SPDX-License-Identifier: MIT
from ipaddress import ip_address, ip_network

import pytest

from swiftnbd.server.access import Access, Family, Origin, Rule

ALL: Rule = frozenset(Family)
V4 = Origin(Family.IPV4, ip_address("192.0.2.7"))
V6 = Origin(Family.IPV6, ip_address("2001:db8::7"))
UNIX = Origin(Family.UNIX)
OTHER = Origin()


def net(text: str) -> Rule:
    return ip_network(text)


@pytest.mark.parametrize("origin", [V4, V6, UNIX, OTHER])
def test_no_rules_let_everybody_in(origin: Origin) -> None:
    assert Access().permits(origin)


@pytest.mark.parametrize("origin", [V4, V6, UNIX, OTHER])
def test_deny_all_denies_everybody_of_unknown_family_too(origin: Origin) -> None:
    """Acceptance row E29."""
    assert not Access(deny=(ALL,)).permits(origin)


@pytest.mark.parametrize("origin", [V4, V6, UNIX, OTHER])
def test_allow_goes_before_deny(origin: Origin) -> None:
    assert Access(allow=(ALL,), deny=(ALL,)).permits(origin)


def test_allow_alone_denies_nobody() -> None:
    assert Access(allow=(net("192.0.2.0/24"),)).permits(V6)


@pytest.mark.parametrize(
    ("rule", "permitted"),
    [
        (net("192.0.2.0/24"), [V4]),
        (net("192.0.2.7"), [V4]),
        (net("192.0.2.8"), []),
        (net("2001:db8::/32"), [V6]),
        (net("::/0"), [V6]),
        (net("0.0.0.0/0"), [V4]),
        (frozenset({Family.IPV4}), [V4]),
        (frozenset({Family.IPV6}), [V6]),
        (frozenset({Family.UNIX}), [UNIX]),
    ],
)
def test_rule_matches_what_it_names(rule: Rule, permitted: list[Origin]) -> None:
    access = Access(allow=(rule,), deny=(ALL,))
    assert [origin for origin in (V4, V6, UNIX, OTHER) if access.permits(origin)] == permitted
    access = Access(deny=(rule,))
    assert [origin for origin in (V4, V6, UNIX, OTHER) if not access.permits(origin)] == permitted
