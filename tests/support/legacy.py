# SPDX-License-Identifier: MIT
"""swiftnbd 0.11 as seen from a container: how it marks, reads and writes one.

Written from its documented format with python-swiftclient, as it did: whole objects by name,
404 is zeros, all metadata repeated in a PUT of the container.
"""

import time

from swiftclient import ClientException, Connection

_META = "x-container-meta-swiftnbd-"


class Legacy:
    """One container, used the old way."""

    def __init__(self, auth_url: str, user: str, key: str, container: str) -> None:
        self.connection = Connection(authurl=auth_url, user=user, key=key)
        self.container = container
        self.meta: dict[str, str] = {}

    def setup(self, objects: int, object_size: int, **more: str) -> None:
        """Set up a container. (The Swift of that time kept its ``object_size`` as a dash.)"""
        self.meta = {"version": "1", "objects": str(objects), "object-size": str(object_size)}
        self.meta |= {"client": "", "last": ""} | more
        self._put_meta()

    def lock(self, client: str) -> None:
        """Mark the container as used, unless it is: RuntimeError with the holder."""
        self._read_meta()
        if self.meta.get("client"):
            raise RuntimeError(f"Already in use: {self.meta['client']}")
        self.meta["client"] = f"{client}@{int(time.time())}"
        self._put_meta()

    def unlock(self) -> None:
        self.meta |= {"last": self.meta["client"], "client": ""}
        self._put_meta()

    def read(self) -> bytes:
        """The whole disk."""
        self._read_meta()
        size = int(self.meta["object-size"])
        return b"".join(self._fetch(i, size) for i in range(int(self.meta["objects"])))

    def write(self, index: int, data: bytes) -> None:
        """One whole object."""
        self.connection.put_object(self.container, f"disk.part/{index:08d}", data)

    def close(self) -> None:
        self.connection.close()

    def _fetch(self, index: int, size: int) -> bytes:
        try:
            _, data = self.connection.get_object(self.container, f"disk.part/{index:08d}")
        except ClientException as error:
            if error.http_status != 404:
                raise
            return bytes(size)
        assert len(data) == size, (index, len(data))
        return bytes(data)

    def _read_meta(self) -> None:
        headers, _ = self.connection.get_container(self.container)
        found = {key.lower(): value for key, value in headers.items()}
        self.meta = {k.removeprefix(_META): v for k, v in found.items() if k.startswith(_META)}

    def _put_meta(self) -> None:
        headers = {_META + key: value for key, value in self.meta.items()}
        self.connection.put_container(self.container, headers=headers)
