# SPDX-License-Identifier: MIT
"""The server's own flags: what they add up to, and what does not go together."""

from ipaddress import ip_network
from pathlib import Path

import click
import pytest

from swiftnbd.cli.run import run
from swiftnbd.cli.server_options import (
    ExportOptions,
    ListenOptions,
    export_options,
    listen_options,
)
from swiftnbd.errors import ConfigError
from swiftnbd.server.access import Access
from swiftnbd.server.config import (
    ExportConfig,
    InheritedSocket,
    ListenAddress,
    TcpAddress,
    UnixAddress,
)


def listen(*flags: str) -> ListenOptions:
    """These flags, parsed."""
    seen: list[ListenOptions] = []
    command = click.command(listen_options(lambda listen: seen.append(listen)))
    assert run(command, "prog", flags) == 0
    return seen[0]


@pytest.mark.parametrize(
    ("flags", "addresses"),
    [
        ([], [TcpAddress("127.0.0.1", 10809)]),
        (["-b", "::"], [TcpAddress("::", 10809)]),
        (["-p", "0"], [TcpAddress("127.0.0.1", 0)]),
        (
            ["-b", "127.0.0.1, ::1", "-b", "192.0.2.7", "-p", "7"],
            [TcpAddress("127.0.0.1", 7), TcpAddress("::1", 7), TcpAddress("192.0.2.7", 7)],
        ),
        (["-U", "/run/s"], [UnixAddress(Path("/run/s"))]),
        (["-U", "-"], [UnixAddress(None)]),
        (["-U", "/a", "-U", "/b"], [UnixAddress(Path("/a")), UnixAddress(Path("/b"))]),
        (["-U", "/s", "-p", "7"], [TcpAddress("127.0.0.1", 7), UnixAddress(Path("/s"))]),
        (["-U", "/s", "-b", "::1"], [TcpAddress("::1", 10809), UnixAddress(Path("/s"))]),
        (["--run", "true"], [UnixAddress(None)]),
        (["--run", "true", "-p", "0"], [TcpAddress("127.0.0.1", 0)]),
        (["--run", "true", "-U", "/s"], [UnixAddress(Path("/s"))]),
        (["-s"], []),
    ],
)
def test_where_to_listen(flags: list[str], addresses: list[ListenAddress]) -> None:
    assert listen(*flags).addresses(()) == tuple(addresses)


def test_relative_socket_is_made_absolute_for_daemons(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert listen("-U", "s").addresses(()) == (UnixAddress(tmp_path / "s"),)


def test_sockets_handed_over_are_listened_on() -> None:
    assert listen().addresses((3, 4)) == (InheritedSocket(3), InheritedSocket(4))


@pytest.mark.parametrize(
    ("flags", "handed_over", "sentence"),
    [
        (
            ["-p", "7"],
            (3,),
            "sockets to listen on were handed over (LISTEN_FDS), so -p cannot",
        ),
        (["-b", "::1", "-U", "-"], (3,), "so -b and -U cannot be given"),
        (["--run", "true"], (3,), "so --run cannot be given"),
        (["-s"], (3,), "so --single cannot be given"),
        (["-s", "-p", "7"], (), "--single serves what is connected already, so -p cannot be given"),
        (["-s", "--run", "true"], (), "so --run cannot be given"),
        (["--run", ""], (), "--run needs a command"),
        (["--run", " "], (), "--run needs a command"),
        (["-U", ""], (), "-U needs a path, or - for a socket in a private folder"),
    ],
)
def test_what_does_not_go_together_is_refused(
    flags: list[str], handed_over: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        listen(*flags).addresses(handed_over)
    assert sentence in str(caught.value)


def test_flags_of_what_is_exported() -> None:
    seen: list[ExportOptions] = []
    command = click.command(export_options(lambda serving: seen.append(serving)))
    flags = ["-r", "-c", "8", "--allow", "192.0.2.0/24,::1", "--allow", "10.0.0.1", "--deny", "::1"]
    assert run(command, "prog", flags) == 0
    (options,) = seen
    assert options.cache_bytes == 8 * 1024 * 1024
    networks = [ip_network(text) for text in ("192.0.2.0/24", "::1", "10.0.0.1")]
    assert options.access == Access(tuple(networks), (ip_network("::1"),))
    found = (ExportConfig("a", multi_conn=False), ExportConfig("b", read_only=True))
    assert options.exports(found) == (
        ExportConfig("a", read_only=True, multi_conn=False),
        ExportConfig("b", read_only=True),
    )


def test_exports_stay_as_they_are_without_read_only() -> None:
    found = (ExportConfig("a"), ExportConfig("b", read_only=True))
    assert ExportOptions(read_only=False, allow=(), deny=(), cache_limit=1).exports(found) == found
