# SPDX-License-Identifier: MIT
"""Filters as users have them: real servers, real clients, and nbdkit as the witness."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import KiB, MiB
from tests.support.clients import nbdsh, run
from tests.support.server_process import ServerProcess, script

CONFIG = """
[checked]
plugin = file
file = {folder}/base.img
filters = checkwrite
[part]
plugin = memory
size = 8M
filters = truncate, offset
truncate.round-up = 1M
offset = 1000
[part-turned]
plugin = memory
size = 8M
filters = offset, truncate
offset = 1000
truncate.round-up = 1M
[guarded]
plugin = memory
size = 8M
filters = protect, log
protect = 0-4095
logfile = {folder}/guarded.log
[slow]
plugin = memory
size = 8M
filters = rate, stats
rate-file = {folder}/rate
statsfile = {folder}/stats
[slow-turned]
plugin = memory
size = 8M
filters = stats, rate
rate = 4G
statsfile = {folder}/stats-turned
[broken]
plugin = memory
size = 8M
filters = retry-request, error
error-rate = 30%
retry-request-retries = 50
retry-request-delay = 1ms
[fallible]
plugin = memory
size = 8M
filters = error, retry-request
error = ENOSPC
error-pwrite-rate = 1
[forced]
plugin = memory
size = 8M
filters = blocksize-policy, fua, delay
fuamode = none
blocksize-minimum = 4K
blocksize-error-policy = error
wdelay = 1ms
[paused]
plugin = memory
size = 8M
filters = pause, limit
pause-control = {folder}/control
limit = 2
limit-requests = 3
[mbr]
plugin = file
file = {folder}/mbr.img
filters = partition
partition = 6
[gpt]
plugin = file
file = {folder}/gpt.img
filters = partition
partition = 2
"""

EXPORTS = [line[1:-1] for line in CONFIG.splitlines() if line.startswith("[")]
PARTS = 6  # so some are logical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With disks that nbdkit has partitioned."""
    folder = tmp_path_factory.mktemp("filters")
    (folder / "base.img").write_bytes(os.urandom(MiB) + bytes(MiB) + os.urandom(MiB))
    parts = [folder / f"part{number}" for number in range(1, PARTS + 1)]
    for part in parts:
        part.write_bytes(os.urandom(64 * KiB))
    for kind in ("mbr", "gpt"):
        copy = f'nbdcopy "$uri" {folder}/{kind}.img'
        run("nbdkit", "-U", "-", "partitioning", *parts, f"partition-type={kind}", "--run", copy)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    config = folder / "secrets.conf"
    config.write_text(CONFIG.format(folder=folder))
    config.chmod(0o600)
    (folder / "rate").write_text("8\n")
    server = ServerProcess("--secrets", str(config), workdir=folder, strict=True)
    try:
        server.wait_ready(*EXPORTS)
        yield server
    finally:
        server.finish()


def io(uri: str, *commands: str, fails: bool = False) -> str:
    """Carry out commands of qemu-io, which fail if a pattern is not what was read."""
    words = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", "-f", "raw", *words, uri, check=not fails)
    assert ("failed" in done.stdout + done.stderr) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("kind", "number"), [("mbr", 6), ("gpt", 2)])
def test_partition_is_what_nbdkit_put_there(
    kind: str, number: int, server: ServerProcess, folder: Path
) -> None:
    copy = folder / f"{kind}.copy"
    run("nbdcopy", server.uris()[kind], copy)
    file = number - 1 if kind == "mbr" else number  # 4 is the extended one
    assert copy.read_bytes() == (folder / f"part{file}").read_bytes()


