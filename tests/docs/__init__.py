# SPDX-License-Identifier: MIT
"""The commands of README.md and docs/, run as they stand there."""
