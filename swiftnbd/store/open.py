# SPDX-License-Identifier: MIT
"""Opens stores the way they are meant to be used: with their wrappers, in their order.

A Swift container is ``Retrying(Proven(SwiftStore(...)))``: a retry makes a new proof, and a proof
is never made of tries that may be a minute apart.
"""

from dataclasses import dataclass
from pathlib import Path

from swiftnbd.store.auth import Auth, V1Auth
from swiftnbd.store.base import Store
from swiftnbd.store.directory import DirectoryStore
from swiftnbd.store.directory import containers as directory_containers
from swiftnbd.store.proven import Proven
from swiftnbd.store.retrying import DEADLINE_SECONDS_DEFAULT, Retrying
from swiftnbd.store.swift import SwiftStore
from swiftnbd.store.swift_http import SwiftAccount, Timeouts

__all__ = [
    "Auth",
    "Patience",
    "SwiftAccount",
    "Timeouts",
    "V1Auth",
    "directory_containers",
    "open_directory",
    "open_swift",
]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an operation on a Swift is tried before it fails."""

    deadline_seconds: float = DEADLINE_SECONDS_DEFAULT


def open_swift(account: SwiftAccount, container: str, patience: Patience | None = None) -> Store:
    """A container of a Swift account. Close the store, and after all of them the account."""
    patience = Patience() if patience is None else patience
    proven = Proven(SwiftStore(account, container))
    return Retrying(proven, deadline_seconds=patience.deadline_seconds)


def open_directory(root: Path, container: str) -> Store:
    """A container in a directory."""
    return DirectoryStore(root, container)
