# SPDX-License-Identifier: MIT
"""A block device made of objects. Knows nothing of NBD numbers: it raises errors with an errno."""
