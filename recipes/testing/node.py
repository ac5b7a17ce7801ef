"""A whole node inside the test process, on a free port, with its data in a temporary directory."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from concurrent.futures import Future
from types import TracebackType
from urllib.parse import urlsplit

from recipes.client.client import Client

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 30.0


class EmbeddedNode:
    """A node for tests.

    It runs on a thread with a loop of its own, so code under test may block its loop, run several, or have none; use it
    with ``async with`` or plain ``with``.

    ::

        async with EmbeddedNode() as node, node.client() as kv:
            await kv.put("k", "v")
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready: Future[str] = Future()
        self._endpoint: str | None = None

    @property
    def endpoint(self) -> str:
        """Where it serves, ``host:port``."""
        if self._endpoint is None:
            raise RuntimeError('the node is not running: "with EmbeddedNode() as node" first')
        return self._endpoint

    def client(self, *, namespace: str | bytes = "", timeout: float = 5.0) -> Client:
        """Answer a new client of the node; close it as any other."""
        return Client(self.endpoint, namespace=namespace, timeout=timeout)

    def start(self) -> EmbeddedNode:
        """Start, and wait until it serves."""
        self._thread = threading.Thread(target=self._run, name="embedded-node", daemon=True)
        self._thread.start()
        self._endpoint = self._ready.result(START_SECONDS_MAX)
        return self

    def stop(self) -> None:
        """Stop, and wait until it has."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_SECONDS_MAX)
        self._endpoint = None

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                raise

    async def _serve(self) -> None:
        # The server is imported here: applications that only use the recipes never load it.
        from kvserver.config import Config
        from kvserver.server import Server

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        with tempfile.TemporaryDirectory(prefix="kvserver-test-") as directory:
            config = Config(data_dir=directory, listen_client_urls=("http://127.0.0.1:0",))
            async with Server(config) as server:
                self._ready.set_result(urlsplit(server.client_url).netloc)
                await self._stop.wait()

    def __enter__(self) -> EmbeddedNode:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> EmbeddedNode:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)
