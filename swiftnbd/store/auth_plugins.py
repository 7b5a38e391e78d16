# SPDX-License-Identifier: MIT
"""Logging in with keystoneauth1's plugins; python-swiftclient brings the one for version 1.

Everything here blocks and belongs in a thread. Importing it takes a third of a second, so do so
only when there is something to log in to.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import requests
import urllib3
from keystoneauth1 import loading
from keystoneauth1.exceptions import DiscoveryFailure, Unauthorized
from keystoneauth1.session import Session
from requests.adapters import HTTPAdapter
from swiftclient.authv1 import AccessInfoV1, PasswordLoader
from urllib3.exceptions import InsecureRequestWarning

import swiftnbd
from swiftnbd.errors import StoreError
from swiftnbd.store.auth import Login
from swiftnbd.store.auth_failures import Place, failed_login
from swiftnbd.store.login import LoginSettings, TlsSettings

ANSWER_BYTES_MAX = 4 * 1024 * 1024  # a catalog of a thousand services is below 1 MiB

# At DEBUG they log answers, and at WARNING URLs that may have a password in them.
for _name in ("keystoneauth", "keystoneauth1", "swiftclient"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def log_in(settings: LoginSettings, seconds_max: float) -> Login:
    """One login. `AccessRefused`, `StoreUnavailable` or another `StoreError` says why not."""
    place = Place(settings, seconds_max)
    place.check_url()
    with open_session(settings.tls, seconds_max) as session:
        try:
            access = _access(settings, session)
            lifetime = _lifetime_seconds(access)
            url, region = _endpoint(place, settings, access)
        except StoreError:
            raise
        except Exception as error:  # four families of errors, all mapped there
            raise failed_login(place, error) from place.plain_cause(error)
    return Login(
        url,
        access.auth_token,
        lifetime,
        user=("" if place.is_v1 else _in_domain(access, "user")) or place.user,
        project=_in_domain(access, "project"),
        region=region,
    )


def _access(settings: LoginSettings, session: Session) -> Any:
    """keystoneauth1's AccessInfo: the token, and what it is good for."""
    try:
        return load_plugin(settings).get_access(session)
    except DiscoveryFailure:
        # the plugins that look for the newest version swallow why they found none
        session.get(settings.option("auth_url"), authenticated=False, raise_exc=False)
        raise


def log_in_unscoped(settings: LoginSettings, seconds_max: float) -> bool | None:
    """Whether the login works if it asks for no project. None: there is no such login."""
    projects = {name for name, _ in settings.options if name.startswith(("project_", "tenant_"))}
    if "password" not in settings.method or settings.method == "v1password" or not projects:
        return None
    rest = tuple((name, value) for name, value in settings.options if name not in projects)
    place = Place(settings, seconds_max)
    with open_session(settings.tls, seconds_max) as session:
        try:
            plugin = load_plugin(replace(settings, options=rest))
            if hasattr(plugin, "unscoped"):  # else Keystone takes the user's default project
                plugin.unscoped = True
            plugin.get_access(session)
        except Unauthorized:
            return False
        except Exception as error:
            raise failed_login(place, error) from place.plain_cause(error)
    return True


def load_plugin(settings: LoginSettings) -> Any:
    """keystoneauth1's plugin with its options; those that it does not know are left out."""
    # v1password is an entry point of swiftclient's, which a frozen program may lack
    is_v1 = settings.method == "v1password"
    loader = PasswordLoader() if is_v1 else loading.get_plugin_loader(settings.method)
    known = {option.dest for option in loader.get_options()}
    options: dict[str, Any] = {key: val for key, val in settings.options if key in known}
    if is_v1:  # they become headers, which http.client sends in Latin-1 and Swift reads in UTF-8
        for key in ("username", "password"):
            options[key] = options.get(key, "").encode().decode("latin-1")
    return loader.load_from_options(**options)


