"""The client role, frame by frame, with a scripted server."""

from __future__ import annotations

from struct import pack, unpack

import pytest
from hpack import Decoder, Encoder

from kvserver.errors import Code
from kvserver.wire.client_machine import CallStream, ClientConnection
from kvserver.wire.faults import GrpcError, UsageError
from kvserver.wire.frames import ErrorCode
from kvserver.wire.limits import WireLimits
from tests.wire.raw import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    FakeClock,
    Frame,
    frame,
    message,
    of,
    parse,
    settings,
)


class Outcome:
    """A completion that records."""

    def __init__(self, deadline: float | None = None) -> None:
        self.message: bytes | None = None
        self.deadline = deadline
        self.stream_id = 0
        self.result: bytes | None = None
        self.error: GrpcError | None = None

    def done(self) -> bool:
        return self.result is not None or self.error is not None

    def set_result(self, result: bytes) -> None:
        assert not self.done()
        self.result = result

    def set_exception(self, error: GrpcError) -> None:
        assert not self.done()
        self.error = error


class Recorder(CallStream):
    """A streaming call that records."""

    def __init__(self, machine: ClientConnection) -> None:
        super().__init__(machine)
        self.messages: list[bytes] = []
        self.ends: list[GrpcError | None] = []
        self.unread = 0

    def on_message(self, body: bytes) -> None:
        self.messages.append(body)
        self.unread += len(body) + 5

    def on_end(self, error: GrpcError | None) -> None:
        self.ends.append(error)

    def unread_bytes(self) -> int:
        return self.unread


class Client:
    """A client machine with a scripted server behind it."""

    def __init__(self, limits: WireLimits | None = None, greeting: bytes | None = None) -> None:
        self.clock = FakeClock()
        self.machine = ClientConnection(
            "test:1",
            scheme="http",
            user_agent="tests",
            limits=limits or WireLimits(),
            clock=self.clock,
            completion_type=Outcome,
        )
        self.encoder = Encoder()
        self.decoder = Decoder()
        first = self.machine.data_to_send()
        assert first.startswith(PREFACE)
        self.greeting = parse(first[24:])
        self.feed(settings((3, 1000)) if greeting is None else greeting)

    def feed(self, data: bytes) -> list[Frame]:
        self.machine.receive(data)
        return self.out()

    def out(self) -> list[Frame]:
        return parse(self.machine.data_to_send(), self.decoder)

    def unary(self, body: bytes = b"hi", path: bytes = b"/a.B/C", timeout: float | None = None) -> Outcome:
        outcome = Outcome(None if timeout is None else self.clock.now + timeout)
        self.machine.start_unary(outcome, path, body, timeout)
        return outcome

    def headers(self, stream_id: int, *fields: tuple[str, str], end: bool = False) -> bytes:
        return frame(HEADERS, 5 if end else 4, stream_id, bytes(self.encoder.encode(list(fields))))

    def initial(self, stream_id: int) -> bytes:
        return self.headers(stream_id, (":status", "200"), ("content-type", "application/grpc"))

    def trailers(self, stream_id: int, status: int = 0, text: str = "") -> bytes:
        fields = [("grpc-status", str(status))]
        return self.headers(stream_id, *fields, *([("grpc-message", text)] if text else []), end=True)

    def answer(self, stream_id: int, body: bytes) -> bytes:
        return self.initial(stream_id) + frame(DATA, 0, stream_id, message(body)) + self.trailers(stream_id)


def test_a_unary_call_goes_out_as_headers_and_data() -> None:
    client = Client()
    assert [item.kind for item in client.greeting] == [SETTINGS, WINDOW]
    client.unary(b"body", timeout=5.0)
    out = client.out()
    assert [(item.kind, item.flags, item.stream_id) for item in out] == [(HEADERS, 4, 1), (DATA, 1, 1)]
    assert out[0].headers == {
        ":method": "POST",
        ":path": "/a.B/C",
        ":scheme": "http",
        ":authority": "test:1",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "tests",
        "grpc-timeout": "5S",
    }
    assert list(out[0].headers)[:4] == [":method", ":path", ":scheme", ":authority"]
    assert out[1].payload == message(b"body")


def test_later_calls_are_short_and_still_read_right() -> None:
    client = Client()
    sizes = []
    for number in range(5):
        client.unary(path=b"/a.B/C")
        client.unary(path=b"/a.B/D")
        out = of(client.out(), HEADERS)
        assert [item.headers[":path"] for item in out] == ["/a.B/C", "/a.B/D"]
        sizes.append(len(out[0].payload))
        del number
    assert sizes[-1] < 12 < sizes[0]


