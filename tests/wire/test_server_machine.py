"""The server role, frame by frame, with a scripted client."""

from __future__ import annotations

from struct import pack, unpack

import pytest

from kvserver.errors import Code, KeyNotFoundError
from kvserver.wire.faults import UsageError
from kvserver.wire.frames import ErrorCode
from kvserver.wire.limits import WireLimits
from kvserver.wire.server_machine import RequestHead, Route, ServerConnection, UnaryMethod
from tests.wire.raw import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST,
    SETTINGS,
    WINDOW,
    Server,
    answer,
    frame,
    message,
    of,
    parse,
    settings,
)

# -- greeting ----------------------------------------------------------------------------------------------------------


def test_greeting_announces_limits_and_acknowledges_settings() -> None:
    server = Server(greet=False)
    first = server.out()
    assert [item.kind for item in first] == [SETTINGS, WINDOW]
    values = dict(unpack(">HI", first[0].payload[at : at + 6]) for at in range(0, len(first[0].payload), 6))
    assert values == {3: 1000, 4: 1024 * 1024, 6: 65536}
    assert [(item.kind, item.flags) for item in server.feed(PREFACE + settings())] == [(SETTINGS, 1)]
    assert server.machine.greeted


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"])
def test_wrong_protocol_is_a_connection_error(garbage: bytes) -> None:
    server = Server(greet=False)
    server.feed(garbage)
    assert server.machine.closing
    assert server.machine.fault is not None


def test_first_frame_must_be_settings() -> None:
    server = Server(greet=False)
    out = server.feed(PREFACE + frame(PING, 0, 0, bytes(8)))
    assert of(out, GOAWAY)[0].code == ErrorCode.PROTOCOL_ERROR


# -- unary -------------------------------------------------------------------------------------------------------------


def test_a_unary_call_is_answered_with_headers_data_trailers() -> None:
    server = Server()
    out = server.feed(server.request(1, body=b"hello"))
    assert [(item.kind, item.flags, item.stream_id) for item in out] == [(HEADERS, 4, 1), (DATA, 0, 1), (HEADERS, 5, 1)]
    assert out[0].headers == {":status": "200", "content-type": "application/grpc"}
    assert out[1].payload == message(b"hello")
    assert out[2].headers == {"grpc-status": "0"}
    assert server.machine.stream_count == 0


def test_answers_of_all_lengths_are_whole() -> None:
    server = Server()
    server.feed(frame(WINDOW, 0, 0, pack(">I", 1 << 20)))
    for number, size in enumerate((0, 1, 1023, 1024, 1025, 16379, 16380, 40000, 0, 1024)):
        data, headers = _large(server, 2 * number + 1, size)
        assert data == message(bytes(size))
        assert headers["grpc-status"] == "0"


def _large(server: Server, stream_id: int, size: int) -> tuple[bytes, dict[str, str]]:
    body = message(bytes(size))
    data = frame(HEADERS, 4, stream_id, server.block())
    for at in range(0, len(body), 16384):
        data += frame(DATA, 1 if at + 16384 >= len(body) else 0, stream_id, body[at : at + 16384])
    return answer(server.feed(data), stream_id)


def test_heads_are_shared_between_equal_blocks() -> None:
    server = Server()
    for stream_id in (1, 3, 5):
        server.feed(server.request(stream_id, "/test.Echo/Hold", x_meta="1"))
    heads = [head for _, _, head, _ in server.calls]
    assert heads[1] is heads[2]
    assert heads[0].path == b"/test.Echo/Hold"
    assert dict(heads[0].metadata) == {b"x-meta": b"1"}


def test_all_headers_first_then_all_data() -> None:
    server = Server()
    blocks = [frame(HEADERS, 4, stream_id, server.block()) for stream_id in (7, 9, 11)]
    data = [frame(DATA, 1, stream_id, message(b"%d" % stream_id)) for stream_id in (7, 9, 11)]
    out = server.feed(b"".join(blocks + data))
    assert [item.payload[5:] for item in of(out, DATA)] == [b"7", b"9", b"11"]


