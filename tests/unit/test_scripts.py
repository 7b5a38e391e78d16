# SPDX-License-Identifier: MIT
"""nbdkit's Python plugins: what a script cannot be, its threads, and what it may ask."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from swiftnbd.api import Client, ConfigError, ExportError, Opening
from swiftnbd.api.ending import ENDING
from swiftnbd.plugins.python import Python
from swiftnbd.scripts import module, parsing
from swiftnbd.scripts.crew import Crew
from swiftnbd.scripts.script import Script
from swiftnbd.server.tls import distinguished_name
from tests.support.loopback import until

LEAST = """
import nbdkit
def open(readonly):
    return nbdkit
def get_size(h):
    return 4096
def pread(h, count, offset):
    return b"x" * count
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path


async def serving(folder: Path, text: str, **keys: str) -> Python:
    plugin = Python(script=written(folder, text), keys=tuple(keys.items()))
    await plugin.start()
    return plugin


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "does not define open and get_size and pread"),
        ("def", "cannot be run: line 1: SyntaxError: "),
        ("\nraise ValueError('no')", "cannot be run: line 2: ValueError: no"),
        ("import sys\nsys.exit(3)", "cannot be run: line 2: SystemExit: 3"),
        (LEAST + "API_VERSION = 3", "is for API_VERSION 3; there are 1 to 2"),
        (LEAST + "API_VERSION = 'x'", "is for API_VERSION 'x'"),
    ],
)
def test_file_that_is_no_script(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Script(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "takes no keys, and was given a="),
        ("def config(k, v):\n    raise KeyError(k)", "script.py: config: line 10: KeyError: 'a'"),
        ("def config(k, v): pass\ndef thread_model(): return 9", r"thread_model\(\) returned 9"),
        ("def config(k, v): pass\ndef thread_model(): return None", "thread_model"),
        ("def config(k, v): pass\ndef get_ready(): 1 / 0", "get_ready: line 10: ZeroDivision"),
    ],
)
async def test_script_that_cannot_start_ends_its_thread(
    text: str, complaint: str, tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    with pytest.raises((ConfigError, ExportError), match=complaint):
        await serving(tmp_path, LEAST + text, a="b")
    await until(lambda: before.issuperset(threading.enumerate()))


@pytest.mark.parametrize(
    "answer",
    [
        "def get_size(h): return -1",
        "def get_size(h): return 2 ** 63",
        "def get_size(h): return '1'",
        "def block_size(h): return (3, 4096, 8192)",
        "def block_size(h): return (1, 256, 8192)",
        "def block_size(h): return (4096, 512, 8192)",
        "def block_size(h): return (512, 4096, 4095)",
        "def block_size(h): return 512",
        "def can_fua(h): return 3",
        "def can_cache(h): return None",
        "def export_description(h): return 1",
        "def default_export(readonly, is_tls): return None",
        "def preconnect(readonly): raise ValueError",
    ],
)
async def test_answer_that_makes_no_disk_is_refused(answer: str, tmp_path: Path) -> None:
    plugin = await serving(tmp_path, f"{LEAST}API_VERSION = 2\ndef pwrite(*_): pass\n{answer}")
    with pytest.raises(ExportError, match=r"script\.py: "):
        await plugin.open(Opening(""))
    await plugin.stop()


async def test_largest_block_size_is_cut_to_what_we_receive(tmp_path: Path) -> None:
    text = LEAST + "def block_size(h): return (512, 4096, 0xffffffff)"
    plugin = await serving(tmp_path, text)
    device = await plugin.open(Opening(""))
    sizes = (device.block_size_min, device.block_size, device.block_size_max)
    assert sizes == (512, 4096, 32 * 1024 * 1024)
    await device.close()
    await plugin.stop()


async def test_script_that_serves_one_connection_refuses_the_second(tmp_path: Path) -> None:
    plugin = await serving(
        tmp_path, LEAST + "def thread_model(): return nbdkit.THREAD_MODEL_SERIALIZE_CONNECTIONS"
    )
    device = await plugin.open(Opening("one"))
    assert device.multi_conn is False
    with pytest.raises(Exception, match="one connection at a time"):
        await plugin.open(Opening("two"))
    await device.close()
    await (await plugin.open(Opening("two"))).close()
    await plugin.stop()


async def test_script_asks_who_its_client_is(tmp_path: Path) -> None:
    plugin = await serving(
        tmp_path,
        LEAST + "def export_description(h):\n"
        "    nbdkit.disconnect(True)\n"
        "    return repr((nbdkit.export_name(), nbdkit.is_tls(), nbdkit.peer_pid(),\n"
        "        nbdkit.peer_uid(), nbdkit.peer_gid(), nbdkit.peer_tls_dn(),\n"
        "        nbdkit.peer_tls_issuer_dn()))",
    )
    dropped: list[bool] = []
    client = Client(
        "c", "localhost", 7, is_encrypted=True, certificate_subject="CN=c",
        certificate_issuer="CN=ca", process=7, user=8, group=9, disconnect=dropped.append,
    )  # fmt: skip
    device = await plugin.open(Opening("name", client=client))
    assert device.description == repr(("name", True, 7, 8, 9, "CN=c", "CN=ca"))
    assert dropped == [True]
    await device.close()
    with pytest.raises(ExportError, match="peer_pid failed"):
        await plugin.open(Opening("name", client=Client("c", "192.0.2.1", 7)))
    await plugin.stop()


def test_error_is_an_int_as_in_c() -> None:
    for wrong in ("5", 5.0, None):
        with pytest.raises(TypeError):
            module.set_error(wrong)  # type: ignore[arg-type]


async def test_buffer_that_a_script_keeps_does_not_change_what_was_read(tmp_path: Path) -> None:
    text = LEAST.replace("h, count, offset", "h, buf, offset, flags").replace(
        'return b"x" * count', "kept.append(KEEP); buf[:] = b'x' * len(buf)"
    )
    for keep in ("buf", "buf[:]"):
        plugin = await serving(
            tmp_path,
            f"API_VERSION = 2\nkept = []\n{text.replace('KEEP', keep)}"
            "def flush(h, flags):\n    kept[0][:1] = b'y'\n",
        )
        device = await plugin.open(Opening(""))
        pieces = await device.read(0, 8)
        try:
            await device.flush()
        except ExportError:
            assert keep == "buf"
        assert b"".join(pieces) == b"x" * 8
        await device.close()
        await plugin.stop()


async def test_write_that_is_given_up_before_its_turn_never_happens(tmp_path: Path) -> None:
    """Nor does it keep the next one from happening; the one that has begun is waited for."""
    gate, begun = threading.Event(), asyncio.Event()
    loop, happened = asyncio.get_running_loop(), list[int]()

    def work(number: int) -> int:
        if number == 1:
            loop.call_soon_threadsafe(begun.set)
            gate.wait(30)
        happened.append(number)
        return number

    crew = Crew(1, "test")
    calls = [asyncio.ensure_future(crew.call(lambda: None, work, number)) for number in (1, 2, 3)]
    await begun.wait()
    calls[0].cancel()
    calls[1].cancel()
    await asyncio.sleep(0)
    assert not calls[0].done()
    gate.set()
    assert await calls[2] == 3
    for cancelled in calls[:2]:
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    assert happened == [1, 3]
    crew.stop()


async def test_calls_that_wait_for_each_other_are_parallel(tmp_path: Path) -> None:
    together = threading.Barrier(8, timeout=30)
    crew = Crew(8, "test")
    calls = (crew.call(lambda: None, together.wait) for _ in range(8))
    assert sorted(await asyncio.gather(*calls)) == list(range(8))
    crew.stop()


async def test_calls_of_one_thread_happen_in_their_order(tmp_path: Path) -> None:
    crew, happened = Crew(1, "test"), list[int]()
    for start in range(0, 3000, 100):
        numbers = range(start, start + 100)
        await asyncio.gather(*(crew.call(lambda: None, happened.append, n) for n in numbers))
    assert happened == list(range(3000))
    crew.stop()


async def test_call_that_is_put_in_just_before_the_end_still_happens(tmp_path: Path) -> None:
    before, crew, happened = set(threading.enumerate()), Crew(4, "test"), list[int]()
    calls = [asyncio.ensure_future(crew.call(lambda: None, happened.append, n)) for n in (1, 2)]
    await asyncio.sleep(0)  # they are put in, and no thread has been woken
    crew.stop()
    await asyncio.gather(*calls)
    assert happened == [1, 2]
    await until(lambda: before.issuperset(threading.enumerate()))


async def test_thread_survives_what_it_carries_out(tmp_path: Path) -> None:
    def fail(kind: Any) -> None:
        raise kind

    crew = Crew(1, "test")
    for kind in (ValueError, SystemExit, KeyboardInterrupt):
        # an exit that reached the event loop would end that
        script = Script(written(tmp_path, f"{LEAST}def close(h):\n    raise {kind.__name__}"))
        with pytest.raises(ExportError, match=kind.__name__):
            await crew.call(lambda: None, script.call, "close", 1)
    crew.stop()


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1", 1), (" +7", 7), ("2k", 2048), ("1M", 1 << 20), ("7E", 7 << 60), ("3s", 1536),
     ("5b", 5), ("9223372036854775807", 2**63 - 1)],
)  # fmt: skip
def test_size_as_nbdkit_reads_it(text: str, size: int) -> None:
    assert parsing.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5M", "1MB", "1MiB", "8E", "0x10", "1 M", "٣", "k"])
