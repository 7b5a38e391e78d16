# SPDX-License-Identifier: MIT
"""swiftnbd-server as whoever operates it sees it: its log, and what becomes slow."""

import json
from pathlib import Path

import pytest

from tests.support.foreground import server
from tests.support.nbd_client import NbdClient, Refused
from tests.support.server_process import ctl

HOSTILE = b'"}\n{"level": "ERROR", "message": "\xe2\x80\xa8'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ctl("-a", f"file:{tmp_path}/store", "setup", "disk", "16")
    return tmp_path


def test_json_log_names_client_and_export_and_tells_what_was_slow(folder: Path) -> None:
    flags = ("-p", "0", "--log-format", "json", "--slow-seconds", "0.000001", "-v")
    with server(folder, *flags) as running:
        port = int(running.uris[0].rpartition(":")[2].split("/")[0])
        with NbdClient(port) as client:
            with pytest.raises(Refused):
                client.go(HOSTILE)
            client.go(b"disk")
            client.write(0, b"x" * 512)
            client.flush()
            client.disconnect()
        assert running.end() == 0
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    refused = next(line for line in lines if "refused" in line["message"])
    assert refused["level"] == "WARNING"
    assert refused["client"].startswith("127.0.0.1:")
    locked = next(line for line in lines if "locked by" in line["message"])
    assert (locked["export"], locked["client"]) == ("disk", refused["client"])
    slow = next(line for line in lines if "slow: FLUSH" in line["message"])
    assert (slow["export"], slow["client"]) == ("disk", refused["client"])
    assert slow["message"].endswith(" s")
    unlocked = next(line for line in lines if "unlocked" in line["message"])
    assert unlocked["export"] == "disk"
