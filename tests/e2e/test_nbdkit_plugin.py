# SPDX-License-Identifier: MIT
"""Our engine as a plugin of Debian's nbdkit, which has the server and the clients' connections."""

import os
import random
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import swiftnbd
from tests.support.backends import DirectoryBackend
from tests.support.certificates import Certificates
from tests.support.clients import find, missing

MiB = 1024 * 1024
OBJECTS = 36
PLUGIN = Path(swiftnbd.__file__).with_name("nbdkit_plugin.py")

ASK = """
import errno, os, shutil
MiB, STORE = 1024 * 1024, os.environ["STORE"]
h.set_strict_mode(0)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(os.environ["URI"])
h.pwrite(b"u" * 70000, 100, nbd.CMD_FLAG_FUA)
shutil.copytree(STORE, STORE + ".durable")
h.pwrite(b"f" * 100, MiB)
h.trim(2 * MiB, 2 * MiB)
h.zero(3 * MiB, MiB)
h.flush()
shutil.copytree(STORE, STORE + ".flushed")
extents = []
h.block_status(4 * MiB, 0, lambda context, offset, found, error: extents.extend(found))
print(extents)
big = b"0123456789" * (33 * MiB // 10)  # in one request, and more than our server would take
h.pwrite(big, 5)
h.cache(len(big), 0)
assert h.pread(len(big), 5) == big
try:
    h.zero(MiB, 5, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
except nbd.Error as error:
    print(errno.errorcode[error.errnum])
os.rename(STORE, STORE + ".away")
try:
    h.flush()
except nbd.Error as error:
    print(errno.errorcode[error.errnum])
os.rename(STORE + ".away", STORE)
"""


@pytest.fixture
def backend(tmp_path: Path) -> DirectoryBackend:
    made = DirectoryBackend(tmp_path / "store")
    made.setup("disk", OBJECTS, MiB)
    return made


def nbdkit(
    backend: DirectoryBackend,
    client: str,
    *words: str,
    code: int = 0,
    first: str = "-f",
    tls: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """A shell command at ``$uri``, with what both said."""
    program = str(find("nbdkit"))
    dumped = subprocess.run(
        [program, "python", "--dump-plugin"], capture_output=True, text=True, check=False
    ).stdout
    version = re.search(r"^python_version=(\d+)\.(\d+)", dumped, re.MULTILINE)
    if version is None:
        missing("no nbdkit-plugin-python")
    if tuple(map(int, version.groups())) != sys.version_info[:2]:
        # Not a tool that is missing: that interpreter is built in, and is not the one under test.
        pytest.skip(f"the interpreter in nbdkit's plugin is another one: {version[0]}")
    plugin = [str(PLUGIN), "container=disk", f"auth=file:{backend.root}", *words]
    done = subprocess.run(
        [program, first, "-U", "-", *tls, "python", *plugin, "--run", client],
        capture_output=True, text=True, check=False, timeout=50,
        env=os.environ | {"PATH": os.defpath, "PYTHONPATH": sysconfig.get_path("purelib")},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_disk_in_nbdkit_is_stored_when_it_says_so_and_unlocked_at_the_end(
    backend: DirectoryBackend, tmp_path: Path
) -> None:
    image, back = tmp_path / "disk.img", tmp_path / "back.img"
    data = bytearray(OBJECTS * MiB)
    data[: 3 * MiB] = b"1" * 3 * MiB
    data[30 * MiB + 1000 : 33 * MiB] = random.Random("plugin").randbytes(3 * MiB - 1000)
    image.write_bytes(data)
    client = (
        f'nbdcopy --flush {shlex.quote(str(image))} "$uri" && '
        f'nbdcopy "$uri" {shlex.quote(str(back))} && '
        f'STORE={backend.root} URI="$uri" env -u PYTHONPATH nbdsh -c {shlex.quote(ASK)}'
    )
    done = nbdkit(backend, client, "dirty-seconds=3600")
    assert back.read_bytes() == data
    data[100:70100] = b"u" * 70000
    assert DirectoryBackend(tmp_path / "store.durable").image("disk") == data
    data[MiB : 4 * MiB] = bytes(3 * MiB)
    flushed = DirectoryBackend(tmp_path / "store.flushed")
    assert flushed.image("disk") == data
    assert "client" in flushed.metadata("disk")
    assert done.stdout == f"[{MiB}, 0, {3 * MiB}, 3]\nENOTSUP\nEIO\n"
    big = b"0123456789" * (33 * MiB // 10)
    data[5 : 5 + len(big)] = big
    assert backend.image("disk") == data
    assert "client" not in backend.metadata("disk")
    assert f"there is no folder {backend.root}/disk" in done.stderr


def test_disk_in_nbdkit_is_written_and_read_over_tls(
    backend: DirectoryBackend, certificates: Certificates, tmp_path: Path
) -> None:
    image, back = tmp_path / "disk.img", tmp_path / "back.img"
    data = random.Random("tls").randbytes(4 * MiB + 512)
    image.write_bytes(data)
    # on a Unix socket a server has no name that could be verified
    told = f"tls-certificates={certificates.client}&tls-verify-peer=false"
    client = f'nbdcopy --flush {image} "$uri&{told}" && nbdcopy "$uri&{told}" {back}'
    folder = f"--tls-certificates={certificates.server}"
    nbdkit(backend, client, tls=("--tls=require", folder, "--tls-verify-peer"))
    data += bytes(OBJECTS * MiB - len(data))
    assert back.read_bytes() == data == backend.image("disk")
    assert "client" not in backend.metadata("disk")


def test_disk_that_another_holds_is_refused_but_to_readers(backend: DirectoryBackend) -> None:
    backend.ctl("lock", "disk")
    assert "disk is in use by" in nbdkit(backend, 'nbdinfo "$uri"', code=1).stderr
    assert "is_read_only: true" in nbdkit(backend, 'nbdinfo "$uri"', "read-only=true").stdout
    assert "is_read_only: true" in nbdkit(backend, 'nbdinfo "$uri"', first="-r").stdout
    assert "client" in backend.metadata("disk")


def test_container_that_cannot_be_served_ends_nbdkit_at_once(backend: DirectoryBackend) -> None:
    done = nbdkit(backend, "echo served", "container=other", code=1)
    assert "other: the container does not exist" in done.stderr
    assert "served" not in done.stdout
