# SPDX-License-Identifier: MIT
"""Objects that are not as they should be, in a real Swift, met by a server that serves them."""

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, launcher, new_name
from tests.support.backends import SwiftBackend
from tests.support.damage import cut_short, flip_a_byte, object_file
from tests.support.nbd_client import EIO, NbdClient, NbdError
from tests.support.swift_aio import KEY, USER, RealSwift

SIZE = 64 * 1024
OBJECTS = 11


def flipped(swift: RealSwift, _backend: SwiftBackend, container: str, name: str) -> None:
    flip_a_byte(object_file(swift, container, name))


def shortened(swift: RealSwift, _backend: SwiftBackend, container: str, name: str) -> None:
    cut_short(object_file(swift, container, name))


def deleted(swift: RealSwift, _backend: SwiftBackend, container: str, name: str) -> None:
    object_file(swift, container, name).unlink()


def replaced_by_a_shorter(
    _swift: RealSwift, backend: SwiftBackend, container: str, name: str
) -> None:
    backend.put(container, name, b"x" * (SIZE - 512))


def replaced_by_a_longer(
    _swift: RealSwift, backend: SwiftBackend, container: str, name: str
) -> None:
    backend.put(container, name, b"x" * (SIZE + 512))


DAMAGES = {
    1: flipped,
    3: shortened,
    5: deleted,
    7: replaced_by_a_shorter,
    9: replaced_by_a_longer,
}


def uploaded(real_swift: RealSwift, folder: Path) -> tuple[SwiftBackend, str, bytes]:
    """A disk in a real Swift, at rest, and its content."""
    backend = SwiftBackend(real_swift.auth_url, USER, KEY, folder / "secrets.conf")
    name, data = new_name(), os.urandom(OBJECTS * SIZE)
    (folder / "image").write_bytes(data)
    backend.announce(name)
    backend.ctl("upload", "-q", "--setup", str(folder / "image"), name)
    return backend, name, data


def refused(client: NbdClient, offset: int) -> int:
    with pytest.raises(NbdError) as caught:
        client.read(offset, 512)
    return caught.value.number


def test_damaged_objects_are_errors_for_their_ranges_alone(
    real_swift: RealSwift, tmp_path: Path
) -> None:
    backend, name, data = uploaded(real_swift, tmp_path)
    for index, damage in DAMAGES.items():
        damage(real_swift, backend, name, f"disk.part/{index:08d}")
    whole = b"whole again".ljust(SIZE, b".")
    expected = bytearray(data)
    expected[:3] = b"new"
    with launcher(backend, tmp_path) as launch:
        disk = Disk(backend, name, OBJECTS, SIZE, launch(name))
        with disk.connect() as client:
            for index in DAMAGES:
                start = index * SIZE
                disk.server.expects(rf"READ {start}\+512 .*failed: .*disk\.part/{index:08d}")
                # twice: Swift has set it aside by then, and says 404
                assert [refused(client, start) for _ in range(2)] == [EIO, EIO]
            for index in set(range(OBJECTS)) - DAMAGES.keys():
                at = index * SIZE
                assert client.read(at, SIZE) == data[at : at + SIZE]
            client.write(0, b"new")
            for index in DAMAGES:
                client.write(index * SIZE, whole)  # all of it, so nothing need be read
                expected[index * SIZE : (index + 1) * SIZE] = whole
            client.flush()
            for index in DAMAGES:
                assert client.read(index * SIZE, SIZE) == whole
        disk.wait_unlocked()
    assert backend.image(name) == expected


def test_damaged_object_that_nobody_remembers_does_not_read_as_zeros(
    real_swift: RealSwift, tmp_path: Path
) -> None:
    backend, name, _ = uploaded(real_swift, tmp_path)
    backend.request("DELETE", name, "/swiftnbd/presence")  # as after a crash
    flipped(real_swift, backend, name, "disk.part/00000001")
    with launcher(backend, tmp_path) as launch:
        disk = Disk(backend, name, OBJECTS, SIZE, launch(name))
        disk.server.expects(rf"READ {SIZE}\+512 .*failed: .*disk\.part/00000001")
        with disk.connect() as client:
            assert [refused(client, SIZE) for _ in range(2)] == [EIO, EIO]
        disk.wait_unlocked()
        with disk.connect() as client:  # and the next client is told the same
            assert refused(client, SIZE) == EIO
        disk.wait_unlocked(2)
