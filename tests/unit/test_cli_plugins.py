# SPDX-License-Identifier: MIT
"""Plugins and filters on the command line and in the configuration: found, told, shown."""

import json
import logging
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from swiftnbd.api import BOOLEAN, FRACTION, OFFSET, SECONDS, SIZE, TEXT, ConfigError, parameter
from swiftnbd.api.parameters import choice, other_keys, shown_values, values_of
from swiftnbd.cli.finding import FILTERS, PLUGINS, find_filter, find_plugin, own_names
from swiftnbd.cli.server import server
from swiftnbd.errors import ContainerMissing

MiB = 1024 * 1024

OFFSET_FILTER = '''
from dataclasses import dataclass
from swiftnbd.api import OFFSET, SIZE, Device, Filter, FilterPlugin, Opening, parameter

@dataclass
class Later(FilterPlugin):
    """Begins later."""

    by: int = parameter(OFFSET, "So many bytes later.")
    size: int = parameter(SIZE, "At most so long.", default=2**40)

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return device
'''

GREEDY = '''
from dataclasses import dataclass
from swiftnbd.api import TEXT, Device, Opening, Plugin, other_keys, parameter

@dataclass
class Greedy(Plugin):
    """Takes everything."""

    script: str = parameter(TEXT, "The first word.", main=True)
    password: str = parameter(TEXT, "Nobody sees it.", default="", secret=True)
    rest: tuple = other_keys("Goes to the script.")

    async def open(self, opening: Opening) -> Device:
        raise NotImplementedError
'''


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plugin and a filter in it; whoever runs the tests may have a cloud."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("OS_", "ST_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "later.py").write_text(OFFSET_FILTER)
    (tmp_path / "greedy.py").write_text(GREEDY)
    (tmp_path / "empty.py").touch()
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(server, words)


def failed(*words: str) -> str:
    """What is said of a command line that cannot be used."""
    found = call(*words, "--dump-config").exception
    assert isinstance(found, ConfigError), found
    return str(found)


def exports(*words: str) -> dict[str, dict[str, object]]:
    """The exports of a command line, as --dump-config shows them."""
    done = call(*words, "--dump-config")
    assert done.exception is None, done.exception
    found: dict[str, dict[str, object]] = json.loads(done.output)["exports"]
    return found


def test_first_value_is_for_the_main_parameter() -> None:
    for words in (["memory", "1G"], ["memory", "size=1G"], ["memory", "memory.size=1G"]):
        assert exports(*words)["memory"]["plugin"] == {"name": "memory", "size": "1 GiB"}


def test_export_is_called_as_the_plugin_unless_it_has_a_name() -> None:
    assert list(exports("memory", "1G")) == ["memory"]
    assert list(exports("-e", "disk", "memory", "1G")) == ["disk"]
    assert list(exports("./greedy.py", "x")) == ["greedy"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["memory"], "memory: size=SIZE is missing"),
        (["memory", "1G", "2G"], "memory: size is given twice"),
        (["memory", "lots"], "memory: size: 'lots' is not a size like 512M or 2G"),
        (["memory", "1G", "colour=red"], "unknown key 'colour'; there are: size"),
        (["./gone.py"], "./gone.py: No such file"),
        (["--filter", "gone", "memory", "1G"], "there is no filter 'gone'; there are: blocks"),
        (["--filter", "lusk", "memory", "1G"], "there is no filter 'lusk'; is it luks?"),
        (["--filter", "memory", "null", "1G"], "memory is a plugin: it stands behind the filters"),
        (["luks", "x"], "luks is a filter: write --filter luks before the plugin or container"),
        (["memroy", "1G"], "'memroy'; is it memory? For a container of this name there is no auth"),
        (["--filter", "rate", "nosuch", "rate=1M"], "there is no plugin 'nosuch'; there are: data"),
        (["-a", "file:d", "memroy", "size=1G"], "is it memory? A container of this name is served"),
        (["--filter", "later.py", "memory", "1G", "by=1"], "1G"),
        (["later.py"], "later.py is a filter: write --filter later.py before the plugin or"),
        (["--filter", "greedy.py", "null"], "greedy.py is a plugin: it stands behind"),
        (["empty.py"], "empty.py defines 0 classes of the kind Plugin, and should one"),
    ],
)
def test_mistake_is_said_in_a_sentence(words: list[str], text: str) -> None:
    if text == "1G":  # both have a size, and the bare word is the plugin's
        assert exports(*words)["memory"]["plugin"] == {"name": "memory", "size": "1 GiB"}
    else:
        assert text in failed(*words)


