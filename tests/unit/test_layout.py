# SPDX-License-Identifier: MIT
"""Format v1: names, and container metadata good and bad."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftnbd.errors import ExportUnusable
from swiftnbd.export.layout import (
    DiskInfo,
    Geometry,
    is_set_up,
    object_index,
    object_name,
    parse_metadata,
    setup_metadata,
)

GOOD = {"swiftnbd-version": "1", "swiftnbd-objects": "10", "swiftnbd-object-size": "65536"}


def changed(**values: str | None) -> dict[str, str]:
    """`GOOD` with these values; None leaves the key out, underscores are dashes."""
    new = {"swiftnbd-" + key.replace("_", "-"): value for key, value in values.items()}
    return {key: value for key, value in (GOOD | new).items() if value is not None}


# Names


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "disk.part/00000000"),
        (42, "disk.part/00000042"),
        (99_999_998, "disk.part/99999998"),
    ],
)
def test_name_has_eight_digits(index: int, name: str) -> None:
    assert object_name(index) == name
    assert object_index(name) == index


@pytest.mark.parametrize(
    "name",
    [
        "",
        "00000042",
        "disk.part/",
        "disk.part/42",
        "disk.part/000000042",
        "disk.part/0000004x",
        "disk.part/-0000042",
        "disk.part/ 0000042",
        "disk.part/0000_042",
        "disk.part/٠٠٠٠٠٠٤٢",
        "disk.part/0000004²",
        "Disk.part/00000042",
        "disk.part/disk.part/00000042",
        "swiftnbd/00000042",
    ],
)
def test_name_that_is_none_of_a_disk_has_no_index(name: str) -> None:
    assert object_index(name) is None


@given(st.lists(st.integers(0, 99_999_998), min_size=2, max_size=20))
def test_names_sort_as_their_indexes_do(indexes: list[int]) -> None:
    assert [object_name(each) for each in sorted(indexes)] == sorted(map(object_name, indexes))


# Geometry


@pytest.mark.parametrize("size", [512, 1024, 65536, 65536 + 512, 64 * 1024 * 1024])
@pytest.mark.parametrize("objects", [1, 10, 99_999_999])
def test_sensible_geometry_has_a_size(objects: int, size: int) -> None:
    assert Geometry(objects, size).size == objects * size


@pytest.mark.parametrize("size", [-512, -1, 0, 1, 3, 511, 513, 64 * 1024 * 1024 + 512, 2**40])
def test_object_size_that_makes_no_sense_is_refused(size: int) -> None:
    with pytest.raises(ExportUnusable, match=f"object-size {size} is not a multiple of 512"):
        Geometry(1, size)


@pytest.mark.parametrize("objects", [-1, 0, 100_000_000, 2**64])
def test_number_of_objects_that_makes_no_sense_is_refused(objects: int) -> None:
    with pytest.raises(ExportUnusable, match=f"objects {objects} is not between 1 and 99999999"):
        Geometry(objects, 512)


# Metadata


def test_metadata_of_a_disk_is_read() -> None:
    metadata = changed(client="a:1@2", last="b:3@4", image_size="655359")
    assert parse_metadata(metadata) == DiskInfo(Geometry(10, 65536), "a:1@2", "b:3@4", 655359)


def test_metadata_without_holder_is_read() -> None:
    assert parse_metadata(GOOD) == DiskInfo(Geometry(10, 65536))


def test_object_size_is_read_in_either_spelling() -> None:
    old = changed(object_size=None) | {"swiftnbd-object_size": "4096"}
    assert parse_metadata(old).geometry == Geometry(10, 4096)


def test_object_size_with_a_dash_wins() -> None:
    both = GOOD | {"swiftnbd-object_size": "4096"}
    assert parse_metadata(both).geometry == Geometry(10, 65536)


BAD_NUMBERS = ["", "64K", "1e3", "0x200", "5.0", " 512", "512 ", "+512", "1_024", "--1", "-"]
BAD_NUMBERS += ["٥١٢", "5¹²", "five", "5\n", "1" * 21, "1" * 5000]


@pytest.mark.parametrize("text", BAD_NUMBERS)
@pytest.mark.parametrize("key", ["objects", "object_size", "image_size"])
def test_number_that_is_none_is_refused_in_a_sentence(key: str, text: str) -> None:
    with pytest.raises(ExportUnusable, match="not a number") as caught:
        parse_metadata(changed(**{key: text}))
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("text", ["0", "3", "-1", str(2**40)])
def test_object_size_in_metadata_that_makes_no_sense_is_refused(text: str) -> None:
    """Acceptance row E32."""
    with pytest.raises(ExportUnusable, match=f"object-size {text} "):
        parse_metadata(changed(object_size=text))


@pytest.mark.parametrize("text", ["0", "-1", "100000000"])
def test_objects_in_metadata_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ExportUnusable, match=f"objects {text} "):
        parse_metadata(changed(objects=text))


def test_largest_number_of_objects_is_taken() -> None:
    assert parse_metadata(changed(objects="99999999")).geometry.objects == 99_999_999


@pytest.mark.parametrize("version", ["9", "0", "1.0", "01", "", "²"])
def test_unknown_version_is_refused(version: str) -> None:
    with pytest.raises(ExportUnusable, match="format version"):
        parse_metadata(changed(version=version))


@pytest.mark.parametrize("size", ["-1", "655361"])
def test_image_larger_than_its_disk_is_refused(size: str) -> None:
    with pytest.raises(ExportUnusable, match=f"image-size {size}"):
        parse_metadata(changed(image_size=size))


@pytest.mark.parametrize("size", ["0", "655360"])
def test_image_up_to_the_size_of_its_disk_is_taken(size: str) -> None:
    assert parse_metadata(changed(image_size=size)).image_size == int(size)


@pytest.mark.parametrize("missing", ["version", "objects"])
def test_container_that_is_not_set_up_is_refused_with_advice(missing: str) -> None:
    metadata = changed(**{missing: None})
    assert not is_set_up(metadata)
    with pytest.raises(ExportUnusable, match="not set up; run: swiftnbd-ctl setup"):
        parse_metadata(metadata)


def test_missing_object_size_is_refused() -> None:
    with pytest.raises(ExportUnusable, match="object-size is '', not a number"):
        parse_metadata(changed(object_size=None))


def test_setup_writes_what_0_11_reads_and_clears_the_rest() -> None:
    assert setup_metadata(Geometry(10, 65536)) == GOOD | {
        "swiftnbd-client": "",
        "swiftnbd-last": "",
        "swiftnbd-image-size": "",
        "swiftnbd-deleting": "",
    }
