# SPDX-License-Identifier: MIT
"""TLS on the NBD side: from files to a context, and who a client with a certificate is.

The files of ``--tls-certificates`` have the names that nbdkit and qemu use; a file of
``--tls-psk`` is what GnuTLS's psktool writes. Keys never appear in a message.
"""

import hashlib
import logging
import os
import ssl
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swiftnbd.errors import ConfigError
from swiftnbd.protocol.handshake import Tls
from swiftnbd.server.config import TlsConfig
from swiftnbd.server.tls_transport import TlsTransport

CA_CERTIFICATE, CA_REVOCATIONS = "ca-cert.pem", "ca-crl.pem"
CERTIFICATE, KEY = "server-cert.pem", "server-key.pem"
PEM_BYTES_MAX = 16 * 1024 * 1024  # a revocation list may be long; /dev/zero is longer
PSK_BYTES_MAX = 1024 * 1024
PSK_KEY_BYTES_MIN = 16  # 128 bits

_PSK_CIPHERS = ("kECDHEPSK+CHACHA20", "kECDHEPSK+AES")  # of TLS 1.2; those of 1.3 are there

# What names of certificates are made of: RFC 4514, 3
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Ready to be used by every connection."""

    mode: Tls
    context: ssl.SSLContext


def server_tls(config: TlsConfig) -> ServerTls:
    """Read all files, and try out what they give. Raises `ConfigError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Every connection proves anew who it is: a resumed one would be asked for no certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    if config.certificates is not None:
        _use_certificate(context, config.certificates)
        if config.verify_peer:
            _verify_clients(context, config.certificates)
    elif config.verify_peer:
        raise ConfigError("--tls-verify-peer needs the CA's certificate: name its folder with "
                          "--tls-certificates")  # fmt: skip
    if config.psk_file is not None:
        _use_psk(context, config.psk_file)
    return ServerTls(Tls.REQUIRED if config.required else Tls.OFFERED, context)


def identity_of(transport: TlsTransport) -> str | None:
    """Who is at the other end, if a verified certificate says so.

    The certificate as a whole counts, not its subject: a CA may give out the same subject twice,
    and taking two machines for one would let them write to one disk.
    """
    certificate = transport.peer_certificate
    if certificate is None:
        return None
    return f"certificate {hashlib.sha256(certificate).hexdigest()}"


def certificate_names(transport: TlsTransport) -> tuple[str, str]:
    """Subject and issuer of the other end's verified certificate; '' without one."""
    names = transport.peer_names
    return distinguished_name(names.get("subject", ())), distinguished_name(names.get("issuer", ()))


def distinguished_name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    """The text of a name as `ssl.SSLSocket.getpeercert` gives it: RFC 4514, the last part first."""
    return ",".join(
        "+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part)
        for part in reversed(list(parts))
    )


def _escaped(value: str) -> str:
    """RFC 4514, 2.4."""
    text = "".join(f"\\{each}" if each in '"+,;<>\\' else each for each in value)
    text = text.replace("\0", "\\00")
    if text[:1] in ("#", " "):
        text = f"\\{text}"
    return f"{text[:-1]}\\ " if text[-1:] == " " and len(text) > 2 else text


# Certificates


def _use_certificate(context: ssl.SSLContext, folder: Path) -> None:
    certificate, key = folder / CERTIFICATE, folder / KEY
    for path in (certificate, key):
        _check_readable(path)
    _warn_if_exposed(key)
    try:
        # no password, so an encrypted key does not ask on the terminal
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key} is not the key of {certificate}") from None
        raise ConfigError(
            f"{certificate} or {key} cannot be used (both have to be PEM, the key unencrypted): "
            f"{_reason(error)}"
        ) from None
    _try_out(context, certificate)


def _verify_clients(context: ssl.SSLContext, folder: Path) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    _load_authority(context, folder / CA_CERTIFICATE)
    revocations = folder / CA_REVOCATIONS
    if revocations.exists():
        _load_authority(context, revocations)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _load_authority(context: ssl.SSLContext, path: Path) -> None:
    _check_readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"{path} cannot be used: {_reason(error)}") from None


def _try_out(context: ssl.SSLContext, certificate: Path) -> None:
    """Be a client that trusts just this certificate: is it valid today, and a server's?"""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        for side in tuple(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                raise ConfigError(f"{certificate} is of no use: {_reason(error)}") from None


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or "it is no PEM file").replace("_", " ").lower()


# Pre-shared keys


def _use_psk(context: ssl.SSLContext, path: Path) -> None:
    if sys.version_info < (3, 13) or not ssl.HAS_PSK:
        raise ConfigError(
            f"--tls-psk needs Python 3.13 or newer, this is {sys.version.split()[0]}: "
            "use --tls-certificates"
        )
    keys = load_psk_keys(path)
    ciphers = [cipher["name"] for cipher in context.get_ciphers()]
    context.set_ciphers(":".join([*ciphers, *_PSK_CIPHERS]))
    context.set_psk_server_callback(lambda username: keys.get(username or "", b""))


def load_psk_keys(path: Path) -> dict[str, bytes]:
    """Keys by username, from lines ``username:hexkey``. Raises `ConfigError`."""
    _check_readable(path)
    _warn_if_exposed(path)
    with path.open("rb") as file:
        data = file.read(PSK_BYTES_MAX + 1)
    if len(data) > PSK_BYTES_MAX:
        raise ConfigError(f"{path} is too large for a file of keys")
    keys: dict[str, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        username, key = _parse_psk(path, number, line)
        if username in keys:
            raise ConfigError(f"{path}, line {number}: {username!r} has a key already")
        keys[username] = key
    if not keys:
        raise ConfigError(f"{path} holds no key: make one with psktool -u USERNAME -p {path}")
    return keys


def _parse_psk(path: Path, number: int, line: bytes) -> tuple[str, bytes]:
    username, separator, key = line.rpartition(b":")
    if not separator or not username or username.startswith(b"#"):
        raise ConfigError(f"{path}, line {number} is not USERNAME:KEY in hexadecimal")
    try:
        found = username.decode(), bytes.fromhex(key.decode())
    except ValueError:
        raise ConfigError(f"{path}, line {number} is not USERNAME:KEY in hexadecimal") from None
    if len(found[1]) < PSK_KEY_BYTES_MIN:
        raise ConfigError(
            f"{path}, line {number}: a key has to have at least {PSK_KEY_BYTES_MIN} bytes"
        )
    return found


# Files


def _check_readable(path: Path) -> None:
    """Be sure that it is a file of sane size that we may read; OpenSSL tells neither."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode) or status.st_size > PEM_BYTES_MAX:
        raise ConfigError(f"{path} is not an ordinary file of less than {PEM_BYTES_MAX} bytes")


def _warn_if_exposed(path: Path) -> None:
    if path.stat().st_mode & stat.S_IROTH:
        log.warning("%s holds a secret key and everybody can read it: chmod 600 %s", path, path)
