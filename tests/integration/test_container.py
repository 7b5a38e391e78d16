# SPDX-License-Identifier: MIT
"""The container example of docs/, as far as it can be tried without a container runtime."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.server_process import script

FOLDER = Path(__file__).parents[2] / "docs/container"
LOGIN = {
    "OS_AUTH_URL": "http://127.0.0.1:1/v3",
    "OS_PROJECT_NAME": "p",
    "OS_USERNAME": "u",
    "OS_PASSWORD": "p",
}


def test_server_takes_the_command_line_of_the_example(tmp_path: Path) -> None:
    lines = (FOLDER / "Containerfile").read_text().splitlines()
    (entry,) = (line for line in lines if line.startswith("ENTRYPOINT "))
    program, *arguments = json.loads(entry.removeprefix("ENTRYPOINT "))
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["swiftnbd"]
    done = subprocess.run(
        [sys.executable, script(program), "--dump-config", *arguments, *service["command"]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=LOGIN | {"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["exports"]) == ["mydisk"]
    listens = {*found["server"]["listen"], found["server"]["http"]}
    assert {f"0.0.0.0:{port.rpartition(':')[2]}" for port in service["ports"]} == listens
