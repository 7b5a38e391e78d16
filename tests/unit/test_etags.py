# SPDX-License-Identifier: MIT
"""What is remembered of the stored objects, in bounded memory."""

from swiftnbd.export.etags import Etags

PAGE = 1024  # objects
PAGE_BYTES = 4 * PAGE


def test_what_was_set_is_known_and_fits_nothing_else() -> None:
    etags = Etags()
    etags.set(5, "aa")
    assert etags.knows(5)
    assert etags.fits(5, "aa")
    assert not etags.fits(5, "bb")
    etags.set(5, "bb")
    assert etags.fits(5, "bb")
    assert not etags.fits(5, "aa")


def test_what_is_not_known_fits_everything() -> None:
    etags = Etags()
    etags.set(5, "aa")
    for index in (4, 6, 5 + PAGE, 99_999_998):
        assert not etags.knows(index)
        assert etags.fits(index, "aa")
        assert etags.fits(index, "bb")


def test_what_was_forgotten_fits_everything() -> None:
    etags = Etags()
    etags.set(5, "aa")
    etags.set(6, "aa")
    etags.forget(5)
    etags.forget(99_999_998)  # was never known
    assert not etags.knows(5)
    assert etags.fits(5, "bb")
    assert etags.knows(6)


def test_page_used_longest_ago_is_forgotten_first() -> None:
    etags = Etags(bytes_max=2 * PAGE_BYTES)
    etags.set(0, "a")
    etags.set(PAGE, "b")
    assert etags.knows(0)  # used again
    etags.set(2 * PAGE, "c")
    assert [etags.knows(page * PAGE) for page in range(3)] == [True, False, True]
    assert etags.fits(PAGE, "anything")


def test_pages_are_bounded_whatever_is_set() -> None:
    etags = Etags(bytes_max=3 * PAGE_BYTES)
    for page in range(50):
        etags.set(page * PAGE + page, "x")
    assert len(etags._pages) == 3
    assert all(len(page) * page.itemsize == PAGE_BYTES for page in etags._pages.values())


def test_large_objects_and_empty_etags_are_known_too() -> None:
    """ETags that are not MD5 in hex: of a static large object, or of a server of another kind."""
    etags = Etags()
    for index, etag in enumerate(("", '"d41d8cd98f00b204e9800998ecf8427e"', "x-2", "é")):
        etags.set(index, etag)
        assert etags.knows(index)
        assert etags.fits(index, etag)
        assert not etags.fits(index, etag + "-")
