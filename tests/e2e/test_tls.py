# SPDX-License-Identifier: MIT
"""Foreign clients inside TLS, GnuTLS at their end and OpenSSL at ours; the page on certificates."""

import filecmp
import random
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import MiB, launcher
from tests.support.backends import DirectoryBackend
from tests.support.certificates import CLIENT, Certificates
from tests.support.clients import run
from tests.support.server_process import ServerProcess

PAGE = Path(__file__).parents[2] / "docs/tls.md"
NO_PSK = "ssl has pre-shared keys from Python 3.13 on"

Launch = Callable[..., ServerProcess]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """``launch(*flags)`` serves a disk "demo" of 16 MiB from a folder."""
    backend = DirectoryBackend(tmp_path / "disks")
    backend.setup("demo", 256, 65536)
    with launcher(backend, tmp_path) as launch:
        yield lambda *flags: launch("demo", strict=True, extra=flags)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random("tls").randbytes(16 * MiB))
    return path


def uri_with(server: ServerProcess, folder: Path) -> str:
    return f"{server.uris()['demo']}?tls-certificates={folder}"


def qemu_credentials(server: ServerProcess, folder: Path) -> list[str]:
    return [
        "--object",
        f"tls-creds-x509,id=tls,endpoint=client,dir={folder}",
        "--image-opts",
        f"driver=nbd,host=127.0.0.1,port={server.port},export=demo,tls-creds=tls",
    ]


@pytest.fixture
def verifying(launch: Launch, certificates: Certificates) -> ServerProcess:
    """A server that demands TLS and certificates."""
    folder = f"--tls-certificates={certificates.server}"
    return launch("--tls=require", folder, "--tls-verify-peer")


def test_nbdinfo_tells_that_it_is_encrypted(
    verifying: ServerProcess, certificates: Certificates
) -> None:
    assert verifying.uris()["demo"] == f"nbds://127.0.0.1:{verifying.port}/demo"
    shown = run("nbdinfo", uri_with(verifying, certificates.client)).stdout
    assert "newstyle-fixed with TLS, using structured packets" in shown
    assert "export-size: 16777216" in shown


def test_nbdcopy_in_and_out_is_identical(
    verifying: ServerProcess, certificates: Certificates, image: Path, tmp_path: Path
) -> None:
    uri, copy = uri_with(verifying, certificates.client), tmp_path / "copy.img"
    run("nbdcopy", "--flush", image, uri)
    run("nbdcopy", uri, copy)
    assert filecmp.cmp(image, copy, shallow=False)


def test_qemu_img_reads_and_writes(
    verifying: ServerProcess, certificates: Certificates, image: Path
) -> None:
    credentials = qemu_credentials(verifying, certificates.client)
    run("nbdcopy", "--flush", image, uri_with(verifying, certificates.client))
    same = run("qemu-img", "compare", *credentials, f"driver=raw,file.filename={image}").stdout
    assert "Images are identical" in same
    run("qemu-io", *credentials, "-c", "write -P 7 1000 100000", "-c", "flush")
    run("qemu-io", *credentials, "-c", "read -P 7 1000 100000")


def test_nbd_client_lists_inside_tls(verifying: ServerProcess, certificates: Certificates) -> None:
    own = certificates.client
    flags: list[str | Path] = ["-cacertfile", own / "ca-cert.pem", "-tlshostname", "localhost"]
    flags += ["-certfile", own / "client-cert.pem", "-keyfile", own / "client-key.pem"]
    shown = run("nbd-client", "-l", "localhost", str(verifying.port), *flags).stdout
    assert "demo" in shown.split()


def test_client_in_the_clear_is_told_of_tls(verifying: ServerProcess) -> None:
    done = run("nbdinfo", f"nbd://127.0.0.1:{verifying.port}/demo", check=False)
    assert done.returncode != 0
    done = run("nbd-client", "-l", "127.0.0.1", str(verifying.port), check=False)
    assert "this server talks only over TLS" in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["none", "self-signed", "expired"])
