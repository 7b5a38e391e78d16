# SPDX-License-Identifier: MIT
"""Logging in to a real Keystone, from every source, and what becomes of it while serving."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest

from swiftnbd.cli.ctl import ctl
from swiftnbd.cli.run import run
from swiftnbd.cli.server import server
from swiftnbd.errors import AccessRefused
from swiftnbd.store import swift_http
from swiftnbd.store.auth import Login
from swiftnbd.store.base import Store
from swiftnbd.store.login import LoginSettings
from swiftnbd.store.open import Patience, PluginAuth, SwiftAccount, open_swift
from tests.support.keystone_aio import REGION, SERVICE_PASSWORD, RealKeystone
from tests.support.loopback import Peer, until
from tests.support.server_process import ServerProcess
from tests.support.swift_aio import KEY, USER, RealSwift

pytestmark = pytest.mark.timeout(300)  # Keystone may have to be installed first

DATA = b"precious" * 512


@dataclass(frozen=True)
class Cloud:
    """A Keystone and a Swift that asks it."""

    keystone: RealKeystone
    swift: RealSwift
    credential: dict[str, str]

    @property
    def url(self) -> str:
        return self.keystone.url

    def storage(self, project: str = "demo", host: str = "127.0.0.1") -> str:
        port = self.swift.ports["proxy"]
        return f"http://{host}:{port}/v1/AUTH_{self.keystone.projects[project]}"


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """Shared; who hurts it heals it."""
    with RealKeystone() as keystone:
        options = {"keystone_url": keystone.url, "keystone_password": SERVICE_PASSWORD}
        with RealSwift(fsync=False, **options) as swift:
            keystone.add_swift(swift.ports["proxy"])
            found = keystone.application_credential("ours")
            yield Cloud(keystone, swift, {key: found[key] for key in ("id", "secret")})


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of whoever runs the tests, and no clouds.yaml but that of a test."""
    for name in [name for name in os.environ if name.startswith(("OS_", "ST_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))


@dataclass
class User:
    """Somebody who runs swiftnbd-ctl in a folder of theirs."""

    folder: Path
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    flags: list[str] = field(default_factory=list)

    def ctl(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        code = run(ctl, "swiftnbd-ctl", [*self.flags, *arguments])
        out, err = self.capsys.readouterr()
        # asyncio's debug mode on a busy machine
        said = [line for line in err.splitlines(keepends=True) if "WARNING: Executing" not in line]
        return code, out, "".join(said)

    def check(self, *arguments: str) -> tuple[int, dict[str, object]]:
        """``check-auth --json``: its exit code and its only report."""
        code, out, _ = self.ctl("check-auth", "--json", *arguments)
        (report,) = json.loads(out)
        return code, dict(report)

    def section(self, name: str, **keys: str) -> None:
        """Add a section to the secrets file; underscores are dashes."""
        path = self.folder / "secrets.conf"
        path.touch(mode=0o600)
        lines = [f"{key.replace('_', '-')} = {value}" for key, value in keys.items()]
        path.write_text("\n".join([path.read_text(), f"[{name}]", *lines, ""]))
        self.flags = ["--secrets", str(path)]

    def environ(self, **values: str) -> None:
        for name, value in values.items():
            self.patch.setenv(name, value)

    def cloud(self, **config: object) -> None:
        """Write a clouds.yaml (JSON is YAML) with one cloud, "mine"."""
        (self.folder / "clouds.yaml").write_text(json.dumps({"clouds": {"mine": config}}))


@pytest.fixture
def user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> User:
    return User(tmp_path, monkeypatch, capsys)


METHODS = {
    "password": "v3password",
    "credential": "v3applicationcredential",
    "token": "v3token",
}


def by_section(user: User, cloud: Cloud, method: str) -> None:
    keys = {
        "password": {"username": "tester", "password": "testing", "project": "demo"},
        "credential": {
            "application_credential_id": cloud.credential["id"],
            "application_credential_secret": cloud.credential["secret"],
        },
        "token": {"token": token_of(cloud), "project": "demo"},
    }
    user.section("disk", auth_url=cloud.url, **keys[method])


def by_flags(user: User, cloud: Cloud, method: str) -> None:
    """All but the secret."""
    flags = {
        "password": ["--os-username", "tester", "--os-project-name", "demo"],
        "credential": ["--os-application-credential-id", cloud.credential["id"]],
        "token": ["--os-project-name", "demo"],
    }
    secret = {
        "password": {"OS_PASSWORD": "testing"},
        "credential": {"OS_APPLICATION_CREDENTIAL_SECRET": cloud.credential["secret"]},
        "token": {"OS_TOKEN": token_of(cloud)},
    }
    user.flags = ["-a", cloud.url, *flags[method]]
    user.environ(**secret[method])


def by_clouds_yaml(user: User, cloud: Cloud, method: str) -> None:
    scope = {"project_name": "demo", "project_domain_name": "Default"}
    who = {
        "password": {"username": "tester", "password": "testing", "user_domain_name": "Default"},
        "credential": {
            "application_credential_id": cloud.credential["id"],
            "application_credential_secret": cloud.credential["secret"],
        },
        "token": {"token": token_of(cloud)},
    }
    auth = {"auth_url": cloud.url, **who[method], **({} if method == "credential" else scope)}
    user.cloud(auth_type=METHODS[method], auth=auth, region_name=REGION)
    user.flags = ["--os-cloud", "mine"]


def by_cloud_of_a_section(user: User, cloud: Cloud, method: str) -> None:
    by_clouds_yaml(user, cloud, method)
    user.section("disk", cloud="mine")


def by_cloud_of_the_environment(user: User, cloud: Cloud, method: str) -> None:
    by_clouds_yaml(user, cloud, method)
    user.flags = []
    user.environ(OS_CLOUD="mine")


def by_environment(user: User, cloud: Cloud, method: str) -> None:
    """As an openrc file sets it, whose URL often has no version."""
    scope = {"OS_PROJECT_NAME": "demo", "OS_PROJECT_DOMAIN_ID": "default"}
    variables = {
        "password": {
            **scope,
            "OS_USERNAME": "tester",
            "OS_PASSWORD": "testing",
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_IDENTITY_API_VERSION": "3",
        },
        "credential": {
            "OS_AUTH_TYPE": "v3applicationcredential",
            "OS_APPLICATION_CREDENTIAL_ID": cloud.credential["id"],
            "OS_APPLICATION_CREDENTIAL_SECRET": cloud.credential["secret"],
        },
        "token": {**scope, "OS_AUTH_TYPE": "v3token", "OS_TOKEN": token_of(cloud)},
    }
    user.environ(OS_AUTH_URL=cloud.keystone.base, **variables[method])


def token_of(cloud: Cloud) -> str:
    return cloud.keystone.token("tester", "testing", "demo")


SOURCES = (
    by_section,
    by_flags,
    by_clouds_yaml,
    by_cloud_of_a_section,
    by_cloud_of_the_environment,
    by_environment,
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", SOURCES)
def test_each_method_from_each_source(
    user: User, cloud: Cloud, source: Callable[[User, Cloud, str], None], method: str
) -> None:
    source(user, cloud, method)
    code, report = user.check("disk")
    assert (code, report["works"], report["error"]) == (0, True, "")
    assert report["method"] == METHODS[method]
    assert report["user"] == "tester (domain Default)"
    assert report["project"] == "demo (domain Default)"
    assert (report["region"], report["storage_url"]) == (REGION, cloud.storage())
    if method == "password":  # and it is good for something
        assert user.ctl("setup", "disk", "4", "--exist-ok")[0] == 0
        code, out, _ = user.ctl("list", "-s", "disk")
        assert (code, out) == (0, "disk objects=4 size=65536 (version=1, unlocked)\n")


def test_sentence_of_a_login_that_works(user: User, cloud: Cloud) -> None:
    by_environment(user, cloud, "password")
    code, out, err = user.ctl("check-auth")
    assert (code, err) == (0, "")
    assert out.startswith(
        "v3password login as tester (domain Default) in project demo (domain Default) works: "
        f"storage at {cloud.storage()} in region {REGION}, token valid until 2"
    )


def test_same_names_in_another_domain_are_somebody_else(user: User, cloud: Cloud) -> None:
    who = {"username": "tester", "password": "corporate", "project": "demo"}
    user.section("disk", auth_url=cloud.url, user_domain="corp", **who)
    _, report = user.check()
    assert report["storage_url"] == cloud.storage("corp/demo")
    assert report["project"] == "demo (domain corp)"


def test_endpoint_is_chosen(user: User, cloud: Cloud) -> None:
    by_environment(user, cloud, "password")
    user.flags = []
    user.environ(OS_INTERFACE="internalURL")
    assert user.check()[1]["storage_url"] == cloud.storage(host="localhost")
    user.environ(OS_STORAGE_URL=cloud.storage(host="localhost"), OS_INTERFACE="public")
    assert user.check()[1]["storage_url"] == cloud.storage(host="localhost")


def test_one_of_several_regions_is_never_taken_by_chance(user: User, cloud: Cloud) -> None:
    for region in (REGION, "RegionTwo"):
        cloud.keystone.add_swift(cloud.swift.ports["proxy"], "store-of-two", region)
    by_environment(user, cloud, "password")
    user.environ(OS_SERVICE_TYPE="store-of-two")
    code, report = user.check()
    assert code == 1
    assert f"store-of-two is in several regions ({REGION}, RegionTwo)" in str(report["error"])
    user.environ(OS_REGION_NAME="RegionTwo")
    assert user.check()[1]["region"] == "RegionTwo"


@pytest.mark.parametrize(
    ("variables", "code", "sentence"),
    [
        (
            {"OS_PASSWORD": "wr0ng"},
            5,
            "was refused (401): wrong user or password, or no role in project demo "
            "(user and password are not right, whatever the project)",
        ),
        (
            {"OS_PROJECT_NAME": "other"},
            5,
            "was refused (401): wrong user or password, or no role in project other "
            "(the password is right, the project is not)",
        ),
        (
            {"OS_USERNAME": "reader", "OS_PASSWORD": "reading"},
            5,
            "login as reader (domain Default) in project demo (domain Default) works, but may not "
            "use ",
        ),
        ({"OS_PROJECT_NAME": ""}, 1, "the token is for no project: name one (project in the "),
        (
            {"OS_REGION_NAME": "Nowhere"},
            1,
            "the catalog has no public endpoint of object-store in region Nowhere: "
            "it has internal in RegionOne, public in RegionOne",
        ),
        ({"OS_AUTH_URL": "http://127.0.0.1:1/v3"}, 6, "127.0.0.1:1: connection refused"),
        (
            {"OS_AUTH_TYPE": "token", "OS_TOKEN": "gAAAAwr0ng"},
            5,
            "was refused (401): the token is wrong or expired, or no role in project demo",
        ),
        ({"OS_IDENTITY_API_VERSION": "2"}, 1, "right for Keystone's version 2.0?"),
    ],
)
def test_why_a_login_does_not_work(
    user: User, cloud: Cloud, variables: dict[str, str], code: int, sentence: str
) -> None:
    by_environment(user, cloud, "password")
    user.environ(**variables)
    found, out, err = user.ctl("check-auth")
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert sentence in err
    assert not [secret for secret in ("testing", "wr0ng", "reading", "gAAAA") if secret in err]


def test_clouds_yaml_that_is_not_there_or_incomplete(user: User, cloud: Cloud) -> None:
    user.flags = ["--os-cloud", "mine"]
    assert user.ctl("check-auth")[0] == 2
    by_clouds_yaml(user, cloud, "password")
    text = (user.folder / "clouds.yaml").read_text().replace('"password": "testing", ', "")
    (user.folder / "clouds.yaml").write_text(text)
    code, _, err = user.ctl("check-auth")
    assert code == 2
    assert "cloud 'mine' has no password: put it into clouds.yaml or secure.yaml, or" in err
    user.environ(OS_PASSWORD="testing")
    assert user.ctl("check-auth")[0] == 0


@pytest.mark.expects_log(r"disk: login as tester .* was refused \(401\).*; skipping$")
def test_server_with_a_wrong_password_ends_with_code_5(
    user: User, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    by_environment(user, cloud, "password")
    user.environ(OS_PASSWORD="wr0ng")
    assert run(server, "swiftnbd-server", ["-f", "-p", "0", "--pid-file", "p", "disk"]) == 5
    assert "nothing is left to export" in capsys.readouterr().err


# While serving


def settings(cloud: Cloud, url: str = "") -> LoginSettings:
    options = {
        "auth_url": url or cloud.url,
        "username": "tester",
        "user_domain_id": "default",
        "password": "testing",
        "project_name": "demo",
        "project_domain_id": "default",
    }
    return LoginSettings("v3password", tuple(options.items()))


class Counting:
    """An `Auth` that keeps what it gave."""

    def __init__(self, login: LoginSettings) -> None:
        self.auth = PluginAuth(login)
        self.tokens: list[str] = []
        self.tries = 0

    async def login(self) -> Login:
        self.tries += 1
        login = await self.auth.login()
        self.tokens.append(login.token)
        return login


@asynccontextmanager
async def opened(auth: Counting, name: str) -> AsyncIterator[Store]:
    account = SwiftAccount(auth, tls=None)
    store = open_swift(account, name, Patience(60))
    try:
        await store.create_container()
        yield store
    finally:
        await store.close()
        await account.close()


async def test_tokens_are_renewed_before_they_expire(
    cloud: Cloud, container_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swift_http, "RENEW_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(swift_http, "RENEW_LIFE_PART", 1.05)  # at the age of a second
    auth = Counting(settings(cloud, cloud.keystone.short_lived(20)))
    refused = []
    send = SwiftAccount._send

    async def watched(self: SwiftAccount, *args: object) -> object:
        answer = await send(self, *args)  # type: ignore[arg-type]
        refused.extend([answer] if answer.status == 401 else [])
        return answer

    monkeypatch.setattr(SwiftAccount, "_send", watched)
    async with opened(auth, container_name) as store:
        while len(auth.tokens) < 3:
            await store.put("name", DATA)
            await asyncio.sleep(0.05)
        blob = await store.get("name")
        assert blob is not None
        assert blob.data == DATA
    assert not refused
    assert len(set(auth.tokens)) == len(auth.tokens)


async def test_a_revoked_token_is_replaced_once_for_all_in_the_middle_of_requests(
    cloud: Cloud, container_name: str
) -> None:
    auth = Counting(settings(cloud))
    async with opened(auth, container_name) as store:
        await asyncio.to_thread(cloud.keystone.revoke_token, auth.tokens[0])
        names = [f"name-{number}" for number in range(8)]
        while auth.tries < 2:
            await asyncio.gather(*(store.put(name, DATA) for name in names))
        blobs = await asyncio.gather(*(store.get(name) for name in names))
        assert [blob and bytes(blob.data) for blob in blobs] == [DATA] * 8
    assert auth.tries == 2


async def test_a_revoked_application_credential_is_refused_and_not_asked_for_again_at_once(
    cloud: Cloud, container_name: str
) -> None:
    made = await asyncio.to_thread(cloud.keystone.application_credential, container_name)
    options = {
        "auth_url": cloud.url,
        "application_credential_id": made["id"],
        "application_credential_secret": made["secret"],
    }
    auth = Counting(LoginSettings("v3applicationcredential", tuple(options.items())))
    async with opened(auth, container_name) as store:
        await asyncio.to_thread(cloud.keystone.revoke_credential, made["id"])
        with pytest.raises(AccessRefused, match="it is unknown, expired or revoked") as caught:
            await keep_putting(store)
        assert made["secret"] not in str(caught.value)
        for _ in range(3):
            with pytest.raises(AccessRefused):
                await store.get("name")
    assert auth.tries == 2


@pytest.mark.allows_log(r"outage of test-.*; requests wait, and it is asked again$")
@pytest.mark.parametrize("outage", ["stopped", "killed"])
async def test_requests_wait_for_a_keystone_that_is_away(
    cloud: Cloud, container_name: str, outage: str
) -> None:
    """Swift does not know the token any more and cannot ask: 401, or no answer."""
    auth = Counting(settings(cloud))
    async with opened(auth, container_name) as store:
        await store.put("before", DATA)
        if outage == "killed":
            await asyncio.to_thread(cloud.keystone.kill)
        else:
            cloud.keystone.signal(signal.SIGSTOP)
        try:
            putting = asyncio.create_task(keep_putting(store))
            if outage == "killed":
                await until(lambda: auth.tries > 1)  # Swift remembers a token for a second
            await asyncio.wait([putting], timeout=1.5)
            assert not putting.done()
        finally:
            if outage == "killed":
                await asyncio.to_thread(cloud.keystone.restart)
            else:
                cloud.keystone.signal(signal.SIGCONT)
        putting.cancel()
        await asyncio.wait([putting])
        await store.put("after", DATA)
        blob = await store.get("after")
        assert blob is not None
        assert blob.data == DATA


async def keep_putting(store: Store) -> None:
    while True:
        await store.put("meanwhile", DATA)


async def use(port: int, name: str) -> None:
    """Write, flush and read back."""
    async with await Peer.connect(port) as peer:
        await peer.greet()
        await peer.go(name.encode())
        await peer.write(0, name.encode())
        await peer.flush()
        assert await peer.read(0, len(name)) == name.encode()
        await peer.disconnect()


def test_one_server_for_two_clouds_tells_no_secret(
    user: User, cloud: Cloud, real_swift: RealSwift, container_name: str
) -> None:
    """Not in its log, its command line, its status and metrics, nor by ``--dump-config``."""
    kinds = ("v1", "credential", "token", "password")
    names = {kind: f"{container_name}-{kind}" for kind in kinds}
    who = {"username": "tester", "password": "testing", "project": "demo"}
    user.section(names["password"], auth_url=cloud.url, **who)
    user.section(names["v1"], auth_url=real_swift.auth_url, username=USER, password=KEY)
    user.section(
        names["credential"],
        auth_url=cloud.url,
        application_credential_id=cloud.credential["id"],
        application_credential_secret=cloud.credential["secret"],
    )
    token = token_of(cloud)
    user.section(names["token"], auth_url=cloud.url, token=token, project="demo")
    for name in names.values():
        code, _, err = user.ctl("setup", name, "16")
        assert code == 0, err
    arguments = ("-v", *user.flags, *names.values())
    process = ServerProcess(*arguments, "--http", "0", workdir=user.folder)
    try:
        process.wait_ready(*names.values())
        asyncio.run(use_all(process.port, names.values()))
        process.wait_until(lambda: bool(pages_of(process)), "URL", 30)
        (url,) = pages_of(process)
        said = "".join(read_page(url + page) for page in ("status.json", "metrics"))
        said += Path(f"/proc/{process.process.pid}/cmdline").read_text()
    finally:
        code = process.terminate()
    assert code == 0
    process.check_log()
    assert "logged in, storage at" in process.log()
    assert run(server, "swiftnbd-server", [*arguments, "--dump-config"]) == 0
    dumped = user.capsys.readouterr().out
    assert '"username": "tester"' in dumped
    # the passwords, the secret, and any token: of fernet, of tempauth
    assert KEY == "testing"
    for secret in (KEY, cloud.credential["secret"], token[:20], "gAAAA", "AUTH_tk"):
        assert secret not in said + process.log() + dumped


async def use_all(port: int, names: Iterable[str]) -> None:
    await asyncio.gather(*(use(port, name) for name in names))


def pages_of(process: ServerProcess) -> list[str]:
    return [line for line in process.stdout.lines if line.startswith("http://")]


def read_page(url: str) -> str:
    with urlopen(url) as answer:
        return str(answer.read().decode())
