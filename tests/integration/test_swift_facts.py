# SPDX-License-Identifier: MIT
"""What docs/faults.md says of a healthy Swift, asked of a real one without the code under test."""

import asyncio
import json
import urllib.request

import pytest

from swiftnbd.store.open import SwiftAccount, V1Auth, open_swift
from tests.store.contract import etag_of
from tests.store.plain_http import SwiftBack
from tests.support.swift_aio import KEY, USER, RealSwift

DATA, OTHER = b"data" * 100, b"other" * 100


@pytest.fixture
async def back(real_swift: RealSwift, container_name: str) -> SwiftBack:
    account = SwiftAccount(V1Auth(real_swift.auth_url, USER, KEY))
    await open_swift(account, container_name).create_container()
    await account.close()
    return SwiftBack(real_swift, container_name)


async def put(back: SwiftBack, name: str, data: bytes, **headers: str) -> int:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return (await back.request("PUT", back.path(name), data, named))[0]


async def test_put_whose_etag_is_not_its_bodys_is_refused(back: SwiftBack) -> None:
    assert await put(back, "n", DATA, ETag=etag_of(OTHER)) == 422
    assert await back.read("n") is None


async def test_proxy_uses_its_own_clock_and_no_timestamp_of_ours(back: SwiftBack) -> None:
    assert await put(back, "n", DATA, X_Timestamp="9999999999.00000") == 201
    assert await put(back, "n", OTHER) == 201
    assert await back.read("n") == OTHER


async def test_the_only_precondition_of_a_put_is_that_nothing_is_there(back: SwiftBack) -> None:
    assert await put(back, "n", DATA, If_None_Match="*") == 201
    assert await put(back, "n", OTHER, If_None_Match="*") == 412
    assert await put(back, "n", OTHER, If_None_Match=etag_of(DATA)) == 400
    assert await back.read("n") == DATA
    assert await put(back, "n", OTHER, If_Match=etag_of(OTHER)) == 201  # which it is not
    assert await back.read("n") == OTHER
    gone = await back.request("DELETE", back.path("n"), headers={"If-Match": etag_of(DATA)})
    assert gone[0] == 204


async def test_condition_of_a_copy_is_about_its_source(back: SwiftBack) -> None:
    await back.write("from", DATA)
    await back.write("to", OTHER)
    for target in ("to", "new"):  # "new" does not exist, and that does not count
        status = await put(back, target, b"", X_Copy_From=back.path("from"), If_None_Match="*")
        assert status == 304
    assert await back.read("to") == OTHER
    assert await back.read("new") is None


async def test_post_replaces_all_metadata_of_an_object(back: SwiftBack) -> None:
    await put(back, "n", DATA, X_Object_Meta_One="1")
    await back.request("POST", back.path("n"), headers={"X-Object-Meta-Two": "2"})
    _, headers, _ = await back.request("HEAD", back.path("n"))
    names = {name.lower() for name, _ in headers}
    assert "x-object-meta-two" in names
    assert "x-object-meta-one" not in names


async def test_an_expired_object_is_gone_and_still_listed(back: SwiftBack) -> None:
    assert await put(back, "n", DATA, X_Delete_After="1") == 201
    async with asyncio.timeout(30):
        while await back.read("n") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await back.names() == ["n"]


async def test_a_listing_of_more_than_it_gives_is_refused(back: SwiftBack) -> None:
    assert (await back.request("GET", back.path() + "?limit=10000"))[0] == 204
    assert (await back.request("GET", back.path() + "?limit=10001"))[0] == 412
    status, _, body = await back.request("GET", back.path() + "?format=json")
    assert (status, json.loads(body)) == (200, [])


async def test_a_listing_ignores_conditions(back: SwiftBack) -> None:
    await back.write("n", DATA)
    _, headers, _ = await back.request("GET", back.path())
    assert "etag" not in {name.lower() for name, _ in headers}
    for condition in ({"If-None-Match": "*"}, {"If-Match": etag_of(OTHER)}):
        status, _, body = await back.request("GET", back.path(), headers=condition)
        assert (status, body) == (200, b"n\n")


async def test_metadata_with_an_underscore_is_dropped_without_a_word(back: SwiftBack) -> None:
    headers = {"X-Container-Meta-With_Underscore": "1", "X-Container-Meta-With-Dash": "1"}
    status, _, _ = await back.request("POST", back.path(), headers=headers)
    assert status == 204
    assert await back.metadata() == {"with-dash": "1"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({f"X-Container-Meta-K{number}": "1" for number in range(90)}, 204),
        ({f"X-Container-Meta-K{number}": "1" for number in range(91)}, 400),
        ({"X-Container-Meta-" + "k" * 129: "1"}, 400),
        ({"X-Container-Meta-K": "1" * 257}, 400),
        ({f"X-Container-Meta-K{number}": "1" * 250 for number in range(17)}, 400),
    ],
    ids=["90 keys", "91 keys", "long name", "long value", "too much"],
)
async def test_limits_of_metadata(back: SwiftBack, headers: dict[str, str], status: int) -> None:
    assert (await back.request("POST", back.path(), headers=headers))[0] == status


def test_info_tells_the_limits(real_swift: RealSwift) -> None:
    with urllib.request.urlopen(f"{real_swift.base_url}/info", timeout=60) as answer:
        info = json.load(answer)
    assert info["swift"]["container_listing_limit"] == 10_000
    assert {"bulk_delete", "slo", "symlink"} <= info.keys()


async def test_bulk_delete_is_always_200_and_says_in_its_body_what_failed(
    back: SwiftBack,
) -> None:
    await back.write("n", DATA)
    body = f"{back.path('n')}\n{back.path('none')}\n".encode()
    headers = {"Accept": "application/json", "Content-Type": "text/plain"}
    status, _, said = await back.request("POST", "?bulk-delete", body, headers)
    assert status == 200
    told = json.loads(said)
    assert (told["Number Deleted"], told["Number Not Found"]) == (1, 1)