def test_answers_complete_calls_in_any_order() -> None:
    client = Client()
    calls = [client.unary() for _ in range(3)]
    client.out()
    for _ in range(2):  # the second round's blocks are known
        client.feed(client.answer(calls[2].stream_id, b"c") + client.answer(calls[0].stream_id, b"a"))
        client.feed(client.answer(calls[1].stream_id, b"b"))
        assert [call.result for call in calls] == [b"a", b"b", b"c"]
        calls = [client.unary() for _ in range(3)]
        client.out()


def test_answers_split_at_every_byte() -> None:
    def scripted(client: Client) -> tuple[bytes, list[Outcome]]:
        calls = [client.unary() for _ in range(5)]
        client.out()
        data = client.answer(1, b"one") + client.answer(3, bytes(70))
        data += (
            client.initial(5)
            + frame(DATA, 0, 5, message(b"five")[:3])
            + frame(DATA, 8, 5, b"\1" + message(b"five")[3:] + b"\0")
        )
        data += client.trailers(5) + client.headers(7, (":status", "200"), ("grpc-status", "5"), end=True)
        block = bytes(client.encoder.encode([(":status", "200"), ("content-type", "application/grpc")]))
        data += frame(HEADERS, 0, 9, block[:1]) + frame(CONTINUATION, 4, 9, block[1:])
        data += frame(DATA, 0, 9, message(b"")) + client.trailers(9)
        return data, calls

    data, _ = scripted(Client())
    for at in range(len(data) + 1):
        client = Client()
        _, calls = scripted(client)
        pieces = [data[:at], data[at:]] if at < len(data) else [bytes((byte,)) for byte in data]
        for piece in pieces:
            client.feed(piece)
        assert [call.result for call in calls] == [b"one", bytes(70), b"five", None, b""]
        assert calls[3].error is not None
        assert calls[3].error.code == 5
        assert client.machine.stream_count == 0


def test_errors_carry_code_and_text() -> None:
    client = Client()
    calls = [client.unary() for _ in range(4)]
    client.feed(client.initial(1) + client.trailers(1, 9, "50%25 %C3%A4"))
    client.feed(client.headers(3, (":status", "200"), ("grpc-status", "14"), ("grpc-message", "x"), end=True))
    client.feed(client.headers(5, (":status", "503"), ("content-type", "text/html"), end=True))
    client.feed(client.initial(7) + frame(DATA, 1, 7, message(b"x")))
    errors = [(call.error.code, call.error.message) for call in calls if call.error]
    assert errors[:2] == [(9, "50% ä"), (14, "x")]
    assert errors[2][0] == Code.UNAVAILABLE
    assert errors[3] == (Code.INTERNAL, "the server ended the stream without a status")


@pytest.mark.parametrize(
    ("code", "status", "sent"),
    [
        (ErrorCode.REFUSED_STREAM, Code.UNAVAILABLE, False),
        (ErrorCode.CANCEL, Code.CANCELLED, True),
        (ErrorCode.ENHANCE_YOUR_CALM, Code.RESOURCE_EXHAUSTED, True),
        (ErrorCode.INTERNAL_ERROR, Code.INTERNAL, True),
    ],
)
def test_resets_become_statuses(code: ErrorCode, status: Code, sent: bool) -> None:
    client = Client()
    call = client.unary()
    client.feed(frame(RST, 0, 1, pack(">I", code)))
    assert call.error is not None
    assert (call.error.code, call.error.sent) == (status, sent)


def test_goaway_fails_what_the_server_did_not_see_and_keeps_the_rest() -> None:
    client = Client()
    calls = [client.unary() for _ in range(3)]
    client.feed(frame(GOAWAY, 0, 0, pack(">II", 0x7FFFFFFF, 0)))
    assert not any(call.done() for call in calls)
    late = client.unary()
    assert late.error is not None
    assert not late.error.sent
    client.feed(frame(GOAWAY, 0, 0, pack(">II", 3, 0) + b"bye"))
    assert calls[2].error is not None
    assert not calls[2].error.sent
    assert "bye" in calls[2].error.message
    client.feed(client.answer(1, b"a") + client.answer(3, b"b"))
    assert [call.result for call in calls[:2]] == [b"a", b"b"]
    assert client.machine.draining


def test_a_lost_connection_fails_calls_as_sent() -> None:
    client = Client()
    call = client.unary()
    stream = Recorder(client.machine)
    client.machine.start_stream(stream, b"/a.B/S")
    client.machine.connection_failed("gone")
    assert call.error is not None
    assert (call.error.code, call.error.sent) == (Code.UNAVAILABLE, True)
    assert stream.ends[0] is not None
    late = client.unary()
    assert late.error is not None
    assert not late.error.sent


