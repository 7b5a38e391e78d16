# SPDX-License-Identifier: MIT
"""The Linux kernel as the client: a file system on the export, in a virtual machine."""

import hashlib
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Launch, MiB, Serve, launcher, make_backend, set_up_disk
from tests.support import vm
from tests.support.backends import DirectoryBackend
from tests.support.certificates import Certificates
from tests.support.clients import run

OBJECT_SIZE = 256 * 1024
OBJECTS = 64 * MiB // OBJECT_SIZE

pytestmark = pytest.mark.timeout(2 * vm.BOOT_SECONDS_MAX + 120)

# A machine costs a quarter of a minute of two processors: each test has one kind of store.
on_swift = pytest.mark.parametrize("backend", ["swift"], indirect=True)


def test_file_system_of_a_kernel_client_survives_a_round_trip_encrypted(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Behind luks and rate, on a Swift; afterwards qemu finds the file system in the container."""
    key = tmp_path / "disk.key"
    key.write_text("correct horse")
    filters = ("--filter=luks", "--filter=rate", "rate=4G", f"passphrase=+{key}")
    told = ("luks-format=yes", "luks-iter-time=0.05", "luks-discard=yes")
    backend = make_backend("swift", request, tmp_path)
    with launcher(backend, tmp_path) as launch:
        disk = set_up_disk(backend, launch, OBJECTS, OBJECT_SIZE, False, extra=(*filters, *told))
        vm.boot("roundtrip", port=disk.server.port, export=disk.container)
        disk.wait_unlocked(2)
        stored = disk.image_at_rest()
    encrypted, plain = tmp_path / "encrypted.img", tmp_path / "plain.img"
    encrypted.write_bytes(stored)
    secret = ("--object", f"secret,id=key,file={key}")
    source = f"driver=luks,key-secret=key,file.filename={encrypted}"
    run("qemu-img", "convert", *secret, "--image-opts", source, "-O", "raw", plain)
    run("e2fsck", "-fn", plain)
    content = hashlib.sha256(b"0 7").digest()  # of a large file: see vm._make_files
    assert content in plain.read_bytes()
    assert content not in stored


@on_swift
def test_file_system_survives_a_power_cut_of_client_and_server(
    serve: Serve, launch: Launch
) -> None:
    disk = serve(objects=OBJECTS, object_size=OBJECT_SIZE)
    machine = vm.Machine("powercut", port=disk.server.port, export=disk.container)
    machine.wait_for("round 3")
    disk.server.kill()  # first: it would see its client go, and unlock
    machine.cut_power()
    assert "durable" in machine.passed()
    disk.backend.ctl("unlock", disk.container)
    disk.server = launch(disk.container)
    vm.boot("recover", port=disk.server.port, export=disk.container)
    disk.wait_unlocked()
    disk.image_at_rest()


def test_mounted_file_system_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    """With docs/systemd/nbd-reconnect.py, in the middle of writes and reads."""
    backend = DirectoryBackend(tmp_path / "disks")
    with launcher(backend, tmp_path) as launch:
        closing = ("--on-end=close",)
        disk = set_up_disk(backend, launch, OBJECTS, OBJECT_SIZE, False, extra=closing)
        port = disk.server.port
        machine = vm.Machine("reconnect", port=port, export=disk.container, seconds=6)
        machine.wait_for("working")
        assert disk.server.terminate() == 0, disk.server.log()
        disk.server = launch(disk.container, extra=(*closing, "-p", str(port)))
        machine.wait()
        assert machine.passed() == vm.steps("reconnect"), machine.console
        assert machine.console.count("nbd0: connected") >= 2
        disk.wait_unlocked()
        disk.image_at_rest()


def test_block_device_of_a_kernel_client_does_what_block_devices_do(
    tmp_path: Path, certificates: Certificates
) -> None:
    """Four connections; read-only; and inside TLS, with the client's certificate."""
    backend = DirectoryBackend(tmp_path / "disks")
    tls = ("--tls=on", f"--tls-certificates={certificates.server}", "--tls-verify-peer")
    with launcher(backend, tmp_path) as launch:
        disk = set_up_disk(backend, launch, OBJECTS, OBJECT_SIZE, False, extra=("-v", *tls))
        read_only = launch(disk.container, extra=("-r",))
        vm.boot(
            "device",
            port=disk.server.port,
            export=disk.container,
            files=certificates.client,
            read_only_port=read_only.port,
            size=disk.size,
        )
        disk.wait_unlocked(3)
        disk.image_at_rest()
        log = disk.server.log()
    asked = re.findall(r"127\.0\.0\.1:(\d+) \S+: (\w+) \d+\+\d+ flags (\w+)$", log, re.MULTILINE)
    assert {command for _, command, _ in asked} == {"READ", "WRITE", "FLUSH", "TRIM"}
    assert {flags for _, command, flags in asked if command == "WRITE"} == {"0x0", "0x1"}  # FUA
    ports = [port for port, _, _ in asked]
    assert len(set(ports[: len(ports) // 4])) > 1
