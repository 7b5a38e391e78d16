# SPDX-License-Identifier: MIT
"""The soak of the block device: a real server on a real Swift, and trouble without end.

About a minute; ``tox -e soak`` (or SOAK_SECONDS=600) makes it ten. Every run says its seed;
SOAK_SEED repeats one.
"""

import asyncio
import random
from pathlib import Path

import pytest

from tests.e2e.conftest import launcher, new_name
from tests.soak.campaign import SHAPES, Campaign
from tests.soak.diary import SECONDS, SEED, soaking
from tests.soak.witness import backend_of
from tests.support.swift_aio import RealSwift

SHORT_SECONDS = 26.0  # with what each disk takes to begin and end, about a minute
SHORT_DISKS = 2  # of different shapes: the seed says which
DISK_SECONDS_MAX = 90.0  # a long soak has many disks, each from the beginning

pytestmark = pytest.mark.timeout(3 * SECONDS + 240)


def test_every_byte_is_accounted_for(own_swift: RealSwift, tmp_path: Path) -> None:
    seconds = SECONDS or SHORT_SECONDS
    disks = max(len(SHAPES), round(seconds / DISK_SECONDS_MAX)) if SECONDS else SHORT_DISKS
    first = random.Random(SEED).randrange(len(SHAPES))
    with soaking("a disk", seconds, own_swift, tmp_path) as diary:
        for number in range(disks):
            workdir = tmp_path / f"disk-{number}"
            workdir.mkdir()
            campaign = Campaign(
                own_swift,
                SHAPES[(first + number) % len(SHAPES)],
                new_name(),
                f"{SEED} disk {number}",
                workdir,
                diary,
            )
            _run(campaign, seconds / disks)


def _run(campaign: Campaign, seconds: float) -> None:
    swift, workdir = campaign.swift, campaign.workdir
    backend = backend_of(swift, workdir)
    with launcher(backend, workdir) as launch:
        try:
            asyncio.run(campaign.run(backend, launch, seconds))
        finally:
            campaign.diary.counts["bytes compared"] += campaign.book.compared
