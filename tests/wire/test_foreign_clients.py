"""Clients and servers that others wrote: grpcio (C core), etcdctl (grpc-go), @grpc/grpc-js, h2load, curl.

The server runs in a thread of its own with its own loop, so that blocking clients can be used. A client that is not
installed is skipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import grpc.aio
import pytest
import uvloop

from kvserver.errors import Code
from kvserver.proto import rpc_pb2
from kvserver.wire.client import GrpcConnection, GrpcError
from kvserver.wire.limits import WireLimits
from kvserver.wire.server import GrpcServer, RequestHead, ServerConnection, ServerStream, StreamMethod, UnaryMethod
from tests.wire.raw import Chat, message

_LARGE = WireLimits(message_bytes_max=1 << 24)


class Running:
    """A server in a thread."""

    def __init__(self) -> None:
        self.heads: list[RequestHead] = []
        self.chats: list[Chat] = []
        self.loop = uvloop.new_event_loop()
        self.port = 0
        ready = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(ready,))
        self.thread.start()
        assert ready.wait(10)

    def run(self, ready: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self.main(ready))

    async def main(self, ready: threading.Event) -> None:
        self.stop = asyncio.Event()
        self.server = GrpcServer(
            {
                b"/test.Echo/Echo": UnaryMethod(self.echo),
                b"/test.Echo/Hold": UnaryMethod(lambda *call: None),
                b"/test.Echo/Fail": UnaryMethod(lambda conn, sid, head, body: conn.fail(sid, 9, body.decode())),
                b"/test.Echo/Chat": StreamMethod(self.chat),
                b"/etcdserverpb.KV/Put": UnaryMethod(self.put),
                b"/etcdserverpb.KV/Range": UnaryMethod(self.range),
                b"/etcdserverpb.Watch/Watch": StreamMethod(Watch),
            },
            limits=_LARGE,
        )
        listener = await self.loop.create_server(self.server.protocol, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        ready.set()
        await self.stop.wait()
        listener.close()
        await self.server.shutdown(0.2)

    def echo(self, conn: ServerConnection, stream_id: int, head: RequestHead, body: bytes) -> None:
        self.heads.append(head)
        conn.respond(stream_id, body)

    def chat(self, stream: ServerStream) -> Chat:
        self.heads.append(stream.head)
        self.chats.append(Chat(stream))
        return self.chats[-1]

    def put(self, conn: ServerConnection, stream_id: int, head: RequestHead, body: bytes) -> None:
        self.heads.append(head)
        conn.respond(stream_id, rpc_pb2.PutResponse().SerializeToString())

    def range(self, conn: ServerConnection, stream_id: int, head: RequestHead, body: bytes) -> None:
        self.heads.append(head)
        request = rpc_pb2.RangeRequest.FromString(body)
        if request.key == b"missing":
            conn.fail(stream_id, Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
            return
        answer = rpc_pb2.RangeResponse(count=1)
        answer.kvs.add(key=request.key, value=b"value of " + request.key, version=1)
        conn.respond(stream_id, answer.SerializeToString())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)
        assert not self.thread.is_alive()


class Watch:
    """One event, then nothing."""

    def __init__(self, stream: ServerStream) -> None:
        self.stream = stream

    def on_message(self, body: bytes) -> None:
        request = rpc_pb2.WatchRequest.FromString(body)
        key = request.create_request.key
        header = rpc_pb2.ResponseHeader(revision=7)
        self.stream.send(rpc_pb2.WatchResponse(header=header, created=True).SerializeToString())
        event = rpc_pb2.WatchResponse(header=header)
        event.events.add().kv.key = key
        self.stream.send(event.SerializeToString())

    def on_half_close(self) -> None:
        self.stream.finish()

    def on_closed(self) -> None:
        pass

    def on_drained(self) -> None:
        pass


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    try:
        yield running
    finally:
        running.close()


# -- grpcio, the C core ------------------------------------------------------------------------------------------------


def test_grpcio_unary(running: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        echo = channel.unary_unary("/test.Echo/Echo")
        for number in range(300):
            assert echo(b"%d" % number, timeout=5) == b"%d" % number
        calls = [echo.future(b"%d" % number, timeout=5 + number / 7) for number in range(300)]
        assert [call.result() for call in calls] == [b"%d" % number for number in range(300)]
        answer, call = echo.with_call(b"x", metadata=(("token", "t"), ("raw-bin", b"\x00\xff")))
        assert (answer, call.code()) == (b"x", grpc.StatusCode.OK)
        metadata = running.heads[-1].metadata
        assert metadata[b"token"] == b"t"
        assert metadata[b"raw-bin"] == b"\x00\xff"
        assert running.heads[-2].timeout_seconds == pytest.approx(5 + 299 / 7, rel=0.1)


def test_grpcio_errors(running: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Echo/Fail")("100% größer\n".encode())
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.details() == "100% größer\n"
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Nothing/Here")(b"")
        assert caught.value.details() == "unknown service test.Nothing"
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Echo/Echo")(b"x" * 1000, compression=grpc.Compression.Gzip)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Echo/Hold")(b"", timeout=0.05)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_grpcio_large_messages_and_limit(running: Running) -> None:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{running.port}", options=options) as channel:
        echo = channel.unary_unary("/test.Echo/Echo")
        body = os.urandom(15_000_000)
        assert echo(body) == body
        with pytest.raises(grpc.RpcError) as caught:
            echo(bytes((1 << 24) + 1))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "grpc: received message larger than max (16777217 vs. 16777216)"
        assert echo(b"still fine") == b"still fine"


def test_grpcio_streams(running: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        chat = channel.stream_stream("/test.Echo/Chat")
        assert list(chat(iter([b"echo 1", b"x", b"echo 2"]))) == [b"echo 1", b"echo 2"]
        call = chat(iter(lambda: b"echo", None))
        assert next(call) == b"echo"
        call.cancel()


def test_grpcio_aio(running: Running) -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            echo = channel.unary_unary("/test.Echo/Echo")
            answers = await asyncio.gather(*[echo(b"%d" % number, timeout=5) for number in range(200)])
            assert answers == [b"%d" % number for number in range(200)]
            call = channel.stream_stream("/test.Echo/Chat")()
            for number in range(50):
                await call.write(b"echo %d" % number)
                assert await call.read() == b"echo %d" % number
            await call.done_writing()
            assert await call.read() == grpc.aio.EOF

    asyncio.run(main())


def test_our_client_on_a_grpcio_server() -> None:
    def echo(body: bytes, context: grpc.ServicerContext) -> bytes:
        if body == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "nö 100%")
        if body == b"meta":
            return repr(sorted(context.invocation_metadata())).encode()
        if body == b"time":
            return b"%.1f" % (context.time_remaining() or 0)
        return body

    def chat(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from bodies

    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server = grpc.server(
        futures.ThreadPoolExecutor(4),
        handlers=[grpc.method_handlers_generic_handler("test.Echo", handlers)],
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_concurrent_streams", 10)],
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    async def until_taken(client: GrpcConnection, body: bytes) -> bytes:
        """The C core refuses streams that come while it still counts one it has just answered."""
        while True:
            try:
                return await client.unary(b"/test.Echo/Echo", body)
            except GrpcError as error:
                if error.sent:
                    raise

    async def main() -> None:
        client = await GrpcConnection.connect("127.0.0.1", port)
        assert await client.unary(b"/test.Echo/Echo", b"hi", timeout_seconds=5) == b"hi"
        assert await asyncio.gather(*[until_taken(client, b"%d" % number) for number in range(100)]) == [
            b"%d" % number for number in range(100)
        ]
        body = os.urandom(9_000_000)
        assert await client.unary(b"/test.Echo/Echo", body) == body
        with pytest.raises(GrpcError) as caught:
            await client.unary(b"/test.Echo/Echo", b"fail")
        assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "nö 100%")
        with pytest.raises(GrpcError) as caught:
            await client.unary(b"/test.Echo/None", b"")
        assert caught.value.code == Code.UNIMPLEMENTED
        metadata = await client.unary(b"/test.Echo/Echo", b"meta", metadata=[(b"a", b"1"), (b"b-bin", b"\0\1")])
        assert b"key='a', value='1'" in metadata
        assert b"key='b-bin', value=b'\\x00\\x01'" in metadata
        assert 4 < float(await client.unary(b"/test.Echo/Echo", b"time", timeout_seconds=5)) <= 5
        stream = client.stream(b"/test.Echo/Chat")
        for number in range(100):
            stream.send(b"%d" % number)
        stream.half_close()
        assert [item async for item in stream] == [b"%d" % number for number in range(100)]
        await client.close()

    try:
        asyncio.run(main())
    finally:
        server.stop(0).wait()


# -- grpc-go -----------------------------------------------------------------------------------------------------------


def _etcdctl() -> str:
    beside = Path(sys.executable).with_name("etcdctl")
    found = str(beside) if beside.exists() else shutil.which("etcdctl")
    if not found:
        pytest.skip("etcdctl is not installed")
    return found


def test_etcdctl(running: Running) -> None:
    command = [_etcdctl(), f"--endpoints=127.0.0.1:{running.port}", "--command-timeout=5s"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=20, env=env, check=False)

    assert run("put", "a", "b").stdout == "OK\n"
    assert running.heads[-1].metadata[b"user-agent"].startswith(b"grpc-go/")
    timeout = running.heads[-1].timeout_seconds
    assert timeout is not None
    assert 3 < timeout <= 5
    assert run("get", "a").stdout == "a\nvalue of a\n"
    failed = run("get", "missing")
    assert failed.returncode == 1
    assert "etcdserver: mvcc: required revision has been compacted" in failed.stderr
    assert "unknown service etcdserverpb.Cluster" in run("member", "list").stderr


def test_etcdctl_watch_streams(running: Running) -> None:
    process = subprocess.Popen(
        [_etcdctl(), f"--endpoints=127.0.0.1:{running.port}", "watch", "some-key"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ETCDCTL_API": "3"},
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["PUT\n", "some-key\n"]
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# -- node --------------------------------------------------------------------------------------------------------------

_NODE = """
const grpc = require('@grpc/grpc-js');
const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure());
const same = x => x;
const call = (path, body, metadata) => new Promise(resolve => client.makeUnaryRequest(
  path, same, same, Buffer.from(body), metadata || new grpc.Metadata(),
  {deadline: Date.now() + 5000 + Math.floor(Math.random() * 4000)},
  (error, answer) => resolve(error ? [error.code, error.details] : answer.toString())));
