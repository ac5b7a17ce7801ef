"""Fixtures for pytest: ``pytest_plugins = ["recipes.testing.plugin"]`` in a ``conftest.py``.

- ``kv_node``: an :class:`~recipes.testing.EmbeddedNode` for the whole run;
- ``kv``: a :class:`~recipes.Client` of it, in a namespace of the test's own.

Needs pytest-asyncio.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from recipes.client.client import Client
from recipes.testing.node import EmbeddedNode

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def kv_node() -> Iterator[EmbeddedNode]:
    """A node in this process, for the whole run."""
    with EmbeddedNode() as node:
        yield node


@pytest_asyncio.fixture
async def kv(kv_node: EmbeddedNode) -> AsyncIterator[Client]:
    """A client below a namespace that no other test uses."""
    async with kv_node.client(namespace=f"test-{next(_numbers)}/") as client:
        yield client
