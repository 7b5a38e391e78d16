# SPDX-License-Identifier: MIT
"""What lies in Swift, read without any of our code, and without a listing (it may be old)."""

import http.client
from concurrent.futures import ThreadPoolExecutor
from threading import local
from urllib.parse import urlsplit

from tests.support.backends import PART, SwiftBackend

_THREADS = 8
_SECONDS_MAX = 60.0


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
