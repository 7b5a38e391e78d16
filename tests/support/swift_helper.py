# SPDX-License-Identifier: MIT
"""The process above the servers of `tests.support.swift_aio`.

It imports swift once, binds the sockets, writes rings and configuration and forks the real
servers, each told to use its bound socket. Commands come as lines of JSON on standard input; at
its end the servers are ended, so nothing is left behind.
"""

import ctypes
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

from tests.support.swift_conf import ROLES, SwiftSpec, write_confs, write_rings

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
END_SECONDS_MAX = 1.0

Sockets = dict[str, socket.socket]


class DictCache:
    """The part of Swift's MemcacheRing that the proxy uses, in a dictionary."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}
        self.memcache_servers: list[str] = []

    def get(self, key: str, raise_on_error: bool = False) -> Any:
        value, expires = self._known.get(key, ("null", 0.0))
        if expires and expires < time.time():
            del self._known[key]
            return None
        return json.loads(value)

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        if isinstance(value, bytes):
            value = value.decode("latin1")
        self._known[key] = (json.dumps(value), _now() + time if time else 0.0)

    def incr(self, key: str, delta: int = 1, time: float = 0) -> int:
        value = max(0, int(self.get(key) or 0) + int(delta))
        self.set(key, value, time=time)
        return value

    def decr(self, key: str, delta: int = 1, time: float = 0) -> int:
        return self.incr(key, -delta, time)

    def delete(self, key: str, server_key: str | None = None) -> None:
        self._known.pop(key, None)

    def set_multi(
        self, mapping: dict[str, Any], server_key: str, time: float = 0, **_: Any
    ) -> None:
        for key, value in mapping.items():
            self.set(key, value, time=time)

    def get_multi(self, keys: list[str], server_key: str) -> list[Any]:
        return [self.get(key) for key in keys]


def _now() -> float:
    return time.time()


class Helper:
    """The servers and their sockets."""

    def __init__(self, spec: SwiftSpec) -> None:
        self.spec = spec
        self.pid = os.getpid()
        self.pids: dict[str, int] = {}
        self.sockets: Sockets = {role: bind(spec.port if role == "proxy" else 0) for role in ROLES}
        self.ports = {role: sock.getsockname()[1] for role, sock in self.sockets.items()}
        os.makedirs(os.path.join(spec.root, "cache"), exist_ok=True)
        os.makedirs(os.path.join(spec.devices, "d1"), exist_ok=True)
        write_rings(spec, self.ports)
        write_confs(spec, self.ports)

    def launch(self, roles: list[str]) -> None:
        """Fork one process that serves these roles."""
        pid = os.fork()
        if pid == 0:
            serve(self.spec, roles, self.sockets, self.pid)
        for role in roles:
            self.pids[role] = pid
            self.sockets.pop(role).close()

    def restart(self, role: str) -> None:
        roles = next(group for group in self.spec.groups if role in group)
        for each in roles:
            self.sockets[each] = bind(self.ports[each])
        self.launch(roles)

    def end(self, role: str, sig: int) -> None:
        """Send a signal, and SIGKILL if that does not end it; return when it is reaped."""
        pid = self.pids[role]
        for each in (sig, signal.SIGKILL):
            try:
                kill(pid, each)
                kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + END_SECONDS_MAX
            while time.monotonic() < deadline:
                try:
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        return
                except ChildProcessError:
                    return
                time.sleep(0.005)


def bind(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(1024)
    return sock


def kill(pid: int, sig: int) -> None:
    """Each server leads a session of its own: take its workers along."""
    if os.getpgid(pid) == pid:
        os.killpg(pid, sig)
    else:
        os.kill(pid, sig)


def serve(spec: SwiftSpec, roles: list[str], sockets: Sockets, parent: int) -> None:
    """In a forked child: be these servers, and never return."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        log_path = os.path.join(spec.root, f"{'+'.join(roles)}.log")
        redirect(log_path)
        adapt_swift(spec, log_path)
        for role in ROLES:
            if role not in roles and role in sockets:
                sockets[role].close()
        code = run_one(spec, roles[0], sockets) if len(roles) == 1 else run(spec, roles, sockets)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def redirect(log_path: str) -> None:
    log = os.open(log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


def adapt_swift(spec: SwiftSpec, log_path: str) -> None:
    """Our swift.conf; logs in a file, not in syslog; a dictionary as cache; perhaps no fsync."""
    import swift.common.middleware.memcache as memcache
    from swift.common import utils, wsgi
    from swift.common.storage_policy import reload_storage_policies
    from swift.common.utils import logs

    utils.set_swift_dir(spec.root)
    reload_storage_policies()

    class FileLog(logging.FileHandler):
        createLock = logs.ThreadSafeSysLogHandler.createLock  # noqa: N815

        def __init__(self, *_: Any, **__: Any) -> None:
            logging.FileHandler.__init__(self, log_path)

    logs.ThreadSafeSysLogHandler = FileLog
    logs.capture_stdio = wsgi.capture_stdio = lambda *_, **__: None
    if spec.cache == "dict":
        cache = DictCache()
        memcache.load_memcache = lambda *_: cache
    if not spec.fsync:
        os.fsync = os.fdatasync = lambda fd: None


def server_module(role: str) -> Any:
    return importlib.import_module(f"swift.{'obj' if role == 'object' else role}.server")


def run_one(spec: SwiftSpec, role: str, sockets: Sockets) -> int:
    """Swift's own main(), on our socket."""
    from eventlet.greenio import GreenSocket
    from swift.common import wsgi

    wsgi.get_socket = lambda conf: GreenSocket(sockets[role].dup())
    sys.argv = [f"swift-{role}-server", spec.conf(role)]
    return server_module(role).main() or 0


def run(spec: SwiftSpec, roles: list[str], sockets: Sockets) -> int:
    """Several servers in one process, each in a green thread."""
    import eventlet
    from eventlet.greenio import GreenSocket
    from swift.common import wsgi

    servers = []
    for role in roles:
        options = {}
        if role == "object":
            options["global_conf_callback"] = server_module(role).global_conf_callback
        conf, logger, global_conf, _ = wsgi.check_config(
            spec.conf(role), f"{role}-server", **options
        )
        servers.append((conf, logger, GreenSocket(sockets[role].dup()), global_conf))
    eventlet.hubs.use_hub(wsgi.get_hub())
    # run_server calls use_hub again, which would drop this thread's hub with all its waiters;
    # the threads of tpool still need theirs.
    use_hub, local = eventlet.hubs.use_hub, eventlet.hubs._threadlocal
    eventlet.hubs.use_hub = lambda *args: None if hasattr(local, "hub") else use_hub(*args)
    threads = [
        eventlet.spawn(wsgi.run_server, conf, logger, sock, global_conf=global_conf)
        for conf, logger, sock, global_conf in servers
    ]
    for thread in threads:
        thread.wait()
    return 0


def say(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def obey(helper: Helper, command: dict[str, Any]) -> None:
    role = command["role"]
    if command["do"] == "kill":
        helper.end(role, command["signal"])
    else:
        helper.restart(role)
    say({"pids": helper.pids})


def main() -> None:
    commands = os.fdopen(os.dup(0), "rb", 0)
    spec = SwiftSpec(**json.loads(commands.readline()))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphaned workers become ours: reap them
    for role in ROLES:
        server_module(role)  # once, before the forks
    helper = Helper(spec)
    for roles in spec.groups:
        helper.launch(roles)
    say({"ports": helper.ports, "pids": helper.pids})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for line in iter(commands.readline, b""):
            obey(helper, json.loads(line))
    finally:
        for role in ROLES:
            helper.end(role, signal.SIGKILL)  # the data is thrown away


if __name__ == "__main__":
    main()
