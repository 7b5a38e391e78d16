# SPDX-License-Identifier: MIT
"""The interface of plugins and filters, version 1. What is written against it keeps working:
names are added to it, none is changed or taken away. docs/plugins.md is the way in.
"""

from swiftnbd.api.client import Client
from swiftnbd.api.device import EXTENTS_MAX, Device, Extent, Pending
from swiftnbd.api.filter import Filter
from swiftnbd.api.parameters import (
    BOOLEAN,
    FRACTION,
    INTEGER,
    OFFSET,
    PATH,
    SECONDS,
    SIZE,
    TEXT,
    Kind,
    choice,
    integer,
    other_keys,
    parameter,
    size,
)
from swiftnbd.api.plugin import API_VERSION, FilterPlugin, Opening, Plugin
from swiftnbd.api.profile import Profile
from swiftnbd.buffers import HOLE_BYTES_MAX, Buffer, hole, holes, is_hole
from swiftnbd.errors import (
    ConfigError,
    ExportError,
    ExportUnusable,
    StoreUnavailable,
    SwiftnbdError,
)

__all__ = [
    "API_VERSION",
    "BOOLEAN",
    "EXTENTS_MAX",
    "FRACTION",
    "HOLE_BYTES_MAX",
    "INTEGER",
    "OFFSET",
    "PATH",
    "SECONDS",
    "SIZE",
    "TEXT",
    "Buffer",
    "Client",
    "ConfigError",
    "Device",
    "ExportError",
    "ExportUnusable",
    "Extent",
    "Filter",
    "FilterPlugin",
    "Kind",
    "Opening",
    "Pending",
    "Plugin",
    "Profile",
    "StoreUnavailable",
    "SwiftnbdError",
    "choice",
    "hole",
    "holes",
    "integer",
    "is_hole",
    "other_keys",
    "parameter",
    "size",
]
