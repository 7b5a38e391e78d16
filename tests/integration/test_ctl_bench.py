# SPDX-License-Identifier: MIT
import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from swiftnbd.cli.benching import (
    OBJECTS_PREFIX,
    Bench,
    Limits,
    Measured,
    Step,
    choose_random,
    choose_sequential,
    steps,
)
from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.ctl_bench import advice, bar, line, print_found, short_size
from swiftnbd.cli.run import run
from swiftnbd.cli.scratch import OLD_SECONDS, PREFIX, is_old, new_name, remove_old, scratch
from swiftnbd.cli.stores import Stores
from swiftnbd.errors import ContainerNotEmpty, StoreUnavailable
from swiftnbd.server.config import AuthConfig, ExportConfig
from swiftnbd.store.base import Store
from swiftnbd.store.memory import MemoryAccount, MemoryStore
from tests.integration.conftest import Told
from tests.support.backends import SwiftBackend
from tests.support.swift_aio import KEY, USER, RealSwift

KIB, MIB = 1 << 10, 1 << 20
QUICK = ["--seconds", "1", "--bytes", "4M", "--object-size", "64K", "--object-size", "256K"]


def measured(operation: str, size: int, rate: float, connections: int = 16) -> Measured:
    return Measured(Step(operation, size, connections), 1.0, [1 / rate] * round(rate))


# As of a real Swift on a small machine
SWIFT = [
    measured("put", 64 * KIB, 255),
    measured("get", 64 * KIB, 573),
    measured("put", 256 * KIB, 249),
    measured("get", 256 * KIB, 492),
    measured("part", 256 * KIB, 520),
    measured("put", MIB, 159),
    measured("get", MIB, 248),
    measured("part", MIB, 450),
    measured("put", 4 * MIB, 70),
    measured("get", 4 * MIB, 74),
    measured("part", 4 * MIB, 423),
]


def test_each_size_is_written_before_it_is_read() -> None:
    assert steps([MIB, 64 * KIB], [16, 1]) == [
        Step("put", 64 * KIB, 1),
        Step("put", 64 * KIB, 16),
        Step("get", 64 * KIB, 1),
        Step("get", 64 * KIB, 16),
        Step("put", MIB, 1),
        Step("put", MIB, 16),
        Step("get", MIB, 1),
        Step("get", MIB, 16),
        Step("part", MIB, 16),
    ]


def test_choices_for_a_small_swift() -> None:
    large, small = choose_sequential(SWIFT), choose_random(SWIFT)
    assert (large.object_size, round(large.written / MIB)) == (4 * MIB, 280)
    assert (small.object_size, small.written, small.read) == (256 * KIB, 249, 520)


def test_smallest_of_those_that_are_nearly_as_fast_in_sequence() -> None:
    found = [measured(op, MIB, 100) for op in ("put", "get")]
    found += [measured(op, 4 * MIB, 26) for op in ("put", "get")]
    assert choose_sequential(found).object_size == MIB


def test_best_number_of_connections_is_told() -> None:
    found = [measured("put", MIB, rate, count) for count, rate in ((1, 50), (4, 90), (16, 80))]
    found += [measured("get", MIB, 100, 4)]
    choice = choose_sequential(found)
    assert (choice.connections, choice.written) == (4, 90 * MIB)


def test_latencies_are_shares_of_the_requests() -> None:
    found = Measured(Step("get", MIB, 1), 10.0, [each / 1000 for each in range(1, 101)])
    assert (found.latency(0.5), found.latency(0.95), found.latency(1)) == (0.051, 0.096, 0.1)
    assert line(found).startswith("GET, 1 MiB, 1 at once: 10.0/s, 10.0 MiB/s, median 51.0 ms")


def test_bars_and_sizes() -> None:
    assert bar(1) == "█" * 16
    assert bar(0.5) == "█" * 8
    assert bar(0) == "▏"
    assert [short_size(size) for size in (65536, 4 * MIB, 1536, 512)] == [
        "64K",
        "4M",
        "1536",
        "512",
    ]


