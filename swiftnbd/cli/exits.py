# SPDX-License-Identifier: MIT
"""What the programs exit with. The one table from errors to exit codes."""

from collections.abc import Iterable, Sequence
from enum import IntEnum

from swiftnbd.errors import (
    AccessRefused,
    ConfigError,
    ContainerMissing,
    ExportUnusable,
    Locked,
    StoreUnavailable,
    SwiftnbdError,
)


class SeveralFailed(SwiftnbdError):
    """Nothing is left to do, for several reasons that have been told already."""

    def __init__(self, message: str, causes: Sequence[SwiftnbdError]) -> None:
        super().__init__(message)
        self.causes = causes


class Exit(IntEnum):
    """Exit codes; scripts rely on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    LOCKED = 3
    NO_CONTAINER = 4
    REFUSED = 5
    UNREACHABLE = 6
    DAMAGED = 7
    INTERRUPTED = 130


# First match wins, so a subclass must come before its base.
_CODES: tuple[tuple[type[SwiftnbdError], Exit], ...] = (
    (ConfigError, Exit.USAGE),
    (Locked, Exit.LOCKED),
    (ContainerMissing, Exit.NO_CONTAINER),
    (ExportUnusable, Exit.NO_CONTAINER),
    (AccessRefused, Exit.REFUSED),
    (StoreUnavailable, Exit.UNREACHABLE),
)

EPILOG = """\b
Exit codes:
  0    done
  1    failed
  2    wrong usage or configuration
  3    the container is locked
  4    the container is unknown, missing or not set up
  5    the login was refused
  6    the store cannot be reached
  7    check found damage
  130  interrupted
"""


def exit_code(error: SwiftnbdError) -> Exit:
    """The exit code that tells of this error."""
    if isinstance(error, SeveralFailed):
        return common_exit_code(error.causes) or Exit.FAILED  # of what has no cause, too
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    # one who gave up or could not clean up raises that "from" what stopped it
    cause = error.__cause__
    return exit_code(cause) if isinstance(cause, SwiftnbdError) else Exit.FAILED


def common_exit_code(errors: Iterable[SwiftnbdError]) -> Exit:
    """The exit code of several failures: theirs if they agree on one, else "failed"."""
    codes = {exit_code(error) for error in errors}
    if not codes:
        return Exit.DONE
    return codes.pop() if len(codes) == 1 else Exit.FAILED