def test_input_split_at_every_byte_and_byte_by_byte() -> None:
    def stream(server: Server) -> bytes:
        return b"".join(
            (
                PREFACE + settings((4, 70000)),
                server.request(1, body=b"one"),
                frame(PING, 0, 0, b"12345678"),
                frame(HEADERS, 4, 3, server.block("/test.Echo/Chat")),
                frame(DATA, 0, 3, message(b"echo1") + message(b"echo2")[:4]),
                frame(DATA, 8, 3, b"\x02" + message(b"echo2")[4:] + b"\0\0"),
                frame(HEADERS, 0, 5, server.block()[:3]),
                frame(CONTINUATION, 4, 5, server.block()[3:]),
                frame(DATA, 1, 5, message(b"five")),
                frame(WINDOW, 0, 0, pack(">I", 1000)),
                server.request(7, "/test.Echo/None"),
                frame(DATA, 1, 3),
            )
        )

    whole = Server(greet=False)
    data = stream(whole)
    expected = whole.machine.data_to_send() + _fed(whole, [data])
    for at in range(1, len(data)):
        split = Server(greet=False)
        assert split.machine.data_to_send() + _fed(split, [data[:at], data[at:]]) == expected
    single = Server(greet=False)
    assert single.machine.data_to_send() + _fed(single, [bytes((byte,)) for byte in data]) == expected
    assert single.machine.fault is None


def _fed(server: Server, pieces: list[bytes]) -> bytes:
    out = b""
    for piece in pieces:
        server.machine.receive(piece)
        out += server.machine.data_to_send()
    return out


def test_padding_priority_and_unknown_frames_are_accepted() -> None:
    server = Server()
    block = server.block()
    out = server.feed(
        frame(PRIORITY, 0, 1, pack(">IB", 0, 16))
        + frame(HEADERS, 4 | 8 | 0x20, 1, b"\x03" + pack(">IB", 0, 16) + block + b"\0\0\0")
        + frame(0xAB, 0xFF, 1, b"who knows")
        + frame(DATA, 1 | 8, 1, b"\x05" + message(b"padded") + bytes(5))
    )
    assert answer(out, 1)[0] == message(b"padded")


def test_a_message_in_many_frames_and_an_empty_end() -> None:
    server = Server()
    body = message(b"abcdef")
    data = frame(HEADERS, 4, 1, server.block())
    data += b"".join(frame(DATA, 0, 1, body[at : at + 2]) for at in range(0, len(body), 2)) + frame(DATA, 1, 1)
    assert answer(server.feed(data), 1)[0] == body


def test_client_trailers_end_the_request() -> None:
    server = Server()
    data = frame(HEADERS, 4, 1, server.block()) + frame(DATA, 0, 1, message(b"x"))
    out = server.feed(data + frame(HEADERS, 5, 1, bytes(server.encoder.encode([("x-trailer", "1")]))))
    assert answer(out, 1)[0] == message(b"x")


def test_answers_may_come_later_and_in_any_order() -> None:
    server = Server()
    server.feed(server.request(1, "/test.Echo/Hold") + server.request(3, "/test.Echo/Hold"))
    (conn, first, _, _), (_, second, _, _) = server.calls
    conn.respond(second, b"b")
    conn.fail(first, 9, "no")
    out = server.out()
    assert answer(out, 3)[0] == message(b"b")
    assert answer(out, 1)[1]["grpc-status"] == "9"


def test_answers_of_gone_streams_do_nothing() -> None:
    server = Server()
    server.feed(server.request(1, "/test.Echo/Hold"))
    server.feed(frame(RST, 0, 1, pack(">I", 8)))
    conn, stream_id, _, _ = server.calls[0]
    conn.respond(stream_id, b"late")
    conn.fail(stream_id, 2, "late")
    conn.respond(77, b"never")
    assert server.out() == []


def test_a_call_is_answered_once() -> None:
    server = Server()
    server.feed(settings((4, 3)) + server.request(1, "/test.Echo/Hold"))
    conn, stream_id, _, _ = server.calls[0]
    for _ in range(2):
        conn.respond(stream_id, b"answer")
        conn.fail(stream_id, 2, "again")
    server.out()
    out = server.feed(frame(WINDOW, 0, 1, pack(">I", 100)))
    assert answer(out, 1) == (message(b"answer")[3:], {"grpc-status": "0"})
    assert server.routes.get(b"/test.Echo/Hold").ok == 1  # type: ignore[union-attr]