def test_advice_is_what_setup_takes() -> None:
    sequential, at_random = advice(SWIFT)
    assert "--object-size 4M: 280.0 MiB/s written, 296.0 MiB/s read" in sequential
    assert "--object-size 256K: 249 writes/s, 520 reads/s" in at_random


async def store_of(name: str = "scratch") -> MemoryStore:
    store = MemoryStore(name)
    await store.create_container()
    return store


async def test_bytes_are_bounded_and_every_step_is_measured() -> None:
    plan = steps([64 * KIB, 256 * KIB], [1, 4])
    store = await store_of()
    bench = Bench(store, Limits(60.0, 4 * MIB))
    found = [each async for each in bench.run(plan, lambda _: None)]
    assert [each.step for each in found] == plan
    assert sum(len(each.latencies) * each.step.length for each in found) <= 4 * MIB + 256 * KIB
    assert len({object.data for object in store.account.containers["scratch"].objects.values()}) > 1


async def test_time_is_bounded() -> None:
    now = 0.0

    class Slow(MemoryStore):
        async def put(self, *args: object, **options: object) -> str:
            nonlocal now
            now += 0.5
            await asyncio.sleep(0)
            return await super().put(*args, **options)  # type: ignore[arg-type]

    store = Slow("scratch")
    await store.create_container()
    bench = Bench(store, Limits(10.0, 1 << 40), clock=lambda: now)
    plan = [Step("put", 4096, 1), Step("put", 8192, 1)]
    found = [each async for each in bench.run(plan, lambda _: None)]
    assert [len(each.latencies) for each in found] == [10, 10]
    assert now == 10.0


async def test_scratch_container_stays_small() -> None:
    store = await store_of()
    bench = Bench(store, Limits(60.0, 600 * 4096))
    [_ async for _ in bench.run([Step("put", 4096, 16)], lambda _: None)]
    assert len(store.account.containers["scratch"].objects) == 256


async def test_scratch_container_is_removed_also_after_an_interrupt(told: Told) -> None:
    store = MemoryStore("scratch")
    begun = asyncio.Event()

    async def work() -> None:
        async with scratch(store, "scratch", None, told):
            for number in range(40):
                await store.put(f"{OBJECTS_PREFIX}65536/{number}", b"x")
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.account.containers == {}
    assert told == []


async def test_scratch_container_that_lags_behind_is_removed_all_the_same(told: Told) -> None:
    class Lagging(MemoryStore):
        tries = 3

        async def delete_container(self) -> bool:
            self.tries -= 1
            if self.tries:
                raise ContainerNotEmpty("409")
            return await super().delete_container()

    store = Lagging("scratch")
    async with scratch(store, "scratch", None, told, retry_seconds=0):
        await store.put(f"{OBJECTS_PREFIX}65536/1", b"x")
    assert store.account.containers == {}


async def test_scratch_container_that_stays_is_named(told: Told) -> None:
    class Stubborn(MemoryStore):
        async def delete_container(self) -> bool:
            raise StoreUnavailable("503")

    async with scratch(Stubborn("scratch", MemoryAccount()), "scratch", None, told, "help it"):
        pass
    assert told == ["scratch, a scratch container, is left (503); help it"]


def name_of_age(seconds: float) -> str:
    return f"{PREFIX}{int(time.time() - seconds):08x}0123abcd"


async def make(store: Store, object_name: str, *, marked: bool = True) -> None:
    await store.create_container({"swiftnbd-deleting": "1"} if marked else {})
    await store.put(object_name, b"x")


OWN = OBJECTS_PREFIX + "65536/1"


