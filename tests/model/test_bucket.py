# SPDX-License-Identifier: MIT
"""The engine against the oracle, on a bucket: the S3 API of a real Swift.

The same rules as in memory, fewer of them as each is some real requests. A turn of the event loop
lasts until those are answered, so that the rules mean what they mean there. (What cannot be
repeated by a seed is how long a request takes; nothing depends on it.)
"""

import asyncio
import os
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from swiftnbd.store.base import Store
from swiftnbd.store.bucket import Bucket
from swiftnbd.store.open_bucket import open_bucket
from tests.model import machine
from tests.model.machine import DiskMachine
from tests.support.bucket_backend import PREFIX, BucketBackend
from tests.support.buckets import bucket_settings
from tests.support.disks import TURNS
from tests.support.swift_aio import RealSwift

# With fewer, a DELETE that does nothing and a range that is the wrong one were not found out.
EXAMPLES = int(os.environ.get("MODEL_BUCKET_EXAMPLES", "3"))  # some two seconds each
STEPS = 25
SEED = int(os.environ.get("MODEL_SEED", "1"))
SECONDS_MAX = 60.0  # for what hangs

T = TypeVar("T")


class BucketMachine(DiskMachine):
    """One disk in a container of its own."""

    backend: BucketBackend
    bucket: Bucket
    number = 0

    def sound_store(self) -> Store:
        type(self).number += 1
        self.container = f"model-{self.number}"
        return open_bucket(self.bucket, self.container)

    def __init__(self) -> None:
        super().__init__()
        self.store.admits_one_creator = True  # nobody else is here, and settling takes a second

    def stored(self) -> Mapping[str, bytes]:
        return self.backend.objects(self.container)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, SECONDS_MAX))

    def go(self, steps: int) -> None:
        # never with a request under way: a PUT that is cancelled may be carried out later
        super().go(max(1, steps))


@pytest.fixture
def _turns_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def turns(count: int = TURNS) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
            while BucketMachine.bucket.traffic.under_way:  # noqa: ASYNC110 (they are not ours)
                await asyncio.sleep(0.0005)

    monkeypatch.setattr(machine, "turns", turns)


@pytest.fixture
def backend(real_swift: RealSwift, tmp_path: Path) -> Iterator[BucketBackend]:
    backend = BucketBackend(real_swift, tmp_path / "secrets.conf")
    BucketMachine.backend = backend
    BucketMachine.bucket = Bucket(bucket_settings(real_swift, PREFIX))
    yield backend
    asyncio.run(BucketMachine.bucket.close())


@pytest.mark.usefixtures("no_threads", "_turns_of_requests", "backend")
@pytest.mark.allows_log("kept locked, trying again")
@pytest.mark.timeout(0 if EXAMPLES > 5 else 120)
def test_every_byte_is_legal_on_a_bucket() -> None:
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seeded = seed(SEED)(type("Seeded", (BucketMachine,), {}))
    run_state_machine_as_test(seeded, settings=chosen)
