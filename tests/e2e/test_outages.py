# SPDX-License-Identifier: MIT
"""A real Swift dies and comes back under a server, and what its clients see of that."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, KiB, Launch, launcher, set_up_disk
from tests.support.backends import SwiftBackend
from tests.support.nbd_client import EIO, NbdClient, NbdError
from tests.support.swift_aio import KEY, USER, RealSwift

SIZE = 64 * KiB
FAR = 20 * SIZE
OLD, NEW = b"old!" * 1024, b"new!" * 1024
BEGAN = r"outage of \S+: .*; requests wait, and it is asked again"
OVER = r"outage of \S+ is over after [\d.]+ s: \d+ requests? had to wait, \d+ of them failed"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def mortal_swift() -> Iterator[RealSwift]:
    """One for all tests here, which leave it running."""
    with RealSwift(fsync=False) as swift:
        yield swift


@pytest.fixture
def backend(mortal_swift: RealSwift, tmp_path: Path) -> SwiftBackend:
    return SwiftBackend(mortal_swift.auth_url, USER, KEY, tmp_path / "secrets.conf")


@pytest.fixture
def launch(backend: SwiftBackend, tmp_path: Path) -> Iterator[Launch]:
    with launcher(backend, tmp_path) as launch:
        yield launch


def serve(backend: SwiftBackend, launch: Launch, *flags: str) -> Disk:
    """A disk with something stored at `FAR`."""
    disk = set_up_disk(backend, launch, 64, SIZE, False, extra=flags)
    disk.server.allows(BEGAN)
    with disk.connect() as client:
        client.write(FAR, OLD)
    disk.wait_unlocked()  # and so nothing is cached any more
    return disk


@contextmanager
def dead(swift: RealSwift) -> Iterator[None]:
    """No proxy meanwhile."""
    swift.kill("proxy")
    try:
        yield
    finally:
        swift.restart("proxy")


@contextmanager
def aside() -> Iterator[Callable[..., "Future[object]"]]:
    """Runs what blocks in threads."""
    with ThreadPoolExecutor() as threads:
        yield threads.submit


def failure(call: Callable[[], object]) -> int:
    with pytest.raises(NbdError) as caught:
        call()
    return caught.value.number


def lines(disk: Disk, regex: str) -> int:
    return sum(bool(re.search(regex, line)) for line in disk.server.stderr.lines)


def test_requests_fail_after_the_timeout_and_what_was_written_is_stored_later(
    backend: SwiftBackend, launch: Launch, mortal_swift: RealSwift
) -> None:
    disk = serve(backend, launch, "--timeout", "2")
    disk.server.allows("FLUSH|READ")
    with disk.connect() as client:
        client.write(0, OLD)
        client.flush()
        with dead(mortal_swift):
            assert client.read(0, len(OLD)) == OLD  # from the cache
            client.write(0, NEW)  # within the dirty limit
            assert client.read(0, len(NEW)) == NEW
            assert failure(client.flush) == EIO
            assert failure(lambda: client.read(FAR, len(OLD))) == EIO
            client.write(SIZE, NEW)
            assert client.read(0, len(NEW)) == NEW
        client.flush()
        assert client.read(FAR, len(OLD)) == OLD
    image = disk.image_at_rest()
    assert lines(disk, f"WARNING.*{BEGAN}") == 1
    assert lines(disk, f"INFO.*{OVER}") == 1
    assert image[: len(NEW)] == image[SIZE : SIZE + len(NEW)] == NEW


def test_requests_wait_for_swift_and_are_answered_within_a_second_of_its_return(
    backend: SwiftBackend, launch: Launch, mortal_swift: RealSwift
) -> None:
    disk = serve(backend, launch, "--timeout", "3", "--on-outage", "wait")
    with disk.connect() as client, disk.connect() as other, aside() as begin:
        client.write(0, OLD)
        client.flush()
        with dead(mortal_swift):
            client.write(0, NEW)
            flush = begin(client.flush)
            read = begin(other.read, FAR, len(OLD))
            disk.server.wait_log(BEGAN)
            time.sleep(3.5)  # longer than the time-out
            assert not flush.done()
            assert not read.done()
        back = time.monotonic()
        flush.result(30)
        assert read.result(30) == OLD
        print(f"answered {time.monotonic() - back:.2f} s after Swift was back")
    assert disk.image_at_rest()[: len(NEW)] == NEW
    assert lines(disk, f"WARNING.*{BEGAN}") == 1
    assert lines(disk, f"INFO.*{OVER}") == 1


def test_an_outage_that_outlasts_the_lease_suspends_and_nothing_is_lost(
    backend: SwiftBackend, launch: Launch, mortal_swift: RealSwift
) -> None:
    flags = ("--timeout", "3", "--on-outage", "wait", "--lock-term", "4")
    disk = serve(backend, launch, *flags)
    disk.server.allows("could not be renewed|still ours")
    with disk.connect() as client, aside() as begin:
        client.write(0, OLD)
        client.flush()
        with dead(mortal_swift):
            client.write(0, NEW)
            disk.server.wait_log("could not be renewed for 4 s: suspended")
            read = begin(client.read, 0, len(NEW))
            time.sleep(0.5)
            assert not read.done()  # not even from the cache: it may be somebody else's now
        assert read.result(30) == NEW
        client.flush()
    assert disk.image_at_rest()[: len(NEW)] == NEW


def test_the_next_client_goes_on_where_one_left_in_an_outage(
    backend: SwiftBackend, launch: Launch, mortal_swift: RealSwift
) -> None:
    disk = serve(backend, launch, "--timeout", "3", "--on-outage", "wait")
    disk.server.expects("kept locked, trying again")
    client = disk.connect()
    client.write(0, OLD)
    with dead(mortal_swift):
        client.close()
        disk.server.wait_log("kept locked, trying again")
        with disk.connect("127.0.0.2") as heir:
            assert heir.read(0, len(OLD)) == OLD
            heir.write(SIZE, NEW)
    image = disk.image_at_rest()
    assert (image[: len(OLD)], image[SIZE : SIZE + len(NEW)]) == (OLD, NEW)


def test_a_server_told_to_end_in_an_outage_says_what_is_lost(
    backend: SwiftBackend, launch: Launch, mortal_swift: RealSwift
) -> None:
    disk = serve(backend, launch, "--timeout", "3", "--on-outage", "wait")
    disk.server.expects(f"stays locked; bytes not written back: {SIZE}-{2 * SIZE - 1}$")
    disk.server.allows("shutdown was cut short")
    client = disk.connect()
    client.write(SIZE, OLD)
    with dead(mortal_swift), aside() as begin:
        flush = begin(client.flush)
        disk.server.wait_log(BEGAN)
        disk.server.process.terminate()
        disk.server.wait_log("shutting down")
        assert disk.server.terminate() == 1  # the second signal; the first alone takes 16 s
        assert isinstance(flush.exception(30), Exception)
    client.close()
    assert disk.holder


def test_reader_and_writer_of_many_blocks_through_a_short_outage(
    backend: SwiftBackend, launch: Launch, mortal_swift: RealSwift
) -> None:
    disk = serve(backend, launch)
    with disk.connect() as client, aside() as begin:
        work = begin(_write_and_check, client)
        disk.server.wait_until(lambda: bool(backend.objects(disk.container)), "objects", 30)
        with dead(mortal_swift):
            disk.server.wait_log(BEGAN)
        work.result(60)
    image = disk.image_at_rest()
    assert image == b"".join(bytes([index]) * SIZE for index in range(64))


def _write_and_check(client: NbdClient) -> None:
    for index in range(64):
        client.write(index * SIZE, bytes([index]) * SIZE)
        client.flush()
        assert client.read(index * SIZE, SIZE) == bytes([index]) * SIZE
