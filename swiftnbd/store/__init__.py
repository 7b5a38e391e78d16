# SPDX-License-Identifier: MIT
"""Objects by name, in one container. Knows nothing of blocks or NBD."""
