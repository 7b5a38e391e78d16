# SPDX-License-Identifier: MIT
"""Structured replies, block status and fast zeroes as foreign clients use them."""

import json
import random
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, Launch, Serve
from tests.support.clients import nbdsh, run


def test_nbdinfo_map_covers_the_whole_disk(shared_disk: Disk) -> None:
    """Acceptance rows A2.20, A2.21, A7.6, A8."""
    shown = json.loads(run("nbdinfo", "--map", "--json", shared_disk.uri).stdout)
    assert sum(extent["length"] for extent in shown) == shared_disk.size
    assert shown[0]["offset"] == 0
    assert {extent["type"] for extent in shown} <= {0, 3}
    totals = json.loads(run("nbdinfo", "--map", "--totals", "--json", shared_disk.uri).stdout)
    assert sum(total["size"] for total in totals) == shared_disk.size


def test_nbdinfo_shows_what_structured_replies_bring(shared_disk: Disk) -> None:
    """Acceptance row A5."""
    shown = json.loads(run("nbdinfo", "--no-content", "--json", shared_disk.uri).stdout)
    assert shown["structured"]
    (export,) = shown["exports"]
    assert export["can_df"]
    assert export["can_fast_zero"]
    assert export["contexts"] == ["base:allocation"]


def test_qemu_img_map_covers_the_whole_disk(shared_disk: Disk) -> None:
    shown = json.loads(run("qemu-img", "map", "--output=json", shared_disk.uri).stdout)
    assert sum(extent["length"] for extent in shown) == shared_disk.size


def test_qemu_img_convert_keeps_a_sparse_image(serve: Serve, tmp_path: Path) -> None:
    """Reads with block status, writes with zeroes that may be declined."""
    disk = serve(strict=True)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(disk.size)
        for offset in (0, 100_000, disk.size - 4096):
            file.seek(offset)
            file.write(bytes(range(256)) * 16)
    run("qemu-img", "convert", "-n", "-O", "raw", "-f", "raw", image, disk.uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, disk.uri)
    run("qemu-img", "convert", "-O", "raw", "-f", "raw", disk.uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    assert disk.image_at_rest() == image.read_bytes()


def test_nbdkit_as_a_proxy_finds_every_byte_that_was_written(serve: Serve, tmp_path: Path) -> None:
    """Its filter compares instead of writing: by reads and block status, zeroes and trims."""
    disk = serve(strict=True)
    image = tmp_path / "image"
    data = random.Random(1).randbytes(disk.size // 4) + bytes(disk.size // 2) + b"end" * 1000
    image.write_bytes(data.ljust(disk.size, b"\0"))
    nbdkit = ("nbdkit", "-U", "-")
    copy = ("nbd", f"uri={disk.uri}", "--run", f'nbdcopy {image} "$uri"')
    run(*nbdkit, *copy)
    run(*nbdkit, "--filter=checkwrite", *copy)
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    assert run(*nbdkit, "--filter=checkwrite", *copy, check=False).returncode != 0
    assert disk.image_at_rest() == image.read_bytes()[:-1] + b"\0"


def test_qemu_io_writes_zeroes_and_discards(serve: Serve) -> None:
    """Acceptance rows A6.14, A6.17: with and without leave to make holes."""
    disk = serve(strict=True)
    commands = [
        "write -P 7 0 1M",
        "write -z 4k 8k",
        "write -z -u 64k 128k",
        "write -z -f 300k 4k",
        "discard 512k 256k",
        "read -P 7 0 4k",
        "read -P 0 4k 8k",
        "read -P 0 64k 128k",
        "read -P 0 300k 4k",
        "read -P 7 304k 16k",
        "flush",
    ]
    options = [option for command in commands for option in ("-c", command)]
    shown = run("qemu-io", "-f", "raw", *options, disk.uri).stdout
    assert "failed" not in shown
    assert shown.count("4 KiB, 1 ops") >= 3


SCRIPT = """
h.set_opt_mode(True)
h.connect_uri({uri!r})
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
h.add_meta_context("base:allocation")
assert contexts == ["base:allocation"], contexts
h.opt_info()
size, flags = h.get_size(), h.can_df()
h.opt_go()
assert (h.get_size(), h.can_df(), flags) == (size, True, True)
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")

h.pwrite(b"x" * 4096, 4096)
pieces = []
buffer = h.pread_structured(
    size, 0, lambda data, offset, status, error: pieces.append((offset, len(data), status))
)
assert buffer == bytearray(4096) + b"x" * 4096 + bytearray(size - 8192)
assert sum(length for _, length, _ in pieces) == size
one = []
h.pread_structured(size, 0, lambda data, offset, status, error: one.append(status),
                   nbd.CMD_FLAG_DF)
assert one == [nbd.READ_DATA], one

entries = []
h.block_status(size, 0, lambda name, offset, found, error: entries.extend(found))
assert sum(entries[::2]) == size
first = []
h.block_status(size, 0, lambda name, offset, found, error: first.extend(found),
               nbd.CMD_FLAG_REQ_ONE)
assert len(first) == 2 and 0 < first[0] <= size

try:
    h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as error:
    assert error.errno == "ENOTSUP", error.errno
h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(size, 0)
h.cache(65536, 0)
h.flush()

h.set_strict_mode(0)
for call, number in [
    (lambda: h.pread(512, size), "EINVAL"),
    (lambda: h.pread(2, size - 1), "EINVAL"),
    (lambda: h.pwrite(b"x", size), "ENOSPC"),
    (lambda: h.zero(2, size - 1), "ENOSPC"),
    (lambda: h.trim(2, size - 1), "EINVAL"),
]:
    try:
        call()
    except nbd.Error as error:
        assert error.errno == number, (error.errno, number)
    else:
        raise AssertionError("that must fail")
assert h.pread(1, size - 1) == b"\\0"
h.shutdown()
print("fine")
"""


def test_nbdsh_agrees_on_everything_and_uses_it(serve: Serve) -> None:
    """Acceptance rows A2.15, A2.19 to A2.21, A6.5 to A6.7, A7.1, A7.4 to A7.9."""
    assert nbdsh(SCRIPT.format(uri=serve(strict=True).uri)) == "fine\n"


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        ((), "h.set_request_structured_replies(False)"),
        (("--no-sr",), ""),
        (("--mask-handshake", "0"), ""),
        (("--mask-handshake", "2"), ""),
        ((), "h.set_handshake_flags(0)"),
    ],
)
def test_nbdsh_falls_back_to_simple_replies(
    serve: Serve, launch: Launch, flags: tuple[str, ...], setting: str
) -> None:
    """Acceptance rows A1.4, A1.5: an older client, or an older server."""
    disk = serve()
    if flags:
        disk.image_at_rest()
        disk.server = launch(disk.container, extra=flags)
    script = f"""
{setting}
h.connect_uri({disk.uri!r})
assert not h.get_structured_replies_negotiated()
assert not h.can_df()
h.pwrite(b"data", 100)
assert h.pread(6, 99) == b"\\0data\\0"
h.zero(4096, 0)
h.flush()
h.shutdown()
print("fine")
"""
    assert nbdsh(script) == "fine\n"
