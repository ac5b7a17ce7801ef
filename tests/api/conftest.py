"""An embedded node, and channels of a foreign gRPC client to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest_asyncio

from kvserver.config import Config
from kvserver.server import Server


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A node in this process."""
    config = Config(data_dir=str(tmp_path / "data"), listen_client_urls=("http://127.0.0.1:0",))
    async with Server(config) as running:
        yield running


@pytest_asyncio.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of grpcio to it."""
    async with grpc.aio.insecure_channel(server.client_url.removeprefix("http://")) as opened:
        yield opened
