# SPDX-License-Identifier: MIT
import ast
from pathlib import Path

import swiftnbd
from swiftnbd.store import open as factories

SOURCES = Path(swiftnbd.__file__).parent


def imported(source: Path) -> set[str]:
    """What a module takes from `swiftnbd.store.open`."""
    return {
        alias.name
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == factories.__name__
        for alias in node.names
    }


def test_every_factory_is_used() -> None:
    sources = [*SOURCES.rglob("*.py"), *Path(__file__).parents[1].rglob("*.py")]
    used = set().union(*map(imported, sources))
    assert used == set(factories.__all__)
