# SPDX-License-Identifier: MIT
"""``--dump-config``: what flags, files and variables add up to. No secret gets into it.

A login is shown by `swiftnbd.store.login.LoginSettings.shown`, which knows what is none; keys and
certificates by the names of their files; the command of ``--run``, which may say anything, not at
all.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from math import inf
from typing import Any

from swiftnbd.api.parameters import shown_values
from swiftnbd.api.plugin import FilterPlugin, Plugin
from swiftnbd.cli.networks import rule_text
from swiftnbd.cli.plan import Plan, outages_of
from swiftnbd.server.access import Access
from swiftnbd.server.config import (
    AuthConfig,
    ExportConfig,
    InheritedSocket,
    ListenAddress,
    TcpAddress,
    UnixAddress,
)
from swiftnbd.store.bucket_settings import BucketSettings
from swiftnbd.store.login import LoginSettings, without_secrets


def dumped(plan: Plan) -> str:
    """All of it as JSON, for people and programs."""
    values = {
        "server": _server(plan),
        "exports": {export.name: _export(plan, export) for export in plan.exports},
    }
    return json.dumps(values, indent=2, default=_text)


def _server(plan: Plan) -> dict[str, Any]:
    server = plan.server
    return {
        "listen": [_address(address) for address in server.listen],
        "single": not server.listen,
        "run": plan.command is not None,
        "pid_file": plan.pid_file,
        "account": None if plan.account is None else asdict(plan.account),
        "store": _store(plan.auth),
        "http": None if server.http is None else _address(server.http),
        "tls": None if server.tls is None else asdict(server.tls),
        "access": _access(server.access),
        "default_export": server.default_export,
        "list_exports": server.list_exports,
        "connections_max": server.connections_max,
        "connections_per_address_max": server.connections_per_address_max,
        "handshake_seconds_max": server.handshake_seconds_max,
        "structured_replies": server.structured_replies,
        "mask_handshake": server.mask_handshake,
        "on_end": server.on_end.value,
        "lock": asdict(server.pace) | {"takeover": server.takeover},
        "slow_seconds": None if server.slow_seconds == inf else server.slow_seconds,
    }


def _export(plan: Plan, export: ExportConfig) -> dict[str, Any]:
    values = {
        "read_only": export.read_only,
        "multi_conn": export.multi_conn,
        "tls_only": plan.is_tls_only(export.name),
        "access": _access(export.access),
        "filters": [_told(each.name, each.filter) for each in export.filters],
    }
    if export.plugin is not None:
        return values | {"plugin": _told(export.plugin.name, export.plugin.plugin)}
    return values | {
        "cache": asdict(plan.cache_of(export)),
        "outages": asdict(outages_of(export, plan.server.outages)),
        "login": None if export.login is None else _login(export.login),
    }


def _told(name: str, made: Plugin | FilterPlugin) -> dict[str, Any]:
    return {"name": name, **shown_values(made)}


def _login(login: LoginSettings | BucketSettings) -> Mapping[str, Any]:
    if isinstance(login, BucketSettings):
        shown = {"method": login.method, "bucket": login.url, "options": login.shown}
        return {**shown, "tls": asdict(login.tls)}
    return {
        "method": login.method,
        "options": login.shown,
        "service": login.service,
        "interface": login.interface,
        "region": login.region,
        "storage_url": login.storage_url and without_secrets(login.storage_url),
        "tls": asdict(login.tls),
    }


def _store(auth: AuthConfig) -> str:
    return without_secrets(auth.url) if auth.directory is None else f"file:{auth.directory}"


def _access(access: Access) -> dict[str, list[str]]:
    return {
        "allow": [rule_text(rule) for rule in access.allow],
        "deny": [rule_text(rule) for rule in access.deny],
    }


def _address(address: ListenAddress) -> str:
    match address:
        case TcpAddress(host, port):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case UnixAddress(path):
            return "a private Unix socket" if path is None else f"unix:{path}"
        case InheritedSocket(descriptor):
            return f"descriptor {descriptor}"


def _text(value: object) -> Any:
    return value.value if isinstance(value, Enum) else str(value)
