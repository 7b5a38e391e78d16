# SPDX-License-Identifier: MIT
"""The one table from errno to what NBD can say ("Error values")."""

import errno

from swiftnbd.protocol.constants import Error

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


def wire_error(number: int) -> Error:
    """Narrow an errno to one of the eight NBD errors; anything unlisted is EIO."""
    return _WIRE.get(number, Error.EIO)
