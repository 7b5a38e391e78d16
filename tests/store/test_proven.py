# SPDX-License-Identifier: MIT
"""Proof of absence: when a 404 is believed, and what it costs."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from swiftnbd.errors import ContainerMissing, StoreError, StoreUnavailable
from swiftnbd.store.http import Timeouts
from swiftnbd.store.proven import EVIDENCE_SECONDS_MAX, Prober, Proven
from swiftnbd.store.swift import SwiftStore
from swiftnbd.store.swift_http import SwiftAccount
from tests.store.fake_swift import FakeSwift, Reply, Seen

CANARY = "swiftnbd/canary"
NAME = "disk.part/00000042"


class Clock:
    """Stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def fake() -> AsyncIterator[FakeSwift]:
    fake = FakeSwift()
    fake.objects[CANARY] = b"here"
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(fake: FakeSwift, clock: Clock) -> AsyncIterator[Proven]:
    """With the canary set."""
    account = SwiftAccount(fake, Timeouts(total_seconds=20))
    proven = Proven(SwiftStore(account, "c"), clock)
    proven.set_canary(CANARY)
    await proven.head(CANARY)  # log in
    fake.seen.clear()
    yield proven
    await proven.close()
    await account.close()


def requests(fake: FakeSwift) -> list[str]:
    return [f"{seen.method} {seen.path.removeprefix('/c/')}" for seen in fake.seen]


GET, PROBE = f"GET {NAME}", f"HEAD {CANARY}"


async def test_a_first_404_is_asked_again_between_two_probes(
    fake: FakeSwift, store: Proven
) -> None:
    assert await store.get(NAME) is None
    assert requests(fake) == [GET, PROBE, GET, PROBE]


async def test_the_probe_after_one_404_is_the_probe_before_the_next(
    fake: FakeSwift, store: Proven
) -> None:
    await store.get(NAME)
    fake.seen.clear()
    assert await store.get(NAME) is None
    assert requests(fake) == [GET, PROBE]


async def test_old_evidence_is_none(fake: FakeSwift, store: Proven, clock: Clock) -> None:
    await store.get(NAME)
    clock.now += EVIDENCE_SECONDS_MAX + 0.01
    fake.seen.clear()
    assert await store.get(NAME) is None
    assert requests(fake) == [GET, PROBE, GET, PROBE]


async def test_what_exists_costs_no_probe(fake: FakeSwift, store: Proven) -> None:
    fake.objects[NAME] = b"data"
    assert await store.get(NAME) is not None
    assert await store.head(NAME) is not None
    assert await store.renew(NAME, "token") is True
    assert await store.delete(NAME) is True
    assert len(fake.seen) == 4


async def test_each_404_is_proven_for_every_operation(fake: FakeSwift, store: Proven) -> None:
    assert await store.head(NAME) is None
    assert await store.delete(NAME) is False
    assert await store.renew(NAME, "token") is False
    assert requests(fake) == [
        f"HEAD {NAME}",
        PROBE,
        f"HEAD {NAME}",
        PROBE,
        f"DELETE {NAME}",
        PROBE,
        f"POST {NAME}",
        PROBE,
    ]


