# SPDX-License-Identifier: MIT
"""Which bucket of an object store, and how to get at it, as values."""

from dataclasses import dataclass, field

from swiftnbd.store.login import HIDDEN, TlsSettings

# the names by which people know them, for messages
SERVICES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}

_SHOWN = {"endpoint", "region", "account_name", "service_account"}


def is_bucket_url(url: str) -> bool:
    """Whether it is about a bucket, by its scheme."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme in SERVICES


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """One bucket, or what lies under ``prefix`` in it ('' or ``a/b``), of one ``scheme``.

    ``options`` are endpoint, region, access_key_id, secret_access_key and session_token of s3,
    endpoint and service_account (a path) of gs, endpoint, account_name and account_key of az: those
    that are given. Some are secrets. What is not given the library finds by itself, or not.
    """

    scheme: str
    bucket: str
    prefix: str = ""
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    tls: TlsSettings = field(default_factory=TlsSettings)

    def option(self, name: str) -> str:
        """An option's value, '' if it was not given."""
        return dict(self.options).get(name, "")

    @property
    def method(self) -> str:
        """How one logs in there, in a word."""
        return self.scheme

    @property
    def url(self) -> str:
        """Where it is, for people. No secret is in it."""
        path = f"/{self.prefix}" if self.prefix else ""
        return f"{self.scheme}://{self.bucket}{path}"

    @property
    def service(self) -> str:
        """Whose answers these are: the URL of an endpoint, or the name of the service."""
        return self.option("endpoint") or SERVICES[self.scheme]

    @property
    def shown(self) -> dict[str, str]:
        """The options by name, for people: of what may be a secret only that it is there."""
        return {name: value if name in _SHOWN else HIDDEN for name, value in self.options}

    @property
    def account(self) -> str:
        """What tells its containers from others of their names. No secret is in it."""
        return "\n".join([self.url, self.option("endpoint"), self.option("account_name")])
