# SPDX-License-Identifier: MIT
"""Pytest plugin: a real Swift, started once for all tests that ask for it."""

import uuid
from collections.abc import Iterator

import pytest

from tests.support.certificates import Certificates
from tests.support.swift_aio import RealSwift


@pytest.fixture(scope="session")
def real_swift() -> Iterator[RealSwift]:
    """A healthy Swift shared by all tests: hurt one of your own (`own_swift`) instead."""
    with RealSwift(fsync=False) as swift:  # nobody pulls the plug here, and it is much faster
        yield swift


@pytest.fixture
def own_swift() -> Iterator[RealSwift]:
    """A Swift for this test alone, to kill and stop servers of."""
    with RealSwift(fsync=False) as swift:
        yield swift


@pytest.fixture
def container_name() -> str:
    """The name of a container that nobody uses."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A server's and a client's certificate, signed by one authority; nobody changes them."""
    return Certificates.make(tmp_path_factory.mktemp("certificates"))
