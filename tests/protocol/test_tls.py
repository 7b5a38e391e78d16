# SPDX-License-Identifier: MIT
"""TLS on a real connection: what is served, and to whom (rows A9, E8 to E10, E25)."""

import ssl
import struct
import warnings
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from swiftnbd.server.config import ServerConfig, TcpAddress, TlsConfig
from tests.support import nbd_client as nbd
from tests.support.certificates import Certificates
from tests.support.gated_store import GatedStore
from tests.support.loopback import (
    Serving,
    exports_of,
    option_bytes,
    query_bytes,
    request_bytes,
    serving,
)
from tests.support.nbd_client import NbdError, Refused
from tests.support.tls_peer import TlsPeer

ERR_TLS_REQD = 0x80000005
SET_META_CONTEXT, META_CONTEXT = 10, 4
SEND_DF = 1 << 7

OPTIONS = {
    "LIST": option_bytes(nbd.LIST),
    "INFO": option_bytes(nbd.INFO, query_bytes(b"disk")),
    "GO": option_bytes(nbd.GO, query_bytes(b"disk")),
    "STRUCTURED_REPLY": option_bytes(nbd.STRUCTURED_REPLY),
    "unknown": option_bytes(99, b"data"),
}


@pytest.fixture
def trusting(certificates: Certificates) -> ssl.SSLContext:
    return certificates.client_context()


@pytest.fixture
def offered(certificates: Certificates) -> ServerConfig:
    """A server's configuration with TLS for those who want it."""
    tls = TlsConfig(certificates=certificates.server)
    return ServerConfig((TcpAddress(port=0),), tls=tls)


@pytest.fixture
def forced(offered: ServerConfig) -> ServerConfig:
    """A server's configuration that demands TLS."""
    assert offered.tls is not None
    return replace(offered, tls=replace(offered.tls, required=True))


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk")
    await store.set_up()
    return store


@pytest.fixture
async def served(store: GatedStore, offered: ServerConfig) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store), config=offered) as served:
        yield served


@pytest.fixture
async def forcing(store: GatedStore, forced: ServerConfig) -> AsyncIterator[Serving]:
    async with serving(*exports_of(store), config=forced) as served:
        yield served


@pytest.fixture
async def selective(store: GatedStore, offered: ServerConfig) -> AsyncIterator[Serving]:
    """A server of two exports, of which "secret" is for TLS only."""
    secret = GatedStore("secret")
    await secret.set_up()
    exports = exports_of(store, secret)
    exports[1].tls_only = True
    async with serving(*exports, config=offered) as served:
        yield served


def only(version: ssl.TLSVersion, context: ssl.SSLContext) -> ssl.SSLContext:
    """A client that knows one version of TLS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the old ones
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_disk_is_served_inside_tls(
    served: Serving, trusting: ssl.SSLContext, version: str
) -> None:
    only(ssl.TLSVersion[version], trusting)
    async with await TlsPeer.encrypted(served, trusting) as peer:
        assert peer.session.version() == version.replace("_", ".")
        await peer.go(b"disk")
        data = bytes(range(256)) * 2048
        await peer.write(4096, data)
        assert await peer.read(4096, len(data)) == data
        await peer.flush()
        await peer.disconnect()
    await served.check_full_service()


async def test_newest_tls_is_preferred(served: Serving, trusting: ssl.SSLContext) -> None:
    async with await TlsPeer.encrypted(served, trusting) as peer:
        assert peer.session.version() == "TLSv1.3"


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_tls_older_than_1_2_is_refused(
    served: Serving, trusting: ssl.SSLContext, version: str
) -> None:
    only(ssl.TLSVersion[version], trusting)
    async with await TlsPeer.greeted(served) as peer:
        with pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"):
            await peer.start_tls(trusting)
    await served.check_full_service()


async def test_no_session_can_be_resumed(served: Serving, trusting: ssl.SSLContext) -> None:
    async with await TlsPeer.encrypted(served, trusting) as peer:
        await peer.go(b"disk")
        assert peer.session.session is None or not peer.session.session.has_ticket
        await peer.disconnect()


async def test_client_in_the_clear_is_served_where_tls_is_offered(served: Serving) -> None:
    await served.check_full_service()


# State


async def test_e8_what_was_agreed_in_the_clear_is_forgotten(
    served: Serving, trusting: ssl.SSLContext
) -> None:
    """CVE-2021-3716: or somebody in between chooses what the client's answers look like."""
    contexts = b"\0\0\0\4disk\0\0\0\1\0\0\0\x0fbase:allocation"
    async with await TlsPeer.greeted(served) as peer:
        await peer.option(nbd.STRUCTURED_REPLY)
        peer.send(option_bytes(SET_META_CONTEXT, contexts))
        kind = META_CONTEXT
        while kind == META_CONTEXT:
            _, _, kind, length = struct.unpack(">QIII", await peer.receive(20))
            await peer.receive(length)
        await peer.start_tls(trusting)
        info = await peer.go(b"disk")
        assert not int.from_bytes(info[nbd.INFO_EXPORT][8:]) & SEND_DF
        assert await peer.read(0, 512) == bytes(512)  # a simple reply
        with pytest.raises(NbdError, match="22"):
            await peer.ask(nbd.BLOCK_STATUS, 0, 65536)
        await peer.disconnect()


