"""The HTTP side without a node: routing, CORS, hosts, metadata, streams, limits, pages, shutdown."""

from __future__ import annotations

import asyncio
import base64
import time

import pytest

from kvserver.proto.kv_pb2 import KeyValue
from kvserver.proto.rpc_pb2 import RangeResponse, ResponseHeader
from kvserver.web.gateway import build_routes
from tests.web.support import serving

PUT_BODY = b'{"key":"Zm9v","value":"YmFy"}'


def test_every_path_of_the_gateway_has_an_rpc() -> None:
    routes = build_routes({})
    assert len(routes) == 51
    assert routes["kv/put"].path == b"/etcdserverpb.KV/Put"
    assert routes["kv/lease/revoke"] is routes["lease/revoke"]
    assert routes["election/observe"].answers_stream
    assert routes["watch"].takes_stream


@pytest.mark.asyncio
@pytest.mark.parametrize("prefix", ["/v3", "/v3beta", "/v3alpha"])
async def test_the_gateway_answers_under_all_its_names(prefix: str) -> None:
    async with serving() as served:
        client = await served.connect()
        assert (await client.request("POST", f"{prefix}/kv/put", PUT_BODY)).json == {"header": {"revision": "2"}}
        answer = await client.request("POST", f"{prefix}/kv/range", b'{"key":"Zm9v"}')
        assert answer.json == {"header": {"revision": "7"}, "kvs": [{"key": "Zm9v", "value": "YmFy"}], "count": "1"}
        assert answer.headers["grpc-metadata-content-type"] == "application/grpc"
        await client.close()


