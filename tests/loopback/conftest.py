"""The published parts, written once per session, and a user in front of servers that hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .published import publish, stock
from .world import World


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def world(loopback: World, published: Path) -> World:
    """An empty home, and servers that hold everything that a user's line needs."""
    stock(loopback, published)
    return loopback
