# SPDX-License-Identifier: MIT
"""Commands that change a disk: only under their lock, and honest about what is known of it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from swiftnbd.cli.common import held
from swiftnbd.cli.ctl_copy import CopyRequest, copy
from swiftnbd.cli.ctl_resize import make_plan, resize
from swiftnbd.cli.ctl_setup import SetupRequest, setup
from swiftnbd.cli.ctl_trim import trim
from swiftnbd.cli.exits import Exit, exit_code
from swiftnbd.cli.known import known_objects
from swiftnbd.cli.unfinished import COPY
from swiftnbd.errors import StoreError, SwiftnbdError
from swiftnbd.export import lock as lock_module
from swiftnbd.export.layout import Geometry, object_name
from swiftnbd.export.objects import PRESENCE, load_presence
from swiftnbd.export.pace import Timing
from swiftnbd.export.presence import Presence
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.integration.conftest import OBJECT_SIZE, Told, metadata
from tests.support.faulty import Call, Fault, Faulty, Script, reply_lost

OBJECTS = 6
LOCKS = {"last": "", "epoch": ""}  # change with every holder


class Pair:
    """A disk ``one`` with data in 0, 2 and 5 and zeros in 3, and ``two``, with data in 1."""

    def __init__(self) -> None:
        self.account = MemoryAccount()
        self.one, self.two = (Faulty(MemoryStore(name, self.account)) for name in ("one", "two"))

    async def fill(self) -> None:
        for store, name, indexes in ((self.one, "one", (0, 2, 5)), (self.two, "two", (1,))):
            request = SetupRequest(Geometry(OBJECTS, OBJECT_SIZE))
            await setup(store, name=name, request=request, tell=Told())
            async with held(store, name) as holding, known_objects(holding) as known:
                for index in indexes:
                    await known.put(index, bytes([1 + index]) * OBJECT_SIZE)
                if store is self.one:
                    await known.put(3, bytes(OBJECT_SIZE))

    async def copy(self, *, force: bool = True) -> None:
        request = CopyRequest("one", "two", force=force, quiet=True)
        await copy(self.one, self.two, request=request, tell=Told())

    async def resize(self, objects: int) -> None:
        plan = await make_plan(self.one, name="one", size=objects * OBJECT_SIZE)
        await resize(self.one, name="one", plan=plan, quiet=True, tell=Told())

    async def resize_another(self) -> None:
        """As if it had been set up anew since the plan was made."""
        plan = await make_plan(self.one, name="one", size=OBJECT_SIZE)
        plan = replace(plan, before=Geometry(OBJECTS + 1, OBJECT_SIZE))
        await resize(self.one, name="one", plan=plan, quiet=True, tell=Told())

    async def trim(self) -> None:
        await trim(self.one, name="one", dry_run=False, quiet=True, tell=Told())


Command = Callable[[Pair], Awaitable[None]]


@pytest.fixture
async def pair() -> Pair:
    pair = Pair()
    await pair.fill()
    return pair


async def objects(store: Faulty) -> dict[str, bytes]:
    found = {}
    for row in await store.listing(prefix="disk.part/"):
        blob = await store.get(row.name)
        assert blob is not None
        found[row.name] = blob.data
    return found


def is_part(call: Call) -> bool:
    return call.name.startswith("disk.part/")


@pytest.mark.expects_log("the lock could not be renewed for 90 s: suspended")
@pytest.mark.parametrize(
    ("command", "stopped_at"),
    [
        (Pair.copy, lambda call: call == Call("get", COPY)),
        (Pair.copy, lambda call: call.op == "head" and is_part(call)),
        (Pair.trim, lambda call: call.op == "head" and is_part(call)),
        (lambda pair: pair.resize(3), lambda call: call.op == "listing"),
        (lambda pair: pair.resize(9), lambda call: call.op == "listing"),
    ],
    ids=["copy, before it begins", "copy", "trim", "shrink", "grow"],
)
async def test_command_that_was_stopped_for_longer_than_its_lease_changes_nothing(
    pair: Pair,
    command: Command,
    stopped_at: Callable[[Call], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by SIGSTOP and SIGCONT: none of its timers runs before it goes on where it was."""
    now, is_held = 0.0, False
    late: list[Call] = []
    before = [(await objects(store), await metadata(store)) for store in (pair.one, pair.two)]

    def stop(call: Call) -> Fault | None:
        nonlocal now, is_held
        if now and call.op in ("put", "delete", "copy"):
            late.append(call)
        is_held |= call.op == "put" and call.name.startswith("swiftnbd/epoch/")
        if is_held and stopped_at(call):
            now = 1000.0
        return None

    monkeypatch.setattr(lock_module, "Timing", lambda: Timing(lambda: now))
    pair.one.plan = pair.two.plan = stop
    with pytest.raises(
        StoreError, match=r"^\S+: the lock(\'s lease is over| could not be renewed)$"
    ) as e:
        await command(pair)
    assert exit_code(e.value) is Exit.FAILED
    assert late == []
    for store, (stored, said) in zip((pair.one, pair.two), before, strict=True):
        assert await objects(store) == stored
        assert {**(await metadata(store)), **LOCKS} == {**said, **LOCKS}


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (lambda pair: pair.copy(force=False), "two holds data"),
        (Pair.resize_another, "one was set up anew meanwhile"),
    ],
    ids=["copy", "resize"],
)
async def test_refused_command_costs_no_knowledge_of_the_disk(
    pair: Pair, command: Command, refusal: str
) -> None:
    before = [await known(store) for store in (pair.one, pair.two)]
    with pytest.raises(SwiftnbdError, match=refusal):
        await command(pair)
    assert [await known(store) for store in (pair.one, pair.two)] == before


