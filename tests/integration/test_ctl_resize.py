# SPDX-License-Identifier: MIT
import json
import os
import sys
from pathlib import Path

import click
import pytest

from swiftnbd.cli import ctl_resize
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_info import examine
from swiftnbd.cli.ctl_resize import make_plan, resize
from swiftnbd.cli.run import run
from swiftnbd.errors import Locked, StoreError, SwiftnbdError
from swiftnbd.export.layout import object_name
from swiftnbd.store.base import Listed, Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.integration.conftest import HOLDER, NAME, OBJECT_SIZE, Told, metadata
from tests.support.faulty import Call, Fault, Faulty, Script, failing

SET_UP = {"swiftnbd-version": "1", "swiftnbd-objects": "8", "swiftnbd-object-size": "4096"}


async def go(store: Store, size: int, told: Told | None = None) -> int:
    """Resize without asking."""
    plan = await make_plan(store, name=NAME, size=size)
    return await resize(store, name=NAME, plan=plan, quiet=True, tell=told or Told())


async def content(store: Store) -> bytes:
    """The disk as its metadata describe it."""
    count = int((await metadata(store))["objects"])
    blobs = [await store.get(object_name(index)) for index in range(count)]
    return b"".join(bytes(OBJECT_SIZE) if blob is None else blob.data for blob in blobs)


async def fill(store: Store) -> bytes:
    """Data in every object of the disk but the fourth, as by somebody who keeps no map."""
    await store.set_metadata({"swiftnbd-last": HOLDER})
    for index in (0, 1, 2, 4, 5, 6, 7):
        await store.put(object_name(index), os.urandom(OBJECT_SIZE))
    return await content(store)


async def test_larger_disk_has_the_same_bytes_and_zeros(disk: Store) -> None:
    before = await fill(disk)
    assert await go(disk, 12 * OBJECT_SIZE) == 0
    assert await content(disk) == before + bytes(4 * OBJECT_SIZE)
    assert "client" not in await metadata(disk)


async def test_size_is_rounded_up_to_whole_objects(disk: Store) -> None:
    await go(disk, 8 * OBJECT_SIZE + 1)
    assert (await metadata(disk))["objects"] == "9"


async def test_smaller_disk_loses_what_is_behind_its_end_for_good(disk: Store) -> None:
    before = await fill(disk)
    plan = await make_plan(disk, name=NAME, size=5 * OBJECT_SIZE)
    assert plan.loss == "3 stored objects (12 KiB)"
    assert await go(disk, 5 * OBJECT_SIZE) == 3
    assert await content(disk) == before[: 5 * OBJECT_SIZE]
    await go(disk, 8 * OBJECT_SIZE)
    assert await content(disk) == before[: 5 * OBJECT_SIZE] + bytes(3 * OBJECT_SIZE)


async def test_tail_of_the_last_object_reads_as_zeros(disk: Store) -> None:
    before = await fill(disk)
    size = 4 * OBJECT_SIZE + 100
    plan = await make_plan(disk, name=NAME, size=size)
    assert plan.loss == "3 stored objects (12 KiB) and more"
    await go(disk, size)
    assert await content(disk) == before[:size] + bytes(OBJECT_SIZE - 100)


async def test_last_object_that_becomes_zeros_is_deleted(disk: Store) -> None:
    await disk.set_metadata({"swiftnbd-last": HOLDER})
    await disk.put(object_name(4), bytes(100) + b"x" * (OBJECT_SIZE - 100))
    plan = await make_plan(disk, name=NAME, size=4 * OBJECT_SIZE + 100)
    assert plan.loss == "the last object's end"
    await go(disk, 4 * OBJECT_SIZE + 100)
    assert await disk.get(object_name(4)) is None


async def test_nothing_is_zeroed_when_the_size_stays(disk: Store) -> None:
    before = await fill(disk)
    plan = await make_plan(disk, name=NAME, size=8 * OBJECT_SIZE - 100)
    assert plan.after == plan.before
    assert not plan.shrinks
    assert await content(disk) == before


async def test_image_that_was_uploaded_is_forgotten(disk: Store) -> None:
    """Or a download would end where it did, and lose what was written behind it."""
    await disk.set_metadata({"swiftnbd-image-size": "30000"})
    await go(disk, 16 * OBJECT_SIZE)
    assert "image-size" not in await metadata(disk)


async def test_what_setup_left_behind_the_end_does_not_come_back(disk: Store) -> None:
    before = await fill(disk)
    await disk.set_metadata({"swiftnbd-objects": "4"})  # as setup --force does
    assert await go(disk, 6 * OBJECT_SIZE) == 4
    assert await content(disk) == before[: 4 * OBJECT_SIZE] + bytes(2 * OBJECT_SIZE)
    assert await disk.head(object_name(7)) is None


async def test_map_of_what_exists_goes_along(disk: Store) -> None:
    await go(disk, 12 * OBJECT_SIZE)
    assert (await examine(disk, name=NAME)).presence == {"unknown": 4, "absent": 8, "present": 0}
    await go(disk, 4 * OBJECT_SIZE)
    assert (await examine(disk, name=NAME)).presence == {"unknown": 0, "absent": 4, "present": 0}


class Forgetful(MemoryStore):
    """Its listing misses what the container server did not hear of."""

    async def listing(self, **options: str) -> list[Listed]:  # type: ignore[override]
        rows = await super().listing(**options)  # type: ignore[arg-type]
        return [row for row in rows if row.name != object_name(6)]


