# SPDX-License-Identifier: MIT
"""An epoch's claim, which others may have written."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from swiftnbd.export.epoch import Claim, epoch_name, read_epoch
from swiftnbd.export.process import current_process
from swiftnbd.store.memory import MemoryStore

CLAIM = Claim(3, "aa", "host:1@1700000000", 90.0, current_process())


def changed(**fields: Any) -> bytes:
    """Ours, but for that. ``pid`` is the process's."""
    found = asdict(CLAIM)
    if "pid" in fields:
        found["process"]["pid"] = fields.pop("pid")
    return json.dumps(found | fields).encode()


async def read(data: bytes) -> Claim:
    store = MemoryStore("disk")
    await store.create_container()
    await store.put(epoch_name(3), data)
    found = await read_epoch(store, 3)
    assert found is not None
    assert found.quiet_seconds > 0
    assert not found.holder_is_dead
    return found.claim


async def test_claim_is_what_was_written() -> None:
    assert await read(CLAIM.to_bytes()) == CLAIM
    by_hand = replace(CLAIM, term_seconds=5, process=None)
    assert await read(by_hand.to_bytes()) == by_hand


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b"[" * 10_000,
        b'{"process":' * 1_400,
        changed(token=1),
        changed(mark=None),
        changed(more=1),
        changed(process=[]),
        changed(term_seconds="90"),
        changed(term_seconds=0),
        changed(term_seconds=float("nan")),
        changed(term_seconds=10**400),
        changed(pid="1"),
        changed(pid=None),
        changed(pid=10**30),
        changed(pid=-1),
    ],
)
async def test_what_is_no_claim_is_held_by_somebody_unknown(data: bytes) -> None:
    claim = await read(data)
    assert (claim.mark, claim.token) == ("unknown (swiftnbd/epoch/3)", "")
    assert claim.process is None
