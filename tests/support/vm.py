# SPDX-License-Identifier: MIT
"""A real kernel NBD client: Debian's kernel in qemu, attached to a server on the host.

The kernel is unpacked, not installed; its initramfs holds busybox as the shell and the real
nbd-client, e2fsprogs, util-linux and rsync with their libraries. Both are built once and kept
under ``~/.cache/swiftnbd-tests``, named by a hash of all that goes into them, and neither is
packed: that would be a third of the work of a boot on an emulated processor.
`vm_init.sh` is the first process; it runs one of the ``vm_*.sh`` scripts and prints a line per
step::

    vm.boot("roundtrip", port=server.port, export="disk")
"""

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.clients import Output, find, missing, run

BOOT_SECONDS_MAX = 240  # a slow machine without KVM; here it takes 15 to 30
# While others keep the processors busy, the emulated ones are late: the kernel must not rely on
# their counters, nor panic because no tick of the timer came while it looked for one.
CLOCKS = "tsc=unstable no_timer_check"
UNUSED_SECONDS_MAX = 7 * 24 * 3600
PROGRAMS = (
    *("nbd-client", "mke2fs", "e2fsck", "mount", "umount", "rsync", "fallocate", "blkdiscard"),
    "udevadm",
)
MODULES = ("virtio_pci", "virtio_net", "ext4", "nbd")
SCRIPTS = (
    *("init", "device", "outage", "page", "powercut", "reconnect", "recover", "roundtrip", "soak"),
)

_HERE = Path(__file__).parent
_RECONNECT = _HERE.parents[1] / "docs/systemd/nbd-reconnect.py"
_UDEV_RULES = _HERE.parents[1] / "docs/systemd/60-nbd.rules"
_BUILD_VERSION = "8"  # change it when the build itself changes
_XZ_MAGIC = b"\xfd7zXZ\0"


def steps(script: str) -> list[str]:
    """The names of all steps of a script, in order."""
    text = (_HERE / f"vm_{script}.sh").read_text()
    return ["boot", *re.findall(r"^step (\w+)", text, re.MULTILINE), "end"]