(async () => {
  const out = {};
  out.many = (await Promise.all([...Array(300).keys()].map(n => call('/test.Echo/Echo', 'n' + n))))
    .every((answer, n) => answer === 'n' + n);
  for (let n = 0; n < 100; n++) await call('/test.Echo/Echo', 'x');
  const metadata = new grpc.Metadata();
  metadata.set('token', 'secret'); metadata.set('raw-bin', Buffer.from([0, 255]));
  out.meta = await call('/test.Echo/Echo', 'meta', metadata);
  out.fail = await call('/test.Echo/Fail', 'größer 100%');
  out.large = (await call('/test.Echo/Echo', 'y'.repeat(3000000))).length;
  const chat = client.makeBidiStreamRequest('/test.Echo/Chat', same, same);
  const got = [];
  chat.on('data', body => got.push(body.toString()));
  chat.write(Buffer.from('echo 1')); chat.write(Buffer.from('echo 2')); chat.end();
  await new Promise(resolve => chat.on('end', resolve));
  out.chat = got;
  console.log(JSON.stringify(out));
  client.close();
})();
"""


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node or npm is not installed")
    directory = tmp_path_factory.mktemp("node")
    try:
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent", "@grpc/grpc-js@1"],
            cwd=directory,
            check=True,
            capture_output=True,
            timeout=60,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install @grpc/grpc-js: {error}")
    return directory


def test_grpc_js(running: Running, node_modules: Path) -> None:
    script = node_modules / "calls.js"
    script.write_text(_NODE)
    done = subprocess.run(
        ["node", str(script), f"127.0.0.1:{running.port}"], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "many": True,
        "meta": "meta",
        "fail": [9, "größer 100%"],
        "large": 3_000_000,
        "chat": ["echo 1", "echo 2"],
    }
    heads = [head for head in running.heads if b"token" in head.metadata]
    assert heads[0].metadata[b"raw-bin"] == b"\x00\xff"
    assert len({head.timeout_seconds for head in running.heads}) > 100


# -- h2load and curl ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [("1", "1"), ("10", "100")])
def test_h2load(running: Running, tmp_path: Path, shape: tuple[str, str]) -> None:
    if not shutil.which("h2load"):
        pytest.skip("h2load is not installed")
    body = tmp_path / "body"
    body.write_bytes(message(rpc_pb2.PutRequest(key=b"k", value=b"v" * 256).SerializeToString()))
    done = subprocess.run(
        [
            *("h2load", "-n", "5000", "-c", shape[0], "-m", shape[1], "-d", str(body)),
            *("-H", "content-type:application/grpc", "-H", "te:trailers"),
            f"http://127.0.0.1:{running.port}/etcdserverpb.KV/Put",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "5000 succeeded, 0 failed, 0 errored" in done.stdout


def test_curl(running: Running, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if (
        not curl
        or "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True, check=True).stdout
    ):
        pytest.skip("curl with HTTP/2 is not installed")
    body = tmp_path / "body"
    body.write_bytes(message(b"hello"))

    def run(path: str, *more: str) -> bytes:
        command = [curl, "-s", "-D", "-", "--http2-prior-knowledge", f"http://127.0.0.1:{running.port}{path}", *more]
        return subprocess.run(command, capture_output=True, timeout=20, check=False).stdout

    request = ("-H", "content-type: application/grpc", "--data-binary", f"@{body}")
    out = run("/test.Echo/Echo", *request)
    assert out.startswith(b"HTTP/2 200")
    assert b"grpc-status: 0" in out
    assert message(b"hello") in out
    assert run("/test.Echo/Echo").startswith(b"HTTP/2 405")
    gzip = run("/test.Echo/Echo", *request, "-H", "grpc-encoding: gzip")
    assert gzip == b"" or b"grpc-accept-encoding: identity" in gzip  # curl may drop what is answered while it uploads


# -- genuine etcd: grpc-go as the server -------------------------------------------------------------------------------


def test_our_client_on_genuine_etcd(tmp_path: Path) -> None:
    etcd = Path(sys.executable).with_name("etcd")
    if not etcd.exists():
        pytest.skip("etcd is not installed")
    ports = []
    for _ in range(2):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    client_url, peer_url = (f"http://127.0.0.1:{port}" for port in ports)
    process = subprocess.Popen(
        [
            *(str(etcd), "--data-dir", str(tmp_path / "data"), "--log-level", "error"),
            *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"default={peer_url}"),
        ],
        stderr=subprocess.DEVNULL,
    )

    async def connect() -> GrpcConnection:
        async with asyncio.timeout(20):
            while True:
                try:
                    return await GrpcConnection.connect("127.0.0.1", ports[0])
                except GrpcError:
                    await asyncio.sleep(0.05)

    async def main() -> None:
        client = await connect()
        put = rpc_pb2.PutRequest(key=b"k", value=b"v" * 1_000_000).SerializeToString()
        for _ in range(3):
            await client.unary(b"/etcdserverpb.KV/Put", put, timeout_seconds=10)
        ranges = [
            client.unary(b"/etcdserverpb.KV/Range", rpc_pb2.RangeRequest(key=b"k").SerializeToString())
            for _ in range(20)
        ]
        for answer in await asyncio.gather(*ranges):
            assert rpc_pb2.RangeResponse.FromString(answer).kvs[0].value == b"v" * 1_000_000
        watch = client.stream(b"/etcdserverpb.Watch/Watch")
        create = rpc_pb2.WatchCreateRequest(key=b"w")
        watch.send(rpc_pb2.WatchRequest(create_request=create).SerializeToString())
        assert rpc_pb2.WatchResponse.FromString(await watch.recv() or b"").created
        await client.unary(b"/etcdserverpb.KV/Put", rpc_pb2.PutRequest(key=b"w").SerializeToString())
        assert rpc_pb2.WatchResponse.FromString(await watch.recv() or b"").events[0].kv.key == b"w"
        watch.cancel()
        with pytest.raises(GrpcError, match="etcdserver: key is not provided") as caught:
            await client.unary(b"/etcdserverpb.KV/Put", b"")
        assert caught.value.code == Code.INVALID_ARGUMENT
        with pytest.raises(GrpcError, match=r"unknown method Nope for service etcdserverpb\.KV"):
            await client.unary(b"/etcdserverpb.KV/Nope", b"")
        await client.close()

    try:
        asyncio.run(main())
    finally:
        process.kill()
        process.wait()
