# SPDX-License-Identifier: MIT
"""``--http`` of the program: off by default, told where it is, and gone with the server."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.foreground import run_server
from tests.support.server_process import STRICT, ServerProcess, ctl

HEAVY = ("aiohttp.web", "prometheus_client")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ctl("-a", f"file:{tmp_path}/store", "setup", "disk", "4")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[ServerProcess]:
    arguments = ("-a", f"file:{folder}/store", "--http", "0")
    server = ServerProcess(*arguments, workdir=folder, strict=True)
    try:
        server.wait_ready("disk")
        yield server
        server.finish()
    finally:
        server.kill()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:
        found: bytes = answer.read()
        return found


def test_url_is_printed_and_serves_until_the_server_ends(server: ServerProcess) -> None:
    server.wait_until(lambda: any("http:" in line for line in server.stdout.lines), "URL", 30)
    (url,) = [line for line in server.stdout.lines if line.startswith("http:")]
    assert url.startswith("http://127.0.0.1:")
    assert get(f"{url}healthz") == b"ok\n"
    assert b'swiftnbd_export_size_bytes{export="disk"} 262144.0' in get(f"{url}metrics")
    assert b"<title>swiftnbd</title>" in get(url)
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no more: nobody waits for it
        assert server.terminate() == 0
    with pytest.raises(urllib.error.URLError):
        get(url)


def test_address_that_is_taken_is_one_sentence(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        where = ("-p", "0", "-U", f"{folder}/socket", "--pid-file", f"{folder}/pid")
        done = run_server(folder, "-f", *where, "--http", str(port))
    assert done.returncode == 2
    assert f"--http: cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "socket").exists()


def test_nothing_of_it_is_imported_without_the_flag() -> None:
    check = (
        "import sys, swiftnbd.cli.server, swiftnbd.server.server; "
        f"sys.exit(str([name for name in {HEAVY} if name in sys.modules] or ''))"
    )
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""
