# SPDX-License-Identifier: MIT
"""The soak of a file system: ext4 in the kernel VM on a Swift in trouble, cut off again and again.

Minutes long, so only under ``tox -e soak`` (or with SOAK_SECONDS); `tests.e2e.test_kernel` cuts
the power once. Every run says its seed; SOAK_SEED repeats one.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Disk, Launch, launcher, set_up_disk
from tests.soak.diary import SECONDS, SEED, Diary, soaking
from tests.soak.trouble import Nature, SwiftTrouble, make_trouble
from tests.soak.witness import backend_of
from tests.support import vm
from tests.support.clients import run
from tests.support.server_process import ServerProcess
from tests.support.swift_aio import RealSwift

KiB, MiB = 1024, 1024 * 1024
DISK_BYTES = 48 * MiB
NATURE = Nature(2.5, stop_proxy=True)
EXPECTED_LOG = r": (WARNING|ERROR): "
ANY = "any"  # of a file that is being overwritten in place
CHECKSUM_DIGITS = 32

pytestmark = [
    pytest.mark.timeout(2 * SECONDS + 4 * vm.BOOT_SECONDS_MAX),
    pytest.mark.skipif(not SECONDS, reason="takes minutes: tox -e soak"),
]


@dataclass
class Files:
    """Which checksums each file of the file system may have; "none" is no file."""

    legal: dict[str, set[str]] = field(default_factory=dict)
    verified: int = 0

    def take_in(self, machine: vm.Machine) -> None:
        """What a machine said until its power was cut; its last line may be cut, too."""
        for line in machine.console.splitlines():
            match line.split():
                case ["BEGIN", name, ("any" | "none") as checksum]:
                    self._allow(name, checksum)
                case ["BEGIN", name, checksum] if len(checksum) == CHECKSUM_DIGITS:
                    self._allow(name, checksum)
                case ["DURABLE", name, checksum] if len(checksum) in (4, CHECKSUM_DIGITS):
                    self.legal[name] = {checksum}

    def _allow(self, name: str, checksum: str) -> None:
        self.legal.setdefault(name, {"none"}).add(checksum)

    def compare(self, machine: vm.Machine) -> None:
        """What the next one found."""
        found = dict(machine.lines("FOUND"))
        assert not found.keys() - self.legal.keys(), (found, self.legal)
        for name, legal in self.legal.items():
            checksum = found.get(name, "none")
            assert checksum in legal or (ANY in legal and name in found), (
                f"{name} is {checksum}, legal: {legal}"
            )
            self.legal[name] = {checksum}
            self.verified += 1


@dataclass
class Soak:
    """One file system, boot after boot."""

    swift: RealSwift
    disk: Disk
    launch: Launch
    workdir: Path
    diary: Diary
    chance: random.Random
    files: Files = field(default_factory=Files)

    def __post_init__(self) -> None:
        self.trouble = SwiftTrouble(self.swift, random.Random(f"{SEED} swift"), self.diary)

    async def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self._watch(self.disk.server)
        boot = 0
        while boot < 2 or time.monotonic() < deadline:
            await self._boot(boot)
            await self._after_cut()
            boot += 1

    def _watch(self, server: ServerProcess) -> None:
        server.allows(EXPECTED_LOG)
        self.diary.servers.append(server)

    async def _boot(self, number: int) -> None:
        """Check what is there, write, and cut the power at a random moment."""
        connections = self.chance.choice([1, 4])
        self.diary.note(f"boot {number}, {connections} connections", "boots")
        machine = vm.Machine(
            "soak",
            port=self.disk.server.port,
            export=self.disk.container,
            fresh=int(number == 0),
            connections=connections,
        )
        try:
            await asyncio.to_thread(machine.wait_for, "PASS mount_again")
            self.files.compare(machine)
            await self._trouble_while_it_writes(machine)
        finally:
            machine.cut_power()
            self.files.take_in(machine)
        self.diary.note(f"power cut after {len(machine.lines('DURABLE'))} changes", "power cuts")
        self.diary.counts["durable changes"] += len(machine.lines("DURABLE"))
        for word in ("FAIL", "I/O error", "EXT4-fs error"):
            assert word not in machine.console, machine.console

    async def _trouble_while_it_writes(self, machine: vm.Machine) -> None:
        """The power is cut on return: in the middle of trouble, or after more has been done."""
        wanted, seconds = self.chance.randrange(10, 60), self.chance.uniform(2, 10)
        chance = random.Random(self.chance.random())
        await make_trouble(NATURE, seconds, self.trouble, chance, self.diary, self.disk.server)
        if self.chance.random() < 0.5:
            await self.trouble.heal(all_of_it=True)
            await asyncio.to_thread(
                machine.wait_until,
                lambda: len(machine.lines("DURABLE")) >= wanted,
                f"of {wanted} changes that they are durable",
            )
            await asyncio.sleep(self.chance.uniform(0, 0.5))

    async def _after_cut(self) -> None:
        """Perhaps the server dies, too; then the image is looked at with e2fsck."""
        if self.chance.random() < 0.6:
            self.disk.server.kill()
            self.diary.note("the server is killed", "server killed")
            await self.trouble.heal(all_of_it=True)
            self.disk.server = await asyncio.to_thread(self.launch, self.disk.container)
            self._watch(self.disk.server)
        await self.trouble.heal(all_of_it=True)
        await asyncio.to_thread(self._check_copy)

    def _check_copy(self) -> None:
        image = self.workdir / "image"
        image.unlink(missing_ok=True)
        run("nbdcopy", self.disk.uri, image)
        replay = run("e2fsck", "-y", "-E", "journal_only", image, check=False)
        assert replay.returncode in (0, 1), replay.stdout + replay.stderr
        run("e2fsck", "-fn", image)
        self.diary.note("e2fsck -fn of a copy: clean", "e2fsck clean")


def test_file_system_survives_one_power_cut_after_the_other(
    own_swift: RealSwift, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    backend = backend_of(own_swift, tmp_path)
    size = chance.choice([64 * KiB, 256 * KiB, MiB])
    mode = chance.choice(["writeback", "writeback", "writethrough"])
    extra = ("-c", "6M", "--cache-mode", mode)
    with (
        soaking("ext4", SECONDS, own_swift, tmp_path) as diary,
        launcher(backend, tmp_path) as launch,
    ):
        diary.note(f"objects of {size} bytes, {mode}")
        disk = set_up_disk(backend, launch, DISK_BYTES // size, size, False, extra=extra)
        soak = Soak(own_swift, disk, partial(launch, extra=extra), tmp_path, diary, chance)
        try:
            asyncio.run(soak.run(SECONDS))
        finally:
            diary.counts["files verified"] = soak.files.verified
