# SPDX-License-Identifier: MIT
"""A real OpenStack Keystone on loopback: sqlite, fernet tokens, two domains, a few users.

It runs on an interpreter of its own (`tests.support.keystone_env`). In tests::

    with RealKeystone() as keystone:
        keystone.add_swift(port)
        keystone.url  # http://127.0.0.1:PORT/v3
        keystone.kill(), keystone.restart(), keystone.signal(signal.SIGSTOP)

Users: tester/testing (role member) and reader/reading (role reader) in project demo, other/othering
in project other, all in domain Default; and tester/corporate in project demo of domain corp.
"""

import atexit
import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.keystone_env import keystone_python

START_SECONDS_MAX = 60.0
ADMIN_PASSWORD = "adminpw"
SERVICE_PASSWORD = "servicepw"
REGION = "RegionOne"

_REPOSITORY = Path(__file__).parents[2]
_CONF = """
[DEFAULT]
log_file = {root}/keystone.log
default_log_levels = stevedore=WARN
[database]
connection = sqlite:///{root}/keystone.db
[token]
provider = fernet
expiration = {expiration}
[fernet_tokens]
key_repository = {root}/fernet
[fernet_receipts]
key_repository = {root}/fernet
[credential]
key_repository = {root}/cred
[identity]
# the default makes every check of a password take a quarter of a second
password_hash_rounds = 4
[cache]
enabled = true
backend = dogpile.cache.memory
"""

Json = dict[str, Any]