def test_key_goes_to_whoever_declares_it() -> None:
    words = ["--filter", "./later.py", "memory", "1G", "by=4K"]
    assert exports(*words)["memory"]["filters"] == [
        {"name": "./later.py", "by": "4 KiB", "size": "1 TiB"}
    ]


def test_key_of_two_must_say_whose_it_is() -> None:
    words = ["--filter", "later.py", "memory", "by=0"]
    assert "both have a key 'size'" in failed(*words, "size=1M")
    found = exports(*words, "memory.size=1M", "later.py.size=2M")["memory"]
    assert found["plugin"] == {"name": "memory", "size": "1 MiB"}
    assert found["filters"] == [{"name": "later.py", "by": "0 bytes", "size": "2 MiB"}]


def test_key_of_a_file_begins_with_its_name_alone() -> None:
    words = ["--filter", "./later.py", "memory", "by=0"]
    assert "write later.size= or memory.size=" in failed(*words, "size=1M")
    found = exports(*words, "memory.size=1M", "later.size=2M")["memory"]
    assert found["plugin"] == {"name": "memory", "size": "1 MiB"}
    assert found["filters"] == [{"name": "./later.py", "by": "0 bytes", "size": "2 MiB"}]


def test_filter_that_is_there_twice_is_told_twice_or_by_its_place() -> None:
    words = ["--filter", "offset", "--filter", "through", "--filter", "offset", "null", "1M"]
    both = exports(*words, "offset=4K")["null"]["filters"]
    one = exports(*words, "offset.1.offset=8K", "offset.2.offset=12K")["null"]["filters"]
    assert isinstance(both, list)
    assert isinstance(one, list)
    assert [each.get("offset") for each in both] == ["4 KiB", None, "4 KiB"]
    assert [each.get("offset") for each in one] == ["8 KiB", None, "12 KiB"]
    assert "offset is given twice" in failed(*words, "offset=4K", "offset.2.offset=12K")


def test_filters_of_one_name_that_are_not_the_same_are_told_by_their_place(
    workplace: Path,
) -> None:
    (workplace / "other").mkdir()
    (workplace / "other" / "later.py").write_text(OFFSET_FILTER)
    words = ["--filter", "later.py", "--filter", "other/later.py", "null", "1M"]
    assert "write later.1.by= or later.2.by=" in failed(*words, "by=0")
    assert "write later.1.by= or later.2.by=" in failed(*words, "later.by=0")
    found = exports(*words, "later.1.by=4K", "later.2.by=8K")["null"]["filters"]
    assert isinstance(found, list)
    assert [each["by"] for each in found] == ["4 KiB", "8 KiB"]


def test_file_may_hold_a_plugin_and_a_filter(workplace: Path) -> None:
    (workplace / "both.py").write_text(GREEDY + OFFSET_FILTER)
    found = exports("--filter", "both.py", "./both.py", "x", "by=4K")["both"]
    assert found["plugin"] == {"name": "./both.py", "script": "x", "password": ""}
    assert found["filters"] == [{"name": "both.py", "by": "4 KiB", "size": "1 TiB"}]


@pytest.mark.expects_log("everybody on this machine can see password= on the command line")
def test_plugin_with_keys_of_its_own_gets_them_in_order_and_secrets_are_not_shown() -> None:
    kind = find_plugin("greedy.py")
    assert kind is not None
    given = [("script", "s"), ("b", "1"), ("a", "2"), ("b", "3"), ("password", "hunter2")]
    made = kind(**values_of(kind, given))
    assert vars(made)["rest"] == (("b", "1"), ("a", "2"), ("b", "3"))
    assert "hunter2" not in repr(made)
    words = ["greedy.py", "s", "password=hunter2", "any=thing"]
    assert exports(*words)["greedy"]["plugin"] == {
        "name": "greedy.py", "script": "s", "password": "...",
    }  # fmt: skip


def test_file_that_has_not_changed_gives_the_same_plugin_again() -> None:
    """Else every SIGHUP would change its export."""
    assert find_plugin("greedy.py") is find_plugin("./greedy.py")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import nothing_like_this", "line 1: ModuleNotFoundError"),
        ("\n1 +", "line 2: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
        (GREEDY.replace("open(", "opne("), "has no method open: write async def open(self, open"),
        (GREEDY + "    def __post_init__(self):\n        1 // 0", "line 16: ZeroDivisionError"),
        (GREEDY.replace("@dataclass\n", ""), "is no dataclass"),
        (GREEDY.replace('    script', '    api_version = 2\n    script', 1), "version 2"),
        (GREEDY + GREEDY.replace("Greedy", "Other"), "defines 2 classes of the kind Plugin"),
    ],
)  # fmt: skip
def test_file_that_is_no_plugin_is_refused(workplace: Path, code: str, text: str) -> None:
    (workplace / "mine.py").write_text(code)
    assert text in failed("./mine.py", "x")


