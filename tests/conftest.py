# SPDX-License-Identifier: MIT
"""What every test gets. The fixtures themselves live in `tests.support`."""

import signal

from hypothesis import settings

# How long an example takes says more of what else the machine does.
settings.register_profile("swiftnbd", deadline=None)
settings.load_profile("swiftnbd")

pytest_plugins = [
    "tests.support.fixtures",
    "tests.support.log_watch",
]

# A shell starts what runs in its background, or under nohup, with these ignored; our programs
# would inherit that, and wait for ever for the signals that tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
