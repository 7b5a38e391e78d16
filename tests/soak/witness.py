# SPDX-License-Identifier: MIT
"""A Swift as the soak uses it, and what lies in it: read without our code, or a listing."""

import http.client
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local
from urllib.parse import urlsplit

from tests.support.backends import PART, SwiftBackend
from tests.support.swift_aio import KEY, USER, RealSwift

_THREADS = 8
_SECONDS_MAX = 60.0


def backend_of(swift: RealSwift, workdir: Path) -> SwiftBackend:
    """With a settle delay for a machine on which everything may take a second."""
    backend = SwiftBackend(swift.auth_url, USER, KEY, workdir / "secrets.conf")
    backend.arguments += ("--settle", "2")
    return backend


def stored_image(backend: SwiftBackend, container: str, objects: int, object_size: int) -> bytes:
    """The disk as format v1 has it: each object whole, or zeros for 404. Swift must be healthy."""
    url = urlsplit(backend.url)
    connections = local()

    def fetch(index: int) -> bytes:
        if not hasattr(connections, "one"):
            connections.one = http.client.HTTPConnection(
                url.hostname or "", url.port, timeout=_SECONDS_MAX
            )
            opened.append(connections.one)
        path = f"{url.path}/{container}/{PART}{index:08d}"
        connections.one.request("GET", path, headers={"X-Auth-Token": backend.token})
        answer = connections.one.getresponse()
        body: bytes = answer.read()
        if answer.status == 404:
            return bytes(object_size)
        assert answer.status == 200, f"{path}: {answer.status} {answer.reason}"
        assert len(body) == object_size, f"{path} has {len(body)} bytes, not {object_size}"
        return body

    opened: list[http.client.HTTPConnection] = []
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            return b"".join(pool.map(fetch, range(objects)))
    finally:
        for connection in opened:
            connection.close()
