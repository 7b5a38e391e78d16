# SPDX-License-Identifier: MIT
"""swiftnbd-server with a bug planted: ``python -m tests.soak.broken_server BUG ARGUMENTS...``.

The bugs are the model's (`tests.model.mutants`) and those here, which take a whole server.
"""

import random
import sys

import pytest

from swiftnbd.cli.server import main
from swiftnbd.export.changing import Writer
from swiftnbd.export.disk import ObjectDevice
from swiftnbd.export.writeback import DirtyObject
from tests.model.mutants import MUTANTS, Plant


def flush_is_acknowledged_at_once(patch: pytest.MonkeyPatch) -> None:
    async def flush(self: ObjectDevice) -> None:
        if len(self._disk.writeback.objects) < 3:  # not at the end, or nothing would ever be kept
            await sound(self)

    sound = ObjectDevice.flush
    patch.setattr(ObjectDevice, "flush", flush)


def changed_block_is_dropped_now_and_then(patch: pytest.MonkeyPatch) -> None:
    async def upload(self: Writer, dirty: DirtyObject) -> None:
        if chance.random() < 0.05:
            while await self._fetch_missing(dirty, {}):
                pass
            dirty.begin_upload()
        else:
            await sound(self, dirty)

    chance, sound = random.Random(1), Writer.upload
    patch.setattr(Writer, "upload", upload)


PLANTS: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (*MUTANTS, flush_is_acknowledged_at_once, changed_block_is_dropped_now_and_then)
}

if __name__ == "__main__":
    PLANTS[sys.argv.pop(1)](pytest.MonkeyPatch())
    main()