def test_text_that_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="Unable to parse string as size"):
        parsing.parse_size(text)


@pytest.mark.parametrize(
    ("text", "delay"),
    [("1", (1, 0)), ("1.5s", (1, 500_000_000)), ("100ms", (0, 100_000_000)), ("5us", (0, 5000)),
     ("5μs", (0, 5000)), ("7ns", (0, 7)), ("1500ms", (1, 500_000_000)),
     ("1e-3", (0, 1_000_000)), ("1E2ms", (0, 100_000_000)), ("0x10", (16, 0)),
     (" +.5", (0, 500_000_000)),
     ("0.5ns", (0, 1)), ("1e-400", (0, 0)), ("4294967295", (2**32 - 1, 0)), ("0", (0, 0))],
)  # fmt: skip
def test_delay(text: str, delay: tuple[int, int]) -> None:
    assert parsing.parse_delay("delay", text) == delay


def test_text_that_is_no_delay_probability_or_boolean() -> None:
    for text in ("", "-1", "1m", "s", "1e10", "1e400", "0x1p99999", "-0", "inf", "1 "):
        with pytest.raises(ValueError, match="what: could not parse delay"):
            parsing.parse_delay("what", text)
    for text in ("", "x", "1:0", "1:.", "-1", "-0", "1e400", "nan", "1:-2", "1 :2", "1:2:3", "1%%"):
        with pytest.raises(ValueError, match="what: could not parse probability"):
            parsing.parse_probability("what", text)
    with pytest.raises(ValueError, match="could not decipher boolean"):
        parsing.parse_bool("maybe")


