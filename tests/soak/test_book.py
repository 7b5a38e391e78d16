# SPDX-License-Identifier: MIT
"""The account that a soak keeps: what it accepts, what it does not, and whom it names."""

import pytest

from tests.soak.book import Book

BLOCK = 4096
SIZE = 4 * BLOCK


def write(book: Book, start: int, length: int) -> bytes:
    """An acknowledged write; its bytes."""
    change = book.begin_write(start, length, "write")
    book.end(change, "acknowledged", rules_out=True)
    return change.data


def flush(book: Book) -> None:
    book.end_flush(book.begin_flush(), done=True)


def image(**pieces: bytes) -> bytes:
    """A disk of zeros but for ``at_OFFSET=bytes``."""
    disk = bytearray(SIZE)
    for name, data in pieces.items():
        start = int(name.removeprefix("at_"))
        disk[start : start + len(data)] = data
    return bytes(disk)


@pytest.fixture
def book() -> Book:
    return Book(SIZE, BLOCK)


def test_write_that_was_not_flushed_may_be_lost(book: Book) -> None:
    write(book, 100, 1000)
    book.crash()
    book.compare(bytes(SIZE))


def test_write_that_was_flushed_may_not_be_lost_and_is_named(book: Book) -> None:
    write(book, 100, 1000)
    flush(book)
    book.crash()
    with pytest.raises(AssertionError, match="stored") as caught:
        book.compare(bytes(SIZE))
    notes = "\n".join(caught.value.__notes__)
    assert "found: zeros" in notes
    assert "legal: #1 write 100+1000, begun at" in notes
    assert ", acknowledged at" in notes


def test_write_may_be_lost_in_one_block_and_kept_in_another_but_never_torn(book: Book) -> None:
    data = write(book, 100, 2 * BLOCK - 100)
    book.crash()
    with pytest.raises(AssertionError):
        book.compare(image(at_100=data[:200]))
    book.compare(image(at_100=data[: BLOCK - 100]))


def test_bytes_of_another_place_are_nobodys(book: Book) -> None:
    data = write(book, 0, BLOCK)
    flush(book)
    reading = book.begin_read(0, BLOCK)
    with pytest.raises(AssertionError) as caught:
        book.end_read(reading, data[512:] + data[:512])
    assert "found: nobody's" in "\n".join(caught.value.__notes__)


def test_older_write_does_not_come_back(book: Book) -> None:
    old = write(book, 0, BLOCK)
    flush(book)
    new = write(book, 0, BLOCK)
    assert old != new
    flush(book)
    book.crash()
    with pytest.raises(AssertionError) as caught:
        book.compare(image(at_0=old))
    assert "found: #1 write 0+4096" in "\n".join(caught.value.__notes__)
    book.compare(image(at_0=new))


def test_what_was_found_after_a_crash_stays(book: Book) -> None:
    data = write(book, 0, BLOCK)
    book.crash()
    book.compare(image(at_0=data))
    book.compare(image(at_0=data))
    with pytest.raises(AssertionError):
        book.compare(bytes(SIZE))


def test_write_that_was_cut_off_may_have_happened_until_one_after_it(book: Book) -> None:
    change = book.begin_write(0, BLOCK, "write")
    book.end(change, "cut off", rules_out=False)
    reading = book.begin_read(0, BLOCK)
    book.end_read(reading, change.data)
    after = write(book, 0, BLOCK)
    book.end_read(book.begin_read(0, BLOCK), after)
    with pytest.raises(AssertionError):
        book.end_read(book.begin_read(0, BLOCK), change.data)
