# SPDX-License-Identifier: MIT
"""Logins from the variables that OpenStack's and Swift's own clients read."""

from collections.abc import Mapping

from swiftnbd.cli.login import LoginKeys
from swiftnbd.errors import ConfigError

# Ours, and the variables that say it: the first that is set.
_OPENSTACK = {
    "auth-url": ("OS_AUTH_URL",),
    "auth-version": ("OS_IDENTITY_API_VERSION", "OS_AUTH_VERSION"),
    "username": ("OS_USERNAME",),
    "user-id": ("OS_USER_ID",),
    "user-domain": ("OS_USER_DOMAIN_NAME",),
    "user-domain-id": ("OS_USER_DOMAIN_ID",),
    "password": ("OS_PASSWORD",),
    "project": ("OS_PROJECT_NAME", "OS_TENANT_NAME"),
    "project-id": ("OS_PROJECT_ID", "OS_TENANT_ID"),
    "project-domain": ("OS_PROJECT_DOMAIN_NAME",),
    "project-domain-id": ("OS_PROJECT_DOMAIN_ID",),
    "application-credential-id": ("OS_APPLICATION_CREDENTIAL_ID",),
    "application-credential-name": ("OS_APPLICATION_CREDENTIAL_NAME",),
    "application-credential-secret": ("OS_APPLICATION_CREDENTIAL_SECRET",),
    "token": ("OS_TOKEN", "OS_AUTH_TOKEN"),
    "service-type": ("OS_SERVICE_TYPE",),
    "storage-url": ("OS_STORAGE_URL",),
}
_ENDPOINT = {
    "region": ("OS_REGION_NAME",),
    "endpoint-type": ("OS_INTERFACE", "OS_ENDPOINT_TYPE"),
}
_TLS = {
    "cacert": ("OS_CACERT",),
    "cert": ("OS_CERT",),
    "key": ("OS_KEY",),
    "insecure": ("OS_INSECURE", "SWIFTCLIENT_INSECURE"),
}
_SECRETS = ("password", "application-credential-secret", "token")
_SWIFT = {
    "auth-url": ("ST_AUTH",),
    "auth-version": ("ST_AUTH_VERSION",),
    "username": ("ST_USER",),
    "password": ("ST_KEY",),
}
# OS_AUTH_TYPE: the version of Keystone and the secret that goes with it
_TYPES = {
    "password": ("", "password"),
    "v2password": ("2", "password"),
    "v3password": ("3", "password"),
    "token": ("3", "token"),
    "v3token": ("3", "token"),
    "v3applicationcredential": ("3", "application-credential-secret"),
    "v1password": ("1", "password"),
}
WHERE = "the login of the environment"


def from_environment(environ: Mapping[str, str]) -> LoginKeys:
    """The login that the environment names: a cloud, or OS_* variables, or ST_*; or nothing."""
    if cloud := environ.get("OS_CLOUD"):
        return LoginKeys({"cloud": cloud, **_pick(environ, _ENDPOINT)}, f"{WHERE} (OS_CLOUD)")
    if environ.get("OS_AUTH_URL"):
        return _openstack(environ)
    if environ.get("ST_AUTH"):
        # the form that goes with version 2.0 there
        keys = {"separator": ":", **_pick(environ, _SWIFT | _TLS)}
        keys.setdefault("auth-version", "1")
        return LoginKeys(keys, f"{WHERE} (ST_AUTH)")
    return LoginKeys({}, WHERE)


def rest_of_environment(environ: Mapping[str, str]) -> LoginKeys:
    """What the environment says when the command line says where to log in."""
    keys = {**_pick(environ, _SWIFT), **_pick(environ, _OPENSTACK | _ENDPOINT | _TLS)}
    return LoginKeys({key: val for key, val in keys.items() if key != "auth-url"}, WHERE)


def secret_of_environment(environ: Mapping[str, str]) -> LoginKeys:
    """The password alone, for a clouds.yaml without it."""
    return LoginKeys(_pick(environ, {"password": ("OS_PASSWORD",)}), WHERE)


def _openstack(environ: Mapping[str, str]) -> LoginKeys:
    keys = _pick(environ, _OPENSTACK | _ENDPOINT | _TLS)
    kind = environ.get("OS_AUTH_TYPE", "")
    if kind and kind not in _TYPES:
        raise ConfigError(
            f"OS_AUTH_TYPE={kind} is none of {', '.join(sorted(_TYPES))}; "
            "clouds.yaml and OS_CLOUD know all types"
        )
    if kind:
        version, secret = _TYPES[kind]
        keys["auth-version"] = version or keys.get("auth-version", "")
        keys = {key: value for key, value in keys.items() if key not in _SECRETS or key == secret}
    keys["auth-version"] = keys.get("auth-version") or _version_of(keys["auth-url"])
    return LoginKeys(keys, f"{WHERE} (OS_AUTH_URL)")


def _version_of(url: str) -> str:
    """Keystone's third, unless the URL names another one."""
    path = url.rstrip("/")
    if path.endswith("/v2.0"):
        return "2"
    return "1" if path.endswith(("/auth/v1.0", "/auth/v1", "/auth/1.0")) else "3"


def _pick(environ: Mapping[str, str], names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    found = {key: next(filter(None, map(environ.get, those)), "") for key, those in names.items()}
    return {key: value for key, value in found.items() if value}
