# SPDX-License-Identifier: MIT
"""Who counts as one client."""

import os
import subprocess

import pytest

from swiftnbd.server.access import Family
from swiftnbd.server.peers import address_peer, process_peer


@pytest.mark.parametrize(
    ("peername", "identity", "family"),
    [
        (("127.0.0.1", 5), "127.0.0.1", Family.IPV4),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7", Family.IPV4),
        (("fe80::1%eth0", 5, 0, 2), "fe80::1", Family.IPV6),
        (("2001:DB8:0::1", 5, 0, 0), "2001:db8::1", Family.IPV6),
    ],
)
def test_client_is_its_address_however_written(
    peername: tuple[str, int], identity: str, family: Family
) -> None:
    peer = address_peer(peername)
    assert peer.client.identity == str(peer.origin.address) == identity
    assert peer.client.host == identity
    assert peer.origin.family is family


def test_two_peers_that_have_gone_are_not_one_client() -> None:
    one, two = address_peer(None), address_peer(None)
    assert one.client.identity != two.client.identity
    assert one.origin.family is Family.OTHER


def test_connections_of_a_process_are_one_client() -> None:
    one, two = process_peer(os.getpid(), 7, 0), process_peer(os.getpid(), 7, 0)
    assert one == two
    assert one.origin.family is Family.UNIX
    assert (one.client.host, one.client.port) == ("localhost", os.getpid())
    assert str(one.client) == f"process {os.getpid()} (user 7)"


def test_same_number_of_another_user_or_another_process_is_another_client() -> None:
    ours = process_peer(os.getpid(), 7, 0).client.identity
    assert process_peer(os.getpid(), 8, 0).client.identity != ours
    assert process_peer(os.getppid(), 7, 0).client.identity != ours


def test_process_number_that_is_used_again_is_another_client() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        alive = process_peer(child.pid, 0, 0).client.identity
        child.kill()
        child.wait()
        assert process_peer(child.pid, 0, 0).client.identity != alive


def test_processes_the_kernel_has_no_number_for_are_not_one_client() -> None:
    """Those of another PID namespace all have the number 0 here."""
    assert process_peer(0, 0, 0).client.identity != process_peer(0, 0, 0).client.identity
