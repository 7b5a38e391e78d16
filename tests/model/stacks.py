# SPDX-License-Identifier: MIT
"""Stacks of filters by chance, each with its model; and the disks that they stand on."""

import asyncio
import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from swiftnbd.api import Buffer, Device, Extent, FilterPlugin, Opening, Plugin
from swiftnbd.api.parameters import values_of
from swiftnbd.cli.finding import find_filter
from swiftnbd.filters.error import Error
from swiftnbd.filters.luks.header import PAYLOAD_BYTES, make
from swiftnbd.plugins.data import Data
from swiftnbd.plugins.file import File
from swiftnbd.plugins.http import Http
from swiftnbd.plugins.memory import MemoryDevice
from swiftnbd.plugins.split import Split
from tests.model import layers
from tests.model.layers import Layer, downwards

PAGE = 4096
SIZES = (1, 2, 7, 16, 17, 40)  # in pages; some are more than a block of cow, or a page of memory
PASSPHRASE = b"in every stack"
BOTTOMS = ("memory", "file", "split", "data", "http", "rough", "own")
KINDS = (
    "offset", "truncate", "longer", "partition", "protect", "checkwrite", "cow", "luks", "gzip",
    "xz", "through", "rate", "log", "stats", "limit", "pause", "delay", "fua", "blocksize-policy",
    "exitlast", "exitwhen", "retry-request",
)  # fmt: skip
DELAYED = ("read", "write", "trim", "zero", "extents", "cache")
FUA_MODES = ("none", "emulate", "native", "force", "pass", "discard")
NEED_SECTORS = ("partition", "luks")
REFUSE = ("protect", "checkwrite", "gzip", "xz", "longer", "http")  # some of what is written


class Disk(Device):
    """An array of bytes in blocks of ``least``, in no hurry. What is not ``synced`` was written
    since the last flush."""

    can_fast_zero = True

    def __init__(self, content: bytes, least: int, chance: random.Random) -> None:
        self.data, self.size = bytearray(content), len(content)
        self.block_size_min, self.block_size_max = least, 32 * 1024
        self.can_fua, self.is_synced = chance.random() < 0.5, True
        self._chance = chance

    async def _soon(self, offset: int, length: int) -> None:
        assert 0 <= offset < offset + length <= self.size
        assert not (offset | length) % self.block_size_min
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)

    def _put(self, offset: int, data: Buffer, fua: bool) -> None:
        assert self.can_fua or not fua
        self.data[offset : offset + len(data)] = data
        self.is_synced = self.is_synced and fua

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        if (offset | length) % self.block_size_min or self._chance.random() < 0.5:
            return None
        return [bytes(self.data[offset : offset + length])]

    def write_now(self, offset: int, data: Buffer) -> bool:
        if (offset | len(data)) % self.block_size_min or self._chance.random() < 0.5:
            return False
        self._put(offset, data, False)
        return True

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        await self._soon(offset, length)
        assert length <= self.block_size_max
        middle = offset + length // 2
        return [bytes(self.data[offset:middle]), bytes(self.data[middle : offset + length])]

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        assert len(data) <= self.block_size_max
        before = bytes(data)
        await self._soon(offset, len(data))
        assert data == before, "what was given to be written has changed meanwhile"
        self._put(offset, data, fua)

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        await self._soon(offset, length)
        self._put(offset, bytes(length), fua)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        if self._chance.random() < 0.7:
            await self.zero(offset, length, fua=fua)

    async def flush(self) -> None:
        await asyncio.sleep(0)
        self.is_synced = True

    async def extents(self, offset: int, length: int, *, count: int) -> Sequence[Extent]:
        await self._soon(offset, length)
        found, at = list[Extent](), offset
        while at < offset + length and len(found) < count:
            here = min(PAGE - at % PAGE, offset + length - at)
            is_zero = not any(self.data[at : at + here])
            found.append(Extent(here, is_zero and at % 3 == 0, is_zero))
            at += here
        return found

    async def prefetch(self, offset: int, length: int) -> None:
        await self._soon(offset, length)


class OwnDisk(Disk):
    """What one connection has of a disk."""

    multi_conn = True

    def __init__(self, disk: Disk) -> None:
        super().__init__(b"", disk.block_size_min, disk._chance)
        self.__dict__ = disk.__dict__


@dataclass(frozen=True)
class Given(Plugin):
    """Serves a device that is there already, also after it was closed."""

    device: Device

    async def open(self, opening: Opening) -> Device:
        return self.device


@dataclass(frozen=True)
class EachOwn(Plugin):
    per_connection = True

    disk: Disk

    async def open(self, opening: Opening) -> Device:
        return OwnDisk(self.disk)


