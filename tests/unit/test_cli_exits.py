# SPDX-License-Identifier: MIT
import inspect

import pytest

from swiftnbd import errors
from swiftnbd.cli.exits import EPILOG, Exit, SeveralFailed, common_exit_code, exit_code
from swiftnbd.errors import (
    AccessRefused,
    ConfigError,
    ContainerMissing,
    CorruptObject,
    ExportUnusable,
    Locked,
    StoreError,
    StoreFull,
    StoreUnavailable,
    SwiftnbdError,
)


def caused(error: SwiftnbdError, cause: Exception) -> SwiftnbdError:
    """``raise error from cause``."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SwiftnbdError("x"), 1),
        (StoreError("x"), 1),
        (StoreFull("x"), 1),
        (CorruptObject("x"), 1),
        (ConfigError("x"), 2),
        (Locked("x", "h:1@2"), 3),
        (ContainerMissing("x"), 4),
        (ExportUnusable("x"), 4),
        (AccessRefused("x"), 5),
        (StoreUnavailable("x"), 6),
        (caused(StoreError("gave up"), StoreUnavailable("x")), 6),
        (caused(StoreError("gave up"), CorruptObject("x")), 1),
        (caused(StoreError("x"), OSError("y")), 1),
        (SeveralFailed("x", []), 1),
        (SeveralFailed("x", [AccessRefused("x"), AccessRefused("y")]), 5),
        (SeveralFailed("x", [AccessRefused("x"), ContainerMissing("y")]), 1),
    ],
)
def test_each_error_has_its_exit_code(error: SwiftnbdError, code: int) -> None:
    assert exit_code(error) == code


def test_every_error_class_has_some_exit_code() -> None:
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, SwiftnbdError):
            assert exit_code(kind.__new__(kind)) in Exit


def test_several_failures_exit_alike_only_if_they_agree() -> None:
    assert common_exit_code([]) == 0
    assert common_exit_code([ContainerMissing("x"), ExportUnusable("y")]) == 4
    assert common_exit_code([ContainerMissing("x"), StoreUnavailable("y")]) == 1


def test_every_exit_code_is_in_the_help() -> None:
    assert [int(line.split()[0]) for line in EPILOG.splitlines()[2:]] == [*map(int, Exit)]
