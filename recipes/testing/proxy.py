"""A TCP proxy that can fail: put it between a client and a server."""

from __future__ import annotations

import asyncio
from types import TracebackType

CHUNK_BYTES = 65536


class FaultProxy:
    """Forwards connections to a server, until told otherwise.

    Args:
        target: The server, ``host:port``.

    ::

        async with FaultProxy(node.endpoint) as proxy, Client(proxy.endpoint) as kv:
            proxy.cut()
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        self._upstream = asyncio.Event()
        self._downstream = asyncio.Event()
        self._upstream.set()
        self._downstream.set()
        self.connections = 0

    @property
    def endpoint(self) -> str:
        """Where clients connect, ``host:port``."""
        assert self._server is not None, "enter the proxy first"
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def cut(self) -> None:
        """Break all connections and refuse new ones, until :meth:`restore`."""
        self._open = False
        self.drop()

    def drop(self) -> None:
        """Break all connections; new ones are accepted."""
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    def restore(self) -> None:
        """Accept connections and forward everything again."""
        self._open = True
        self._upstream.set()
        self._downstream.set()

    def hold_answers(self) -> None:
        """Forward what clients send, hold back what the server answers, until :meth:`restore`."""
        self._downstream.clear()

    def freeze(self) -> None:
        """Forward nothing either way but keep connections open, until :meth:`restore`: a network that swallows."""
        self._upstream.clear()
        self._downstream.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, server_writer)
        self._pairs.add(pair)
        for source, sink, gate in ((reader, server_writer, self._upstream), (server_reader, writer, self._downstream)):
            task = asyncio.get_running_loop().create_task(self._pump(source, sink, gate, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        gate: asyncio.Event,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        try:
            while data := await source.read(CHUNK_BYTES):
                await gate.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._pairs.discard(pair)
            for writer in pair:
                writer.close()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.drop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