class Machine:
    """A VM that runs one script. End it with `wait` or `cut_power`.

    It finds a copy of the folder ``files`` as ``/files``, and ``others`` as shell variables.
    """

    def __init__(
        self, script: str, *, port: int, export: str, files: Path | None = None, **others: int
    ) -> None:
        kernel, initramfs = _images()
        words = f"port={port} export={export} script={script}"
        words += "".join(f" {name}={value}" for name, value in others.items())
        if files is not None:
            initramfs = _with_files(initramfs, files)
        network = ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="]
        self.start(kernel, initramfs, words, memory_mib=512, more=network)

    def start(
        self, kernel: Path, initramfs: Path, words: str, *, memory_mib: int, more: list[str]
    ) -> None:
        """Boot; ``words`` are for the kernel's command line, ``more`` for qemu's."""
        command = [
            *(str(find("qemu-system-x86_64")), "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-smp", "2", "-m", str(memory_mib), "-nographic", "-no-reboot", "-nodefaults"),
            *("-serial", "stdio", *more),
            *("-kernel", str(kernel), "-initrd", str(initramfs)),
            *("-append", f"console=ttyS0 quiet panic=-1 {CLOCKS} {words}"),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert self.process.stdout is not None
        self._changed = threading.Condition()
        self._console = Output(self.process.stdout, self._changed)

    @property
    def console(self) -> str:
        return "\n".join(self._console.lines)

    def passed(self) -> list[str]:
        """The names of the steps that passed."""
        return re.findall(r"PASS (\w+)", self.console)

    def lines(self, first_word: str) -> list[list[str]]:
        """The words behind ``first_word`` of each line of the console that begins with it."""
        words = (line.split() for line in self._console.lines)
        return [rest for first, *rest in filter(None, words) if first == first_word]

    def wait_for(self, text: str) -> None:
        """Wait for a text on the console."""
        self.wait_until(lambda: text in self.console, repr(text))

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something on the console that makes ``condition`` true."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._console.ended, BOOT_SECONDS_MAX)
        if not condition():
            self.cut_power()
            pytest.fail(f"the VM never said {what}:\n{self.console}")

    def wait(self) -> None:
        """Wait until it has powered itself off."""
        self.wait_for("Power down")
        self.process.wait(BOOT_SECONDS_MAX)

    def cut_power(self) -> None:
        """Be gone at once."""
        self.process.kill()
        self.process.wait()
        self._console.thread.join()  # what it said last is read, too


def boot(
    script: str, *, port: int, export: str, files: Path | None = None, **others: int
) -> Machine:
    """Run a script to its end; all of its steps must pass."""
    machine = Machine(script, port=port, export=export, files=files, **others)
    machine.wait()
    assert machine.passed() == steps(script), machine.console
    return machine


def kernel_and_modules() -> tuple[Path, Path]:
    """The kernel, and the folder ``lib/modules`` that goes with it."""
    cache = _cache_dir()
    with _only_one(cache / "lock"):
        root = _kernel(cache)
        return _unpacked(next(root.glob("boot/vmlinuz-*"))), _above_lib(root) / "lib/modules"


def _images() -> tuple[Path, Path]:
    cache = _cache_dir()
    with _only_one(cache / "lock"):
        root = _kernel(cache)
        kernel = _unpacked(next(root.glob("boot/vmlinuz-*")))
        initramfs = cache / f"initramfs-{_fingerprint(kernel.name)}"
        if not initramfs.exists():
            _build(root, cache / "build", initramfs)
        initramfs.touch()
        _forget_unused(cache)
        return kernel, initramfs


def _cache_dir() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = home / "swiftnbd-tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _forget_unused(cache: Path) -> None:
    for path in cache.glob("initramfs-*"):
        if time.time() - path.stat().st_mtime > UNUSED_SECONDS_MAX:
            path.unlink()


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Two test runs on one machine build one after the other."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kernel(cache: Path) -> Path:
    """Debian's kernel for this machine, unpacked: the one at hand, else the newest there is."""
    if os.uname().machine != "x86_64":
        missing("the kernel VM is made for x86_64 only")
    if at_hand := sorted(cache.glob("linux-image-*")):
        return at_hand[-1]
    depends = run("apt-cache", "depends", "linux-image-amd64", check=False).stdout
    match = re.search(r"Depends: (linux-image-\S+)", depends)
    if match is None:
        missing("apt knows no linux-image-amd64: apt-get update")
    scratch = cache / "download"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    run("apt-get", "download", match[1], cwd=scratch)
    run("dpkg", "-x", next(scratch.glob("*.deb")), scratch / "root")
    root = (scratch / "root").rename(cache / match[1])
    shutil.rmtree(scratch)
    return root


def _unpacked(packed: Path) -> Path:
    """The ELF file in a kernel packed by xz, which qemu boots as well; else the kernel as it is.

    Where it lies is told by the "payload" fields of Documentation/arch/x86/boot.rst.
    """
    unpacked = packed.with_name(packed.name.replace("vmlinuz", "vmlinux"))
    if unpacked.exists():
        return unpacked
    data = packed.read_bytes()
    offset, length = struct.unpack_from("<II", data, 0x248)
    begin = (data[0x1F1] + 1) * 512 + offset  # behind the boot sector and the set-up's sectors
    payload = data[begin : begin + length]
    if not payload.startswith(_XZ_MAGIC):
        return packed
    part = unpacked.with_name("part")
    part.write_bytes(lzma.LZMADecompressor().decompress(payload))  # the size follows it
    return part.rename(unpacked)


def _fingerprint(kernel_name: str) -> str:
    digest = hashlib.sha256(f"{_BUILD_VERSION} {kernel_name}".encode())
    for name in SCRIPTS:
        digest.update((_HERE / f"vm_{name}.sh").read_bytes())
    for program in ("busybox", *PROGRAMS):
        digest.update(find(program).read_bytes())
    digest.update(f"{sys.executable} {sys.version} {_RECONNECT.read_text()}".encode())
    digest.update(_UDEV_RULES.read_bytes())
    return digest.hexdigest()[:16]


def _build(root: Path, tree: Path, initramfs: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "scripts", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(find("busybox"), tree / "bin/busybox")
    for program in map(find, PROGRAMS):
        _copy_program(program, tree)
    _copy_scripts(tree)
    _copy_python(tree)
    copy_modules(_above_lib(root), tree / "modules", MODULES)
    _make_files(tree / "tree")
    part = initramfs.with_suffix(".part")
    part.write_bytes(packed(tree))
    part.rename(initramfs)
    shutil.rmtree(tree)


def packed(tree: Path) -> bytes:
    """An archive for the kernel; one may follow another, as each ends at a multiple of 512."""
    return subprocess.run(
        f"find . | {find('cpio')} --quiet -o -H newc",
        shell=True,
        cwd=tree,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


def _with_files(initramfs: Path, files: Path) -> Path:
    """A copy for one machine, beside the files, that holds them, too."""
    copy = files.with_name(f"{files.name}.initramfs")
    tree = files.with_name(f"{files.name}.tree")
    shutil.copytree(files, tree / "files")
    copy.write_bytes(initramfs.read_bytes() + packed(tree))
    shutil.rmtree(tree)
    return copy


def _copy_program(program: Path, tree: Path) -> None:
    """A program and its shared libraries; under /usr, whatever the host's layout."""
    target = tree / "usr" / program.parent.name / program.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, target)
    _copy_libraries(program, tree)


def _copy_libraries(program: Path, tree: Path) -> None:
    listed = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=True
    ).stdout
    for library in re.findall(r"(/\S+) \(0x", listed):
        copy = tree / library.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, copy)