async def test_trim_that_finds_nothing_costs_no_knowledge_of_the_disk(pair: Pair) -> None:
    await pair.one.delete(object_name(3))  # behind the back of what is known
    before = await known(pair.one)
    await pair.trim()
    assert await known(pair.one) == before


async def test_source_of_a_copy_is_still_known_by_its_last_client(pair: Pair) -> None:
    binding, _ = await known(pair.one)
    async with held(pair.one, "one", changed=False) as holding:
        await holding.store.put(PRESENCE, Presence(OBJECTS).dumps(binding))  # nothing
    await pair.copy()
    assert await known(pair.one) == (binding, "PAPPAP")


@pytest.mark.parametrize(
    ("command", "op"),
    [
        (Pair.copy, "copy"),
        (Pair.trim, "delete"),
        (lambda pair: pair.resize(3), "delete"),
        (lambda pair: pair.resize(9), "set_metadata"),
    ],
    ids=["copy", "trim", "shrink", "grow"],
)
async def test_change_that_failed_leaves_no_older_knowledge_of_the_disk(
    pair: Pair, command: Command, op: str
) -> None:
    """The answer is lost, and what was known of the object with it."""
    target = pair.two if op == "copy" else pair.one
    before, _ = await known(target)
    script = Script()
    is_metadata = op == "set_metadata"
    # of metadata, the first change is the lock's
    target.plan = lambda call: script(call) if is_metadata or is_part(call) else None
    if is_metadata:
        script.on(op, Fault())
    script.on(op, reply_lost())
    with pytest.raises(StoreError, match="the reply was lost"):
        await command(pair)
    target.plan = Script()
    after, states = await known(target)
    assert after != before
    assert states is None or "?" in states or is_metadata


async def known(store: Faulty) -> tuple[str, str | None]:
    """The binding of what is trusted, and the states of the objects if there is a map of them."""
    info = await store.info()
    assert info is not None
    async with held(store, store.label, changed=False) as holding:
        binding, count = holding.lock.predecessor.binding, holding.disk.geometry.objects
        presence = await load_presence(store, count, binding)
    if presence is None:
        return binding, None
    return binding, "".join("?AP"[presence.get(index)] for index in range(count))
