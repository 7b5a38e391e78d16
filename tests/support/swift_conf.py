# SPDX-License-Identifier: MIT
"""The configuration files and rings of a small real Swift; used by `tests.support.swift_helper`."""

import base64
import os
import pwd
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROLES = ("account", "container", "object", "proxy")
DEFAULT_POLICY = "Policy-0"
SECOND_POLICY = "Policy-1"
S3_REGION = "us-east-1"
FILTERS = (
    "catch_errors",
    "gatekeeper",
    "healthcheck",
    "cache",
    "listing_formats",
    "bulk",
    "s3api",
    "tempauth",
    "copy",
    "container_quotas",
    "account_quotas",
    "slo",
    "dlo",
    "versioned_writes",
    "symlink",
)
USERS = {
    "test:tester": "testing .admin",
    "test:tester3": "testing3",
    "test2:tester2": "testing2 .admin",
}

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class SwiftSpec:
    """What kind of Swift to start.

    ``mode``: "split" (four processes), "duo" (proxy | the other three) or "single".
    ``cache``: "dict" (one in the proxy, in place of memcached) or "none".
    ``extra``: further options per role, section and name.
    ``error_limit``: keep Swift's own error limiting; with one replica, ten errors of a server
    then mean 503 for a minute.
    ``keystone_url``: ask this Keystone who somebody is, as its user swift in project service, in
    place of tempauth.
    """

    root: str
    mode: str = "split"
    port: int = 0
    workers: dict[str, int] = field(default_factory=dict)
    fsync: bool = True
    log_level: str = "WARNING"
    cache: str = "dict"
    extra: dict[str, Sections] = field(default_factory=dict)
    error_limit: bool = False
    users: dict[str, str] = field(default_factory=lambda: dict(USERS))
    keystone_url: str = ""
    keystone_password: str = ""

    @property
    def devices(self) -> str:
        """Where the data goes."""
        return os.path.join(self.root, "srv")

    @property
    def groups(self) -> list[list[str]]:
        """Which roles share a process."""
        return {
            "split": [[role] for role in ROLES],
            "duo": [["account", "container", "object"], ["proxy"]],
            "single": [list(ROLES)],
        }[self.mode]

    def conf(self, role: str) -> str:
        """The path of a server's configuration."""
        return os.path.join(self.root, f"{role}-server.conf")


def write_rings(spec: SwiftSpec, ports: dict[str, int]) -> None:
    """One device, one replica, one partition; `object-1` is the second storage policy's."""
    from swift.common.ring import RingBuilder

    for ring in ("account", "container", "object", "object-1"):
        port = ports[ring.split("-")[0]]
        builder = RingBuilder(0, 1, 0)
        builder.add_dev(
            {
                "region": 1,
                "zone": 1,
                "ip": "127.0.0.1",
                "port": port,
                "replication_ip": "127.0.0.1",
                "replication_port": port,
                "device": "d1",
                "weight": 1.0,
                "meta": "",
            }
        )
        builder.rebalance()
        builder.get_ring().save(os.path.join(spec.root, f"{ring}.ring.gz"))


def write_confs(spec: SwiftSpec, ports: dict[str, int]) -> None:
    """swift.conf and one file per server."""
    swift = {
        "swift-hash": {"swift_hash_path_prefix": "aio", "swift_hash_path_suffix": "aio"},
        "storage-policy:0": {"name": DEFAULT_POLICY, "default": "yes"},
        "storage-policy:1": {"name": SECOND_POLICY},
    }
    _write(os.path.join(spec.root, "swift.conf"), swift)
    for role in ROLES:
        conf = _proxy(spec, ports) if role == "proxy" else _backend(spec, ports, role)
        for section, options in spec.extra.get(role, {}).items():
            conf.setdefault(section, {}).update(options)
        _write(spec.conf(role), conf)


