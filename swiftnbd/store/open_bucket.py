# SPDX-License-Identifier: MIT
"""Opens containers of object stores with their wrappers, as `swiftnbd.store.open` does for Swift.

(A module of its own, as neither needs the libraries of the other.)
"""

from swiftnbd.store.base import Store
from swiftnbd.store.bucket import Bucket
from swiftnbd.store.bucket_store import BucketStore
from swiftnbd.store.outages import Outages
from swiftnbd.store.proven import Proven
from swiftnbd.store.retrying import DEADLINE_SECONDS_DEFAULT, Retrying

__all__ = ["Bucket", "Outages", "open_bucket"]


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
