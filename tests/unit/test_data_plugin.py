# SPDX-License-Identifier: MIT
"""The plugin data: its little language, and the images that it makes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftnbd.api import ConfigError, Device, Opening
from swiftnbd.plugins.data import Data
from swiftnbd.plugins.data.image import Image


def content(image: Image) -> bytes:
    found = bytearray(image.length)
    end = 0
    for at, piece in image:
        assert piece
        assert at >= end
        found[at : at + len(piece)] = piece
        end = at + len(piece)
    assert end <= image.length
    return bytes(found)


async def written(**keys: object) -> bytes:
    device = await Data(**keys).open(Opening("disk"))  # type: ignore[arg-type]
    return await whole(device)


async def whole(device: Device) -> bytes:
    return b"".join(await device.read(0, device.size)) if device.size else b""


# What nbdkit 1.32 makes of the same text, as tests/e2e/test_plugins.py has it see
WRITTEN = {
    "": b"",
    "0 1 2 3 @0x10 0x55 0377": bytes([0, 1, 2, 3, *bytes(12), 0x55, 0xFF]),
    "1 @8 @-3 5": b"\1\0\0\0\0\5\0\0",
    "1 @+2 2": b"\1\0\0\2",
    "1 @^4 2 @^4": b"\1\0\0\0\2\0\0\0",
    "@4 @0": bytes(4),
    '"a\\n\\"\\\\" 1': b'a\n"\\\1',
    '"ab" * 3': b"ababab",
    "(1 2)*2[1:]": b"\2\1\2",
    "(1 2 3)[1:2]*3": b"\2\2\2",
    "(1 2 3)[:2]": b"\1\2",
    "1*0 2": b"\2",
    "(1 @4)*2": b"\1\0\0\0" * 2,
    "1 2 3 4 @0 ( @1 9 )": b"\0\x09\3\4",
    "1 2 3 @1 0": b"\1\0\3",
    "(1 @0x10 ( 2 @4 ) 3)[15:]": b"\0\2\0\0\0\3",
    "le16:0x1ff be16:0x1ff": b"\xff\1\1\xff",
    "le32:1 be32:2 le64:3 be64:4": b"\1\0\0\0\0\0\0\2\3" + bytes(14) + b"\4",
    "1 # to the end\n2": b"\1\2",
    "(1 2) -> \\a (\\a 3) -> \\b-1 \\b-1 \\a*2": b"\1\2\3\1\2\1\2",
    "1 -> \\a (2 -> \\a \\a) \\a": b"\2\1",
}


@pytest.mark.parametrize("text", WRITTEN)
async def test_text_makes_bytes(text: str) -> None:
    assert await written(data=text) == WRITTEN[text]


async def test_other_ways_to_write_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    assert await written(raw="as it is\udcff") == b"as it is\xff"
    assert await written(base64="AAEC/w==") == b"\0\1\2\xff"
    assert await written(data=f"<{tmp_path}/file[:4]*2") == b"fromfrom"
    assert len(await written(data="</dev/urandom[:512]*3")) == 1536
    assert await written(data="$a 3 $a", variables=(("a", "1 $b"), ("b", "2*2"))) == (
        b"\1\2\2\3\1\2\2"
    )
    assert await written(data='"\\xff\\x41"') == b"\xffA"


async def test_size_cuts_off_or_adds_zeros() -> None:
    assert await written(data="1 2 3 @100 4", size=2) == b"\1\2"
    assert await written(data="1 2", size=4) == b"\1\2\0\0"


async def test_large_nothing_takes_no_memory() -> None:
    device = await Data(data="1 @0x4000000000000000 2 (0*1000000)*1000000").open(Opening("disk"))
    assert device.size == (1 << 62) + 1 + 10**12
    assert b"".join(await device.read(1 << 62, 2)) == b"\2\0"


MISTAKES = {
    "1,2": "at character 2, ',2': what is meant?",
    "09": "at character 1, '09': what is meant?",
    "256": "a byte is 0 to 255",
    "le16:0x10000": "int too big",
    "*2": "there is nothing before it",
    "@4*2": "there is nothing before it",
    "(1": "a ( without its )",
    "1)": "a ) without its (",
    '"\\101"': "is not known in a text",
    "(" * 60 + ")" * 60: "brackets and keys are in each other",
    "$a": "$a has no value: give a=...",
    "<(echo)": "what is meant?",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistake_is_said_when_the_configuration_is_read(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Data(data=text)
    assert MISTAKES[text] in str(caught.value)


def test_keys_that_do_not_fit_together_are_refused() -> None:
    for text in (None, ""):
        with pytest.raises(ConfigError, match="just one of data, raw and base64"):
            Data(raw=text, data=text)
    with pytest.raises(ConfigError, match="base64: "):
        Data(base64="?")
    for data, raw in (("$a", None), (None, "")):
        with pytest.raises(ConfigError, match="'siez' is no key"):
            Data(data=data, raw=raw, variables=(("siez", "1M"), ("a", "1")))


IMPOSSIBLE = {
    "1 @-2": "@-2 goes before the beginning, from 1",
    "@^0": "nothing that can be aligned to",
    "(1 2)[1:3]": "[1:3] is no part of 2 bytes",
    "(1 2)[2:1]": "[2:1] is no part",
    "\\a": "\\a is used before it is given",
    "(1 -> \\a) \\a": "\\a is used before it is given",
    "@0x7fffffffffffffff 1": "longer than a disk can be",
    "1*0x7fffffff": "bytes of memory",
    "(1 @1000)*9999999": "bytes of memory",
    "</dev/zero": "/dev/zero has more than",
    "1 ->\\a" + " (\\a \\a)->\\a" * 40 + "\\a": "bytes of memory",
}


@pytest.mark.parametrize("text", IMPOSSIBLE)
async def test_what_cannot_be_made_is_a_sentence(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("image", "language"):
        monkeypatch.setattr(f"swiftnbd.plugins.data.{module}.STORED_BYTES_MAX", 1 << 20)
    with pytest.raises(ConfigError) as caught:
        await written(data=text)
    assert IMPOSSIBLE[text] in str(caught.value)


async def test_short_text_cannot_mean_endless_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftnbd.plugins.data.language.STEPS_MAX", 1000)
    variables = tuple((f"v{n}", f"$v{n + 1} $v{n + 1}") for n in range(40))
    with pytest.raises(ConfigError, match="more than 1000 steps"):
        await written(data="$v0", variables=(*variables, ("v40", "")))


IMAGES = st.recursive(
    st.binary(max_size=5),
    lambda inner: st.one_of(
        st.tuples(inner, st.integers(0, 3)),
        st.tuples(inner, st.integers(0, 9), inner),
        st.tuples(inner, st.integers(0, 9), st.integers(0, 9), st.none()),
    ),
    max_leaves=8,
)


def built(plan: object) -> tuple[Image, bytes]:
    """An image, and the same as plain bytes: the oracle."""
    match plan:
        case bytes(data):
            return Image(data), data
        case (inner, int(count)):
            image, expected = built(inner)
            return image.repeated(count), expected * count
        case (one, int(at), other):
            (image, expected), (above, over) = built(one), built(other)
            image.paste(at, above)
            array = bytearray(expected.ljust(at + len(over), b"\0"))
            array[at : at + len(over)] = over
            return image, bytes(array)
        case (inner, int(begin), int(length), None):
            image, expected = built(inner)
            begin = min(begin, len(expected))
            end = min(begin + length, len(expected))
            return image.slice(begin, end), expected[begin:end]
    raise AssertionError(plan)


@given(IMAGES)
def test_image_is_an_array_of_bytes(plan: object) -> None:
    image, expected = built(plan)
    assert content(image) == expected
