# SPDX-License-Identifier: MIT
"""How many bytes of requests and replies may be in memory: for all connections, and for each.

Every connection has a little of its own, so that requests of an ordinary size are served
whatever others hold. What is larger draws on the `Budget` that all share. It is granted in the
order in which it was asked for, one claim a connection: a large request is not starved by small
ones, nor a connection by one that asks more often.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Claim:
    """A connection waits for ``amount`` bytes; it has them when they are ``granted``."""

    amount: int
    ready: Callable[[], None]
    granted: bool = False


class Budget:
    """``limit`` bytes for everybody."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = limit
        self._claims: deque[Claim] = deque()

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for bytes."""
        return bool(self._claims)

    def take(self, amount: int) -> bool:
        """Take ``amount`` bytes, if so many are left and nobody waits."""
        if self._claims or amount > self.left:
            return False
        self.left -= amount
        return True

    def give(self, amount: int) -> None:
        """Give bytes back; those who have waited longest get them."""
        self.left += amount
        assert self.left <= self.limit
        loop = asyncio.get_running_loop()
        while self._claims and self._claims[0].amount <= self.left:
            claim = self._claims.popleft()
            self.left -= claim.amount
            claim.granted = True
            loop.call_soon(claim.ready)

    def claim(self, amount: int, ready: Callable[[], None]) -> Claim:
        """Wait for ``amount`` bytes; ``ready`` is called once they have been taken."""
        assert amount <= self.limit, "this could never be granted"
        claim = Claim(amount, ready)
        self._claims.append(claim)
        return claim

    def drop(self, claim: Claim) -> None:
        """Wait no longer, or give back what was granted."""
        if claim.granted:
            self.give(claim.amount)
        else:
            self._claims.remove(claim)
            self.give(0)  # it may have kept smaller ones from what is left


class Share:
    """What one connection holds: at most ``limit`` bytes, the first ``own`` of them its own.

    ``ready`` is called when asking again will succeed, after a refusal for the budget's sake. What
    was granted and is not taken then, because something else holds the connection up, goes back:
    it would be lost to the others, and held by nobody who could be seen to be slow.
    Nothing is written down of who holds which bytes: what is held beyond ``own`` is the budget's.
    """

    def __init__(self, budget: Budget, limit: int, own: int, ready: Callable[[], None]) -> None:
        self._budget = budget
        self._limit = limit
        self._own = own
        self._ready = ready
        self._claim: Claim | None = None
        self.held = 0

    @property
    def shared(self) -> int:
        """How much of it is the budget's."""
        return max(0, self.held - self._own)

    @property
    def waits(self) -> bool:
        """Whether it was refused for the budget's sake, and nothing has been granted yet."""
        return self._claim is not None and not self._claim.granted

    def take(self, amount: int) -> bool:
        """Take ``amount`` bytes; one request alone may be larger than the limit."""
        if self.held and self.held + amount > self._limit:
            return False
        if not self._draw(max(0, self.held + amount - self._own) - self.shared):
            return False
        self.held += amount
        return True

    def give(self, amount: int) -> None:
        """Give back bytes that were taken."""
        assert amount <= self.held
        before = self.shared
        self.held -= amount
        if before:
            self._budget.give(before - self.shared)

    def close(self) -> None:
        """Wait for nothing any more; what was granted and not taken goes back."""
        if self._claim is not None:
            self._budget.drop(self._claim)
            self._claim = None

    def _granted(self) -> None:
        self._ready()
        if self._claim is not None and self._claim.granted:
            self.close()

    def _draw(self, amount: int) -> bool:
        """Get so much from the budget, or claim it. A claim keeps its place in the queue."""
        claim = self._claim
        if claim is not None:
            if not claim.granted and 0 < amount <= claim.amount:
                return False
            # granted; or made for another request, which was answered from the cache meanwhile;
            # or what was given back since is enough
            self._claim = None
            if claim.granted and amount <= claim.amount:
                self._budget.give(claim.amount - amount)
                return True
            self._budget.drop(claim)
        if amount and not self._budget.take(amount):
            self._claim = self._budget.claim(amount, self._granted)
            return False
        return True
