# SPDX-License-Identifier: MIT
"""One container has one user: among clients of a server, and among servers."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.e2e.conftest import Launch, Serve
from tests.support.backends import Backend, DirectoryBackend
from tests.support.nbd_client import NbdClient, Refused
from tests.support.server_process import ServerProcess, ctl


@pytest.fixture
def rounds(backend: Backend) -> int:
    """How many races: on Swift each round waits for the settle delay, perhaps twice."""
    return 12 if isinstance(backend, DirectoryBackend) else 5


def _port_of(client: NbdClient) -> str:
    """The client's own TCP port: the part of a holder's mark that only one client has."""
    return str(client.socket.getsockname()[1])


def _at_once(calls: Sequence[Callable[[], NbdClient]]) -> tuple[list[NbdClient], list[Refused]]:
    """Start all calls together; those that got in, and how the others were refused."""
    barrier = threading.Barrier(len(calls))

    def call(connect: Callable[[], NbdClient]) -> NbdClient | Refused:
        barrier.wait()
        try:
            return connect()
        except Refused as refused:
            return refused

    with ThreadPoolExecutor(len(calls)) as pool:
        results = list(pool.map(call, calls))
    winners = [result for result in results if isinstance(result, NbdClient)]
    return winners, [result for result in results if isinstance(result, Refused)]


def test_second_client_is_refused_with_the_name_of_the_holder(serve: Serve) -> None:
    disk = serve(strict=True)
    disk.server.expects("127.0.0.2:[0-9]+: .* is in use by")
    with disk.connect("127.0.0.1") as holder:
        with pytest.raises(Refused) as refused:
            disk.connect("127.0.0.2")
        assert _port_of(holder) in refused.value.text
        assert _port_of(holder) in disk.holder
        holder.write(0, b"still mine")
        holder.disconnect()
    disk.wait_unlocked()
    with disk.connect("127.0.0.2") as other:
        assert other.read(0, 10) == b"still mine"


def test_connections_of_one_client_share_the_disk(serve: Serve) -> None:
    disk = serve(strict=True)
    with disk.connect() as first, disk.connect() as second:
        first.write(100, b"seen by the other")
        assert second.read(100, 17) == b"seen by the other"
        first.disconnect()
        second.write(100, b"goes on")
        assert disk.holder
        second.disconnect()
    disk.wait_unlocked()
    assert disk.holder == ""


def test_two_clients_racing_are_never_both_let_in(serve: Serve, rounds: int) -> None:
    disk = serve()
    disk.server.expects(" is in use by ")
    sources = ["127.0.0.1", "127.0.0.2"]
    for number in range(rounds):
        winners, losers = _at_once([partial(disk.connect, source) for source in sources])
        assert len(winners) == 1
        assert _port_of(winners[0]) in losers[0].text
        winners[0].write(0, number.to_bytes())
        winners[0].disconnect()
        disk.wait_unlocked(number + 1)


def test_two_servers_racing_never_both_get_the_container(
    serve: Serve, launch: Launch, rounds: int
) -> None:
    """Acceptance row E33."""
    disk = serve()
    servers = [disk.server, launch(disk.container)]
    for server in servers:
        server.allows(" is in use by | locking took ")
    won = 0
    for _ in range(rounds):
        connects = [partial(disk.connect, server=server) for server in servers]
        winners, losers = _at_once(connects)
        assert len(winners) <= 1
        for winner in winners:
            assert _port_of(winner) in losers[0].text
            won += 1
            winner.disconnect()
            _wait_unlocked(servers, disk.container, won)
        if disk.holder:  # both were too slow to be sure, and the last one left its mark
            disk.backend.ctl("unlock", disk.container)
    assert won > 0, "the lock is safe, but nobody ever gets it"


def _wait_unlocked(servers: list[ServerProcess], container: str, times: int) -> None:
    """Wait until the servers together have let go of the container so many times."""

    def unlocked() -> bool:
        logs = (line for server in servers for line in server.stderr.lines)
        return sum(f"{container}: unlocked" in line for line in logs) >= times

    deadline = time.monotonic() + 30
    while not unlocked():
        assert time.monotonic() < deadline, [server.log() for server in servers]
        for server in servers:
            server.wait_output(0.1)


def test_container_held_by_another_server_is_refused_with_its_holder(
    serve: Serve, launch: Launch
) -> None:
    disk = serve()
    other = launch(disk.container)
    other.expects(" is in use by ")
    with disk.connect() as holder:
        with pytest.raises(Refused) as refused:
            disk.connect(server=other)
        assert _port_of(holder) in refused.value.text
        holder.disconnect()
    disk.wait_unlocked()
    with disk.connect(server=other) as client:
        client.read(0, 1)


def test_lock_by_hand_is_respected_until_unlocked(serve: Serve) -> None:
    disk = serve()
    disk.server.expects(" is in use by ")
    disk.backend.ctl("lock", disk.container)
    mark = disk.holder
    with pytest.raises(Refused) as refused:
        disk.connect()
    assert mark.split("@")[0] in refused.value.text
    disk.backend.ctl("unlock", disk.container)
    assert disk.backend.metadata(disk.container)["last"] == mark
    with disk.connect() as client:
        client.read(0, 1)


def test_ctl_refuses_to_lock_or_delete_what_is_in_use(serve: Serve) -> None:
    disk = serve()
    with disk.connect() as client:
        client.write(0, b"precious")
        for command in (["lock"], ["delete", "--yes"]):
            done = ctl(*disk.backend.arguments, *command, disk.container, check=False)
            assert done.returncode != 0, done.stdout
            assert _port_of(client) in done.stderr
        assert client.read(0, 8) == b"precious"
