# SPDX-License-Identifier: MIT
"""The Linux kernel as the client: a file system on the export, in a virtual machine."""

import pytest

from tests.e2e.conftest import Launch, MiB, Serve
from tests.support import vm

OBJECT_SIZE = 256 * 1024
OBJECTS = 64 * MiB // OBJECT_SIZE

pytestmark = pytest.mark.timeout(2 * vm.BOOT_SECONDS_MAX + 120)


def test_file_system_of_a_kernel_client_survives_a_round_trip(serve: Serve) -> None:
    disk = serve(objects=OBJECTS, object_size=OBJECT_SIZE)
    vm.boot("roundtrip", port=disk.server.port, export=disk.container)
    disk.wait_unlocked(2)
    disk.image_at_rest()


def test_file_system_survives_a_power_cut_of_client_and_server(
    serve: Serve, launch: Launch
) -> None:
    disk = serve(objects=OBJECTS, object_size=OBJECT_SIZE)
    machine = vm.Machine("powercut", port=disk.server.port, export=disk.container)
    machine.wait_for("round 3")
    machine.cut_power()
    disk.server.kill()
    assert "durable" in machine.passed()
    disk.backend.ctl("unlock", disk.container)
    disk.server = launch(disk.container)
    vm.boot("recover", port=disk.server.port, export=disk.container)
    disk.wait_unlocked()
    disk.image_at_rest()
