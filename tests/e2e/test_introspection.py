# SPDX-License-Identifier: MIT
"""What foreign clients learn of an export before they use it."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, Launch, Serve, new_name
from tests.support.backends import Backend
from tests.support.clients import run
from tests.support.nbd_client import EPERM, NbdClient, NbdError


def _described(uri: str) -> dict[str, object]:
    """What nbdinfo tells of an export. (Its guess at the content is noise without file(1).)"""
    shown = json.loads(run("nbdinfo", "--no-content", "--json", uri).stdout)
    assert len(shown["exports"]) == 1
    export: dict[str, object] = shown["exports"][0]
    return export


def test_nbdinfo_shows_size_and_capabilities(shared_disk: Disk) -> None:
    export = _described(shared_disk.uri)
    assert export["export-size"] == shared_disk.size
    assert export["block_size_preferred"] == shared_disk.object_size
    assert not export["is_read_only"]
    capabilities = ["can_cache", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
    assert all(export[name] for name in capabilities), export


def test_nbdinfo_list_shows_every_export(backend: Backend, launch: Launch) -> None:
    names = [new_name(), new_name()]
    for objects, name in enumerate(names, start=3):
        backend.setup(name, objects, 4096)
    server = launch(*names)
    shown = json.loads(run("nbdinfo", "--list", "--json", f"nbd://127.0.0.1:{server.port}").stdout)
    sizes = {export["export-name"]: export["export-size"] for export in shown["exports"]}
    assert sizes == {names[0]: 3 * 4096, names[1]: 4 * 4096}


def test_nbd_client_list_shows_the_export(shared_disk: Disk) -> None:
    shown = run("nbd-client", "-l", "127.0.0.1", str(shared_disk.server.port)).stdout
    assert shared_disk.container in shown.split()


def test_nbdinfo_of_unknown_export_fails_and_the_server_goes_on(shared_disk: Disk) -> None:
    shared_disk.server.expects("export 'unknown' does not exist")
    unknown = f"nbd://127.0.0.1:{shared_disk.server.port}/unknown"
    assert run("nbdinfo", unknown, check=False).returncode != 0
    assert run("nbdinfo", "--size", shared_disk.uri).stdout.strip() == str(shared_disk.size)


def test_asking_takes_no_lock(serve: Serve) -> None:
    disk = serve()
    with NbdClient(disk.server.port) as client:
        client.info(disk.container.encode())
        assert disk.holder == ""
        client.abort()


def test_read_only_export_refuses_writes_and_takes_no_lock(
    serve: Serve, backend: Backend, launch: Launch, tmp_path: Path
) -> None:
    disk = serve(objects=4, strict=True)
    with disk.connect() as client:
        client.write(0, b"x" * 512, flags=1)
        client.disconnect()
    disk.image_at_rest()
    secrets = tmp_path / "read-only.conf"
    backend.write_secrets(secrets, disk.container, "read-only = 1")
    disk.server = launch(disk.container, extra=("--secrets", str(secrets)))
    assert _described(disk.uri)["is_read_only"]
    with disk.connect() as first, disk.connect("127.0.0.2") as second:
        assert disk.holder == ""
        assert first.read(0, 512) == second.read(0, 512) == b"x" * 512
        with pytest.raises(NbdError) as refused:
            first.write(0, b"y")
        assert refused.value.number == EPERM
        with pytest.raises(NbdError) as refused:
            first.zero(0, 1)
        assert refused.value.number == EPERM
        assert first.read(0, 1) == b"x"
