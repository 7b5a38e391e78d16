# SPDX-License-Identifier: MIT
"""The MD5 of an object's content: Swift's ETag, and in buckets what is stored beside it."""

import asyncio
from hashlib import md5

from swiftnbd.buffers import Body, pieces_of

# MD5 of 64 KiB takes 90 us, as long as the way to a thread and back; of 256 KiB, 350 us, more
# than the event loop should be kept from everybody else.
IN_THREAD_BYTES = 256 * 1024


def md5_now(body: Body) -> str:
    """In hex."""
    digest = md5()
    for piece in pieces_of(body):
        digest.update(piece)
    return digest.hexdigest()


async def md5_of(body: Body) -> str:
    """In hex; where it takes long, in a thread."""
    if len(body) <= IN_THREAD_BYTES:
        return md5_now(body)
    return await asyncio.to_thread(md5_now, body)