@contextmanager
def open_session(tls: TlsSettings, seconds_max: float) -> Iterator[Session]:
    """HTTP for one login, which has ``seconds_max`` for all of its requests.

    Redirects are not followed: they would take the password along to who knows where.
    """
    if tls.insecure:
        urllib3.disable_warnings(InsecureRequestWarning)  # we have said so ourselves, louder
    with requests.Session() as http:
        http.trust_env = False  # neither proxies nor .netrc: the data does not go there either
        adapter = _Bounded(tls, seconds_max)
        for scheme in ("http://", "https://"):
            http.mount(scheme, adapter)
        yield Session(
            session=http,
            verify=not tls.insecure,
            redirect=False,
            connect_retries=0,
            user_agent=f"swiftnbd/{swiftnbd.__version__}",
        )


class _Bounded(HTTPAdapter):
    """Requests that share a deadline, with answers that do not grow without end.

    (requests' own timeout begins anew with each byte that arrives.)
    """

    def __init__(self, tls: TlsSettings, seconds_max: float) -> None:
        self._context = tls.context()
        self._deadline = time.monotonic() + seconds_max
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Only what the context says; requests would trust certifi's authorities as well."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs |= {"stream": True, "timeout": self._left()}
        response = super().send(request, *args, **kwargs)
        try:
            # where the property `content` keeps what it has read
            response._content = b"".join(self._parts(response))
            response._content_consumed = True
        finally:
            response.close()
        return response

    def _parts(self, response: requests.Response) -> Iterator[bytes]:
        size = 0
        while part := response.raw.read1(64 * 1024, decode_content=True):
            size += len(part)
            if size > ANSWER_BYTES_MAX:
                raise StoreError(f"the answer has more than {ANSWER_BYTES_MAX} bytes")
            self._left()
            yield part

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _lifetime_seconds(access: Any) -> float | None:
    """How long the token is valid, by the clock of whoever issued it."""
    try:
        expires, issued = access.expires, access.issued
    except KeyError:  # a version 2.0 that does not say
        return None
    if expires is None or issued is None:
        return None
    return max(0.0, float((expires - issued).total_seconds()))


def _endpoint(place: Place, settings: LoginSettings, access: Any) -> tuple[str, str]:
    """The storage URL and its region.

    Never one of several regions by chance: the next login might choose another, and a disk
    would be two.
    """
    if settings.storage_url is not None:
        return settings.storage_url, settings.region or ""
    if isinstance(access, AccessInfoV1):
        return access.storage_url, ""
    if not access.has_service_catalog():
        raise StoreError(
            f"{place}: the token is for no project: name one (project in the secrets file, "
            "--os-project-name or OS_PROJECT_NAME)"
        )
    interface = settings.interface.removesuffix("URL")
    catalog = access.service_catalog
    everything = [
        endpoint
        for endpoints in catalog.get_endpoints_data(service_type=settings.service).values()
        for endpoint in endpoints
    ]
    found = [
        endpoint
        for endpoint in everything
        if endpoint.interface.removesuffix("URL") == interface
        and settings.region in (None, endpoint.region_name)
    ]
    regions = sorted({str(endpoint.region_name) for endpoint in found})
    if not found:
        raise StoreError(_not_in_catalog(place, settings, interface, everything))
    if len(regions) > 1:
        raise StoreError(
            f"{place}: {settings.service} is in several regions ({', '.join(regions)}): name one"
        )
    return found[0].url, found[0].region_name or ""


def _not_in_catalog(
    place: Place, settings: LoginSettings, interface: str, everything: list[Any]
) -> str:
    where = f" in region {settings.region}" if settings.region is not None else ""
    there = sorted(
        {f"{x.interface.removesuffix('URL')} in {x.region_name or 'no region'}" for x in everything}
    )
    has = f"it has {', '.join(there)}" if there else "it has no such service"
    return f"{place}: the catalog has no {interface} endpoint of {settings.service}{where}: {has}"


def _in_domain(access: Any, kind: str) -> str:
    """``user`` or ``project`` by name, with its domain if the token tells."""
    name = getattr(access, "username" if kind == "user" else "project_name", None)
    domain = getattr(access, f"{kind}_domain_name", None)
    return f"{name} (domain {domain})" if name and domain else name or ""
