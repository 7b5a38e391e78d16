# SPDX-License-Identifier: MIT
"""A plugin of nbdkit that calls every function there is, and writes down what comes of it.

``trace=FILE`` says where to. Reading block 1 drops the client when it has its answer, and block 2
at once.
"""

import builtins
import errno

import nbdkit

API_VERSION = 2
BLOCK = 512
TRACE = None

ANYWHERE = [
    *(f"parse_size({text!r})" for text in ("0", "10", "10b", "1s", " 7", "1k", "2M", "3g", "+4")),
    *(f"parse_size({text!r})" for text in ("-1", "k", "1kk", "1 k", "0x10", "1.5M", "8E", "7E")),
    *("parse_size(5)", "parse_size()", "parse_size('1', '2')"),
    *(f"parse_bool({text!r})" for text in ("1", "0", "TRUE", "f", "Yes", "n", "on", "OFF")),
    *(f"parse_bool({text!r})" for text in ("", "2", "tru", " 1", "yes ")),
    *(f"parse_delay('d', {text!r})" for text in ("1", "1s", "1.5", "100ms", "1.25ms", "5us")),
    *(f"parse_delay('d', {text!r})" for text in ("7ns", "0", "", "x", "-1", "1m", "1 s", "1e3")),
    *(f"parse_probability('p', {text!r})" for text in ("0", "1", "0.25", "10%", "1:4", "1/8")),
    *(f"parse_probability('p', {text!r})" for text in ("2", "1e-3", "", "x", "-1", "1:0", "1%%")),
    *("debug('words')", "debug(7)", "set_error(errno.EIO)", "set_error('x')"),
]
OF_A_CLIENT = ["export_name()", "is_tls()", "peer_uid()", "peer_gid()"]
OF_A_CLIENT += ["nanosleep(0, 1000)", "peer_tls_dn()", "peer_tls_issuer_dn()"]
WITHOUT_A_CLIENT = ["export_name()"]


def note(*what):
    with builtins.open(TRACE, "a") as file:
        print(*what, file=file)


def call(asked):
    name = asked.partition("(")[0]
    if not hasattr(nbdkit, name):
        note("absent", name)
        return
    try:
        outcome = repr(eval(f"nbdkit.{asked}", {"nbdkit": nbdkit, "errno": errno}))
    except Exception as error:
        outcome = type(error).__name__
    note(asked, "->", outcome)


def config(key, value):
    global TRACE
    assert key == "trace"
    TRACE = value


def config_complete():
    for asked in (*ANYWHERE, *WITHOUT_A_CLIENT):
        call(asked)
    if not hasattr(nbdkit, "disconnect"):
        note("absent", "disconnect")


def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL


def list_exports(readonly, is_tls):
    note("list_exports", readonly, is_tls)
    return [("one", "")]


def default_export(readonly, is_tls):
    note("default_export", readonly, is_tls)
    return "one"


def open(readonly):
    for asked in OF_A_CLIENT:
        call(asked)
    return {}


def close(h):
    note("close")


def get_size(h):
    return 64 * BLOCK


def pread(h, buf, offset, flags):
    note("pread", offset // BLOCK)
    buf[:] = bytes([offset // BLOCK]) * len(buf)
    if offset // BLOCK in (1, 2) and hasattr(nbdkit, "disconnect"):
        nbdkit.disconnect(offset // BLOCK == 2)
