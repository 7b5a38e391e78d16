# SPDX-License-Identifier: MIT
"""A page as a shell script: its commands in their order, with a check after each."""

import re
from collections.abc import Iterator

from tests.docs.blocks import Block, Command, blocks, commands
from tests.docs.pages import Page

SECRETS = "/etc/swiftnbd/secrets.conf"

_SERVER = re.compile(r"\bswiftnbd-server\b")
_FOREGROUND = re.compile(r"\bswiftnbd-server (?:.* )?-f\b")

_PROLOGUE = """
set -muo pipefail
server= log=
check() { # exit code, place
    [ "$1" = 0 ] && return
    echo "$2: exit code $1"
    exit 1
}
ready() { # place; wait until the server that was started last has printed a URI
    server=$!
    for _ in $(seq 600); do
        grep -qE 'nbds?(\\+unix)?://' "$log" && return
        kill -0 $server 2> /dev/null || break
        sleep 0.05
    done
    echo "$1: the server is not ready"
    cat "$log"
    exit 1
}
stop() { # the server that was started last, with Ctrl-C if it is in the foreground
    local file=$TMPDIR/swiftnbd.pid pid
    pid=$(cat "$file" 2> /dev/null) && kill "$pid"
    while [ -e "$file" ]; do sleep 0.05; done
    [ -n "$server" ] || return 0
    kill -INT -- "-$server"
    wait "$server"
    server=
    if grep -E 'WARNING|ERROR|Traceback' "$log"; then
        exit 1
    fi
}
"""


def script(name: str, page: Page, replace: dict[str, str]) -> str:
    """The script; in all blocks the keys of ``replace`` become its values."""
    parts = [_PROLOGUE, page.before]
    section = 0
    for block in blocks(name):
        if block.section != section:
            parts.append("stop")
            section = block.section
        if block.language == "ini":
            parts.append(_secrets(block))
        elif block.language == "sh":
            parts += [_step(command, page) for command in commands(block) if is_run(command, page)]
    text = "\n".join([*parts, "stop", "echo done"])
    for old, new in (page.replace | replace).items():
        text = text.replace(old, new)
    return text


def is_run(command: Command, page: Page) -> bool:
    return not command.text.startswith(tuple(page.not_run))


def runs(name: str, page: Page) -> bool:
    """Whether there is anything to run on a page."""
    shown = (each for block in blocks(name) if block.language == "sh" for each in commands(block))
    return any(is_run(command, page) for command in shown)


def unused(name: str, page: Page) -> Iterator[str]:
    """The marks of a page that mark nothing."""
    texts = [
        each.text for block in blocks(name) if block.language == "sh" for each in commands(block)
    ]
    marks = [*page.not_run, *page.first]
    yield from (mark for mark in marks if not any(each.startswith(mark) for each in texts))
    yield from (words for words in page.replace if not any(words in each for each in texts))


def _step(command: Command, page: Page) -> str:
    said = f"echo '$ {command.place}'"
    for beginning, text in page.first.items():
        if command.text.startswith(beginning):
            said = f"{text}\ncheck $? 'before {command.place}'\n{said}"
    if _SERVER.search(command.text):
        said = f"stop\n{said}"
    if not _FOREGROUND.search(command.text):
        return f"{said}\n{command.text}\ncheck $? {command.place}"
    start = f'log="$HOME/server-{command.line}.log"\n{{ {command.text}\n}} > "$log" 2>&1 &'
    return f"{said}\n{start}\nready {command.place}"


def _secrets(block: Block) -> str:
    """A section of the secrets file is the whole of it from here on."""
    # who says no address there gives it to each command
    check = "swiftnbd-ctl check-auth\n" if "auth-url" in block.text else ""
    return (
        f"mkdir -p {SECRETS.rpartition('/')[0]}\ncat > {SECRETS} << 'END OF FILE'\n{block.text}\n"
        f"END OF FILE\nchmod 600 {SECRETS}\n{check}check $? {block.page}:{block.line}"
    )
