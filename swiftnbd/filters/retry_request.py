# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter retry-request PLUGIN retry-request-delay=1``"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from errno import EINVAL, ENOTSUP, EPERM, EROFS, ESHUTDOWN
from typing import Final, TypeVar

from swiftnbd.api import (
    SECONDS,
    Buffer,
    Device,
    FilterPlugin,
    Opening,
    SwiftnbdError,
    integer,
    parameter,
)
from swiftnbd.api.around import Around, Call
from swiftnbd.api.ending import ENDING

T = TypeVar("T")

RETRIES_MAX: Final = 1000  # a client must have its answer some day
_FINAL: Final = (EINVAL, ENOTSUP, EPERM, EROFS, ESHUTDOWN)  # said on purpose; time changes nothing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryRequest(FilterPlugin):
    """Has the device do again what it failed to do.

    When the server ends, there is one more try, and no waiting.
    """

    retry_request_retries: int = parameter(
        integer(0, RETRIES_MAX), "How often again, at most.", default=2
    )
    retry_request_delay: float = parameter(SECONDS, "The time before.", default=2.0)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return RetryFilter(device, self.retry_request_retries, self.retry_request_delay)


class RetryFilter(Around):
    """What fails for good fails with the last error."""

    def __init__(self, device: Device, retries: int, seconds: float) -> None:
        super().__init__(device)
        self._retries, self._seconds = retries, seconds

    def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
        return self.device.read_now(offset, length)  # which cannot fail

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self.device.write_now(offset, data)

    async def around(self, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        for left in range(self._retries, 0, -1):
            try:
                return await work()
            except (SwiftnbdError, OSError) as error:
                if error.errno in _FINAL:
                    raise
                log.info(
                    "%s %d+%d failed, %d tries are left: %s",
                    call.name, call.offset, call.length, left, error,
                )  # fmt: skip
            await ENDING.sleep(self._seconds)
            if ENDING.has_begun:
                break
        return await work()
