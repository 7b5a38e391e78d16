# SPDX-License-Identifier: MIT
"""Servers as processes on each kind of store, and disks to serve."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.backends import Backend, DirectoryBackend, SwiftBackend
from tests.support.nbd_client import NbdClient
from tests.support.server_process import ServerProcess
from tests.support.swift_aio import KEY, USER

KiB = 1024
MiB = 1024 * KiB

_numbers = itertools.count(1)


@dataclass
class Disk:
    """A container and the server that exports it now."""

    backend: Backend
    container: str
    objects: int
    object_size: int
    server: ServerProcess = field(repr=False)

    @property
    def size(self) -> int:
        return self.objects * self.object_size

    @property
    def uri(self) -> str:
        return self.server.uris()[self.container]

    @property
    def holder(self) -> str:
        """The mark of whoever holds the container; nobody is the empty string."""
        return self.backend.metadata(self.container).get("client", "")

    def connect(
        self, source: str = "127.0.0.1", *, server: ServerProcess | None = None
    ) -> NbdClient:
        """A client in the transmission phase. `Refused` if the server says no."""
        client = NbdClient((server or self.server).port, source=source)
        try:
            client.go(self.container.encode())
        except BaseException:
            client.close()
            raise
        return client

    def wait_unlocked(self, times: int = 1) -> None:
        """Wait until this server has let go of the container so many times."""
        wanted = f"{self.container}: unlocked"
        self.server.wait_until(
            lambda: sum(wanted in line for line in self.server.stderr.lines) >= times,
            f"{times} times {wanted!r}",
            30,
        )

    def image_at_rest(self) -> bytes:
        """Stop the server, then read the disk behind its back: nothing else is left there."""
        assert self.server.terminate() == 0, self.server.log()
        assert self.holder == ""
        return self.backend.image(self.container)


Launch = Callable[..., ServerProcess]
Serve = Callable[..., Disk]


def new_name() -> str:
    """A container name no other test uses."""
    return f"disk-{next(_numbers)}"


def make_backend(kind: str, request: pytest.FixtureRequest, directory: Path) -> Backend:
    if kind == "directory":
        return DirectoryBackend(directory / "disks")
    swift = request.getfixturevalue("real_swift")
    return SwiftBackend(swift.auth_url, USER, KEY, directory / "secrets.conf")


@contextmanager
def launcher(
    backend: Backend, directory: Path, *, program: tuple[str, ...] = ()
) -> Iterator[Launch]:
    """Starts servers; at the end they must end well, having logged nothing odd."""
    servers: list[ServerProcess] = []

    def launch(*names: str, strict: bool = False, extra: tuple[str, ...] = ()) -> ServerProcess:
        arguments = (*backend.arguments, *extra)
        server = ServerProcess(*arguments, workdir=directory, strict=strict, program=program)
        servers.append(server)
        server.wait_ready(*names)
        return server

    try:
        yield launch
        for server in servers:
            server.finish()
    finally:
        for server in servers:
            server.kill()


def set_up_disk(
    backend: Backend,
    launch: Launch,
    objects: int,
    object_size: int,
    strict: bool,
    extra: tuple[str, ...] = (),
) -> Disk:
    name = new_name()
    backend.setup(name, objects, object_size)
    server = launch(name, strict=strict, extra=extra)
    return Disk(backend, name, objects, object_size, server)


@pytest.fixture(params=["directory", "swift"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Each kind of store in turn."""
    return make_backend(request.param, request, tmp_path)


@pytest.fixture
def launch(backend: Backend, tmp_path: Path) -> Iterator[Launch]:
    """``launch(*names)`` starts a server and waits until it serves these containers."""
    with launcher(backend, tmp_path) as launch:
        yield launch


@pytest.fixture
def serve(backend: Backend, launch: Launch) -> Serve:
    """``serve(objects=, object_size=, strict=)`` sets up a new disk and serves it."""

    def serve(objects: int = 64, object_size: int = 64 * KiB, *, strict: bool = False) -> Disk:
        return set_up_disk(backend, launch, objects, object_size, strict)

    return serve


@pytest.fixture(scope="module", params=["directory", "swift"])
def shared_disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Disk]:
    """One disk of 16 MiB for all tests of a module; its server runs in development mode."""
    directory = tmp_path_factory.mktemp("shared")
    backend = make_backend(request.param, request, directory)
    with launcher(backend, directory) as launch:
        yield set_up_disk(backend, launch, 256, 64 * KiB, strict=True)
