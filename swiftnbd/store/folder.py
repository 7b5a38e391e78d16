# SPDX-License-Identifier: MIT
"""A container as a folder of plain files; blocking, and safe in threads and across processes.

::

    DIR/.lock                         flock(2)ed while container metadata is changed
    DIR/CONTAINER/.container.json     its metadata; without this file it is no container
    DIR/CONTAINER/.tmp/               files being written
    DIR/CONTAINER/.tokens/NAME        the last renew token of an object
    DIR/CONTAINER/disk.part/00000042  an object

An object is written beside its place, synced, renamed into it, and the folder synced: at any
moment, also after a crash, its name shows the old bytes or the new ones. Nothing is ever changed
in place, so an open file is a snapshot and readers need no lock.

Every operation first opens the container's folder, finds `.container.json` in it and goes on from
that descriptor. So a file that is not there is absent from *this* container, not from an empty
mount point.

What a folder cannot do: hold both an object ``a`` and an object ``a/b``. That is refused.
"""

import fcntl
import heapq
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from errno import EEXIST, ENOTEMPTY
from hashlib import md5
from pathlib import Path

from swiftnbd.buffers import pieces_of
from swiftnbd.errors import (
    ContainerMissing,
    ContainerNotEmpty,
    CorruptObject,
    ObjectExists,
    StoreError,
    StoreUnavailable,
)
from swiftnbd.store.base import Blob, Body, ContainerInfo, Listed, ObjectInfo
from swiftnbd.store.checks import check_size
from swiftnbd.store.folder_files import (
    DIRECTORY,
    TEMP_FOLDER,
    Etags,
    Temp,
    copy_file,
    identity,
    opened,
    read_range,
    remove_stale_temps,
    temp_file,
)
from swiftnbd.store.folder_names import file_part, file_parts, name_part
from swiftnbd.store.folder_tree import (
    TOKEN_FOLDER,
    descend,
    exists,
    is_folder,
    make_folder,
    make_folders,
    object_names,
    object_size,
    opened_object,
    read_json,
    read_token,
    remove_empty_folders,
    remove_folder_if_empty,
    remove_folder_of_files,
    replace_json,
    token_file,
    unlink,
    write_token,
)
from swiftnbd.store.hashing import md5_now
from swiftnbd.store.leave import check_leave

METADATA_FILE = ".container.json"
LOCK_FILE = ".lock"
POLICY = "directory"  # the only storage policy there is

PUT_TRIES_MAX = 3  # somebody removed the empty folder we were about to write into
FOLDERS_REMEMBERED_MAX = 1024

