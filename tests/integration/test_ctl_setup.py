# SPDX-License-Identifier: MIT
import socket

import click
import pytest

from swiftnbd.cli.ctl_setup import SetupRequest, geometry_for, setup
from swiftnbd.cli.exits import exit_code
from swiftnbd.errors import Locked, SwiftnbdError
from swiftnbd.export.layout import Geometry, object_name
from swiftnbd.store.base import ContainerInfo, Store
from swiftnbd.store.memory import MemoryStore
from tests.integration.conftest import (
    HELD,
    HOLDER,
    NAME,
    OBJECT_SIZE,
    Told,
    held_by_the_dead,
    metadata,
)

FRESH = {"version": "1", "objects": "8", "object-size": "4096"}


async def run(
    store: Store,
    told: Told,
    objects: int = 8,
    size: int = OBJECT_SIZE,
    *,
    force: bool = False,
    exist_ok: bool = False,
) -> None:
    request = SetupRequest(Geometry(objects, size), None, force, exist_ok)
    await setup(store, name=NAME, request=request, tell=told)


async def refused(store: Store, *arguments: int, **options: bool) -> str:
    """Run it; it must be refused with nothing changed. The sentence."""
    before = await metadata(store), await store.listing()
    with pytest.raises(SwiftnbdError) as caught:
        await run(store, Told(), *arguments, **options)
    assert (await metadata(store), await store.listing()) == before
    assert exit_code(caught.value) == (3 if isinstance(caught.value, Locked) else 1)
    return str(caught.value)


@pytest.mark.parametrize(
    ("objects", "size", "object_size", "geometry"),
    [
        (16384, None, 65536, Geometry(16384, 65536)),
        (None, 10 << 30, 65536, Geometry(163840, 65536)),
        (None, 1, 65536, Geometry(1, 65536)),
        (None, 65537, 65536, Geometry(2, 65536)),
        (99_999_999, None, 67108864, Geometry(99_999_999, 67108864)),
        (1, None, 512, Geometry(1, 512)),  # may be an old container's; decided later
    ],
)
def test_geometry_asked_for(
    objects: int | None, size: int | None, object_size: int, geometry: Geometry
) -> None:
    assert geometry_for(objects, size, object_size) == geometry


@pytest.mark.parametrize(
    ("objects", "size", "object_size", "sentence"),
    [
        (None, None, 65536, "give either OBJECTS or --size SIZE"),
        (1, 65536, 65536, "give either OBJECTS or --size SIZE"),
        (1, None, 1000, "--object-size 1000 is not a multiple of 512 between 4096 and 67108864"),
        (1, None, 67109376, "--object-size 67109376 is not a multiple of 512"),
        (100_000_000, None, 65536, "more than 99999999: use a larger .* at least 131072$"),
        (None, 1 << 60, 65536, "a disk of 1 EiB is too large|1024 PiB is too large"),
        (None, 8 << 40, 65536, "use a larger --object-size, at least 131072$"),
    ],
)
def test_impossible_geometry_is_refused_with_advice(
    objects: int | None, size: int | None, object_size: int, sentence: str
) -> None:
    with pytest.raises(click.UsageError, match=sentence):
        geometry_for(objects, size, object_size)


async def test_advice_for_too_many_objects_is_accepted() -> None:
    assert geometry_for(None, 8 << 40, 131072).size == 8 << 40


async def test_new_container_is_created_with_exactly_this_metadata(
    store: Store, told: Told
) -> None:
    await run(store, told)
    found = await metadata(store)
    assert found.pop("last").startswith(f"{socket.gethostname()}:")  # we looked that it is ours
    assert found == FRESH | {"epoch": "1"}
    assert told == [
        "disk doesn't exist, will be created",
        "Done, disk: 8 objects of 4 KiB, 32 KiB",
    ]


async def test_new_container_needs_objects_of_4_kib(store: Store) -> None:
    with pytest.raises(click.UsageError, match="512 is less than 4096"):
        await run(store, Told(), 8, 512)
    assert await store.info() is None


async def test_empty_container_is_set_up(store: Store, told: Told) -> None:
    await store.create_container({"other": "kept"})
    await run(store, told)
    assert await metadata(store) == FRESH | {"other": "kept"}


async def test_container_with_objects_needs_force(store: Store, told: Told) -> None:
    await store.create_container()
    await store.put("letters/mum.txt", b"dear")
    assert "holds objects that are no disk's; to use it, give --force" in await refused(store)
    await run(store, told, force=True)
    assert await metadata(store) == FRESH
    assert await store.head("letters/mum.txt")


async def test_disk_is_not_set_up_twice_without_force(disk: Store) -> None:
    assert await refused(disk) == (
        "disk has already been setup with 8 objects of 4 KiB, 32 KiB; "
        "to set it up again, use --force"
    )