@pytest.mark.asyncio
async def test_requests_of_one_connection_are_answered_in_order_even_when_pipelined() -> None:
    async with serving() as served:
        client = await served.connect()
        bodies = [b'{"key":"%b"}' % key for key in (b"AAAA", b"BBBB", b"CCCC")]
        request = b"".join(
            b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            for body in bodies
        )
        await client.send(request + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        revisions = [(await client.answer()).json["header"] for _ in bodies]
        assert revisions == [{"revision": "2"}, {"revision": "3"}, {"revision": "4"}]
        assert "etcdserver" in (await client.answer()).json
        await client.close()


@pytest.mark.asyncio
async def test_a_client_that_closed_its_half_gets_its_answer() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"POST /v3/kv/compaction HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        client.writer.write_eof()
        for _ in range(500):
            if served.rpcs.waiting:
                break
            await asyncio.sleep(0.01)
        conn, stream_id = served.rpcs.waiting[0]
        conn.respond(stream_id, b"")
        assert (await client.answer()).status == 200
        assert await client.ended() == b""
        await client.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("pause", [False, True])
async def test_many_pipelined_requests_are_answered_in_order(pause: bool) -> None:
    async with serving() as served:
        client = await served.connect()
        requests = []
        for number in range(200):
            body = b'{"key":"%b"}' % base64.b64encode(b"%06d" % number)
            requests.append(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        for request in requests:
            await client.send(request)
            if pause:
                await asyncio.sleep(0)
        for number in range(200):
            assert (await client.answer()).json == {"header": {"revision": str(number + 2)}}
        await client.close()


@pytest.mark.asyncio
async def test_an_answer_larger_than_the_sockets_buffer_arrives_whole() -> None:
    kvs = [KeyValue(key=b"k", value=b"v" * 1_000_000) for _ in range(9)]
    async with serving() as served:
        served.rpcs.range_answer = RangeResponse(header=ResponseHeader(revision=5), kvs=kvs).SerializeToString()
        client = await served.connect()
        for _ in range(3):
            await client.send(b'POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n{"key":"Zm9v"}')
            await asyncio.sleep(0.05)
            assert len((await client.answer()).json["kvs"]) == 9  # type: ignore[arg-type]
        await client.close()


@pytest.mark.asyncio
async def test_a_chunked_body_and_expect_continue_are_taken() -> None:
    async with serving() as served:
        client = await served.connect()
        head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(
            head + b"5\r\n" + PUT_BODY[:5] + b"\r\n%x\r\n" % (len(PUT_BODY) - 5) + PUT_BODY[5:] + b"\r\n0\r\n\r\n"
        )
        assert (await client.answer()).status == 200
        await client.send(
            b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PUT_BODY)
        )
        assert (await client.head())[0] == 100
        await client.send(PUT_BODY)
        assert (await client.answer()).status == 200
        await client.close()


@pytest.mark.asyncio
async def test_http_1_0_and_connection_close() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"GET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
        await client.send(b"GET /version HTTP/1.0\r\n\r\n")
        assert b"Connection: close" in await client.ended()
        await client.close()
        client = await served.connect()
        answer = await client.request("POST", "/v3/kv/put", PUT_BODY, {"Connection": "close"})
        assert answer.headers["connection"] == "close"
        assert await client.ended() == b""
        await client.close()


@pytest.mark.asyncio
async def test_a_request_without_host_is_refused() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"GET /version HTTP/1.1\r\n\r\n")
        assert b"400 Bad Request: missing required Host header" in await client.ended()
        await client.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "head",
    [
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /version HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /version\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /version HTTP/1.1\r\nHost: x\r\n folded\x00\r\n\r\n",
        b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_malformed_requests_end_their_connection_only(head: bytes) -> None:
    async with serving() as served:
        other = await served.connect()
        client = await served.connect()
        await client.send(head)
        answer = await client.ended()
        assert answer.startswith(b"HTTP/1.1 400") or answer == b""
        assert (await other.request("GET", "/version")).status == 200
        await client.close()
        await other.close()


@pytest.mark.asyncio
async def test_a_head_too_large_ends_the_connection() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"GET /version HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000)
        answer = await client.ended()
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert answer.endswith(b"may have 65536 bytes\n")
        await client.close()


@pytest.mark.asyncio
async def test_messages_and_bodies_above_the_limit_are_refused_in_grpcs_words() -> None:
    async with serving(max_request_bytes=1000) as served:
        client = await served.connect()
        most = 1000 + 524_288
        body = b'{"key":"YQ==","value":"' + b"AAAA" * 180_000 + b'"}'
        answer = await client.request("POST", "/v3/kv/put", body)
        assert answer.status == 429
        assert answer.json["message"] == f"grpc: received message larger than max (540007 vs. {most})"
        body = b'{"key":"YQ==","value":"' + b"AAAA" * 300_000 + b'"}'
        answer = await client.request("POST", "/v3/kv/put", body)
        assert answer.status == 429
        assert answer.json["message"] == f"grpc: received message larger than max ({len(body)} vs. {most})"
        assert (await client.request("GET", "/version")).status == 200, "the connection is still good"
        await client.close()


@pytest.mark.asyncio
async def test_headers_become_metadata() -> None:
    async with serving() as served:
        client = await served.connect()
        headers = {"Authorization": "Bearer t", "Grpc-Metadata-HasLeader": "true", "Grpc-Timeout": "2S", "X-Other": "1"}
        assert (await client.request("POST", "/v3/kv/put", PUT_BODY, headers)).status == 200
        assert (await client.request("POST", "/v3/kv/put", PUT_BODY)).status == 200
        with_headers, without = served.rpcs.heads
        assert dict(with_headers.metadata) == {b"authorization": b"Bearer t", b"hasleader": b"true"}
        assert with_headers.timeout_seconds == 2.0
        assert with_headers.path == b"/etcdserverpb.KV/Put"
        assert dict(without.metadata) == {}
        assert without.timeout_seconds is None
        await client.close()


@pytest.mark.asyncio
async def test_a_call_past_its_deadline_is_answered_once() -> None:
    async with serving() as served:
        client = await served.connect()
        answer = await client.request("POST", "/v3/kv/compaction", b"{}", {"Grpc-Timeout": "20m"})
        assert answer.status == 504
        assert answer.json == {"error": "context deadline exceeded", "code": 4, "message": "context deadline exceeded"}
        conn, stream_id = served.rpcs.waiting[0]
        conn.respond(stream_id, b"")
        assert (await client.request("GET", "/version")).status == 200
        await client.close()


@pytest.mark.asyncio
async def test_an_answer_to_a_client_that_left_is_dropped() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"POST /v3/kv/compaction HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        for _ in range(500):
            if served.rpcs.waiting:
                break
            await asyncio.sleep(0.01)
        conn, stream_id = served.rpcs.waiting[0]
        await client.close()
        for _ in range(10):
            await asyncio.sleep(0)
        conn.respond(stream_id, b"")
        other = await served.connect()
        assert (await other.request("GET", "/version")).status == 200
        await other.close()


@pytest.mark.asyncio
async def test_a_fault_of_a_handler_is_an_answer_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served:
        client = await served.connect()
        answer = await client.request("POST", "/v3/kv/txn", b"{}")
        assert (answer.status, answer.json["code"]) == (500, 13)
        assert "boom" not in answer.body.decode()
        assert "the handler of /etcdserverpb.KV/Txn failed" in caplog.text
        await client.close()


@pytest.mark.asyncio
async def test_a_missing_rpc_is_unimplemented() -> None:
    async with serving() as served:
        client = await served.connect()
        answer = await client.request("POST", "/v3/auth/enable", b"{}")
        assert (answer.status, answer.json["code"]) == (501, 12)
        assert answer.json["message"] == "unknown method AuthEnable for service etcdserverpb.Auth"
        await client.send(b"POST /v3/maintenance/snapshot HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert (await client.head())[0] == 501
        assert b'"grpc_code":12,"http_code":501' in await client.chunk()
        await client.close()


# -- streams ----------------------------------------------------------------------------------------------------------

STREAM_HEAD = b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.asyncio
async def test_a_stream_is_answered_message_by_message_while_the_request_still_comes() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(STREAM_HEAD + b'b\r\n{"ID":"5"} \r\n')
        status, headers = await client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await client.chunk() == b'{"result":{"ID":"5","TTL":"9"}}\n'
        await client.send(b'5\r\n{"ID"\r\n')
        await client.send(b"3\r\n:6}\r\n")
        assert await client.chunk() == b'{"result":{"ID":"6","TTL":"9"}}\n'
        await client.send(b"0\r\n\r\n")
        assert await client.chunk() == b""
        assert (await client.request("GET", "/version")).status == 200, "the connection is still good"
        await client.close()


@pytest.mark.asyncio
async def test_a_stream_learns_that_its_client_left() -> None:
    for request in (STREAM_HEAD + b"8\r\n" + b'{"ID":5}' + b"\r\n",):
        async with serving() as served:
            client = await served.connect()
            await client.send(request)
            await client.head()
            await client.close()
            await asyncio.wait_for(served.rpcs.streams[0].was_closed.wait(), 10)
            assert served.rpcs.streams[0].stream.closed


@pytest.mark.asyncio
async def test_a_stream_that_is_not_read_is_told_so_and_told_when_it_drained() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(STREAM_HEAD + b"8\r\n" + b'{"ID":5}' + b"\r\n")
        await client.head()
        await client.chunk()
        handler = served.rpcs.streams[0]
        stream = handler.stream
        message = b"\x10\x05"
        while stream.buffered_bytes <= stream.conn.limits.high_water_bytes:
            stream.send_raw((b"\x00\x00\x00\x00\x02" + message) * 5000)
        assert not handler.was_drained.is_set()
        reading = asyncio.create_task(client.reader.read(-1))
        await asyncio.wait_for(handler.was_drained.wait(), 20)
        stream.finish()
        reading.cancel()
        await client.close()


@pytest.mark.asyncio
async def test_a_unary_rpc_served_by_a_stream_handler_answers_one_object() -> None:
    async with serving() as served:
        client = await served.connect()
        answer = await client.request("POST", "/v3/lock/lock", b"{}")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        await client.close()


@pytest.mark.asyncio
async def test_a_large_answer_is_written_in_slices_while_others_are_served() -> None:
    kvs = [KeyValue(key=b"key%06d" % number, value=b"v" * 64) for number in range(20_000)]
    async with serving() as served:
        served.rpcs.range_answer = RangeResponse(
            header=ResponseHeader(revision=5), kvs=kvs, count=20_000
        ).SerializeToString()
        client, other = await served.connect(), await served.connect()
        await client.send(b'POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{"key":"Zm9v"} ')
        pauses = []

        async def ping() -> None:
            while True:
                before = time.perf_counter()
                assert (await other.request("GET", "/version")).status == 200
                pauses.append(time.perf_counter() - before)

        pinging = asyncio.create_task(ping())
        answer = await client.answer()
        pinging.cancel()
        assert answer.json["count"] == "20000"
        assert len(answer.json["kvs"]) == 20_000  # type: ignore[arg-type]
        assert len(pauses) > 5, "others were served meanwhile"
        await client.close()
        await other.close()


# -- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_cors_and_host_whitelist() -> None:
    async with serving(cors=("http://good:80",), host_whitelist=("good.example", "127.0.0.1")) as served:
        client = await served.connect()
        answer = await client.request("GET", "/version", headers={"Host": "evil.example:80"})
        assert answer.status == 421
        assert b'etcd --host-whitelist "evil.example"' in answer.body
        assert len(answer.body) == 374
        answer = await client.request("GET", "/version", headers={"Host": "good.example:1", "Origin": "http://good:80"})
        assert answer.headers["access-control-allow-origin"] == "http://good:80"
        answer = await client.request("GET", "/version", headers={"Host": "127.0.0.1", "Origin": "http://bad"})
        assert answer.status == 200
        assert "access-control-allow-origin" not in answer.headers
        await client.close()


@pytest.mark.asyncio
async def test_health_tells_alarms_and_excludes_them() -> None:
    async with serving() as served:
        client = await served.connect()
        assert (await client.request("GET", "/health")).body == b'{"health":"true","reason":""}'
        served.node.reason = "ALARM NOSPACE"
        answer = await client.request("GET", "/health")
        assert (answer.status, answer.body) == (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
        assert (await client.request("GET", "/health?exclude=NOSPACE")).status == 200
        assert (await client.request("GET", "/health?serializable=true&exclude=A,B")).status == 503
        assert served.node.asked[-1] == (True, frozenset({"A", "B"}))
        await client.close()


@pytest.mark.asyncio
async def test_livez_and_readyz() -> None:
    async with serving() as served:
        client = await served.connect()
        assert (await client.request("GET", "/livez")).body == b"ok\n"
        answer = await client.request("GET", "/readyz?verbose")
        assert answer.body == b"[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\nok\n"
        served.node.reason = "ALARM CORRUPT"
        answer = await client.request("GET", "/readyz")
        assert answer.status == 503
        assert b"[-]data_corruption failed: ALARM CORRUPT\n" in answer.body
        assert (await client.request("GET", "/livez")).status == 200
        assert (await client.request("GET", "/readyz?exclude=data_corruption")).status == 200
        assert (await client.request("GET", "/readyz/data_corruption")).status == 503
        assert (
            await client.request("GET", "/readyz/serializable_read?verbose")
        ).body == b"[+]serializable_read ok\nok\n"
        assert (await client.request("GET", "/readyz/nope")).status == 404
        assert (await client.request("POST", "/livez")).status == 405
        await client.close()


@pytest.mark.asyncio
async def test_version_and_v2_members() -> None:
    async with serving() as served:
        client = await served.connect()
        body = (await client.request("GET", "/version")).json
        assert (body["etcdserver"], body["etcdcluster"]) == ("3.5.1", "3.5.0")
        answer = await client.request("GET", "/v2/members")
        assert answer.json == {
            "members": [{"id": "ab", "name": "n1", "peerURLs": ["http://p:1"], "clientURLs": ["http://c:1"]}]
        }
        assert answer.headers["x-etcd-cluster-id"] == "cdf818194e3a8c32"
        assert (await client.request("POST", "/v2/members", b"{}")).status == 405
        await client.close()


@pytest.mark.asyncio
async def test_the_metrics_port_serves_metrics_and_health_only() -> None:
    async with serving(listen_metrics_urls=("http://127.0.0.1:0",)) as served:
        port = int(served.web.metrics_urls[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path, status in (("/metrics", b"200"), ("/health", b"200"), ("/version", b"404"), ("/v3/kv/range", b"404")):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split()[1] == status, path
            size = int(head.lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(size)
        writer.close()
        await writer.wait_closed()


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_stopping_lets_a_running_request_end_and_closes_idle_connections() -> None:
    async with serving() as served:
        idle, busy = await served.connect(), await served.connect()
        assert (await idle.request("GET", "/version")).status == 200
        await busy.send(b"POST /v3/kv/compaction HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        for _ in range(500):
            if served.rpcs.waiting:
                break
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(served.web.stop(5))
        assert await idle.ended() == b""
        conn, stream_id = served.rpcs.waiting[0]
        conn.respond(stream_id, b"")
        assert (await busy.answer()).status == 200
        await asyncio.wait_for(stopping, 5)
        with pytest.raises(ConnectionError):
            await served.connect()
        await idle.close()
        await busy.close()