def test_errors_are_trailers_only_and_percent_encoded() -> None:
    server = Server()
    out = server.feed(server.request(1, "/test.Echo/Fail", "50% größer\n".encode()))
    assert len(of(out, HEADERS)) == 1
    assert out[0].end_stream
    assert out[0].headers == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": "50%25 gr%C3%B6%C3%9Fer%0A",
    }


def test_a_handler_that_raises_fails_its_call_only() -> None:
    server = Server()
    out = server.feed(server.request(1, "/test.Echo/Broken") + server.request(3))
    assert answer(out, 1)[1]["grpc-status"] == str(int(Code.INTERNAL))
    assert answer(out, 3)[1]["grpc-status"] == "0"
    assert [str(error) for error in server.errors] == ["broken handler"]


def test_a_handler_may_raise_protocol_errors() -> None:
    server = Server()

    def handler(conn: ServerConnection, stream_id: int, head: RequestHead, body: bytes) -> None:
        raise KeyNotFoundError

    server.routes._by_path[b"/test.Echo/Hold"] = Route(b"/test.Echo/Hold", UnaryMethod(handler))
    headers = answer(server.feed(server.request(1, "/test.Echo/Hold")), 1)[1]
    assert headers["grpc-status"] == "3"
    assert headers["grpc-message"] == "etcdserver: key not found"
    assert server.errors == []


# -- requests that cannot be served ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/test.Echo/Nope", "unknown method Nope for service test.Echo"),
        ("/other.Service/Echo", "unknown service other.Service"),
        ("/test.Echo", 'malformed method name: "/test.Echo"'),
        ("test.Echo/Echo", 'malformed method name: "test.Echo/Echo"'),
        ("//test.Echo/Echo", "unknown service /test.Echo"),
        ("/test.Echo/Echo/", "unknown service test.Echo/Echo"),
    ],
)
def test_unknown_paths_are_refused_in_grpc_gos_words(path: str, text: str) -> None:
    server = Server()
    headers = answer(server.feed(server.request(1, path)), 1)[1]
    assert headers["grpc-status"] == "12"
    assert headers["grpc-message"] == text


def test_an_answer_before_the_requests_end_resets_with_no_error_and_ignores_the_rest() -> None:
    server = Server()
    out = server.feed(frame(HEADERS, 4, 1, server.block("/test.Echo/Nope")))
    assert out[-1].kind == RST
    assert out[-1].code == ErrorCode.NO_ERROR
    assert server.feed(frame(DATA, 0, 1, b"more") + frame(DATA, 1, 1, b"end")) == []


def test_gzip_is_refused_with_what_is_accepted() -> None:
    server = Server()
    headers = answer(server.feed(server.request(1, grpc_encoding="gzip")), 1)[1]
    assert headers["grpc-status"] == "12"
    assert headers["grpc-message"] == 'grpc: Decompressor is not installed for grpc-encoding "gzip"'
    assert headers["grpc-accept-encoding"] == "identity"
    assert answer(server.feed(server.request(3, grpc_encoding="identity")), 3)[1]["grpc-status"] == "0"


def test_compressed_flag_without_encoding_is_refused() -> None:
    server = Server()
    out = server.feed(frame(HEADERS, 4, 1, server.block()) + frame(DATA, 1, 1, b"\x01\0\0\0\x01x"))
    assert answer(out, 1)[1]["grpc-status"] == "13"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "text/plain"}, "415"),
        ({"content-type": "application/grpcx"}, "415"),
    ],
)
def test_requests_that_are_not_grpc_get_an_http_status(changes: dict[str, str], status: str) -> None:
    server = Server()
    data = frame(HEADERS, 5, 1, server.block(extra=changes))
    assert answer(server.feed(data), 1)[1][":status"] == status


@pytest.mark.parametrize("extra", [{":path": ""}, {":unknown": "x"}, {"connection": "close"}, {"Upper": "x"}])
def test_malformed_headers_reset_the_stream(extra: dict[str, str]) -> None:
    server = Server()
    out = server.feed(frame(HEADERS, 5, 1, server.block(extra=extra)))
    assert of(out, RST)[0].code == ErrorCode.PROTOCOL_ERROR
    assert server.machine.fault is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([b""], "grpc: a unary call without a request message"),
        ([message(b"a")[:3]], "unexpected EOF"),
        ([message(b"a") + message(b"b")], "grpc: more than one request message for a unary call"),
    ],
)
def test_wrong_numbers_of_messages_fail_a_unary_call(data: list[bytes], text: str) -> None:
    server = Server()
    out = server.feed(frame(HEADERS, 4, 1, server.block()) + frame(DATA, 1, 1, data[0]))
    assert answer(out, 1)[1]["grpc-message"] == text
    assert server.machine._partial_bytes == 0


