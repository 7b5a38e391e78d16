# SPDX-License-Identifier: MIT
"""What docs/systemd/nbd-reconnect.py says to servers; with a kernel it is in `tests.e2e`."""

import asyncio
import importlib.util
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.gated_store import GatedStore
from tests.support.log_watch import Announce
from tests.support.loopback import Serving, exports_of, serving

PROGRAM = Path(__file__).parents[2] / "docs/systemd/nbd-reconnect.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nbd_reconnect", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def served() -> AsyncIterator[Serving]:
    store = GatedStore("disk")
    await store.set_up()
    async with serving(*exports_of(store)) as served:
        yield served


async def test_connection_is_ready_for_requests(program: ModuleType, served: Serving) -> None:
    port = str(served.places[0].port)
    connection, size = await asyncio.to_thread(program.connect, "127.0.0.1", port, "disk")
    with connection:
        assert size == served.exports["disk"].info.geometry.size
        assert connection.gettimeout() is None
    await served.check_full_service()


async def test_refusal_is_told_in_the_servers_words(
    program: ModuleType, served: Serving, expects_log: Announce
) -> None:
    expects_log("refused 'other'")
    port = str(served.places[0].port)
    with pytest.raises(program.Failed, match="the server refuses: export 'other' does"):
        await asyncio.to_thread(program.connect, "127.0.0.1", port, "other")


@pytest.mark.parametrize(
    ("greeting", "sentence"),
    [
        (b"SSH-2.0-OpenSSH_9.2 Debian\r\n", "no server of the fixed newstyle"),
        (b"NBDMAGICIHAVEOPT\0\0", "no server of the fixed newstyle"),
        (b"NBDMAGICIHAVEOPT\0\3" + b"x" * 20, "no answer of an NBD server"),
        (b"NBDMAGIC", "the server has closed the connection"),
    ],
)
def test_server_that_speaks_something_else(
    program: ModuleType, greeting: bytes, sentence: str
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(greeting)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(program.Failed, match=sentence):
            program._negotiate(ours, b"disk")
