# SPDX-License-Identifier: MIT
"""From keys and values, wherever they were found, to one way to log in.

The keys are those of the secrets file; `swiftnbd.cli.environment` and the flags translate into
them. No message shows a value that might be a secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from swiftnbd.errors import ConfigError
from swiftnbd.store.login import INTERFACE_DEFAULT, SERVICE_DEFAULT, LoginSettings, TlsSettings

_ALIASES = {
    "project-name": "project",
    "user-domain-name": "user-domain",
    "project-domain-name": "project-domain",
    "interface": "endpoint-type",
}
_NAMES = {
    "username",
    "user-id",
    "user-domain",
    "user-domain-id",
    "application-credential-id",
    "application-credential-name",
}
_SECRETS = {"password", "application-credential-secret", "token"}
_WHO = _NAMES | _SECRETS
_BUCKET_SECRETS = {"secret-access-key", "session-token", "account-key"}
_BUCKET_WHO = {"access-key-id", "account-name", "service-account"} | _BUCKET_SECRETS
_PROJECT = {"project", "project-id", "project-domain", "project-domain-id"}
_WHERE = {"auth-url", "cloud"}
_HOW = {"auth-version", "separator", "region", "endpoint-type", "service-type", "storage-url"}
_TLS = {"cacert", "cert", "key", "insecure"}
LOGIN_KEYS = frozenset(
    {*_WHO, *_PROJECT, *_WHERE, *_HOW, *_TLS, *_ALIASES, *_BUCKET_WHO, "endpoint"}
) - {"separator"}
SECRET_KEYS = frozenset(_SECRETS | _BUCKET_SECRETS)

NO_URL = (
    "no authentication URL: give -a URL for a Swift (such as https://swift.example.com/auth/v1.0), "
    "--os-cloud NAME, -a s3://BUCKET for an object store, or -a file:DIR for a local folder"
)

_VERSIONS = {"1": "1", "1.0": "1", "2": "2", "2.0": "2", "3": "3"}
_YES = {"1", "yes", "true", "on"}
_NO = {"", "0", "no", "false", "off"}

# keystoneauth1's name of an option, and ours
_OPTIONS = {
    "auth_url": "auth-url",
    "username": "username",
    "user_id": "user-id",
    "user_domain_name": "user-domain",
    "user_domain_id": "user-domain-id",
    "password": "password",
    "project_name": "project",
    "project_id": "project-id",
    "project_domain_name": "project-domain",
    "project_domain_id": "project-domain-id",
    "tenant_name": "project",
    "tenant_id": "project-id",
    "application_credential_id": "application-credential-id",
    "application_credential_name": "application-credential-name",
    "application_credential_secret": "application-credential-secret",
    "token": "token",
}
_OF_METHOD = {
    "v1password": {"auth_url", "username", "password"},
    "v2password": {"auth_url", "username", "user_id", "password", "tenant_name", "tenant_id"},
    "v3password": {
        *("auth_url", "username", "user_id", "user_domain_name", "user_domain_id", "password"),
        *("project_name", "project_id", "project_domain_name", "project_domain_id"),
    },
    "v3token": {
        *("auth_url", "token"),
        *("project_name", "project_id", "project_domain_name", "project_domain_id"),
    },
    "v3applicationcredential": {
        *("auth_url", "username", "user_id", "user_domain_name", "user_domain_id"),
        *("application_credential_id", "application_credential_name"),
        "application_credential_secret",
    },
}


@dataclass(frozen=True, slots=True)
class LoginKeys:
    """Keys and values from one source, or merged from several. ``where`` begins messages.

    An empty value counts as none. Values are never shown. ``without_section``: the secrets file
    has nothing to do with it.
    """

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    where: str = "the login"
    without_section: bool = False

    def __post_init__(self) -> None:
        named = {_ALIASES.get(key, key): value for key, value in self.values.items() if value}
        object.__setattr__(self, "values", named)

    def __bool__(self) -> bool:
        return bool(self.values)

    def get(self, key: str) -> str:
        """The value, or ''."""
        return self.values.get(key, "")

    def has(self, keys: set[str]) -> bool:
        """Whether any of these is given."""
        return not keys.isdisjoint(self.values)

    @property
    def says_where(self) -> bool:
        """Whether it says where to log in."""
        return self.has(_WHERE)

    @property
    def says_who(self) -> bool:
        """Whether it says who logs in."""
        return self.has(_WHO | _BUCKET_WHO)

    def with_values(self, values: Mapping[str, str]) -> "LoginKeys":
        """The same source with other values."""
        return replace(self, values=values)

    def over(self, lower: "LoginKeys") -> "LoginKeys":
        """These, and what they lack from ``lower``.

        Keys that only make sense together are never mixed: a user with another's domain, a
        project with another's, a certificate with another's key, a password with a token.
        """
        rest = dict(lower.values)
        for group in (_WHERE, _NAMES, _SECRETS, _PROJECT, {"cert", "key"}, _BUCKET_WHO):
            if self.has(group):
                rest = {key: value for key, value in rest.items() if key not in group}
        return self.with_values({**rest, **self.values})


def settings_of(keys: LoginKeys) -> LoginSettings:
    """The login that these make. ConfigError says what is missing or makes no sense."""
    if keys.get("cloud"):
        from swiftnbd.cli.clouds import settings_of_cloud

        return settings_of_cloud(keys)
    if not keys.get("auth-url"):
        raise ConfigError(f"{keys.where} has {NO_URL}")
    check_url(keys.get("auth-url"))
    method = _method(keys)
    keys = _with_tenant(keys) if method == "v2password" else keys
    _check_complete(keys, method)
    keys = _with_domains(keys) if method in ("v3password", "v3token") else keys
    return LoginSettings(method, options_of(keys, _OF_METHOD[method]), **endpoint_of(keys))


def check_url(url: str) -> None:
    """ConfigError for what is not even the beginning of one."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"authentication URL {url.rpartition('@')[2]!r} begins with none of https://, http://, "
            "file:, s3://, gs://, az://"
        )


