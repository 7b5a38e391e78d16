# SPDX-License-Identifier: MIT
"""How many connections there may be, and from where."""

import pytest

from swiftnbd.server.admission import Admission
from swiftnbd.server.peers import Peer, address_peer, process_peer


def tcp(address: str) -> Peer:
    return address_peer((address, 5))


def test_total_is_capped() -> None:
    admission = Admission(total_max=3, per_address_max=2)
    for last in (1, 2, 3):
        assert admission.refusal(tcp(f"192.0.2.{last}")) == ""
        admission.enter(tcp(f"192.0.2.{last}"))
    assert admission.refusal(tcp("192.0.2.4")) == "there are 3 connections"
    admission.leave(tcp("192.0.2.1"))
    assert admission.refusal(tcp("192.0.2.4")) == ""


@pytest.mark.parametrize(
    ("first", "same", "other"),
    [
        (tcp("192.0.2.1"), tcp("::ffff:192.0.2.1"), tcp("192.0.2.2")),
        (tcp("2001:db8::1"), tcp("2001:db8::ffff:1"), tcp("2001:db8:0:1::1")),
        (process_peer(1, 0, 0), process_peer(1, 0, 0), process_peer(1, 1, 0)),
    ],
)
def test_each_address_is_capped(first: Peer, same: Peer, other: Peer) -> None:
    admission = Admission(total_max=100, per_address_max=2)
    admission.enter(first)
    assert admission.refusal(same) == ""
    admission.enter(same)
    assert admission.refusal(first) == admission.refusal(same) == "it has 2 connections"
    assert admission.refusal(other) == ""
    admission.leave(same)
    assert admission.refusal(first) == ""


def test_nothing_is_kept_of_who_left() -> None:
    admission = Admission(10, 10)
    for number in range(100):
        admission.enter(tcp(f"192.0.2.{number}"))
        admission.leave(tcp(f"192.0.2.{number}"))
    assert not admission._counts
    assert admission._total == 0
