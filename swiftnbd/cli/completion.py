# SPDX-License-Identifier: MIT
"""Arguments that a shell completes (click has the scripts for bash, zsh and fish).

What is completed comes from the secrets file or the folder, never over a network, and a mistake
in them completes nothing: the command itself will say what is wrong.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from swiftnbd.cli.flags import Decorator
from swiftnbd.errors import SwiftnbdError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def container_argument(name: str = "container", *, required: bool = True) -> Decorator:
    """The argument that names a container."""
    return click.argument(name, required=required, shell_complete=complete_container)


def complete_container(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """The containers of the secrets file, or of the folder, that begin so."""
    from click.shell_completion import CompletionItem

    flags = {key: value for each in _chain(ctx) for key, value in each.params.items()}
    logging.disable(logging.CRITICAL)  # a warning would be seen in the middle of the line
    try:
        names = _names(flags.get("secrets"), flags.get("auth_url") or "")
    except (SwiftnbdError, OSError):
        return []
    return [CompletionItem(each) for each in names if each.startswith(incomplete)]


def complete_argument(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """What the server serves: plugins and containers first, then the keys of a plugin."""
    from click.shell_completion import CompletionItem

    from swiftnbd.cli.finding import PLUGINS, names

    before = ctx.params.get("arguments") or ()
    logging.disable(logging.CRITICAL)
    if before and (found := _keys(before[0], ctx.params.get("filters") or ())):
        return [CompletionItem(each) for each in found if each.startswith(incomplete)]
    plugins = [] if before else [each for each in names(PLUGINS) if each.startswith(incomplete)]
    containers = complete_container(ctx, param, incomplete)
    return [*(CompletionItem(each) for each in plugins), *containers]


def complete_filter(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """The names of filters that begin so."""
    from click.shell_completion import CompletionItem

    from swiftnbd.cli.finding import FILTERS, names

    return [CompletionItem(each) for each in names(FILTERS) if each.startswith(incomplete)]


def _keys(plugin: str, filters: Sequence[str]) -> list[str]:
    """``KEY=`` of a plugin and its filters; nothing if it is none."""
    from swiftnbd.api.parameters import parameters_of
    from swiftnbd.cli.finding import SWIFT, find_filter, find_plugin

    try:
        kind = None if plugin == SWIFT else find_plugin(plugin)
        if kind is None:
            return []
        kinds = [kind, *(find_filter(each) for each in filters)]
    except SwiftnbdError:
        return []
    return [f"{each.key}=" for one in kinds for each in parameters_of(one)]


def _names(secrets: str | None, url: str) -> list[str]:
    from swiftnbd.cli.login_options import DIRECTORY_SCHEME
    from swiftnbd.cli.options import directory_of
    from swiftnbd.cli.secrets import SECRETS_FILE_DEFAULT, load_secrets
    from swiftnbd.store.bucket_settings import is_bucket_url
    from swiftnbd.store.directory import containers

    if secrets is None and url.startswith(DIRECTORY_SCHEME):
        return containers(directory_of(url))
    if secrets is None and is_bucket_url(url):
        return []  # to ask the service would take too long for a keypress
    return [section.export.name for section in load_secrets(secrets or SECRETS_FILE_DEFAULT)]


def _chain(ctx: click.Context) -> list[click.Context]:
    """This context and those above it, the highest first."""
    parents = [] if ctx.parent is None else _chain(ctx.parent)
    return [*parents, ctx]


def complete_file(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Leave it to the shell."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]
