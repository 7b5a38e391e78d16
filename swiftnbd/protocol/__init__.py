# SPDX-License-Identifier: MIT
"""The NBD wire format, pure: bytes in, values out. No I/O, no clock, no asyncio.

Follows ``doc/proto.md`` of NetworkBlockDevice/nbd; section titles are quoted where a rule is
obeyed. Names are the specification's, less their ``NBD_`` prefixes.
"""
