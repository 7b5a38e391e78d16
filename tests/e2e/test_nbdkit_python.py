# SPDX-License-Identifier: MIT
"""The same scripts under Debian's ``nbdkit python`` and under us, asked the same: alike.

What is known to be different, and stands in docs/nbdkit-python.md, is left out by the client
(`tests/e2e/nbdkit_scripts/client.py`), or has a test of its own here.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certificates import Certificates
from tests.support.clients import find, missing, nbdsh, run
from tests.support.server_process import ServerProcess, script

SCRIPTS = Path(__file__).with_name("nbdkit_scripts")
CLIENT = (SCRIPTS / "client.py").read_text()


@dataclass(frozen=True)
class Case:
    """A script, what it is told, and what the client does to it."""

    name: str
    script: str
    asks: str = "requests"
    keys: tuple[str, ...] = ()

    def words(self, folder: Path) -> list[str]:
        """For a command line. What the script writes down is in ``folder``."""
        keys = [f"trace={folder / self.name}"] if self.script not in ("bare", "failing") else []
        return [str(SCRIPTS / f"{self.script}.py"), *keys, *self.keys]


CASES = [
    Case(
        "emulated",
        "every",
        keys=(
            *("can_fua=nbdkit.FUA_EMULATE", "can_cache=nbdkit.CACHE_EMULATE", "zero=raise"),
            *("can_fast_zero=False", "block_size=(1, 4096, 65536)", "is_rotational=1"),
        ),
    ),
    Case(
        "less",
        "every",
        keys=(
            *("can_cache=nbdkit.CACHE_NONE", "can_zero=False", "can_trim=False"),
            *("can_extents=False", "can_multi_conn=False", "thread_model=0"),
        ),
    ),
    Case("flushless", "every", keys=("zero=return", "can_flush=False", "thread_model=2")),
    Case("unchanging", "every", keys=("can_write=1", "thread_model=1")),
    Case("first", "first_version"),
    Case("bare", "bare"),
    Case("failing", "failing", asks="failures"),
]


def nbdkit(client: str, *words: str, flags: tuple[str, ...] = (), **variables: str) -> str:
    """What a client in nbdsh says that is run on nbdkit's Python plugin."""
    find("nbdsh")
    command = 'UNIXSOCKET="$unixsocket" nbdsh -c "$CLIENT" -c "$ASKS"'
    environment = os.environ | {"PATH": os.defpath, "CLIENT": CLIENT, "ASKS": client} | variables
    done = subprocess.run(
        [str(find("nbdkit")), "-U", "-", *flags, "python", *words, "--run", command],
        capture_output=True, text=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    if "cannot open plugin" in done.stderr:
        missing("no nbdkit-plugin-python")
    assert done.returncode == 0, done.stderr
    return done.stdout


def served(
    client: str, *words: str, flags: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """The same of our server, and what that says."""
    command = 'UNIXSOCKET="$unixsocket" nbdsh -c "$CLIENT" -c "$ASKS"'
    return subprocess.run(
        [sys.executable, script("swiftnbd-server"), "-v", "-U", "-", *flags, "--run", command,
         "python", *words],
        capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {"PATH": os.defpath, "CLIENT": CLIENT, "ASKS": client} | variables,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scripts")
    for who in ("ours", "nbdkit"):
        (made / who).mkdir()
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    """All cases at once, each in a section."""
    config = folder / "secrets.conf"
    sections = []
    for case in CASES:
        path, *keys = case.words(folder / "ours")
        lines = "\n".join(key.replace("=", " = ", 1) for key in keys)
        sections.append(f"[{case.name}]\nplugin = python\nscript = {path}\n{lines}\n")
    config.write_text("\n".join(sections))
    config.chmod(0o600)
    socket = folder / "socket"
    server = ServerProcess("--secrets", str(config), "-U", str(socket), workdir=folder)
    try:
        server.wait_ready(*(case.name for case in CASES))
        yield server
    finally:
        server.finish()


def lines(path: Path) -> list[str]:
    """What a script has written down, without what comes at no certain moment, or not always: an
    nbdkit that ends does not close what is open."""
    found = path.read_text().splitlines() if path.exists() else []
    return [line for line in found if not line.startswith(("preconnect", "close", "cleanup"))]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_script_behaves_as_in_nbdkit(server: ServerProcess, folder: Path, case: Case) -> None:
    server.allows(f"{case.script}.py: ")
    asks = f"{case.asks}({case.name!r})"
    expected = nbdkit(asks, *case.words(folder / "nbdkit"))
    prefix = f"import os; os.environ['UNIXSOCKET'] = {str(folder / 'socket')!r}\n"
    assert nbdsh(f"{prefix}{CLIENT}\n{asks}") == expected
    assert lines(folder / "ours" / case.name) == lines(folder / "nbdkit" / case.name)


def test_whole_life_of_a_script_is_as_in_nbdkit(tmp_path: Path) -> None:
    """Beginning, end, names, the default one, and one that the script refuses."""
    for who in ("ours", "nbdkit"):
        (tmp_path / who).mkdir()
    case = Case("life", "every")
    expected = nbdkit("everything()", *case.words(tmp_path / "nbdkit"))
    done = served("everything()", *case.words(tmp_path / "ours"))
    assert done.stdout == expected, done.stderr
    assert "it is open" in done.stderr  # nbdkit.debug
    assert lines(tmp_path / "ours/life") == lines(tmp_path / "nbdkit/life")
    written = (tmp_path / "ours/life").read_text().splitlines()
    assert written[-1] == "cleanup"
    assert [line for line in written if line.startswith("close")] == ["close one", "close two"]


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_functions_of_the_module_do_as_in_nbdkit(
    is_encrypted: bool, certificates: Certificates, tmp_path: Path
) -> None:
    """With and without TLS, as far as this nbdkit has them: 1.32 knows but a few of them."""
    flags: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    if is_encrypted:
        folder = f"--tls-certificates={certificates.server}"
        flags = ("--tls=require", folder, "--tls-verify-peer")
        variables = {"CERTIFICATES": str(certificates.client)}
    path, theirs, ours = (SCRIPTS / "functions.py", tmp_path / "nbdkit", tmp_path / "ours")
    asks = "functions(can_disconnect={})"
    expected = nbdkit(asks.format(False), str(path), f"trace={theirs}", flags=flags, **variables)
    absent = [line.split()[1] for line in lines(theirs) if line.startswith("absent")]
    can_disconnect = "disconnect" not in absent
    if can_disconnect:
        theirs.unlink()
        asks = asks.format(True)
        expected = nbdkit(asks, str(path), f"trace={theirs}", flags=flags, **variables)
    done = served(asks.format(False), str(path), f"trace={ours}", flags=flags, **variables)
    assert done.stdout == expected, done.stderr
    shared = [line for line in lines(ours) if line.partition("(")[0] not in absent]
    assert shared == [line for line in lines(theirs) if not line.startswith("absent")]
    assert f"default_export False {is_encrypted}" in shared
    assert len(shared) > 25


def test_client_that_a_script_drops_gets_what_it_may(tmp_path: Path) -> None:
    """As nbdkit 1.42 does it, which the test before compares where it is installed."""
    path = str(SCRIPTS / "functions.py")
    done = served("functions(can_disconnect=True)", path, f"trace={tmp_path / 'ours'}")
    found = [" ".join(line.split()[:3]) for line in done.stdout.splitlines()[1:]]
    assert found == [
        "pread 3 512", "pread 1 512", "pread 4 refused",
        "pread 3 512", "pread 2 refused", "pread 4 refused",
        "pread 5 512",
    ]  # fmt: skip
    assert not (tmp_path / "ours").read_text().count("pread 4")


def test_dump_of_a_plugin_has_what_its_script_adds() -> None:
    done = run("nbdkit", "python", "--dump-plugin", str(SCRIPTS / "every.py"))
    assert "every=yes\n" in done.stdout
    words = [sys.executable, script("swiftnbd-server"), "--dump-plugin", "python"]
    ours = subprocess.run(
        [*words, str(SCRIPTS / "every.py")], capture_output=True, text=True, check=True, timeout=60
    )
    assert "every=yes\n" in ours.stdout
    assert "nbdkit_python_maximum_api_version=2\n" in ours.stdout
