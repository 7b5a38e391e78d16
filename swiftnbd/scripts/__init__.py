# SPDX-License-Identifier: MIT
"""nbdkit's Python plugins: the module they import, what they define, and the threads they run in.

Facts from nbdkit-python-plugin(3), nbdkit-plugin(3) and the source of nbdkit 1.32.
"""
