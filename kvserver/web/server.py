"""The client's side of a member: its ports, with gRPC and HTTP on each.

    web = WebServer(config, node, methods=methods, grpc_server=grpc_server, metrics=metrics)
    web.start()
    print(web.client_urls)
    await web.stop(grace_seconds)

This puts listener, site and connections together; what they do stands in their own modules.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvserver import limits
from kvserver.config import Config
from kvserver.errors import Code
from kvserver.metrics import Metrics, Value
from kvserver.web.connections import HttpConnections
from kvserver.web.listener import Listener
from kvserver.web.pages import Pages
from kvserver.web.site import Site
from kvserver.wire.server import GrpcServer, StreamMethod, UnaryMethod

if TYPE_CHECKING:
    from kvserver.node.service import NodeService

log = logging.getLogger(__name__)

_CODE_NAMES = tuple(
    "Canceled" if code is Code.CANCELLED else "OK" if code is Code.OK else code.name.title().replace("_", "")
    for code in Code
)


def connections_max() -> int:
    """Answer how many client connections the process has descriptors for."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 1 << 30
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    return max(soft - limits.DESCRIPTORS_RESERVED, soft // 2)


class WebServer:
    """Listens on a member's client and metrics URLs.

    Args:
        config: URLs, CORS, host whitelist, request size.
        node: the member.
        methods: the gRPC methods table; the JSON gateway calls the same handlers.
        grpc_server: gets the gRPC connections.
        metrics: what ``/metrics`` shows; sources for what is counted here are added.
    """

    def __init__(
        self,
        config: Config,
        node: NodeService,
        *,
        methods: Mapping[bytes, UnaryMethod | StreamMethod],
        grpc_server: GrpcServer,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self._grpc_server = grpc_server
        self._handovers: set[asyncio.Task[None]] = set()
        pages = Pages(node, self.metrics)
        self._http = HttpConnections(
            Site(
                pages,
                methods,
                max_request_bytes=config.max_request_bytes,
                cors=config.cors,
                host_whitelist=config.host_whitelist,
            )
        )
        self._metrics_http = HttpConnections(
            Site(pages, {}, max_request_bytes=config.max_request_bytes, metrics_only=True)
        )
        most = connections_max()
        self._client_listener = Listener(
            "listen-client-urls",
            config.listen_client_urls,
            grpc=self._serve_grpc,
            http=self._http.serve,
            open_connections=self._open_connections,
            connections_max=most,
            reuse_port=config.socket_reuse_port,
        )
        self._metrics_listener = Listener(
            "listen-metrics-urls",
            config.listen_metrics_urls,
            grpc=None,
            http=self._metrics_http.serve,
            open_connections=self._open_connections,
            connections_max=most,
            reuse_port=config.socket_reuse_port,
        )
        self.metrics.add_source(self._samples)

    @property
    def client_urls(self) -> tuple[str, ...]:
        """The client URLs as bound: a port 0 is replaced by the real one."""
        return self._client_listener.urls

    @property
    def metrics_urls(self) -> tuple[str, ...]:
        """The metrics URLs as bound."""
        return self._metrics_listener.urls

    def bind(self) -> None:
        """Take the ports, so that a port in use is known before anything else starts; connections wait meanwhile.

        Raises:
            ListenError: a URL cannot be bound.
        """
        self._client_listener.bind()
        try:
            self._metrics_listener.bind()
        except BaseException:
            self._client_listener.close()
            raise

    def start(self) -> None:
        """Begin to accept connections; binds first if that was not done."""
        if not self._client_listener.urls:
            self.bind()
        self._client_listener.start()
        self._metrics_listener.start()
        for url in self._client_listener.urls:
            log.info("serving client traffic insecurely; this is strongly discouraged!", extra={"address": url})

    async def stop(self, grace_seconds: float) -> None:
        """Stop accepting, let running requests end for ``grace_seconds``, close everything, gRPC connections too."""
        self._client_listener.close()
        self._metrics_listener.close()
        await asyncio.gather(
            self._grpc_server.shutdown(grace_seconds),
            self._http.close(grace_seconds),
            self._metrics_http.close(grace_seconds),
        )

    def _open_connections(self) -> int:
        return (
            self._grpc_server.connection_count
            + self._http.connection_count
            + self._metrics_http.connection_count
            + len(self._handovers)
        )

    def _serve_grpc(self, sock: socket.socket, peer: str) -> None:
        task = asyncio.get_running_loop().create_task(self._hand_over(sock, peer))
        self._handovers.add(task)
        task.add_done_callback(self._handovers.discard)

    async def _hand_over(self, sock: socket.socket, peer: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._grpc_server.protocol, sock)
        except OSError as error:
            log.info("the gRPC connection of %s failed at once: %s", peer, error)
            sock.close()

    def _samples(self) -> Mapping[str, Value]:
        grpc = self._grpc_server
        started: dict[tuple[str, ...], float] = {}
        received: dict[tuple[str, ...], float] = {}
        sent: dict[tuple[str, ...], float] = {}
        handled: dict[tuple[str, ...], float] = {}
        for counter in grpc.counters():
            service, _, method = counter.path.strip("/").rpartition("/")
            labels = (_grpc_type(service, method, counter.streaming), service, method)
            started[labels] = counter.started
            received[labels] = counter.messages_received
            sent[labels] = counter.messages_sent
            for code, count in {0: 0, **counter.handled}.items():
                handled[*labels, _CODE_NAMES[code] if code < len(_CODE_NAMES) else str(code)] = count
        return {
            "grpc_server_started_total": started,
            "grpc_server_handled_total": handled,
            "grpc_server_msg_received_total": received,
            "grpc_server_msg_sent_total": sent,
            "etcd_network_client_grpc_received_bytes_total": grpc.bytes_received,
            "etcd_network_client_grpc_sent_bytes_total": grpc.bytes_sent,
            "kvserver_client_connections": {
                ("grpc",): grpc.connection_count,
                ("http",): self._http.connection_count + self._metrics_http.connection_count,
            },
            "kvserver_refused_connections_total": (
                self._client_listener.refused_total + self._metrics_listener.refused_total
            ),
            "kvserver_http_requests_total": self._http.requests_total + self._metrics_http.requests_total,
        }


def _grpc_type(service: str, method: str, streaming: bool) -> str:
    if not streaming:
        return "unary"
    return "server_stream" if method in ("Snapshot", "Observe", "RangeStream") else "bidi_stream"
