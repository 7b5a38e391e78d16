# SPDX-License-Identifier: MIT
"""The layers: imports point downwards only. And what else holds for every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import swiftnbd

ROOT = Path(swiftnbd.__file__).parent
LINES_MAX = 450  # a module that outgrows this has two subjects

LAYERS = {
    "nbdkit_plugin": 6,
    "cli": 5,
    "server": 4,
    "export": 3,
    "protocol": 2,
    "store": 2,
    "scripts": 2,
    "plugins": 3,
    "filters": 3,
    "api": 1,
    "blame": 1,
    "buffers": 1,
    "units": 1,
    "errors": 1,
    "metrics": 1,
    "log": 1,
    "": 0,  # swiftnbd itself: its version
}
# Beside each other in a layer, or below but none of their business
FORBIDDEN = {
    ("protocol", "store"),
    ("store", "protocol"),
    ("export", "protocol"),
    *((lower, "api") for lower in ("errors", "metrics", "log", "buffers", "units", "protocol")),
    *(("api", other) for other in ("metrics", "log")),
    *(("filters", other) for other in ("export", "protocol", "store", "plugins")),
    ("plugins", "filters"),
    ("export", "plugins"),
    ("export", "filters"),
    ("export", "scripts"),
    *(("scripts", other) for other in ("protocol", "store")),
}
BOTH_WORLDS = {
    "plugins/nbd/device.py",
    "server/negotiation.py",
    "server/perform.py",
    "server/server.py",
    "server/transmission.py",
}
IMPURE = {
    "aiohttp", "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib",
    "random", "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time",
    "uvloop",
}  # fmt: skip
CLI_ONLY = {"argparse", "click", "configparser", "rich"}

MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The full names of what a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """The layer's folder or module of a dotted name inside swiftnbd."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else ""


def complaints(module: str, names: Iterator[str]) -> Iterator[str]:
    """What is wrong with these imports of a module, given as its path below swiftnbd."""
    own = part_of("swiftnbd." + module.removesuffix(".py").replace("/", "."))
    inside = set()
    for name in names:
        top = name.split(".")[0]
        if top == "swiftnbd":
            other = part_of(name)
            inside.add(other)
            if LAYERS[other] > LAYERS[own] or (own, other) in FORBIDDEN:
                yield f"{module} ({own}) imports {name}"
        elif own == "protocol" and (top in IMPURE or top not in sys.stdlib_module_names):
            yield f"{module} must stay pure and imports {name}"
        elif own != "cli" and top in CLI_ONLY:
            yield f"{module} is not the command line and imports {name}"
    if "protocol" in inside and inside & {"export", "api"} and module not in BOTH_WORLDS:
        yield f"{module} knows both the protocol and devices"


def test_modules_import_downwards_only() -> None:
    found = [text for module in MODULES for text in complaints(module, imports(ROOT / module))]
    assert not found, "\n".join(found)


def test_every_folder_and_module_has_a_layer() -> None:
    tops = {module.split("/")[0].removesuffix(".py") for module in MODULES}
    assert tops - {"__init__", "__main__"} <= LAYERS.keys()


def test_modules_are_short_and_licensed() -> None:
    for module in MODULES:
        lines = (ROOT / module).read_text().splitlines()
        assert len(lines) <= LINES_MAX, f"{module} has {len(lines)} lines"
        assert lines[0] == "# SPDX-License-Identifier: MIT", module


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("store/base.py", "swiftnbd.export.disk.ObjectDevice"),
        ("store/base.py", "swiftnbd.protocol.constants"),
        ("protocol/options.py", "swiftnbd.store.base"),
        ("protocol/options.py", "asyncio"),
        ("protocol/options.py", "time"),
        ("protocol/options.py", "aiohttp.client"),
        ("export/disk.py", "swiftnbd.protocol.errors"),
        ("export/disk.py", "swiftnbd.server.budget"),
        ("errors.py", "swiftnbd.protocol"),
        ("api/device.py", "swiftnbd.store.base"),
        ("protocol/replies.py", "swiftnbd.api.device"),
        ("filters/rate.py", "swiftnbd.export.disk"),
        ("plugins/memory.py", "swiftnbd.server.server"),
        ("server/server.py", "swiftnbd.cli.run"),
        ("server/server.py", "click"),
        ("__init__.py", "swiftnbd.errors"),
    ],
)
def test_wrong_arrow_is_found(module: str, name: str) -> None:
    assert list(complaints(module, iter([name])))


def test_third_module_that_knows_both_worlds_is_found() -> None:
    both = ["swiftnbd.protocol.errors.wire_error", "swiftnbd.export.export.Export"]
    assert list(complaints("server/stats.py", iter(both)))
    assert not list(complaints("server/server.py", iter(both)))


def test_help_of_ctl_imports_nothing_that_only_work_needs() -> None:
    """Half of the time that it may take would go by with an event loop that nobody runs."""
    heavy = {
        "asyncio", "uvloop", "aiohttp", "ssl", "subprocess", "concurrent.futures",
        "keystoneauth1", "swiftclient", "rich", "prometheus_client", "cryptography",
    }  # fmt: skip
    code = (
        "import sys\n"
        "from swiftnbd.cli.ctl import main\n"
        "try:\n    main(['--help'])\n"
        f"finally:\n    print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert "Set up, lock, copy, check and delete" in done.stdout
    assert done.stderr == "[]\n"
