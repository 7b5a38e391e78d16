# SPDX-License-Identifier: MIT
"""``swiftnbd-server data '0 1 2 3 @0x1fe 0x55 0xaa'``"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass

from swiftnbd.api import (
    SIZE,
    TEXT,
    ConfigError,
    Device,
    Opening,
    Plugin,
    other_keys,
    parameter,
)
from swiftnbd.api.threads import Threads
from swiftnbd.plugins.data.image import Image
from swiftnbd.plugins.data.language import parse, unknown
from swiftnbd.plugins.memory import MemoryDevice


@dataclass(frozen=True)
class Data(Plugin):
    """A small disk that is written down where it is asked for. It can be changed, until the end.

    One of data, raw and base64 has to be given. In data, a list of bytes ("1 0x02 \\"text\\" <FILE
    le32:7"), @512 moves to an offset, *9 repeats, and so on.
    """

    data: str | None = parameter(TEXT, "What is on it, in a little language.", default=None,
                                 main=True)  # fmt: skip
    raw: str | None = parameter(TEXT, "What is on it, as it is.", default=None)
    base64: str | None = parameter(TEXT, "What is on it, in base64.", default=None)
    size: int | None = parameter(
        SIZE, "How large it is; what it is too short for is cut off.", default=None
    )
    variables: tuple[tuple[str, str], ...] = other_keys("What $KEY is in data.")

    def __post_init__(self) -> None:
        self._source()

    def _source(self) -> Callable[[], Image]:
        """What makes it; all that can be said without reading files is wrong is said."""
        if sum(text is not None for text in (self.data, self.raw, self.base64)) != 1:
            raise ConfigError("give just one of data, raw and base64")
        others = dict(self.variables)
        if self.data is not None:
            return parse(self.data, others)
        if others:
            raise unknown(next(iter(others)))
        if self.raw is not None:
            image = Image(self.raw.encode("utf-8", "surrogateescape"))
        else:
            try:
                image = Image(base64.b64decode(self.base64 or "", validate=True))
            except binascii.Error as error:
                raise ConfigError(f"base64: {error}") from None
        return lambda: image

    async def open(self, opening: Opening) -> Device:
        threads = Threads(1, "data")  # a file may be slow
        try:
            return await threads.call(_device, self._source(), self.size)
        finally:
            threads.stop()


def _device(source: Callable[[], Image], size: int | None) -> MemoryDevice:
    image = source()
    device = MemoryDevice(image.length if size is None else size)
    for at, piece in image:
        if part := piece[: max(0, device.size - at)]:
            device.write_now(at, part)
    return device
