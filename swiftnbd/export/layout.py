# SPDX-License-Identifier: MIT
"""Format v1: how a disk lies in a container. The only place that knows names and geometry.

A disk of ``objects * object_size`` bytes is cut into objects ``disk.part/%08i``, each exactly
``object_size`` bytes; a missing object reads as zeros. The container's metadata says so::

    swiftnbd-version      1
    swiftnbd-objects      how many objects the disk has
    swiftnbd-object-size  bytes of each
    swiftnbd-client       who holds it, HOST:PORT@UNIXTIME; no such key: nobody
    swiftnbd-last         who held it before
    swiftnbd-epoch        ours: number of the newest lock epoch (`swiftnbd.export.epoch`)
    swiftnbd-image-size   ours: bytes of an uploaded image that fills the disk only in part
    swiftnbd-deleting     ours, without a version: `deleting_metadata`, `deleted_metadata`

swiftnbd 0.11 wrote ``object_size``, which a current Swift drops; we write ``object-size`` and
read both. What else we store lies under ``swiftnbd/``, which 0.11 never looks at.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from swiftnbd.errors import ExportUnusable
from swiftnbd.store.base import OBJECT_BYTES_MAX

VERSION = "1"
OBJECT_SIZE_DEFAULT = 64 * 1024
OBJECT_SIZE_UNIT = 512  # a disk's sector: no file system can use less
OBJECTS_MAX = 99_999_999  # eight digits: with more the names would no longer sort
PART_PREFIX = "disk.part/"
OWN_PREFIX = "swiftnbd/"
META_PREFIX = "swiftnbd-"

_OBJECTS, _CONTAINER = "objects", "1"  # what is being deleted
_DIGITS = 8
_BLOCK_SIZE_MIN = 4096
_BLOCK_SIZE_MAX = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Geometry:
    """``objects`` objects of ``object_size`` bytes; checked when made, so always sensible."""

    objects: int
    object_size: int

    def __post_init__(self) -> None:
        size = self.object_size
        if not 0 < size <= OBJECT_BYTES_MAX or size % OBJECT_SIZE_UNIT:
            raise ExportUnusable(
                f"object-size {size} is not a multiple of {OBJECT_SIZE_UNIT} "
                f"between {OBJECT_SIZE_UNIT} and {OBJECT_BYTES_MAX}"
            )
        if not 0 < self.objects <= OBJECTS_MAX:
            raise ExportUnusable(f"objects {self.objects} is not between 1 and {OBJECTS_MAX}")

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.objects * self.object_size


@dataclass(frozen=True, slots=True)
class DiskInfo:
    """A container's swiftnbd metadata, read and found sensible."""

    geometry: Geometry
    client: str = ""
    last: str = ""
    image_size: int | None = None


def is_zeros(data: bytes) -> bool:
    """Whether it reads the same if it is not stored."""
    return data == bytes(len(data))  # which compares faster than any loop


def preferred_block_size(geometry: Geometry) -> int:
    """The power of two, in bytes, that requests should best have: an object, if it is one."""
    power = 1 << (geometry.object_size.bit_length() - 1)
    return min(max(power, _BLOCK_SIZE_MIN), _BLOCK_SIZE_MAX)


def object_name(index: int) -> str:
    """Name of the object that holds bytes ``[index * object_size, (index + 1) * object_size)``."""
    return f"{PART_PREFIX}{index:0{_DIGITS}d}"


def object_index(name: str) -> int | None:
    """Inverse of `object_name`; None for a name that is none of a disk's."""
    digits = name.removeprefix(PART_PREFIX)
    if digits == name or len(digits) != _DIGITS or not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits)


def is_set_up(metadata: Mapping[str, str]) -> bool:
    """Whether anybody ever ran ``setup`` on this container."""
    return META_PREFIX + "version" in metadata and META_PREFIX + "objects" in metadata


def is_being_deleted(metadata: Mapping[str, str]) -> bool:
    """Whether a deletion has begun, so that some of its objects may be gone."""
    return metadata.get(META_PREFIX + "deleting") == _OBJECTS and not is_set_up(metadata)


def is_deleted(metadata: Mapping[str, str]) -> bool:
    """Whether a deletion came so far that only the container was left."""
    is_marked = META_PREFIX + "deleting" in metadata and not is_set_up(metadata)
    return is_marked and not is_being_deleted(metadata)


def deleting_metadata() -> dict[str, str]:
    """What a deletion writes before the first object goes.

    Without a version nobody takes it for a disk, 0.11 neither: what is gone would read as zeros.
    The lock stays.
    """
    return {META_PREFIX + "version": "", META_PREFIX + "deleting": _OBJECTS}


def deleted_metadata() -> dict[str, str]:
    """What a deletion writes when all objects are gone: no disk, no lock, nothing to go on from."""
    keys = ("objects", "object-size", "client", "last", "epoch", "image-size")
    gone = {META_PREFIX + key: "" for key in ("version", *keys)}
    return gone | {META_PREFIX + "deleting": _CONTAINER}


def parse_metadata(metadata: Mapping[str, str]) -> DiskInfo:
    """Read container metadata (`swiftnbd.store.base.ContainerInfo`).

    Raises `ExportUnusable`, one sentence without the container's name, if it is not set up
    or does not make sense.
    """
    if is_being_deleted(metadata):
        raise ExportUnusable(
            "it is deleted in part; to finish that, run: swiftnbd-ctl delete; "
            "to use what is left, with zeros for the rest: swiftnbd-ctl setup --force"
        )
    if is_deleted(metadata):
        raise ExportUnusable("it is deleted but for the container itself; run: swiftnbd-ctl delete")
    if not is_set_up(metadata):
        raise ExportUnusable("it is not set up; run: swiftnbd-ctl setup")
    version = metadata[META_PREFIX + "version"]
    if version != VERSION:
        raise ExportUnusable(
            f"format version {version!r} is unknown, only {VERSION!r} is supported"
        )
    size_key = META_PREFIX + "object-size"
    if META_PREFIX + "object_size" in metadata and size_key not in metadata:
        size_key = META_PREFIX + "object_size"  # as 0.11 wrote it
    geometry = Geometry(
        objects=_integer(metadata, META_PREFIX + "objects"),
        object_size=_integer(metadata, size_key),
    )
    return DiskInfo(
        geometry=geometry,
        client=metadata.get(META_PREFIX + "client", ""),
        last=metadata.get(META_PREFIX + "last", ""),
        image_size=_image_size(metadata, geometry),
    )


def setup_metadata(geometry: Geometry) -> dict[str, str]:
    """What ``setup`` writes: this geometry, held by nobody, nothing remembered."""
    return {
        META_PREFIX + "version": VERSION,
        META_PREFIX + "objects": str(geometry.objects),
        META_PREFIX + "object-size": str(geometry.object_size),
        META_PREFIX + "client": "",
        META_PREFIX + "last": "",
        META_PREFIX + "image-size": "",
        META_PREFIX + "deleting": "",
    }


def _image_size(metadata: Mapping[str, str], geometry: Geometry) -> int | None:
    key = META_PREFIX + "image-size"
    if key not in metadata:
        return None
    size = _integer(metadata, key)
    if not 0 <= size <= geometry.size:
        raise ExportUnusable(f"image-size {size} is larger than the disk ({geometry.size} bytes)")
    return size


def _integer(metadata: Mapping[str, str], key: str) -> int:
    text = metadata.get(key, "")
    # int() would take "1_000", " 5 " and digits of every script
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        raise ExportUnusable(f"metadata {key} is {text[:40]!r}, not a number")
    return int(text)
