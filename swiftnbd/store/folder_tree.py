# SPDX-License-Identifier: MIT
"""Walking, making and removing what lies in a container's folder; below `swiftnbd.store.folder`.

``top`` is always a descriptor of the container's folder.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from errno import EBADMSG, EEXIST, EINVAL, ENOTEMPTY
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from urllib.parse import quote

from swiftnbd.store.folder_files import DIRECTORY, opened, temp_file
from swiftnbd.store.folder_names import file_parts, name_part
from swiftnbd.store.leave import check_leave

TOKEN_FOLDER = ".tokens"  # noqa: S105
TOKEN_FILE_LENGTH_MAX = 200  # longer names are hashed; file names end at 255

_ABSENT = (FileNotFoundError, NotADirectoryError)


@contextmanager
def opened_object(top: int, name: str) -> Iterator[int | None]:
    """The object's file, or None if there is none."""
    try:
        # Without O_NONBLOCK, opening a FIFO somebody put there would hang.
        fd = os.open(
            "/".join(file_parts(name)), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=top
        )
    except _ABSENT:
        yield None
        return
    try:
        mode = os.fstat(fd).st_mode
        if not S_ISREG(mode) and not S_ISDIR(mode):
            raise OSError(EINVAL, "its file is not a regular file")
        yield fd if S_ISREG(mode) else None
    finally:
        os.close(fd)


def object_names(top: int, prefix: str = "") -> Iterator[str]:
    """The names of all objects that may begin with ``prefix``, in no order."""
    yield from _walk(top, "", prefix)


def _walk(folder: int, above: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            part = name_part(entry.name)
            if part is None or entry.name.startswith("."):
                continue
            name = above + part
            if not entry.is_dir():
                if entry.is_file():
                    yield name
            elif prefix.startswith(f"{name}/") or f"{name}/".startswith(prefix):
                with suppress(*_ABSENT), opened(entry.name, DIRECTORY, folder) as child:
                    yield from _walk(child, f"{name}/", prefix)


def object_size(top: int, name: str) -> int | None:
    """The size of an object, or None if it is gone."""
    try:
        return os.stat("/".join(file_parts(name)), dir_fd=top).st_size
    except _ABSENT:
        return None


def descend(stack: ExitStack, top: int, folders: list[str]) -> tuple[int, bool]:
    """Open these folders one below the other; the deepest there is, and whether it is the last."""
    fd = top
    for folder in folders:
        try:
            fd = stack.enter_context(opened(folder, DIRECTORY, fd))
        except _ABSENT:
            return fd, False
    return fd, True


def exists(path: str, dir_fd: int) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd)
    except _ABSENT:
        return False
    return True


def is_folder(path: str, dir_fd: int) -> bool:
    try:
        return S_ISDIR(os.stat(path, dir_fd=dir_fd).st_mode)
    except _ABSENT:
        return False


def unlink(path: str, dir_fd: int) -> bool:
    """Unlink a file; False if there is none (a folder of that name is not one)."""
    try:
        os.unlink(path, dir_fd=dir_fd)
    except _ABSENT:
        return False
    except OSError:
        if is_folder(path, dir_fd):
            return False
        raise
    return True


def make_folder(path: str, dir_fd: int) -> bool:
    """Make a folder; False if something of that name is there already."""
    try:
        os.mkdir(path, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True


def make_folders(path: Path) -> None:
    """Make a folder and those above it, so that the names of all of them are durable."""
    if not path.parent.is_dir():
        make_folders(path.parent)
    path.mkdir(exist_ok=True)
    with opened(str(path.parent), DIRECTORY) as parent:
        os.fsync(parent)


def remove_empty_folders(folder: int) -> None:
    """Remove all folders of objects below this one that hold nothing."""
    with os.scandir(folder) as entries:
        children = [each.name for each in entries if each.is_dir() and each.name[:1] != "."]
    for child in children:
        with suppress(*_ABSENT), opened(child, DIRECTORY, folder) as fd:
            remove_empty_folders(fd)
        remove_folder_if_empty(child, folder)


def remove_folder_if_empty(path: str, dir_fd: int) -> None:
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except _ABSENT:
        pass
    except OSError as error:
        if error.errno not in (ENOTEMPTY, EEXIST):
            raise


def remove_folder_of_files(path: str, dir_fd: int) -> None:
    """Remove one of our own folders with the files in it, if it is there."""
    with suppress(FileNotFoundError), opened(path, DIRECTORY, dir_fd) as fd:
        for name in os.listdir(fd):
            unlink(name, fd)
        os.rmdir(path, dir_fd=dir_fd)


def read_json(top: int, path: str) -> dict[str, object]:
    """A small file of ours; EBADMSG if it is not an object in JSON."""
    with opened(path, os.O_RDONLY, top) as fd, open(fd, "rb", closefd=False) as file:
        try:
            content = json.loads(file.read())
        except ValueError:
            content = None
    if not isinstance(content, dict):
        raise OSError(EBADMSG, f"{path} is damaged: it is not the JSON we wrote")
    return content


def replace_json(top: int, path: str, content: Mapping[str, object]) -> None:
    """Write a small file of ours, atomically and durably."""
    with temp_file(top) as temp:
        temp.write(json.dumps(content, indent=1).encode() + b"\n")
        temp.finish()
        check_leave()
        os.rename(temp.path, path, src_dir_fd=top, dst_dir_fd=top)
    with opened(os.path.dirname(path) or ".", DIRECTORY, top) as folder:
        os.fsync(folder)


def token_file(name: str) -> str:
    """Where the renew token of an object is kept."""
    quoted = quote(name, safe="").replace(".", "%2E")
    if len(quoted) > TOKEN_FILE_LENGTH_MAX:
        quoted = sha256(name.encode()).hexdigest()
    return f"{TOKEN_FOLDER}/{quoted}"


def write_token(top: int, name: str, stat: os.stat_result, token: str) -> None:
    """Keep a token for just the file with this stat: a later put has another."""
    with suppress(FileExistsError):
        os.mkdir(TOKEN_FOLDER, dir_fd=top)
    os.fsync(top)
    content = {"token": token, "inode": stat.st_ino, "mtime_ns": stat.st_mtime_ns}
    replace_json(top, token_file(name), content)


def read_token(top: int, name: str, stat: os.stat_result) -> str:
    """The token kept for just the file with this stat, or ''."""
    try:
        content = read_json(top, token_file(name))
    except FileNotFoundError:
        return ""
    if content.get("inode") != stat.st_ino or content.get("mtime_ns") != stat.st_mtime_ns:
        return ""
    return str(content.get("token", ""))
