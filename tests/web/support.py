"""A client port with a small methods table and no node behind it, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from kvserver.config import Config, address_of
from kvserver.node.service import NodeService
from kvserver.proto.rpc_pb2 import (
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    MemberListResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    ResponseHeader,
)
from kvserver.web import WebServer
from kvserver.wire.server import GrpcServer, RequestHead, ServerConnection, ServerStream, StreamMethod, UnaryMethod


@dataclass
class FakeNode:
    """What the pages ask of a node."""

    member_id: int = 0x8E9E05C52164694D
    cluster_id: int = 0xCDF818194E3A8C32
    reason: str = ""
    asked: list[tuple[bool, frozenset[str]]] = field(default_factory=list)

    def healthy(self, serializable: bool, exclude: frozenset[str]) -> tuple[bool, str]:
        self.asked.append((serializable, exclude))
        if self.reason.removeprefix("ALARM ") in exclude:
            return True, ""
        return not self.reason, self.reason

    def member_list(self, request: object, done: object) -> None:
        response = MemberListResponse(header=ResponseHeader(cluster_id=self.cluster_id))
        response.members.add(ID=0xAB, name="n1", peerURLs=["http://p:1"], clientURLs=["http://c:1"])
        done(response.SerializeToString())  # type: ignore[operator]


class Rpcs:
    """The methods table: put answers on the next turn, range at once, and each remembers what it was asked."""

    def __init__(self) -> None:
        self.heads: list[RequestHead] = []
        self.requests: list[bytes] = []
        self.stored: dict[bytes, bytes] = {}
        self.waiting: list[tuple[ServerConnection, int]] = []
        self.streams: list[EchoStream] = []
        self.range_answer: bytes | None = None

    def table(self) -> Mapping[bytes, UnaryMethod | StreamMethod]:
        return {
            b"/etcdserverpb.KV/Put": UnaryMethod(self.put),
            b"/etcdserverpb.KV/Range": UnaryMethod(self.range),
            b"/etcdserverpb.KV/Compact": UnaryMethod(self.wait),
            b"/etcdserverpb.KV/Txn": UnaryMethod(self.explode),
            b"/etcdserverpb.Lease/LeaseKeepAlive": StreamMethod(self.keepalive),
            b"/v3lockpb.Lock/Lock": StreamMethod(self.keepalive),
        }

    def put(self, conn: ServerConnection, stream_id: int, head: RequestHead, message: bytes) -> None:
        request = PutRequest.FromString(message)
        self.heads.append(head)
        self.stored[request.key] = request.value
        answer = PutResponse(header=ResponseHeader(revision=len(self.stored) + 1)).SerializeToString()
        asyncio.get_running_loop().call_soon(conn.respond, stream_id, answer)

    def range(self, conn: ServerConnection, stream_id: int, head: RequestHead, message: bytes) -> None:
        self.heads.append(head)
        if self.range_answer is not None:
            conn.respond(stream_id, self.range_answer)
            return
        request = RangeRequest.FromString(message)
        response = RangeResponse(header=ResponseHeader(revision=7))
        if request.key in self.stored:
            response.kvs.add(key=request.key, value=self.stored[request.key])
            response.count = 1
        conn.respond(stream_id, response.SerializeToString())

    def wait(self, conn: ServerConnection, stream_id: int, head: RequestHead, message: bytes) -> None:
        self.waiting.append((conn, stream_id))

    def explode(self, conn: ServerConnection, stream_id: int, head: RequestHead, message: bytes) -> None:
        raise RuntimeError("boom")

    def keepalive(self, stream: ServerStream) -> EchoStream:
        handler = EchoStream(stream)
        self.streams.append(handler)
        return handler


class EchoStream:
    """Answers each keepalive, and ends when the client does."""

    def __init__(self, stream: ServerStream) -> None:
        self.stream = stream
        self.was_closed = asyncio.Event()
        self.was_drained = asyncio.Event()
        self.half_closed = asyncio.Event()

    def on_message(self, message: bytes, /) -> None:
        request = LeaseKeepAliveRequest.FromString(message)
        self.stream.send(LeaseKeepAliveResponse(ID=request.ID, TTL=9).SerializeToString())

    def on_half_close(self) -> None:
        self.half_closed.set()
        self.stream.finish()

    def on_closed(self) -> None:
        self.was_closed.set()

    def on_drained(self) -> None:
        self.was_drained.set()


@dataclass
class Served:
    """A running client port."""

    web: WebServer
    rpcs: Rpcs
    node: FakeNode
    grpc: GrpcServer

    @property
    def port(self) -> int:
        return address_of(self.web.client_urls[0]).port

    async def connect(self) -> Raw:
        return Raw(*await asyncio.open_connection("127.0.0.1", self.port))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        return cast("dict[str, object]", json.loads(self.body))


@dataclass
class Raw:
    """A connection on which tests write bytes themselves."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def answer(self, *, has_body: bool = True) -> Answer:
        status, headers = await self.head()
        body = await self.reader.readexactly(int(headers["content-length"])) if has_body else b""
        return Answer(status, headers, body)

    async def chunk(self) -> bytes:
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), 10), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        lines = {"Host": "localhost", **(headers or {})}
        if body:
            lines["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        return await self.answer(has_body=method != "HEAD")

    async def ended(self) -> bytes:
        """Read to the end of the connection."""
        return await asyncio.wait_for(self.reader.read(), 10)

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@asynccontextmanager
async def serving(**flags: object) -> AsyncIterator[Served]:
    config = Config(listen_client_urls=("http://127.0.0.1:0",), **flags)  # type: ignore[arg-type]
    rpcs, node = Rpcs(), FakeNode()
    grpc = GrpcServer(rpcs.table())
    web = WebServer(config, cast(NodeService, node), methods=rpcs.table(), grpc_server=grpc)
    web.start()
    try:
        yield Served(web, rpcs, node, grpc)
    finally:
        await web.stop(0.5)
