# SPDX-License-Identifier: MIT
import json
import os
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.cli.common import held
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_check import check
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.ctl_upload import UploadRequest, upload
from swiftnbd.cli.run import run
from swiftnbd.cli.source import Source
from swiftnbd.cli.unfinished import UPLOAD
from swiftnbd.errors import ContainerMissing, ExportUnusable, StoreError, StoreUnavailable
from swiftnbd.export.layout import PART_PREFIX, Geometry, object_name
from swiftnbd.export.objects import PRESENCE
from swiftnbd.export.pace import Pace
from swiftnbd.store.base import Blob, Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import HOLDER, NAME, OBJECT_SIZE, Told
from tests.support.backends import SwiftBackend
from tests.support.damage import cut_short, flip_a_byte, object_file
from tests.support.swift_aio import KEY, USER, RealSwift

DATA = b"".join(bytes([65 + i]) * OBJECT_SIZE for i in range(4)) + bytes(4 * OBJECT_SIZE)


async def look(store: Store, *, fast: bool = False) -> dict[str, Any]:
    return await check(store, name=NAME, fast=fast, quiet=True, tell=Told())


async def fill(store: Store, folder: Path) -> None:
    """Objects 0 to 3 have data, 4 to 7 are known to be absent."""
    (folder / "image").write_bytes(DATA)
    with Source(str(folder / "image")) as source:
        request = UploadRequest(None, False, True, Pace())
        await upload(store, name=NAME, source=source, request=request, tell=Told())


@pytest.fixture
async def good(disk: Store, tmp_path: Path) -> Store:
    await fill(disk, tmp_path)
    return disk


