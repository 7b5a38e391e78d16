# SPDX-License-Identifier: MIT
"""Buckets of a real Swift's S3 API, for tests."""

import urllib.request

from swiftnbd.store.bucket_settings import BucketSettings
from tests.support.swift_aio import DEFAULT_POLICY, KEY, USER, RealSwift
from tests.support.swift_conf import S3_REGION

BUCKET = "some-bucket"


def bucket_settings(swift: RealSwift, prefix: str = "", **other: str) -> BucketSettings:
    """How to get at `BUCKET`, or what lies under ``prefix`` in it."""
    options = {
        "endpoint": swift.base_url,
        "region": S3_REGION,
        "access_key_id": USER,
        "secret_access_key": KEY,
    } | other
    return BucketSettings("s3", BUCKET, prefix, tuple(sorted(options.items())))


def make_bucket(swift: RealSwift, policy: str = DEFAULT_POLICY) -> None:
    """Make `BUCKET` by Swift's own API: to S3 a container is a bucket. Idempotent."""
    request = urllib.request.Request(
        swift.auth_url, headers={"X-Auth-User": USER, "X-Auth-Key": KEY}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        root, token = answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"]
    headers = {"X-Auth-Token": token, "X-Storage-Policy": policy}
    made = urllib.request.Request(f"{root}/{BUCKET}", headers=headers, method="PUT")
    urllib.request.urlopen(made, timeout=30).close()
