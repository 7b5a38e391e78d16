# SPDX-License-Identifier: MIT
"""The flags for TLS, and what they add up to."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from swiftnbd.cli.flags import flag_group, flags_of
from swiftnbd.errors import ConfigError
from swiftnbd.server.config import ExportConfig, TlsConfig


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """As given."""

    tls: str
    tls_certificates: str | None
    tls_verify_peer: bool
    tls_psk: str | None

    def config(self, exports: Iterable[ExportConfig]) -> TlsConfig | None:
        """What the server is to do; ConfigError for what does not go together."""
        if self.tls == "off":
            self._check_off(exports)
            return None
        if self.tls_certificates is None and self.tls_psk is None:
            raise ConfigError(
                f"--tls {self.tls} needs the server's certificate (--tls-certificates) or "
                "pre-shared keys (--tls-psk)"
            )
        if self.tls_verify_peer and self.tls_certificates is None:
            raise ConfigError(
                "--tls-verify-peer needs the authority's certificate: name the folder it is in "
                "with --tls-certificates"
            )
        return TlsConfig(
            required=self.tls == "require",
            certificates=_path(self.tls_certificates),
            verify_peer=self.tls_verify_peer,
            psk_file=_path(self.tls_psk),
        )

    def _check_off(self, exports: Iterable[ExportConfig]) -> None:
        """Nobody who asked for TLS should go without it unknowingly."""
        given = {
            "--tls-certificates": self.tls_certificates is not None,
            "--tls-verify-peer": self.tls_verify_peer,
            "--tls-psk": self.tls_psk is not None,
        }
        for flag, is_given in given.items():
            if is_given:
                raise ConfigError(f"{flag} is given, but TLS is off: add --tls on or --tls require")
        for export in exports:
            if export.tls_only:
                raise ConfigError(
                    f"[{export.name}] has tls = require, but TLS is off: add --tls on or "
                    "--tls require"
                )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser().absolute()


_tls = flags_of("Encryption")

tls_options = flag_group(
    "encryption",
    TlsOptions,
    _tls(
        "--tls",
        type=click.Choice(["off", "on", "require"]),
        default="off",
        show_default=True,
        help="Encrypt connections: of those clients that want it (on), or serve no others "
        "(require).",
    ),
    _tls(
        "--tls-certificates",
        metavar="DIR",
        help="Folder with server-cert.pem, server-key.pem and, for --tls-verify-peer, "
        "ca-cert.pem and perhaps ca-crl.pem.",
    ),
    _tls(
        "--tls-verify-peer",
        is_flag=True,
        help="Serve over TLS only clients whose certificate ca-cert.pem has signed.",
    ),
    _tls(
        "--tls-psk",
        metavar="FILE",
        help="Pre-shared keys, in lines USERNAME:HEXKEY as psktool writes them (Python 3.13).",
    ),
)