def test_help_of_a_plugin_and_of_filters() -> None:
    done = call("memory", "--help")
    assert "A disk in memory" in done.output
    assert "size=SIZE" in done.output
    assert "--bind-address" not in done.output
    both = call("-f", "--filter", "later.py", "memory", "-h").output
    assert "Begins later." in both
    assert "A disk in memory" in both
    assert call("./later.py", "--help").output == call("--filter", "./later.py", "-h").output
    assert call("luks", "--help").output == call("--filter", "luks", "--help").output
    twice = call("--filter", "through", "--filter", "through", "--help").output
    assert twice == call("--filter", "through", "--help").output
    assert "--bind-address" in call("--help").output
    assert "--bind-address" in call("swift", "--help").output


def test_dump_plugin_is_for_programs() -> None:
    lines = call("--dump-plugin", "memory").output.splitlines()
    assert "name=memory" in lines
    assert "parameter_size=SIZE" in lines
    assert "main_parameter=size" in lines
    assert "api_version=1" in lines
    assert "plugins=" in call("--dump-plugin").output
    assert "summary=Begins later." in call("--dump-plugin", "--filter", "later.py").output


def offered(*words: str) -> list[str]:
    """What a shell is told for the last word."""
    try:
        complete = ShellComplete(server, {}, "swiftnbd-server", "_COMPLETE")
        return [each.value for each in complete.get_completions(list(words[:-1]), words[-1])]
    finally:
        logging.disable(logging.NOTSET)  # for a process that does nothing else it may stay so


def test_names_and_keys_are_completed() -> None:
    assert offered("mem") == ["memory"]
    assert set(own_names(PLUGINS)) < set(offered(""))
    assert offered("--filter", "thr") == ["through"]
    assert offered("sparse-random", "run") == ["runlength="]
    assert offered("--filter", "later.py", "memory", "") == ["size=", "by=", "size="]
    assert offered("./greedy.py", "s") == ["script="]
    assert offered("no-such-plugin", "s") == []
    assert offered("--filter", "later.py", "swift", "b") == []


# Beside containers


@pytest.fixture
def folder(workplace: Path) -> str:
    """A store with the containers disk and memory."""
    from swiftnbd.export.layout import Geometry, setup_metadata
    from swiftnbd.store.directory import DirectoryStore

    async def make() -> None:
        for name in ("disk", "memory"):
            store = DirectoryStore(workplace / "store", name)
            await store.create_container(setup_metadata(Geometry(4, 65536)))
            await store.close()

    import asyncio

    asyncio.run(make())
    return f"file:{workplace / 'store'}"


def test_containers_are_served_as_before(folder: str) -> None:
    assert sorted(exports("-a", folder)) == ["disk", "memory"]
    assert list(exports("-a", folder, "disk")) == ["disk"]
    assert list(exports("-a", folder, "swift", "disk")) == ["disk"]


def test_container_with_the_name_of_a_plugin_is_still_a_container(folder: str) -> None:
    assert "plugin" not in exports("-a", folder, "memory")["memory"]
    assert "plugin" not in exports("-a", folder, "memory", "disk")["memory"]
    assert "plugin" in exports("-a", folder, "memory", "1G")["memory"]


def test_filters_stand_before_containers_too(folder: str) -> None:
    found = exports("-a", folder, "--filter", "later.py", "disk", "by=64K")
    assert found["disk"]["filters"] == [{"name": "later.py", "by": "64 KiB", "size": "1 TiB"}]
    both = exports("-a", folder, "--filter", "later.py", "by=64K")
    assert sorted(both) == ["disk", "memory"]


def test_path_that_a_filter_is_told_is_no_plugin(folder: str, workplace: Path) -> None:
    found = exports("-a", folder, "--filter", "cow", f"cow-file={workplace}/changes", "disk")
    assert f"{workplace}/changes" in str(found["disk"]["filters"])


def secrets(workplace: Path, text: str) -> tuple[str, str]:
    path = workplace / "secrets.conf"
    path.write_text(text)
    path.chmod(0o600)
    return "--secrets", str(path)


