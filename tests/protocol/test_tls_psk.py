# SPDX-License-Identifier: MIT
"""Pre-shared keys instead of certificates."""

import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swiftnbd.server.config import ServerConfig, TcpAddress, TlsConfig
from tests.support import nbd_client as nbd
from tests.support.certificates import Certificates, write_private
from tests.support.gated_store import GatedStore
from tests.support.loopback import Serving, exports_of, serving
from tests.support.tls_peer import TlsPeer

if sys.version_info < (3, 13):
    pytest.skip("ssl has pre-shared keys from Python 3.13 on", allow_module_level=True)

ALICE, BOB = bytes(range(16)), bytes(range(16, 48))
VERSIONS = ["TLSv1_2", "TLSv1_3"]


def client(username: str, key: bytes, version: str = "TLSv1_3") -> ssl.SSLContext:
    """A client that knows one key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("PSK")
    context.set_psk_client_callback(lambda hint: (username, key))
    return context


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.psk"
    write_private(path, f"alice:{ALICE.hex()}\nbob:{BOB.hex()}\n".encode())
    return path


@pytest.fixture
async def store() -> GatedStore:
    store = GatedStore("disk")
    await store.set_up()
    return store


@pytest.fixture
async def served(store: GatedStore, keys: Path) -> AsyncIterator[Serving]:
    config = ServerConfig((TcpAddress(port=0),), tls=TlsConfig(required=True, psk_file=keys))
    async with serving(*exports_of(store), config=config) as served:
        yield served


async def use(served: Serving, context: ssl.SSLContext) -> None:
    """Be served, or raise what TLS says."""
    async with await TlsPeer.encrypted(served, context) as peer:
        await peer.go(b"disk")
        await peer.write(0, b"shared")
        assert await peer.read(0, 6) == b"shared"
        await peer.disconnect()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("username", "key"),
    [pytest.param("alice", ALICE, id="alice"), pytest.param("bob", BOB, id="bob")],
)
async def test_client_with_a_key_is_served(
    served: Serving, username: str, key: bytes, version: str
) -> None:
    await use(served, client(username, key, version))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("username", "key"),
    [("alice", BOB), ("alice", ALICE + b"\0"), ("carol", ALICE), ("", ALICE), ("alic", ALICE)],
)
async def test_wrong_key_or_name_is_refused(
    served: Serving, username: str, key: bytes, version: str
) -> None:
    with pytest.raises((ssl.SSLError, EOFError)):
        await use(served, client(username, key, version))
    await use(served, client("alice", ALICE))


async def test_keys_alone_make_no_server_for_certificates(
    served: Serving, certificates: Certificates
) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await use(served, certificates.client_context())


async def test_old_kind_of_key_exchange_without_secrecy_for_the_past_is_refused(
    served: Serving,
) -> None:
    context = client("alice", ALICE, "TLSv1_2")
    context.set_ciphers("kPSK")
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await use(served, context)


async def test_keys_and_certificates_may_be_offered_at_once(
    store: GatedStore, keys: Path, certificates: Certificates
) -> None:
    tls = TlsConfig(certificates=certificates.server, psk_file=keys)
    config = ServerConfig((TcpAddress(port=0),), tls=tls)
    async with serving(*exports_of(store), config=config) as served:
        await use(served, client("alice", ALICE))
        await use(served, certificates.client_context())


async def test_client_with_a_key_is_its_address(served: Serving) -> None:
    async with await TlsPeer.encrypted(served, client("alice", ALICE)) as first:
        await first.go(b"disk")
        async with await TlsPeer.encrypted(served, client("bob", BOB)) as second:
            assert nbd.INFO_EXPORT in await second.go(b"disk")
            await second.disconnect()
        await first.disconnect()