def test_large_messages_are_refused_in_grpc_gos_words_before_they_are_here() -> None:
    server = Server(WireLimits(message_bytes_max=1000))
    out = server.feed(frame(HEADERS, 4, 1, server.block()) + frame(DATA, 0, 1, message(bytes(2000))[:50]))
    headers = answer(out, 1)[1]
    assert headers["grpc-status"] == "8"
    assert headers["grpc-message"] == "grpc: received message larger than max (2000 vs. 1000)"
    assert server.machine.stream_count == 0
    assert server.feed(frame(DATA, 1, 1, bytes(100))) == []


# -- heads -------------------------------------------------------------------------------------------------------------


def test_timeouts_and_metadata() -> None:
    server = Server()
    server.feed(server.request(1, "/test.Echo/Hold", grpc_timeout="250m", token="t", x_raw_bin="AQI"))
    head = server.calls[0][2]
    assert head.timeout_seconds == 0.25
    assert head.metadata[b"token"] == b"t"
    assert head.metadata[b"x-raw-bin"] == b"\x01\x02"
    assert b"te" not in head.metadata
    assert len(head.metadata) == 2
    assert head.metadata.get(b"none") is None


def test_changing_timeouts_give_each_call_its_own() -> None:
    server = Server()
    for number in range(200):
        server.feed(server.request(2 * number + 1, "/test.Echo/Hold", grpc_timeout=f"{4_999_000 + number}u"))
    assert [round(head.timeout_seconds * 1e6) for _, _, head, _ in server.calls] == list(  # type: ignore[operator]
        range(4_999_000, 4_999_200)
    )


def test_repeated_metadata_is_joined() -> None:
    server = Server()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/test.Echo/Hold"), (":authority", "x")]
    fields += [("content-type", "application/grpc"), ("a", "1"), ("a", "2")]
    server.feed(frame(HEADERS, 4, 1, bytes(server.encoder.encode(fields))) + frame(DATA, 1, 1, message(b"")))
    assert server.calls[0][2].metadata[b"a"] == b"1,2"


def test_a_malformed_timeout_fails_the_call() -> None:
    server = Server()
    for stream_id in (1, 3):
        headers = answer(server.feed(server.request(stream_id, grpc_timeout="soon")), stream_id)[1]
        assert headers["grpc-status"] == "13"
        assert "malformed grpc-timeout" in headers["grpc-message"]


# -- streams -----------------------------------------------------------------------------------------------------------


def _open_chat(server: Server, stream_id: int = 1) -> None:
    server.feed(frame(HEADERS, 4, stream_id, server.block("/test.Echo/Chat")))


def test_a_stream_echoes_and_ends() -> None:
    server = Server()
    _open_chat(server)
    out = server.feed(frame(DATA, 0, 1, message(b"echo 1") + message(b"silent")))
    assert [item.kind for item in out] == [HEADERS, DATA]
    out = server.feed(frame(DATA, 1, 1, message(b"echo 2")))
    assert [item.kind for item in out] == [DATA, HEADERS]
    assert out[-1].headers == {"grpc-status": "0"}
    assert server.chats[0].events == [b"echo 1", b"silent", b"echo 2", "half_close"]
    assert server.machine.stream_count == 0


def test_a_server_that_finishes_first_resets_with_no_error() -> None:
    server = Server()
    _open_chat(server)
    server.chats[0].stream.finish(7, "go away")
    out = server.out()
    assert [item.kind for item in out] == [HEADERS, RST]
    assert out[0].headers["grpc-status"] == "7"
    assert out[0].headers[":status"] == "200"
    assert server.feed(frame(DATA, 1, 1, message(b"late"))) == []
    assert server.chats[0].events == []
    assert server.chats[0].stream.closed


