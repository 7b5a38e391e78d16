# SPDX-License-Identifier: MIT
"""The process above the Keystone of `tests.support.keystone_aio`; runs in Keystone's environment.

It imports Keystone once and forks servers, each on a port and with a configuration of its own;
the first one to use a database makes it. Commands come as lines of JSON on standard input; at its
end the servers are ended, so nothing is left behind.
"""

import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from typing import Any

PR_SET_PDEATHSIG = 1


def bind(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(512)
    return sock


def serve(sock: socket.socket, command: dict[str, Any], log_path: str, parent: int) -> None:
    """In a forked child: be a Keystone, and never return."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for number in (1, 2):
            os.dup2(log, number)
        run(sock, command)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def run(sock: socket.socket, command: dict[str, Any]) -> None:
    from keystone.server.flask import core
    from werkzeug import serving

    class Handler(serving.WSGIRequestHandler):  # type: ignore[misc]
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # one segment for each response, not one for each header

        def log(self, *_: Any, **__: Any) -> None:
            pass

    def migrate() -> None:
        if command["fresh"]:
            from keystone.common.sql import upgrades

            upgrades.offline_sync_database_to_version()

    app = core.initialize_application("public", migrate, [command["conf"]])
    if command["fresh"]:
        bootstrap(command["password"])
    server = serving.make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=Handler, fd=sock.fileno()
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.pause()


def bootstrap(password: str) -> None:
    """What ``keystone-manage bootstrap`` does."""
    from keystone.cmd import bootstrap as command
    from keystone.server import backends

    backends.load_backends = dict  # they are loaded already
    strap = command.Bootstrapper()
    strap.admin_username = strap.project_name = strap.admin_role_name = "admin"
    strap.admin_password = password
    strap.service_name = "keystone"
    strap.service_id = strap.endpoints = None
    strap.immutable_roles = False
    strap.bootstrap()


def main() -> None:
    commands = os.fdopen(os.dup(0), "rb", 0)
    root = sys.argv[1]
    sys.argv = ["keystone"]  # oslo.config reads it
    for module in ("cmd.bootstrap", "common.sql.upgrades", "server.flask.core"):
        importlib.import_module(f"keystone.{module}")  # once, before the forks
    children: set[int] = set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for line in iter(commands.readline, b""):
            command = json.loads(line)
            answer: dict[str, Any] = {}
            if command["do"] == "start":
                sock = bind(command["port"])
                pid, port = os.fork(), sock.getsockname()[1]
                if pid == 0:
                    serve(sock, command, os.path.join(root, "server.log"), os.getppid())
                sock.close()
                children.add(pid)
                answer = {"pid": pid, "port": port}
            else:
                os.kill(command["pid"], signal.SIGKILL)
                os.waitpid(command["pid"], 0)
                children.discard(command["pid"])
            os.write(1, json.dumps(answer).encode() + b"\n")
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
