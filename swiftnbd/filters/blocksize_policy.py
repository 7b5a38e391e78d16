# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter blocksize-policy PLUGIN blocksize-preferred=64K``"""

from dataclasses import dataclass
from enum import StrEnum

from swiftnbd.api import (
    SIZE,
    ConfigError,
    Device,
    Filter,
    FilterPlugin,
    Opening,
    Profile,
    choice,
    parameter,
)


class Policy(StrEnum):
    """What becomes of requests that do not keep to what was told."""

    ALLOW = "allow"
    ERROR = "error"


@dataclass(frozen=True)
class BlocksizePolicy(FilterPlugin):
    """Tells clients block sizes, and may insist on them.

    What is not given is what the device says.
    """

    blocksize_error_policy: Policy = parameter(
        choice(Policy), "What becomes of other requests.", default=Policy.ALLOW
    )
    blocksize_minimum: int | None = parameter(
        SIZE, "What requests are to be multiples of.", default=None
    )
    blocksize_preferred: int | None = parameter(SIZE, "The best size.", default=None)
    blocksize_maximum: int | None = parameter(SIZE, "The largest read or write.", default=None)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        least, best, most = Profile.of(device).told
        if self.blocksize_minimum is not None:
            least = self.blocksize_minimum
        if self.blocksize_maximum is not None:
            most = self.blocksize_maximum
        if self.blocksize_preferred is not None:
            best = self.blocksize_preferred
        else:
            best = min(max(best, least), most)
        if least < device.block_size_min or most > device.block_size_max:
            raise ConfigError(
                f"the device takes blocks of {device.block_size_min} to {device.block_size_max} "
                f"bytes, not of {least} to {most}"
            )
        filter = BlocksizeFilter(device)
        filter.block_sizes_told = None
        filter.block_size_min, filter.block_size, filter.block_size_max = least, best, most
        Profile.of(filter)  # whether that can be
        if self.blocksize_error_policy is Policy.ALLOW:
            filter.block_sizes_told = (least, best, most)
            filter.block_size_min = device.block_size_min
            filter.block_size_max = device.block_size_max
        return filter


class BlocksizeFilter(Filter):
    """Changes nothing but what is said of it."""