# One walk through the folders serves so many pages of a listing: it takes as long for each page
# as for all. The names of ten full pages take about 8 MB.
PAGES_AHEAD = 10
AHEAD_SECONDS_MAX = 5.0  # the next page is asked for at once, or by somebody else


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What a walk found beyond the page it was for, for those who ask for what follows."""

    bounds: tuple[str, str, str]  # prefix, after, before
    names: list[str]
    walked_at: float


class Folder:
    """The container ``container`` under ``root``."""

    def __init__(self, root: Path, container: str) -> None:
        self.root = root
        self.path = root / file_part(container)
        self.label = f"file:{container}"
        self._etags = Etags()
        self._ahead: _Ahead | None = None
        self._cleaned = False
        self._synced: set[tuple[int, int, int]] = set()  # folders whose own names are durable

    # Objects

    def get(self, name: str, start: int, length: int | None, size_max: int) -> Blob | None:
        with self._container() as top, opened_object(top, name) as fd:
            if fd is None:
                return None
            stat = os.fstat(fd)
            wanted = max(0, stat.st_size - start)
            if length is not None:
                wanted = min(wanted, length)
            check_size(self.label, name, wanted, size_max)
            data = read_range(fd, start, wanted)
            if len(data) != wanted:
                raise CorruptObject(f"{self.label}: {name} shrank while it was read")
            if wanted < stat.st_size:
                return Blob(data, self._etag(fd, stat), stat.st_size)
            return Blob(data, self._checked_etag(name, data, stat))

    def head(self, name: str) -> ObjectInfo | None:
        with self._container() as top, opened_object(top, name) as fd:
            if fd is None:
                return None
            stat = os.fstat(fd)
            return ObjectInfo(stat.st_size, self._etag(fd, stat), read_token(top, name, stat))

    def put(self, name: str, data: Body, if_absent: bool) -> str:
        def fill(temp: Temp) -> None:
            for piece in pieces_of(data):
                temp.write(piece)

        etag = md5_now(data)
        self._put(name, fill, etag, if_absent)
        return etag

    def copy(self, name: str, source: "Folder", etag: str) -> None:
        """Replace an object by that of another container, inside the kernel where it can."""
        with source._container() as top, opened_object(top, name) as fd:
            if fd is None:
                raise StoreError(f"{self.label}: COPY {name}: {source.label} has no such object")
            size = os.fstat(fd).st_size
            original = fd

            def fill(temp: Temp) -> None:
                copy_file(original, temp.fd, size)
                copied = md5(read_range(temp.fd, 0, size)).hexdigest()
                if copied != etag:
                    raise CorruptObject(
                        f"{self.label}: COPY {name}: copied with MD5 {copied}, not {etag}"
                    )

            self._put(name, fill, etag, if_absent=False)

    def _put(self, name: str, fill: Callable[[Temp], None], etag: str, if_absent: bool) -> None:
        for _ in range(PUT_TRIES_MAX):
            try:
                with self._container() as top, temp_file(top) as temp:
                    self._clean_once(top)
                    fill(temp)
                    temp.finish()
                    self._place(top, temp, name, if_absent)
            except FileNotFoundError:
                continue
            assert temp.stat is not None
            self._etags.remember(temp.stat, etag, exact=temp.keeps_nanoseconds)
            return
        raise StoreUnavailable(f"{self.label}: PUT {name}: its folder is removed again and again")

    def delete(self, name: str) -> bool:
        with self._container() as top, ExitStack() as stack:
            *folders, leaf = file_parts(name)
            deepest, complete = descend(stack, top, folders)
            check_leave()
            existed = complete and unlink(leaf, deepest)
            # Also if it was absent: whoever unlinked it may not have lived to sync it.
            os.fsync(deepest)
            unlink(token_file(name), top)
            return existed

    def renew(self, name: str, token: str) -> bool:
        with self._container() as top, opened_object(top, name) as fd:
            if fd is None:
                return False
            write_token(top, name, os.fstat(fd), token)
            return True

    def listing(self, prefix: str, after: str, before: str, limit: int) -> list[Listed]:
        while True:
            with self._container() as top:
                names = self._names(top, prefix, after, before, limit)
                sizes = [object_size(top, name) for name in names]
            page = [
                Listed(name, size)
                for name, size in zip(names, sizes, strict=True)
                if size is not None
            ]
            if page or not names:
                return page
            after = names[-1]  # all deleted since they were listed; an empty page would be the end

    def _names(self, top: int, prefix: str, after: str, before: str, limit: int) -> list[str]:
        """The first names within bounds, as they are or were a moment ago."""
        found, self._ahead = self._ahead, None
        now = time.monotonic()
        if (
            found is None
            or found.bounds != (prefix, after, before)
            or now - found.walked_at > AHEAD_SECONDS_MAX
        ):
            within = (
                name
                for name in object_names(top, prefix)
                if name.startswith(prefix) and name > after and (not before or name < before)
            )
            found = _Ahead(
                (prefix, after, before), heapq.nsmallest(limit * PAGES_AHEAD, within), now
            )
        page, rest = found.names[:limit], found.names[limit:]
        if rest:
            self._ahead = _Ahead((prefix, page[-1], before), rest, found.walked_at)
        return page

    # The container

    def info(self, count: bool) -> ContainerInfo | None:
        try:
            with self._container() as top:
                metadata = _read_metadata(top)
                if not count:
                    return ContainerInfo(metadata, policy=POLICY)
                sizes = [object_size(top, name) or 0 for name in object_names(top)]
        except ContainerMissing:
            return None
        return ContainerInfo(metadata, len(sizes), sum(sizes), POLICY)

    def set_metadata(self, changes: Mapping[str, str]) -> None:
        with self._container(), self._locked(), self._container() as top:
            metadata = _read_metadata(top)
            replace_json(top, METADATA_FILE, _changed(metadata, changes))

    def create(self, metadata: Mapping[str, str]) -> bool:
        make_folders(self.root)
        with self._locked():
            make_folders(self.path)
            with opened(str(self.path), DIRECTORY) as top:
                created = not exists(METADATA_FILE, top)
                known = {} if created else _read_metadata(top)
                replace_json(top, METADATA_FILE, _changed(known, metadata))
        return created

    def remove(self) -> bool:
        try:
            with self._container(), self._locked(), self._container() as top:
                if name := next(object_names(top), ""):
                    raise ContainerNotEmpty(f"{self.label} still holds objects, such as {name}")
                self._remove_empty(top)
        except ContainerMissing:
            return False
        return True

    def _remove_empty(self, top: int) -> None:
        """Remove our own files, then the folder: it stays if an object was put meanwhile."""
        metadata = _read_metadata(top)
        remove_stale_temps(top)
        remove_empty_folders(top)
        try:
            remove_folder_of_files(TOKEN_FOLDER, top)
            remove_folder_if_empty(TEMP_FOLDER, top)
            os.unlink(METADATA_FILE, dir_fd=top)
            os.rmdir(self.path)
        except OSError as error:
            if error.errno not in (ENOTEMPTY, EEXIST):
                raise
            replace_json(top, METADATA_FILE, metadata)
            raise ContainerNotEmpty(
                f"{self.label} holds files that are in use or not ours"
            ) from None
        with opened(str(self.root), DIRECTORY) as root:
            os.fsync(root)

    # Inside

    @contextmanager
    def _container(self) -> Iterator[int]:
        """The container's folder, known to be one."""
        try:
            top = os.open(self.path, DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise ContainerMissing(f"{self.label}: there is no folder {self.path}") from None
        try:
            if not exists(METADATA_FILE, top):
                raise ContainerMissing(f"{self.label}: {self.path} has no {METADATA_FILE}")
            yield top
        finally:
            os.close(top)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes metadata under this root."""
        with opened(str(self.root / LOCK_FILE), os.O_RDWR | os.O_CREAT) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield

    def _clean_once(self, top: int) -> None:
        if not self._cleaned:
            self._cleaned = True
            remove_stale_temps(top)

    def _place(self, top: int, temp: Temp, name: str, if_absent: bool) -> None:
        """Give the finished file its name, durably."""
        *folders, leaf = file_parts(name)
        with ExitStack() as stack:
            try:
                parent = self._make_and_descend(stack, top, folders)
            except NotADirectoryError:
                raise StoreError(f"{self.label}: PUT {name}: a part of it is an object") from None
            if is_folder(leaf, parent):
                with opened(leaf, DIRECTORY, parent) as empty:
                    remove_empty_folders(empty)
                remove_folder_if_empty(leaf, parent)
            check_leave()  # not sooner: all that was synced before may have taken long
            try:
                if if_absent:
                    os.link(temp.path, leaf, src_dir_fd=top, dst_dir_fd=parent)
                else:
                    os.rename(temp.path, leaf, src_dir_fd=top, dst_dir_fd=parent)
            except (FileExistsError, IsADirectoryError):
                if is_folder(leaf, parent):
                    raise StoreError(f"{self.label}: PUT {name}: objects are below it") from None
                raise ObjectExists(f"{self.label}: {name} exists") from None
            unlink(token_file(name), top)
            os.fsync(parent)

    def _make_and_descend(self, stack: ExitStack, top: int, folders: list[str]) -> int:
        """Open the folders below ``top``, made where missing; the last one's descriptor.

        Each one's name is synced when we made it, and once if somebody else did: they may not
        live to.
        """
        fd = top
        for folder in folders:
            is_new = make_folder(folder, fd)
            child = stack.enter_context(opened(folder, DIRECTORY, fd))
            which = identity(child)
            if is_new or which is None or which not in self._synced:
                os.fsync(fd)
                self._remember_synced(which)
            fd = child
        return fd

    def _remember_synced(self, which: tuple[int, int, int] | None) -> None:
        if which is not None:
            if len(self._synced) >= FOLDERS_REMEMBERED_MAX:
                self._synced.clear()
            self._synced.add(which)

    def _etag(self, fd: int, stat: os.stat_result) -> str:
        etag = self._etags.recall(stat)
        if etag is None:
            etag = md5(read_range(fd, 0, stat.st_size)).hexdigest()
            self._etags.remember(stat, etag)
        return etag

    def _checked_etag(self, name: str, data: bytes, stat: os.stat_result) -> str:
        """The ETag of the whole object; if it was known, the bytes must still be the same."""
        etag = md5(data).hexdigest()
        known = self._etags.recall(stat)
        if known is None:
            self._etags.remember(stat, etag)
        elif etag != known:
            raise CorruptObject(f"{self.label}: {name} has MD5 {etag}, it was written with {known}")
        return etag


def _read_metadata(top: int) -> dict[str, str]:
    return {key: str(value) for key, value in read_json(top, METADATA_FILE).items()}


def _changed(metadata: dict[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in {**metadata, **changes}.items() if value}


def containers(root: Path) -> list[str]:
    """The names of all containers under ``root``, sorted; none if there is no such folder."""
    try:
        entries = os.listdir(root)
    except FileNotFoundError:
        return []
    names = (name_part(entry) for entry in entries if (root / entry / METADATA_FILE).is_file())
    return sorted(name for name in names if name)
