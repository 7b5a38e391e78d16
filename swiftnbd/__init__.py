# SPDX-License-Identifier: MIT
"""OpenStack Swift containers as NBD block devices."""

__version__ = "1.0.0.dev0"
