# SPDX-License-Identifier: MIT
"""The filters of an export over its device: those that all connections share, then each one's own.

::

    connection   connection         plugins that are per connection, and filters above such ones
        |            |
    own filters  own filters        from the first filter on that is per connection
        '-----.------'
        shared filters
              |
            device
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from errno import EIO, EROFS
from inspect import isawaitable
from typing import Any, TypeVar

from swiftnbd.api.device import Device
from swiftnbd.api.filter import Filter
from swiftnbd.api.plugin import FilterPlugin, Opening
from swiftnbd.api.profile import Profile
from swiftnbd.blame import misfit, place_of, said
from swiftnbd.buffers import Buffer
from swiftnbd.errors import ExportError, ExportUnusable, SwiftnbdError
from swiftnbd.export.checked import checked, is_ours
from swiftnbd.export.forms import FORMS

log = logging.getLogger(__name__)

T = TypeVar("T")


class Layers:
    """``filters`` as they are given: requests come to the first one first."""

    def __init__(self, filters: Sequence[FilterPlugin], *, per_connection: bool = False) -> None:
        """``per_connection``: the device is, so everything above it is as well."""
        self._upwards: list[FilterPlugin] = []
        self._started: list[FilterPlugin] = []
        self.become(filters, per_connection=per_connection)

    def become(self, filters: Sequence[FilterPlugin], *, per_connection: bool = False) -> None:
        """Be made of these, while nothing is open. Those that are as they were stay the same."""
        before = list(self._upwards)
        upwards = [_taken(before, each) for each in reversed(filters)]
        own = (index for index, each in enumerate(upwards) if each.per_connection)
        first = 0 if per_connection else next(own, len(upwards))
        self._upwards, self._shared, self._own = upwards, upwards[:first], upwards[first:]
        self.per_connection = per_connection

    def __bool__(self) -> bool:
        return bool(self._shared or self._own)

    @property
    def are_one_disk(self) -> bool:
        """Whether the connections to one device see the same through them, as far as is known.

        A filter that was written for all of them, and stands above one that is each one's own, may
        keep what it was told to itself. Ours do not.
        """
        return all(each.per_connection or is_ours(each) for each in self._own)

    async def start(self) -> None:
        """Start those that are not, once those that are no longer here are stopped."""
        await self._stop(lambda each: not _has(self._upwards, each))
        for each in self._upwards:
            if not _has(self._started, each):
                await called(f"starting filter {type(each).__name__}", each.start)
                self._started.append(each)

    async def stop(self) -> None:
        """Stop what is started, the first one that is asked first."""
        await self._stop(lambda each: True)

    async def _stop(self, is_over: Callable[[FilterPlugin], bool]) -> None:
        for each in reversed(self._started):
            if is_over(each):
                self._started = [one for one in self._started if one is not each]
                what = f"stopping filter {type(each).__name__}"
                try:
                    await called(what, each.stop)
                except SwiftnbdError as error:
                    log.error("%s: %s", what, error)

    async def share(self, device: Device, opening: Opening) -> Device:
        """What the connections share; closing it closes ``device``, and so does a failure."""
        return await _wrapped(device, self._shared, opening)

    async def connect(self, device: Device, opening: Opening) -> Device:
        """What one connection gets; ``device`` is the shared one, or its own."""
        if not self._own:
            return device
        own = device if self.per_connection else Kept(device)
        return await _wrapped(own, self._own, opening)

    async def profile(self, device: Device, opening: Opening) -> Profile:
        """What a connection to the shared ``device`` would be told."""
        if not self._own:
            return Profile.of(device)
        own = await self.connect(device, replace(opening, only_look=True))
        try:
            return Profile.of(own)
        finally:
            await close(own, opening.name)

    async def look(self, device: Device, opening: Opening) -> Profile:
        """What a connection would be told, over a ``device`` that nothing may change."""
        opening = replace(opening, only_look=True)
        top = await self.share(Unchangeable(device), opening)
        try:
            return await self.profile(top, opening)
        finally:
            await close(top, opening.name)


def _taken(before: list[FilterPlugin], wanted: FilterPlugin) -> FilterPlugin:
    """One of ``before`` that is as it is wanted, taken from there; else the ``wanted`` one."""
    for index, each in enumerate(before):
        if each == wanted:
            return before.pop(index)  # the next one that is told the same is another
    return wanted


def _has(filters: Sequence[FilterPlugin], wanted: FilterPlugin) -> bool:
    """Whether it is that very one, not one that is told the same."""
    return any(each is wanted for each in filters)


class Kept(Filter):
    """A device that whoever closes this does not own."""

    async def close(self) -> None:
        pass


class ReadOnly(Filter):
    """A device that is not to be changed; a filter above may yet take writes, and keep them."""

    read_only = True


class Unchangeable(Kept):
    """A device to look at as if it could be changed."""

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        raise ExportError(EROFS, "only looked at, and not locked")

    async def zero(
        self,
        offset: int,
        length: int,
        *,
        no_hole: bool = False,
        fua: bool = False,
        fast: bool = False,
    ) -> None:
        raise ExportError(EROFS, "only looked at, and not locked")

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        raise ExportError(EROFS, "only looked at, and not locked")


async def _wrapped(device: Device, filters: Sequence[FilterPlugin], opening: Opening) -> Device:
    for each in filters:
        above: Device | None = None
        try:
            above = await called(f"filter {type(each).__name__}", each.wrap, device, opening)
            Profile.of(above)
            safe = above if above is device else checked(above, each)
        except BaseException:
            # one that was not made to its end knows of nothing below it to be closed
            is_made = isinstance(above, Device) and hasattr(above, "size")
            await close(above if is_made and above else device, opening.name)
            raise
        device = safe
    return device


async def called(what: str, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """The result of a plugin's or filter's own code. Whatever it raises is a `SwiftnbdError`."""
    form = FORMS.get(getattr(function, "__name__", ""), "")
    if form and (wrong := misfit(function, form, *arguments)):
        raise ExportUnusable(f"{what} failed: {wrong}")
    try:
        made = function(*arguments)
        if not isawaitable(made):  # in spite of its type
            raise ExportUnusable(f"{what} failed: {place_of(function)}it has to be an async def")
        return await made
    except SwiftnbdError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ExportError(error.errno or EIO, f"{where}{error.strerror or error}") from error
    except Exception as error:
        owner = type(getattr(function, "__self__", None)).__module__
        is_bug = owner.partition(".")[0] == __name__.partition(".")[0]
        log.log(logging.ERROR if is_bug else logging.DEBUG, "%s failed", what, exc_info=error)
        raise ExportError(
            EIO, f"{what} failed: {said(error, otherwise=place_of(function))}"
        ) from error


async def close(device: Device, name: str) -> None:
    """Close what nobody can be told of any more: that it failed is an ERROR of the log."""
    try:
        await called(f"{name}: closing it", device.close)
    except SwiftnbdError as error:
        log.error("%s: closing it: %s", name, error)
