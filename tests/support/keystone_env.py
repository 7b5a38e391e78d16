# SPDX-License-Identifier: MIT
"""A virtual environment for Keystone, and for a Swift that asks it.

It is one of its own because their hundred libraries would change what the programs under test
import: keystoneauth1, for one, uses some of them if they are there. Made once, which takes a
minute: ``python -m tests.support.keystone_env``, as tests/run does.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[2]
_PACKAGES = ("keystone", "keystonemiddleware", "swift")
_CONSTRAINTS = _REPOSITORY / "tests" / "constraints.txt"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_FOLDER = _REPOSITORY / ".cache" / f"keystone-{_VERSION}"

MAKE_SECONDS_MAX = 600.0


def keystone_python() -> str:
    """The interpreter of that environment, which is made if need be; else the test is skipped."""
    try:
        return make()
    except (subprocess.SubprocessError, OSError) as error:
        reason = f"Keystone cannot be installed: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def make() -> str:
    """Make it, unless it is there with what the constraints want today; its interpreter."""
    _FOLDER.parent.mkdir(exist_ok=True)
    python = _FOLDER / "bin" / "python"
    mark = _FOLDER / "made-from"
    wanted = f"{sys.version}\n{' '.join(_PACKAGES)}\n{_CONSTRAINTS.read_text()}"
    with open(_FOLDER.with_suffix(f"{_FOLDER.suffix}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes run tests
        if not mark.exists() or mark.read_text() != wanted:
            _run(sys.executable, "-m", "venv", "--clear", str(_FOLDER))
            pip = (str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check")
            _run(*pip, "-c", str(_CONSTRAINTS), *_PACKAGES)
            mark.write_text(wanted)
    return str(python)


def _run(*command: str) -> None:
    subprocess.run(
        command,
        check=True,
        timeout=MAKE_SECONDS_MAX,
        stdin=subprocess.DEVNULL,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        cwd=_FOLDER.parent,  # beside us lies what is installed elsewhere
    )


if __name__ == "__main__":
    make()