def test_stranger_is_not_served(
    verifying: ServerProcess, certificates: Certificates, tmp_path: Path, kind: str
) -> None:
    authority, folder = certificates.authority, tmp_path / "stranger"
    authority.write(folder)
    if kind == "self-signed":
        authority.issue("stranger", CLIENT, self_signed=True).write(folder, "client")
    elif kind == "expired":
        authority.issue("stranger", CLIENT, last_day=-1).write(folder, "client")
    done = run("nbdinfo", "--size", uri_with(verifying, folder), check=False)
    assert done.returncode != 0
    assert "16777216" not in done.stdout
    verifying.wait_log("the TLS handshake failed: ")


def test_client_refuses_a_server_of_another_authority(
    launch: Launch, certificates: Certificates, tmp_path: Path
) -> None:
    other = Certificates.make(tmp_path / "other")
    server = launch("--tls=on", f"--tls-certificates={certificates.server}")
    uri = uri_with(server, other.client).replace("nbd:", "nbds:")
    done = run("nbdinfo", "--size", uri, check=False)
    assert done.returncode != 0
    server.wait_log("the TLS handshake")


def test_offered_tls_serves_both_kinds(launch: Launch, certificates: Certificates) -> None:
    server = launch("--tls=on", f"--tls-certificates={certificates.server}")
    assert run("nbdinfo", "--size", server.uris()["demo"]).stdout.strip() == "16777216"
    uri = uri_with(server, certificates.client).replace("nbd:", "nbds:")
    assert run("nbdinfo", "--size", uri).stdout.strip() == "16777216"


# The page on certificates


def blocks() -> list[str]:
    """The commands of the page, as they stand there."""
    found = re.findall(r"^ *```sh\n(.*?)^ *```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def shell(commands: str, folder: Path) -> str:
    return run("bash", "-e", "-o", "pipefail", "-c", commands, cwd=folder).stdout


def for_port(commands: str, port: int) -> str:
    """The commands for clients, for a server on this machine and port."""
    return (
        commands.replace("disks.example.com/", f"localhost:{port}/")
        .replace("localhost/", f"localhost:{port}/")
        .replace("host=disks.example.com", f"host=localhost,port={port}")
        .replace("-l disks.example.com", f"-l localhost {port}")
    )


def flags_of(command: str) -> list[str]:
    """Those for TLS of a line that starts the server."""
    words = command.split()
    return words[words.index("--tls") :]


def test_page_on_certificates_works_as_written(
    launch: Launch, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, server_certificate, client_certificate, serve, use, revoke, _ = blocks()
    monkeypatch.chdir(tmp_path)
    shell(authority + server_certificate + client_certificate, tmp_path)
    server = launch(*flags_of(serve))
    shown = shell(for_port(use, server.port), tmp_path)
    assert "export-size: 16777216" in shown
    assert "virtual size: 16 MiB" in shown
    assert shown.split()[-1] == "demo"
    shell(revoke, tmp_path)
    strict = launch(*flags_of(serve))
    lines = use.splitlines()
    done = run("bash", "-c", for_port(lines[0], strict.port), cwd=tmp_path, check=False)
    assert done.returncode != 0
    strict.wait_log("the TLS handshake failed: client certificate: certificate revoked")


@pytest.mark.skipif(sys.version_info < (3, 13), reason=NO_PSK)
def test_page_on_pre_shared_keys_works_as_written(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, serve, use = blocks()[-1].splitlines()
    monkeypatch.chdir(tmp_path)
    shell(make, tmp_path)
    server = launch(*flags_of(serve))
    assert "with TLS" in shell(for_port(use, server.port), tmp_path)
    (tmp_path / "keys.psk").write_text("alice:00112233445566778899aabbccddeeff\n")
    done = run("bash", "-c", for_port(use, server.port), cwd=tmp_path, check=False)
    assert done.returncode != 0
    server.wait_log("the TLS handshake failed: ")
