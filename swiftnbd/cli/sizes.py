# SPDX-License-Identifier: MIT
"""Sizes as options."""

import click

from swiftnbd.units import BYTES_MAX as BYTES_MAX
from swiftnbd.units import counted as counted
from swiftnbd.units import exact_size as exact_size
from swiftnbd.units import format_size as format_size
from swiftnbd.units import parse_size as parse_size


def size_option(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A click callback: the option's text as bytes."""
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from None
