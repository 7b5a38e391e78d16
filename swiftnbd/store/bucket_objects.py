# SPDX-License-Identifier: MIT
"""How a container lies in a bucket: keys, and what is stored beside the objects.

::

    PREFIX/CONTAINER/swiftnbd/metadata        `Document`: without it there is no container
    PREFIX/CONTAINER/swiftnbd/tokens/NAME     `Token`: the last renew token of an object
    PREFIX/CONTAINER/disk.part/00000042       an object, with its `Stamp` as an attribute
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from secrets import token_hex

from swiftnbd.errors import CorruptObject, StoreError
from swiftnbd.store.bucket import Found
from swiftnbd.store.checks import OBJECT_NAME_BYTES_MAX, check_container_name, check_object_name

METADATA = "swiftnbd/metadata"
TOKENS = "swiftnbd/tokens/"
DOCUMENT_BYTES_MAX = 64 * 1024  # some 200 keys with values of full length; a disk has ten
TOKEN_BYTES_MAX = 4 * 1024
# Names of attributes must suit all services: Azure wants no dashes, Swift's proxies no underscores.
STAMP = "swiftnbd"

_STAMP = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")
_MD5 = re.compile(r"[0-9a-f]{32}")


def is_own(name: str) -> bool:
    """Whether it is the name of something the store itself keeps."""
    return name == METADATA or name.startswith(TOKENS)


def check_name(name: str) -> None:
    """Raise `StoreError` for an object name that these services, or their listings, change."""
    check_object_name(name)
    _check_segments("object name", name, name.split("/"))
    if is_own(name):
        raise StoreError(f"object name {name!r} is kept for the container's own use")


def check_container(name: str, folder: str) -> None:
    """The same for a container whose keys begin with ``folder``."""
    check_container_name(name)
    _check_segments("container name", name, [name])
    room = OBJECT_NAME_BYTES_MAX - len(f"{folder}/{TOKENS}swiftnbd/epoch/".encode())
    if room < 32:
        raise StoreError(f"container name {name!r} and the prefix of the bucket are too long")


def _check_segments(what: str, name: str, segments: list[str]) -> None:
    if not {"", ".", ".."}.isdisjoint(segments):
        raise StoreError(f"{what} {name!r} has an empty part, '.' or '..' in it")
    if not {"\ufffe", "\uffff"}.isdisjoint(name):  # no listing in XML can show them
        raise StoreError(f"{what} {name!r} has a character in it that is none")


@dataclass(frozen=True, slots=True)
class Stamp:
    """Stored with each object: the ``md5`` of its content, and which upload it is of."""

    md5: str
    upload: str

    @classmethod
    def new(cls, md5: str) -> "Stamp":
        return cls(md5, token_hex(8))

    @classmethod
    def of(cls, found: Found) -> "Stamp":
        """Of an object somebody else stored, the ETag has to do.

        Where that is no MD5 it still tells one content from another.
        """
        if match := _STAMP.fullmatch(found.attributes.get(STAMP, "")):
            return cls(match[1], match[2])
        etag = found.version.etag.strip('"')
        return cls(etag, f"{etag}@{found.changed.timestamp()}")

    @property
    def is_md5(self) -> bool:
        return _MD5.fullmatch(self.md5) is not None

    @property
    def attributes(self) -> dict[str, str]:
        return {STAMP: f"{self.md5}-{self.upload}"}


@dataclass(frozen=True, slots=True)
class Token:
    """A renew token, and the upload of the object that it was given to."""

    token: str
    upload: str

    def to_bytes(self) -> bytes:
        return json.dumps({"token": self.token, "upload": self.upload}).encode()

    @classmethod
    def from_bytes(cls, what: str, data: bytes) -> "Token":
        fields = _fields(what, data)
        return cls(str(fields.get("token", "")), str(fields.get("upload", "")))


@dataclass(frozen=True, slots=True)
class Document:
    """A container: its ``metadata``, and what is known of the service it was made on.

    ``conditional_at``: the service that was seen to refuse conditional requests which must be
    refused, by `BucketSettings.service`; '' for none. With any other nothing is known.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    conditional_at: str = ""

    def changed(self, changes: Mapping[str, str]) -> "Document":
        """With these keys changed; an empty value deletes."""
        merged = {**self.metadata, **changes}
        return Document({key: val for key, val in merged.items() if val}, self.conditional_at)

    def to_bytes(self, what: str) -> bytes:
        fields = {"metadata": dict(self.metadata), "conditional-at": self.conditional_at}
        data = json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n"
        if len(data) > DOCUMENT_BYTES_MAX:
            raise StoreError(f"{what}: {len(data)} bytes of metadata, at most {DOCUMENT_BYTES_MAX}")
        return data

    @classmethod
    def from_bytes(cls, what: str, data: bytes) -> "Document":
        fields = _fields(what, data)
        metadata = fields.get("metadata", {})
        if not isinstance(metadata, dict):
            raise CorruptObject(f"{what}: it is no metadata of a container")
        return cls(
            {str(key): str(value) for key, value in metadata.items()},
            str(fields.get("conditional-at", "")),
        )


def _fields(what: str, data: bytes) -> dict[str, object]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise CorruptObject(f"{what}: it is not ours, or damaged")
    return fields
