# SPDX-License-Identifier: MIT
"""Opens Swift containers the way they are meant to be used: with their wrappers, in their order.

That is ``Retrying(Proven(SwiftStore(...)))``: a retry makes a new proof, and a proof is never made
of tries that may be a minute apart. (A `DirectoryStore` needs no wrapper, and none of the imports
here, which take their time.)
"""

from dataclasses import dataclass

from swiftnbd.store.auth import PluginAuth, V1Auth
from swiftnbd.store.base import Store
from swiftnbd.store.http import Timeouts
from swiftnbd.store.outages import Outages
from swiftnbd.store.proven import Proven
from swiftnbd.store.retrying import DEADLINE_SECONDS_DEFAULT, Retrying
from swiftnbd.store.swift import SwiftStore
from swiftnbd.store.swift_http import SwiftAccount

__all__ = [
    "Outages",
    "Patience",
    "PluginAuth",
    "SwiftAccount",
    "Timeouts",
    "V1Auth",
    "open_swift",
]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an operation on a Swift is tried before it fails."""

    deadline_seconds: float = DEADLINE_SECONDS_DEFAULT


def open_swift(account: SwiftAccount, container: str, patience: Patience | None = None) -> Store:
    """A container of a Swift account. Close the store, and after all of them the account."""
    patience = Patience() if patience is None else patience
    return Retrying(
        Proven(SwiftStore(account, container)),
        deadline_seconds=patience.deadline_seconds,
        traffic=account.traffic,
        circuit=account.outages.circuit(container),
    )
