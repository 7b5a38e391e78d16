# SPDX-License-Identifier: MIT
"""A container that is only read, behind an overlay that takes what is written."""

from pathlib import Path

import pytest

from tests.e2e.conftest import KiB, Launch, new_name
from tests.support.backends import Backend
from tests.support.clients import run


@pytest.mark.parametrize("backend", ["swift"], indirect=True)
def test_overlay_over_a_read_only_container_is_thrown_away_without_a_trace(
    backend: Backend, launch: Launch, tmp_path: Path
) -> None:
    name = new_name()
    backend.setup(name, 64, 64 * KiB)
    first = launch(name)
    pattern = ("qemu-io", "-f", "raw", first.uris()[name])
    run(*pattern, "-c", "write -P 7 0 1M", "-c", "flush")
    assert first.terminate() == 0, first.log()
    objects, metadata = backend.objects(name), backend.metadata(name)

    for _ in range(2):  # the second one finds nothing of what the first one did
        server = launch(name, extra=("-r", "--filter=cow"))
        commands = ("read -P 7 0 1M", "write -P 9 100k 200k", "write -z 0 4k", "discard 512k 64k")
        looks = ("flush", "read -P 9 100k 200k", "read -P 0 0 4k", "read -P 7 4k 96k")
        words = [word for command in (*commands, *looks) for word in ("-c", command)]
        done = run("qemu-io", "-f", "raw", *words, server.uris()[name])
        assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
        assert server.terminate() == 0, server.log()
        assert (backend.objects(name), backend.metadata(name)) == (objects, metadata)
    assert not [path for path in tmp_path.rglob("*") if "cow" in path.name]
