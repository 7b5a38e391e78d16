# SPDX-License-Identifier: MIT
"""The two programs. Only here are argv, the environment and configuration files read."""
