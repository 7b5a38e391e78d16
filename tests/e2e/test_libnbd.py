# SPDX-License-Identifier: MIT
"""libnbd with all it has: what its tools ask and take, its API in option mode and its flags."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, KiB, MiB, launcher, set_up_disk
from tests.support.backends import DirectoryBackend
from tests.support.certificates import Certificates
from tests.support.clients import nbdsh, run
from tests.support.foreground import command, server

OBJECTS, SIZE = 64, 64 * KiB

Serve = Callable[..., Disk]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``serve(*flags)`` serves a new disk of 4 MiB from a folder."""
    backend = DirectoryBackend(tmp_path / "store")
    with launcher(backend, tmp_path) as launch:
        yield lambda *flags: set_up_disk(backend, launch, OBJECTS, SIZE, True, extra=flags)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """One for all tests that do not mind what is there; the server says what it is asked for."""
    folder = tmp_path_factory.mktemp("shared")
    backend = DirectoryBackend(folder / "store")
    with launcher(backend, folder) as launch:
        yield set_up_disk(backend, launch, OBJECTS, SIZE, True, extra=("-v",))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and zeros."""
    path = tmp_path_factory.mktemp("image") / "disk.img"
    chance = random.Random("libnbd")
    with path.open("wb") as file:
        file.truncate(OBJECTS * SIZE)
        for offset in (0, 11 * SIZE + 512, 40 * SIZE - 5):
            file.seek(offset)
            file.write(chance.randbytes(2 * SIZE))
    return path


# nbdinfo


@pytest.mark.parametrize("read_only", [False, True], ids=["read-write", "read-only"])
def test_nbdinfo_answers_what_can_be_done(serve: Serve, read_only: bool) -> None:
    uri = serve(*(["-r"] if read_only else [])).uri

    def answer(question: str, about: str) -> bool:
        code = run("nbdinfo", question, about, uri, check=False).returncode
        assert code in (0, 2), (question, about)
        return code == 0

    can = ["connect", "read", "cache", "df", "multi-conn", "flush"]
    assert [about for about in can if not answer("--can", about)] == []
    changing = ["write", "fua", "trim", "zero", "fast-zero"]
    assert [about for about in changing if answer("--can", about) == read_only] == []
    assert answer("--is", "read-only") is read_only
    assert answer("--is", "structured")
    assert not answer("--is", "tls")
    assert not answer("--is", "rotational")


def test_nbdinfo_lists_in_words_and_in_json(disk: Disk) -> None:
    every = f"nbd://127.0.0.1:{disk.server.port}"
    text = run("nbdinfo", "--list", every).stdout
    assert f'export="{disk.container}":' in text
    assert f"export-size: {disk.size} (4M)" in text
    assert (
        f"description: file:{disk.container}, {SIZE} byte objects"
        in run("nbdinfo", disk.uri).stdout
    )
    (export,) = json.loads(run("nbdinfo", "--list", "--json", every).stdout)["exports"]
    assert export["export-size"] == disk.size
    assert export["block_size_minimum"] == 1
    assert export["block_size_preferred"] == SIZE
    assert export["block_size_maximum"] == 32 * MiB


def test_nbdinfo_maps_in_words_and_in_sums(disk: Disk, image: Path) -> None:
    run("nbdcopy", image, disk.uri)
    lines = [line.split() for line in run("nbdinfo", "--map", disk.uri).stdout.splitlines()]
    assert sum(int(length) for _, length, *_ in lines) == disk.size
    assert {words[-1] for words in lines} <= {"data", "hole,zero"}
    totals = run("nbdinfo", "--map", "--totals", disk.uri).stdout.splitlines()
    assert sum(int(line.split()[0]) for line in totals) == disk.size


# nbdcopy


def fill(disk: Disk, byte: bytes) -> None:
    with disk.connect() as client:
        client.write(0, byte * disk.size)
        client.disconnect()


@pytest.mark.parametrize(
    "flags",
    [
        ["--sparse=0"],
        ["--sparse=512"],
        ["--sparse=65536", "--connections=4", "--threads=4", "--requests=64"],
        ["--destination-is-zero", "--sparse=4096"],
        ["--allocated"],
        ["--allocated", "--no-extents", "--synchronous"],
        ["--request-size=4194304", "--connections=1"],
        ["--request-size=4096", "--requests=1024"],
    ],
    ids=" ".join,
)
def test_nbdcopy_in_and_out_is_identical(
    disk: Disk, image: Path, tmp_path: Path, flags: list[str]
) -> None:
    fill(disk, b"\0" if "--destination-is-zero" in flags else b"\xff")
    run("nbdcopy", "--flush", *flags, image, disk.uri)
    with disk.connect() as client:
        assert client.read(0, disk.size) == image.read_bytes()
        client.disconnect()
    run("nbdcopy", *(flag for flag in flags if "zero" not in flag), disk.uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()


@pytest.mark.parametrize(("zero", "mark"), [(True, 1111), (False, 2222)])
def test_nbdcopy_asks_for_zeros_where_there_may_be_others(
    disk: Disk, image: Path, zero: bool, mark: int
) -> None:
    fill(disk, b"\0")
    before = len(disk.server.stderr.lines)
    run("nbdcopy", *(["--destination-is-zero"] if zero else []), image, disk.uri)
    with disk.connect() as client:
        client.read(mark, 1)
    disk.server.wait_log(rf": READ {mark}\+1 ")  # then all before it has been logged, too
    asked = "\n".join(disk.server.stderr.lines[before:])
    assert ": WRITE 0+" in asked
    assert (": WRITE_ZEROES " in asked) is not zero
    assert ": TRIM " not in asked


# nbdsh

AGREE = """
h.set_opt_mode(True)
h.set_full_info(True)
connect(to)
names = []
h.opt_list(lambda name, description: names.append((name, description)))
assert [name for name, description in names] == ["disk"], names
h.set_export_name("unknown")
try:
    h.opt_info()
