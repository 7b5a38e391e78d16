# SPDX-License-Identifier: MIT
import json
import os
from hashlib import md5
from pathlib import Path

import pytest

from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_info import examine
from swiftnbd.cli.ctl_trim import Trimmed, etag_of_zeros, trim
from swiftnbd.cli.run import run
from swiftnbd.errors import Locked, StoreUnavailable
from swiftnbd.export.layout import object_name
from swiftnbd.store.base import Listed, ObjectInfo, Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HOLDER, NAME, OBJECT_SIZE, Told, metadata

ZEROS = bytes(OBJECT_SIZE)


async def fill(store: Store) -> bytes:
    """Zeros in objects 1 and 5, data in 2 and 6, another object's zeros behind the end."""
    data = os.urandom(OBJECT_SIZE)
    for index in (1, 5, 9):
        await store.put(object_name(index), ZEROS)
    for index in (2, 6):
        await store.put(object_name(index), data)
    await store.put("disk.part/odd", ZEROS)
    return data


async def stored(store: Store) -> list[str]:
    return [row.name.removeprefix("disk.part/") for row in await store.listing(prefix="disk.part/")]


@pytest.mark.parametrize("size", [0, 512, 1 << 20, (1 << 20) + 512, 5 << 20])
def test_etag_of_zeros_is_their_md5(size: int) -> None:
    assert etag_of_zeros(size) == md5(bytes(size)).hexdigest()


async def test_only_zeros_of_the_disk_are_deleted(disk: Store, told: Told) -> None:
    data = await fill(disk)
    geometry, found = await trim(disk, name=NAME, dry_run=False, quiet=True, tell=told)
    assert (geometry.object_size, found) == (OBJECT_SIZE, Trimmed(stored=4, zeros=2))
    assert await stored(disk) == ["00000002", "00000006", "00000009", "odd"]
    blob = await disk.get(object_name(2))
    assert blob is not None
    assert blob.data == data
    assert "client" not in await metadata(disk)


async def test_dry_run_changes_nothing_and_takes_no_lock(disk: Store, told: Told) -> None:
    await fill(disk)
    before = await metadata(disk), await stored(disk)
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    _, found = await trim(disk, name=NAME, dry_run=True, quiet=True, tell=told)
    assert found == Trimmed(stored=4, zeros=2)
    await disk.set_metadata({"swiftnbd-client": ""})
    assert (await metadata(disk), await stored(disk)) == before


async def test_locked_container_is_not_trimmed(disk: Store, told: Told) -> None:
    await fill(disk)
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    with pytest.raises(Locked):
        await trim(disk, name=NAME, dry_run=False, quiet=True, tell=told)
    assert len(await stored(disk)) == 6


async def test_next_client_is_told_what_is_absent_now(disk: Store, told: Told) -> None:
    await disk.set_metadata({"swiftnbd-last": HOLDER})  # nothing is known any more
    await fill(disk)
    await trim(disk, name=NAME, dry_run=False, quiet=True, tell=told)
    assert (await examine(disk, name=NAME)).presence == {"unknown": 6, "absent": 2, "present": 0}


class Stale(MemoryStore):
    """Its listing is of a time when everything was zeros, and knows it or not."""

    def __init__(self, etag: str) -> None:
        super().__init__(NAME)
        self.etag = etag
        self.heads: list[str] = []

    async def listing(self, **options: str) -> list[Listed]:  # type: ignore[override]
        rows = await super().listing(**options)  # type: ignore[arg-type]
        return [Listed(row.name, row.size, self.etag) for row in rows]

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        if name.startswith("disk.part/"):
            assert newest
            self.heads.append(name)
        return await super().head(name, newest=newest)


@pytest.mark.parametrize("etag", ["", etag_of_zeros(OBJECT_SIZE)])
async def test_listing_is_not_believed(told: Told, etag: str) -> None:
    store = Stale(etag)
    await store.create_container(
        {"swiftnbd-version": "1", "swiftnbd-objects": "8", "swiftnbd-object-size": "4096"}
    )
    await fill(store)
    _, found = await trim(store, name=NAME, dry_run=False, quiet=True, tell=told)
    assert found.zeros == 2
    assert await stored(store) == ["00000002", "00000006", "00000009", "odd"]
    assert len(store.heads) == 4


async def test_what_is_listed_with_other_content_costs_no_request(told: Told) -> None:
    store = Stale("0" * 32)
    await store.create_container(
        {"swiftnbd-version": "1", "swiftnbd-objects": "8", "swiftnbd-object-size": "4096"}
    )
    await fill(store)
    _, found = await trim(store, name=NAME, dry_run=True, quiet=True, tell=told)
    assert (found, store.heads) == (Trimmed(4, 0), [])


async def test_failure_gives_the_lock_back(told: Told) -> None:
    class Failing(MemoryStore):
        async def delete(self, name: str) -> bool:
            if name.startswith("disk.part/"):
                raise StoreUnavailable("503")
            return await super().delete(name)

    store = Failing(NAME)
    await store.create_container(
        {"swiftnbd-version": "1", "swiftnbd-objects": "8", "swiftnbd-object-size": "4096"}
    )
    await fill(store)
    with pytest.raises(StoreUnavailable):
        await trim(store, name=NAME, dry_run=False, quiet=True, tell=told)
    assert "client" not in await metadata(store)
    assert len(await stored(store)) == 6


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*where, "setup", NAME, "--size", "1M"]) == 0
    part = tmp_path / NAME / "disk.part"
    part.mkdir()
    (part / "00000003").write_bytes(bytes(65536))
    (part / "00000004").write_bytes(os.urandom(65536))
    capsys.readouterr()
    assert run(ctl, "swiftnbd-ctl", [*where, "trim", NAME, "-n", "-q"]) == 0
    said = capsys.readouterr().err
    assert "1 of 2 stored objects is zeros: 64 KiB would be freed" in said
    assert run(ctl, "swiftnbd-ctl", [*where, "trim", NAME, "--json"]) == 0
    said_of_it = capsys.readouterr()
    assert "Done" not in said_of_it.err
    assert json.loads(said_of_it.out) == {
        "container": NAME,
        "stored_objects": 2,
        "zero_objects": 1,
        "bytes": 65536,
        "dry_run": False,
    }
    assert [path.name for path in part.iterdir()] == ["00000004"]
