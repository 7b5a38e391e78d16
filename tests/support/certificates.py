# SPDX-License-Identifier: MIT
"""Certificates made for a test: an authority, and what it signs."""

import datetime
import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM
_DAY = datetime.timedelta(days=1)

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def write_private(path: Path, data: bytes) -> None:
    """A file that only we can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, folder: Path, kind: str) -> None:
        """``kind`` is "server" or "client": nbdkit's and qemu's names."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}-cert.pem").write_bytes(self.certificate.public_bytes(_PEM))
        write_private(folder / f"{kind}-key.pem", self.key_bytes())

    def key_bytes(self, password: bytes = b"") -> bytes:
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            encryption = serialization.BestAvailableEncryption(password)
        return self.key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, encryption)


class Authority:
    """A CA of its own."""

    def __init__(self, common: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name(common)
        builder = _builder(self.name, self.name, self._key, self._key, 0, 30)
        self.certificate = (
            builder.add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(
                x509.KeyUsage(False, False, False, False, False, True, True, False, False),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )

    def write(self, folder: Path) -> None:
        """Its certificate, as ca-cert.pem."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca-cert.pem").write_bytes(self.certificate.public_bytes(_PEM))

    def issue(
        self,
        common: str,
        usage: x509.ObjectIdentifier,
        *,
        first_day: int = -1,
        last_day: int = 30,
        self_signed: bool = False,
    ) -> Pair:
        """A certificate; days count from today."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = _name(common) if self_signed else self.name
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        signer = key if self_signed else self._key
        builder = _builder(_name(common), issuer, key, signer, first_day, last_day)
        certificate = (
            builder.add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(signer, hashes.SHA256())
        )
        return Pair(certificate, key)

    def revoke(self, folder: Path, *pairs: Pair, last_day: int = 30) -> None:
        """Write ca-crl.pem, which revokes these."""
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - 2 * _DAY)
            .next_update(now + last_day * _DAY)
        )
        for pair in pairs:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(pair.certificate.serial_number)
                .revocation_date(now - _DAY)
                .build()
            )
        revocations = builder.sign(self._key, hashes.SHA256())
        (folder / "ca-crl.pem").write_bytes(revocations.public_bytes(_PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    first_day: int,
    last_day: int,
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + first_day * _DAY - _DAY)
        .not_valid_after(now + last_day * _DAY)
        # which Python 3.13's clients want to see
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )


@dataclass(frozen=True)
class Certificates:
    """An authority, a folder for a server and one for a client."""

    authority: Authority
    server: Path
    client: Path

    @classmethod
    def make(cls, folder: Path) -> "Certificates":
        """Everything valid."""
        authority = Authority()
        found = cls(authority, folder / "server", folder / "client")
        for path in (found.server, found.client):
            authority.write(path)
        authority.issue("localhost", SERVER).write(found.server, "server")
        authority.issue("client", CLIENT).write(found.client, "client")
        return found

    def client_context(self, pair: Pair | None = None) -> ssl.SSLContext:
        """A client that checks the server; ``pair`` is its own certificate."""
        context = ssl.create_default_context(cafile=self.server / "ca-cert.pem")
        context.check_hostname = False
        if pair is not None:
            pair.write(self.client, "other")
            context.load_cert_chain(self.client / "other-cert.pem", self.client / "other-key.pem")
        return context