except nbd.Error as error:
    assert error.errno == "ENOENT", error
else:
    raise AssertionError("there is no such export")
h.set_export_name("disk")
if {structured}:
    contexts = []
    h.opt_list_meta_context(contexts.append)
    assert contexts == ["base:allocation"], contexts
h.add_meta_context("base:allocation")
h.opt_info()
known = (h.get_size(), h.get_export_description(), h.get_block_size(nbd.SIZE_PREFERRED))
h.opt_go()
assert known == (h.get_size(), h.get_export_description(), h.get_block_size(nbd.SIZE_PREFERRED))
assert known == (16 * 65536, known[1], 65536) and known[1], known
assert h.get_canonical_export_name() == "disk"
assert h.get_protocol() == "newstyle-fixed"
"""

USE = """
assert h.get_structured_replies_negotiated() == {structured}
assert h.can_meta_context("base:allocation") == ({structured} and {asked})
h.pwrite(b"from nbdsh", 5)
h.flush()
assert h.pread(12, 4) == b"\\0from nbdsh\\0"
h.shutdown()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    DirectoryBackend(tmp_path / "store").setup("disk", 16, SIZE)
    return tmp_path


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
@pytest.mark.parametrize("road", ["single", "activation", "unix"])
def test_nbdsh_in_option_mode(folder: Path, road: str, structured: bool) -> None:
    """The other mode, where libnbd goes through all at once, is in test_transports.py."""
    script = (AGREE + USE).format(structured=structured, asked=True)
    settings = f"h.set_request_structured_replies({structured})\n"
    if road == "unix":
        with server(folder, "-U", f"{folder}/nbd.sock") as running:
            to = f"connect, to = h.connect_unix, {str(folder / 'nbd.sock')!r}\n"
            assert nbdsh(settings + to + script) == ""
            assert running.end() == 0
    else:
        method = "command" if road == "single" else "systemd_socket_activation"
        argv = command(folder, *(["-s"] if road == "single" else []))
        assert nbdsh(f"{settings}connect, to = h.connect_{method}, {argv!r}\n{script}") == ""
    assert DirectoryBackend(folder / "store").image("disk")[5:15] == b"from nbdsh"


