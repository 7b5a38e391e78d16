# SPDX-License-Identifier: MIT
"""docs/SECURITY.md names tests that exist for every attack, and the limits as they are."""

import ast
import re

import pytest

from swiftnbd.export.settings import CacheSettings
from swiftnbd.server.config import ServerConfig, TlsConfig
from swiftnbd.server.server import memory_bytes_max
from swiftnbd.server.transmission import CONNECTION_BYTES_MAX
from tests.support.pages import ROOT, defined_tests, named_tests, rows

PAGE = "docs/SECURITY.md"
MiB = 1024 * 1024


def test_every_attack_is_there() -> None:
    assert list(rows(PAGE, r"E\d+")) == [f"E{number}" for number in range(1, 36)]


def test_every_attack_names_tests_that_exist() -> None:
    defined = defined_tests()
    for row, cell in rows(PAGE, r"E\d+").items():
        assert named_tests(cell), row
        assert named_tests(cell) <= defined, (row, named_tests(cell) - defined)


def test_every_attack_is_named_by_one_of_its_tests() -> None:
    """In its name or its docstring, so that who reads the test knows what it is for."""
    said = {}
    for file in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                said[node.name] = f"{node.name} {ast.get_docstring(node)}"
    for row, cell in rows(PAGE, r"E\d+").items():
        mention = re.compile(rf"\b{row}\b|_{row.lower()}_")
        assert any(mention.search(said[name]) for name in named_tests(cell)), row


def test_other_tests_named_exist() -> None:
    assert named_tests((ROOT / PAGE).read_text()) <= defined_tests()


def test_files_named_exist() -> None:
    for path in re.findall(
        r"`((?:server|protocol|export|api)/\w+\.py|log\.py)`", (ROOT / PAGE).read_text()
    ):
        assert (ROOT / "swiftnbd" / path).is_file(), path


def test_memory_is_as_stated() -> None:
    text = (ROOT / PAGE).read_text()
    one = [CacheSettings().cache_bytes]
    assert f"connections x {CONNECTION_BYTES_MAX / MiB} MiB" in text
    assert f"one export {memory_bytes_max(ServerConfig(), one) / MiB:.0f} MiB" in text
    few = ServerConfig(connections_max=20)
    assert f"`--max-connections 20` makes it {memory_bytes_max(few, one) / MiB:.0f} MiB" in text
    encrypted = memory_bytes_max(ServerConfig(connections_max=20, tls=TlsConfig()), one)
    more = (encrypted - memory_bytes_max(few, one)) / 20
    assert f"TLS takes {more / MiB} MiB more for each connection" in text


@pytest.mark.parametrize(
    ("value", "stated"),
    [
        (ServerConfig().connections_max, "200 (`--max-connections`)"),
        (ServerConfig().connections_per_address_max, "100 (`--max-connections-per-address`)"),
        (ServerConfig().handshake_seconds_max, "10 s (`--handshake-timeout`)"),
    ],
)
def test_defaults_are_as_stated(value: float, stated: str) -> None:
    assert f"{value:.0f} " in stated
    assert stated in (ROOT / PAGE).read_text()