def _common(spec: SwiftSpec, ports: dict[str, int], role: str) -> dict[str, Any]:
    return {
        "bind_ip": "127.0.0.1",
        "bind_port": ports[role],
        "workers": spec.workers.get(role, 0),
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "swift_dir": spec.root,
        "devices": spec.devices,
        "mount_check": "false",
        "disable_fallocate": "true",
        "fallocate_reserve": 0,
        "log_level": spec.log_level,
        "log_name": role,
        "max_clients": 4096,
        "backlog": 1024,
    }


def _backend(spec: SwiftSpec, ports: dict[str, int], role: str) -> Sections:
    cache = os.path.join(spec.root, "cache")
    return {
        "DEFAULT": _common(spec, ports, role),
        "pipeline:main": {"pipeline": f"healthcheck recon {role}-server"},
        f"app:{role}-server": {"use": f"egg:swift#{role}"},
        "filter:healthcheck": {"use": "egg:swift#healthcheck"},
        "filter:recon": {"use": "egg:swift#recon", "recon_cache_path": cache},
    }


def _proxy(spec: SwiftSpec, ports: dict[str, int]) -> Sections:
    filters = [*FILTERS]
    if spec.cache == "none":
        filters.remove("cache")
    if spec.keystone_url:
        filters.remove("s3api")  # it would need Keystone's EC2 credentials
        at = filters.index("tempauth")
        filters[at : at + 1] = ["authtoken", "keystoneauth"]
    app: dict[str, Any] = {
        "use": "egg:swift#proxy",
        "account_autocreate": "true",
        "allow_account_management": "true",
        "node_timeout": 10,
        "conn_timeout": 1,
    }
    if not spec.error_limit:
        app.update(error_suppression_interval=1, error_suppression_limit=10**9)
    conf: Sections = {
        "DEFAULT": _common(spec, ports, "proxy"),
        "pipeline:main": {"pipeline": " ".join([*filters, "proxy-server"])},
        "app:proxy-server": app,
    }
    for name in filters:
        conf[f"filter:{name}"] = {"use": f"egg:swift#{name}"}
    if spec.cache != "none":
        conf["filter:cache"] = {"use": "egg:swift#memcache", "memcache_servers": "127.0.0.1:1"}
    conf["filter:versioned_writes"] |= {
        "allow_versioned_writes": "true",
        "allow_object_versioning": "true",
    }
    if spec.keystone_url:
        _ask_keystone(conf, spec)
        return conf
    # S3 clients log in with a user's name and key of tempauth
    conf["filter:s3api"] |= {"location": S3_REGION, "s3_acl": "false"}
    conf["filter:tempauth"] |= {
        "token_life": 86400,
        # Stateless tokens: tempauth needs no memcached at all then.
        "fernet_key_k1": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "active_fernet_key_id": "k1",
        **{f"user_{name.replace(':', '_')}": rest for name, rest in spec.users.items()},
    }
    return conf


def _ask_keystone(conf: Sections, spec: SwiftSpec) -> None:
    conf["filter:authtoken"] = {
        "paste.filter_factory": "keystonemiddleware.auth_token:filter_factory",
        "www_authenticate_uri": spec.keystone_url,
        "auth_url": spec.keystone_url,
        "auth_type": "password",
        "username": "swift",
        "password": spec.keystone_password,
        "user_domain_id": "default",
        "project_name": "service",
        "project_domain_id": "default",
        "delay_auth_decision": "True",
        "include_service_catalog": "False",
        "cache": "swift.cache",
        "token_cache_time": 1,  # so that a token that was revoked is refused soon
        # what Swift waits for, we wait for
        "http_connect_timeout": 5,
        "http_request_max_retries": 0,
    }
    conf["filter:keystoneauth"] |= {"operator_roles": "admin, member", "reseller_prefix": "AUTH"}


def _write(path: str, sections: Sections) -> None:
    lines = []
    for name, options in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {value}" for key, value in options.items()]
        lines.append("")
    Path(path).write_text("\n".join(lines))
    os.chmod(path, 0o600)
