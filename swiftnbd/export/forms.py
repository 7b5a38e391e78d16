# SPDX-License-Identifier: MIT
"""How the methods of other people's plugins, filters and devices are called.

A parameter that is missing would be seen only when a client asks for it, and a name with a letter
wrong never.
"""

import logging
from functools import lru_cache
from inspect import iscoroutinefunction
from typing import Any, Final

from swiftnbd.api.device import Device
from swiftnbd.blame import misfit, place_of
from swiftnbd.errors import ExportUnusable

_LIKE: Final = 0.75  # how much alike two names are, from 0 to 1, of which one is a mistake

FORMS: Final = {
    "start": "async def start(self)",
    "open": "async def open(self, opening)",
    "wrap": "async def wrap(self, device, opening)",
    "listed": "async def listed(self, opening)",
    "stop": "async def stop(self)",
    "read": "async def read(self, offset, length)",
    "write": "async def write(self, offset, data)",
    "zero": "async def zero(self, offset, length, *, no_hole=False)",
    "trim": "async def trim(self, offset, length)",
    "flush": "async def flush(self)",
    "extents": "async def extents(self, offset, length, *, count)",
    "prefetch": "async def prefetch(self, offset, length)",
    "close": "async def close(self)",
    "read_now": "def read_now(self, offset, length)",
    "write_now": "def write_now(self, offset, data)",
    "read_soon": "def read_soon(self, offset, length, pending)",
    "write_soon": "def write_soon(self, offset, data, pending)",
}
_ARGUMENTS: Final = {
    "read": 2, "write": 2, "zero": 2, "trim": 2, "flush": 0, "extents": 2, "prefetch": 2,
    "close": 0, "read_now": 2, "write_now": 2, "read_soon": 3, "write_soon": 3,
}  # fmt: skip

log = logging.getLogger(__name__)


def check_methods(device: Device) -> None:
    """Raises `ExportUnusable` if one cannot be called as a device's methods are. One WARNING for
    each name that looks like a method's and is none."""
    for name, count in _ARGUMENTS.items():
        flags, form = _flags(device, name), FORMS[name]
        for flag in flags:
            if flag not in form:
                form = (
                    form.removesuffix(")") + (", " if "*" in form else ", *, ") + f"{flag}=False)"
                )
        if wrong := misfit(getattr(device, name), form, *[None] * count, **dict.fromkeys(flags)):
            raise ExportUnusable(f"{type(device).__name__}.{name}: {wrong}")
    _warn_of_names(type(device))


def _flags(device: Device, name: str) -> list[str]:
    """What else it may be given."""
    match name:
        case "extents":
            return ["count"]
        case "write" | "trim" if device.can_fua:
            return ["fua"]
        case "zero":
            can = {"no_hole": True, "fua": device.can_fua, "fast": device.can_fast_zero}
            return [flag for flag, is_able in can.items() if is_able]
    return []


@lru_cache(maxsize=256)
def _warn_of_names(kind: type[Device]) -> None:
    import difflib  # late: commands that have no plugins start faster

    for name, method in _own_methods(kind).items():
        if likely := difflib.get_close_matches(name, _ARGUMENTS, 1, _LIKE):
            log.warning(
                "%s%s.%s is never called: is it to be %s?",
                place_of(method), kind.__name__, name, likely[0],
            )  # fmt: skip


def _own_methods(kind: type[Device]) -> dict[str, Any]:
    """Those that no device has, and that could be meant for one's."""
    return {
        name: method
        for each in kind.__mro__
        if each.__module__.partition(".")[0] != __name__.partition(".")[0]
        for name, method in vars(each).items()
        if iscoroutinefunction(method) and not name.startswith("_") and not hasattr(Device, name)
    }
