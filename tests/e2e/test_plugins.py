# SPDX-License-Identifier: MIT
"""Plugins and filters as users have them: a real server, real clients, packages of others."""

import filecmp
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import KiB, MiB
from tests.support.certificates import Certificates
from tests.support.clients import run
from tests.support.server_process import ServerProcess, script

CONFIG = """
[ram]
plugin = memory
size = 64M
[nothing]
plugin = null
size = 1T
filters = through
[words]
plugin = pattern
size = 4T
[image]
plugin = file
file = {image}
[frozen]
plugin = file
file = {image}
read-only = yes
[full]
plugin = full
size = 1M
[parts]
plugin = split
file =
  {image}.1
  {image}.2
[web]
plugin = http
url = {url}
[far]
plugin = nbd
socket = {folder}/nbdkit.sock
[secret]
plugin = nbd
uri = nbds+unix:///?socket={folder}/secret.sock
tls-certificates = {certificates}
[qcow]
plugin = nbd
uri = nbd+unix:///?socket={folder}/qemu.sock
filters = through
[runs]
plugin = sparse-random
size = 32M
seed = 5
percent = 40
runlength = 512K
"""

# Everything that the language of the plugin data has
TEXT = (
    '(0x55 0377) -> \\bs ( @0x1fe \\bs )*2 "a\\n\\"b"*3 @^16 le32:7 be64:0x10 @+5 @-2 9 '
    "(1 2 3 4)[1:3]*4 (@2 $pattern @^8)*300 @0 (@1 7) </proc/version[:9] @70000 0*9 "
)
PATTERN = "1*3 (2 @^4)"

# What somebody else could publish.
PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "outside"
version = "1.0"

[project.entry-points."swiftnbd.plugins"]
same = "outside:Same"

[project.entry-points."swiftnbd.filters"]
upper = "outside:Upper"

[tool.setuptools]
py-modules = ["outside"]
""",
    "outside.py": '''
from dataclasses import dataclass

from swiftnbd.api import SIZE, TEXT, Device, Filter, FilterPlugin, Plugin, parameter


@dataclass
class Same(Plugin):
    """One byte again and again."""

    size: int = parameter(SIZE, "How large it is.", main=True)
    byte: str = parameter(TEXT, "The byte.", default="x")

    async def open(self, opening):
        return SameDevice(self.size, self.byte.encode())


class SameDevice(Device):
    def __init__(self, size, byte):
        self.size, self.byte = size, byte

    async def read(self, offset, length):
        return [self.byte * length]


@dataclass
class Upper(FilterPlugin):
    """Reads in capital letters."""

    async def wrap(self, device, opening):
        return UpperFilter(device)


class UpperFilter(Filter):
    async def read(self, offset, length):
        return [bytes(piece).upper() for piece in await self.device.read(offset, length)]
''',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugins")


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    """16 MiB with holes in it."""
    path = folder / "disk.img"
    with path.open("wb") as file:
        file.truncate(16 * MiB)
        for at in (0, 5 * MiB, 15 * MiB):
            file.seek(at)
            file.write(os.urandom(300 * KiB))
    return path


@pytest.fixture(scope="module")
def url(folder: Path, image: Path) -> Iterator[str]:
    """What a small web server has of it."""
    (folder / "web").mkdir()
    (folder / "web/disk.img").write_bytes(image.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["busybox", "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", str(folder / "web")]
    with subprocess.Popen(command) as process:
        try:
            wait_for_port(port)
            yield f"http://127.0.0.1:{port}/disk.img"
        finally:
            process.terminate()


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextmanager
def far_server(socket: Path, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Somebody else's server on a Unix socket, until it is killed."""
    socket.unlink(missing_ok=True)
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 30
            while not socket.is_socket():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def nbdkit(folder: Path) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    socket = folder / "nbdkit.sock"
    return far_server(socket, "nbdkit", "-f", "-U", str(socket), "file", str(folder / "far.img"))


