# SPDX-License-Identifier: MIT
"""obstore's client of a bucket, set up: the only place that knows its three services apart."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftnbd.errors import ConfigError
from swiftnbd.store.bucket_errors import Failure
from swiftnbd.store.bucket_settings import BucketSettings

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client
    from obstore.store import S3Credential

# As for a Swift: see swiftnbd.store.http.
CONNECT_SECONDS_MAX = 5
REQUEST_SECONDS_MAX = 30

# Ours, and obstore's, where they differ.
_NAMES = {("gs", "endpoint"): "base_url"}


def connect(settings: BucketSettings) -> "Client":
    """Nothing is sent yet. ConfigError for settings that cannot be used."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError:
        raise ConfigError(
            f"{settings.url} needs obstore: pip install 'swiftnbd[object-stores]'"
        ) from None
    config: Any = {
        _NAMES.get((settings.scheme, name), name): value for name, value in settings.options
    }
    common: Any = {
        "client_options": _client_options(settings),
        # swiftnbd.store.retrying knows better when to try again
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=REQUEST_SECONDS_MAX)},
    }
    try:
        if settings.scheme == "s3":
            # Single deletes, which every service has. A signed payload: what was changed on the
            # way is refused.
            config |= {"disable_bulk_delete": True, "unsigned_payload": False}
            if "access_key_id" in config:
                # or the library would add a session token of the environment, which is another's
                common["credential_provider"] = partial(
                    _credential,
                    config.pop("access_key_id"),
                    config.pop("secret_access_key", ""),
                    config.pop("session_token", None),
                )
            return S3Store(settings.bucket, config=config, **common)
        if settings.scheme == "gs":
            return GCSStore(settings.bucket, config=config, **common)
        return AzureStore(settings.bucket, config=config, **common)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{settings.url}: {Failure.of(error).text}") from None


def _credential(key_id: str, secret: str, token: str | None) -> "S3Credential":
    return {
        "access_key_id": key_id,
        "secret_access_key": secret,
        "token": token,
        "expires_at": None,  # never
    }


def _client_options(settings: BucketSettings) -> Any:
    is_plain = settings.option("endpoint").startswith("http://")
    options: Any = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS_MAX),
        "timeout": timedelta(seconds=REQUEST_SECONDS_MAX),
        "allow_http": is_plain,
        # without HTTPS there is none to verify, and the library would look for authorities all the
        # same, and not start where the system trusts none
        "allow_invalid_certificates": settings.tls.insecure or is_plain,
    }
    if settings.tls.ca_file is not None:
        try:
            options["root_certificate"] = Path(settings.tls.ca_file).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {settings.tls.ca_file}: {error.strerror}") from None
    return options