def test_calls_above_the_servers_limit_wait_their_turn() -> None:
    client = Client(greeting=settings((3, 2)))
    calls = [client.unary(b"%d" % number) for number in range(5)]
    stream = Recorder(client.machine)
    client.machine.start_stream(stream, b"/a.B/S")
    stream.send_framed(message(b"early"))
    stream.end_sending()
    assert len(of(client.out(), HEADERS)) == 2
    out = client.feed(client.answer(1, b"") + client.answer(3, b""))
    assert [item.payload[5:] for item in of(out, DATA)] == [b"2", b"3"]
    client.machine.cancel_unary(calls[4])
    out = client.feed(client.answer(5, b"") + client.answer(7, b""))
    assert [(item.payload[5:], item.flags) for item in of(out, DATA)] == [(b"early", 0), (b"", 1)]
    assert calls[4].result is None
    client.feed(client.answer(9, b"end"))
    assert stream.messages == [b"end"]
    assert stream.ends == [None]


def test_cancelling_resets() -> None:
    client = Client()
    call = client.unary()
    client.out()
    client.machine.cancel_unary(call)
    assert [(item.kind, item.code) for item in client.out()] == [(RST, ErrorCode.CANCEL)]
    assert client.feed(client.answer(1, b"late")) == []
    assert not call.done()
    stream = Recorder(client.machine)
    client.machine.start_stream(stream, b"/a.B/S")
    client.out()
    client.machine.cancel_stream(stream, GrpcError(Code.CANCELLED, "x"))
    assert of(client.out(), RST)
    assert len(stream.ends) == 1


def test_deadlines() -> None:
    client = Client(greeting=settings((3, 1)))
    first = client.unary(timeout=5)
    waiting = client.unary(timeout=3)
    forever = client.unary()
    client.out()
    start = client.clock.now
    assert client.machine.expire(start) == start + 3
    assert client.machine.expire(start + 3) == start + 5
    assert waiting.error is not None
    assert (waiting.error.code, waiting.error.sent) == (Code.DEADLINE_EXCEEDED, False)
    assert client.machine.expire(start + 5) is None
    assert first.error is not None
    assert first.error.code == Code.DEADLINE_EXCEEDED
    out = client.out()
    assert of(out, RST)[0].code == ErrorCode.CANCEL
    assert of(out, HEADERS)[0].stream_id == 3
    assert not forever.done()


def test_large_requests_wait_for_windows() -> None:
    client = Client(greeting=settings((4, 100)))
    call = client.unary(bytes(995))
    out = client.out()
    assert sum(len(item.payload) for item in of(out, DATA)) == 100
    out = client.feed(frame(WINDOW, 0, 1, pack(">I", 400)))
    assert sum(len(item.payload) for item in of(out, DATA)) == 400
    out = client.feed(settings((4, 700)))
    assert sum(len(item.payload) for item in of(out, DATA)) == 500
    assert of(out, DATA)[-1].end_stream
    client.feed(client.answer(1, b"ok"))
    assert call.result == b"ok"


def test_an_early_answer_stops_the_rest_of_the_request() -> None:
    client = Client(greeting=settings((4, 100)))
    call = client.unary(bytes(1000))
    client.out()
    out = client.feed(client.headers(1, (":status", "200"), ("grpc-status", "8"), end=True))
    assert of(out, RST)
    assert call.error is not None
    assert call.error.code == 8
    assert client.machine._queued_bytes == 0


def test_a_slow_reader_stops_the_server_and_only_its_stream() -> None:
    client = Client(WireLimits(stream_window_bytes=1000, connection_window_bytes=10_000))
    stream = Recorder(client.machine)
    client.machine.start_stream(stream, b"/a.B/S")
    client.out()
    out = client.feed(
        client.initial(1) + frame(DATA, 0, 1, message(bytes(495))) + frame(DATA, 0, 1, message(bytes(495)))
    )
    assert of(out, WINDOW, 1) == []
    stream.unread = 0
    stream.grant()
    assert unpack(">I", of(client.out(), WINDOW, 1)[0].payload) == (1000,)
    out = client.feed(frame(DATA, 0, 1, bytes(1001)))
    assert of(out, RST, 1)[0].code == ErrorCode.CANCEL
    assert stream.ends[0] is not None


def test_messages_larger_than_the_window_do_not_stall() -> None:
    client = Client(WireLimits(stream_window_bytes=1000))
    stream = Recorder(client.machine)
    client.machine.start_stream(stream, b"/a.B/S")
    client.feed(client.initial(1))
    body = message(bytes(5000))
    window = 1000
    for at in range(0, len(body), 250):
        piece = body[at : at + 250]
        window -= len(piece)
        assert window >= 0
        for item in of(client.feed(frame(DATA, 0, 1, piece)), WINDOW, 1):
            window += unpack(">I", item.payload)[0]
    assert stream.messages == [bytes(5000)]


