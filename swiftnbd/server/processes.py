# SPDX-License-Identifier: MIT
"""What the kernel says of another process, proc(5)."""

from pathlib import Path


def start_ticks(pid: int) -> int | None:
    """When it began, in clock ticks since boot; None if that is not to be known."""
    try:
        return int(_stat_fields(pid)[19])
    except (IndexError, ValueError):
        return None


def has_ended(pid: int) -> bool:
    """Whether it has ended and only was not waited for yet, as in containers without an init."""
    return _stat_fields(pid)[:1] in (["Z"], ["X"])


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on: state, ..., start time. Empty if unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
