# SPDX-License-Identifier: MIT
"""clouds.yaml, read by openstacksdk: its files, vendors and old spellings are its own business."""

import warnings
from typing import Any

from swiftnbd.cli.login import LoginKeys, endpoint_of, options_of
from swiftnbd.errors import ConfigError
from swiftnbd.store.login import LoginSettings

_SCOPE = {"project_name", "project_id"}
_DOMAINS = {"user_domain_name", "user_domain_id", "project_domain_name", "project_domain_id"}


def settings_of_cloud(keys: LoginKeys) -> LoginSettings:
    """The login of the cloud that ``keys`` name; their other values go before the cloud's."""
    name = keys.get("cloud")
    config = _read(name, keys.where)
    method = str(config.get("auth_type") or "password")
    given = {key: str(value) for key, value in config.get("auth", {}).items() if value is not None}
    for option, value in options_of(keys, {"username", "user_id", "password", *_SCOPE, *_DOMAINS}):
        given[option] = value
    if "project_name" in dict(options_of(keys, {"project_name"})):
        given.pop("project_id", None)
    if not given.get("auth_url"):
        raise ConfigError(f"{keys.where}: cloud {name!r} of clouds.yaml has no auth_url")
    if method.endswith("password") and not given.get("password"):
        raise ConfigError(
            f"{keys.where}: cloud {name!r} has no password: put it into clouds.yaml or secure.yaml"
            + (", or set OS_PASSWORD" if keys.without_section else "")
        )
    lower = {
        "region": config.get("region_name"),
        "endpoint-type": config.get("interface"),
        "storage-url": config.get("object_store_endpoint_override"),
        **config["tls"],
    }
    rest = LoginKeys({key: str(value) for key, value in lower.items() if value}, keys.where)
    options = tuple(sorted(given.items()))
    return LoginSettings(method, options, **endpoint_of(keys.over(rest)))


def _read(name: str, where: str) -> dict[str, Any]:
    # What openstacksdk means to drop in some version to come is nothing that a user can change.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read_quietly(name, where)


def _read_quietly(name: str, where: str) -> dict[str, Any]:
    try:
        from openstack.config import OpenStackConfig
        from openstack.exceptions import ConfigException
    except ImportError:
        raise ConfigError(
            f"{where}: cloud {name!r} needs openstacksdk to read clouds.yaml: "
            "pip install 'swiftnbd[openstack]'"
        ) from None
    from yaml import YAMLError

    try:
        # validate: what is missing, a login will tell, and in a sentence
        region = OpenStackConfig().get_one(cloud=name, validate=False)
        verify, certificate = region.get_requests_verify_args()
    except ConfigException as error:
        raise ConfigError(f"{where}: cloud {name!r}: {_first_line(error)}") from None
    except (YAMLError, UnicodeDecodeError):  # whose texts quote the file
        raise ConfigError(
            f"{where}: cloud {name!r}: clouds.yaml or secure.yaml is no YAML"
        ) from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {error.filename}: {error.strerror}") from None
    return {**region.config, "tls": _tls(verify, certificate)}


def _tls(verify: bool | str | None, certificate: Any) -> dict[str, str]:
    """In our words, what openstacksdk would give to requests."""
    cert, key = certificate if isinstance(certificate, tuple) else (certificate or "", "")
    return {
        "cacert": verify if isinstance(verify, str) else "",
        "cert": cert,
        "key": key,
        "insecure": "" if verify else "yes",
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
