# SPDX-License-Identifier: MIT
"""A TLS 1.3 client whose records are made by hand (RFC 8446, sections 5 and 7)."""

import hashlib
import hmac
import ssl
import tempfile

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tests.support.tls_peer import TlsPeer

_HANDSHAKE, _APPLICATION_DATA = b"\x16", b"\x17"
_KEY_UPDATE_REQUESTED = b"\x18\0\0\1\1"
_RECORD_BYTES_MAX = 1 << 14


class RecordsPeer(TlsPeer):
    """What it sends in transmission and before is cut into records as the test likes."""

    async def shake_hands(self, context: ssl.SSLContext) -> None:
        with tempfile.NamedTemporaryFile() as log:
            context.keylog_filename = log.name
            await super().shake_hands(context)
            context.keylog_filename = None  # type: ignore[assignment]
            lines = log.read().decode().splitlines()
        (secret,) = (line for line in lines if line.startswith("CLIENT_TRAFFIC_SECRET_0 "))
        cipher = self.session.cipher()
        assert cipher is not None
        self._algorithm = "sha384" if "SHA384" in cipher[0] else "sha256"
        self._chacha, self._key_bytes = "CHACHA" in cipher[0], cipher[2] // 8
        self._use(bytes.fromhex(secret.rpartition(" ")[2]))

    def _use(self, secret: bytes) -> None:
        key = self._expand(secret, b"key", self._key_bytes)
        self._aead = ChaCha20Poly1305(key) if self._chacha else AESGCM(key)
        self._nonce, self._secret, self._count = self._expand(secret, b"iv", 12), secret, 0

    def _expand(self, secret: bytes, label: bytes, length: int) -> bytes:
        """HKDF-Expand-Label for what is no longer than one hash."""
        label = b"tls13 " + label
        info = length.to_bytes(2) + bytes([len(label)]) + label + b"\0\1"
        return hmac.digest(secret, info, self._algorithm)[:length]

    def _record(self, kind: bytes, content: bytes) -> bytes:
        header = b"\x17\3\3" + (len(content) + 17).to_bytes(2)
        nonce = (int.from_bytes(self._nonce) ^ self._count).to_bytes(12)
        self._count += 1
        return header + self._aead.encrypt(nonce, content + kind, header)

    def encrypt(self, *data: bytes, record: int = _RECORD_BYTES_MAX) -> bytes:
        """In records of so many bytes."""
        whole = b"".join(data)
        pieces = [whole[at : at + record] for at in range(0, len(whole), record)]
        return b"".join(self._record(_APPLICATION_DATA, piece) for piece in pieces)

    def key_updates(self, count: int) -> bytes:
        """New keys so many times, each time asking for the same."""
        records = []
        for _ in range(count):
            records.append(self._record(_HANDSHAKE, _KEY_UPDATE_REQUESTED))
            length = hashlib.new(self._algorithm).digest_size
            self._use(self._expand(self._secret, b"traffic upd", length))
        return b"".join(records)