@pytest.mark.parametrize("flags", ["0", "nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE"])
def test_nbdsh_with_fewer_handshake_flags(folder: Path, flags: str) -> None:
    script = f"""
h.set_handshake_flags({flags})
h.set_export_name("disk")
h.connect_command({command(folder, "-s")!r})
assert h.get_protocol() == ("newstyle-fixed" if {flags} else "newstyle")
""" + USE.format(structured=flags != "0", asked=False)
    assert nbdsh(script) == ""


def test_nbdsh_that_asks_for_no_sizes_may_use_any(folder: Path) -> None:
    """Acceptance row A4: what is not asked for is not needed."""
    script = f"""
h.set_request_block_size(False)
h.connect_command({command(folder, "-s")!r})
assert h.get_block_size(nbd.SIZE_PREFERRED) == 0
h.pwrite(b"x" * 777, 65536 - 333)
assert h.pread(777, 65536 - 333) == b"x" * 777
h.shutdown()
"""
    assert nbdsh(script) == ""


MANY = """
h.connect_uri({uri!r})
chance = random.Random(1)
places = list(range(0, h.get_size(), 4096))
chance.shuffle(places)
expected = bytearray(h.get_size())
done = []

def completed(*_):
    done.append(1)
    return 1

for place in places:  # all in flight at once, none over another
    data = chance.randbytes(chance.randrange(1, 2049))
    expected[place : place + len(data)] = data
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), place, completed,
                 chance.choice([0] * 15 + [nbd.CMD_FLAG_FUA]))
most = h.aio_in_flight()
while h.aio_in_flight():
    h.poll(-1)
assert len(done) == len(places)
h.flush()
buffers = []
for place in places:
    buffers.append(nbd.Buffer(2048))
    h.aio_pread(buffers[-1], place, completed)
h.aio_flush(completed)
h.aio_cache(65536, 0, completed)
h.aio_block_status(65536, 0, lambda *_: 0, completed)
while h.aio_in_flight():
    h.poll(-1)
assert len(done) == 2 * len(places) + 3
found = bytearray(len(expected))
for place, buffer in zip(places, buffers):
    found[place : place + 2048] = buffer.to_bytearray()
assert found == expected
h.shutdown()
print(most > 500)
"""


def test_nbdsh_keeps_many_commands_in_flight(disk: Disk) -> None:
    fill(disk, b"\0")
    asked = "import random\nh.add_meta_context('base:allocation')\n"
    assert nbdsh(asked + MANY.format(uri=disk.uri)) == "True\n"


