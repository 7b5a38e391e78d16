# SPDX-License-Identifier: MIT
"""What every test gets. The fixtures themselves live in `tests.support`."""

from hypothesis import settings

# How long an example takes says more of what else the machine does.
settings.register_profile("swiftnbd", deadline=None)
settings.load_profile("swiftnbd")

pytest_plugins = [
    "tests.support.fixtures",
    "tests.support.log_watch",
]
