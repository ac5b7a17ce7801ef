"""A node in this process: from a configuration to a listening server, and back.

    async with Server(Config(listen_client_urls=("http://127.0.0.1:0",), data_dir=path)) as server:
        print(server.client_url)

Several servers may live in one process, each with its own data directory. This is the one place that puts the parts
together; what they do stands in their own modules.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from types import TracebackType

from kvserver import limits
from kvserver.api import build_methods
from kvserver.config import Config
from kvserver.errors import StartupError
from kvserver.metrics import Metrics
from kvserver.node.assembly import Assembly, assemble
from kvserver.node.crash_points import CrashPoints
from kvserver.node.monitor import Monitor, node_samples
from kvserver.node.runner import Runner
from kvserver.node.service import NodeService
from kvserver.runtime import Clock, Rng, SystemClock, system_rng
from kvserver.storage import FileSystem, OsFileSystem
from kvserver.web import WebServer
from kvserver.wire.limits import WireLimits
from kvserver.wire.server import GrpcServer

log = logging.getLogger(__name__)


class Server:
    """One member, listening. Use it as an async context manager, or call :meth:`start` and :meth:`stop`.

    Args:
        config: what to serve, and where.
        fs: the file system; the machine's own unless a test brings another.
        clock: monotonic time.
        rng: randomness for election timeouts and lease ids.
        crash_points: where a test wants the process to die.
    """

    def __init__(
        self,
        config: Config,
        *,
        fs: FileSystem | None = None,
        clock: Clock | None = None,
        rng: Rng | None = None,
        crash_points: CrashPoints | None = None,
    ) -> None:
        self.config = config
        self._fs = fs or OsFileSystem()
        self._clock = clock or SystemClock()
        self._rng = rng or system_rng()
        self._crash_points = crash_points
        self._assembly: Assembly | None = None
        self._runner: Runner | None = None
        self._web: WebServer | None = None
        self._closed: asyncio.Future[None] | None = None
        self._service: NodeService | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the data directory, take the ports, and serve once this member leads.

        Raises:
            StartupError: a port, the data directory or the configuration cannot be used; says which and why.
        """
        config = self.config
        assembly = assemble(config, self._fs, self._rng, self._wake)
        self._assembly = assembly
        self._closed = asyncio.get_running_loop().create_future()
        try:
            engine = assembly.engine
            service = NodeService(
                engine,
                clock=self._clock,
                rng=self._rng,
                request_bytes_max=config.max_request_bytes,
                txn_operations_max=config.max_txn_ops,
            )
            self._service = service
            methods = build_methods(service)
            grpc_server = GrpcServer(methods, limits=_wire_limits(config))
            metrics = Metrics()
            self._web = WebServer(config, service, methods=methods, grpc_server=grpc_server, metrics=metrics)
            self._web.bind()
            engine.client_urls = config.advertised_client_urls(self._web.client_urls)
            monitor = Monitor(self._clock)
            runner = Runner(
                engine,
                assembly.data_dir.wal,
                assembly.data_dir.snapshotter,
                segment_positions=assembly.data_dir.segment_positions,
                clock=self._clock,
                monitor=monitor,
                tick_seconds=config.heartbeat_interval / 1000,
                slow_apply_seconds=config.warning_apply_duration,
                crash_points=self._crash_points,
                on_failure=self._failed,
                flush=grpc_server.flush,
            )
            self._runner = runner
            metrics.add_source(node_samples(engine, monitor, config.quota_bytes))
            runner.start()
            await runner.ready
            self._web.start()
        except BaseException:
            await self.stop()
            raise
        log.info("ready to serve client requests")

    async def stop(self) -> None:
        """Stop serving, end what runs, close the log; safe to call twice."""
        web, self._web = self._web, None
        runner, self._runner = self._runner, None
        assembly, self._assembly = self._assembly, None
        async with AsyncExitStack() as stack:  # all of it, whatever fails
            stack.callback(self._set_closed)
            if assembly is not None:
                stack.callback(assembly.data_dir.lock.release)
                stack.callback(assembly.data_dir.wal.close)
            if runner is not None:
                stack.push_async_callback(runner.stop)
            if web is not None:
                stack.push_async_callback(web.stop, limits.SHUTDOWN_GRACE_SECONDS)
            if assembly is not None:
                stack.callback(assembly.engine.stop)
            if runner is not None:
                await runner.drain(limits.SHUTDOWN_GRACE_SECONDS)

    async def wait_closed(self) -> None:
        """Wait until the server was stopped.

        Raises:
            StartupError: it had to stop by itself; the disk failed, for example.
        """
        if self._closed is None:
            raise RuntimeError("the server was not started")
        await asyncio.shield(self._closed)

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def client_urls(self) -> tuple[str, ...]:
        """Where clients reach it, with the real ports."""
        if self._web is None:
            raise RuntimeError("the server is not running")
        return self._web.client_urls

    @property
    def client_url(self) -> str:
        """The first of :attr:`client_urls`."""
        return self.client_urls[0]

    @property
    def service(self) -> NodeService:
        """The node's facade, for calls from within the process."""
        if self._service is None:
            raise RuntimeError("the server is not running")
        return self._service

    # -- inside ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._runner is not None:
            self._runner.wake()

    def _failed(self, error: StartupError) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_exception(error)
            self._closed.exception()  # marks it as seen: not everybody waits

    def _set_closed(self) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)


def _wire_limits(config: Config) -> WireLimits:
    return WireLimits(
        streams_max=config.max_concurrent_streams,
        message_bytes_max=config.max_request_bytes + limits.GRPC_OVERHEAD_BYTES,
        ping_min_seconds=config.grpc_keepalive_min_time,
        keepalive_interval_seconds=config.grpc_keepalive_interval,
        keepalive_timeout_seconds=config.grpc_keepalive_timeout,
    )
