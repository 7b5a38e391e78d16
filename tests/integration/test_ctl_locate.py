# SPDX-License-Identifier: MIT
import json
import os
from hashlib import md5
from pathlib import Path

import pytest

from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_locate import document, fields, locate, parse_place
from swiftnbd.cli.run import run
from swiftnbd.errors import ConfigError, SwiftnbdError
from swiftnbd.export.layout import object_name
from swiftnbd.store.base import Store
from tests.integration.conftest import NAME, OBJECT_SIZE


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0", (None, 0)),
        ("00", (None, 0)),
        ("1", (None, 1)),
        ("1M", (None, 1 << 20)),
        ("0x100000", (None, 1 << 20)),
        ("0XfF", (None, 255)),
        ("disk.part/00000042", (42, 0)),
        ("disk.part/00000000", (0, 0)),
    ],
)
def test_place_is_an_offset_or_an_object(text: str, place: tuple[int | None, int]) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1.5", "0x", "0xg", "\u0661", "disk.part/7", "1M2"]
)
def test_what_is_no_place_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"neither an offset|no object of a disk"):
        parse_place(text)


@pytest.mark.parametrize(
    ("offset", "index", "at"),
    [(0, 0, 0), (1, 0, 1), (4095, 0, 4095), (4096, 1, 0), (8 * 4096 - 1, 7, 4095)],
)
async def test_offset_is_in_its_object(disk: Store, offset: int, index: int, at: int) -> None:
    found = await locate(disk, name=NAME, index=None, offset=offset)
    assert (found.index, found.at, found.start) == (index, at, index * OBJECT_SIZE)
    back = await locate(disk, name=NAME, index=index, offset=0)
    assert back.start + at == offset


async def test_what_is_stored_is_told(disk: Store) -> None:
    data = os.urandom(OBJECT_SIZE)
    await disk.put(object_name(2), data)
    found = await locate(disk, name=NAME, index=2, offset=0)
    assert dict(fields(found)) == {
        "Object": "disk.part/00000002 (of 8)",
        "Bytes": "8192 to 12287 (4 KiB from 8 KiB)",
        "Byte in it": "0",
        "Stored": f"yes, with MD5 {md5(data).hexdigest()}",
    }
    hole = await locate(disk, name=NAME, index=None, offset=12288)
    assert document(hole)["stored"] is False
    assert dict(fields(hole))["Stored"] == "no: it reads as zeros"


async def test_beyond_the_end_is_one_sentence(disk: Store) -> None:
    with pytest.raises(
        SwiftnbdError, match="byte 32768 is beyond the end of disk, which has 32 KiB"
    ):
        await locate(disk, name=NAME, index=None, offset=8 * OBJECT_SIZE)
    with pytest.raises(SwiftnbdError, match=r"whose last object is disk\.part/00000007"):
        await locate(disk, name=NAME, index=8, offset=0)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*where, "setup", NAME, "--size", "1M"]) == 0
    capsys.readouterr()
    assert run(ctl, "swiftnbd-ctl", [*where, "locate", NAME, "64K", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "container": NAME,
        "object": "disk.part/00000001",
        "index": 1,
        "start": 65536,
        "end": 131072,
        "offset": 65536,
        "offset_in_object": 0,
        "stored": False,
        "etag": None,
    }
    assert run(ctl, "swiftnbd-ctl", [*where, "locate", NAME, "1M"]) == 1
    assert run(ctl, "swiftnbd-ctl", [*where, "locate", NAME, "here"]) == 2
