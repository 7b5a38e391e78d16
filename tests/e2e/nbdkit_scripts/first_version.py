# SPDX-License-Identifier: MIT
"""A plugin of nbdkit for version 1 of its API, with nothing that can be left out but writing."""

import builtins

data = bytearray(1024 * 1024)
trace = None


def config(key, value):
    global trace
    trace = value


def note(*what):
    with builtins.open(trace, "a") as file:
        print(*what, file=file)


def open(readonly):
    note("open", readonly)
    return 1


def get_size(h):
    return len(data)


def pread(h, count, offset):
    note("pread", count, offset)
    return data[offset : offset + count + (offset == 4096) - (offset == 8192)]


def pwrite(h, buf, offset):
    note("pwrite", len(buf), offset)
    data[offset : offset + len(buf)] = buf


def flush(h):
    note("flush")


def trim(h, count, offset):
    note("trim", count, offset)


def zero(h, count, offset, may_trim):
    note("zero", count, offset, may_trim)
    data[offset : offset + count] = bytes(count)
