# SPDX-License-Identifier: MIT
"""What every test gets. The fixtures themselves live in `tests.support`."""

pytest_plugins = [
    "tests.support.fixtures",
    "tests.support.log_watch",
]
