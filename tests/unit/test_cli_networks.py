# SPDX-License-Identifier: MIT
from ipaddress import ip_network

import pytest

from swiftnbd.cli.networks import parse_rules
from swiftnbd.errors import ConfigError
from swiftnbd.server.access import Family, Rule


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("192.0.2.7", [ip_network("192.0.2.7/32")]),
        ("192.0.2.0/24,2001:db8::/32", [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")]),
        (" ::1 ,  unix ", [ip_network("::1"), frozenset({Family.UNIX})]),
        ("all", [frozenset(Family)]),
        ("allipv4,allipv6", [frozenset({Family.IPV4}), frozenset({Family.IPV6})]),
        ("::ffff:192.0.2.0/120", [ip_network("192.0.2.0/24")]),
        ("::ffff:192.0.2.1", [ip_network("192.0.2.1")]),
    ],
)
def test_list_of_networks(text: str, rules: list[Rule]) -> None:
    assert parse_rules(text) == tuple(rules)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is neither an address (192.0.2.7, 2001:db8::7) nor a network (192.0.2.0/24) "),
        ("::1,,::2", "'' is neither"),
        ("example.com", "'example.com' is neither"),
        ("192.0.2.256", "'192.0.2.256' is neither"),
        ("192.0.2.0/33", "'192.0.2.0/33' is neither"),
        ("ALL", "'ALL' is neither"),
        ("192.0.2.7/24", "192.0.2.7/24 is an address and no network: write 192.0.2.0/24, or "),
        ("2001:db8::7/32", "write 2001:db8::/32, or 2001:db8::7"),
    ],
)
def test_what_is_none_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules(text)
    assert sentence in str(caught.value)
