# SPDX-License-Identifier: MIT
"""Filters, one a module, found by its name: the `swiftnbd.api.FilterPlugin` defined in it."""