def _copy_scripts(tree: Path) -> None:
    shutil.copy(_HERE / "vm_init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    (tree / "etc/udev/rules.d").mkdir(parents=True)
    shutil.copy(_UDEV_RULES, tree / "etc/udev/rules.d")
    for name in SCRIPTS[1:]:
        shutil.copy(_HERE / f"vm_{name}.sh", tree / "scripts" / name)


def _copy_python(tree: Path) -> None:
    """This interpreter, with no more of its library than `_RECONNECT` imports, and a wrapper."""
    # Asked for as the interpreter looks for it: a module may have put another in its place
    # (`collections.abc` of 3.13), which then tells of a file of its own.
    code = (
        "import encodings.idna, importlib.machinery, importlib.util as u, os, sys;"
        "m = u.spec_from_file_location('m', sys.argv[1]);"
        "m.loader.exec_module(u.module_from_spec(m)); print(os.__file__);"
        "of = lambda name: getattr(sys.modules.get(name.rpartition('.')[0]), '__path__', None);"
        "find = importlib.machinery.PathFinder.find_spec;"
        "found = [find(name, of(name)) for name in list(sys.modules)];"
        "print(*{spec.origin for spec in found if spec and spec.origin}, sep='\\n')"
    )
    python = Path(sys.executable).resolve()
    files = run(str(python), "-I", "-S", "-c", code, str(_RECONNECT)).stdout.split()
    for path in {python, *map(Path, files)}:
        target = tree / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        if path == python or ".so" in path.name:
            _copy_libraries(path, tree)
    (Path(tree / str(Path(files[0]).parent).lstrip("/")) / "lib-dynload").mkdir(exist_ok=True)
    shutil.copy(_RECONNECT, tree / "scripts" / _RECONNECT.name)
    wrapper = tree / "bin/nbd-reconnect"
    wrapper.write_text(f'#!/bin/busybox sh\nexec {python} -I -S /scripts/{_RECONNECT.name} "$@"\n')
    wrapper.chmod(0o755)


def copy_modules(lib: Path, target: Path, modules: Sequence[str]) -> None:
    """The modules the VM loads, and the order to load them in; ``lib`` is what is above lib/."""
    version = next((lib / "lib/modules").iterdir()).name
    subprocess.run(
        [find("modprobe").with_name("depmod"), "-b", lib, version], check=True, capture_output=True
    )
    order: list[str] = []
    for module in modules:
        shown = run("modprobe", "-d", lib, "-S", version, "--show-depends", module).stdout
        for path in map(Path, re.findall(r"^insmod (\S+)", shown, re.MULTILINE)):
            if path.name not in order:
                order.append(path.name)
                _copy_module(path, target)
    (target / "order").write_text("".join(f"{name}\n" for name in order))


def _above_lib(root: Path) -> Path:
    return root if (root / "lib/modules").exists() else root / "usr"


def _copy_module(path: Path, target: Path) -> None:
    """Newer kernels' modules are packed, which busybox does not read; the name stays."""
    packed = path.suffix == ".xz"
    data = path.read_bytes()
    (target / path.name).write_bytes(lzma.decompress(data) if packed else data)


def _make_files(tree: Path) -> None:
    """A tree to copy: many small files, a few large ones, links, and some to delete again."""
    for directory in range(8):
        folder = tree / f"small/{directory}"
        folder.mkdir(parents=True)
        for number in range(25):
            data = hashlib.sha256(f"{directory}/{number}".encode()).digest() * (number * 7 + 1)
            (folder / f"file {number}").write_bytes(data)
    (tree / "large").mkdir()
    for number in range(3):
        blocks = (hashlib.sha256(b"%d %d" % (number, i)).digest() for i in range(32 * 1024))
        (tree / f"large/{number}").write_bytes(b"".join(blocks))
    (tree / "doomed").mkdir()
    (tree / "doomed/file").write_bytes(b"\xaa" * (2 << 20))
    (tree / "link").symlink_to("large/0")
    os.link(tree / "large/1", tree / "hard link")
