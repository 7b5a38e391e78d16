# SPDX-License-Identifier: MIT
"""Locks that run out, between real servers: paused, killed, and taken over from."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Disk, Launch, Serve
from tests.support.nbd_client import FUA, NbdClient, NbdError, Refused
from tests.support.server_process import ServerProcess, ctl

TERM = 3.0
QUIET = TERM * 1.01 + 30  # what a contender waits
# A Swift that takes long, on a machine that has much to do, is waited for.
SHORT = ("--lock-term", str(TERM), "--timeout", "2", "--on-outage", "wait")
SLOW = "the lock could not be renewed|the lock is still ours|outage of "
ESHUTDOWN = 108

# Waiting for the longest PUT alone takes half a minute.
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def short(serve: Serve, launch: Launch) -> Disk:
    """A disk whose server has a short lock term."""
    disk = serve()
    assert disk.server.terminate() == 0
    disk.server = launch(disk.container, extra=SHORT)
    disk.server.allows(SLOW)
    return disk


@contextmanager
def paused(server: ServerProcess) -> Iterator[None]:
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def connect_when_free(disk: Disk, server: ServerProcess, seconds: float) -> NbdClient:
    """Try again and again, as a client of a stand-by server does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return disk.connect("127.0.0.2", server=server)
        except Refused:
            assert time.monotonic() < deadline, server.log()
            server.wait_output(1.0)


def test_server_paused_beyond_its_term_goes_on_if_nobody_came(short: Disk) -> None:
    with short.connect() as client:
        client.write(0, b"before")
        with paused(short.server):
            time.sleep(TERM * 1.5)
        client.write(6, b" and after")
        client.flush()
        assert client.read(0, 16) == b"before and after"
        client.disconnect()
    assert short.image_at_rest()[:16] == b"before and after"


# Half a minute of waiting; whose the lock is, is decided above the store.
@pytest.mark.parametrize("backend", ["swift"], indirect=True)
def test_paused_server_is_taken_over_from_and_stores_nothing_more(
    short: Disk, launch: Launch
) -> None:
    old, new = short.server, launch(short.container, extra=(*SHORT, "--takeover"))
    new.expects("taken over from ")
    new.allows(" is in use by ")
    old.expects("the lock .* is lost")
    old.expects("its lock is lost; bytes not written back: ")
    new.allows(SLOW)
    old.allows("failed: the lock|refused")
    with short.connect() as client:
        client.write(0, b"of the old one")
        client.flush()
        with paused(old):
            with connect_when_free(short, new, QUIET + 30) as other:
                assert other.read(0, 14) == b"of the old one"
                other.write(0, b"of the new one")
                other.flush()
                old.process.send_signal(signal.SIGCONT)
                with pytest.raises(NbdError) as failed:
                    client.write(0, b"too late", FUA)
                assert failed.value.number == ESHUTDOWN
                assert other.read(0, 14) == b"of the new one"
                other.disconnect()
            new.wait_log("unlocked")
    assert short.backend.image(short.container)[:14] == b"of the new one"
    assert old.terminate() == 1
    assert new.terminate() == 0


def test_server_that_lives_is_not_taken_over_from(short: Disk, launch: Launch) -> None:
    other = launch(short.container, extra=(*SHORT, "--takeover"))
    other.expects(" is in use by ")
    other.allows(SLOW)
    with short.connect() as client:
        deadline = time.monotonic() + 2 * TERM
        while time.monotonic() < deadline:
            with pytest.raises(Refused, match=" is in use by ") as refused:
                short.connect("127.0.0.2", server=other)
            other.wait_output(1.0)
        assert "it is taken over if that is not heard of for" in refused.value.text
        client.write(0, b"mine")
        client.disconnect()
    short.wait_unlocked()


def test_killed_server_goes_on_at_once_on_the_same_machine(serve: Serve, launch: Launch) -> None:
    disk = serve()
    with disk.connect() as client:
        client.write(0, b"precious")
        client.flush()
        disk.server.kill()
    dead = disk.holder
    assert dead
    began = time.monotonic()
    disk.server = launch(disk.container)
    with disk.connect() as client:
        disk.server.wait_log(f"taken back from {dead}, which is dead")
        assert client.read(0, 8) == b"precious"
        client.disconnect()
    assert time.monotonic() - began < QUIET
    disk.wait_unlocked()


def test_list_and_unlock_tell_who_holds_it_where_and_since_when(short: Disk) -> None:
    arguments = short.backend.arguments
    with short.connect() as client:
        deadline = time.monotonic() + 30
        while True:
            done = ctl(*arguments, "unlock", short.container, check=False)
            assert done.returncode == 3, done.stderr
            if ", last renewed 20" in done.stderr:
                break
            assert time.monotonic() < deadline, done.stderr
        assert f"process {short.server.process.pid} on {os.uname().nodename}" in done.stderr
        assert " since 20" in done.stderr
        assert "is alive; stop that, or use --force" in done.stderr
        client.disconnect()
    short.wait_unlocked()
