# SPDX-License-Identifier: MIT
"""Plugins, one a module, found by its name: the `swiftnbd.api.Plugin` that is defined in it."""
