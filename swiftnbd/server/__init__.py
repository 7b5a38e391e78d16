# SPDX-License-Identifier: MIT
"""Listeners, connections, shutdown: the network side and the process around it."""
