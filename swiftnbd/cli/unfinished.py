# SPDX-License-Identifier: MIT
"""What says that a copy or an upload into a disk has not come to its end, and in whose tenure.

Such a disk is neither what it was nor what it is to be, so nobody's data are lost if the same
command goes over it again. But who held the container since may have written to it, and nothing may
go over that unasked.
"""

import json

from swiftnbd.cli.common import Held, Tell
from swiftnbd.export.holders import Tenure
from swiftnbd.export.lock import Lock
from swiftnbd.export.unfinished import COPY as COPY
from swiftnbd.export.unfinished import UPLOAD as UPLOAD
from swiftnbd.store.base import Store

_RECORD_BYTES_MAX = 16 * 1024
_SOURCE_LENGTH_MAX = 1024


async def start_record(store: Store, name: str, lock: Lock, source: str) -> None:
    """Say that something is under way from ``source``, under this lock."""
    marks = [lock.mark, lock.predecessor.last]
    fields = {
        "epoch": lock.tenure.epoch,
        "binding": lock.tenure.binding,
        "marks": marks,
        "source": source[:_SOURCE_LENGTH_MAX],
    }
    await store.put(name, json.dumps(fields, indent=1).encode() + b"\n")


async def is_unfinished(
    store: Store, name: str, since: Tenure | None = None, source: str | None = None
) -> bool:
    """Whether it did not come to its end.

    ``since`` asks for more: that nobody has changed the disk since, as of that tenure, the last
    one; ``source``: that it was from there.
    """
    blob = await store.get(name, newest=True, size_max=_RECORD_BYTES_MAX)
    if blob is None or since is None:
        return blob is not None
    try:
        fields = json.loads(blob.data)
        if source not in (None, fields["source"]):
            return False
        if since.binding:  # handed on by whoever has only looked, such as a download
            return bool(fields["binding"] == since.binding)
        # No epoch since then, and in the metadata no mark of 0.11, which makes none
        return fields["epoch"] == since.epoch and since.last in fields["marks"]
    except (ValueError, TypeError, KeyError):
        return False


async def warn_of_unfinished(holding: Held, name: str, tell: Tell) -> None:
    """Tell of what did not come to its end in a disk that we only look at."""
    for record, what in ((UPLOAD, "an upload"), (COPY, "a copy")):
        if await is_unfinished(holding.store, record):
            tell(f"WARNING: {what} into {name} did not come to its end: a part of it is missing")
            await _hand_on(holding.store, record, holding.lock)


async def _hand_on(store: Store, name: str, lock: Lock) -> None:
    """See that the same command goes on after us, if it would have gone on before.

    Who finds a binding hands it on as it is, and the record with it. After a kill there is none,
    and the next one would see only that we held the disk.
    """
    before = lock.predecessor
    if before.binding or not await is_unfinished(store, name, before):
        return
    blob = await store.get(name, newest=True, size_max=_RECORD_BYTES_MAX)
    if blob is not None:
        await start_record(store, name, lock, json.loads(blob.data)["source"])


async def finish_records(store: Store) -> None:
    """Say that the disk is complete, whatever of both was under way in it, and cut short."""
    for name in (COPY, UPLOAD):
        await store.delete(name)