@pytest.fixture(scope="module")
def far(folder: Path, certificates: Certificates) -> Iterator["subprocess.Popen[bytes]"]:
    """An image behind nbdkit, one behind qemu-nbd, and one behind nbdkit with TLS."""
    (folder / "far.img").write_bytes(bytes(16 * MiB))
    qcow, socket = folder / "disk.qcow2", folder / "qemu.sock"
    run("qemu-img", "create", "-q", "-f", "qcow2", qcow, "16M")
    qemu = ["qemu-nbd", "-f", "qcow2", "-e", "8", "-t", "--discard=unmap", "-k", str(socket)]
    tls = ["--tls=require", "--tls-verify-peer", f"--tls-certificates={certificates.server}"]
    secret = ["nbdkit", "-f", "-U", str(folder / "secret.sock"), *tls, "memory", "16M"]
    with (
        nbdkit(folder) as process,
        far_server(socket, *qemu, str(qcow)),
        far_server(folder / "secret.sock", *secret),
    ):
        yield process


@pytest.fixture(scope="module")
def server(
    folder: Path,
    image: Path,
    url: str,
    far: "subprocess.Popen[bytes]",
    certificates: Certificates,
) -> Iterator[ServerProcess]:
    for number, size in ((1, 3 * MiB + 512), (2, 5 * MiB - 512)):
        with Path(f"{image}.{number}").open("wb") as file:
            file.truncate(size)
    config = folder / "secrets.conf"
    told = {"image": image, "url": url, "folder": folder, "certificates": certificates.client}
    config.write_text(CONFIG.format(**told))
    config.chmod(0o600)
    server = ServerProcess("--secrets", str(config), workdir=folder, strict=True)
    try:
        server.wait_ready(
            "ram", "nothing", "words", "image", "frozen", "full", "parts", "runs", "web"
        )
        yield server
    finally:
        server.finish()


def io(uri: str, *commands: str) -> str:
    """Carry out commands of qemu-io, which fail if a pattern is not what was read."""
    words = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", "-f", "raw", *words, uri)
    assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def test_memory_keeps_what_is_written_and_shows_its_holes(server: ServerProcess) -> None:
    uri = server.uris()["ram"]
    io(uri, "write -P 7 1M 1M", "write -z 1088k 4k", "flush", "read -P 0 1088k 4k")
    io(uri, "read -P 7 1M 64k", "read -P 7 1092k 60k", "read -P 0 0 1M", "discard 1M 512k")
    lines = run("nbdinfo", "--map", uri).stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["0", str(MiB + 512 * KiB), "3"],
        [str(MiB + 512 * KiB), str(512 * KiB), "0"],
        [str(2 * MiB), str(62 * MiB), "3"],
    ]


def test_null_is_zeros_through_a_filter(server: ServerProcess, tmp_path: Path) -> None:
    uri = server.uris()["nothing"]
    io(uri, "write -P 7 1G 1M", "read -P 0 1G 1M", "write -f -P 7 0 4k", "discard 0 1G")
    assert run("nbdinfo", "--size", uri).stdout.strip() == str(1 << 40)


def test_large_writes_cost_no_page_faults(tmp_path: Path) -> None:
    """glibc would give the payloads' memory back to the kernel, and take it again, all the time."""

    image = tmp_path / "image"
    image.write_bytes(os.urandom(32 * MiB))
    ours = ServerProcess("null", "1G", workdir=tmp_path)  # not strict: that allocates otherwise
    stat = Path(f"/proc/{ours.process.pid}/stat")
    try:
        ours.wait_ready("null")
        faults = []
        for _ in range(2):  # the first one takes the memory that it needs
            run("nbdcopy", image, ours.uris()["null"])
            faults.append(int(stat.read_text().rpartition(")")[2].split()[7]))
        assert faults[1] - faults[0] < 32 * MiB / 4096 / 8
    finally:
        ours.finish()


def test_pattern_is_what_it_says_and_takes_nothing_else(server: ServerProcess) -> None:
    uri = server.uris()["words"]
    server.allows("the byte written at 4096 is not what belongs there")
    code = f"""
import nbd
h = nbd.NBD(); h.connect_uri({uri!r})
at = 4 * 2**40 - 12
assert h.pread(12, at) == (at // 8 * 8).to_bytes(8)[4:] + (at // 8 * 8 + 8).to_bytes(8)
h.pwrite(h.pread(1000, 12345), 12345)
try:
    h.pwrite(b'x' * 8, 4096)
except nbd.Error as error:
    print(error.errno)
h.shutdown()
"""
    assert run("nbdsh", "-c", code, path=os.defpath).stdout == "EIO\n"


