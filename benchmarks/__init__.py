# SPDX-License-Identifier: MIT
"""How fast swiftnbd is, against peers on the same machine in the same minute.

``python -m benchmarks`` from the repository's root; see the README beside this file.
"""
