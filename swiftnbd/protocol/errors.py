# SPDX-License-Identifier: MIT
"""The one table from errno to what NBD can say ("Error values")."""

import errno

from swiftnbd.protocol.constants import PAYLOAD_BYTES_MAX, Command, CommandFlag, Error
from swiftnbd.protocol.requests import Request

# EROFS, EACCES, EBUSY: the client may not. Too big for the store is no space for the client.
# ENOMEM is left out on purpose: clients take it as their own shortage.
_WIRE = {
    errno.EPERM: Error.EPERM,
    errno.EACCES: Error.EPERM,
    errno.EROFS: Error.EPERM,
    errno.EINVAL: Error.EINVAL,
    errno.ENOSPC: Error.ENOSPC,
    errno.EDQUOT: Error.ENOSPC,
    errno.EFBIG: Error.ENOSPC,
    errno.EOVERFLOW: Error.EOVERFLOW,
    errno.ENOTSUP: Error.ENOTSUP,
    errno.ESHUTDOWN: Error.ESHUTDOWN,
}
_EFFECTS = {Command.TRIM, Command.CACHE, Command.WRITE_ZEROES, Command.BLOCK_STATUS}


def wire_error(number: int, request: Request) -> Error:
    """Narrow an errno to one of the eight NBD errors; anything unlisted is EIO.

    So are the two that "the server SHOULD NOT return ... except as documented".
    """
    error = _WIRE.get(number, Error.EIO)
    if error is Error.ENOTSUP and not is_fast_zero(request):
        return Error.EIO
    if error is Error.EOVERFLOW and not _may_overflow(request):
        return Error.EIO
    return error


def is_fast_zero(request: Request) -> bool:
    """Whether it may be declined for not being fast."""
    return request.command == Command.WRITE_ZEROES and bool(request.flags & CommandFlag.FAST_ZERO)


def _may_overflow(request: Request) -> bool:
    """READ with DF, and what has no payload and a length beyond that of any payload."""
    if request.command == Command.READ:
        return bool(request.flags & CommandFlag.DF)
    if is_fast_zero(request):  # "SHOULD NOT fail with NBD_EOVERFLOW regardless of ... length"
        return False
    return request.command in _EFFECTS and request.length > PAYLOAD_BYTES_MAX