def options_of(keys: LoginKeys, wanted: set[str]) -> tuple[tuple[str, str], ...]:
    """keystoneauth1's options that are given, in an order that does not depend on the source."""
    found = {name: keys.get(_OPTIONS[name]) for name in sorted(wanted) if name in _OPTIONS}
    return tuple((name, value) for name, value in found.items() if value)


def endpoint_of(keys: LoginKeys) -> dict[str, Any]:
    """The fields of `LoginSettings` that say what to do with the login."""
    return {
        "service": keys.get("service-type") or SERVICE_DEFAULT,
        "interface": _interface(keys),
        "region": keys.get("region") or None,
        "storage_url": keys.get("storage-url") or None,
        "tls": tls_of(keys),
    }


def _method(keys: LoginKeys) -> str:
    version = _version(keys)
    if version != "3":
        return f"v{version}password"
    if keys.has({"application-credential-id", "application-credential-name"}):
        return "v3applicationcredential"
    if keys.get("password"):
        return "v3password"
    others = {"application-credential-secret": "v3applicationcredential", "token": "v3token"}
    return next((method for key, method in others.items() if keys.get(key)), "v3password")


def _version(keys: LoginKeys) -> str:
    """1, 2 or 3: as given, or as the other keys or the URL say; else 1, as in swiftnbd 0.11."""
    given = keys.get("auth-version").lower().removeprefix("v")
    if given:
        if given not in _VERSIONS:
            raise ConfigError(f"{keys.where}: auth-version is none of 1, 2.0 and 3")
        return _VERSIONS[given]
    if keys.has(_PROJECT | _WHO - {"username", "password"}):
        return "3"
    end = keys.get("auth-url").rstrip("/").rpartition("/")[2].lower()
    return {"v3": "3", "v2.0": "2"}.get(end, "1")


def _with_tenant(keys: LoginKeys) -> LoginKeys:
    """The username ``TENANT.USERNAME`` of swiftnbd 0.11 taken apart, unless there is a project."""
    if keys.has({"project", "project-id"}) or not keys.get("username"):
        return keys
    separator = keys.get("separator") or "."
    tenant, found, user = keys.get("username").partition(separator)
    if not found:
        raise ConfigError(
            f"{keys.where}: the username is not TENANT{separator}USERNAME, and no project is given"
        )
    return keys.with_values({**keys.values, "username": user, "project": tenant})


def _with_domains(keys: LoginKeys) -> LoginKeys:
    """Keystone's default domain for who names none; the project is in the user's domain."""
    values = dict(keys.values)
    if not keys.has({"user-domain", "user-domain-id", "user-id"}):
        values["user-domain-id"] = "default"
    if keys.get("project") and not keys.has({"project-domain", "project-domain-id"}):
        kind = "user-domain" if "user-domain" in values else "user-domain-id"
        values[kind.replace("user", "project")] = values.get(kind, "default")
    return keys.with_values(values)


def _check_complete(keys: LoginKeys, method: str) -> None:
    needed: list[tuple[str, ...]]
    if method == "v3token":
        needed = [("token",)]
    elif method == "v3applicationcredential":
        needed = [
            ("application-credential-id", "application-credential-name"),
            ("application-credential-secret",),
        ]
        if not keys.get("application-credential-id"):
            needed.append(("username", "user-id"))
    else:
        needed = [("username",) if method == "v1password" else ("username", "user-id")]
        needed.append(("password",))
    for names in needed:
        if not keys.has(set(names)):
            raise ConfigError(f"{keys.where} has no {' or '.join(names)}{_hint(keys, names[0])}")


def _hint(keys: LoginKeys, key: str) -> str:
    """Where a secret may be put, if that is not obvious."""
    if not keys.without_section or key not in SECRET_KEYS:
        return ""
    variable = f"OS_{key.replace('-', '_').upper()}"
    return f": set {variable}, or write it into the secrets file"


def _interface(keys: LoginKeys) -> str:
    interface = (keys.get("endpoint-type") or INTERFACE_DEFAULT).removesuffix("URL")
    if interface not in ("public", "internal", "admin"):
        raise ConfigError(f"{keys.where}: endpoint-type is none of public, internal and admin")
    return interface


def tls_of(keys: LoginKeys) -> TlsSettings:
    insecure = keys.get("insecure").lower()
    if insecure not in _YES | _NO:
        raise ConfigError(f"{keys.where}: insecure is neither yes nor no")
    if keys.get("key") and not keys.get("cert"):
        raise ConfigError(f"{keys.where} has a key, but no cert")
    tls = TlsSettings(
        keys.get("cacert") or None,
        keys.get("cert") or None,
        keys.get("key") or None,
        insecure in _YES,
    )
    if keys.has(_TLS):
        tls.context()  # so that a file that cannot be used is found at the start
    return tls
