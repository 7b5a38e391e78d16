# SPDX-License-Identifier: MIT
"""A disk that gets another size while a server that exports it is running."""

import os

from tests.e2e.conftest import KiB, Serve
from tests.support.nbd_client import NbdClient
from tests.support.server_process import ctl


def test_next_client_sees_the_new_size(serve: Serve) -> None:
    disk = serve(objects=8, object_size=64 * KiB)
    data = os.urandom(64 * KiB)
    resize = (*disk.backend.arguments, "resize", disk.container)

    with disk.connect() as client:
        client.write(7 * 64 * KiB, data)
        client.write(0, data)
        assert ctl(*resize, "1M", check=False).returncode == 3
        client.disconnect()
    disk.wait_unlocked()
    ctl(*resize, "1M")
    with NbdClient(disk.server.port) as client:
        assert client.go(disk.container.encode()).size == 1024 * KiB
        assert client.read(7 * 64 * KiB, 128 * KiB) == data + bytes(64 * KiB)
        client.write(1024 * KiB - 64 * KiB, data)
        client.disconnect()
    disk.wait_unlocked(2)
    ctl(*resize, "256K", "--yes")
    ctl(*resize, "1M")
    with disk.connect() as client:
        assert client.read(0, 1024 * KiB) == data + bytes(960 * KiB)
        client.disconnect()
