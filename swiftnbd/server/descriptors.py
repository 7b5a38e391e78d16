# SPDX-License-Identifier: MIT
"""Room for connections among the files a process may have open (RLIMIT_NOFILE, ulimit -n).

If peers could take the last descriptor, the store could open nothing any more, and the requests
of everybody else would fail. So as many connections are accepted as leave the store its part.
"""

import resource

RESERVED = 32  # the event loop, listeners, logs, libraries; connections about to be refused
PER_EXPORT = 36  # 16 store requests at once, each a folder and a file or a connection; some more
WATCHERS = 32  # connections of --http: a few people who look, and who scrapes
CONNECTIONS_MIN = 4  # with fewer there is nothing to serve for


def raise_limit() -> int:
    """Allow this process all the open files it may have; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_possible(files_max: int, exports: int, *, watched: bool = False) -> int:
    """How many connections leave enough of ``files_max`` open files to serve these exports.

    With very many exports, of which few are in use at a time, connections get half. ``watched``:
    there are connections over HTTP, too.
    """
    spare = files_max - RESERVED - PER_EXPORT * exports - (WATCHERS if watched else 0)
    return max(spare, files_max // 2 - RESERVED, CONNECTIONS_MIN)
