# SPDX-License-Identifier: MIT
"""A bucket of a real Swift's S3 API as a backend; read by Swift's own API, with urllib."""

import json
import urllib.error
from pathlib import Path
from urllib.parse import quote

from tests.support.backends import Backend, SwiftBackend
from tests.support.buckets import BUCKET, make_bucket
from tests.support.swift_aio import KEY, USER, RealSwift
from tests.support.swift_conf import S3_REGION

PREFIX = "below/here"
METADATA = "swiftnbd/metadata"


class BucketBackend(SwiftBackend):
    """Containers are folders of one Swift container."""

    def __init__(self, swift: RealSwift, secrets: Path) -> None:
        make_bucket(swift)
        super().__init__(swift.auth_url, USER, KEY, secrets)
        self.login = (f"access-key-id = {USER}", f"secret-access-key = {KEY}")
        self.place = f"s3://{BUCKET}/{PREFIX}?endpoint={swift.base_url}&region={S3_REGION}"
        self.arguments = ("-a", self.place, "--secrets", str(secrets))

    def setup(self, container: str, objects: int, object_size: int) -> None:
        Backend.setup(self, container, objects, object_size)

    def objects(self, container: str) -> dict[str, bytes]:
        folder = f"{PREFIX}/{container}/"
        query = f"?format=json&limit=10000&prefix={quote(folder)}"
        listing, _ = self.request("GET", BUCKET, query)
        found = {}
        for row in json.loads(listing):
            try:
                data, _ = self.request("GET", BUCKET, "/" + quote(row["name"]))
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 404:
                    raise
            else:
                found[row["name"].removeprefix(folder)] = data
        return found

    def metadata(self, container: str) -> dict[str, str]:
        document = json.loads(self.objects(container)[METADATA])
        return {key.removeprefix("swiftnbd-"): value for key, value in document["metadata"].items()}

    def set_metadata(self, container: str, **values: str) -> None:
        document = json.loads(self.objects(container)[METADATA])
        for key, value in values.items():
            document["metadata"][f"swiftnbd-{key.replace('_', '-')}"] = value
        self.put(container, METADATA, json.dumps(document).encode())

    def put(self, container: str, name: str, data: bytes) -> None:
        self.request("PUT", BUCKET, f"/{PREFIX}/{container}/{name}", data=data)
