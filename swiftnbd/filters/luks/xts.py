# SPDX-License-Identifier: MIT
"""AES in XTS mode, sector by sector, as dm-crypt's ``aes-xts-plain64`` does it."""

from typing import Final

from swiftnbd.buffers import Buffer
from swiftnbd.errors import ConfigError, ExportUnusable

SECTOR_BYTES: Final = 512


class Xts:
    """A key of 32 or 64 bytes. Sectors are numbered; data is whole sectors, any number of them.

    The library makes one context for each sector, which takes four times as long as AES itself:
    4 to 9 us. It lets no other thread run meanwhile, so threads would gain nothing. Tweaks of our
    own over AES-ECB, with large ints for XOR, were 1.4 times as fast at 64 KiB and slower below
    16 KiB, which is not worth a cipher mode of our own.
    """

    def __init__(self, key: bytes) -> None:
        """Raises `ExportUnusable` for a key that XTS must not be used with."""
        try:  # late: it takes a while, and who does not encrypt need not have it
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        except ImportError:
            raise ConfigError(
                "luks needs cryptography: pip install 'swiftnbd[encryption]'"
            ) from None
        half = len(key) // 2
        if key[:half] == key[half:]:
            raise ExportUnusable("luks: its key is two times the same, which keeps nothing secret")
        self._aes = algorithms.AES(key)
        self._cipher, self._mode = Cipher, modes.XTS

    def encrypt(self, sector: int, data: Buffer) -> bytes:
        """``data``, which begins at a sector of this number."""
        aes, cipher, mode = self._aes, self._cipher, self._mode
        view = memoryview(data)
        return b"".join(
            [
                cipher(aes, mode(number.to_bytes(16, "little")))
                .encryptor()
                .update(view[start : start + SECTOR_BYTES])
                for number, start in enumerate(range(0, len(view), SECTOR_BYTES), sector)
            ]
        )

    def decrypt(self, sector: int, data: Buffer) -> bytes:
        """The reverse of `encrypt`."""
        aes, cipher, mode = self._aes, self._cipher, self._mode
        view = memoryview(data)
        return b"".join(
            [
                cipher(aes, mode(number.to_bytes(16, "little")))
                .decryptor()
                .update(view[start : start + SECTOR_BYTES])
                for number, start in enumerate(range(0, len(view), SECTOR_BYTES), sector)
            ]
        )