def test_streams_both_ways() -> None:
    client = Client()
    stream = Recorder(client.machine)
    client.machine.start_stream(stream, b"/a.B/S", None, ((b"x-bin", b"\1\2"), (b"token", b"t")))
    stream.send_framed(message(b"a"))
    out = client.out()
    assert out[0].headers["x-bin"] == "AQI"
    assert out[0].headers["token"] == "t"
    client.feed(client.initial(1) + frame(DATA, 0, 1, message(b"1") + message(b"2")))
    stream.end_sending()
    stream.end_sending()
    assert [(item.kind, item.flags) for item in client.out()] == [(DATA, 1)]
    with pytest.raises(UsageError):
        stream.send_framed(message(b"late"))
    client.feed(client.trailers(1))
    assert stream.messages == [b"1", b"2"]
    assert stream.ends == [None]


def test_secrets_are_never_indexed() -> None:
    client = Client()
    stream = Recorder(client.machine)
    client.machine.start_stream(stream, b"/a.B/S", None, ((b"token", b"secret-value"),))
    assert all(value != b"secret-value" for _, value in client.machine._encoder.header_table.dynamic_entries)


def test_a_smaller_header_table_is_obeyed() -> None:
    client = Client(greeting=settings((1, 0), (3, 100)))
    client.decoder.max_allowed_table_size = 0
    for _ in range(3):
        client.unary()
        assert of(client.out(), HEADERS)[0].headers[":path"] == "/a.B/C"


def test_metadata_names_are_checked() -> None:
    client = Client()
    for name in (b"Upper", b":path", b"grpc-timeout"):
        with pytest.raises(UsageError):
            client.machine.start_unary(Outcome(), b"/a.B/C", b"", None, ((name, b"x"),))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(DATA, 0, 99, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 4, 2, b"\x88"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (frame(PUSH, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 0, 1, bytes(16385)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(RST, 0, 9, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(PING, 0, 0, bytes(8)) * 1001, ErrorCode.ENHANCE_YOUR_CALM),
        (settings() * 101, ErrorCode.ENHANCE_YOUR_CALM),
    ],
)
def test_a_server_that_breaks_the_rules_ends_the_connection(data: bytes, code: ErrorCode) -> None:
    client = Client()
    call = client.unary()
    client.out()
    assert of(client.feed(data), GOAWAY)[0].code == code
    assert call.error is not None
    assert call.error.code == Code.UNAVAILABLE
    assert client.machine.closing


@pytest.mark.parametrize(
    "extra",
    [
        lambda client: client.initial(1) + client.initial(1) + frame(DATA, 0, 1, b"\0"),
        lambda client: client.initial(1) + frame(DATA, 0, 1, message(b"a") + message(b"b")),
        lambda client: client.initial(1) + client.trailers(1),
        lambda client: client.headers(1, ("grpc-status", "0")),
        lambda client: client.initial(1) + frame(DATA, 0, 1, b"\x01\0\0\0\0"),
        lambda client: client.initial(1) + frame(DATA, 0, 1, b"\0\0\0\0\x09abc") + client.trailers(1),
        lambda client: client.headers(
            1, (":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")
        ),
        lambda client: client.headers(1, (":status", "200"), ("content-type", "text/html")),
        lambda client: client.headers(1, (":status", "200"), ("content-type", "application/grpc"), end=True),
    ],
)
def test_odd_answers_fail_their_call_only(extra: object) -> None:
    client = Client()
    call, other = client.unary(), client.unary()
    client.out()
    client.feed(extra(client))  # type: ignore[operator]
    if not call.done():
        client.feed(client.trailers(1))
    assert call.error is not None
    assert not client.machine.closing
    client.feed(client.answer(3, b"fine"))
    assert other.result == b"fine"


def test_informational_headers_are_skipped() -> None:
    client = Client()
    call = client.unary()
    client.feed(client.headers(1, (":status", "103"), ("link", "x")) + client.answer(1, b"x"))
    assert call.result == b"x"


def test_keepalive_pings_while_calls_are_open() -> None:
    client = Client()
    tick = client.machine.on_tick
    assert tick(client.clock.now, 5.0, 2.0) is None
    assert tick(client.clock.now + 60, 5.0, 2.0) is None
    assert client.out() == []  # nothing open
    client.unary()
    client.out()
    assert tick(client.clock.now + 70, 5.0, 2.0) is None
    assert [item.kind for item in client.out()] == [PING]
    assert tick(client.clock.now + 73, 5.0, 2.0) == "keep-alive ping not answered"