def test_send_raw_takes_framed_messages_and_headers_may_go_early() -> None:
    server = Server()
    _open_chat(server)
    stream = server.chats[0].stream
    stream.send_headers()
    assert [item.kind for item in server.out()] == [HEADERS]
    stream.send_raw(message(b"a") + message(b"b"))
    assert answer(server.out(), 1)[0] == message(b"a") + message(b"b")


def test_reset_and_lost_connections_close_streams() -> None:
    server = Server()
    _open_chat(server, 1)
    _open_chat(server, 3)
    server.feed(frame(RST, 0, 1, pack(">I", 8)))
    assert server.chats[0].events == ["closed"]
    server.machine.connection_failed("gone")
    assert server.chats[1].events == ["closed"]
    server.chats[1].stream.send(b"nothing")
    server.chats[1].stream.finish()
    assert server.out() == []


def test_a_stream_handler_that_raises_ends_its_stream_only() -> None:
    server = Server()
    _open_chat(server)
    out = server.feed(frame(DATA, 0, 1, message(b"raise") + message(b"echo")))
    assert answer(out, 1)[1]["grpc-status"] == "13"
    assert server.chats[0].events == [b"raise"]
    assert answer(server.feed(server.request(3)), 3)[1]["grpc-status"] == "0"


def test_respond_is_not_for_streams() -> None:
    server = Server()
    _open_chat(server)
    with pytest.raises(UsageError):
        server.machine.respond(1, b"x")


def test_a_bad_message_ends_the_stream_and_tells_the_handler() -> None:
    server = Server()
    _open_chat(server)
    out = server.feed(frame(DATA, 0, 1, message(b"fine") + b"\x01\0\0\0\0"))
    assert answer(out, 1)[1]["grpc-status"] == "13"
    assert server.chats[0].events == [b"fine", "closed"]


# -- flow control ------------------------------------------------------------------------------------------------------


def test_answers_wait_for_the_streams_window() -> None:
    server = Server()
    server.feed(settings((4, 10)))
    out = server.feed(server.request(1, body=b"x" * 30))
    assert [(item.kind, len(item.payload)) for item in out[:2]] == [(HEADERS, len(out[0].payload)), (DATA, 10)]
    assert len(out) == 2
    out = server.feed(frame(WINDOW, 0, 1, pack(">I", 20)))
    assert [(item.kind, len(item.payload)) for item in out] == [(DATA, 20)]
    out = server.feed(frame(WINDOW, 0, 1, pack(">I", 5)))
    assert [item.kind for item in out] == [DATA, HEADERS]
    assert out[-1].headers == {"grpc-status": "0"}


def test_answers_wait_for_the_connections_window_and_share_it() -> None:
    server = Server()
    server.feed(settings((4, 1 << 20)))
    bodies = {stream_id: bytes([stream_id]) * 60000 for stream_id in (1, 3)}
    out = []
    for stream_id, body in bodies.items():
        out += server.feed(server.request(stream_id, "/test.Echo/Hold"))
        server.machine.respond(stream_id, body)
    out += server.out()
    assert sum(len(item.payload) for item in of(out, DATA)) == 65535
    assert {item.stream_id for item in of(out, DATA)} == {1, 3}
    out += server.feed(frame(WINDOW, 0, 0, pack(">I", 1 << 20)))
    for stream_id, body in bodies.items():
        assert answer(out, stream_id)[0] == message(body)
    assert max(len(item.payload) for item in of(out, DATA)) == 16384


def test_small_answers_pass_streams_that_wait_for_their_own_window() -> None:
    server = Server()
    server.feed(settings((4, 100)))
    server.feed(server.request(1, body=bytes(1000)))
    assert answer(server.feed(server.request(3, body=b"quick")), 3)[1]["grpc-status"] == "0"


def test_initial_window_changes_apply_to_open_streams_and_may_go_below_zero() -> None:
    server = Server()
    server.feed(settings((4, 100)))
    out = server.feed(server.request(1, body=bytes(395)))
    assert len(of(out, DATA)[0].payload) == 100
    assert of(server.feed(settings((4, 50))), DATA) == []  # the stream's window is -50 now
    assert of(server.feed(frame(WINDOW, 0, 1, pack(">I", 50))), DATA) == []
    assert len(of(server.feed(frame(WINDOW, 0, 1, pack(">I", 7))), DATA)[0].payload) == 7
    out = server.feed(settings((4, 5000)))
    assert len(of(out, DATA)[0].payload) == 293
    assert out[-2].kind == HEADERS or out[-1].kind == HEADERS


