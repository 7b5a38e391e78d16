# SPDX-License-Identifier: MIT
"""The kernel VM with systemd as its init, and the units of docs/systemd as they are.

Its root file system is in memory, with a small ``/etc``; ``/usr``, Python, its packages and our
code are those of this machine, read-only over 9p. There is no network but loopback. The server
runs in it; its container is a folder of the host's, for who looks at it afterwards.
"""

import shutil
import site
import sys
from pathlib import Path

from tests.support import vm
from tests.support.clients import find, missing

MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
SYSTEMD = Path("/usr/lib/systemd/systemd")
TARGET = "test.target"

_HERE = Path(__file__).parent
_CODE = _HERE.parents[1]
_UNITS = _CODE / "docs/systemd"
_FOLDERS = (
    "dev proc sys run tmp root usr opt var/lib var/log var/cache mnt/disk "
    "etc/swiftnbd etc/sysusers.d etc/systemd/system/test.target.wants"
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nmessagebus:x:100:101::/:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nkmem:x:15:\nmessagebus:x:101:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/hosts": "127.0.0.1 localhost vm\n",
    "etc/hostname": "vm\n",
    "etc/fstab": "",
    "etc/machine-id": "",
    # as docs/operations.md has it
    "etc/swiftnbd/server.env": "SWIFTNBD_FLAGS=-a file:/var/lib/swiftnbd --on-end close\n",
    "etc/swiftnbd/nbd0.env": "EXPORT=disk\nOPTIONS=-timeout 10\n",
    "etc/systemd/system/test.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\n",
    "etc/systemd/system/test.service": (
        "[Unit]\nAfter=swiftnbd.service mnt-disk.mount\n"
        "[Service]\nType=oneshot\nExecStart=/bin/bash /opt/test.sh\nTimeoutStartSec=infinity\n"
        "StandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyS0\n"
    ),
    "opt/swiftnbd-server": (
        "#!/bin/sh\n"
        "export LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1\n"
        "export PYTHONPATH=/opt/code:/opt/packages\n"
        f"exec /opt/python/bin/python3.{sys.version_info.minor} -c "
        "'import sys; from swiftnbd.cli.server import main; sys.exit(main())' \"$@\"\n"
    ),
}
_WANTED = {
    "test.target.wants": ("swiftnbd.service", "mnt-disk.mount", "swiftnbd-attach@nbd0.service"),
    "swiftnbd-attach@nbd0.service.wants": ("swiftnbd-reconnect@nbd0.service",),
}


class SystemdMachine(vm.Machine):
    """It serves the container ``disk`` of the folder ``store``, and has ``hello`` in /opt."""

    def __init__(self, store: Path, hello: Path, scratch: Path) -> None:
        if not SYSTEMD.exists():
            missing("systemd is not installed")
        kernel, modules = vm.kernel_and_modules()
        initramfs = _initramfs(modules, hello, scratch)
        shares = {
            "usr": Path("/usr"),
            "modules": modules,
            "python": Path(sys.base_prefix),
            "packages": Path(site.getsitepackages()[0]),
            "code": _CODE,
        }
        options = [
            word for tag, path in shares.items() for word in _share(tag, path, "none,readonly=on")
        ]
        options += _share("store", store, "passthrough")
        words = f"systemd.unit={TARGET} systemd.show_status=1 TERM=dumb"
        self.start(kernel, initramfs, words, memory_mib=1024, more=options)


def _share(tag: str, path: Path, security: str) -> list[str]:
    folder = f"local,id={tag},path={path},multidevs=remap,security_model={security}"
    return ["-fsdev", folder, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _initramfs(modules: Path, hello: Path, scratch: Path) -> Path:
    tree = scratch / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(find("busybox"), tree / "bin/busybox")
    shutil.copy(_HERE / "vm_systemd_init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    (tree / "modules").mkdir()
    vm.copy_modules(modules.parents[1], tree / "modules", MODULES)
    _fill(tree / "skeleton", hello)
    initramfs = scratch / "initramfs"
    initramfs.write_bytes(vm.packed(tree))
    return initramfs


def _fill(root: Path, hello: Path) -> None:
    """The root file system: an /etc with our units, and what leads to /usr."""
    for folder in _FOLDERS.split():
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name, text in _FILES.items():
        (root / name).write_text(text)
    (root / "opt/swiftnbd-server").chmod(0o755)
    for name in ("ld.so.cache", "nsswitch.conf", "os-release"):
        shutil.copy(Path("/etc") / name, root / "etc")
    shutil.copy(hello, root / "opt/hello")
    shutil.copy(_HERE / "vm_systemd.sh", root / "opt/test.sh")
    shutil.copy(_UNITS / "nbd-reconnect.py", root / "opt")
    (root / "opt/nbd-reconnect.py").chmod(0o755)
    shutil.copy(_UNITS / "swiftnbd.sysusers", root / "etc/sysusers.d/swiftnbd.conf")
    _copy_units(root / "etc/systemd/system")


def _copy_units(target: Path) -> None:
    """Copied and enabled, below our target instead of ``multi-user.target``."""
    for path in (*_UNITS.glob("*.service"), *_UNITS.glob("*.mount")):
        text = path.read_text().replace("/usr/bin/swiftnbd-server", "/opt/swiftnbd-server")
        (target / path.name).write_text(text)
    for folder, units in _WANTED.items():
        (target / folder).mkdir(exist_ok=True)
        for unit in units:
            name, at, rest = unit.partition("@")
            file = f"{name}@.{rest.rpartition('.')[2]}" if at else unit
            (target / folder / unit).symlink_to(f"../{file}")
    (target / "test.target.wants/test.service").symlink_to("../test.service")
