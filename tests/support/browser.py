# SPDX-License-Identifier: MIT
"""A real Chromium without a window, Debian's, driven by playwright; pages must be quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.support.clients import find

# As root there is no sandbox; the others keep it from calling anybody.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS_MAX = 30_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser, with a profile of its own that goes with it."""
    program = find("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, headless=True, args=list(ARGUMENTS)
        )
        try:
            yield browser
        finally:
            browser.close()


class Seen:
    """What went wrong in a page."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)


@contextmanager
def quiet_page(browser: Browser, url: str, *, allowed: str = "", **options: Any) -> Iterator[Page]:
    """A page in a context of its own; an error in its console or script fails the test.

    A message with ``allowed`` in it does not.
    """
    context = browser.new_context(**({"viewport": {"width": 1400, "height": 900}} | options))
    context.set_default_timeout(WAIT_MS_MAX)
    page, seen = context.new_page(), Seen()
    page.on("console", seen.console)
    page.on("pageerror", lambda error: seen.wrong.append(str(error)))
    page.on("dialog", lambda dialog: seen.wrong.append(f"a dialog: {dialog.message}"))
    page.on("request", lambda asked: _check_own(asked.url, url, seen))
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    wrong = [text for text in seen.wrong if not (allowed and allowed in text)]
    assert not wrong, wrong


def _check_own(asked: str, url: str, seen: Seen) -> None:
    if not asked.startswith((url.partition("#")[0], "data:")):
        seen.wrong.append(f"asked for {asked}")
