# SPDX-License-Identifier: MIT
"""The flags that only the server has, group by group, and what they add up to."""

from dataclasses import dataclass, replace
from pathlib import Path

import click

from swiftnbd.cli.completion import complete_container, complete_filter
from swiftnbd.cli.flags import flag_group, flags_of
from swiftnbd.cli.networks import parse_rules
from swiftnbd.errors import ConfigError
from swiftnbd.export.pace import Pace
from swiftnbd.server.access import Access, Rule
from swiftnbd.server.config import (
    HANDSHAKE_SECONDS_DEFAULT,
    ExportConfig,
    InheritedSocket,
    ListenAddress,
    OnEnd,
    ServerConfig,
    TcpAddress,
    UnixAddress,
)

_HANDSHAKE_SECONDS_MAX = 3600.0
_TERM_SECONDS_MIN, _TERM_SECONDS_MAX = 1.0, 24 * 3600.0
_CONNECTIONS_MAX = 100_000
_PRIVATE = "-"


def _bind_addresses(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """A click callback: an empty address, as of an unset variable, would be every interface."""
    addresses = tuple(word.strip() for value in values for word in value.split(","))
    if not all(addresses):
        raise click.BadParameter(
            "no address given; to listen on all interfaces, say 0.0.0.0 or ::", ctx=ctx, param=param
        )
    return addresses


def _rules(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Rule, ...]:
    """A click callback for lists of networks."""
    try:
        return tuple(rule for value in values for rule in parse_rules(value))
    except ConfigError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from None


def _seconds(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """A click callback; click's own range lets NaN through."""
    if not 0 < value <= _HANDSHAKE_SECONDS_MAX:
        raise click.BadParameter(
            f"{value} is no number of seconds up to {_HANDSHAKE_SECONDS_MAX:.0f}",
            ctx=ctx,
            param=param,
        )
    return value


def _mask(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A click callback for 16 bits, decimal or with 0x."""
    try:
        mask = int(value, 0)
    except ValueError:
        mask = -1
    if not 0 <= mask <= 0xFFFF:
        raise click.BadParameter(f"{value!r} is no number from 0 to 0xffff", ctx=ctx, param=param)
    return mask


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """How clients reach the server. Methods raise ConfigError for what does not go together."""

    bind_address: tuple[str, ...]
    bind_port: int | None
    unix: tuple[str, ...]
    single: bool
    run: str | None

    def addresses(self, handed_over: tuple[int, ...]) -> tuple[ListenAddress, ...]:
        """What to listen on: what was ``handed_over``, or what was asked for, or the default."""
        if self.run is not None and not self.run.strip():
            raise ConfigError("--run needs a command")
        asked = self._asked()
        if handed_over:
            self._refuse(
                asked + self._modes(), "sockets to listen on were handed over (LISTEN_FDS)"
            )
            return tuple(InheritedSocket(descriptor) for descriptor in handed_over)
        if self.single:
            self._refuse(asked + self._modes()[1:], "--single serves what is connected already")
            return ()
        if self.run is not None and not asked:
            return (UnixAddress(),)
        return (*self._tcp(), *(_unix_address(path) for path in self.unix))

    def _tcp(self) -> tuple[TcpAddress, ...]:
        if self.unix and not self.bind_address and self.bind_port is None:
            return ()
        default = TcpAddress()
        port = default.port if self.bind_port is None else self.bind_port
        return tuple(TcpAddress(host, port) for host in self.bind_address or (default.host,))

    def _asked(self) -> list[str]:
        given = {"-b": self.bind_address, "-p": self.bind_port is not None, "-U": self.unix}
        return [flag for flag, is_given in given.items() if is_given]

    def _modes(self) -> list[str]:
        given = {"--single": self.single, "--run": self.run is not None}
        return [flag for flag, is_given in given.items() if is_given]

    def _refuse(self, flags: list[str], reason: str) -> None:
        if flags:
            raise ConfigError(f"{reason}, so {' and '.join(flags)} cannot be given")


def _unix_address(path: str) -> UnixAddress:
    if not path:
        raise ConfigError("-U needs a path, or - for a socket in a private folder")
    return UnixAddress(None if path == _PRIVATE else Path(path).absolute())


_listen = flags_of("Where clients connect")

listen_options = flag_group(
    "listen",
    ListenOptions,
    _listen(
        "-b",
        "--bind-address",
        metavar="ADDRESS",
        multiple=True,
        callback=_bind_addresses,
        help="Address to listen on, IPv4 or IPv6; several with commas or by giving it again "
        f"(default: {TcpAddress().host}, unless -U is given).",
    ),
    _listen(
        "-p",
        "--bind-port",
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help=f"Port to listen on; 0 takes any that is free (default: {TcpAddress().port}).",
    ),
    _listen(
        "-U",
        "--unix",
        metavar="PATH",
        multiple=True,
        help="Listen on a Unix socket that only this user can connect to; - makes one in a "
        "private folder. May be given again.",
    ),
    _listen(
        "-s",
        "--single",
        is_flag=True,
        help="Serve one client on standard input and output, and end with it.",
    ),
    _listen(
        "--run",
        metavar="COMMAND",
        help="Serve while a shell runs COMMAND, which finds $uri, $unixsocket, $port and "
        "$exportname set; then end with its exit code. On a private Unix socket unless -b, "
        "-p or -U is given.",
    ),
)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What clients may have."""

    read_only: bool
    default_export: str | None
    no_list: bool
    allow: tuple[Rule, ...]
    deny: tuple[Rule, ...]
    max_connections: int
    max_connections_per_address: int
    filters: tuple[str, ...]

    def exports(self, found: tuple[ExportConfig, ...]) -> tuple[ExportConfig, ...]:
        """The exports as these flags change them. ConfigError if the default is none of them."""
        if self.default_export not in (None, *(export.name for export in found)):
            raise ConfigError(f"--default-export: there is no export {self.default_export!r}")
        if not self.read_only:
            return found
        return tuple(replace(export, read_only=True) for export in found)

    @property
    def access(self) -> Access:
        """Who may connect at all."""
        return Access(self.allow, self.deny)


_export = flags_of("What they get")

export_options = flag_group(
    "serving",
    ExportOptions,
    _export(
        "-r", "--read-only", is_flag=True, help="Export everything read-only, and lock nothing."
    ),
    _export(
        "-e",
        "--default-export",
        metavar="NAME",
        shell_complete=complete_container,
        help="What clients get that name no export (default: the export, if there is but one).",
    ),
    _export("--no-list", is_flag=True, help="Do not tell clients which exports there are."),
    _export(
        "--allow",
        metavar="NETWORKS",
        multiple=True,
        callback=_rules,
        help="Addresses and networks that may connect, whatever --deny says; also all, "
        "allipv4, allipv6, unix. With commas or given again.",
    ),
    _export(
        "--deny",
        metavar="NETWORKS",
        multiple=True,
        callback=_rules,
        help="Those that may not, written likewise; --deny all leaves those of --allow.",
    ),
    _export(
        "--max-connections",
        type=click.IntRange(1, _CONNECTIONS_MAX),
        metavar="N",
        default=ServerConfig().connections_max,
        show_default=True,
        help="How many connections there may be at once. Each can take some memory; the log "
        "says how much that is in all.",
    ),
    _export(
        "--max-connections-per-address",
        type=click.IntRange(1, _CONNECTIONS_MAX),
        metavar="N",
        default=ServerConfig().connections_per_address_max,
        show_default=True,
        help="How many of them from one address (one IPv6 network of 64 bits).",
    ),
    _export(
        "--filter",
        "filters",
        metavar="NAME",
        multiple=True,
        shell_complete=complete_filter,
        help="Put a filter in front: its name, or a Python file. Given again, requests come to "
        "the first one first. KEY=VALUE arguments tell it what to do.",
    ),
)


@dataclass(frozen=True, slots=True)
class HandshakeOptions:
    """How the server talks with a client: at first, and at its own end."""

    handshake_timeout: float
    no_sr: bool
    mask_handshake: int
    on_end: str


@dataclass(frozen=True, slots=True)
class LockOptions:
    """How the containers are kept from other servers."""

    takeover: bool
    lock_term: float

    def pace(self, settle_seconds: float, outage_seconds: float) -> Pace:
        """How to lock, checked against the longest outage that requests survive (0: there are
        none)."""
        pace = Pace(settle_seconds, self.lock_term)
        if outage_seconds:
            pace.check_outages(outage_seconds)
        return pace


_lock = flags_of("How others are kept out")

lock_options = flag_group(
    "locking",
    LockOptions,
    _lock(
        "--takeover",
        is_flag=True,
        help="Take a container over from a server elsewhere that has died: it must have given no "
        "sign of life for its whole lock term and half a minute, from when this one began to look.",
    ),
    _lock(
        "--lock-term",
        type=click.FloatRange(_TERM_SECONDS_MIN, _TERM_SECONDS_MAX),
        metavar="SECONDS",
        default=Pace().term_seconds,
        show_default=True,
        help="How long a container stays ours while the store cannot be reached; then nothing is "
        "answered until it can. On a Swift more than 1.2 times the --timeout.",
    ),
)


_handshake = flags_of("How they are talked to")

handshake_options = flag_group(
    "handshake",
    HandshakeOptions,
    _handshake(
        "--handshake-timeout",
        type=float,
        callback=_seconds,
        metavar="SECONDS",
        default=HANDSHAKE_SECONDS_DEFAULT,
        show_default=True,
        help="Drop a client that takes longer to choose an export.",
    ),
    _handshake(
        "--no-sr", is_flag=True, help="Offer no structured replies, to test how a client does."
    ),
    _handshake(
        "--mask-handshake",
        metavar="MASK",
        callback=_mask,
        default=f"{ServerConfig().mask_handshake:#x}",
        help="Offer only these of the handshake flags, to test how a client does.",
    ),
    _handshake(
        "--on-end",
        type=click.Choice([choice.value for choice in OnEnd]),
        default=ServerConfig().on_end.value,
        show_default=True,
        help="What clients get that ask for something while the server ends: an error, or the end "
        "of the connection, for clients that wait for the next server and ask again.",
    ),
)
