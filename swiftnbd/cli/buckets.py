# SPDX-License-Identifier: MIT
"""From keys and values to one bucket of an object store, and which containers are in it."""

from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from swiftnbd.cli.login import LoginKeys, tls_of
from swiftnbd.errors import ConfigError, StoreError, StoreUnavailable
from swiftnbd.store.bucket_settings import BucketSettings

# Listing them is done while nothing else is: also by a server that reads its configuration again.
LISTING_SECONDS_MAX = 10.0

# Our keys of each service, which are obstore's but for their dashes.
_OPTIONS = {
    "s3": {"endpoint", "region", "access-key-id", "secret-access-key", "session-token"},
    "gs": {"endpoint", "service-account"},
    "az": {"endpoint", "account-name", "account-key"},
}
_IN_URL = {"endpoint", "region", "account-name"}  # what everybody may see in the process list

# Our keys, and the variables that say it to the services' own tools: the first that is set.
_ENVIRONMENT: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "s3": {
        "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "access-key-id": ("AWS_ACCESS_KEY_ID",),
        "secret-access-key": ("AWS_SECRET_ACCESS_KEY",),
        "session-token": ("AWS_SESSION_TOKEN",),
    },
    "gs": {"service-account": ("GOOGLE_APPLICATION_CREDENTIALS",)},
    "az": {
        "account-name": ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"),
        "account-key": ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"),
    },
}
# One without the other is a mistake, not something to be found elsewhere.
_TOGETHER = (
    ("access-key-id", "secret-access-key"),
    ("secret-access-key", "access-key-id"),
    ("account-key", "account-name"),
)


def bucket_of(keys: LoginKeys, environ: Mapping[str, str]) -> BucketSettings:
    """The bucket that ``auth-url`` names. ConfigError says what is wrong with it.

    What it does not say is taken from the ``keys``, then from the environment.
    """
    url = keys.get("auth-url")
    scheme, bucket, prefix, in_url = _parsed(url)
    given = keys.with_values({**keys.values, **in_url})
    merged = given.over(LoginKeys(_pick(environ, scheme)))
    for one, other in _TOGETHER:
        if one in _OPTIONS[scheme] and bool(merged.get(one)) > bool(merged.get(other)):
            raise ConfigError(f"{keys.where} has {one}, but no {other}")
    endpoint = merged.get("endpoint")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"endpoint {endpoint!r} begins with neither https:// nor http://")
    options = {key: merged.get(key) for key in sorted(_OPTIONS[scheme]) if merged.get(key)}
    return BucketSettings(
        scheme,
        bucket,
        prefix,
        tuple((key.replace("-", "_"), value) for key, value in options.items()),
        tls_of(keys),
    )


def _parsed(url: str) -> tuple[str, str, str, dict[str, str]]:
    """Scheme, bucket, prefix and keys of ``s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]``."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if not parts.netloc or "@" in parts.netloc or parts.fragment:
        raise ConfigError(f"{shown!r} names no bucket: write {parts.scheme}://BUCKET[/PREFIX]")
    prefix = unquote(parts.path).strip("/")
    if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
        raise ConfigError(f"{shown!r}: the prefix has an empty part, '.' or '..' in it")
    try:
        query = dict(
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        )
    except ValueError:
        raise ConfigError(f"{shown!r}: behind the ? is no KEY=VALUE") from None
    known = _IN_URL & _OPTIONS[parts.scheme]
    if unknown := query.keys() - known:
        raise ConfigError(
            f"{shown!r}: {sorted(unknown)[0]!r} behind the ? is none of {', '.join(sorted(known))} "
            "(secrets: in the secrets file, or in the environment)"
        )
    return parts.scheme, parts.netloc, prefix, query


def _pick(environ: Mapping[str, str], scheme: str) -> dict[str, str]:
    named = _ENVIRONMENT[scheme]
    found = {key: next(filter(None, map(environ.get, names)), "") for key, names in named.items()}
    return {key: value for key, value in found.items() if value}


def containers_in(settings: BucketSettings) -> list[str]:
    """The names of all containers in a bucket, sorted: asks the service, in a thread of its own."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from swiftnbd.store.open_bucket import Bucket, containers

    async def listed() -> list[str]:
        bucket = Bucket(settings)
        try:
            async with asyncio.timeout(LISTING_SECONDS_MAX):
                return await containers(bucket)
        except TimeoutError:
            raise StoreUnavailable(f"{settings.url}: no answer") from None
        finally:
            await bucket.close()

    with ThreadPoolExecutor(1) as thread:  # the caller's may have an event loop already
        try:
            return thread.submit(asyncio.run, listed()).result()
        except StoreUnavailable as error:
            raise StoreError(str(error)) from error
