# SPDX-License-Identifier: MIT
"""What will be read next: sequential streams among the reads of a disk.

A read that follows none of the streams known begins a *candidate*. Two more reads, each where
the one before ended (or one request further: they may overtake each other), make it a *stream*,
and the bytes behind it are worth fetching. From then on the reader is kept a window ahead of:
when it enters the window advised last, the next one is advised, twice as large.

What others do, and what follows from it here:

* Linux keeps the state per open file, and doubles the window each time the reader reaches a
  mark in it, so that a fetch is always under way ahead of the reader. So here. But a block
  device sees the reads of all files and of all connections mixed: so there are several
  streams, found by their position.
* The kernel's read-ahead issues requests of 128 KiB, several connections take them out of
  order, and pages it still has are left out; nbdcopy has 64 requests of 256 KiB in flight on
  each of four connections. So within a stream a read may be `REQUESTS_ASTRAY` requests early
  or late. But advice must be earned: half the bytes since the last one must have been read.
* nbdkit's read-ahead filter (before 1.32) doubles 64 KiB up to 64 MiB when a read begins exactly
  where its one window ends, and starts again at any other read: nbdcopy never gets past the
  first window. qemu has no adaptive read-ahead, curl's driver fetches a fixed 256 KiB more.
* Linux takes a read of the first block for the beginning of a stream; here it is mostly
  somebody who looks for a partition table. Three requests make a stream, whatever the place.

So reads in random order hardly ever start a fetch (see the tests: not once in 100,000), and
streams that are not continued are forgotten, lest a random read hits one by chance. Reads
backwards or of the same place again do not advance a stream. A call takes 1 to 2 us.
"""

from collections import deque

CANDIDATES_PER_STREAM = 2  # so that random reads in between do not push out a beginning stream
CONTINUATIONS_MIN = 2  # one happens by chance too often on a small disk
REQUESTS_ASTRAY = 16  # seen: 2 early and 13 late, with 64 in flight and threads that race
IDLE_CALLS_MAX = 256  # a stream not continued by any of so many reads has ended


class _Candidate:
    __slots__ = ("continuations", "next")

    def __init__(self, end: int) -> None:
        self.next = end
        self.continuations = 0


class _Stream:
    """Read up to ``next``, advised up to ``ahead``.

    The last advice began at ``mark``; when it was given, the reader was at ``since``, and has
    read ``read`` bytes from then on. The last read was call ``call``.
    """

    __slots__ = ("ahead", "call", "mark", "next", "read", "since", "window")

    def __init__(self, end: int, window: int, call: int) -> None:
        self.next = self.mark = self.ahead = self.since = end
        self.read = 0
        self.window = window
        self.call = call


class ReadAhead:
    """Finds up to ``streams_max`` sequential readers of a disk of ``size`` bytes.

    Windows are ``window_min`` to ``window_max`` bytes; advised ranges end at multiples of
    ``window_min``, so let it be a multiple of what is fetched as one. Never more than twice
    ``window_max`` (and what rounding adds) is advised ahead of a reader.
    """

    def __init__(self, size: int, window_min: int, window_max: int, streams_max: int) -> None:
        assert 0 < window_min <= window_max
        assert streams_max > 0
        self._size = size
        self._window_min = window_min
        self._window_max = window_max
        self._calls = 0
        # The most recently used first: it is the likeliest to go on
        self._streams: deque[_Stream] = deque(maxlen=streams_max)
        self._candidates: deque[_Candidate] = deque(maxlen=CANDIDATES_PER_STREAM * streams_max)

    def advise(self, offset: int, length: int) -> tuple[int, int] | None:
        """Note a read, and return the offset and length of what to fetch now, if anything.

        To be called for reads that had to be fetched and for the first hit on what was fetched
        on advice; what was cached anyway needs no advice. Let a read that is rounded out to
        whole blocks for fetching be so here.
        """
        end = offset + length
        self._calls += 1
        astray = REQUESTS_ASTRAY * length
        for stream in self._streams:
            if abs(offset - stream.next) <= astray:
                return self._follow(stream, end, length)
        for candidate in self._candidates:
            if abs(offset - candidate.next) <= length:
                return self._consider(candidate, end, length)
        self._candidates.appendleft(_Candidate(end))
        if self._streams and self._calls - self._streams[-1].call > IDLE_CALLS_MAX:
            self._streams.pop()
        return None

    def _consider(self, candidate: _Candidate, end: int, length: int) -> tuple[int, int] | None:
        if end <= candidate.next:
            return None
        candidate.next = end
        candidate.continuations += 1
        if candidate.continuations < CONTINUATIONS_MIN:
            return None
        self._candidates.remove(candidate)
        window = min(max(self._window_min, 2 * length), self._window_max)
        self._streams.appendleft(_Stream(end, window, self._calls))
        return self._advance(self._streams[0])

    def _follow(self, stream: _Stream, end: int, length: int) -> tuple[int, int] | None:
        stream.call = self._calls
        if stream is not self._streams[0]:
            self._streams.remove(stream)
            self._streams.appendleft(stream)
        stream.read += length
        stream.next = max(stream.next, end)
        if stream.next <= stream.mark or 2 * stream.read < stream.next - stream.since:
            return None
        stream.window = min(2 * stream.window, self._window_max)
        return self._advance(stream)

    def _advance(self, stream: _Stream) -> tuple[int, int] | None:
        start = max(stream.next, stream.ahead)
        if start >= self._size:
            return None
        stop = -(-(start + stream.window) // self._window_min) * self._window_min
        stream.mark, stream.ahead = start, min(stop, self._size)
        stream.since, stream.read = stream.next, 0
        return start, stream.ahead - start
