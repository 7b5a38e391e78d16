# SPDX-License-Identifier: MIT
"""How outages of a Swift are met: flags for all exports, and keys of the secrets file for one."""

from dataclasses import dataclass
from typing import Final

from swiftnbd.cli.flags import flag_group, flags_of
from swiftnbd.cli.settings import Setting, SettingTable
from swiftnbd.export.settings import OnOutage, OutageSettings

_SECONDS_MIN, _SECONDS_MAX = 0.5, 24 * 3600

_DEFAULTS = OutageSettings()


def _seconds(text: str) -> float:
    seconds = float(text)
    if not _SECONDS_MIN <= seconds <= _SECONDS_MAX:
        raise ValueError
    return seconds


OUTAGE_SETTINGS: Final = SettingTable(
    Setting(
        "timeout",
        "seconds",
        _seconds,
        f"seconds from {_SECONDS_MIN:g} to {_SECONDS_MAX}",
        "SECONDS",
        "How long a request to a Swift is tried before it fails "
        f"(default: {_DEFAULTS.seconds:.0f}).",
    ),
    Setting(
        "on-outage",
        "policy",
        lambda text: OnOutage(text.lower()),
        " or ".join(policy.value for policy in OnOutage),
        "WHAT",
        "error: a client's request fails after that time; wait: it waits until Swift is back, "
        f"flushes too (default: {_DEFAULTS.policy.value}).",
    ),
)


@dataclass(frozen=True, slots=True)
class OutageOptions:
    """The flags; None where there is none."""

    timeout: float | None
    on_outage: OnOutage | None

    @property
    def settings(self) -> OutageSettings:
        """For every export whose section does not say otherwise."""
        return OutageSettings(**OUTAGE_SETTINGS.given(self))


outage_options = flag_group(
    "outage", OutageOptions, *OUTAGE_SETTINGS.flags(flags_of("When Swift is out of reach"))
)