class RealKeystone:
    """One Keystone; `short_lived` is a second door to it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="keystone-aio-"))
        self.port = self.pid = 0
        self._helper: subprocess.Popen[bytes] | None = None
        self._admin = ""
        self._roles: dict[str, str] = {}
        self.projects: dict[str, str] = {}
        self.users: dict[str, str] = {}

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.base}/v3"

    def start(self) -> "RealKeystone":
        """Return when it answers and everybody is in it."""
        atexit.register(self.stop)
        try:
            for folder in ("fernet", "cred"):
                _make_keys(self.root / folder)
            environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OS_"))}
            with open(self.root / "helper.err", "ab") as errors:
                self._helper = subprocess.Popen(
                    [
                        *(keystone_python(), "-W", "ignore", "-m", "tests.support.keystone_helper"),
                        str(self.root),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environ,
                    cwd=_REPOSITORY,
                )
            self.pid, self.port = self._launch(fresh=True)
            self._provision()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything and remove the data. Idempotent."""
        atexit.unregister(self.stop)
        helper, self._helper = self._helper, None
        if helper is not None:
            assert helper.stdin is not None
            assert helper.stdout is not None
            helper.stdin.close()
            try:
                helper.wait(10)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()
            helper.stdout.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> "RealKeystone":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP and SIGCONT."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9; from now on connections are refused."""
        self._call({"do": "kill", "pid": self.pid})

    def restart(self) -> None:
        """Start it again, on its old port and data."""
        self.pid, _ = self._launch(port=self.port)

    def short_lived(self, seconds: int) -> str:
        """The URL of another Keystone on the same data, whose tokens live so long."""
        _, port = self._launch(expiration=seconds)
        return f"http://127.0.0.1:{port}/v3"

    def logs(self) -> str:
        """The ends of all logs, for a failing test's message."""
        paths = sorted([*self.root.glob("*.log"), *self.root.glob("*.err")])
        return "\n".join(f"--- {x.name}\n{x.read_text(errors='replace')[-3000:]}" for x in paths)

    # What is in it

    def add_swift(self, port: int, kind: str = "object-store", region: str = REGION) -> None:
        """Put a Swift into the catalog; its internal endpoint is on localhost, to tell them."""
        service = self.post("/services", {"type": kind, "name": f"swift-{kind}"})
        if region != REGION:
            self.post("/regions", {"id": region})
        for interface, host in (("public", "127.0.0.1"), ("internal", "localhost")):
            url = f"http://{host}:{port}/v1/AUTH_%(project_id)s"
            self._add_endpoint(service["id"], interface, region, url)

    def _add_endpoint(self, service: str, interface: str, region: str, url: str) -> None:
        values = {"service_id": service, "interface": interface, "region_id": region, "url": url}
        self.post("/endpoints", values)

    def token(self, user: str, password: str, project: str) -> str:
        """Log in with a password, in domain Default."""
        scope = {"project": {"name": project, "domain": {"id": "default"}}}
        who = {"name": user, "password": password, "domain": {"id": "default"}}
        identity = {"methods": ["password"], "password": {"user": who}}
        body = {"auth": {"identity": identity, "scope": scope}}
        return self.request("POST", "/auth/tokens", body)[1]["x-subject-token"]

    def application_credential(self, name: str) -> Json:
        """One of tester's: its ``id`` and its ``secret``."""
        token = self.token("tester", "testing", "demo")
        path = f"/users/{self.users['tester']}/application_credentials"
        body = {"application_credential": {"name": name}}
        return dict(self.request("POST", path, body, token)[0]["application_credential"])

    def revoke_credential(self, identity: str) -> None:
        token = self.token("tester", "testing", "demo")
        path = f"/users/{self.users['tester']}/application_credentials/{identity}"
        self.request("DELETE", path, token=token)

    def revoke_token(self, token: str) -> None:
        self.request("DELETE", "/auth/tokens", token=self._admin, subject=token)

    def add_user(self, name: str, password: str, project: str, role: str) -> None:
        """A user of the project's domain."""
        domain = "default" if "/" not in project else self._domain
        who = {"name": name.rpartition("/")[2], "password": password, "domain_id": domain}
        user, self.users[name] = self.post("/users", who), ""
        self.users[name] = user["id"]
        path = f"/projects/{self.projects[project]}/users/{user['id']}/roles/{self._roles[role]}"
        self.request("PUT", path, token=self._admin)

    def set_password(self, name: str, password: str) -> None:
        body = {"user": {"password": password}}
        self.request("PATCH", f"/users/{self.users[name]}", body, self._admin)

    def post(self, path: str, values: Json) -> Json:
        """Make something, as the administrator."""
        kind = path.removeprefix("/").removesuffix("s")
        return dict(self.request("POST", path, {kind: values}, self._admin)[0][kind])

    def request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        token: str = "",
        subject: str = "",
    ) -> tuple[Json, dict[str, str]]:
        """One request to the identity API: body and headers of a good answer."""
        headers = {"Content-Type": "application/json", "X-Auth-Token": token}
        headers |= {"X-Subject-Token": subject} if subject else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS_MAX) as answer:
                text = answer.read()
                found = {key.lower(): value for key, value in answer.headers.items()}
        except urllib.error.HTTPError as error:
            with error:
                said = error.read()[:500]
            raise RuntimeError(f"{method} {path}: {error.code} {said!r}\n{self.logs()}") from None
        return (json.loads(text) if text else {}), found

    def _provision(self) -> None:
        self._admin = self.token("admin", ADMIN_PASSWORD, "admin")
        roles = self.request("GET", "/roles", token=self._admin)[0]["roles"]
        self._roles = {role["name"]: role["id"] for role in roles}
        self._domain = self.post("/domains", {"name": "corp"})["id"]
        for project in ("service", "demo", "other", "corp/demo"):
            domain = self._domain if "/" in project else "default"
            values = {"name": project.rpartition("/")[2], "domain_id": domain}
            self.projects[project] = self.post("/projects", values)["id"]
        self.add_user("swift", SERVICE_PASSWORD, "service", "service")
        self.add_user("tester", "testing", "demo", "member")
        self.add_user("reader", "reading", "demo", "reader")
        self.add_user("other", "othering", "other", "member")
        self.add_user("corp/tester", "corporate", "corp/demo", "member")
        self.post("/regions", {"id": REGION})
        identity = self.post("/services", {"type": "identity", "name": "keystone"})
        self._add_endpoint(identity["id"], "internal", REGION, self.url)  # Swift looks it up

    # The processes

    def _launch(
        self, *, port: int = 0, expiration: int = 3600, fresh: bool = False
    ) -> tuple[int, int]:
        conf = self.root / f"keystone-{expiration}.conf"
        conf.write_text(_CONF.format(root=self.root, expiration=expiration))
        command = {"do": "start", "port": port, "conf": str(conf), "fresh": fresh}
        answer = self._call({**command, "password": ADMIN_PASSWORD})
        # its socket listens already: the request waits in its backlog
        url = f"http://127.0.0.1:{answer['port']}/v3"
        try:
            with urllib.request.urlopen(url, timeout=START_SECONDS_MAX) as reply:
                reply.read()
        except Exception as error:
            raise RuntimeError(f"Keystone did not come up: {error!r}\n{self.logs()}") from error
        return answer["pid"], answer["port"]

    def _call(self, message: Json) -> Json:
        assert self._helper is not None
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write(json.dumps(message).encode() + b"\n")
        self._helper.stdin.flush()
        ready, _, _ = select.select([self._helper.stdout], [], [], START_SECONDS_MAX)
        line = self._helper.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"the helper of Keystone failed:\n{self.logs()}")
        return dict(json.loads(line))


def _make_keys(folder: Path) -> None:
    """One staged and one primary."""
    folder.mkdir(mode=0o700)
    for number in range(2):
        path = folder / str(number)
        path.touch(mode=0o600)
        path.write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