@dataclass
class Site:
    """A web server with one file, if it is needed."""

    runner: web.AppRunner | None = None

    async def serve(self, content: bytes, folder: Path) -> str:
        path = folder / "served"
        path.write_bytes(content)
        app = web.Application()

        async def disk(request: web.Request) -> web.FileResponse:
            return web.FileResponse(path)

        app.router.add_get("/disk", disk)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        host, port = self.runner.addresses[0][:2]
        return f"http://{host}:{port}/disk"

    async def close(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()


def told(kind: type[Any], **keys: object) -> Any:
    """As the configuration makes one."""
    return kind(**values_of(kind, [(key, str(value)) for key, value in keys.items()]))


@dataclass
class Stack:
    """``top`` and what is below it, on a disk called ``bottom``."""

    chance: random.Random
    folder: Path
    bottom: str
    least: int
    top: Layer
    site: Site = field(default_factory=Site)
    disk: Disk | None = None
    plugin: Plugin | None = None

    def __str__(self) -> str:
        above = [str(each) for each in downwards(self.top) if each.told]
        return " | ".join([*above, f"{self.bottom} of {len(self.model.view)} by {self.least}"])

    @property
    def model(self) -> layers.Bottom:
        *_, last = downwards(self.top)
        assert isinstance(last, layers.Bottom)
        return last

    @property
    def names(self) -> list[str]:
        return [name for each in downwards(self.top) for name, _ in each.told]

    def filters(self) -> list[FilterPlugin]:
        """New ones, as a server that starts makes them."""
        made: list[FilterPlugin] = []
        for layer in downwards(self.top):
            for name, keys in layer.told:
                each = told(find_filter(name), **keys)
                if isinstance(each, Error):
                    each.chance.seed(self.chance.random())
                made.append(each)
        return made

    async def start(self) -> Plugin:
        """The plugin, as a server that starts makes it."""
        if self.plugin is None:
            self.plugin = await self._made(bytes(self.model.view))
        return self.plugin

    async def _made(self, content: bytes) -> Plugin:
        match self.bottom:
            case "memory":
                device = MemoryDevice(len(content))
                for at in range(0, len(content), 65536):
                    if any(piece := content[at : at + 65536]):
                        device.write_now(at, piece)
                return Given(device)
            case "file":
                self._parts = [self._written("disk", content)]
                return File(file=self._parts[0], threads=self.chance.choice((1, 4)))
            case "split":
                cut = self.chance.randrange(1, len(content)) if len(content) > 1 else 1
                parts = (content[:cut], content[cut:])
                self._parts = [self._written(f"part{at}", each) for at, each in enumerate(parts)]
                return Split(file=tuple(self._parts), threads=3)
            case "data":
                text = base64.b64encode(content).decode()
                return cast(Plugin, told(Data, base64=text, size=len(content)))
            case "http":
                url = await self.site.serve(content, self.folder)
                return cast(Plugin, told(Http, url=url, retries=0))
        self.disk = Disk(content, self.least, self.chance)
        return EachOwn(self.disk) if self.bottom == "own" else Given(self.disk)

    def _written(self, name: str, content: bytes) -> Path:
        """A file with holes where there are zeros."""
        path = self.folder / name
        with path.open("wb") as file:
            for at in range(0, len(content), PAGE):
                if any(piece := content[at : at + PAGE]):
                    file.seek(at)
                    file.write(piece)
            file.truncate(len(content))
        return path

    def stored(self) -> bytes | None:
        """What the disk at the bottom holds, behind everybody's back; None if nobody can tell."""
        if self.disk is not None:
            return bytes(self.disk.data)
        if self.bottom in ("file", "split"):
            return b"".join(each.read_bytes() for each in self._parts)
        if isinstance(self.plugin, Given) and isinstance(self.plugin.device, MemoryDevice):
            return b"".join(self.plugin.device._pieces(0, self.plugin.device.size))
        return None


def by_chance(chance: random.Random, folder: Path, start: tuple[bytes, bytes]) -> Stack:
    """One to four filters. ``start`` is what `luks_start` gave."""
    kinds = chance.choices(KINDS, k=chance.choice((1, 2, 2, 3, 3, 4)))
    while kinds.count("luks") > 1:
        kinds.remove("luks")  # one is large enough
    bottom = chance.choice(BOTTOMS)
    least = chance.choice((1, 1, 512, PAGE)) if bottom in ("rough", "own") else 1
    is_free = least == 1 and not {*kinds} & {*NEED_SECTORS, "blocksize-policy"}
    policy = max(least, chance.choice((512, PAGE)))
    content = image(chance, is_free)
    made: list[Layer] = []
    for index, kind in enumerate(kinds):
        below = [*kinds[index + 1 :], bottom]
        layer = _layer(kind, below, chance, folder / str(index), start, policy)
        content = layer.shown_from(content, chance, 1 if is_free else PAGE)
        made.append(layer)
    under: Layer = layers.Bottom(content)
    for layer in reversed(made):
        layer.stack_on(under)
        under = layer
    return Stack(chance, folder, bottom, least, under)


def image(chance: random.Random, is_free: bool) -> bytes:
    """Data and zeros by turns, not always in pages."""
    size = chance.choice(SIZES) * PAGE
    if is_free and chance.random() < 0.6:
        size -= chance.randrange(PAGE)
    data = bytearray()
    while len(data) < size:
        length = chance.choice((1, 100, PAGE, PAGE, 3 * PAGE, 70_000))
        data += bytes(length) if chance.random() < 0.5 else chance.randbytes(length)
    return bytes(data[:size])


def luks_start() -> tuple[bytes, bytes]:
    """What stands before the payload of a LUKS disk, and its key. Takes a while to make."""
    found = make(PASSPHRASE, 0.001)
    start = bytearray(PAYLOAD_BYTES)
    packed, slot = found.header.packed(), found.header.slots[0]
    start[: len(packed)] = packed
    start[slot.offset : slot.offset + len(found.material)] = found.material
    return bytes(start), found.key


def _layer(
    kind: str,
    below: Sequence[str],
    chance: random.Random,
    folder: Path,
    start: tuple[bytes, bytes],
    policy: int,
) -> Layer:
    folder.mkdir(parents=True)
    match kind:
        case "offset":
            return layers.OffsetLayer()
        case "truncate":
            return layers.Shorter()
        case "longer":
            return layers.Longer()
        case "partition":
            return layers.PartitionLayer()
        case "protect":
            return layers.ProtectLayer()
        case "checkwrite":
            return layers.CheckWriteLayer()
        case "cow":
            return _cow(below, chance, folder)
        case "luks":
            discards = chance.choice("01")
            keys: dict[str, object] = {"passphrase": PASSPHRASE.decode(), "luks-discard": discards}
            return layers.LuksLayer(*start, keys)
        case "gzip" | "xz":
            return layers.Decompressing((kind, {}))
        case "retry-request":
            retry: dict[str, object] = {"retry-request-delay": 0, "retry-request-retries": 100}
            return layers.Retrying(
                (kind, retry), ("error", {"error-rate": chance.choice(("0", "30%"))})
            )
    if kind == "blocksize-policy":
        how = chance.choice(("allow", "error"))
        return Layer((kind, {"blocksize-minimum": policy, "blocksize-error-policy": how}))
    is_own = kind in ("rate", "log", "limit", "delay", "exitlast", "exitwhen")
    return Layer((kind, _keys(kind, chance, folder)), is_own=is_own)


def _keys(kind: str, chance: random.Random, folder: Path) -> dict[str, object]:
    """What a filter that changes nothing is told."""
    match kind:
        case "rate":
            which = chance.choice(("rate", "connection-rate", "client-rate"))
            return {which: chance.choice(("800M", "8G")), "burstiness": "1ms"}
        case "log":
            return {"logfile": folder / "log", "logsize": chance.choice(("64K", "1M"))}
        case "stats":
            return {"statsfile": folder / "stats"}
        case "limit":
            return {"limit": chance.choice((0, 9)), "limit-requests": chance.choice((0, 1, 2))}
        case "pause":
            return {"pause-control": folder / "s"}
        case "delay":
            waits = {
                f"delay-{each}": "1ms" for each in ("read", "write", "trim", "zero", "extents")
            }
            return {key: value for key, value in waits.items() if chance.random() < 0.4}
        case "fua":
            return {
                "fuamode": chance.choice(("none", "emulate", "native", "force", "pass", "discard"))
            }
        case "exitwhen":
            return {"exit-when-file-created": folder / "never"}
    return {}


def _cow(below: Sequence[str], chance: random.Random, folder: Path) -> Layer:
    keys: dict[str, object] = {
        "cow-block-size": chance.choice((PAGE, 2 * PAGE, 65536)),
        "cow-directory": folder,
        "cow-on-cache": chance.choice("001"),
        "cow-on-read": chance.choice("001"),
    }
    path = folder / "overlay" if chance.random() < 0.5 else None
    commits = path is not None and not {*below} & {*REFUSE} and chance.random() < 0.6
    if path is not None and not commits and {"cow", "data"} & {*below}:
        path = None  # what is below must be the same the next time
    if path is not None:
        keys |= {"cow-file": path, "cow-commit": int(commits)}
    return layers.CowLayer(keys, path, commits)
