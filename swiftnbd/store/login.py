# SPDX-License-Identifier: MIT
"""What a login needs to know, as values; `swiftnbd.store.auth` logs in with them."""

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swiftnbd.errors import ConfigError

if TYPE_CHECKING:
    import ssl

SERVICE_DEFAULT = "object-store"
INTERFACE_DEFAULT = "public"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How to be sure of an HTTPS server, and how it is to be sure of us. Paths of PEM files."""

    ca_file: str | None = None  # or a folder; None: those the system trusts
    certificate: str | None = None  # ours
    key: str | None = None  # None: it is in the file of the certificate
    insecure: bool = False  # whoever answers is believed

    def context(self) -> "ssl.SSLContext":
        """A context of the caller's own. ConfigError names the file that cannot be used."""
        import ssl  # late: --help needs none of it

        is_folder = self.ca_file is not None and os.path.isdir(self.ca_file)
        try:
            # who names authorities trusts no others
            context = ssl.create_default_context(
                cafile=None if is_folder else self.ca_file,
                capath=self.ca_file if is_folder else None,
            )
        except ssl.SSLError:
            raise ConfigError(f"{self.ca_file} holds no certificates in PEM form") from None
        except OSError as error:
            raise ConfigError(f"cannot read {self.ca_file}: {error.strerror}") from None
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._present(context)
        return context

    def _present(self, context: "ssl.SSLContext") -> None:
        import ssl

        if self.certificate is None:
            return
        files = " and ".join(filter(None, (self.certificate, self.key)))
        try:
            # with a password of ours, or OpenSSL would ask for one on the terminal
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except ssl.SSLError:
            raise ConfigError(
                f"{files}: not a certificate and its key in PEM form, or the key has a password"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot read {files}: {error.strerror}") from None


HIDDEN = "(hidden)"

# of keystoneauth1's options; all others may be secrets
_OF_ACCOUNT = {
    *("auth_url", "username", "user_id", "user_domain_name", "user_domain_id"),
    *("tenant_name", "tenant_id", "project_name", "project_id"),
    *("project_domain_name", "project_domain_id"),
    *("application_credential_id", "application_credential_name"),
}


def without_secrets(url: str) -> str:
    """A URL, or a name, without what it may say of a password: before an @, behind a ?."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


@dataclass(frozen=True, slots=True)
class LoginSettings:
    """One way to log in, and which of the endpoints it gives to use.

    ``method`` is the name of one of keystoneauth1's plugins (v1password, v2password, v3password,
    v3applicationcredential, v3token, or any other that is installed) and ``options`` are that
    plugin's, by name: half of them are secrets. ``storage_url`` is used whatever the catalog says.
    """

    method: str
    options: tuple[tuple[str, str], ...] = field(repr=False)
    service: str = SERVICE_DEFAULT
    interface: str = INTERFACE_DEFAULT
    region: str | None = None
    storage_url: str | None = None
    tls: TlsSettings = field(default_factory=TlsSettings)

    def option(self, name: str) -> str:
        """An option's value, '' if it was not given."""
        return dict(self.options).get(name, "")

    @property
    def shown(self) -> dict[str, str]:
        """The options by name, for people: of what may be a secret only that it is there."""
        return {
            name: without_secrets(value) if name in _OF_ACCOUNT else HIDDEN
            for name, value in self.options
        }

    @property
    def account(self) -> str:
        """Whose containers it is about, as far as that can be said without a secret."""
        told = [f"{name}={value}" for name, value in self.options if name in _OF_ACCOUNT]
        return "\n".join([*sorted(told), self.region or "", self.storage_url or ""])
