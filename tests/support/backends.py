# SPDX-License-Identifier: MIT
"""The stores a server is tried on, and a second witness of what lies in them.

A `Backend` gives the programs their arguments and reads containers behind their back: plain
files, or plain HTTP requests that share no code with the Swift store.
"""

import asyncio
import json
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.export.layout import Geometry
from swiftnbd.store.base import Store
from swiftnbd.store.directory import DirectoryStore
from swiftnbd.store.open import SwiftAccount, V1Auth, open_swift
from tests.support.server_process import ctl

PART = "disk.part/"
HTTP_SECONDS_MAX = 30.0


class Backend(ABC):
    """A place for containers. ``arguments`` select it on both programs' command lines."""

    arguments: tuple[str, ...]
    login: tuple[str, ...] = ()  # the lines of a secrets file that log in

    @abstractmethod
    def announce(self, container: str) -> None:
        """Let the programs know a container by this name."""

    @abstractmethod
    def objects(self, container: str) -> dict[str, bytes]:
        """Every object of a container, by name."""

    @abstractmethod
    def metadata(self, container: str) -> dict[str, str]:
        """The container's metadata that begins with ``swiftnbd-``, without that."""

    @abstractmethod
    def set_metadata(self, container: str, **values: str) -> None:
        """Change the metadata, behind the back of the programs; dashes are underscores here."""

    @abstractmethod
    def put(self, container: str, name: str, data: bytes) -> None:
        """Write an object, behind the back of the programs."""

    def setup(self, container: str, objects: int, object_size: int) -> None:
        """Make a container as ``swiftnbd-ctl setup`` does, which others run as a program.

        The programs' start would be most of what it costs, in a hundred tests.
        """
        self.announce(container)
        self.ctl("setup", container, str(objects), "--object-size", str(object_size))

    def write_secrets(self, path: Path, container: str, *lines: str) -> None:
        """A secrets file for one container, with ``lines`` of its own in the section."""
        path.touch(mode=0o600)
        path.write_text("\n".join([f"[{container}]", *self.login, *lines, ""]))

    def ctl(self, *arguments: str) -> None:
        """Run ``swiftnbd-ctl`` on this backend; it must succeed."""
        ctl(*self.arguments, *arguments)

    def image(self, container: str) -> bytes:
        """The disk as a reader of format v1 sees it: every part or zeros, in order.

        Checks on the way that nothing but whole parts of this disk, and what is marked as our
        own, lies in the container.
        """
        metadata = self.metadata(container)
        size, count = int(metadata["object-size"]), int(metadata["objects"])
        stored = {
            name: data
            for name, data in self.objects(container).items()
            if not name.startswith("swiftnbd/")  # ours, and nothing to 0.11
        }
        names = [f"{PART}{index:08d}" for index in range(count)]
        assert not stored.keys() - set(names), f"foreign objects: {stored.keys() - set(names)}"
        wrong = {name: len(data) for name, data in stored.items() if len(data) != size}
        assert not wrong, f"objects that are not {size} bytes: {wrong}"
        return b"".join(stored.get(name, bytes(size)) for name in names)


class DirectoryBackend(Backend):
    """The directory store, read as files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.arguments = ("-a", f"file:{root}")

    def announce(self, container: str) -> None:
        pass

    def setup(self, container: str, objects: int, object_size: int) -> None:
        _run_setup(self._setup(container, Geometry(objects, object_size)))

    async def _setup(self, container: str, geometry: Geometry) -> None:
        await _set_up(DirectoryStore(self.root, container), container, geometry)

    def objects(self, container: str) -> dict[str, bytes]:
        top = self.root / container
        files = [path for path in top.rglob("*") if path.is_file()]
        names = {path: path.relative_to(top).as_posix() for path in files}
        return {name: path.read_bytes() for path, name in names.items() if name[0] != "."}

    def metadata(self, container: str) -> dict[str, str]:
        content = json.loads((self.root / container / ".container.json").read_text())
        return {key.removeprefix("swiftnbd-"): value for key, value in content.items()}

    def set_metadata(self, container: str, **values: str) -> None:
        path = self.root / container / ".container.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        content |= {f"swiftnbd-{key.replace('_', '-')}": value for key, value in values.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({key: value for key, value in content.items() if value}))

    def put(self, container: str, name: str, data: bytes) -> None:
        path = self.root / container / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class SwiftBackend(Backend):
    """A real Swift with tempauth, read with urllib."""

    _META = "x-container-meta-swiftnbd-"

    def __init__(self, auth_url: str, user: str, key: str, secrets: Path) -> None:
        self.user, self.key = user, key
        self.login = (f"username = {user}", f"password = {key}")
        self.auth_url = auth_url
        self.secrets = secrets
        self.secrets.touch(mode=0o600)
        self.arguments = ("-a", auth_url, "--secrets", str(secrets))
        _, headers = _http("GET", auth_url, {"X-Auth-User": user, "X-Auth-Key": key})
        self.url, self.token = headers["x-storage-url"], headers["x-auth-token"]

    def announce(self, container: str) -> None:
        section = f"[{container}]\n"
        if section not in self.secrets.read_text():
            with self.secrets.open("a") as file:
                file.write(section + "\n".join([*self.login, "\n"]))

    def setup(self, container: str, objects: int, object_size: int) -> None:
        self.announce(container)
        _run_setup(self._setup(container, Geometry(objects, object_size)))

    async def _setup(self, container: str, geometry: Geometry) -> None:
        account = SwiftAccount(V1Auth(self.auth_url, self.user, self.key))
        try:
            await _set_up(open_swift(account, container), container, geometry)
        finally:
            await account.close()

    def objects(self, container: str) -> dict[str, bytes]:
        """By listing, and a GET of each name: a row whose object is gone is none."""
        listing, _ = self.request("GET", container, "?format=json&limit=10000")
        found = {}
        for row in json.loads(listing):
            try:
                found[row["name"]], _ = self.request("GET", container, "/" + quote(row["name"]))
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 404:
                    raise
        return found

    def metadata(self, container: str) -> dict[str, str]:
        _, headers = self.request("HEAD", container)
        return {
            key.removeprefix(self._META): value
            for key, value in headers.items()
            if key.startswith(self._META)
        }

    def set_metadata(self, container: str, **values: str) -> None:
        headers = {self._META + key.replace("_", "-"): value for key, value in values.items()}
        self.request("PUT", container, headers=headers)

    def put(self, container: str, name: str, data: bytes) -> None:
        self.request("PUT", container, f"/{name}", data=data)

    def request(
        self,
        method: str,
        container: str,
        rest: str = "",
        *,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
    ) -> tuple[bytes, dict[str, str]]:
        """One request to the storage URL: body and headers of a 2xx answer."""
        url = f"{self.url}/{quote(container)}{rest}"
        return _http(method, url, {"X-Auth-Token": self.token} | (headers or {}), data)


async def _set_up(store: Store, container: str, geometry: Geometry) -> None:
    try:
        await setup(
            store, name=container, request=SetupRequest(geometry), tell=lambda message: None
        )
    finally:
        await store.close()


def _run_setup(work: Coroutine[Any, Any, None]) -> None:
    """Beside the caller's event loop, should there be one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def _http(
    method: str, url: str, headers: dict[str, str], data: bytes | None = None
) -> tuple[bytes, dict[str, str]]:
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=HTTP_SECONDS_MAX) as answer:
        return answer.read(), {key.lower(): value for key, value in answer.headers.items()}
