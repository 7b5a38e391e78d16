# SPDX-License-Identifier: MIT
import json
from pathlib import Path

import pytest

from swiftnbd.cli.common import locked
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_info import document, examine, fields
from swiftnbd.cli.run import run
from swiftnbd.errors import ContainerMissing, ExportUnusable
from swiftnbd.export.epoch import epoch_name
from swiftnbd.export.objects import PRESENCE
from swiftnbd.store.base import ContainerInfo, Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HOLDER, NAME, OBJECT_SIZE, metadata


async def test_fresh_disk_is_known_to_be_empty(disk: Store) -> None:
    found = document(await examine(disk, name=NAME))
    last = found.pop("last_client")
    assert isinstance(last, dict)
    assert last["mark"] == (await metadata(disk))["last"]
    assert found.pop("policy") in ("memory", "directory")
    assert found.pop("stored_bytes") == sum(row.size for row in await disk.listing())
    assert found == {
        "container": NAME,
        "format": 1,
        "size": 8 * OBJECT_SIZE,
        "objects": 8,
        "object_size": OBJECT_SIZE,
        "image_size": None,
        "stored_objects": 2,  # a lock epoch and the map of what exists
        "versioned": False,
        "created": None,
        "lock": None,
        "presence": {"unknown": 0, "absent": 8, "present": 0},
    }


async def test_holder_is_shown_with_its_process(disk: Store) -> None:
    async with locked(disk, NAME) as (lock, _):
        found = await examine(disk, name=NAME)
        holder = document(found)["lock"]
        assert isinstance(holder, dict)
        assert holder["mark"] == lock.mark
        assert holder["pid"]
        texts = dict(fields(found))
    assert texts["Lock"].startswith("held by ")
    assert "process " in texts["Lock"]
    assert texts["Presence"] == "known to its holder alone"
    texts = dict(fields(await examine(disk, name=NAME)))
    assert texts["Lock"] == "unlocked"
    assert texts["Presence"].startswith("unknown")  # who had it may have changed anything


async def test_map_counts_only_with_the_binding_of_the_last_holder(disk: Store) -> None:
    assert (await examine(disk, name=NAME)).presence
    await disk.set_metadata({"swiftnbd-last": HOLDER})  # as 0.11 leaves it
    assert (await examine(disk, name=NAME)).presence is None


async def test_map_of_a_larger_disk_is_not_taken_for_ours(disk: Store) -> None:
    await disk.put(PRESENCE, b"x" * 100_000)
    assert (await examine(disk, name=NAME)).presence is None


async def test_holder_without_epochs_is_shown(disk: Store) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    found = document(await examine(disk, name=NAME))["lock"]
    assert found == {
        "mark": HOLDER,
        "client": "host:7",
        "since": 1_700_000_000,
        "pid": None,
        "machine": None,
        "renewed": None,
    }


async def test_what_swift_says_is_shown() -> None:
    class Said(MemoryStore):
        async def info(self, *, count: bool = False) -> ContainerInfo | None:
            found = await super().info(count=count)
            return found and ContainerInfo(found.metadata, 7, 4096, "gold", True, 1_700_000_000.5)

    store = Said(NAME)
    await store.create_container(
        {"swiftnbd-version": "1", "swiftnbd-objects": "3", "swiftnbd-object-size": "4096"}
        | {"swiftnbd-image-size": "10000"}
    )
    texts = dict(fields(await examine(store, name=NAME)))
    assert texts["Created"] == "2023-11-14 22:13:20 UTC"
    assert texts["Policy"] == "gold"
    assert texts["Stored"] == "7 objects, 4 KiB"
    assert texts["Image"] == "9.8 KiB (10000 bytes)"
    assert "every block written again takes its space" in texts["Versions"]


async def test_what_is_no_disk_is_one_sentence(store: Store) -> None:
    with pytest.raises(ContainerMissing, match=f"^{NAME} doesn't exist$"):
        await examine(store, name=NAME)
    await store.create_container()
    with pytest.raises(ExportUnusable, match=f"^{NAME}: it is not set up"):
        await examine(store, name=NAME)


def test_command_prints_fields_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*where, "setup", NAME, "--size", "1M"]) == 0
    capsys.readouterr()
    assert run(ctl, "swiftnbd-ctl", [*where, "info", NAME]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"Container: {NAME}",
        "Disk: 1 MiB (1048576 bytes)",
        "Objects: 16 of 64 KiB",
    ]
    assert run(ctl, "swiftnbd-ctl", [*where, "info", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 1 << 20
    assert run(ctl, "swiftnbd-ctl", [*where, "info", "nonesuch"]) == 4


async def test_lock_epochs_that_were_never_made_are_no_map(store: Store) -> None:
    await store.create_container(
        {"swiftnbd-version": "1", "swiftnbd-objects": "3", "swiftnbd-object-size": "4096"}
    )
    found = await examine(store, name=NAME)
    assert (found.presence, found.seen.holder) == (None, "")
    assert await store.head(epoch_name(1)) is None