DURABLE = """
import os
part = {folder!r} + "/disk.part/%08d"
h.add_meta_context("base:allocation")
h.connect_uri({uri!r})

def stored(index):
    if not os.path.exists(part % index):
        return None
    with open(part % index, "rb") as file:
        return file.read()

def status(index):
    found = []
    h.block_status(65536, index * 65536, lambda name, offset, entries, error: found.extend(entries),
                   nbd.CMD_FLAG_REQ_ONE)
    length, flags = found
    assert length == 65536
    return flags

# what was answered with FUA lies in the store, with nothing else in its object
h.pwrite(b"a" * 65536, 65536, nbd.CMD_FLAG_FUA)
assert stored(1) == b"a" * 65536
h.pwrite(b"b" * 100, 65536 + 50, nbd.CMD_FLAG_FUA)
assert stored(1) == b"a" * 50 + b"b" * 100 + b"a" * 65386
h.zero(65436, 65536 + 100, nbd.CMD_FLAG_FUA)
assert stored(1) == b"a" * 50 + b"b" * 50 + bytes(65436)
h.trim(65536, 65536, nbd.CMD_FLAG_FUA)
assert stored(1) in (None, bytes(65536))
h.set_strict_mode(0)
h.flush(nbd.CMD_FLAG_FUA)

# what must not become a hole becomes none
h.pwrite(b"c" * 65536, 2 * 65536)
h.zero(65536, 2 * 65536, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert status(2) & nbd.STATE_HOLE == 0
assert h.pread(65536, 2 * 65536) == bytearray(65536)

# a fast zero is done, or it is declined and nothing has changed
for prepare in (lambda: h.pwrite(b"d" * 65536, 3 * 65536), lambda: None):
    for index, (offset, length) in enumerate([(3 * 65536, 65536), (3 * 65536 + 10, 100)]):
        prepare()
        before = h.pread(65536, 3 * 65536)
        try:
            h.zero(length, offset, nbd.CMD_FLAG_FAST_ZERO)
        except nbd.Error as error:
            assert error.errno == "ENOTSUP", error.errno
        else:
            start = offset - 3 * 65536
            before[start : start + length] = bytes(length)
        assert h.pread(65536, 3 * 65536) == before

# a read that must not be in pieces is not, though there are holes in it
h.trim(5 * 65536, 4 * 65536, nbd.CMD_FLAG_FUA)
h.pwrite(b"e", 6 * 65536)
pieces = []
h.pread_structured(5 * 65536, 4 * 65536, lambda *piece: pieces.append(piece[2]), nbd.CMD_FLAG_DF)
assert pieces == [nbd.READ_DATA], pieces
h.cache(h.get_size(), 0)
h.shutdown()
print("fine")
"""


def test_nbdsh_means_what_its_flags_say(disk: Disk) -> None:
    """Acceptance rows A6.14, A6.23, A6.24, A7.7, A7.9, with the store as the second witness."""
    fill(disk, b"\0")
    assert isinstance(disk.backend, DirectoryBackend)
    folder = str(disk.backend.root / disk.container)
    assert nbdsh(DURABLE.format(uri=disk.uri, folder=folder)) == "fine\n"


def test_nbdsh_is_told_of_a_refused_write_whose_payload_takes_a_while(disk: Disk) -> None:
    """An answer ahead of the payload's end would be "probably a bug in the server"."""
    script = f"""
h.set_strict_mode(0)
h.connect_uri({disk.uri!r})
try:
    h.pwrite(bytes(48 << 20), 0)
except nbd.Error as error:
    print(error.errno, len(h.pread(512, 0)))
h.shutdown()
"""
    assert nbdsh(script) == "ENOSPC 512\n"


@pytest.mark.parametrize("mode", ["off", "on", "require"])
def test_nbdsh_with_tls_where_there_is_some(
    serve: Serve, certificates: Certificates, mode: str
) -> None:
    flags = [f"--tls={mode}"]
    if mode != "off":
        flags += [f"--tls-certificates={certificates.server}"]
    disk = serve(*flags)
    found = []
    for wanted in ("DISABLE", "ALLOW", "REQUIRE"):
        script = f"""
h.set_tls(nbd.TLS_{wanted})
h.set_tls_certificates({str(certificates.client)!r})
h.set_export_name({disk.container!r})
try:
    h.connect_tcp("localhost", "{disk.server.port}")
except nbd.Error:
    print("refused")
else:
    assert h.get_structured_replies_negotiated()
    h.pwrite(b"x", 1, nbd.CMD_FLAG_FUA)
    print("inside" if h.get_tls_negotiated() else "in the clear")
    h.shutdown()
"""
        found.append(nbdsh(script).strip())
    assert (
        found
        == {
            "off": ["in the clear", "in the clear", "refused"],
            "on": ["in the clear", "inside", "inside"],
            "require": ["refused", "inside", "inside"],
        }[mode]
    )