def where(result: dict[str, Any]) -> list[tuple[int, int]]:
    return [
        (each["start"] // OBJECT_SIZE, each["end"] // OBJECT_SIZE) for each in result["damaged"]
    ]


@pytest.mark.parametrize("fast", [False, True])
async def test_good_disk_is_good(good: Store, fast: bool) -> None:
    result = await look(good, fast=fast)
    assert result["good"]
    assert (result["objects_checked"], result["notes"], result["problems"]) == (4, [], [])


@pytest.mark.parametrize("fast", [False, True])
async def test_wrong_sizes_are_reported_with_their_bytes(good: Store, fast: bool) -> None:
    await good.put(object_name(1), b"x" * 17)
    await good.put(object_name(2), b"x" * 17)
    await good.put(object_name(3), b"x" * (OBJECT_SIZE + 1))
    result = await look(good, fast=fast)
    assert not result["good"]
    assert where(result) == [(1, 3), (3, 4)]  # neighbours with one fault are one range
    assert result["damaged"][0]["what"] == f"has 17 bytes, not {OBJECT_SIZE}"
    assert result["objects_damaged"] == 3


async def test_object_that_has_gone_is_missed_though_nothing_lists_it(good: Store) -> None:
    await good.delete(object_name(2))
    result = await look(good)
    assert where(result) == [(2, 3)]
    assert result["damaged"][0]["what"] == "is gone, though nobody has deleted it"


async def test_object_that_came_back_is_reported(good: Store) -> None:
    await good.put(object_name(6), b"x" * OBJECT_SIZE)
    result = await look(good)
    assert where(result) == [(6, 7)]
    assert "reads as zeros" in result["damaged"][0]["what"]


async def test_without_a_map_only_what_is_listed_is_known(good: Store) -> None:
    await good.delete(PRESENCE)
    await good.delete(object_name(2))
    await good.put(object_name(6), b"x" * OBJECT_SIZE)
    assert (await look(good))["good"]


async def test_listed_object_that_is_not_there_is_damage(tmp_path: Path) -> None:
    class Ghostly(MemoryStore):
        async def head(self, name: str, **options: Any) -> Any:
            return None if name == object_name(1) else await super().head(name, **options)

    store = Ghostly(NAME)
    await setup(store, name=NAME, request=SetupRequest(Geometry(8, OBJECT_SIZE)), tell=Told())
    await fill(store, tmp_path)
    await store.delete(PRESENCE)
    result = await look(store, fast=True)
    assert where(result) == [(1, 2)]
    assert "is listed, but is not there" in result["damaged"][0]["what"]


async def test_strays_are_noted_and_no_damage(good: Store) -> None:
    await good.put("letters/mum.txt", b"hello")
    await good.put(PART_PREFIX + "7", b"x")
    await good.put(object_name(8), b"x")
    await good.put("swiftnbd/what", b"x")
    await good.set_metadata({"swiftnbd-colour": "red", "other": "x"})
    result = await look(good)
    assert result["good"]
    assert result["notes"] == [
        "metadata key swiftnbd-colour is unknown",
        "object disk.part/00000008 lies behind the end of the disk",
        "stray object 'disk.part/7' of 1 bytes",
        "stray object 'letters/mum.txt' of 5 bytes",
        "stray object 'swiftnbd/what' of 1 bytes",
    ]


async def test_metadata_without_sense_are_a_problem(good: Store) -> None:
    await good.set_metadata({"swiftnbd-object-size": "3"})
    result = await look(good)
    assert not result["good"]
    assert result["problems"] == ["object-size 3 is not a multiple of 512 between 512 and 67108864"]


async def test_what_is_no_disk_is_no_damaged_one(store: Store) -> None:
    with pytest.raises(ContainerMissing):
        await look(store)
    await store.create_container()
    with pytest.raises(ExportUnusable, match="disk: it is not set up"):
        await look(store)


async def test_unfinished_upload_is_a_problem(good: Store) -> None:
    await good.put(UPLOAD, b"{}")
    result = await look(good)
    assert not result["good"]
    assert "an upload did not come to its end" in result["problems"][0]


async def test_disk_in_use_is_looked_at_and_that_is_said(good: Store) -> None:
    await good.put(object_name(1), b"x" * 17)
    async with held(good, NAME):
        await good.delete(object_name(2))  # by whoever holds it
        result = await look(good)
    assert where(result) == [(1, 2)]
    assert result["notes"] == ["it is in use: what changes meanwhile may look wrong"]
    await good.set_metadata({"swiftnbd-client": HOLDER})
    assert "it is in use" in (await look(good))["notes"][0]


class Failing(MemoryStore):
    """An object that cannot be read; also nothing at all, if ``down``."""

    down = False

    async def get(self, name: str, **options: Any) -> Blob | None:
        if name == object_name(1):
            raise StoreError("503 after 5 tries")
        return await super().get(name, **options)

    async def info(self, **options: Any) -> Any:
        if self.down:
            raise StoreUnavailable("connection refused")
        return await super().info(**options)


async def test_object_that_cannot_be_read_is_damage_and_a_store_that_is_away_is_not(
    tmp_path: Path,
) -> None:
    store = Failing(NAME)
    await setup(store, name=NAME, request=SetupRequest(Geometry(8, OBJECT_SIZE)), tell=Told())
    await fill(store, tmp_path)
    result = await look(store)
    assert where(result) == [(1, 2)]
    assert result["damaged"][0]["what"] == "cannot be read: 503 after 5 tries"
    assert result["objects_checked"] == 4


def test_damage_in_a_real_swift_is_found(
    real_swift: RealSwift, container_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = SwiftBackend(real_swift.auth_url, USER, KEY, tmp_path / "secrets.conf")
    backend.announce(container_name)
    (tmp_path / "image").write_bytes(os.urandom(20 * OBJECT_SIZE))

    def program(*arguments: str) -> tuple[int, str, str]:
        code = run(ctl, "swiftnbd-ctl", [*backend.arguments, *arguments])
        return code, *capsys.readouterr()

    upload = ["upload", "-q", "--setup", "--object-size", str(OBJECT_SIZE)]
    assert program(*upload, str(tmp_path / "image"), container_name)[0] == 0
    code, out, errors = program("check", "-q", container_name)
    assert (code, out) == (0, "")
    assert f"Done, {container_name} is good: 20 objects read" in errors
    flip_a_byte(object_file(real_swift, container_name, object_name(3)))
    cut_short(object_file(real_swift, container_name, object_name(7)))
    backend.put(container_name, object_name(11), b"short")
    code, out, errors = program("check", "-q", container_name)
    assert code == 7
    lines = out.splitlines()
    for line, index in zip(lines, (3, 7, 11), strict=True):
        start = index * OBJECT_SIZE
        begin = f"WRONG: bytes {start} to {start + OBJECT_SIZE - 1}: {object_name(index)}: "
        assert line.startswith(begin)
    assert f"{container_name} is damaged: 3 of the 20 objects read are" in errors
    # Swift has set them aside; that does not make them zeros
    code, out, _ = program("check", "--json", "--fast", "-q", container_name)
    assert code == 7
    found = json.loads(out)
    assert [each["start"] // OBJECT_SIZE for each in found["damaged"]] == [3, 7, 11]


def test_disk_of_an_unfinished_upload_is_not_called_damaged_in_no_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*where, "setup", NAME, "4"]) == 0
    (tmp_path / NAME / "swiftnbd" / "upload").write_bytes(b"{}")
    capsys.readouterr()
    assert run(ctl, "swiftnbd-ctl", [*where, "check", "-q", NAME]) == 7
    said = capsys.readouterr()
    assert said.out == "WRONG: an upload did not come to its end: a part of the disk is missing\n"
    assert said.err == (
        "swiftnbd-ctl: disk is not whole, though nothing is wrong with the 0 objects read\n"
    )