class TestWithoutCanary:
    async def test_account_and_container_take_its_place(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        store.set_canary(None)
        assert await store.get(NAME) is None
        probe = ["HEAD ", "HEAD /c"]
        assert requests(fake) == [GET, *probe, GET, *probe]

    async def test_the_canarys_own_404_is_proven_by_them(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        del fake.objects[CANARY]
        assert await store.get(CANARY) is None
        assert requests(fake).count("HEAD /c") == 2

    async def test_a_container_that_is_gone_is_no_absence(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        store.set_canary(None)
        gone(fake, "/c")
        with pytest.raises(ContainerMissing):
            await store.get(NAME)
        with pytest.raises(ContainerMissing):
            await store.listing()
        with pytest.raises(ContainerMissing):
            await store.set_metadata({"k": "v"})
        assert await store.info() is None
        assert await store.delete_container() is False

    async def test_nothing_is_gone_while_the_account_is(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        store.set_canary(None)
        gone(fake, "")
        for operation in (
            store.get(NAME),
            store.delete(NAME),
            store.info(),
            store.listing(),
            store.set_metadata({"k": "v"}),
            store.delete_container(),
        ):
            with pytest.raises(StoreUnavailable):
                await operation


def gone(fake: FakeSwift, path: str, status: int = 404) -> None:
    """From now on this and all below it answers so."""

    async def handle(seen: Seen) -> Reply | None:
        return Reply(status) if seen.path.startswith(path) else None

    fake.handle = handle


class TestOutage:
    @pytest.mark.parametrize("status", [404, 503, 401, 500])
    async def test_while_the_canary_is_not_found_nothing_is_absent(
        self, fake: FakeSwift, store: Proven, status: int
    ) -> None:
        await store.get(NAME)  # with evidence from before
        fake.objects[NAME] = b"precious"

        async def handle(seen: Seen) -> Reply | None:
            return Reply(404 if seen.method in ("GET", "DELETE", "POST") else status)

        fake.handle = handle
        for operation in (store.get(NAME), store.delete(NAME), store.renew(NAME, "t")):
            with pytest.raises(StoreUnavailable):
                await operation
        fake.handle = None
        assert await store.get(NAME) is not None

    async def test_an_outage_that_ended_before_the_probe_is_noticed(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        """The 404 is from the outage, the probe after it finds the canary: ask again."""
        fake.objects[NAME] = b"precious"
        fake.script(Reply(404), method="GET")
        blob = await store.get(NAME)
        assert blob is not None
        assert blob.data == b"precious"
        assert requests(fake) == [GET, PROBE, GET]

    async def test_an_outage_that_began_after_the_evidence_is_noticed(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        await store.get(NAME)
        fake.objects[NAME] = b"precious"
        gone(fake, "/c")
        with pytest.raises(StoreUnavailable, match=f"404, but also for {CANARY}"):
            await store.get(NAME)

    async def test_a_failed_probe_ends_earlier_evidence(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        await store.get(NAME)
        gone(fake, "/c")
        with pytest.raises(StoreUnavailable):
            await store.get(NAME)
        fake.handle = None
        fake.seen.clear()
        assert await store.get(NAME) is None
        assert requests(fake) == [GET, PROBE, GET, PROBE]

    async def test_evidence_that_is_always_too_old_ends_in_unavailable(
        self, fake: FakeSwift, store: Proven, clock: Clock
    ) -> None:
        proven_at = clock.now

        class Racing(Clock):
            def __call__(self) -> float:
                nonlocal proven_at
                proven_at += EVIDENCE_SECONDS_MAX * 2
                return proven_at

        racing = Proven(store._store, Racing())
        racing.set_canary(CANARY)
        with pytest.raises(StoreUnavailable, match="too slow to prove"):
            await racing.get(NAME)
        await racing.close()


class TestSharing:
    async def test_a_hundred_404s_at_once_cost_a_few_probes(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        results = await asyncio.gather(*(store.get(f"{NAME}-{n}") for n in range(100)))
        assert results == [None] * 100
        assert fake.count("GET") <= 200
        assert fake.count("HEAD") <= 10

    async def test_a_hundred_404s_in_an_outage_all_fail(
        self, fake: FakeSwift, store: Proven
    ) -> None:
        gone(fake, "/c")
        results = await asyncio.gather(
            *(store.get(f"{NAME}-{n}") for n in range(100)), return_exceptions=True
        )
        assert {type(result) for result in results} == {StoreUnavailable}
        assert fake.count("HEAD") <= 10


class Probe:
    """A probe that waits to be told its result, and counts."""

    def __init__(self) -> None:
        self.began: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        self.count = 0

    async def __call__(self) -> None:
        self.count += 1
        future = asyncio.get_running_loop().create_future()
        self.began.put_nowait(future)
        await future


class TestProber:
    async def test_a_probe_under_way_is_not_enough(self) -> None:
        probe = Probe()
        prober = Prober(probe)
        first = asyncio.create_task(prober.probe())
        running = await probe.began.get()
        late = [asyncio.create_task(prober.probe()) for _ in range(10)]
        await asyncio.sleep(0)
        running.set_result(None)
        await first
        assert not any(task.done() for task in late)
        (await probe.began.get()).set_result(None)
        await asyncio.gather(*late)
        assert probe.count == 2

    async def test_those_who_come_while_one_waits_share_the_next(self) -> None:
        probe = Probe()
        prober = Prober(probe)
        tasks = [asyncio.create_task(prober.probe())]
        running = await probe.began.get()
        for _ in range(5):
            tasks.append(asyncio.create_task(prober.probe()))
            await asyncio.sleep(0)
        running.set_result(None)
        (await probe.began.get()).set_result(None)
        await asyncio.gather(*tasks)
        assert probe.count == 2

    async def test_a_failure_reaches_its_own_waiters_only(self) -> None:
        probe = Probe()
        prober = Prober(probe)
        first = asyncio.create_task(prober.probe())
        running = await probe.began.get()
        second = asyncio.create_task(prober.probe())
        await asyncio.sleep(0)
        running.set_exception(StoreUnavailable("down"))
        (await probe.began.get()).set_result(None)
        with pytest.raises(StoreUnavailable, match="down"):
            await first
        await second
        assert prober.has_evidence()

    async def test_one_who_gives_up_leaves_the_probe_to_the_others(self) -> None:
        probe = Probe()
        prober = Prober(probe)
        first, second = (asyncio.create_task(prober.probe()) for _ in range(2))
        running = await probe.began.get()
        first.cancel()
        await asyncio.wait([first])
        running.set_result(None)
        await second
        assert first.cancelled()
        assert probe.count == 1

    async def test_a_failure_that_nobody_waits_for_is_no_noise(self) -> None:
        probe = Probe()
        prober = Prober(probe)
        only = asyncio.create_task(prober.probe())
        running = await probe.began.get()
        only.cancel()
        await asyncio.wait([only])
        running.set_exception(StoreUnavailable("down"))
        await prober.close()
        assert not prober.has_evidence()

    async def test_close_wakes_those_who_wait(self) -> None:
        probe = Probe()
        prober = Prober(probe)
        tasks = [asyncio.create_task(prober.probe())]
        await probe.began.get()
        tasks.append(asyncio.create_task(prober.probe()))
        await asyncio.sleep(0)
        await prober.close()
        for task in tasks:
            with pytest.raises(StoreError, match="closed"):
                await task
