# SPDX-License-Identifier: MIT
"""What a Swift of several replicas keeps: objects by timestamp, and containers.

Each replica of an object is a record with a time, and the newest time wins where they are compared.
A replica that is away takes part in nothing and is as it was when it comes back, until `repair`:
so stale copies, and deleted ones that live on, come about as they do in a real Swift.
"""

from dataclasses import dataclass, field, replace
from hashlib import md5
from itertools import count


@dataclass(frozen=True)
class Record:
    """A version of an object on one replica; ``data`` None: deleted."""

    time: float
    data: bytes | None
    meta: dict[str, str] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        assert self.data is not None
        return md5(self.data).hexdigest()


NEVER = Record(0.0, None)


class Replica:
    """The copies on one device."""

    def __init__(self) -> None:
        self.is_away = False
        self.records: dict[str, Record] = {}

    def get(self, path: str) -> Record:
        return self.records.get(path, NEVER)


@dataclass
class Container:
    """A container's metadata, and the rows of its listing (size by name)."""

    policy: str
    meta: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)


class Unavailable(Exception):
    """Too few replicas answer: a proxy says 503."""


class NewerThere(Exception):
    """A replica has a newer version than what is to be written: a proxy says 202."""


class Replicas:
    """The objects of an account, three copies of each. Paths are ``container/name``."""

    def __init__(self, replicas: int = 3) -> None:
        self.all = [Replica() for _ in range(replicas)]
        self._turn = count()

    @property
    def _quorum(self) -> int:
        return len(self.all) // 2 + 1

    def _here(self) -> list[Replica]:
        """Those that answer, beginning with another one each time."""
        first = next(self._turn) % len(self.all)
        return [each for each in self.all[first:] + self.all[:first] if not each.is_away]

    def read(self, path: str, *, newest: bool = False) -> Record | None:
        """The first copy that is met, or the newest there is; None if there is none."""
        here = self._here()
        if newest and here:
            found = max((each.get(path) for each in here), key=lambda record: record.time)
        else:
            copies = (each.get(path) for each in here)
            found = next((record for record in copies if record.data is not None), NEVER)
        if found.data is not None:
            return found
        if len(here) < self._quorum:
            raise Unavailable  # and not 404: who is away may have it
        return None

    def exists_somewhere(self, path: str) -> bool:
        """Whether any replica says so, as ``If-None-Match: *`` asks."""
        return any(each.get(path).data is not None for each in self._here())

    def check_newest(self, path: str, time: float) -> None:
        """Raise if a version of ``time`` could not be written now."""
        here = self._here()
        if len(here) < self._quorum:
            raise Unavailable
        if any(each.get(path).time >= time for each in here):
            raise NewerThere

    def write(self, path: str, record: Record) -> None:
        """Store a version, or its deletion, on all that answer."""
        self.check_newest(path, record.time)
        for each in self._here():
            each.records[path] = record

    def mark(self, path: str, time: float, meta: dict[str, str]) -> bool:
        """Replace an object's metadata; whether there is one."""
        found = self.read(path, newest=True)
        if found is None:
            return False
        for each in self._here():
            record = each.get(path)
            if record.data is not None:
                each.records[path] = replace(record, meta=meta)
        return True

    def repair(self) -> None:
        """What replicators do in time: every copy becomes the newest."""
        for path in {path for each in self.all for path in each.records}:
            newest = max((each.get(path) for each in self.all), key=lambda record: record.time)
            for each in self.all:
                each.records[path] = newest