async def test_locked_container_is_refused_even_with_force(disk: Store) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    assert await refused(disk, force=True) == HELD


async def test_locked_container_is_refused_even_if_it_makes_no_sense(disk: Store) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER, "swiftnbd-objects": "-1"})
    assert await refused(disk, force=True) == HELD


async def test_container_of_a_killed_process_is_set_up_again(
    disk: Store, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    await held_by_the_dead(disk, monkeypatch)
    assert "already been setup" in await refused(disk, 16)
    await run(disk, told, 16, force=True)
    found = await metadata(disk)
    assert (found["objects"], "client" in found) == ("16", False)


async def test_force_makes_the_disk_larger_and_keeps_its_data(disk: Store, told: Told) -> None:
    await disk.put(object_name(3), b"x" * OBJECT_SIZE)
    await run(disk, told, 16, force=True)
    found = await metadata(disk)
    assert (found["objects"], "client" in found) == ("16", False)
    assert [row.name for row in await disk.listing(prefix="disk.part/")] == [object_name(3)]


async def test_smaller_disk_is_told_what_becomes_of_its_end(disk: Store, told: Told) -> None:
    await run(disk, told, 4, force=True)
    assert any("stays stored, unseen" in line for line in told)


async def test_object_size_of_a_disk_with_data_never_changes(disk: Store) -> None:
    await disk.put(object_name(3), b"x" * OBJECT_SIZE)
    sentence = await refused(disk, 8, 8192, force=True)
    assert "holds a disk in objects of 4096 bytes, unreadable with --object-size 8192" in sentence
    assert "use theirs, or download the disk and delete the container" in sentence


async def test_object_size_of_an_empty_disk_may_change(disk: Store, told: Told) -> None:
    await run(disk, told, 8, 8192, force=True)
    assert (await metadata(disk))["object-size"] == "8192"


async def test_container_that_lost_its_object_size_is_repaired_with_the_one_it_had(
    disk: Store, told: Told
) -> None:
    # what 0.11 leaves on a Swift that drops header names with an underscore
    await disk.put(object_name(0), b"x" * 512)
    await disk.set_metadata({"swiftnbd-object-size": ""})
    assert "objects of 512 bytes" in await refused(disk, force=True)
    await run(disk, told, 8, 512, force=True)
    assert (await metadata(disk))["object-size"] == "512"


async def test_exist_ok_leaves_the_same_disk_alone_even_locked(disk: Store, told: Told) -> None:
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    await run(disk, told, exist_ok=True)
    assert told == ["disk is set up like this already, nothing to do"]
    assert (await metadata(disk))["client"] == HOLDER


async def test_exist_ok_refuses_another_geometry(disk: Store) -> None:
    assert await refused(disk, 9, exist_ok=True) == (
        "disk has already been setup with 8 objects of 4 KiB, 32 KiB, "
        "not with 9 objects of 4 KiB, 36 KiB; to set it up again, use --force"
    )


async def test_exist_ok_creates_what_is_not_there(store: Store, told: Told) -> None:
    await run(store, told, exist_ok=True)
    found = await metadata(store)
    del found["last"]
    assert found == FRESH | {"epoch": "1"}


async def test_policy_of_an_existing_container_cannot_be_chosen(disk: Store) -> None:
    request = SetupRequest(Geometry(8, OBJECT_SIZE), policy="gold", force=True)
    with pytest.raises(SwiftnbdError, match="disk exists with storage policy"):
        await setup(disk, name=NAME, request=request, tell=Told())


async def test_forced_setup_forgets_the_image_that_was_uploaded(disk: Store, told: Told) -> None:
    await disk.set_metadata({"swiftnbd-image-size": "100"})
    await run(disk, told, force=True)
    assert "image-size" not in await metadata(disk)


@pytest.mark.parametrize(
    ("key", "value", "warnings"),
    [
        ("quota-bytes", "32767", 1),
        ("quota-bytes", "32768", 0),
        ("quota-count", "7", 1),
        ("quota-count", "8", 0),
        ("quota-count", "many", 0),
    ],
)
async def test_quota_smaller_than_the_disk_is_warned_of(
    store: Store, told: Told, key: str, value: str, warnings: int
) -> None:
    await store.create_container({key: value})
    await run(store, told)
    assert sum(f"WARNING: disk has a quota of {value}" in line for line in told) == warnings


async def test_versioned_container_is_warned_of(told: Told) -> None:
    class Versioned(MemoryStore):
        async def info(self, *, count: bool = False) -> ContainerInfo | None:
            info = await super().info(count=count)
            return info and ContainerInfo(info.metadata, versioned=True)

    await run(Versioned(NAME), told)
    assert sum("WARNING: disk keeps old versions" in line for line in told) == 1