@pytest.mark.parametrize(
    ("name", "seconds", "object_name", "marked", "goes"),
    [
        pytest.param("{}", OLD_SECONDS + 60, OWN, True, True, id="old"),
        pytest.param("{}", OLD_SECONDS - 60, OWN, True, False, id="may be at work"),
        pytest.param("{}", 0, OWN, True, False, id="new"),
        pytest.param("{}0", 2 * OLD_SECONDS, OWN, True, False, id="somebody's own name"),
        pytest.param(PREFIX + "backups", 0, OWN, True, False, id="without a time"),
        pytest.param("x{}", 2 * OLD_SECONDS, OWN, True, False, id="another prefix"),
        pytest.param("{}", 2 * OLD_SECONDS, "letters/mum.txt", True, False, id="letters"),
        pytest.param("{}", 2 * OLD_SECONDS, "disk.part/00000000", True, False, id="a disk"),
        pytest.param("{}", 2 * OLD_SECONDS, OWN, False, False, id="not marked"),
    ],
)
async def test_what_a_killed_bench_left_is_removed_a_day_later(
    tmp_path: Path,
    told: Told,
    name: str,
    seconds: float,
    object_name: str,
    marked: bool,
    goes: bool,
) -> None:
    name = name.format(name_of_age(seconds))
    async with Stores(AuthConfig("file:x", directory=tmp_path)) as stores:
        store = stores.open(ExportConfig(name))
        await make(store, object_name, marked=marked)
        await remove_old(stores, ExportConfig("disk"), told)
        assert (await store.info() is None) == goes
        assert told == ([f"{name}, left by a bench that was killed, is removed"] if goes else [])


def test_name_says_when_it_was_made() -> None:
    name = new_name()
    assert not is_old(name, time.time() + OLD_SECONDS - 60)
    assert is_old(name, time.time() + OLD_SECONDS + 60)


def test_killed_bench_on_a_real_swift_is_cleaned_up_by_the_next_one(
    real_swift: RealSwift, container_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = SwiftBackend(real_swift.auth_url, USER, KEY, tmp_path / "secrets.conf")
    backend.announce(container_name)
    left, other = name_of_age(2 * OLD_SECONDS), name_of_age(60)
    for name in (left, other):
        backend.set_metadata(name, deleting="1")
        backend.put(name, OWN, b"x")
    arguments = [*backend.arguments, "bench", *QUICK, "--connections", "4", container_name]
    assert run(ctl, "swiftnbd-ctl", arguments) == 0
    said = capsys.readouterr().err
    assert f"swiftnbd-ctl: {left}, left by a bench that was killed, is removed\n" in said
    assert other not in said
    assert f"give it a section in {backend.secrets} and run, with the options of this one:" in said
    assert backend.objects(other) == {OWN: b"x"}
    backend.request("DELETE", other, f"/{OWN}")
    backend.request("DELETE", other)


def test_command_in_a_pipe_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random.seed(1)
    where = ["-a", f"file:{tmp_path}"]
    assert run(ctl, "swiftnbd-ctl", [*where, "bench", *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 + 2
    assert lines[0].startswith("PUT, 64 KiB, 1 at once: ")
    assert lines[-1].startswith("For random work (file systems, databases): --object-size ")
    assert run(ctl, "swiftnbd-ctl", [*where, "bench", "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["measurements"]) == 13
    assert found["sequential"]["object_size"] in (64 * KIB, 256 * KIB)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--object-size", "1000"], "not a multiple of 512"),
        (["--object-size", "128M"], "not a multiple of 512 up to 67108864"),
        (["--object-size", "big"], "is not a size"),
        (["--connections", "0"], "0 is not in the range"),
        (["--seconds", "0"], "0 is not in the range"),
        ([f for n in range(1, 60) for f in ("--connections", str(n))], "more than 200"),
    ],
)
def test_bad_flags_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    assert run(ctl, "swiftnbd-ctl", ["-a", f"file:{tmp_path}", "bench", *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_plot_fits_on_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    large = [measured(kind, 64 * MIB, 30) for kind in ("put", "get", "part")]
    print_found([*SWIFT, *large])
    table = capsys.readouterr().out.partition("For sequential")[0]
    assert bar(1.0) in table
    assert "…" not in table
