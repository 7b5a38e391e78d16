# SPDX-License-Identifier: MIT
"""The flags for logging in. None takes a secret: everybody could read it in the process list."""

from dataclasses import dataclass

import click

from swiftnbd.cli.flags import flag_group, flags_of
from swiftnbd.cli.login import LoginKeys

DIRECTORY_SCHEME = "file:"


@dataclass(frozen=True, slots=True)
class LoginFlags:
    """As given; None is not at all."""

    auth_url: str = ""
    os_cloud: str | None = None
    auth_version: str | None = None
    os_username: str | None = None
    os_user_domain_name: str | None = None
    os_project_name: str | None = None
    os_project_id: str | None = None
    os_project_domain_name: str | None = None
    os_application_credential_id: str | None = None
    os_region_name: str | None = None
    os_interface: str | None = None
    os_storage_url: str | None = None
    os_cacert: str | None = None
    os_cert: str | None = None
    os_key: str | None = None
    insecure: bool = False
    keystone_auth: bool = False
    keystone_separator: str | None = None
    keystone_service: str | None = None
    keystone_endpoint: str | None = None
    keystone_region: str | None = None

    def keys(self) -> LoginKeys:
        """In the words of the secrets file."""
        found = {
            "auth-url": self.auth_url,
            "cloud": self.os_cloud,
            "auth-version": self.auth_version or ("2.0" if self.keystone_auth else None),
            "username": self.os_username,
            "user-domain": self.os_user_domain_name,
            "project": self.os_project_name,
            "project-id": self.os_project_id,
            "project-domain": self.os_project_domain_name,
            "application-credential-id": self.os_application_credential_id,
            "region": self.os_region_name or self.keystone_region,
            "endpoint-type": self.os_interface or self.keystone_endpoint,
            "service-type": self.keystone_service,
            "separator": self.keystone_separator,
            "storage-url": self.os_storage_url,
            "cacert": self.os_cacert,
            "cert": self.os_cert,
            "key": self.os_key,
            "insecure": "yes" if self.insecure else None,
        }
        return LoginKeys({key: value for key, value in found.items() if value}, "the login")


_where = flags_of("Where the containers are")
_who = flags_of("Who logs in, unless the secrets file says so (passwords: there, or OS_PASSWORD)")

login_options = flag_group(
    "login",
    LoginFlags,
    _where(
        "-a",
        "--auth-url",
        metavar="URL",
        default="",
        help="Where to log in: the v1 authentication URL of a Swift, a Keystone such as "
        "https://HOST:5000/v3; s3://BUCKET[/PREFIX][?endpoint=URL], gs:// or az:// for containers "
        "in an object store; or file:DIR for containers kept as folders under DIR. There is no "
        "default (that of swiftnbd 0.11 is gone).",
    ),
    _where(
        "--os-cloud",
        metavar="NAME",
        help="Log in to this cloud of clouds.yaml (needs openstacksdk: swiftnbd[openstack]).",
    ),
    _who(
        "--auth-version",
        type=click.Choice(["1", "1.0", "2", "2.0", "3"]),
        metavar="VERSION",
        help="1, 2.0 or 3 (default: what the URL ends with or the other flags need; else 1).",
    ),
    _who("--os-username", metavar="NAME", help="User."),
    _who("--os-user-domain-name", metavar="NAME", help="The user's domain (default: default)."),
    _who("--os-project-name", metavar="NAME", help="Project."),
    _who("--os-project-id", metavar="ID", help="Project, by its ID."),
    _who(
        "--os-project-domain-name",
        metavar="NAME",
        help="The project's domain (default: the user's).",
    ),
    _who("--os-application-credential-id", metavar="ID", help="Application credential."),
    _who("--os-region-name", metavar="NAME", help="Region of the Swift."),
    _who(
        "--os-interface",
        metavar="TYPE",
        help="Which endpoint of it: public, internal or admin (default: public).",
    ),
    _who("--os-storage-url", metavar="URL", help="Use this account, whatever the login says."),
    _who(
        "--os-cacert", metavar="FILE", help="Trust these authorities for HTTPS, not the system's."
    ),
    _who("--os-cert", metavar="FILE", help="Certificate to show to HTTPS servers."),
    _who("--os-key", metavar="FILE", help="Its key."),
    _who("--insecure", is_flag=True, help="Do not verify certificates of HTTPS servers."),
    _who(
        "-k",
        "--keystone-auth",
        is_flag=True,
        help="Log in with Keystone's version 2.0, as TENANT.USERNAME; the --keystone flags are "
        "those of swiftnbd 0.11.",
    ),
    _who(
        "--keystone-separator",
        metavar="CHAR",
        help="What stands between tenant and user in the username (default: .).",
    ),
    _who(
        "--keystone-service",
        metavar="TYPE",
        help="Type of the service to look up (default: object-store).",
    ),
    _who(
        "--keystone-endpoint",
        metavar="TYPE",
        help="Type of the endpoint to look up (default: publicURL).",
    ),
    _who("--keystone-region", metavar="NAME", help="Region to look up."),
)
