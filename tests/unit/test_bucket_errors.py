# SPDX-License-Identifier: MIT
"""Texts of obstore, as it and the services write them, and what becomes of them."""

import pytest

from swiftnbd.errors import (
    AccessRefused,
    CorruptObject,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from swiftnbd.store.bucket_errors import Failure, store_error


def answer(status: str, code: str = "", message: str = "Some words.", more: str = "") -> Exception:
    """As of a service that answers."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>" if code else ""
    return Exception(
        f"Generic S3 error: Error performing PUT http://h/b/k in 2.1ms - Server returned non-2xx "
        f"status code: {status}: {body}\n\nDebug source:\nGeneric {{ PRIVATE }}"
    )


def silence(cause: str) -> Exception:
    """As of one that does not."""
    return Exception(
        "Generic S3 error: Error performing GET http://h/b/k in 5s - HTTP error: error sending "
        f"request\n\nDebug source:\nGeneric {{ inner: Http(HttpError {{ {cause} }}) }}"
    )


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (answer("503 Service Unavailable", "SlowDown"), StoreBusy, "503 Service Unavailable"),
        (answer("503 Service Unavailable", "ServiceUnavailable"), StoreUnavailable, "503"),
        (answer("503 Service Unavailable"), StoreUnavailable, "503 Service Unavailable"),
        (answer("500 Internal Server Error", "InternalError"), StoreUnavailable, "500"),
        (answer("429 Too Many Requests"), StoreBusy, "429"),
        (answer("409 Conflict", "ConditionalRequestConflict"), StoreBusy, "409"),
        (answer("400 Bad Request", "RequestTimeout"), StoreUnavailable, "400"),
        (answer("400 Bad Request", "XAmzContentSHA256Mismatch"), CorruptObject, "400"),
        (answer("400 Bad Request", "BadDigest"), CorruptObject, "400"),
        (answer("400 Bad Request", "AuthorizationHeaderMalformed"), AccessRefused, "the region"),
        (answer("403 Forbidden", "SignatureDoesNotMatch"), AccessRefused, "do not fit"),
        (answer("403 Forbidden", "RequestTimeTooSkewed"), AccessRefused, "the clock"),
        (answer("403 Forbidden"), AccessRefused, "403 Forbidden"),
        (answer("401 Unauthorized"), AccessRefused, "401 Unauthorized"),
        (answer("413 Request Entity Too Large", "EntityTooLarge"), StoreFull, "413"),
        (answer("507 Insufficient Storage"), StoreFull, "507"),
        (answer("501 Not Implemented", "NotImplemented"), StoreError, "501 Not Implemented"),
        (silence("ConnectionRefused"), StoreUnavailable, "connection refused"),
        (silence("dns error"), StoreUnavailable, "its name cannot be looked up"),
        (silence("kind: Timeout"), StoreUnavailable, "no answer in time"),
        (silence("UnknownIssuer"), StoreUnavailable, "of an authority that is not trusted"),
        (silence("IncompleteBody"), StoreUnavailable, "the answer ended early"),
        (silence("something new"), StoreUnavailable, "error sending request"),
        (Exception("Generic S3 error: MissingBucketName"), StoreError, "MissingBucketName"),
    ],
)
def test_error_of_the_right_kind_and_in_words(
    error: Exception, kind: type[StoreError], says: str
) -> None:
    found = store_error("s3:disk: PUT x", Failure.of(error))
    assert type(found) is kind
    assert str(found).startswith("s3:disk: PUT x: ")
    assert says in str(found)
    assert "\n" not in str(found)
    assert "PRIVATE" not in str(found)


def test_what_we_sent_is_not_repeated() -> None:
    error = answer(
        "403 Forbidden",
        "SignatureDoesNotMatch",
        more="<AWSAccessKeyId>AKIA</AWSAccessKeyId><StringToSign>AWS4</StringToSign>",
    )
    text = Failure.of(error).text
    assert "AKIA" not in text
    assert "AWS4" not in text


def test_hostile_texts_are_cut() -> None:
    found = Failure.of(answer("418 I am a teapot", "Odd", "x" * 499))
    assert len(found.text) < 400
    assert len(Failure.of(Exception("y" * 10_000)).text) < 400


def test_who_has_no_credentials_is_told_so() -> None:
    error = Exception(
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 5s - "
        "HTTP error: error sending request\n\nDebug source:\nGeneric { HttpError }"
    )
    found = store_error("s3:disk: GET x", Failure.of(error))
    assert isinstance(found, AccessRefused)
    assert "no credentials are given" in str(found)


@pytest.mark.parametrize("code", ["NoSuchBucket", "ContainerNotFound"])
def test_a_bucket_that_is_not_there_is_told_from_an_object(code: str) -> None:
    assert Failure.of(answer("404 Not Found", code)).is_of_bucket
    assert not Failure.of(answer("404 Not Found", "NoSuchKey")).is_of_bucket
    assert not Failure.of(answer("404 Not Found")).is_of_bucket


def test_an_answer_that_lacks_an_etag_is_asked_for_again() -> None:
    """Swift's S3 API gives it to a PUT that came too late."""
    error = Exception(
        "Generic S3 error: Unable to extract metadata from headers: ETag Header missing from "
        "response\n\nDebug source:\nGeneric { source: Metadata { source: MissingEtag } }"
    )
    assert type(store_error("PUT x", Failure.of(error))) is StoreUnavailable
