# SPDX-License-Identifier: MIT
"""Clients that must show a certificate: who gets in, and who is who (row E26)."""

import logging
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from swiftnbd.server.config import ServerConfig, TcpAddress, TlsConfig
from tests.support import nbd_client as nbd
from tests.support.certificates import CLIENT, SERVER, Authority, Certificates, Pair
from tests.support.gated_store import GatedStore
from tests.support.loopback import Serving, exports_of, serving
from tests.support.nbd_client import Refused
from tests.support.tls_peer import TlsPeer

Making = Callable[[Authority], Pair | None]

STRANGERS: dict[str, tuple[Making, str]] = {
    "none": (lambda authority: None, "peer did not return a certificate"),
    "self-signed": (
        lambda authority: authority.issue("client", CLIENT, self_signed=True),
        "self-signed certificate",
    ),
    "expired": (lambda authority: authority.issue("client", CLIENT, last_day=-1), "expired"),
    "not valid yet": (
        lambda authority: authority.issue("client", CLIENT, first_day=3),
        "not yet valid",
    ),
    "another authority's": (
        lambda authority: Authority("other authority").issue("client", CLIENT),
        "unable to get local issuer certificate",
    ),
    "another authority's, of the same name": (
        lambda authority: Authority().issue("client", CLIENT),
        "unable to get local issuer certificate",
    ),
    "a server's": (lambda authority: authority.issue("client", SERVER), "purpose"),
}


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk")
    await store.set_up()
    return store


def verifying(folder: Path) -> ServerConfig:
    tls = TlsConfig(required=True, certificates=folder, verify_peer=True)
    return ServerConfig((TcpAddress(port=0),), tls=tls)


@pytest.fixture
async def served(store: GatedStore, certificates: Certificates) -> AsyncIterator[Serving]:
    """A server that wants to see certificates."""
    async with serving(*exports_of(store), config=verifying(certificates.server)) as served:
        yield served


@pytest.fixture
def alice(certificates: Certificates) -> ssl.SSLContext:
    return certificates.client_context(certificates.authority.issue("alice", CLIENT))


@pytest.fixture
def bob(certificates: Certificates) -> ssl.SSLContext:
    return certificates.client_context(certificates.authority.issue("bob", CLIENT))


async def attached(served: Serving, context: ssl.SSLContext, source: str = "") -> TlsPeer:
    peer = await TlsPeer.encrypted(served, context, source)
    await peer.go(b"disk")
    return peer


async def list_exports(served: Serving, context: ssl.SSLContext) -> None:
    async with await TlsPeer.encrypted(served, context) as peer:
        # in TLS 1.3 a client learns only with the first answer what the server thinks of it
        await peer.option(nbd.LIST)


async def refused(served: Serving, context: ssl.SSLContext) -> None:
    """The handshake fails with an alert, and nothing is served."""
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await list_exports(served, context)


async def test_client_with_a_certificate_is_served(served: Serving, alice: ssl.SSLContext) -> None:
    async with await attached(served, alice) as peer:
        await peer.write(0, b"verified")
        assert await peer.read(0, 8) == b"verified"
        await peer.disconnect()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("kind", STRANGERS)
async def test_e26_stranger_is_not_served(
    served: Serving,
    certificates: Certificates,
    alice: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    version: str,
) -> None:
    make, reason = STRANGERS[kind]
    stranger = certificates.client_context(make(certificates.authority))
    stranger.maximum_version = ssl.TLSVersion[version]
    with caplog.at_level(logging.INFO, "swiftnbd"):
        await refused(served, stranger)
        await served.idle()
    (line,) = [record for record in caplog.records if "TLS" in record.getMessage()]
    assert line.levelno == logging.INFO
    assert "the TLS handshake failed" in line.getMessage()
    assert reason in line.getMessage()
    async with await attached(served, alice) as peer:
        await peer.disconnect()


async def test_certificate_is_not_asked_for_without_verification(
    store: GatedStore, certificates: Certificates
) -> None:
    tls = TlsConfig(certificates=certificates.server)
    config = ServerConfig((TcpAddress(port=0),), tls=tls)
    stranger = certificates.client_context(Authority("other").issue("client", CLIENT))
    async with (
        serving(*exports_of(store), config=config) as served,
        await attached(served, stranger) as peer,
    ):
        await peer.disconnect()


async def test_revoked_certificate_is_refused(
    store: GatedStore, certificates: Certificates, tmp_path: Path
) -> None:
    authority = certificates.authority
    good, bad = authority.issue("good", CLIENT), authority.issue("bad", CLIENT)
    authority.write(tmp_path)
    authority.issue("localhost", SERVER).write(tmp_path, "server")
    authority.revoke(tmp_path, bad)
    async with serving(*exports_of(store), config=verifying(tmp_path)) as served:
        await refused(served, certificates.client_context(bad))
        async with await attached(served, certificates.client_context(good)) as peer:
            await peer.disconnect()


async def test_outdated_revocation_list_lets_nobody_in(
    store: GatedStore, certificates: Certificates, tmp_path: Path
) -> None:
    authority = certificates.authority
    authority.write(tmp_path)
    authority.issue("localhost", SERVER).write(tmp_path, "server")
    authority.revoke(tmp_path, last_day=-1)
    async with serving(*exports_of(store), config=verifying(tmp_path)) as served:
        await refused(served, certificates.client_context(authority.issue("good", CLIENT)))


# Who is who


async def test_one_certificate_is_one_client_from_wherever_it_connects(
    served: Serving, alice: ssl.SSLContext
) -> None:
    async with (
        await attached(served, alice, "127.0.0.1") as one,
        await attached(served, alice, "127.0.0.2") as two,
    ):
        await one.write(0, b"shared")
        assert await two.read(0, 6) == b"shared"
        await one.disconnect()
        await two.disconnect()


@pytest.mark.expects_log("refused 'disk': disk is in use")
async def test_another_certificate_is_another_client_even_from_the_same_address(
    served: Serving, alice: ssl.SSLContext, bob: ssl.SSLContext
) -> None:
    async with await attached(served, alice) as first:
        async with await TlsPeer.encrypted(served, bob) as second:
            with pytest.raises(Refused) as error:
                await second.go(b"disk")
            assert error.value.kind == nbd.ERR_POLICY
        await first.disconnect()
    await served.idle()
    async with await attached(served, bob) as peer:
        await peer.disconnect()


@pytest.mark.expects_log("refused 'disk': disk is in use")
async def test_same_name_in_another_certificate_is_another_client(
    served: Serving, alice: ssl.SSLContext, certificates: Certificates
) -> None:
    namesake = certificates.client_context(certificates.authority.issue("alice", CLIENT))
    async with await attached(served, alice) as first:
        async with await TlsPeer.encrypted(served, namesake) as second:
            with pytest.raises(Refused):
                await second.go(b"disk")
        await first.disconnect()


@pytest.mark.expects_log("refused 'disk': disk is in use")
async def test_client_without_a_certificate_is_its_address(
    store: GatedStore, certificates: Certificates
) -> None:
    tls = TlsConfig(certificates=certificates.server)
    config = ServerConfig((TcpAddress(port=0),), tls=tls)
    trusting = certificates.client_context()
    async with (
        serving(*exports_of(store), config=config) as served,
        await attached(served, trusting, "127.0.0.1") as first,
    ):
        async with await served.attached(b"disk", "127.0.0.1") as in_the_clear:
            await in_the_clear.disconnect()
        async with await TlsPeer.encrypted(served, trusting, "127.0.0.2") as other:
            with pytest.raises(Refused):
                await other.go(b"disk")
        await first.disconnect()