def test_file_is_copied_out_with_its_holes(
    server: ServerProcess, image: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.img"
    run("nbdcopy", server.uris()["image"], copy)
    assert filecmp.cmp(image, copy, shallow=False)
    kinds = [
        line.split()[2]
        for line in run("nbdinfo", "--map", server.uris()["image"]).stdout.splitlines()
    ]
    assert kinds == ["0", "3", "0", "3", "0", "3"]


def test_file_is_written_to_and_holes_are_punched(server: ServerProcess, image: Path) -> None:
    io(server.uris()["image"], "write -P 9 10M 1M", "write -f -P 8 8M 4k", "write -z 5M 4k")
    io(server.uris()["image"], "discard 15M 256k", "flush")
    with image.open("rb") as file:
        file.seek(10 * MiB)
        assert file.read(MiB) == b"\x09" * MiB
        file.seek(5 * MiB)
        assert file.read(4 * KiB) == bytes(4 * KiB)
        assert os.lseek(file.fileno(), 15 * MiB, os.SEEK_DATA) == 15 * MiB + 256 * KiB


def test_read_only_file_is_not_written_to(server: ServerProcess) -> None:
    told = run("nbdinfo", server.uris()["frozen"]).stdout
    assert "is_read_only: true" in told
    assert run(
        "qemu-io", "-f", "raw", "-c", "write 0 4k", server.uris()["frozen"], check=False
    ).returncode


def test_full_disk_says_so(server: ServerProcess) -> None:
    server.allows("the disk is full")
    said = run("qemu-io", "-f", "raw", "-c", "write 0 4k", server.uris()["full"], check=False)
    assert "No space left on device" in said.stdout + said.stderr
    io(server.uris()["full"], "read -P 0 0 1M")


def test_files_are_one_disk(server: ServerProcess, image: Path) -> None:
    uri = server.uris()["parts"]
    assert run("nbdinfo", "--size", uri).stdout.strip() == str(8 * MiB)
    io(uri, "write -P 7 2M 2M", "write -z 3M 1k", "flush", "read -P 7 2M 1M", "read -P 0 3M 1k")
    parts = b"".join(Path(f"{image}.{number}").read_bytes() for number in (1, 2))
    assert parts == bytes(2 * MiB) + b"\7" * MiB + bytes(KiB) + b"\7" * (MiB - KiB) + bytes(4 * MiB)


def test_disk_copied_onto_itself_is_found_to_be_right(server: ServerProcess) -> None:
    uri = server.uris()["runs"]
    run("nbdcopy", uri, uri)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", uri, uri)
    totals = run("nbdinfo", "--map", "--totals", uri).stdout.split()
    assert float(totals[1].rstrip("%")) == pytest.approx(40, abs=10), totals
    server.allows("is not what belongs there")
    assert run("nbdcopy", server.uris()["words"], uri, check=False).returncode


def test_file_of_a_web_server_is_copied(
    server: ServerProcess, folder: Path, tmp_path: Path
) -> None:
    run("nbdcopy", server.uris()["web"], tmp_path / "copy.img")
    assert filecmp.cmp(folder / "web/disk.img", tmp_path / "copy.img", shallow=False)
    assert "is_read_only: true" in run("nbdinfo", server.uris()["web"]).stdout
    os.utime(folder / "web/disk.img", (1, 1))
    server.allows("has changed since it was opened")
    assert run("nbdcopy", server.uris()["web"], "null:", check=False).returncode


@pytest.mark.parametrize("name", ["far", "qcow", "secret"])
def test_disk_of_another_server(
    server: ServerProcess, image: Path, tmp_path: Path, name: str
) -> None:
    uri = server.uris()[name]
    run("nbdcopy", "--flush", image, uri)
    run("nbdcopy", uri, tmp_path / "copy.img")
    assert filecmp.cmp(image, tmp_path / "copy.img", shallow=False)
    io(uri, "write -P 7 1M 1M", "write -z -u 1M 64k", "write -f -P 8 100 1000", "discard 8M 4M")
    io(uri, "flush", "read -P 0 1M 64k", "read -P 7 1088k 960k", "read -P 8 100 1000")
    kinds = run("nbdinfo", "--map", uri).stdout
    assert "hole,zero" in kinds
    assert "data" in kinds


def test_server_that_is_killed_and_comes_back(
    server: ServerProcess, far: "subprocess.Popen[bytes]", folder: Path
) -> None:
    """What was flushed is read again; what was not is told by the next flush."""
    server.allows("the connection is lost")
    server.allows("before all was flushed")
    uri = server.uris()["far"]
    io(uri, "write -P 5 0 64k", "flush")
    far.kill()
    far.wait()
    with nbdkit(folder) as again:
        io(uri, "read -P 5 0 64k", "write -P 6 0 64k", "flush", "read -P 6 0 64k")
        code = f"""
import nbd, os, signal
h = nbd.NBD(); h.connect_uri({uri!r})
h.pwrite(b'x' * 512, 0)
os.kill({again.pid}, signal.SIGKILL)
print(input())
for change in (h.flush, lambda: h.pwrite(b'y' * 512, 0)):
    try:
        change()
    except nbd.Error as error:
        print(error.errno)
h.shutdown()
"""
        with subprocess.Popen(
            ["nbdsh", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PATH": os.defpath},
        ) as shell:  # fmt: skip
            again.wait()
            with nbdkit(folder):
                said, _ = shell.communicate("go\n", timeout=60)
                assert said.split() == ["go", "EIO", "EIO"]
                io(uri, "write -P 7 0 64k", "flush", "read -P 7 0 64k")


def test_data_is_what_nbdkit_makes_of_it() -> None:
    told = ["data", TEXT, f"pattern={PATTERN}"]
    theirs = run("nbdkit", "-U", "-", *told, "--run", 'nbdcopy "$uri" - | md5sum').stdout
    ours = run(
        sys.executable, script("swiftnbd-server"), "--run", 'nbdcopy "$uri" - | md5sum', *told
    )
    assert ours.stdout == theirs
    assert len(theirs.split()[0]) == 32


def test_configuration_is_read_again(tmp_path: Path) -> None:
    """What has not changed keeps its bytes; what is gone is closed; what is new is there."""
    config = tmp_path / "secrets.conf"
    config.write_text("[kept]\nplugin = memory\nsize = 1M\n[gone]\nplugin = memory\nsize = 1M\n")
    config.chmod(0o600)
    server = ServerProcess("--secrets", str(config), workdir=tmp_path)
    try:
        server.wait_ready("kept", "gone")
        base = server.uris()["kept"].removesuffix("kept")
        io(f"{base}kept", "write -P 5 0 4k")
        config.write_text("[kept]\nplugin = memory\nsize = 1M\n[new]\nplugin = null\nsize = 2M\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_log("new: it is served now")
        io(f"{base}kept", "read -P 5 0 4k")
        assert run("nbdinfo", "--size", f"{base}new").stdout.strip() == str(2 * MiB)
        server.allows("gone")
        assert run("nbdinfo", "--size", f"{base}gone", check=False).returncode
    finally:
        server.finish()


def test_package_of_somebody_else_is_found_by_its_names(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name, text in PACKAGE.items():
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    pip += ["--no-index", "--disable-pip-version-check", "--target", str(target), str(source)]
    subprocess.run(pip, check=True, timeout=120, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(target)}

    def served(*words: str) -> str:
        command = [sys.executable, script("swiftnbd-server"), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "summary=One byte again and again." in served("--dump-plugin", "same")
    assert "Reads in capital letters." in served("--filter", "upper", "same", "--help")
    read = "nbdcopy $uri - | head -c 3"
    assert served("--run", read, "same", "1M", "byte=a") == "aaa"
    assert served("--filter", "upper", "--run", read, "same", "1M", "byte=a") == "AAA"