def test_a_window_update_before_the_answer_counts() -> None:
    server = Server()
    server.feed(settings((4, 10)) + server.request(1, "/test.Echo/Hold"))
    server.feed(frame(WINDOW, 0, 1, pack(">I", 90)))
    server.machine.respond(1, bytes(95))
    assert answer(server.out(), 1)[1]["grpc-status"] == "0"


def test_a_window_update_before_the_requests_end_counts() -> None:
    server = Server()
    server.feed(settings((4, 10)) + frame(HEADERS, 4, 1, server.block()))
    server.feed(frame(WINDOW, 0, 1, pack(">I", 90)))
    assert answer(server.feed(frame(DATA, 1, 1, message(bytes(95)))), 1)[0] == message(bytes(95))


def test_a_larger_peer_frame_size_is_used() -> None:
    server = Server()
    server.feed(settings((4, 1 << 20), (5, 50000)))
    out = server.feed(server.request(1, "/test.Echo/Hold"))
    server.machine.respond(1, bytes(49000))
    out = server.out()
    assert [len(item.payload) for item in of(out, DATA)] == [49005]


def test_received_data_is_given_back_in_large_steps() -> None:
    server = Server(WireLimits(connection_window_bytes=100_000, stream_window_bytes=50_000, message_bytes_max=1 << 20))
    body = message(bytes(300_000))
    server.feed(frame(HEADERS, 4, 1, server.block()))
    connection, stream, out = 100_000, 50_000, []
    at = 0
    while at < len(body):
        size = min(16384, connection, stream, len(body) - at)
        assert size > 0
        frames = server.feed(frame(DATA, 1 if at + size == len(body) else 0, 1, body[at : at + size]))
        connection -= size
        stream -= size
        at += size
        for item in of(frames, WINDOW):
            increment = unpack(">I", item.payload)[0]
            if item.stream_id:
                stream += increment
            else:
                connection += increment
        assert connection <= 100_000
        assert stream <= 50_000
        out += frames
    assert 3 <= len(of(out, WINDOW, 0)) <= 8


def test_streams_report_what_waits_and_when_it_drained() -> None:
    server = Server(WireLimits(high_water_bytes=1000, low_water_bytes=100))
    server.feed(settings((4, 10)))
    _open_chat(server)
    stream = server.chats[0].stream
    for _ in range(4):
        stream.send(bytes(495))
    server.out()
    assert stream.buffered_bytes == 1990
    server.feed(frame(WINDOW, 0, 1, pack(">I", 1500)))
    assert stream.buffered_bytes == 490
    assert server.chats[0].events == []
    server.feed(frame(WINDOW, 0, 1, pack(">I", 1500)))
    assert stream.buffered_bytes == 0
    assert server.chats[0].events == ["drained"]
    assert server.machine._queued_bytes == 0


def test_a_paused_transport_keeps_data_in_the_streams() -> None:
    server = Server(WireLimits(high_water_bytes=100, low_water_bytes=10))
    _open_chat(server)
    server.feed(server.request(3, "/test.Echo/Hold"))
    server.machine.pause()
    stream = server.chats[0].stream
    stream.send(bytes(200))
    server.machine.respond(3, b"held")
    out = server.out()
    assert of(out, DATA) == []
    assert stream.buffered_bytes == 205
    server.machine.resume()
    out = server.out()
    assert answer(out, 1)[0] == message(bytes(200))
    assert answer(out, 3)[0] == message(b"held")
    assert server.chats[0].events == ["drained"]


def test_finish_comes_after_what_waits() -> None:
    server = Server()
    server.feed(settings((4, 10)))
    _open_chat(server)
    server.chats[0].stream.send(bytes(20))
    server.chats[0].stream.finish(3, "end")
    assert of(server.out(), RST) == []
    out = server.feed(frame(WINDOW, 0, 1, pack(">I", 100)))
    assert [item.kind for item in out] == [DATA, HEADERS, RST]
    assert out[1].headers["grpc-status"] == "3"