@pytest.mark.parametrize(
    ("text", "share"),
    [("0.1", 0.1), ("10%", 0.1), ("1:10", 0.1), ("1", 1),
     ("0:0", 0), ("1e-1", 0.1), ("0x1p-1", 0.5), ("+.5", 0.5), ("1: 0x10", 1 / 16), ("2", 2)],
)  # fmt: skip
def test_probability(text: str, share: float) -> None:
    assert parsing.parse_probability("what", text) == pytest.approx(share)


def test_name_in_a_certificate_as_text() -> None:
    parts = ((("countryName", "DE"),), (("organizationName", 'a, "b"'),), (("commonName", " c "),))
    assert distinguished_name(parts) == 'CN=\\ c\\ ,O=a\\, \\"b\\",C=DE'
    assert distinguished_name(((("commonName", "#1"), ("title", "x")),)) == "CN=\\#1+title=x"
    assert distinguished_name(()) == ""


def test_script_that_asks_twice_for_the_end_does_not_cut_it_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second SIGTERM would, and lose what is not written back."""
    signals: list[int] = []
    monkeypatch.setattr("os.kill", lambda _, number: signals.append(number))
    ends: list[str] = []

    def end() -> None:
        ends.append("end")

    ENDING.serve(end)
    try:
        module.shutdown()
        ENDING.begin(end)
        module.shutdown()
    finally:
        ENDING.is_over()
    assert (ends, signals) == (["end"], [])
    module.shutdown()  # nothing serves: the process is told
    assert len(signals) == 1
