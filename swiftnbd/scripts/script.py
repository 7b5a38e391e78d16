# SPDX-License-Identifier: MIT
"""A script: loaded once, and its callbacks, which are looked up by their names at each call."""

import logging
import sys
from collections.abc import Callable, Sequence
from errno import (
    EDQUOT,
    EFBIG,
    EINVAL,
    EIO,
    ENOMEM,
    ENOSPC,
    ENOTSUP,
    EOPNOTSUPP,
    EPERM,
    EROFS,
    ESHUTDOWN,
)
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from swiftnbd.blame import said
from swiftnbd.errors import ConfigError, ExportError
from swiftnbd.scripts import module
from swiftnbd.scripts.module import ThreadModel, here

API_VERSION_MAX: Final = 2
REQUIRED: Final = ("open", "get_size", "pread")
SCRIPT_BYTES_MAX: Final = 16 * 1024 * 1024  # no source is larger; a disk by mistake is

# What nbdkit tells clients of an errno: whatever is not here is EINVAL.
_TOLD: Final = {
    EPERM: EPERM,
    EROFS: EPERM,
    EIO: EIO,
    ENOMEM: EIO,  # clients would take it for their own
    ENOSPC: ENOSPC,
    EDQUOT: ENOSPC,
    EFBIG: ENOSPC,
    ESHUTDOWN: ESHUTDOWN,
}
UNSUPPORTED: Final = (EOPNOTSUPP, ENOTSUP)

log = logging.getLogger(__name__)


class Script:
    """What a file defines. All but the constructor may be called in any thread."""

    def __init__(self, path: Path) -> None:
        """Run the file. Raises `ConfigError`."""
        self.shown, self._file = path.name, str(path)
        module.install()
        self._names = self._run(path)
        missing = [name for name in REQUIRED if self.callback(name) is None]
        if missing:
            raise ConfigError(f"{path} does not define {' and '.join(missing)}")
        version = self._names.get("API_VERSION", 1)
        if not isinstance(version, int) or not 1 <= version <= API_VERSION_MAX:
            raise ConfigError(
                f"{path} is for API_VERSION {version!r}; there are 1 to {API_VERSION_MAX}"
            )
        self.api_version = version

    def _run(self, path: Path) -> dict[str, Any]:
        """Its names, once it has been run, as ``__main__``."""
        try:
            with path.open("rb") as file:
                source = file.read(SCRIPT_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        if len(source) > SCRIPT_BYTES_MAX:
            raise ConfigError(f"{path} is too large to be a script")
        made = ModuleType("__main__")
        made.__file__ = str(path)
        try:
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(made))  # noqa: S102 what we are for
        except BaseException as error:
            raise ConfigError(f"{path} cannot be run: {self._said(error)}") from None
        return vars(made)

    def callback(self, name: str) -> Callable[..., Any] | None:
        """The function of this name, if it defines one."""
        found = self._names.get(name)
        return found if callable(found) else None

    def call(self, name: str, *arguments: Any) -> Any:
        """What a callback returns. Raises `ExportError` with what `nbdkit.set_error` was given."""
        callback = self.callback(name)
        if callback is None:
            raise self.failure(name, f"{name} not implemented")
        here.error = 0
        try:
            return callback(*arguments)
        except BaseException as error:  # a script that calls sys.exit() must not end a thread
            raise self.raised(name, error) from None

    def optional(self, name: str, *arguments: Any, default: Any = None) -> Any:
        """`call`, or the default if there is no such callback."""
        return default if self.callback(name) is None else self.call(name, *arguments)

    def configure(self, keys: Sequence[tuple[str, str]]) -> None:
        """Tell it all that it is told. Raises `ConfigError`."""
        try:
            for key, text in keys:
                if self.callback("config") is None:
                    raise ConfigError(f"{self.shown} takes no keys, and was given {key}=")
                self.call("config", key, text)
        except ExportError as error:
            raise ConfigError(str(error)) from None

    def thread_model(self) -> ThreadModel:
        """How it may be called. Raises `ConfigError`."""
        try:
            number = self.optional("thread_model", default=ThreadModel.SERIALIZE_ALL_REQUESTS)
            return ThreadModel(number)
        except ExportError as error:
            raise ConfigError(str(error)) from None
        except ValueError:
            raise ConfigError(f"{self.shown}: thread_model() returned {number!r}") from None

    # What is wrong

    def failure(self, name: str, reason: str, errno: int | None = None) -> ExportError:
        """An error of a callback; without ``errno`` it is the one that the script has set."""
        number = here.error if errno is None else errno
        told = EIO if not number else _TOLD.get(number, EINVAL)
        return ExportError(told, f"{self.shown}: {name}: {reason}")

    def raised(self, name: str, error: BaseException) -> ExportError:
        """What an exception of a callback is for the client and the log."""
        log.debug("%s: %s failed", self.shown, name, exc_info=error)
        return self.failure(name, self._said(error, self.callback(name)))

    def _said(self, error: BaseException, callback: object = None) -> str:
        """One line: where in the script, and what."""
        code = getattr(callback, "__code__", None)  # as it was called in a way it cannot be
        defined = "" if code is None else f"line {code.co_firstlineno}: "
        return said(error, self._file, known=True, otherwise=defined)

    def dump(self) -> None:
        """What ``--dump-plugin`` shows, on standard output; the script may add to it."""
        version = sys.version_info
        sys.stdout.write(f"python_version={version[0]}.{version[1]}.{version[2]}\n")
        sys.stdout.write(f"nbdkit_python_maximum_api_version={API_VERSION_MAX}\n")
        sys.stdout.flush()
        try:
            self.optional("dump_plugin")
        except ExportError as error:
            raise ConfigError(str(error)) from None
