# SPDX-License-Identifier: MIT
"""Patience, on a clock of its own: no test here takes the time it talks about."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from swiftnbd.errors import (
    AccessRefused,
    CorruptObject,
    ObjectExists,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from swiftnbd.store.base import Blob, Body, ContainerInfo, Listed, ObjectInfo, Place, Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from swiftnbd.store.retrying import (
    CORRUPT_TRIES_MAX,
    DELAY_SECONDS_FIRST,
    DELAY_SECONDS_MAX,
    Pacing,
    Retrying,
)
from tests.store.contract import StoreContract
from tests.store.test_memory import MemoryBack

DOWN = StoreUnavailable("memory:disk: 503")


class Clock:
    """Time passes only by sleeping, and by what tries are said to take."""

    def __init__(self, chance: float = 1.0) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.pacing = Pacing(lambda: self.now, self.sleep, lambda: chance)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Shaky(MemoryStore):
    """A memory store whose operations fail as planned, before or after they are done."""

    def __init__(self) -> None:
        super().__init__("disk")
        self.before: list[Exception | None] = []
        self.after: list[Exception | None] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.on_call: Callable[[], None] = lambda: None

    def _fail(self, plan: list[Exception | None]) -> None:
        if plan and (error := plan.pop(0)):
            raise error

    async def _do(self, name: str, *args: Any, **options: Any) -> Any:
        self.calls.append((name, options))
        self.on_call()
        self._fail(self.before)
        result = await getattr(super(), name)(*args, **options)
        self._fail(self.after)
        return result

    async def get(self, name: str, **options: Any) -> Blob | None:
        blob: Blob | None = await self._do("get", name, **options)
        return blob

    async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
        info: ObjectInfo | None = await self._do("head", name, newest=newest)
        return info

    async def put(self, name: str, data: Body, *, if_absent: bool = False) -> str:
        return str(await self._do("put", name, data, if_absent=if_absent))

    async def copy(self, name: str, source: Place, etag: str) -> None:
        await self._do("copy", name, source, etag)

    async def delete(self, name: str) -> bool:
        return bool(await self._do("delete", name))

    async def renew(self, name: str, token: str) -> bool:
        return bool(await self._do("renew", name, token))

    async def listing(self, **options: Any) -> list[Listed]:
        rows: list[Listed] = await self._do("listing", **options)
        return rows

    async def info(self, *, count: bool = False) -> ContainerInfo | None:
        info: ContainerInfo | None = await self._do("info")
        return info

    async def set_metadata(self, changes: Mapping[str, str]) -> None:
        await self._do("set_metadata", changes)

    async def create_container(
        self, metadata: Mapping[str, str] | None = None, *, policy: str | None = None
    ) -> bool:
        return bool(await self._do("create_container", metadata, policy=policy))

    async def delete_container(self) -> bool:
        return bool(await self._do("delete_container"))


@pytest.fixture
async def shaky() -> Shaky:
    store = Shaky()
    await store.create_container()
    store.calls.clear()
    return store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(shaky: Shaky, clock: Clock) -> Retrying:
    return Retrying(shaky, deadline_seconds=60, pacing=clock.pacing)


async def test_copy_is_tried_again_also_when_it_was_corrupt(shaky: Shaky, store: Retrying) -> None:
    other = MemoryStore("other", shaky.account)
    await other.create_container()
    etag = await other.put("n", b"x")
    shaky.before = [DOWN, CorruptObject("other bytes"), DOWN]
    shaky.after = [DOWN]
    await store.copy("n", other.place, etag)
    assert await shaky.head("n") == ObjectInfo(1, etag)


class TestRetryingStore(StoreContract):
    """It keeps the contract of what it wraps."""

    @pytest.fixture
    def fresh(self) -> Retrying:
        self.memory = MemoryStore("disk")
        return Retrying(self.memory)

    @pytest.fixture
    async def store(self, fresh: Retrying) -> Retrying:
        await fresh.create_container()
        return fresh

    def beside(self, store: Store, *, impatient: bool = False) -> Store:
        assert store.place is not None
        assert isinstance(store.place.home, MemoryAccount)
        return Retrying(MemoryStore("other", store.place.home), deadline_seconds=0.1)

    @pytest.fixture
    def back(self, store: Retrying) -> MemoryBack:
        return MemoryBack(self.memory)


@pytest.mark.parametrize(
    "operation",
    [
        lambda store: store.get("n"),
        lambda store: store.head("n"),
        lambda store: store.put("n", b"x"),
        lambda store: store.delete("n"),
        lambda store: store.renew("n", "t"),
        lambda store: store.listing(),
        lambda store: store.info(),
        lambda store: store.set_metadata({"k": "v"}),
        lambda store: store.create_container(),
        lambda store: store.delete_container(),
    ],
)
async def test_every_operation_is_retried(store: Retrying, shaky: Shaky, operation: Any) -> None:
    shaky.before = [DOWN, DOWN]
    await operation(store)
    assert len(shaky.calls) == 3


async def test_delays_grow_to_a_maximum_and_end_with_a_last_try_in_time(
    store: Retrying, shaky: Shaky, clock: Clock
) -> None:
    shaky.before = [DOWN] * 100
    with pytest.raises(
        StoreError, match=r"memory:disk: 503 \(gave up after 18 tries in 58 s\)"
    ) as e:
        await store.get("n")
    assert type(e.value) is StoreError
    assert e.value.__cause__ is DOWN
    first, maximum = DELAY_SECONDS_FIRST, DELAY_SECONDS_MAX
    assert clock.slept[:7] == [
        first,
        first * 2,
        first * 4,
        first * 8,
        first * 16,
        first * 32,
        maximum,
    ]
    assert set(clock.slept[6:-1]) == {maximum}
    assert sum(clock.slept) == pytest.approx(58)


async def test_delays_are_a_random_part(shaky: Shaky) -> None:
    clock = Clock(chance=0.25)
    shaky.before = [DOWN] * 3
    await Retrying(shaky, pacing=clock.pacing).get("n")
    assert clock.slept == [DELAY_SECONDS_FIRST * x / 4 for x in (1, 2, 4)]


async def test_retry_after_is_waited_for(store: Retrying, shaky: Shaky, clock: Clock) -> None:
    shaky.before = [StoreUnavailable("busy", retry_after=7.0), DOWN]
    await store.get("n")
    assert clock.slept == [7.0 + DELAY_SECONDS_FIRST, DELAY_SECONDS_FIRST * 2]


async def test_retry_after_beyond_the_deadline_is_cut_for_a_last_try(
    shaky: Shaky, clock: Clock
) -> None:
    shaky.before = [StoreUnavailable("busy", retry_after=30.0)]
    await Retrying(shaky, deadline_seconds=10, pacing=clock.pacing).get("n")
    assert clock.slept == [8.0]


async def test_slow_tries_count(store: Retrying, shaky: Shaky, clock: Clock) -> None:
    def slow() -> None:
        clock.now += 21

    shaky.on_call = slow
    shaky.before = [DOWN] * 10
    with pytest.raises(StoreError, match="gave up after 3 tries in 63 s"):
        await store.get("n")


async def test_a_single_try(shaky: Shaky, clock: Clock) -> None:
    def slow() -> None:
        clock.now += 5

    shaky.on_call = slow
    shaky.before = [DOWN]
    with pytest.raises(StoreError, match=r"gave up after 1 try in 5 s"):
        await Retrying(shaky, deadline_seconds=5, pacing=clock.pacing).get("n")


@pytest.mark.parametrize("error", [StoreError, StoreFull, AccessRefused, ObjectExists])
async def test_what_will_not_pass_is_not_retried(
    store: Retrying, shaky: Shaky, error: type[StoreError]
) -> None:
    shaky.before = [error("no")]
    with pytest.raises(error, match="no"):
        await store.put("n", b"x")
    assert len(shaky.calls) == 1


async def test_a_bug_is_not_retried(store: Retrying, shaky: Shaky) -> None:
    shaky.before = [ZeroDivisionError()]
    with pytest.raises(ZeroDivisionError):
        await store.get("n")
    assert len(shaky.calls) == 1


async def test_a_corrupt_body_is_read_again_from_the_newest(store: Retrying, shaky: Shaky) -> None:
    await shaky.put("n", b"good")
    shaky.calls.clear()
    shaky.before = [DOWN, CorruptObject("bad"), DOWN]
    blob = await store.get("n")
    assert blob is not None
    assert blob.data == b"good"
    assert [options["newest"] for _, options in shaky.calls] == [False, False, True, True]


async def test_a_body_that_stays_corrupt_is_raised_after_a_few_tries(
    store: Retrying, shaky: Shaky
) -> None:
    shaky.before = [CorruptObject("bad")] * 100
    with pytest.raises(CorruptObject):
        await store.get("n")
    assert len(shaky.calls) == CORRUPT_TRIES_MAX


async def test_a_damaged_object_that_was_set_aside_is_not_absent(
    store: Retrying, shaky: Shaky
) -> None:
    shaky.before = [CorruptObject("bad")]  # and from then on there is nothing
    with pytest.raises(CorruptObject, match="GET n: it was damaged, and the store has set it as"):
        await store.get("n")


async def test_a_try_that_hangs_is_ended_and_made_again(shaky: Shaky, clock: Clock) -> None:
    class Hanging(Shaky):
        hangs = 2

        async def get(self, name: str, **options: Any) -> Blob | None:
            if self.hangs:
                self.hangs -= 1
                await asyncio.Event().wait()
            return await super().get(name, **options)

    hanging = Hanging()
    await hanging.create_container()
    store = Retrying(hanging, try_seconds=0.01, pacing=clock.pacing)
    assert await store.get("n") is None
    hanging.hangs = 1000
    with pytest.raises(StoreError, match="memory:disk: GET n: no answer"):
        await store.get("n")


async def test_last_try_that_is_cut_short_does_not_hide_what_was_wrong(
    shaky: Shaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Shaky):
        async def head(self, name: str, *, newest: bool = False) -> ObjectInfo | None:
            if not self.before:
                await asyncio.Event().wait()
            return await super().head(name, newest=newest)

    monkeypatch.setattr("swiftnbd.store.retrying.LAST_TRY_SECONDS", 0.02)
    silent = Silent()
    await silent.create_container()
    silent.before = [DOWN]
    clock = Clock()
    store = Retrying(silent, deadline_seconds=0.1, pacing=clock.pacing)
    with pytest.raises(
        StoreError, match=r"HEAD n: not done, as memory:disk: 503 \(gave up after 2"
    ):
        await store.head("n")


async def test_cancellation_passes_straight_through(shaky: Shaky) -> None:
    asleep = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    shaky.before = [DOWN] * 9
    store = Retrying(shaky, pacing=Pacing(sleep=sleep))
    task = asyncio.create_task(store.get("n"))
    await asleep.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(shaky.calls) == 1


class TestPutIfAbsentAfterALostReply:
    async def test_our_own_object_is_success(self, store: Retrying, shaky: Shaky) -> None:
        shaky.after = [DOWN]
        etag = await store.put("n", b"mine", if_absent=True)
        assert etag == shaky.account.containers["disk"].objects["n"].etag
        assert shaky.calls[-1] == ("head", {"newest": True})

    async def test_somebody_elses_is_refused(self, store: Retrying, shaky: Shaky) -> None:
        await MemoryStore("disk", shaky.account).put("n", b"other")
        shaky.before = [DOWN]
        with pytest.raises(ObjectExists):
            await store.put("n", b"mine!", if_absent=True)

    async def test_the_same_content_without_a_lost_reply_is_refused(
        self, store: Retrying, shaky: Shaky
    ) -> None:
        await shaky.put("n", b"same")
        with pytest.raises(ObjectExists):
            await store.put("n", b"same", if_absent=True)

    async def test_a_failing_read_back_is_retried(self, store: Retrying, shaky: Shaky) -> None:
        shaky.after = [DOWN]  # the put is done
        shaky.before = [None, None, DOWN]  # put, put: it exists, head fails; all of it again
        await store.put("n", b"mine", if_absent=True)
        assert [name for name, _ in shaky.calls] == ["put", "put", "head", "put", "head"]


async def test_trouble_is_logged_now_and_then(
    store: Retrying, shaky: Shaky, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shaky.before = [DOWN] * 100
    with pytest.raises(StoreError):
        await store.get("n")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "memory:disk: 503; it is tried again for up to 60 s"
    assert 4 <= len(lines) <= 6
