# SPDX-License-Identifier: MIT
"""The interface of plugins and filters: what a device says, and what a filter passes on."""

from collections.abc import Sequence
from dataclasses import fields
from errno import ENOTSUP, EPERM

import pytest

from swiftnbd import api
from swiftnbd.api import Buffer, Device, ExportError, Extent, Filter, Profile, is_hole
from swiftnbd.errors import ExportUnusable
from tests.support.byte_device import BLOCK, ByteDevice


class Least(Device):
    """What a device must have."""

    size = 1000

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return (b"r" * length,)


class Writable(Least):
    size = 3 << 20

    def __init__(self) -> None:
        self.written: list[tuple[int, Buffer]] = []

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.written.append((offset, data))


class Whole(Writable):
    async def flush(self) -> None:
        pass

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        pass

    async def prefetch(self, offset: int, length: int) -> None:
        pass


def test_profile_has_the_attributes_of_a_device() -> None:
    assert {each.name for each in fields(Profile)} == set(Device.__annotations__)


async def test_least_device_is_read_only_and_says_what_is_always_true() -> None:
    least = Least()
    profile = Profile.of(least)
    assert profile.read_only
    assert not any((profile.can_flush, profile.can_trim, profile.can_prefetch, profile.can_fua))
    assert least.read_now(0, 1) is None
    assert not least.write_now(0, b"x")
    assert await least.extents(5, 7, count=1) == [Extent(7, hole=False, zero=False)]
    with pytest.raises(ExportError) as caught:
        await least.write(0, b"x")
    assert caught.value.errno == EPERM


def test_methods_that_a_class_has_say_what_it_can() -> None:
    assert not Profile.of(Writable()).read_only
    whole = Profile.of(Whole())
    assert whole.can_flush
    assert whole.can_trim
    assert whole.can_prefetch
    assert not whole.can_fua  # which only the class can say


def test_class_that_says_what_it_cannot_is_believed() -> None:
    class Frozen(Whole):
        read_only = True
        can_trim = False

        async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
            raise AssertionError

    assert Profile.of(Frozen()).read_only
    assert not Profile.of(Frozen()).can_trim


async def test_zeros_are_written_where_there_is_no_other_way() -> None:
    device = Writable()
    await device.zero(10, (2 << 20) + 5)
    assert [(offset, len(data)) for offset, data in device.written] == [
        (10, 1 << 20), (10 + (1 << 20), 1 << 20), (10 + (2 << 20), 5),
    ]  # fmt: skip
    assert all(is_hole(data) for _, data in device.written)
    with pytest.raises(ExportError) as caught:
        await device.zero(0, 1, fast=True)
    assert caught.value.errno == ENOTSUP


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"size": -1}, "size of -1 bytes"),
        ({"block_size": 3000}, "block_size of 3000 bytes"),
        ({"block_size_min": 0}, "block_size_min of 0 bytes"),
        ({"block_size_min": 1 << 17, "block_size": 1 << 17}, "block_size_min of 131072"),
        ({"block_size_min": 8192, "size": 8192}, "block_size of 4096"),
        ({"block_size_max": 1024}, "block_size_max of 1024"),
        ({"block_size_max": 1 << 30}, "block_size_max of 1073741824"),
        ({"block_size_min": 512, "block_size_max": 5000, "size": 512}, "block_size_max of 5000"),
        ({"block_size_min": 512}, "size of 1000 bytes"),
    ],
)
def test_impossible_device_is_not_served(wrong: dict[str, int], text: str) -> None:
    device = Least()
    vars(device).update(wrong)
    with pytest.raises(ExportUnusable, match=text):
        Profile.of(device)


# Filters


class Through(Filter):
    """Changes nothing."""


class Inverted(Filter):
    """All bits the other way round, and nothing but that said."""

    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        pieces = await self.device.read(offset, length)
        return [bytes(byte ^ 255 for byte in bytes(piece)) for piece in pieces]

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self.device.write(offset, bytes(byte ^ 255 for byte in bytes(data)))


async def test_filter_without_methods_costs_nothing_and_passes_all_on() -> None:
    device = ByteDevice()
    through = Through(Through(device))
    assert through.read_now == device.read_now
    assert through.write_now == device.write_now
    assert (through.read_soon, through.write_soon) == (device.read_soon, device.write_soon)
    assert Profile.of(through) == Profile.of(device)
    await through.write(0, b"abc", fua=True)
    await through.zero(0, 10, no_hole=True, fast=True)
    await through.trim(0, BLOCK, fua=True)
    await through.flush()
    await through.prefetch(0, 1)
    assert await through.extents(0, 2 * BLOCK, count=9) == await device.extents(
        0, 2 * BLOCK, count=9
    )
    await through.close()
    assert [method for method, _, _ in device.calls] == [
        "write fua", "zero no_hole fast", "trim fua", "flush", "prefetch", "extents", "extents",
        "close",
    ]  # fmt: skip


