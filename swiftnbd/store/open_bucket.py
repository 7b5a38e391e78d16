# SPDX-License-Identifier: MIT
"""Opens containers of object stores with their wrappers, as `swiftnbd.store.open` does for Swift.

(A module of its own, as neither needs the libraries of the other.)
"""

import asyncio

from swiftnbd.store.base import Store
from swiftnbd.store.bucket import Bucket
from swiftnbd.store.bucket_objects import METADATA
from swiftnbd.store.bucket_store import BucketStore, folder_of
from swiftnbd.store.outages import Outages
from swiftnbd.store.proven import Proven
from swiftnbd.store.retrying import DEADLINE_SECONDS_DEFAULT, Retrying

__all__ = ["Bucket", "Outages", "containers", "open_bucket"]

AT_ONCE_MAX = 16  # requests for the metadata of containers


def open_bucket(
    bucket: Bucket, container: str, deadline_seconds: float = DEADLINE_SECONDS_DEFAULT
) -> Store:
    """A container in a bucket. Close the store, and after all of them the bucket."""
    return Retrying(
        Proven(BucketStore(bucket, container)),
        deadline_seconds=deadline_seconds,
        traffic=bucket.traffic,
        circuit=bucket.outages.circuit(container),
    )


async def containers(bucket: Bucket) -> list[str]:
    """The names of all containers in a bucket, sorted: of its folders, those that are one."""
    what = f"{bucket.settings.url}: listing"
    names = await bucket.folders(what, bucket.settings.prefix)
    slots = asyncio.Semaphore(AT_ONCE_MAX)

    async def is_one(name: str) -> bool:
        async with slots:
            return await bucket.head(what, f"{folder_of(bucket, name)}/{METADATA}") is not None

    found = await asyncio.gather(*map(is_one, names))
    return sorted(name for name, is_container in zip(names, found, strict=True) if is_container)
