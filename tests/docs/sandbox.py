# SPDX-License-Identifier: MIT
"""A page's commands, run on a machine of their own: ``python -m tests.docs.sandbox README.md``.

It has a network of its own (so ports are those of the page), a /etc, /run, /mnt and /var/log of its
own, a home that is empty, and its processes end with it: namespaces of the kernel, for root or for
any user where the kernel permits that. What the page logs in to is real, and runs in there, too.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.docs.pages import PAGES
from tests.docs.script import script
from tests.support.keystone_aio import SERVICE_PASSWORD, RealKeystone
from tests.support.pages import ROOT
from tests.support.swift_aio import RealSwift
from tests.support.swift_conf import USERS

_NAMES = "127.0.0.1 localhost swift.example.com keystone.example.com disks.example.com\n"
_EMPTY = ("/mnt", "/run", "/var/log", "/var/cache")
_V1_URL = "https://swift.example.com/auth/v1.0"
_V3_URL = "https://keystone.example.com:5000/v3"


def namespaces() -> list[str]:
    """The command that gives what follows it a machine of its own."""
    own = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    return [*own, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def command(page: str) -> list[str]:
    """The command that runs a page; it exits with 0 if all went well."""
    return [*namespaces(), sys.executable, "-m", "tests.docs.sandbox", page]


def _make_machine(folder: Path) -> dict[str, str]:
    """Inside the namespaces: files of our own in the usual places. The environment for commands."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    shutil.copytree("/etc", folder / "etc", symlinks=True, ignore=_unreadable)
    (folder / "etc/hosts").write_text(_NAMES)
    subprocess.run(["mount", "--bind", folder / "etc", "/etc"], check=True)
    for place in _EMPTY:
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    environment = Path(sys.executable).parent.parent
    (work / ".venv").symlink_to(environment)
    path = f"{environment}/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
    return {"HOME": str(home), "PATH": path, "TMPDIR": str(folder), "LANG": "C.UTF-8"}


def _unreadable(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not os.access(os.path.join(folder, name), os.R_OK)]


@contextmanager
def _cloud(kind: str) -> Iterator[dict[str, str]]:
    """What the page's addresses stand for: the page's words, and ours for them."""
    with ExitStack() as stack:
        words = {}
        if kind:
            users = USERS | {"account:user": "secret .admin"}
            swift = stack.enter_context(RealSwift(fsync=False, users=users))
            words[_V1_URL] = swift.auth_url
        if kind == "keystone":
            words |= _keystone(stack)
        yield words


def _keystone(stack: ExitStack) -> dict[str, str]:
    keystone = stack.enter_context(RealKeystone())
    options = {"keystone_url": keystone.url, "keystone_password": SERVICE_PASSWORD}
    swift = stack.enter_context(RealSwift(fsync=False, **options))
    keystone.add_swift(swift.ports["proxy"])
    keystone.add_user("alice", "secret", "demo", "member")
    credential = keystone.application_credential("page")
    key = "application-credential-secret = "
    return {
        _V3_URL: keystone.url,
        "21dced0fd20347869b93710d2b98aae0": credential["id"],
        f"{key}secret": key + credential["secret"],
    }


def main(name: str) -> int:
    page = PAGES[name]
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        environment = _make_machine(Path(folder))
        with _cloud(page.cloud) as replace:
            text = script(name, page, replace)
            return subprocess.run(
                ["bash", "-c", text], cwd=f"{folder}/work", env=environment, check=False,
                stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip


if __name__ == "__main__":
    os.chdir(ROOT)
    if os.getpid() != 1:  # not in namespaces yet: what is mounted would be mounted for everybody
        os.execvp("unshare", command(sys.argv[1]))
    sys.exit(main(sys.argv[1]))
