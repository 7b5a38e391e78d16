# SPDX-License-Identifier: MIT
"""The server's own flags: what they add up to, and what does not go together."""

import re
from ipaddress import ip_network
from pathlib import Path

import click
import pytest

from swiftnbd.cli.flags import GroupedOption
from swiftnbd.cli.process_options import process_options
from swiftnbd.cli.run import run
from swiftnbd.cli.server import server
from swiftnbd.cli.server_options import (
    ExportOptions,
    HandshakeOptions,
    ListenOptions,
    export_options,
    handshake_options,
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


def serving(*flags: str) -> ExportOptions:
    """These flags, parsed."""
    seen: list[ExportOptions] = []
    command = click.command(export_options(lambda serving: seen.append(serving)))
    assert run(command, "prog", flags) == 0
    return seen[0]


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
    flags = ["-r", "--allow", "192.0.2.0/24,::1", "--allow", "10.0.0.1", "--deny", "::1"]
    options = serving(*flags)
    networks = [ip_network(text) for text in ("192.0.2.0/24", "::1", "10.0.0.1")]
    assert options.access == Access(tuple(networks), (ip_network("::1"),))
    found = (ExportConfig("a", multi_conn=False), ExportConfig("b", read_only=True))
    assert options.exports(found) == (
        ExportConfig("a", read_only=True, multi_conn=False),
        ExportConfig("b", read_only=True),
    )


def test_exports_stay_as_they_are_without_read_only() -> None:
    found = (ExportConfig("a"), ExportConfig("b", read_only=True))
    assert serving().exports(found) == found


def test_default_export_has_to_be_one() -> None:
    found = (ExportConfig("a"), ExportConfig("b"))
    assert serving("-e", "b").exports(found) == found
    with pytest.raises(ConfigError, match="--default-export: there is no export 'c'"):
        serving("-e", "c").exports(found)


def test_caps_on_connections() -> None:
    found = serving("--max-connections", "7", "--max-connections-per-address", "3")
    assert (found.max_connections, found.max_connections_per_address) == (7, 3)
    assert (serving().max_connections, serving().max_connections_per_address) == (200, 100)


@pytest.mark.parametrize(
    ("text", "mask"), [("0", 0), ("0xffff", 0xFFFF), ("65535", 0xFFFF), ("0x1", 1)]
)
def test_mask_of_the_handshake(text: str, mask: int) -> None:
    seen: list[HandshakeOptions] = []
    command = click.command(handshake_options(lambda handshake: seen.append(handshake)))
    flags = ["--mask-handshake", text, "--no-sr", "--handshake-timeout", "0.5", "--on-end=close"]
    assert run(command, "prog", flags) == 0
    assert run(command, "prog", []) == 0
    assert seen == [
        HandshakeOptions(0.5, True, mask, "close"),
        HandshakeOptions(10.0, False, 0xFFFF, "refuse"),
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9810", TcpAddress("127.0.0.1", 9810)),
        (":0", TcpAddress("127.0.0.1", 0)),
        ("0.0.0.0:80", TcpAddress("0.0.0.0", 80)),
        ("monitor.example:65535", TcpAddress("monitor.example", 65535)),
        ("[::1]:9810", TcpAddress("::1", 9810)),
    ],
)
def test_where_to_be_watched(text: str, address: TcpAddress) -> None:
    seen: list[TcpAddress | None] = []

    command = click.command(process_options(lambda process: seen.append(process.http)))
    assert run(command, "prog", ["--http", text]) == 0
    assert run(command, "prog", []) == 0
    assert seen == [address, None]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-p", "65536"], "Invalid value for '-p' / '--bind-port': 65536 is not in the range"),
        (["-b", "::1,,::2"], "'-b' / '--bind-address': no address given"),
        (["-U"], "Option '-U' requires an argument"),
        (["--run"], "Option '--run' requires an argument"),
        (["--allow", "me"], "'--allow': 'me' is neither an address"),
        (["--deny", ""], "'--deny': '' is neither an address"),
        (["--handshake-timeout", "0"], "'--handshake-timeout': 0.0 is no number of seconds"),
        (["--handshake-timeout", "nan"], "'--handshake-timeout': nan is no number of seconds"),
        (["--handshake-timeout", "inf"], "'--handshake-timeout': inf is no number of seconds"),
        (["--handshake-timeout", "soon"], "'--handshake-timeout': 'soon' is not a valid float"),
        (["--mask-handshake", "0x10000"], "'0x10000' is no number from 0 to 0xffff"),
        (["--mask-handshake", "-1"], "'-1' is no number from 0 to 0xffff"),
        (["--mask-handshake", "all"], "'all' is no number from 0 to 0xffff"),
        (["--max-connections", "0"], "'--max-connections': 0 is not in the range"),
        (["-c", "0"], "'-c' / '--cache-limit': '0' is not a number of MB, or a size like 512M"),
        (["--http", "65536"], "'--http': '65536' is no PORT, ADDRESS:PORT or [IPV6]:PORT"),
        (["--http", "::1:80"], "'--http': '::1:80' is no PORT"),
        (["--http", "localhost"], "'--http': 'localhost' is no PORT"),
        (["--http", "http://localhost:80"], "'--http': 'http://localhost:80' is no PORT"),
        (["-s", "--run", "true"], "--single serves what is connected already, so --run cannot"),
        (["-s", "-U", "-"], "--single serves what is connected already, so -U cannot"),
        (["-e", "none", "-a", "file:/nonexistent"], "no container is set up under /nonexistent"),
    ],
)
def test_misused_flag_is_one_sentence_and_a_code(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(server, "swiftnbd-server", flags)
    said = capsys.readouterr().err
    assert code == (4 if "-e" in flags else 2)
    assert said.startswith("swiftnbd-server: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_help_shows_every_flag_under_a_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "swiftnbd-server", ["--help"]) == 0
    shown = capsys.readouterr().out
    titles = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles[0] == "Where the containers are:"
    assert titles[-1] == "Other:"  # the version, -v and the help itself
    options = [param for param in server.params if isinstance(param, click.Option)]
    rest = [option.name for option in options if not isinstance(option, GroupedOption)]
    assert rest == ["version", "verbose"]
    for option in options:
        assert all(re.search(rf"  {flag}\b|, {flag}\b", shown) for flag in option.opts)
