# SPDX-License-Identifier: MIT
"""Everything at once, for long: real programs, real trouble, every byte accounted for."""
