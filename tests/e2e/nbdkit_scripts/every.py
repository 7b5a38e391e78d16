# SPDX-License-Identifier: MIT
"""A plugin of nbdkit with every callback there is. It writes down what it is asked.

``trace=FILE`` says where to; ``NAME=VALUE`` has a callback of that name answer so.
"""

import builtins
import errno
import threading

import nbdkit

API_VERSION = 2

answers = {}
data = bytearray(1024 * 1024)
guard = threading.Lock()


def note(*what):
    if "trace" not in answers:
        return
    with guard, builtins.open(answers["trace"], "a") as file:
        print(*what, file=file)


def answer(name, default):
    return eval(answers[name]) if name in answers else default


def dump_plugin():
    print("every=yes")


def config(key, value):
    answers[key] = value
    if key != "trace":
        note("config", key, value)


def config_complete():
    note("config_complete", nbdkit.parse_size("1M"))
    for text in ("", "-1", "1x", "16E", "k"):
        try:
            note("parse_size", repr(text), nbdkit.parse_size(text))
        except ValueError as error:
            note("parse_size", repr(text), error)
    names = sorted(name for name in dir(nbdkit) if name.isupper())
    note(*(f"{name}={getattr(nbdkit, name)}" for name in names))


def thread_model():
    note("thread_model")
    return answer("thread_model", nbdkit.THREAD_MODEL_PARALLEL)


def get_ready():
    note("get_ready")


def after_fork():
    note("after_fork")


def cleanup():
    note("cleanup")


def list_exports(readonly, is_tls):
    note("list_exports", readonly, is_tls)
    return [("one", "the first"), "two", ("größe", "")]


def default_export(readonly, is_tls):
    note("default_export", readonly, is_tls)
    return "one"


def preconnect(readonly):
    note("preconnect", readonly)


def open(readonly):
    note("open", readonly, repr(nbdkit.export_name()))
    nbdkit.debug("it is open")
    if nbdkit.export_name() == "refused":
        raise ValueError("not this one")
    return {"name": nbdkit.export_name()}


def close(h):
    note("close", h["name"])


def export_description(h):
    return f"about {h['name']}"


def get_size(h):
    return len(data)


def block_size(h):
    return answer("block_size", (1, 8192, 0xFFFFFFFF))


def is_rotational(h):
    return answer("is_rotational", True)


def can_multi_conn(h):
    return answer("can_multi_conn", True)


def can_write(h):
    return answer("can_write", True)


def can_flush(h):
    return answer("can_flush", True)


def can_trim(h):
    return answer("can_trim", True)


def can_zero(h):
    return answer("can_zero", True)


def can_fast_zero(h):
    return answer("can_fast_zero", True)


def can_fua(h):
    return answer("can_fua", nbdkit.FUA_NATIVE)


def can_cache(h):
    return answer("can_cache", nbdkit.CACHE_NATIVE)


def can_extents(h):
    return answer("can_extents", True)


def pread(h, buf, offset, flags):
    note("pread", len(buf), offset, flags)
    with guard:
        buf[:] = data[offset : offset + len(buf)]


def pwrite(h, buf, offset, flags):
    note("pwrite", len(buf), offset, flags, buf.readonly)
    with guard:
        data[offset : offset + len(buf)] = buf


def flush(h, flags):
    note("flush", flags)


def trim(h, count, offset, flags):
    note("trim", count, offset, flags)


def zero(h, count, offset, flags):
    note("zero", count, offset, flags)
    if answers.get("zero") == "raise":
        nbdkit.set_error(errno.EOPNOTSUPP)
        raise NotImplementedError
    if answers.get("zero") == "return":
        nbdkit.set_error(errno.ENOTSUP)
        return
    with guard:
        data[offset : offset + count] = bytes(count)


def cache(h, count, offset, flags):
    note("cache", count, offset, flags)


def extents(h, count, offset, flags):
    note("extents", count, offset)
    first = 64 * 1024
    return answer(
        "extents",
        [
            (0, first, 0),
            (first, 0, 3),
            (first, first, nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO),
            (2 * first, first, nbdkit.EXTENT_ZERO),
            (3 * first, len(data) - 3 * first, 0),
        ],
    )