async def test_object_that_no_listing_shows_is_deleted_too() -> None:
    store = Forgetful(NAME)
    await store.create_container(SET_UP)
    before = await fill(store)
    await go(store, 4 * OBJECT_SIZE)
    await go(store, 8 * OBJECT_SIZE)
    assert await content(store) == before[: 4 * OBJECT_SIZE] + bytes(4 * OBJECT_SIZE)


async def test_too_many_suspects_are_not_deleted_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctl_resize, "SUSPECTS_MAX", 2)
    store = Faulty(MemoryStore(NAME))
    await store.create_container(SET_UP | {"swiftnbd-objects": "9999"})
    await go(store, 4 * OBJECT_SIZE)
    assert store.count("delete") < 5


async def test_locked_or_changed_disk_is_left_alone(disk: Store) -> None:
    before = await fill(disk)
    plan = await make_plan(disk, name=NAME, size=OBJECT_SIZE)
    await disk.set_metadata({"swiftnbd-client": HOLDER})
    with pytest.raises(Locked):
        await resize(disk, name=NAME, plan=plan, quiet=True, tell=Told())
    await disk.set_metadata({"swiftnbd-client": "", "swiftnbd-objects": "7"})
    with pytest.raises(SwiftnbdError, match="was set up anew meanwhile"):
        await resize(disk, name=NAME, plan=plan, quiet=True, tell=Told())
    await disk.set_metadata({"swiftnbd-objects": "8"})
    assert await content(disk) == before


@pytest.mark.parametrize("fails_at", range(16))
async def test_wherever_it_stops_the_disk_is_whole_and_the_next_try_ends_it(fails_at: int) -> None:
    """Each change fails once; what is kept is there at any moment, what is lost stays lost."""
    account, script = MemoryAccount(), Script()
    store = Faulty(MemoryStore(NAME, account), script)
    await store.create_container(SET_UP)
    before = await fill(store)
    size = 4 * OBJECT_SIZE + 100
    plan = await make_plan(store, name=NAME, size=size)
    changes = 0

    def fail_once(call: Call) -> Fault | None:
        nonlocal changes
        if call.op in ("put", "delete", "set_metadata"):
            changes += 1
            if changes == fails_at + 1:
                return failing()
        return None

    store.plan = fail_once
    told = Told()
    try:
        await resize(store, name=NAME, plan=plan, quiet=True, tell=told)
    except StoreError:
        store.plan = script
        now = await content(store)
        is_told = any("disk has 32 KiB still, but what lay behind" in line for line in told)
        assert is_told == (len(now) == len(before)) or now == before
        assert now[:size] == before[:size]
        assert len(now) in (8 * OBJECT_SIZE, 5 * OBJECT_SIZE)
        await MemoryStore(NAME, account).set_metadata({"swiftnbd-client": ""})
        plan = await make_plan(store, name=NAME, size=size)
        if plan.shrinks:
            await resize(store, name=NAME, plan=plan, quiet=True, tell=Told())
    store.plan = script
    assert await content(store) == before[:size] + bytes(OBJECT_SIZE - 100)
    await go(store, 8 * OBJECT_SIZE)
    assert await content(store) == before[:size] + bytes(8 * OBJECT_SIZE - size)


async def test_too_many_objects_are_refused_with_advice(disk: Store) -> None:
    with pytest.raises(SwiftnbdError, match="copy disk to a container with larger ones"):
        await make_plan(disk, name=NAME, size=100_000_000 * OBJECT_SIZE)


@pytest.mark.parametrize(
    ("flags", "is_terminal", "answer", "code", "asked"),
    [
        ([], True, True, 0, True),
        ([], True, False, 1, True),
        (["--yes"], True, False, 0, False),
        ([], False, False, 1, False),
        (["--yes"], False, False, 0, False),
    ],
)
def test_smaller_only_after_a_yes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    is_terminal: bool,
    answer: bool,
    code: int,
    asked: bool,
) -> None:
    questions = []

    def confirm(question: str, **_: object) -> bool:
        questions.append(question)
        return answer

    monkeypatch.setattr(click, "confirm", confirm)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: is_terminal)
    where = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*where, "setup", NAME, "--size", "1M"]) == 0
    part = tmp_path / NAME / "disk.part"
    part.mkdir()
    (part / "00000015").write_bytes(os.urandom(65536))
    capsys.readouterr()
    assert run(ctl, "swiftnbd-ctl", [*where, "resize", NAME, "512K", "--json", *flags]) == code
    said = capsys.readouterr()
    loss = "from 1 MiB to 512 KiB, and lose 1 stored object (64 KiB)"
    assert [loss in question for question in questions] == [True] * asked
    if code == 0:
        assert json.loads(said.out) == {
            "container": NAME,
            "size_before": 1 << 20,
            "size": 1 << 19,
            "objects_deleted": 1,
        }
        assert "Done" not in said.err
    elif not asked:
        assert f"{loss}; to do that, give --yes" in said.err
    assert (part / "00000015").exists() == (code != 0)


def test_same_size_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*where, "setup", NAME, "--size", "1M"]) == 0
    assert run(ctl, "swiftnbd-ctl", [*where, "resize", NAME, "1M"]) == 0
    assert "disk has 1 MiB already, nothing to do" in capsys.readouterr().err
    assert run(ctl, "swiftnbd-ctl", [*where, "resize", NAME, "0"]) == 2
    assert run(ctl, "swiftnbd-ctl", [*where, "resize", NAME, "big"]) == 2