@pytest.mark.parametrize("name", OPTIONS)
async def test_e9_option_in_the_same_segment_as_starttls_closes_without_an_answer(
    served: Serving, name: str
) -> None:
    async with await TlsPeer.greeted(served) as peer:
        peer.send(option_bytes(nbd.STARTTLS) + OPTIONS[name])
        assert await peer.ended() == b""
    await served.check_full_service()


async def test_e9_first_byte_of_anything_behind_starttls_closes(served: Serving) -> None:
    async with await TlsPeer.greeted(served) as peer:
        peer.send(option_bytes(nbd.STARTTLS) + b"\x16")
        assert await peer.ended() == b""
    await served.check_full_service()


@pytest.mark.parametrize("name", OPTIONS)
async def test_e9_option_in_the_clear_after_starttls_is_not_interpreted(
    served: Serving, name: str
) -> None:
    async with await TlsPeer.greeted(served) as peer:
        assert await peer.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
        peer.send(OPTIONS[name])
        assert b"\x00\x03\xe8\x89\x04\x55\x65\xa9" not in await peer.ended()
    await served.check_full_service()


async def test_starttls_inside_tls_is_invalid(served: Serving, trusting: ssl.SSLContext) -> None:
    async with await TlsPeer.encrypted(served, trusting) as peer:
        ((kind, text),) = await peer.option(nbd.STARTTLS)
        assert (kind, text) == (nbd.ERR_INVALID, b"TLS is on already")
        await peer.go(b"disk")
        await peer.disconnect()


# Forced


@pytest.mark.parametrize("name", OPTIONS)
async def test_e10_forced_tls_answers_nothing_else_in_the_clear(
    forcing: Serving, trusting: ssl.SSLContext, name: str
) -> None:
    async with await TlsPeer.greeted(forcing) as peer:
        peer.send(OPTIONS[name])
        ((kind, _),) = await peer.replies(int.from_bytes(OPTIONS[name][8:12]))
        assert kind == ERR_TLS_REQD
        await peer.start_tls(trusting)
        await peer.go(b"disk")
        await peer.disconnect()


@pytest.mark.parametrize("flags", [0, 3])
@pytest.mark.parametrize("name", [b"disk", b"other"])
async def test_e10_forced_tls_closes_on_export_name(
    forcing: Serving, flags: int, name: bytes
) -> None:
    async with await TlsPeer.connect(forcing.port) as peer:
        await peer.greet(flags)
        peer.send(option_bytes(nbd.EXPORT_NAME, name))
        assert await peer.ended() == b""


async def test_e10_forced_tls_serves_no_request_without_a_handshake(forcing: Serving) -> None:
    async with await TlsPeer.greeted(forcing) as peer:
        peer.send(request_bytes(nbd.READ, 0, 512) * 10)
        assert await peer.ended() == b""


async def test_forced_tls_lets_a_client_abort(forcing: Serving) -> None:
    async with await TlsPeer.greeted(forcing) as peer:
        await peer.abort()


@pytest.mark.expects_log("refused '")
async def test_unknown_export_inside_tls_is_plainly_unknown(
    forcing: Serving, trusting: ssl.SSLContext
) -> None:
    async with await TlsPeer.encrypted(forcing, trusting) as peer:
        with pytest.raises(Refused) as refused:
            await peer.go(b"other")
        assert refused.value.kind == nbd.ERR_UNKNOWN


# Exports for TLS only


async def test_e25_export_for_tls_only_is_listed_only_inside(
    selective: Serving, trusting: ssl.SSLContext
) -> None:
    async with await TlsPeer.greeted(selective) as peer:
        assert await peer.option(nbd.LIST) == [(nbd.SERVER, b"\0\0\0\4disk"), (nbd.ACK, b"")]
        await peer.start_tls(trusting)
        names = [data for _, data in await peer.option(nbd.LIST)]
        assert names == [b"\0\0\0\4disk", b"\0\0\0\6secret", b""]
        await peer.go(b"secret")
        await peer.disconnect()


@pytest.mark.parametrize("option", [nbd.INFO, nbd.GO])
@pytest.mark.expects_log("refused '")
async def test_e25_forbidden_and_unknown_exports_give_the_same_answer(
    selective: Serving, option: int
) -> None:
    async with await TlsPeer.greeted(selective) as peer:
        forbidden = await peer.option(option, query_bytes(b"secret"))
        unknown = await peer.option(option, query_bytes(b"tecres"))
        assert forbidden[0][0] == ERR_TLS_REQD
        assert [(kind, text.replace(b"secret", b"tecres")) for kind, text in forbidden] == unknown
        await peer.go(b"disk")
        await peer.disconnect()


@pytest.mark.expects_log("refused '")
@pytest.mark.parametrize("name", [b"secret", b"tecres"])
async def test_e25_forbidden_and_unknown_export_names_close(
    selective: Serving, name: bytes
) -> None:
    async with await TlsPeer.greeted(selective) as peer:
        peer.send(option_bytes(nbd.EXPORT_NAME, name))
        assert await peer.ended() == b""


async def test_only_visible_export_is_the_default_one(selective: Serving) -> None:
    async with await TlsPeer.greeted(selective) as peer:
        items = await peer.go(b"", nbd.INFO_NAME)
        assert items[nbd.INFO_NAME] == b"disk"
        await peer.disconnect()
