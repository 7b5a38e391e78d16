# SPDX-License-Identifier: MIT
"""Everything fails, each offset in a way of its own."""

import errno
import sys

import nbdkit

API_VERSION = 2
NUMBERS = (0, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
           errno.ESHUTDOWN, errno.EINVAL, errno.ENOENT, errno.EACCES, errno.EOPNOTSUPP,
           errno.EOVERFLOW)  # fmt: skip


def fail(offset):
    number = NUMBERS[offset // 512]
    if number:
        nbdkit.set_error(number)
    raise OSError(errno.ENOSPC, "not this number")


def open(readonly):
    nbdkit.set_error(errno.EPERM)  # of no effect: open succeeds
    return 1


def get_size(h):
    return 1024 * 1024


def can_extents(h):
    return True


def can_flush(h):
    return True


def can_fua(h):
    return nbdkit.FUA_EMULATE


def can_trim(h):
    return 1  # not True


def can_cache(h):
    return nbdkit.CACHE_NATIVE


def pread(h, buf, offset, flags):
    if offset == 512 * 100:
        nbdkit.set_error(errno.ENOSPC)  # of no effect: it succeeds
        return
    if offset == 512 * 101:
        sys.exit(1)
    fail(offset)


def pwrite(h, buf, offset, flags):
    fail(offset)


def zero(h, count, offset, flags):
    if offset == 512 * 11:
        return  # the error of another request is not this one's
    fail(offset)


def extents(h, count, offset, flags):
    return {
        0: [],
        512: [(0, 512, 0)],
        1024: [(2048, 4096, 0)],
        1536: [(0, 2048, 0), (2304, 4096, 0)],
        2048: [(0, 4096)],
        2560: [(-1, 4096, 0)],
        3072: None,
        3584: [(3584, 512, 3), (4096, 512, 3)],
    }[offset]
