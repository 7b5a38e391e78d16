# SPDX-License-Identifier: MIT
"""The flags for the process around the server, its log, and what it shows of itself."""

import os
import re
import tempfile
from dataclasses import dataclass
from math import inf

import click

from swiftnbd.cli.flags import flag_group, flags_of
from swiftnbd.log import LogFormat, log_for_server
from swiftnbd.server.config import SLOW_SECONDS_DEFAULT, TcpAddress

PID_FILE_DEFAULT = os.path.join(tempfile.gettempdir(), "swiftnbd.pid")

_SLOW_SECONDS_MAX = 24 * 3600.0
_PORT_MAX = 65535
_HTTP_ADDRESS = re.compile(
    r"(?:(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s\[\]:/]*)):)?(?P<port>[0-9]{1,5})"
)


def _slow_seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """A click callback; click's own range lets NaN through."""
    if not 0 <= value <= _SLOW_SECONDS_MAX:
        raise click.BadParameter(
            f"{value} is no number of seconds up to {_SLOW_SECONDS_MAX:.0f}", ctx=ctx, param=param
        )
    return value


def _http_address(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> TcpAddress | None:
    """A click callback for ``PORT``, ``HOST:PORT`` and ``[IPV6]:PORT``."""
    if value is None:
        return None
    match = _HTTP_ADDRESS.fullmatch(value)
    if match is None or int(match["port"]) > _PORT_MAX:
        raise click.BadParameter(
            f"{value!r} is no PORT, ADDRESS:PORT or [IPV6]:PORT", ctx=ctx, param=param
        )
    return TcpAddress(match["v6"] or match["host"] or TcpAddress().host, int(match["port"]))


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """The process around the server."""

    foreground: bool
    user: str | None
    group: str | None
    pid_file: str | None
    log_file: str | None
    syslog: bool
    log_format: str
    slow_seconds: float
    dump_config: bool
    dump_plugin: bool
    http: TcpAddress | None

    @property
    def is_logged_elsewhere(self) -> bool:
        """Whether whoever reads the log does not see what is said on standard error."""
        return self.syslog or self.log_file is not None

    def log(self, *, verbose: bool) -> None:
        """Have everything logged as was asked for."""
        log_for_server(
            verbose=verbose,
            syslog=self.syslog,
            log_file=self.log_file,
            style=LogFormat(self.log_format),
        )

    @property
    def slow(self) -> float:
        """Seconds from which on a request is slow."""
        return self.slow_seconds or inf


_process = flags_of("The process")

process_options = flag_group(
    "process",
    ProcessOptions,
    _process(
        "-f",
        "--foreground",
        is_flag=True,
        help="Don't detach from the terminal (foreground mode); implied by --single, --run and "
        "sockets from systemd.",
    ),
    _process(
        "-u",
        "--user",
        metavar="USER",
        help="Run as this user, once the server listens and has read its files; name or number.",
    ),
    _process(
        "-g",
        "--group",
        metavar="GROUP",
        help="With this group (default: the user's, with all others it is in).",
    ),
    _process(
        "--pid-file",
        metavar="FILE",
        help=f"File to store the process id in (default: {PID_FILE_DEFAULT}, none where -f is "
        "implied).",
    ),
    _process(
        "-l",
        "--log-file",
        metavar="FILE",
        help="Log into this file. Without it and --syslog a detached server logs nowhere.",
    ),
    _process("--syslog", is_flag=True, help="Log to the system logger (local0)."),
    _process(
        "--log-format",
        type=click.Choice([style.value for style in LogFormat]),
        default=LogFormat.TEXT.value,
        show_default=True,
        help="Log lines for people, or a JSON object a line for programs.",
    ),
    _process(
        "--slow-seconds",
        type=float,
        callback=_slow_seconds,
        metavar="SECONDS",
        default=SLOW_SECONDS_DEFAULT,
        show_default=True,
        help="Log requests of clients and requests to Swift that take so long; 0: none of them.",
    ),
    _process(
        "--dump-config",
        is_flag=True,
        help="Print what all flags, files and variables add up to, for each export and without "
        "secrets, as JSON; serve nothing.",
    ),
    _process(
        "--dump-plugin",
        is_flag=True,
        help="Print what there is to know of PLUGIN, as lines of KEY=VALUE, or of the filters, or "
        "which plugins there are; serve nothing.",
    ),
    _process(
        "--http",
        metavar="[ADDR:]PORT",
        callback=_http_address,
        help="Serve metrics for Prometheus, status and a page to look at over HTTP, to everybody "
        "who can reach that address (default: nowhere; without ADDR on 127.0.0.1).",
    ),
)
