# SPDX-License-Identifier: MIT
"""What clients are told of a device."""

from dataclasses import dataclass, fields
from typing import Self

from swiftnbd.api.device import BLOCK_SIZE_DEFAULT, PAYLOAD_BYTES_MAX, Device
from swiftnbd.errors import ExportUnusable

_BLOCK_SIZE_MIN_MAX = 64 * 1024  # "between 1 and 64k": NBD, "Block size constraints"
_SIZE_MAX = (1 << 63) - 1  # off_t: no client goes further
_WHY_NOT = " (a filter gets that by super().__init__(device))"


@dataclass(frozen=True, slots=True)
class Profile:
    """Attributes of a `Device`, as they are described there."""

    size: int
    block_size: int = BLOCK_SIZE_DEFAULT
    block_size_min: int = 1
    block_size_max: int = PAYLOAD_BYTES_MAX
    block_sizes_told: tuple[int, int, int] | None = None
    read_only: bool = False
    can_flush: bool = True
    can_fua: bool | None = True
    can_trim: bool = True
    can_prefetch: bool = True
    can_zero: bool = True
    can_fast_zero: bool = True
    multi_conn: bool | None = True
    is_rotational: bool = False
    description: str = ""

    @classmethod
    def of(cls, device: Device) -> Self:
        """What a device says of itself. Raises `ExportUnusable` for what no device can be."""
        if not isinstance(device, Device):
            raise ExportUnusable(f"a plugin or filter made a {type(device).__name__}, not a Device")
        for each in fields(cls):
            if not hasattr(device, each.name):
                raise ExportUnusable(f"{type(device).__name__} has no {each.name}{_WHY_NOT}")
        profile = cls(**{each.name: getattr(device, each.name) for each in fields(cls)})
        try:
            profile._check()
        except ExportUnusable as error:
            raise ExportUnusable(f"{type(device).__name__}: {error}") from None
        return profile

    @property
    def told(self) -> tuple[int, int, int]:
        """The least, the best and the largest block size for clients."""
        return self.block_sizes_told or (self.block_size_min, self.block_size, self.block_size_max)

    def _check(self) -> None:
        for name in ("size", "block_size", "block_size_min", "block_size_max"):
            found = getattr(self, name)
            if not isinstance(found, int) or isinstance(found, bool):
                raise ExportUnusable(f"its {name} is {found!r:.40}, and has to be an int of bytes")
        if not isinstance(self.description, str):
            raise ExportUnusable(f"its description is {self.description!r:.40}, and no str")
        least, best, most = self.block_size_min, self.block_size, self.block_size_max
        for name, is_possible in {
            "block_size_min": _is_power_of_two(least) and least <= _BLOCK_SIZE_MIN_MAX,
            "size": 0 <= self.size <= _SIZE_MAX,
            "block_size": _is_power_of_two(best) and least <= best,
            "block_size_max": best <= most <= PAYLOAD_BYTES_MAX,
        }.items():
            if not is_possible or (name != "block_size_min" and getattr(self, name) % least):
                raise ExportUnusable(
                    f"a device with a {name} of {getattr(self, name)} bytes cannot be served "
                    f"(size {self.size}, block sizes {least}, {best} and {most})"
                )


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)
