# SPDX-License-Identifier: MIT
"""An HTTP server that answers PUT and GET like Swift and keeps nothing.

``python -m benchmarks.small_swift`` prints its URL. Objects are named ``.../SIZE/anything``: a GET
gives that many random bytes, in the pieces in which Swift's proxy sends them.
"""

import os
import signal
import sys
from functools import cache
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE_BYTES = 64 * 1024  # Swift's client_chunk_size


class Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own. It asks for a body that waits to be asked for."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._head(201, 0, self.headers.get("ETag", "none"))

    def do_GET(self) -> None:
        body, etag = _object(int(self.path.split("/")[-2]))
        self._head(200, len(body), etag)
        for start in range(0, len(body), PIECE_BYTES):
            self.wfile.write(body[start : start + PIECE_BYTES])

    def _head(self, status: int, length: int, etag: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", etag)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("X-Timestamp", "1767225600.00000")
        self.send_header("X-Trans-Id", "tx0123456789abcdef01234-0123456789")
        self.send_header("X-Openstack-Request-Id", "tx0123456789abcdef01234-0123456789")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: there are thousands."""


@cache
def _object(size: int) -> tuple[bytes, str]:
    body = os.urandom(size)
    return body, md5(body).hexdigest()


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        print(f"http://127.0.0.1:{server.server_port}/v1/AUTH_small", flush=True)
        server.serve_forever()
