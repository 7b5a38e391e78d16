# SPDX-License-Identifier: MIT
"""The MD5 of an object's content: Swift's ETag, and in buckets what is stored beside it."""

import asyncio
from hashlib import md5

from swiftnbd.store.base import Buffer

# MD5 of 64 KiB takes 90 us, as long as the way to a thread and back; of 256 KiB, 350 us, more
# than the event loop should be kept from everybody else.
IN_THREAD_BYTES = 256 * 1024


async def md5_of(data: Buffer) -> str:
    """In hex."""
    if len(data) <= IN_THREAD_BYTES:
        return md5(data).hexdigest()
    return await asyncio.to_thread(lambda: md5(data).hexdigest())
