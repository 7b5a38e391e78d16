# SPDX-License-Identifier: MIT
"""The test of the test: the soak finds bugs that are planted in the server, each within a minute.

One of them in an ordinary run, all of them in a long one (``tox -e soak``).
"""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.conftest import launcher, new_name
from tests.soak.campaign import SHAPES, Campaign
from tests.soak.diary import SECONDS, Diary
from tests.soak.witness import backend_of
from tests.support.swift_aio import RealSwift

FOUND_SECONDS_MAX = 60.0
ALWAYS = ("changed_block_is_dropped_now_and_then",)
LONG = (
    "flush_is_acknowledged_at_once",
    "put_is_not_waited_for",
    "read_modify_write_is_not_atomic",
    "fetch_overwrites_what_was_written_meanwhile",
)

pytestmark = pytest.mark.timeout(4 * FOUND_SECONDS_MAX)


@pytest.mark.parametrize("bug", ALWAYS + (LONG if SECONDS else ()))
def test_planted_bug_is_found(bug: str, own_swift: RealSwift, tmp_path: Path) -> None:
    program = ("-m", "tests.soak.broken_server", bug)
    campaign = Campaign(own_swift, SHAPES[0], new_name(), f"planted {bug}", tmp_path, Diary())
    backend = backend_of(own_swift, tmp_path)
    with (
        pytest.raises(BaseException) as caught,  # noqa: PT011 - what kind is seen below
        launcher(backend, tmp_path, program=program) as launch,
    ):
        asyncio.run(campaign.run(backend, launch, FOUND_SECONDS_MAX))
    assert _is_wrong_bytes(caught.value), caught.value


def _is_wrong_bytes(error: BaseException) -> bool:
    """Whether the book, or fio, saw bytes that may not be there: other failures find nothing."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_wrong_bytes, error.exceptions))
    return isinstance(error, AssertionError) and (
        "legal:" in str(error) or "wrong bytes" in str(error)
    )
