# SPDX-License-Identifier: MIT
"""swiftnbd 0.11 and we use the same containers, byte for byte."""

import random
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Disk, Launch, new_name
from tests.support.backends import SwiftBackend
from tests.support.legacy import Legacy
from tests.support.nbd_client import Refused

OBJECTS, SIZE = 24, 64 * 1024

pytestmark = pytest.mark.parametrize("backend", ["swift"], indirect=True)


@pytest.fixture
def legacy(backend: SwiftBackend) -> Iterator[Legacy]:
    """A new container as 0.11 sees it; our programs know its name too."""
    name = new_name()
    backend.announce(name)
    legacy = Legacy(backend.auth_url, backend.user, backend.key, name)
    yield legacy
    legacy.close()


def _serve(legacy: Legacy, backend: SwiftBackend, launch: Launch) -> Disk:
    return Disk(backend, legacy.container, OBJECTS, SIZE, launch(legacy.container))


def test_container_written_by_0_11_is_served(
    legacy: Legacy, backend: SwiftBackend, launch: Launch
) -> None:
    legacy.setup(OBJECTS, SIZE, last="10.0.0.5:40112@1460000000")
    chance = random.Random("0.11")
    expected = bytearray(OBJECTS * SIZE)
    for index in (0, 3, 4, 17, OBJECTS - 1):
        expected[index * SIZE : (index + 1) * SIZE] = data = chance.randbytes(SIZE)
        legacy.write(index, data)
    disk = _serve(legacy, backend, launch)
    with disk.connect() as client:
        assert client.read(0, disk.size) == expected
        client.disconnect()
    assert disk.image_at_rest() == expected


def test_container_written_by_us_is_read_by_0_11(
    legacy: Legacy, backend: SwiftBackend, launch: Launch
) -> None:
    backend.setup(legacy.container, OBJECTS, SIZE)
    disk = _serve(legacy, backend, launch)
    data = random.Random("ours").randbytes(7 * SIZE + 1234)
    with disk.connect() as client:
        client.write(5000, data)
        client.zero(2 * SIZE, SIZE)
        client.flush()
        client.disconnect()
    expected = bytearray(disk.size)
    expected[5000 : 5000 + len(data)] = data
    expected[2 * SIZE : 3 * SIZE] = bytes(SIZE)
    assert disk.image_at_rest() == expected
    assert legacy.read() == expected


def test_lock_of_0_11_is_respected(legacy: Legacy, backend: SwiftBackend, launch: Launch) -> None:
    legacy.setup(OBJECTS, SIZE)
    legacy.lock("10.0.0.5:40112")
    disk = _serve(legacy, backend, launch)
    disk.server.expects(" is in use by ")
    with pytest.raises(Refused) as refused:
        disk.connect()
    assert "10.0.0.5:40112" in refused.value.text
    legacy.unlock()
    with disk.connect() as client:
        client.read(0, 1)


def test_our_lock_is_respected_by_0_11(
    legacy: Legacy, backend: SwiftBackend, launch: Launch
) -> None:
    legacy.setup(OBJECTS, SIZE)
    disk = _serve(legacy, backend, launch)
    with disk.connect() as client:
        with pytest.raises(RuntimeError, match="Already in use"):
            legacy.lock("10.0.0.5:40112")
        ours = disk.holder
        client.disconnect()
    disk.wait_unlocked()
    assert backend.metadata(legacy.container)["last"] == ours
    legacy.lock("10.0.0.5:40112")
    legacy.unlock()


def test_lock_left_by_a_dead_0_11_is_taken_away_by_unlock(
    legacy: Legacy, backend: SwiftBackend, launch: Launch
) -> None:
    legacy.setup(OBJECTS, SIZE)
    legacy.lock("10.0.0.5:40112")
    mark = backend.metadata(legacy.container)["client"]
    backend.ctl("unlock", legacy.container)
    metadata = backend.metadata(legacy.container)
    assert metadata["last"] == mark
    assert "client" not in metadata
    disk = _serve(legacy, backend, launch)
    with disk.connect() as client:
        client.write(0, b"ours now")
