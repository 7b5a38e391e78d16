# SPDX-License-Identifier: MIT
"""How many connections fit among the open files."""

import resource

import pytest

from swiftnbd.server import descriptors


@pytest.mark.parametrize(
    ("files", "exports", "connections"),
    [
        (1024, 1, 956),
        (1024, 10, 632),
        (1024, 500, 480),  # not all of them are in use at a time
        (64, 1, 4),
        (8, 1, 4),
    ],
)
def test_stores_keep_their_part_of_the_open_files(
    files: int, exports: int, connections: int
) -> None:
    assert descriptors.connections_possible(files, exports) == connections
    watched = descriptors.connections_possible(files, exports, watched=True)
    assert watched in (connections, connections - descriptors.WATCHERS)


def test_limit_is_raised_to_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda *given: made.append(given))
    assert descriptors.raise_limit() == 4096
    assert made == [(resource.RLIMIT_NOFILE, (4096, 4096))]
