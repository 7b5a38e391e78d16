# SPDX-License-Identifier: MIT
"""TLS on a real connection (rows A9, E8 to E10, E21, E25, E27)."""

import ssl
from collections.abc import AsyncIterator

import pytest

from swiftnbd.server.config import ServerConfig, TcpAddress, TlsConfig
from tests.support.certificates import Certificates
from tests.support.gated_store import GatedStore
from tests.support.loopback import Serving, exports_of, serving
from tests.support.tls_peer import TlsPeer

ERR_TLS_REQD = 0x80000005


def listening(tls: TlsConfig) -> ServerConfig:
    return ServerConfig((TcpAddress(port=0),), tls=tls)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def trusting(certificates: Certificates) -> ssl.SSLContext:
    return certificates.client_context()


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk")
    await store.set_up()
    return store


@pytest.fixture
async def served(store: GatedStore, certificates: Certificates) -> AsyncIterator[Serving]:
    """A server that offers TLS."""
    tls = TlsConfig(certificates=certificates.server)
    async with serving(*exports_of(store), config=listening(tls)) as served:
        yield served


@pytest.fixture
async def forced(store: GatedStore, certificates: Certificates) -> AsyncIterator[Serving]:
    """A server that demands TLS."""
    tls = TlsConfig(required=True, certificates=certificates.server)
    async with serving(*exports_of(store), config=listening(tls)) as served:
        yield served


async def test_disk_is_served_inside_tls(served: Serving, trusting: ssl.SSLContext) -> None:
    async with await TlsPeer.encrypted(served, trusting) as peer:
        assert peer.session.version() == "TLSv1.3"
        await peer.go(b"disk")
        data = bytes(range(256)) * 2048
        await peer.write(4096, data)
        assert await peer.read(4096, len(data)) == data
        await peer.flush()
        await peer.disconnect()
    await served.check_full_service()
