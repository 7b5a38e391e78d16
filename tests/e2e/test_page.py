# SPDX-License-Identifier: MIT
"""The page that `--http` serves, in a real browser, while things happen."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import KiB, MiB, launcher
from tests.support.backends import Backend, DirectoryBackend, SwiftBackend
from tests.support.browser import chromium, quiet_page
from tests.support.clients import find
from tests.support.server_process import ServerProcess
from tests.support.swift_aio import KEY, USER, RealSwift

HOSTILE = "<img src=x onerror=alert(1)>\u202e\"'&amp;"
# what FUA asks for is not answered before it is stored
WRITES_WHEN_TOLD = "print('ready', flush=True); input(); h.pwrite(b'x' * 4096, 0, nbd.CMD_FLAG_FUA)"
NO_CONTACT = "Failed to load resource"
SIZES = {"wide": {"width": 1400, "height": 900}, "phone": {"width": 400, "height": 800}}

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def url_of(server: ServerProcess) -> str:
    server.wait_until(
        lambda: any(line.startswith("http://") for line in server.stdout.lines), "URL", 30
    )
    return next(line for line in server.stdout.lines if line.startswith("http://"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, ServerProcess]]:
    """Two exports: one of 16 million blocks, and one with a name that is none to print."""
    folder = tmp_path_factory.mktemp("page")
    backend = DirectoryBackend(folder / "disks")
    backend.setup("disk", 1 << 24, 64 * KiB)
    backend.setup(HOSTILE, 64, 4 * KiB)
    with launcher(backend, folder) as launch:
        yield backend, launch("disk", extra=("--http", "0"))


@pytest.fixture
def server(directory: tuple[Backend, ServerProcess]) -> ServerProcess:
    return directory[1]


@pytest.fixture
def client(server: ServerProcess) -> Iterator[subprocess.Popen[str]]:
    """A program that has written 3 MiB to the disk, and stays until its input ends."""
    script = "h.pwrite(b'x' * 1048576 * 3, 1048576); print('ready', flush=True); input()"
    with nbdsh(server.uris()["disk"], script) as process:
        yield process
        process.communicate("\n", timeout=60)


def nbdsh(uri: str, script: str) -> subprocess.Popen[str]:
    """A client that has said that it is ready."""
    process = subprocess.Popen(
        [str(find("nbdsh")), "-u", uri, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def no_sideways_scroll(page: Page) -> bool:
    fits: bool = page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    return fits


def background(page: Page) -> str:
    colour: str = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    return colour


def test_copy_is_seen_while_it_runs(
    browser: Browser, real_swift: RealSwift, container_name: str, tmp_path: Path
) -> None:
    backend = SwiftBackend(real_swift.auth_url, USER, KEY, tmp_path / "secrets.conf")
    backend.setup(container_name, 1024, 64 * KiB)
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * (16 * MiB // 256))
    with launcher(backend, tmp_path) as launch:
        server = launch(container_name, extra=("--http", "0", "-c", "4"))
        with quiet_page(browser, url_of(server)) as page:
            expect(page.locator("#state")).to_have_text("idle")
            expect(page.locator("#map-empty")).to_be_visible()
            # again and again: a browser may need longer to look than Swift to take 16 MiB
            seen = tmp_path / "seen"
            again = 'while [ ! -e "$1" ]; do "$2" "$3" "$4" || exit; done'
            nbdcopy, uri = find("nbdcopy"), server.uris()[container_name]
            copy = subprocess.Popen(["sh", "-c", again, "sh", seen, nbdcopy, image, uri])
            try:
                expect(page.locator("#state")).to_have_text("in use")
                expect(page.locator("#health")).to_have_text("all well")
                expect(page.locator("#f-write")).not_to_have_text(re.compile("^0"))
                expect(page.locator("#clients tr").first).to_contain_text("127.0.0.1")
                expect(page.locator("#l-map")).to_have_text(re.compile(r"(stored|cached) ?[1-9]"))
                expect(page.locator("#facts")).to_contain_text("locked as")
                assert page.evaluate("document.getElementById('map').height") > 50
            finally:
                seen.touch()
                assert copy.wait(120) == 0
            expect(page.locator("#state")).to_have_text("idle")
            expect(page.locator("#no-clients")).to_be_visible()
            metrics = page.request.get(f"{url_of(server)}metrics").text()
            assert re.search(
                r'swiftnbd_swift_requests_total{method="PUT",status="201"} [1-9]', metrics
            )


def test_outage_is_said_and_so_is_the_end_of_the_server(
    browser: Browser, own_swift: RealSwift, tmp_path: Path
) -> None:
    backend = SwiftBackend(own_swift.auth_url, USER, KEY, tmp_path / "secrets.conf")
    backend.setup("disk", 256, 64 * KiB)
    server = ServerProcess(*backend.arguments, "--http", "0", workdir=tmp_path)
    try:
        server.wait_ready("disk")
        with quiet_page(browser, url_of(server), allowed=NO_CONTACT) as page:
            expect(page.locator("#health")).to_have_text("all well")
            expect(page.locator("#banner")).to_be_hidden()
            with nbdsh(server.uris()["disk"], WRITES_WHEN_TOLD) as writer:
                expect(page.locator("#state")).to_have_text("in use")
                own_swift.kill("proxy")
                print(file=writer.stdin, flush=True)
                expect(page.locator("#banner")).to_contain_text("Swift has been failing for")
                expect(page.locator("#alarm")).to_contain_text("Swift has been failing for")
                expect(page.locator("#health")).to_have_text("in trouble")
                expect(page.locator("#f-store")).to_contain_text("Failing")
                expect(page.locator("#state")).to_have_text("requests wait")
                expect(page.locator("#harm")).to_contain_text("1 request of 1 export waiting")
                expect(page.locator("#harm")).to_contain_text("64 KiB in memory only")
                expect(page.locator("#l-latency")).to_contain_text("waiting for")
                expect(page.locator("#clients")).to_contain_text(re.compile("1 for [0-9]+ s"))
                said = page.locator("#alarm").inner_text()
                expect(page.locator("#trouble")).not_to_have_text(said)  # it counts on
                assert page.locator("#alarm").inner_text() == said  # and is said once
                writer.kill()
            server.kill()
            expect(page.locator("#banner")).to_contain_text("The server does not answer")
            expect(page.locator("#health")).to_have_text("no contact")
            assert "stale" in (page.locator("html").get_attribute("class") or "")
    finally:
        server.kill()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_every_screen_and_scheme(
    browser: Browser, server: ServerProcess, client: object, size: str, scheme: str
) -> None:
    with quiet_page(browser, url_of(server), viewport=SIZES[size], color_scheme=scheme) as page:
        expect(page.locator("#l-map")).to_contain_text("dirty")
        assert no_sideways_scroll(page)
        as_the_system = background(page)
        red = int(re.findall(r"\d+", as_the_system)[0])
        assert (red > 200) is (scheme == "light")
        other = "dark" if scheme == "light" else "light"
        toggle = page.locator("#theme")
        while other not in toggle.inner_text():
            toggle.click()
        assert background(page) != as_the_system
        page.reload()
        expect(page.locator("#theme")).to_contain_text(other)  # it is remembered
        assert background(page) != as_the_system
        assert len(page.screenshot(full_page=True)) > 10_000


def tabbed(page: Page) -> Callable[[], str]:
    def press() -> str:
        page.keyboard.press("Tab")
        found: str = page.evaluate("document.activeElement.id || document.activeElement.tagName")
        return found

    return press


def test_everything_can_be_reached_and_used_by_keyboard(
    browser: Browser, server: ServerProcess, client: object
) -> None:
    with quiet_page(browser, url_of(server)) as page:
        expect(page.locator("#l-map")).to_contain_text("dirty")
        tab = tabbed(page)
        order = [tab() for _ in range(10)]
        assert order == [
            "A", "theme", "A", "A", "throughput", "latency", "in", "map", "clients-table", "A",
        ]  # fmt: skip
        page.locator("#map").focus()
        text = page.locator("#map-text")
        expect(text).to_contain_text("Blocks 0 to 16,777,215 of 16,777,216")
        page.keyboard.press("ArrowRight")
        expect(text).to_contain_text("from ")
        page.keyboard.press("Enter")
        expect(page.locator("#whole")).to_be_enabled()
        expect(text).to_contain_text("Block")
        page.keyboard.press("PageDown")
        page.locator("#theme").focus()  # the cursor goes, the part stays
        expect(text).not_to_contain_text("Blocks 0 to")
        page.locator("#map").focus()
        page.keyboard.press("Home")
        expect(text).to_contain_text("Blocks 0 to 16,777,215 of 16,777,216")
        page.locator("#latency").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#latency")).to_have_attribute("aria-valuetext", re.compile("^5 s ago"))
        expect(page.locator("#latency")).to_have_attribute("aria-valuenow", "-5")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"


def test_map_zooms_to_single_blocks(
    browser: Browser, server: ServerProcess, client: object
) -> None:
    with quiet_page(browser, url_of(server)) as page:
        expect(page.locator("#l-map")).to_contain_text("dirty")
        expect(page.locator("#map-text")).to_contain_text("a square is 8,192 of them, 512 MiB")
        box = page.locator("#map").bounding_box()
        assert box is not None
        while page.locator("#in").is_enabled():
            before = page.locator("#map-text").inner_text()
            page.locator("#in").click()
            expect(page.locator("#map-text")).not_to_have_text(before)
        expect(page.locator("#map-text")).to_contain_text("a square is one of 64 KiB")
        page.locator("#map").hover(position={"x": 5, "y": 5})
        expect(page.locator("#map-text")).to_contain_text(re.compile("^Block [0-9,]+, from "))


def test_sample_that_comes_with_several_answers_is_drawn_once(
    browser: Browser, server: ServerProcess
) -> None:
    url = url_of(server)
    with quiet_page(browser, f"{url}#/{quote(HOSTILE)}") as page:
        expect(page.locator("#name")).to_contain_text("onerror")
        page.evaluate(
            "location.hash = '#/disk';"
            "for (let i = 0; i < 5; i++) dispatchEvent(new HashChangeEvent('hashchange'));"
        )
        expect(page.locator("#name")).to_have_text("disk")
        for _ in range(2):
            before = page.locator("#updated").inner_text()
            expect(page.locator("#updated")).not_to_have_text(before)
        drawn = int(page.locator("#throughput").get_attribute("data-samples") or 0)
        assert 0 < drawn <= page.request.get(f"{url}history.json?export=disk").json()["count"]


def test_hostile_name_is_only_text(browser: Browser, server: ServerProcess) -> None:
    with quiet_page(browser, f"{url_of(server)}#/{quote(HOSTILE)}") as page:
        expect(page.locator("#name")).to_have_text(HOSTILE.replace("\u202e", "\\u{202e}"))
        assert page.locator("img").count() == 0
        link = page.locator("#list a", has_text="onerror")
        expect(link).to_have_attribute("aria-current", "true")
        page.locator("#list a", has_text=re.compile("^disk")).click()
        expect(page.locator("#name")).to_have_text("disk")


def test_export_of_a_plugin_has_neither_cache_nor_map(browser: Browser, tmp_path: Path) -> None:
    server = ServerProcess("--http", "0", "memory", "64M", workdir=tmp_path)
    try:
        server.wait_ready("memory")
        with quiet_page(browser, url_of(server)) as page:
            expect(page.locator("#facts")).to_have_text("64 MiB")
            expect(page.locator("#state")).to_have_text("idle")
            expect(page.locator("#t-throughput")).to_be_visible()
            expect(page.locator("#t-cache")).to_be_hidden()
            expect(page.locator("#t-map")).to_be_hidden()
            metrics = page.request.get(f"{url_of(server)}metrics").text()
            assert 'swiftnbd_export_size_bytes{export="memory"} 6.7108864e+07' in metrics
            assert "swiftnbd_cache_bytes{" not in metrics
    finally:
        server.finish()