@pytest.mark.parametrize(("kind", "number"), [("mbr", 5), ("gpt", 6)])
def test_partition_is_where_nbdkit_finds_it(kind: str, number: int, folder: Path) -> None:
    words = ["file", f"{folder}/{kind}.img", f"partition={number}"]
    words = ["--run", 'nbdcopy "$uri" - | sha256sum', *words]
    ours = subprocess.run(
        [sys.executable, script("swiftnbd-server"), "--filter", "partition", *words],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    theirs = run("nbdkit", "-U", "-", "--filter=partition", *words)
    assert ours.stdout == theirs.stdout


def test_right_copy_passes_checkwrite_and_a_wrong_one_does_not(server: ServerProcess) -> None:
    uri = server.uris()["checked"]
    run("nbdcopy", uri, uri)
    server.allows("is not what is there")
    io(uri, "write -P 1 0 4k", fails=True)
    server.allows("there are not only zeros")
    io(uri, "write -z 0 4k", fails=True)


@pytest.mark.parametrize(("name", "more"), [("part", 1000), ("part-turned", 0)])
def test_part_of_a_disk_is_made_longer_or_the_reverse(
    name: str, more: int, server: ServerProcess
) -> None:
    uri = server.uris()[name]
    assert run("nbdinfo", "--size", uri).stdout.strip() == str(8 * MiB - 1000 + more)
    code = f"""
import nbd
h = nbd.NBD(); h.connect_uri({uri!r})
h.pwrite(b'a' * 5000, 0); h.pwrite(b'b' * 24, 8 * 2**20 - 1024)
assert h.pread(5001, 0) == b'a' * 5000 + b'\\0'
end = b'\\0' * 12 + b'b' * 24 + b'\\0' * {more}
assert h.pread(len(end), 8 * 2**20 - 1036) == end
h.zero(3000, 1000); h.trim(512, 0); h.flush()
assert h.pread(1000, 1000) == b'\\0' * 1000
h.shutdown()
"""
    nbdsh(code)


def test_protected_bytes_stay_and_the_log_tells_of_it(server: ServerProcess, folder: Path) -> None:
    uri = server.uris()["guarded"]
    server.allows("bytes 4095 to 4095 are protected")
    io(uri, "write -P 1 4096 8k", "read -P 0 0 4k", "write -P 0 0 8k", "read -P 1 8k 4k")
    io(uri, "write -P 2 4095 2", fails=True)
    io(uri, "discard 0 1M", "read -P 0 0 4k", "flush")
    lines = [json.loads(line) for line in (folder / "guarded.log").read_text().splitlines()]
    assert {each["event"] for each in lines} == {"connect", "begin", "end", "disconnect"}
    writes = [each for each in lines if each.get("request") == "write" and "length" in each]
    assert {"offset": 4096, "length": 8192}.items() <= writes[0].items()
    assert not any(each["offset"] == 4095 for each in writes)  # it came no further than protect
    trims = [each for each in lines if each.get("request") == "trim" and "length" in each]
    assert trims[0]["offset"] == 4096


def test_rate_is_changed_while_a_read_waits(server: ServerProcess, folder: Path) -> None:
    """At one byte a second it would not come to an end."""
    uri = server.uris()["slow"]
    command = ["qemu-io", "-f", "raw", "-c", "read -P 0 0 64k", uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            (folder / "new").write_text("4G\n")
            (folder / "new").rename(folder / "rate")
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert "read 65536/65536 bytes" in output


@pytest.mark.parametrize("name", ["slow", "slow-turned"])
def test_limited_copy_is_a_copy(name: str, server: ServerProcess, folder: Path) -> None:
    source, copy = folder / "base.img", folder / "copy"
    (folder / "rate").write_text("4G")
    run("nbdcopy", source, server.uris()[name])
    run("nbdcopy", server.uris()[name], copy)
    assert copy.read_bytes()[: 3 * MiB] == source.read_bytes()


def test_errors_are_retried_below_the_client_or_reach_it(server: ServerProcess) -> None:
    uri = server.uris()["broken"]
    io(uri, "write -P 3 0 1M", "read -P 3 0 1M", "write -z 64k 64k", "flush", "read -P 0 64k 64k")
    server.allows("injected, as an error of write")
    assert "No space left" in io(server.uris()["fallible"], "write 0 4k", fails=True)
    io(server.uris()["fallible"], "read -P 0 0 4k")


def test_client_is_told_of_block_sizes_and_no_fua(server: ServerProcess) -> None:
    uri = server.uris()["forced"]
    told = run("nbdinfo", uri).stdout
    assert "can_fua: false" in told
    assert "can_multi_conn: true" in told
    assert "block_size_minimum: 4096" in told
    io(uri, "write -P 3 0 64k", "read -P 3 0 64k", "flush")
    code = f"""
import nbd
h = nbd.NBD(); h.set_strict_mode(0); h.connect_uri({uri!r})
try:
    h.pread(512, 0)
except nbd.Error as error:
    print(error.errno)
h.shutdown()
"""
    server.allows("not in whole blocks of")
    assert nbdsh(code) == "EINVAL\n"


def test_paused_server_lets_nobody_write_until_it_is_resumed(
    server: ServerProcess, folder: Path
) -> None:
    uri = server.uris()["paused"]
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(30)
        control.connect(str(folder / "control"))
        control.sendall(b"p")
        assert control.recv(1) == b"P"
        command = ["qemu-io", "-f", "raw", "-c", "write -P 5 0 4k", "-c", "read -P 5 0 4k", uri]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            control.sendall(b"r")
            assert control.recv(1) == b"R"
            output, _ = process.communicate(timeout=60)
            assert "failed" not in output
            assert process.returncode == 0
    code = f"""
import nbd
some = [nbd.NBD() for _ in range(3)]
for h in some[:2]:
    h.connect_uri({uri!r})
try:
    some[2].connect_uri({uri!r})
except nbd.Error as error:
    print('refused')
for h in some[:2]:
    h.shutdown()
"""
    server.allows("paused has as many connections as it may have")
    assert nbdsh(code) == "refused\n"


def test_server_ends_with_its_last_client_or_when_told(tmp_path: Path) -> None:
    stats, stop = tmp_path / "stats", tmp_path / "stop"
    for filter, keys in (("exitlast", []), ("exitwhen", [f"exit-when-file-created={stop}"])):
        words = ["--filter", "stats", "--filter", filter, "memory", "1M", f"statsfile={stats}"]
        server = ServerProcess(*words, *keys, workdir=tmp_path)
        try:
            server.wait_ready("memory")
            if keys:
                stop.touch()
                server.allows("the server ends, as there is")
                run("nbdinfo", server.uris()["memory"], check=False)
            else:
                io(server.uris()["memory"], "write -P 1 0 4k")
            assert server.process.wait(60) == 0
            server.check_log()
        finally:
            server.kill()
        assert stats.read_text().startswith("total: ")