def test_reset_drops_what_waits() -> None:
    server = Server()
    server.feed(settings((4, 0)))
    _open_chat(server)
    server.chats[0].stream.send(bytes(1000))
    server.feed(server.request(3, body=bytes(1000)))
    assert server.machine._queued_bytes == 2010
    server.feed(frame(RST, 0, 1, pack(">I", 8)) + frame(RST, 0, 3, pack(">I", 8)))
    assert server.machine._queued_bytes == 0
    assert server.machine._ready == {}


# -- connection --------------------------------------------------------------------------------------------------------


def test_pings_are_answered() -> None:
    server = Server()
    out = server.feed(frame(PING, 0, 0, b"12345678"))
    assert [(item.kind, item.flags, item.payload) for item in out] == [(PING, 1, b"12345678")]


def test_draining_says_goaway_twice_and_serves_what_is_under_way() -> None:
    server = Server()
    server.feed(server.request(1, "/test.Echo/Hold"))
    server.machine.drain()
    out = server.out()
    assert [item.kind for item in out] == [GOAWAY, PING]
    assert unpack(">I", out[0].payload[:4])[0] == 0x7FFFFFFF
    server.feed(server.request(3, "/test.Echo/Hold"))  # crossed the first GOAWAY: still served
    assert len(server.calls) == 2
    out = server.feed(frame(PING, 1, 0, out[1].payload))
    assert unpack(">I", of(out, GOAWAY)[0].payload[:4])[0] == 3
    server.feed(server.request(5, "/test.Echo/Hold"))  # after the final one: ignored
    assert len(server.calls) == 2
    assert not server.machine.drained
    server.machine.respond(1, b"")
    server.machine.respond(3, b"")
    assert answer(server.out(), 3)[1]["grpc-status"] == "0"
    assert server.machine.drained


def test_draining_does_not_wait_for_a_peer_that_ignores_pings() -> None:
    server = Server()
    server.machine.drain()
    server.out()
    server.clock.now += 2
    assert server.machine.on_tick(server.clock.now) is None
    assert [item.kind for item in server.out()] == [GOAWAY]
    assert server.machine.drained


def test_a_silent_connection_is_dropped_after_the_handshake_deadline() -> None:
    server = Server(greet=False)
    server.feed(PREFACE)
    assert server.machine.on_tick(server.clock.now + 9) is None
    assert server.machine.on_tick(server.clock.now + 11) is not None


def test_keepalive_pings_an_idle_client_and_drops_a_dead_one() -> None:
    server = Server()
    tick = server.machine.on_tick
    assert tick(server.clock.now) is None
    assert tick(server.clock.now + 7201) is None
    out = server.out()
    assert [item.kind for item in out] == [PING]
    server.feed(frame(PING, 1, 0, out[0].payload))
    assert tick(server.clock.now + 7230) is None
    assert tick(server.clock.now + 7230 + 7201) is None
    assert [item.kind for item in server.out()] == [PING]
    assert tick(server.clock.now + 7230 + 7201 + 21) == "keep-alive ping not answered"


def test_counters_follow_the_calls() -> None:
    server = Server()
    server.feed(server.request(1) + server.request(3, "/test.Echo/Fail") + server.request(5, "/test.Echo/Nope"))
    server.feed(server.request(7, "/test.Echo/Hold") + frame(RST, 0, 7, pack(">I", 8)))
    _open_chat(server, 9)
    server.feed(frame(DATA, 1, 9, message(b"echo")))
    counts = {route.path: (route.ok, route.failed) for route in server.routes}
    assert counts[b"/test.Echo/Echo"] == (1, {})
    assert counts[b"/test.Echo/Fail"] == (0, {5: 1})
    assert counts[b"/test.Echo/Hold"] == (0, {1: 1})
    assert counts[b"/test.Echo/Chat"] == (1, {})
    assert counts[b"unknown/unknown"] == (0, {12: 1})


def test_output_wakes_the_shell_once() -> None:
    server = Server()
    wakes: list[int] = []
    server.machine._schedule = lambda: wakes.append(1)  # type: ignore[method-assign]
    server.machine._dirty = True
    server.machine.receive(b"".join(server.request(stream_id, "/test.Echo/Hold") for stream_id in range(1, 200, 2)))
    server.machine._dirty = False
    for _, stream_id, _, _ in server.calls:
        server.machine.respond(stream_id, b"x")
    assert wakes == [1]
    assert len(of(parse(server.machine.data_to_send()), DATA)) == 100
