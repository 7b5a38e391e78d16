# SPDX-License-Identifier: MIT
"""Exports that cannot be reached at the start join later."""

import asyncio
import gc
import logging

import pytest

from swiftnbd.cli.exits import SeveralFailed
from swiftnbd.cli.loading import loaded
from swiftnbd.errors import StoreUnavailable
from swiftnbd.export.export import Export
from swiftnbd.export.layout import Geometry, setup_metadata
from swiftnbd.store.base import ContainerInfo
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.support.loopback import until

GOOD = setup_metadata(Geometry(4, 4096))


class Away(MemoryStore):
    """Out of reach until told; ``hangs``: it does not even say so."""

    hangs = False

    def __init__(self, name: str, account: MemoryAccount) -> None:
        super().__init__(name, account)
        self.back = asyncio.Event()
        self.tries = 0

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        self.tries += 1
        if self.hangs:
            await self.back.wait()
        if not self.back.is_set():
            raise StoreUnavailable("no answer in 60 s")
        return await super().info(count=count)


async def stores(*kinds: type[MemoryStore]) -> list[MemoryStore]:
    account = MemoryAccount()
    made = [kind(name, account) for name, kind in zip("abc", kinds, strict=False)]
    for store in made:
        await store.create_container(GOOD)
    return made


@pytest.mark.expects_log("WARNING .*: a: no answer in 60 s; it is served as soon as it can be")
async def test_a_container_out_of_reach_joins_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    away, good = await stores(Away, MemoryStore)
    assert isinstance(away, Away)
    async with loaded([Export("a", away), Export("b", good)], retry_seconds=0.001) as exports:
        assert (list(exports.ready), list(exports.coming)) == (["b"], ["a"])
        await until(lambda: away.tries > 3)
        away.back.set()
        await until(lambda: "a" in exports.ready)
        assert (list(exports.ready), list(exports.coming)) == (["a", "b"], [])
    assert [record.getMessage() for record in caplog.records] == [
        "a: no answer in 60 s; it is served as soon as it can be reached",
        "a: reached, it is served now",
    ]


@pytest.mark.expects_log("WARNING .*: a: no answer yet; it is served as soon as it can be reached")
async def test_those_that_are_ready_do_not_wait_for_one_that_hangs() -> None:
    away, good = await stores(Away, MemoryStore)
    assert isinstance(away, Away)
    away.hangs = True
    async with loaded([Export("a", away), Export("b", good)], late_seconds=0.01) as exports:
        assert list(exports.ready) == ["b"]
        away.back.set()
        await until(lambda: "a" in exports.ready)


@pytest.mark.expects_log("WARNING .*: a: .*not set up.*; skipping$")
@pytest.mark.expects_log("WARNING .*: a: no answer in 60 s; it is served as soon as")
async def test_one_that_is_back_and_cannot_be_served_is_skipped() -> None:
    away, good = await stores(Away, MemoryStore)
    assert isinstance(away, Away)
    await away.set_metadata(dict.fromkeys(GOOD, ""))
    async with loaded([Export("a", away), Export("b", good)], retry_seconds=0.001) as exports:
        away.back.set()
        await until(lambda: not exports.coming)
        assert list(exports.ready) == ["b"]


@pytest.mark.expects_log("WARNING .*: a: no answer in 60 s")
@pytest.mark.expects_log("WARNING .*: b: no answer in 60 s")
async def test_if_none_can_be_reached_the_start_fails() -> None:
    away = await stores(Away, Away)
    exports = [Export(name, store) for name, store in zip("ab", away, strict=True)]
    with pytest.raises(SeveralFailed, match="nothing is left to export") as caught:
        async with loaded(exports, late_seconds=0.01, retry_seconds=0.001):
            pass
    assert len(caught.value.causes) == 2


def unavailable() -> list[StoreUnavailable]:
    """All errors of that kind that something refers to."""
    return [each for each in gc.get_objects() if isinstance(each, StoreUnavailable)]


@pytest.mark.expects_log("WARNING .*: a: no answer in 60 s")
async def test_of_a_container_that_is_away_for_days_only_the_last_failure_is_kept() -> None:
    """An error keeps what was going on when it was raised."""
    away, hanging = await stores(Away, Away)
    assert isinstance(away, Away)
    assert isinstance(hanging, Away)
    hanging.hangs = True
    exports = [Export("a", away), Export("b", hanging)]
    others = len(unavailable())  # of tests before this one
    loading = asyncio.create_task(loaded(exports, late_seconds=0, retry_seconds=0).__aenter__())
    await until(lambda: away.tries > 20)
    assert len(unavailable()) < others + 10
    loading.cancel()
    await asyncio.wait([loading])
