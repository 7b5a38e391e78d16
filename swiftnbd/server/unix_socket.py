# SPDX-License-Identifier: MIT
"""Unix sockets to listen on, in the file system: made, replaced and removed with care.

* Only our own user may connect: the mode is set before the file exists, so at no moment is it
  more open than that, whatever the umask.
* A socket that nobody answers on is left over from a server that was killed: it is replaced. One
  that somebody answers on, and anything else that lies at the path, is never touched.
* Two servers that start at once must not both take a leftover away, or the second would take
  the first one's new socket. So the whole of it is done with the folder locked (flock).
* At the end the file is removed only if it is still ours. That is seen by its inode, which
  cannot be used again before our socket is closed.
"""

import errno
import fcntl
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swiftnbd.errors import ConfigError

PATH_BYTES_MAX = 107  # struct sockaddr_un has 108, one of them for the NUL
FOLDER_LOCK_SECONDS_MAX = 5.0  # others hold it for as long as it takes to bind a socket

_FOLDER_LOCK_RETRY_SECONDS = 0.05
_MODE = 0o600


class UnixListener:
    """A listening socket and its file."""

    def __init__(self, sock: socket.socket, path: Path, folder: Path | None) -> None:
        self.sock = sock
        self.path = path
        self._folder = folder
        self._status = path.lstat()

    def remove(self) -> None:
        """Remove the file if it is still ours. Before the socket is closed!"""
        with suppress(OSError):
            if os.path.samestat(self._status, self.path.lstat()):
                self.path.unlink()
        if self._folder is not None:
            with suppress(OSError):
                self._folder.rmdir()


def listen_at(path: Path, backlog: int) -> UnixListener:
    """Listen on a socket at ``path``, which must be absolute. ConfigError says why not."""
    try:
        return _listen_at(path, backlog, None)
    except OSError as error:
        raise _cannot_listen(path, os.strerror(error.errno or errno.EIO)) from None


def listen_privately(backlog: int) -> UnixListener:
    """Listen on a socket in a new folder that nobody else can enter."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="swiftnbd-"))
    except OSError as error:
        raise ConfigError(f"cannot make a folder for a Unix socket: {error.strerror}") from None
    try:
        return _listen_at(folder / "socket", backlog, folder)
    except BaseException:
        folder.rmdir()
        raise


def _listen_at(path: Path, backlog: int, folder: Path | None) -> UnixListener:
    length = len(os.fsencode(path))
    if length > PATH_BYTES_MAX:
        raise _cannot_listen(
            path, f"its path has {length} bytes, a socket's at most {PATH_BYTES_MAX}"
        )
    sock = socket.socket(socket.AF_UNIX)
    try:
        with _locked_folder(path):
            _remove_leftover(path)
            os.fchmod(sock.fileno(), _MODE)  # Linux gives the file the mode of the socket
            sock.bind(os.fsencode(path))
            try:
                sock.listen(backlog)  # before the lock goes: until now it looks left over
                return UnixListener(sock, path, folder)
            except BaseException:
                path.unlink()
                raise
    except BaseException:
        sock.close()
        raise


@contextmanager
def _locked_folder(path: Path) -> Iterator[None]:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + FOLDER_LOCK_SECONDS_MAX
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise _cannot_listen(
                        path, f"another process has locked {path.parent}"
                    ) from None
                time.sleep(_FOLDER_LOCK_RETRY_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _remove_leftover(path: Path) -> None:
    """Make way if a socket without a server lies at the path; raise if anything else does."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise _cannot_listen(path, "something that is no socket is there")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a backlog that is full answers at once, too
        answer = probe.connect_ex(os.fsencode(path))
    if answer != errno.ECONNREFUSED:
        live = answer in (0, errno.EAGAIN)
        raise _cannot_listen(
            path, "a server is listening there already" if live else os.strerror(answer)
        )
    path.unlink()


def _cannot_listen(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"cannot listen on Unix socket {path}: {reason}")