def test_section_says_what_the_command_line_can(workplace: Path) -> None:
    text = """
[DEFAULT]
username = u
password = p
auth-url = http://127.0.0.1:1/auth/v1.0
[ram]
plugin = memory
memory.size = 10M
read-only = yes
filters = later.py, through
by = 1M
later.py.size = 2M
[disk]
filters = later.py
by = 64K
[backups]
"""
    found = exports(*secrets(workplace, text))
    assert list(found) == ["ram", "disk", "backups"]
    assert found["ram"]["plugin"] == {"name": "memory", "size": "10 MiB"}
    assert found["ram"]["read_only"] is True
    assert found["ram"]["filters"] == [
        {"name": "later.py", "by": "1 MiB", "size": "2 MiB"},
        {"name": "through"},
    ]
    assert found["disk"]["filters"] == [{"name": "later.py", "by": "64 KiB", "size": "1 TiB"}]
    assert found["backups"]["filters"] == []


def test_word_that_is_no_section_may_have_been_a_plugin(workplace: Path) -> None:
    flags = secrets(workplace, "[disk]\nusername = u\npassword = p\n")
    found = call(*flags, "memroy", "1G", "--dump-config").exception
    assert isinstance(found, ContainerMissing)
    assert "add a section [memroy]; or is the plugin memory meant?" in str(found)


def test_mistake_in_a_section_names_it(workplace: Path) -> None:
    flags = secrets(workplace, "[ram]\nplugin = memory\ncache-limit = 5\nsize = 1M\n")
    assert "[ram]: unknown key 'cache-limit'; there are: size" in failed(*flags)
    flags = secrets(workplace, "[ram]\nplugin = nope\n")
    assert "[ram]: there is no plugin 'nope'; there are:" in failed(*flags)


# Parameters


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class All:
    size: int = parameter(SIZE, "", default=MiB)
    offset: int = parameter(OFFSET, "", default=0)
    seconds: float = parameter(SECONDS, "", default=1.0)
    is_on: bool = parameter(BOOLEAN, "", default=False)
    share: float = parameter(FRACTION, "", default=0.5)
    colour: Colour = parameter(choice(Colour), "", default=Colour.RED)
    words: tuple[str, ...] = parameter(TEXT, "", repeated=True)
    rest: tuple[tuple[str, str], ...] = other_keys("")


@pytest.mark.parametrize(
    ("key", "text", "field", "value"),
    [
        ("size", "4k", "size", 4096),
        ("offset", "0", "offset", 0),
        ("seconds", "100ms", "seconds", 0.1),
        ("seconds", "2m", "seconds", 120.0),
        ("is-on", "YES", "is_on", True),
        ("is_on", "off", "is_on", False),
        ("share", "10%", "share", 0.1),
        ("colour", "Blue", "colour", Colour.BLUE),
        ("words", "a", "words", ("a",)),
    ],
)
def test_value_is_read_by_its_kind(key: str, text: str, field: str, value: object) -> None:
    assert values_of(All, [(key, text)])[field] == value


def test_what_may_be_given_again_may_be_given_in_lines() -> None:
    assert values_of(All, [("words", "\na\n b c"), ("words", "d")])["words"] == ("a", "b c", "d")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("size", "0"), ("size", "-1"), ("size", "9E"), ("offset", "x"), ("seconds", "-1"),
        ("seconds", "nan"), ("seconds", "inf"), ("is-on", "maybe"), ("share", "1.5"),
        ("share", "101%"), ("colour", "green"),
    ],
)  # fmt: skip
def test_text_that_is_no_value_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: '{text}' is not "):
        values_of(All, [(key, text)])


def test_what_is_shown_can_be_given_again() -> None:
    given = [("words", "a"), ("words", "b"), ("size", "1M"), ("share", "0.25"), ("is-on", "1")]
    made = All(**values_of(All, given))
    shown = shown_values(made)
    assert shown == {
        "size": "1 MiB", "offset": "0 bytes", "seconds": "1", "is-on": "yes", "share": "0.25",
        "colour": "red", "words": ["a", "b"],
    }  # fmt: skip


@pytest.mark.parametrize("name", own_names(PLUGINS))
def test_each_plugin_can_be_used_and_says_what_it_is(name: str) -> None:
    assert find_plugin(name) is not None
    check_help(call(name, "--help").output)


@pytest.mark.parametrize("name", own_names(FILTERS))
def test_each_filter_can_be_used_and_says_what_it_is(name: str) -> None:
    assert find_filter(name)
    check_help(call("--filter", name, "--help").output)


def check_help(text: str) -> None:
    assert text.startswith("Usage: swiftnbd-server")
    assert "\n\n" in text
