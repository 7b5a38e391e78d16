# SPDX-License-Identifier: MIT
"""The Linux kernel as the client: a file system on the export, in a virtual machine."""

import pytest

from tests.e2e.conftest import MiB, Serve
from tests.support import vm

OBJECT_SIZE = 256 * 1024


@pytest.mark.timeout(vm.BOOT_SECONDS_MAX + 120)
def test_file_system_of_a_kernel_client_survives_a_round_trip(serve: Serve) -> None:
    disk = serve(objects=64 * MiB // OBJECT_SIZE, object_size=OBJECT_SIZE)
    console = vm.boot("roundtrip", port=disk.server.port, export=disk.container)
    assert vm.passed(console) == vm.steps("roundtrip"), "\n".join(console)
    disk.wait_unlocked(2)
    disk.image_at_rest()
