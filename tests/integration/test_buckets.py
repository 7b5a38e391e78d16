# SPDX-License-Identifier: MIT
"""Both programs on a bucket: the S3 API of a real Swift."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.run import run
from tests.support import clients
from tests.support.bucket_backend import BucketBackend
from tests.support.server_process import ServerProcess
from tests.support.swift_aio import KEY, USER, RealSwift

OBJECT_SIZE = 65536
OBJECTS = 24
IMAGE = random.Random("bucket").randbytes(20 * OBJECT_SIZE)

Ctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def backend(real_swift: RealSwift, tmp_path: Path) -> BucketBackend:
    return BucketBackend(real_swift, tmp_path / "secrets.conf")


@pytest.fixture
def run_ctl(capsys: pytest.CaptureFixture[str]) -> Ctl:
    def call(*arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        return run(ctl, "swiftnbd-ctl", list(arguments)), *capsys.readouterr()

    return call


@pytest.mark.timeout(240)  # many commands, each a process: a minute where four tests share a core
def test_life_of_a_disk_in_a_bucket(
    backend: BucketBackend,
    run_ctl: Ctl,
    container_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made, locked, filled, served, copied, deleted: all that is done to a disk, in one go, since
    whoever locks one here waits a second."""
    name, image = container_name, tmp_path / "image"
    where = ("-a", backend.place)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    made = run_ctl(*where, "setup", name, str(OBJECTS), "--object-size", str(OBJECT_SIZE))
    assert made[0] == 0, made
    metadata = backend.metadata(name)
    assert (metadata["objects"], metadata["object-size"]) == (str(OBJECTS), str(OBJECT_SIZE))

    assert run_ctl(*where, "lock", name)[0] == 0
    mark = backend.metadata(name)["client"]
    listed = run_ctl(*where, "list", "-s")  # asks the bucket which there are
    line = f"{name} objects={OBJECTS} size={OBJECT_SIZE} (version=1, locked by {mark})\n"
    assert listed[0] == 0
    assert line in listed[1]
    assert run_ctl(*where, "download", name, str(image))[0] == 3
    assert run_ctl(*where, "unlock", name)[0] == 0
    assert backend.metadata(name)["last"] == mark

    image.write_bytes(IMAGE)
    assert run_ctl(*where, "upload", "-q", str(image), name)[0] == 0
    assert backend.image(name) == IMAGE + bytes(4 * OBJECT_SIZE)
    code, out, _ = run_ctl(*where, "info", "--json", name)
    assert (code, json.loads(out)["image_size"]) == (0, None), out
    assert run_ctl(*where, "check", "-q", name)[0] == 0

    other = IMAGE[::-1]
    backend.announce(name)
    server = ServerProcess(*backend.arguments, name, workdir=tmp_path, strict=True)
    try:
        server.wait_ready(name)
        uri = server.uris()[name]
        image.write_bytes(other)
        clients.run("nbdcopy", "--flush", str(image), uri)
        back = tmp_path / "back"
        clients.run("nbdcopy", uri, str(back))
        assert back.read_bytes() == other + bytes(4 * OBJECT_SIZE)
        assert server.terminate() == 0
    finally:
        server.finish()
    assert backend.image(name) == other + bytes(4 * OBJECT_SIZE)

    assert run_ctl(*where, "download", "-q", "-f", name, str(image))[0] == 0
    assert image.read_bytes() == other + bytes(4 * OBJECT_SIZE)
    assert run_ctl(*where, "delete", "--yes", name)[0] == 0
    assert backend.objects(name) == {}


def test_logins_and_places_that_do_not_work(
    backend: BucketBackend, run_ctl: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    code, out, _ = run_ctl("-a", backend.place, "check-auth")
    assert (code, out) == (
        0, "s3 login works: storage at s3://some-bucket/below/here in region us-east-1\n",
    )  # fmt: skip
    nowhere = backend.place.replace("below/here", "below/nothing")
    code, _, err = run_ctl("-a", nowhere, "list")
    assert code == 4
    assert f"run: swiftnbd-ctl -a '{nowhere}' setup NAME" in err
    code, _, err = run_ctl("-a", backend.place.replace("some-b", "no-b"), "list")
    assert code == 4
    assert "there is no bucket no-bucket" in err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for command in (["list"], ["check-auth"], ["info", "disk"]):
        code, _, err = run_ctl("-a", backend.place, *command)
        assert code == 5
        assert "403 Forbidden" in err
        assert KEY not in err
        assert "Traceback" not in err
