# SPDX-License-Identifier: MIT
"""What is asked of both servers, for nbdsh: one line of output for each answer."""

import hashlib
import os
from functools import partial

TOLD = [
    *("get_size", "is_read_only", "is_rotational", "get_export_description"),
    *("can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_multi_conn"),
    *("can_cache",),
]


def short(data):
    return f"{len(data)} bytes: {hashlib.sha256(data).hexdigest()[:16]}"


def told(what, ask):
    try:
        found = ask()
    except nbd.Error as error:  # noqa: F821
        found = error.errno or "refused"
    print(what, found)


def connected(name=None, opt_mode=False):
    made = nbd.NBD()  # noqa: F821
    made.set_opt_mode(True)
    made.set_full_info(True)
    made.set_strict_mode(0)
    made.add_meta_context("base:allocation")
    if "CERTIFICATES" in os.environ:
        made.set_tls(nbd.TLS_REQUIRE)  # noqa: F821
        made.set_tls_certificates(os.environ["CERTIFICATES"])
        made.set_tls_verify_peer(False)  # it has no name on a Unix socket
    made.connect_unix(os.environ["UNIXSOCKET"])
    if name is not None:
        made.set_export_name(name)
    if not opt_mode:
        made.opt_go()
    return made


def kinds(made, count, offset, flags=0):
    found = []

    def extent(context, at, entries, error):
        found.extend(entries)

    made.block_status(count, offset, extent, flags)
    lengths = found[::2]
    lengths[-1] -= max(0, sum(lengths) - count)  # nbdkit goes on behind what was asked for
    return list(zip(lengths, found[1::2], strict=True))


def told_of(made):
    for name in TOLD:
        told(name, getattr(made, name))


def listed():
    made = connected(opt_mode=True)
    found = []
    told("list", lambda: made.opt_list(lambda *each: found.append(each)) and found)
    made.opt_abort()


def all_requests(made):
    block = bytes(range(256)) * 16
    fua, no_hole, fast = 1, 2, 16
    told("pwrite", lambda: made.pwrite(block, 4096))
    told("pwrite fua", lambda: made.pwrite(block, 8192, fua))
    told("pread", lambda: short(made.pread(4000, 8192 + 100)))
    told("flush", made.flush)
    for flags in (0, fua):
        told(f"trim {flags}", lambda flags=flags: made.trim(65536, 0, flags))
    for flags in (0, fua, no_hole, no_hole | fua, fast, fast | fua):
        if flags & fast and not made.can_fast_zero():
            continue  # nbdkit 1.32 aborts
        told(f"zero {flags}", lambda flags=flags: made.zero(512, 4096 + 512 * flags, flags))
    told("pread", lambda: short(made.pread(16384, 4096)))
    told("cache", lambda: made.cache(4096, 12288))
    told("extents", lambda: kinds(made, 1024 * 1024, 0))
    told("extents", lambda: kinds(made, 65536, 32768))
    told("extents one", lambda: kinds(made, 65536, 32768, 8))


def everything():
    listed()
    for name in ("", "two", "refused"):
        try:
            made = connected(name)
        except nbd.Error:  # noqa: F821
            print(name, "refused")
            continue
        print("export", name)
        told_of(made)
        if name != "two":
            all_requests(made)
        made.shutdown()


def requests(name):
    made = connected(name)
    told("name", made.get_canonical_export_name)
    told_of(made)
    all_requests(made)
    told("larger than asked", lambda: short(made.pread(16, 4096)))
    told("shorter than asked", lambda: short(made.pread(16, 8192)))
    made.shutdown()


def failures(name):
    made = connected(name)
    told_of(made)
    for number in range(13):
        told(f"pread {number}", partial(made.pread, 512, number * 512))
        told(f"pwrite {number}", partial(made.pwrite, bytes(512), number * 512))
        told(f"zero {number}", partial(made.zero, 512, number * 512))
    for number in (100, 101):
        told(f"pread {number}", lambda number=number: short(made.pread(512, number * 512)))
    if made.can_fast_zero():
        told("zero fast", lambda: made.zero(512, 512 * 11, 16))
    for offset in range(0, 4096, 512):
        told(f"extents {offset}", partial(kinds, made, 1024, offset))
    told("flush", made.flush)
    told("cache", lambda: made.cache(512, 0))
    made.shutdown()


def functions(*, can_disconnect):
    """What a script can call of the module nbdkit; the clients it drops are dropped."""
    listed()
    for block in (1, 2) if can_disconnect else ():
        made = connected("")
        for asked in (3, block, 4):  # after block 1 nbdkit goes on refusing, we close
            try:
                print("pread", asked, short(made.pread(512, asked * 512)))
            except nbd.Error:  # noqa: F821
                print("pread", asked, "refused")
    made = connected("")
    told("pread 5", lambda: short(made.pread(512, 5 * 512)))
    made.shutdown()
