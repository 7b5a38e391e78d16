# SPDX-License-Identifier: MIT
"""What other people's code did wrong, in one line with the place in their file."""

import os
import traceback
from collections.abc import Callable
from inspect import signature, unwrap
from pathlib import Path
from typing import Any, Final

_OURS: Final = str(Path(__file__).parent) + os.sep


def said(error: BaseException, file: str = "", *, known: bool = False, otherwise: str = "") -> str:
    """Where an exception came from, and what it says: the last line of ``file`` that was at work,
    or else of a file that is not ours, or else what ``otherwise`` says. ``known``: people know
    the name of ``file``."""
    shown = file if known else ""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_place(error.filename, error.lineno, shown)}{type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [each for each in frames if each.filename == file] or [
        each for each in frames if not each.filename.startswith((_OURS, "<frozen"))
    ]
    where = _place(theirs[-1].filename, theirs[-1].lineno, shown) if theirs else otherwise
    return f"{where}{type(error).__name__}: {error}".rstrip(": ")


def _place(path: str, line: int | None, shown: str) -> str:
    return f"line {line}: " if path == shown else f"{os.path.basename(path)}, line {line}: "


def file_of(kind: type) -> str:
    """Where a class is defined, as far as its methods tell; or ''."""
    codes = (getattr(each, "__code__", None) for each in vars(kind).values())
    return next((code.co_filename for code in codes if code is not None), "")


def place_of(function: Any) -> str:
    """Where it is defined: "disk.py, line 12: ", or '' if nobody knows."""
    code = getattr(unwrap(function), "__code__", None)
    return (
        ""
        if code is None
        else f"{os.path.basename(code.co_filename)}, line {code.co_firstlineno}: "
    )


def misfit(function: Callable[..., Any], form: str, *arguments: Any, **options: Any) -> str:
    """What is wrong with a function of theirs that is going to be called like this; '' if nothing
    is. ``form`` is how it should be written: "read(self, offset, length)"."""
    if not callable(function):
        return f"{form} has to be a method, and it is {function!r:.40}"
    try:
        signature(function).bind(*arguments, **options)
    except TypeError as error:
        return f"{place_of(function)}write it as {form}, for it cannot be called so: {error}"
    except ValueError:  # it is not written in Python
        pass
    return ""