async def test_filter_that_reads_and_writes_otherwise_lets_nothing_go_past_it() -> None:
    device = ByteDevice()
    inverted = Inverted(device)
    assert inverted.read_now(0, 10) is None
    assert not inverted.write_now(0, b"x")
    assert (type(inverted).read_soon, type(inverted).write_soon) == (
        Device.read_soon, Device.write_soon
    )  # fmt: skip
    await inverted.zero(0, 10)
    assert device.image()[:10] == b"\xff" * 10
    assert b"".join(await inverted.read(0, 10)) == bytes(10)
    assert await inverted.extents(0, BLOCK, count=9) == [Extent(BLOCK, hole=False, zero=False)]
    await inverted.trim(0, BLOCK)
    await inverted.prefetch(0, BLOCK)
    assert {method for method, _, _ in device.calls} == {"write", "read"}
    profile = Profile.of(inverted)
    assert not any((profile.can_trim, profile.can_prefetch, profile.can_fast_zero))
    assert profile.can_flush


def test_filter_says_what_differs_by_its_class_or_when_it_is_made() -> None:
    class Protected(Filter):
        read_only = True

        def __init__(self, device: Device) -> None:
            super().__init__(device)
            self.size = device.size // 2

    protected = Through(Protected(ByteDevice(4)))
    assert protected.read_only
    assert protected.size == 2 * BLOCK
    assert not Through(ByteDevice()).read_only


async def test_filter_whose_methods_take_no_flags_is_not_given_them() -> None:
    class Plain(Filter):
        async def write(self, offset: int, data: Buffer) -> None:  # type: ignore[override]
            await self.device.write(offset, data)

        async def zero(self, offset: int, length: int, *, no_hole: bool = False) -> None:  # type: ignore[override]
            await self.device.zero(offset, length)

    class OfThat(Plain):
        pass

    class Says(Plain):
        can_fua = None

    class Takes(Filter):
        async def trim(self, offset: int, length: int, **options: bool) -> None:
            await self.device.trim(offset, length, **options)

    device = ByteDevice()
    for kind, fua, fast in (
        (Plain, False, False),
        (OfThat, False, False),
        (Says, None, False),
        (Takes, True, True),
    ):
        assert (kind(device).can_fua, kind(device).can_fast_zero) == (fua, fast)


def test_filter_of_a_filter_keeps_what_its_base_changed() -> None:
    class Named(Inverted):
        description = "inverted"

    named = Named(ByteDevice())
    assert named.read_now(0, 10) is None
    assert named.description == "inverted"


async def test_filter_that_counts_reads_at_once_still_reads() -> None:
    class Counting(Filter):
        count = 0

        def read_now(self, offset: int, length: int) -> Sequence[Buffer] | None:
            self.count += 1
            return super().read_now(offset, length)

    counting = Counting(ByteDevice())
    assert counting.read_now(0, 10) is not None
    assert counting.count == 1
    assert counting.write_now(0, b"x")


def test_device_that_is_spent_is_so_through_filters() -> None:
    class Worn(Least):
        worn = False

        @property
        def is_spent(self) -> bool:
            return self.worn

    device = Worn()
    top = Filter(Filter(device))
    assert not top.is_spent
    device.worn = True
    assert top.is_spent
    assert not Least().is_spent


def test_names_of_version_1_are_all_there() -> None:
    """What was written against it keeps working: this list only ever grows."""
    version_1 = {
        "API_VERSION", "BOOLEAN", "EXTENTS_MAX", "FRACTION", "HOLE_BYTES_MAX", "INTEGER", "OFFSET",
        "PATH", "SECONDS", "SIZE", "TEXT", "Buffer", "Client", "ConfigError", "Device",
        "ExportError", "Extent", "Filter", "FilterPlugin", "Kind", "Opening", "Plugin", "Profile",
        "StoreUnavailable", "SwiftnbdError", "choice", "hole", "holes", "integer", "is_hole",
        "other_keys", "parameter", "size",
    }  # fmt: skip
    assert version_1 <= set(api.__all__)
    assert all(hasattr(api, name) for name in version_1)
    assert api.API_VERSION == 1


class Sizeless(Device):
    async def read(self, offset: int, length: int) -> Sequence[Buffer]:
        return [bytes(length)]


@pytest.mark.parametrize(
    ("made", "said"),
    [(None, "made a NoneType, not a Device"), (Sizeless(), "Sizeless has no size")],
)
def test_what_is_no_device_is_said_to_be_none(made: Device, said: str) -> None:
    with pytest.raises(ExportUnusable, match=said):
        Profile.of(made)
