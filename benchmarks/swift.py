# SPDX-License-Identifier: MIT
"""A real Swift for the time of a measurement, disks in it, and our server on them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import Server, run, script, swiftnbd_server
from benchmarks.rawload import RawSwift
from benchmarks.results import Missing


@dataclass
class Swift:
    """``raw`` is the account as a plain HTTP client sees it."""

    auth_url: str
    user: str
    key: str
    workdir: Path
    raw: RawSwift
    _names: list[str] = field(default_factory=list)

    def new_name(self) -> str:
        """A container name that was never used."""
        self._names.append(f"disk-{len(self._names) + 1}")
        return self._names[-1]

    @property
    def last_name(self) -> str:
        """The one that `new_name` gave last."""
        return self._names[-1]

    def set_up(self, size: int, object_size: int) -> str:
        """A new, empty disk; its container's name."""
        name = self.new_name()
        objects = ["setup", "-f", name, str(size // object_size), "--object-size", str(object_size)]
        run(self.ctl(name, *objects))
        return name

    def ctl(self, name: str, *arguments: str) -> list[str]:
        """The command line of swiftnbd-ctl that knows this container alone."""
        return [script("swiftnbd-ctl"), *self.arguments(name), *arguments]

    def serve(self, name: str, cache_mib: int, *flags: str) -> Server:
        """A new server process, so with nothing cached, for this one disk."""
        return swiftnbd_server(self.workdir, cache_mib, *self.arguments(name), *flags)

    def arguments(self, name: str) -> list[str]:
        """The flags of either program that name this disk's container and its login."""
        secrets = self.workdir / f"{name}.conf"
        secrets.write_text(f"[{name}]\nusername = {self.user}\npassword = {self.key}\n")
        os.chmod(secrets, 0o600)
        return ["-a", self.auth_url, "--secrets", str(secrets)]


@contextmanager
def real_swift(workdir: Path) -> Iterator[Swift]:
    """Start a Swift of the `swift` package on loopback."""
    try:
        import swift.proxy.server  # noqa: F401
    except ImportError as error:
        raise Missing(f"the package swift: pip install swift ({error})") from None
    from tests.support.swift_aio import KEY, USER, RealSwift

    with RealSwift() as servers:
        raw = RawSwift.log_in(servers.auth_url, USER, KEY)
        yield Swift(servers.auth_url, USER, KEY, workdir, raw)
