# SPDX-License-Identifier: MIT
"""docs/durability.md names tests that exist for every sentence that promises something."""

import re

import pytest

from swiftnbd.export.layout import Geometry
from swiftnbd.export.settings import BLOCK_BYTES, WHOLE_BYTES_MAX, CacheMode, CacheSettings
from tests.support.pages import ROOT, defined_tests, named_tests

PAGE = "docs/durability.md"
TEXT = (ROOT / PAGE).read_text()
BODY, _, NOTES = TEXT.partition("\n## The tests\n")

# What only explains, by its first words. A new sentence names a test, or is put here on purpose.
EXPLANATIONS = (
    "What survives what.",
    "A write is **accepted** when it is replied to.",
    '"Write" here stands for',
    "A write that spans objects can be durable in some",
    "With `cache-dir`, blocks that are stored are kept",
    "What is in the store if the server dies",
    "A request that Swift received",
    "A DELETE that hangs for longer",
    "A connection whose network is cut",
    "An old request of it may be carried out",
    "A 404 passes for absence if",
    "The first read of an object after the lock was taken",
    "If all that have its last version are away",
    "A store that confirms and then loses data",
    "A client that ignores a failed FLUSH",
    "`tox -e model` goes on",
    "`tests/soak`: the programs as they are",
    "Clients write, zero, trim",
    "A run prints its seed",
)

_END = re.compile(r"(?<=[.:])((?:\[\^[\w-]+\])*) +(?=[A-Z\"`*])")
_REFERENCE = re.compile(r"\[\^([\w-]+)\]")


def blocks() -> list[str]:
    """Paragraphs, points and rows of tables, each as one line."""
    lines: list[str] = []
    for line in BODY.splitlines():
        starts = not line or line[0] in "#*|" or (lines and lines[-1][:1] in "#|")
        if starts or not lines or not lines[-1]:
            lines.append(line)
        else:
            lines[-1] += " " + line.strip()
    return [line for line in lines if line and line[0] != "#"]


def sentences(block: str) -> list[str]:
    """The sentences of a block, each with its references; a row is one."""
    if block.startswith("|"):
        return [block]
    parts = _END.split(block.removeprefix("* "))
    return [
        text + (parts[at + 1] if at + 1 < len(parts) else "")
        for at, text in list(enumerate(parts))[::2]
    ]


SENTENCES = [each for block in blocks() for each in sentences(block)]
PROMISES = [
    each
    for each in SENTENCES
    if not each.startswith(EXPLANATIONS) and not re.match(r"\| (---|event|moment)", each)
]
TESTS = dict(re.findall(r"^\[\^([\w-]+)\]: (.+)$", NOTES, re.MULTILINE))


@pytest.mark.parametrize("sentence", PROMISES, ids=lambda sentence: sentence[:40])
def test_sentence_that_promises_names_its_tests(sentence: str) -> None:
    assert _REFERENCE.search(sentence), sentence


def test_sentences_are_found() -> None:
    assert len(PROMISES) > 45
    for words in EXPLANATIONS:
        assert sum(each.startswith(words) for each in SENTENCES) == 1, words


def test_every_reference_leads_to_tests_that_exist() -> None:
    defined = defined_tests()
    assert set(_REFERENCE.findall(BODY)) == set(TESTS)
    for name, tests in TESTS.items():
        assert named_tests(tests), name
        assert named_tests(tests) <= defined, (name, named_tests(tests) - defined)


def test_there_is_no_mode_that_confirms_early() -> None:
    assert {mode.value for mode in CacheMode} == {"writeback", "writethrough"}


@pytest.mark.parametrize("object_size", [4096, 64 * 1024, 256 * 1024])
def test_unit_of_change_is_as_stated(object_size: int) -> None:
    settings = CacheSettings()
    assert settings.block_size(Geometry(8, object_size)) == object_size
    assert WHOLE_BYTES_MAX == 256 * 1024
    for larger in (256 * 1024 + 512, 1024 * 1024, 64 * 1024 * 1024):
        assert 16 * 1024 <= settings.block_size(Geometry(8, larger)) <= BLOCK_BYTES == 64 * 1024
    prime = 521 * 512  # which cannot be cut
    assert settings.block_size(Geometry(8, prime)) == prime
