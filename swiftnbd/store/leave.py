# SPDX-License-Identifier: MIT
"""Leave to change a store, asked for right before each request that changes something.

One change may take several requests: further tries, on other addresses, around a proof. Who makes
it may have lost the right to meanwhile, and no timer tells: those of an event loop stand still
while the machine sleeps. And a change that is sent after that would be stamped as the newest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_asked: ContextVar[Callable[[], None] | None] = ContextVar("asked", default=None)


@contextmanager
def asking(check: Callable[[], None]) -> Iterator[None]:
    """Inside, ``check`` is asked. It raises `swiftnbd.errors.LeaseOver` if the answer is no.

    It may be asked in another thread.
    """
    token = _asked.set(check)
    try:
        yield
    finally:
        _asked.reset(token)


def check_leave() -> None:
    """A request that changes something is about to be sent."""
    check = _asked.get()
    if check is not None:
        check()
