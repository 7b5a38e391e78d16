# SPDX-License-Identifier: MIT
"""``swiftnbd-server --filter through PLUGIN``"""

from dataclasses import dataclass

from swiftnbd.api import Device, Filter, FilterPlugin, Opening


@dataclass(frozen=True)
class Through(FilterPlugin):
    """Passes everything on, to measure what a filter costs and to copy from."""

    async def wrap(self, device: Device, opening: Opening) -> Device:
        return ThroughFilter(device)


class ThroughFilter(Filter):
    """Changes nothing."""
