# SPDX-License-Identifier: MIT
"""The store contract: what a container of objects can be asked.

A `Store` is one container. Absent is ``None``, never an exception; ``None`` is *proof* that
the object does not exist (a block read from it becomes zeros), so a store that cannot tell
raises instead. Failures are `swiftnbd.errors.StoreError` and its subclasses, nothing else.
All of it is safe to call concurrently. `tests/store/contract.py` is this text as tests.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from swiftnbd.buffers import Body as Body  # what its methods take
from swiftnbd.buffers import Buffer as Buffer
from swiftnbd.errors import CopyUnsupported

OBJECT_BYTES_MAX = 64 * 1024 * 1024  # the largest object size of a disk; bounds every body we read
LISTING_LIMIT_MAX = 10_000  # Swift's own default page; more is answered with 412


@dataclass(frozen=True, slots=True)
class Blob:
    """What `Store.get` read: ``data`` (the bytes asked for) and the whole object's ``etag``.

    ``size`` of the whole object in bytes, if the answer to a part of it says so.
    """

    data: bytes
    etag: str
    size: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """``size`` in bytes, ``etag`` of the content, ``token`` of the last `Store.renew` or ''."""

    size: int
    etag: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """One row of a listing. Listings may lag behind: a row is a hint, a missing row no proof.

    ``etag`` is '' where the store would have to read the object for it.
    """

    name: str
    size: int
    etag: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """A container's metadata and what it holds (counts may lag behind; None: not counted).

    ``metadata`` keys are lower case, with dashes, without the ``X-Container-Meta-`` prefix.
    ``versioned``: an overwrite or delete keeps the old bytes somewhere, and they are paid for.
    ``created`` is a Unix time, or None if the store does not know.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    objects: int | None = None
    bytes_used: int | None = None
    policy: str = ""
    versioned: bool = False
    created: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a container lies: one of its ``home`` (an account, a folder) by name.

    Stores whose homes are equal can copy objects of one another: see `Store.copy`.
    """

    home: object
    container: str


class Store(ABC):
    """One container of named objects. ``label`` names it in messages ("swift:backups").

    ``place`` None: it has no `copy`.
    """

    label: str
    place: Place | None = None

    @property
    def admits_one_creator(self) -> bool:
        """Whether of several ``put(if_absent=True)`` at once just one succeeds.

        Where it is False each that began before the others were done may. Some stores know it
        only once they have been asked for `info`; until then it is False.
        """
        return False

    @abstractmethod
    async def get(
        self,
        name: str,
        *,
        start: int = 0,
        length: int | None = None,
        newest: bool = False,
        size_max: int = OBJECT_BYTES_MAX,
    ) -> Blob | None:
        """Read ``length`` bytes from ``start`` (default: all of it), or None if absent.

        A range that runs past the end is cut there; one that begins at or past the end
        gives no bytes. ``newest`` asks every replica for the latest. A whole object's bytes
        match its ETag or `CorruptObject` is raised; so it is for a body over ``size_max``.
        """

    @abstractmethod
    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        """Describe an object, or None if absent."""

    @abstractmethod
    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        """Replace the object whole and return its ETag, the MD5 of ``data`` in hex.

        Returns only when the store has it durably; on any error the old object, the new one
        or (if there was none) none is there, never a mixture. ``data`` must not change until
        then. With ``if_absent`` an existing object is left alone: `ObjectExists`.
        """

    async def copy(self, name: str, source: Place, etag: str) -> None:
        """Replace an object whole by that of the same name in ``source``, which has our home.

        Its bytes don't come through here. As with `put`, it is durable on return, and on any
        error the old object or a new one is there. The source must have an object with this
        ``etag``: `CorruptObject` if what was copied has another, `StoreError` if there is none.
        Optional: for stores that have a ``place``, and even then it may be `CopyUnsupported`.
        """
        raise CopyUnsupported(f"{self.label}: COPY {name}: this store cannot copy")

    @abstractmethod
    async def delete(self, name: str) -> bool:
        """Make the object absent, durably. False if it was absent already."""

    @abstractmethod
    async def renew(self, name: str, token: str) -> bool:
        """Put ``token`` (up to 256 ASCII characters) on an existing object, content untouched.

        False if the object is absent; it is never created. A later `put` clears the token.
        """

    @abstractmethod
    async def listing(
        self, *, prefix: str = "", after: str = "", before: str = "", limit: int = LISTING_LIMIT_MAX
    ) -> list[Listed]:
        """One page of names in UTF-8 byte order, strictly between ``after`` and ``before``.

        An empty page is the end. `ContainerMissing` if there is no container.
        """

    @abstractmethod
    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        """The container's metadata, or None if there is no container.

        A store that would have to look at every object for it counts only if told to.
        """

    @abstractmethod
    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        """Change these keys of the container, leave the others; an empty value deletes.

        `ContainerMissing` if there is no container.
        """

    @abstractmethod
    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        """Make the container with ``metadata``. If it exists, set that metadata: False.

        ``policy`` is a storage policy's name; `StoreError` if the store has none such.
        """

    @abstractmethod
    async def delete_container(self) -> bool:
        """Delete the empty container. False if there was none; `ContainerNotEmpty`."""

    def set_canary(self, name: str | None) -> None:
        """Name an object known to exist, whose presence backs the store's word on absence.

        A store whose None is proof by itself ignores it.
        """

    def waiting(self) -> "Store":
        """The same container, whose operations wait for the end of any outage.

        A store that has none answers itself. Close only the original.
        """
        return self

    async def close(self) -> None:
        """Release connections and threads. Idempotent."""


class Unproven(Store):
    """A store whose word on what is not there may be wrong: `Proven` makes it a `Store`.

    ``deletes_blindly``: that something was deleted is no more than that word.
    """

    deletes_blindly = False

    @abstractmethod
    async def head_account(self) -> None:
        """Raise unless the store reaches what all its containers are in."""


async def list_all(
    store: Store, *, prefix: str = "", after: str = "", before: str = ""
) -> AsyncIterator[Listed]:
    """Every row between ``after`` and ``before``, page by page."""
    while page := await store.listing(prefix=prefix, after=after, before=before):
        for row in page:
            yield row
        after = page[-1].name
