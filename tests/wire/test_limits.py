"""Each bound of a connection, reached with raw frames."""

from __future__ import annotations

from struct import pack

import pytest

from kvserver.wire.frames import ErrorCode
from kvserver.wire.limits import TokenBucket, WireLimits
from tests.wire.raw import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    Frame,
    Server,
    answer,
    frame,
    message,
    of,
    settings,
)


def _goaway(out: list[Frame]) -> tuple[int, bytes]:
    item = of(out, GOAWAY)[-1]
    return item.code, item.payload[8:]


def test_token_buckets_refill_with_time() -> None:
    bucket = TokenBucket(2, 1.0)
    assert [bucket.take(0), bucket.take(0), bucket.take(0)] == [True, True, False]
    assert [bucket.take(1.5), bucket.take(1.5)] == [True, False]
    assert [bucket.take(100), bucket.take(100), bucket.take(100)] == [True, True, False]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 0, 99, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 8, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 8, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 4, 0, b"\x82"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 4, 2, b"\x83"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 4 | 0x20, 1, b"\0\0"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(HEADERS, 4 | 0x20, 1, b"\0\0\0\x01\0\x83"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 4 | 8, 1, b"\xff\x83"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (frame(HEADERS, 4, 1, b"\xbf"), ErrorCode.COMPRESSION_ERROR),
        (frame(HEADERS, 4, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
        (frame(HEADERS, 4, 1, b"\x83\x20"), ErrorCode.COMPRESSION_ERROR),
        (frame(HEADERS, 4, 1, b"\x3f\xff\xff\x01\x83"), ErrorCode.COMPRESSION_ERROR),
        (frame(PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        (frame(RST, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(RST, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(RST, 0, 99, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (settings((2, 2)), ErrorCode.PROTOCOL_ERROR),
        (settings((4, 0x80000000)), ErrorCode.FLOW_CONTROL_ERROR),
        (settings((5, 16383)), ErrorCode.PROTOCOL_ERROR),
        (settings((5, 1 << 24)), ErrorCode.PROTOCOL_ERROR),
        (frame(PUSH, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(WINDOW, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(WINDOW, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(WINDOW, 0, 99, pack(">I", 1)), ErrorCode.PROTOCOL_ERROR),
        (frame(WINDOW, 0, 0, pack(">I", 0x7FFFFFFF)), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(CONTINUATION, 4, 1, b"\x83"), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, b"\x83") + frame(PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1, b"\x83") + frame(CONTINUATION, 4, 3, b"\x86"), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 0, 1, bytes(16385)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(HEADERS, 4, 1, bytes(20000)), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_broken_rules_end_the_connection_with_their_code(data: bytes, code: ErrorCode) -> None:
    server = Server()
    assert _goaway(server.feed(data))[0] == code
    assert server.machine.closing
    assert server.feed(server.request(1)) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(WINDOW, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(WINDOW, 0, 1, pack(">I", 0x7FFFFFFF)), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(DATA, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    ],
)
def test_broken_rules_of_a_stream_end_the_stream(data: bytes, code: ErrorCode) -> None:
    server = Server()
    server.feed(server.request(1, "/test.Echo/Hold"))
    out = server.feed(data)
    assert of(out, RST, 1)[0].code == code
    assert not server.machine.closing
    assert answer(server.feed(server.request(3)), 3)[1]["grpc-status"] == "0"


def test_stream_ids_only_go_up() -> None:
    server = Server()
    server.feed(server.request(5))
    assert _goaway(server.feed(server.request(3)))[0] == ErrorCode.STREAM_CLOSED


def test_streams_above_the_limit_are_refused() -> None:
    server = Server(WireLimits(streams_max=3))
    for stream_id in (1, 3, 5):
        server.feed(server.request(stream_id, "/test.Echo/Hold"))
    out = server.feed(server.request(7, "/test.Echo/Hold"))
    assert [(item.kind, item.stream_id, item.code) for item in out] == [(RST, 7, ErrorCode.REFUSED_STREAM)]
    server.machine.respond(1, b"")
    server.out()
    server.feed(server.request(9, "/test.Echo/Hold"))
    assert len(server.calls) == 4


def test_header_lists_above_the_limit_end_the_connection() -> None:
    server = Server(WireLimits(header_list_bytes_max=1000))
    block = server.block(x="v" * 990)
    assert _goaway(server.feed(frame(HEADERS, 4, 1, block)))[0] == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("references", [300, 16_000])
def test_an_hpack_bomb_is_refused(references: int) -> None:
    """One large indexed field, then references to it: few bytes, a huge list."""
    server = Server()
    literal = b"\x40\x01x\x7f" + bytes((0x80 | (3000 - 127) & 0x7F, (3000 - 127) >> 7)) + b"v" * 3000
    bomb = literal + b"\xbe" * references
    data = frame(HEADERS, 0, 1, bomb[:16000]) + frame(CONTINUATION, 4, 1, bomb[16000:])
    assert _goaway(server.feed(data))[0] == ErrorCode.ENHANCE_YOUR_CALM


def test_a_small_hpack_bomb_with_remembered_table_is_refused() -> None:
    server = Server()
    server.feed(frame(HEADERS, 5, 1, server.block(x="v" * 3000)))
    assert _goaway(server.feed(frame(HEADERS, 5, 3, b"\xbe" * 100)))[0] == ErrorCode.ENHANCE_YOUR_CALM


def test_continuation_floods_end_the_connection() -> None:
    server = Server()
    data = frame(HEADERS, 0, 1, b"\x83") + b"".join(frame(CONTINUATION, 0, 1) for _ in range(64))
    assert server.feed(data) == []
    assert _goaway(server.feed(frame(CONTINUATION, 0, 1)))[0] == ErrorCode.ENHANCE_YOUR_CALM


def test_large_continuations_end_the_connection_before_they_are_held() -> None:
    server = Server()
    data = frame(HEADERS, 0, 1, bytes(16384)) + b"".join(frame(CONTINUATION, 0, 1, bytes(16384)) for _ in range(4))
    assert _goaway(server.feed(data))[0] == ErrorCode.ENHANCE_YOUR_CALM


def test_rapid_resets_end_the_connection() -> None:
    server = Server(WireLimits(reset_burst=50, resets_per_second=10))
    stream_id = 1
    for _ in range(50):
        server.feed(server.request(stream_id, "/test.Echo/Hold") + frame(RST, 0, stream_id, pack(">I", 8)))
        stream_id += 2
    assert not server.machine.closing
    server.clock.now += 1
    for _ in range(10):
        server.feed(server.request(stream_id, "/test.Echo/Hold") + frame(RST, 0, stream_id, pack(">I", 8)))
        stream_id += 2
    assert not server.machine.closing
    out = server.feed(server.request(stream_id, "/test.Echo/Hold") + frame(RST, 0, stream_id, pack(">I", 8)))
    assert _goaway(out) == (ErrorCode.ENHANCE_YOUR_CALM, b"too many stream resets")


def test_making_the_server_reset_is_counted_too() -> None:
    """CVE-2025-8671: the client lets the server reset, by breaking a rule of each stream."""
    server = Server(WireLimits(reset_burst=50, resets_per_second=10))
    out: list[Frame] = []
    for number in range(51):
        stream_id = 2 * number + 1
        out = server.feed(server.request(stream_id, "/test.Echo/Hold") + frame(WINDOW, 0, stream_id, bytes(4)))
    assert _goaway(out)[0] == ErrorCode.ENHANCE_YOUR_CALM


def test_settings_floods_end_the_connection() -> None:
    server = Server(WireLimits(settings_burst=20))
    assert _goaway(server.feed(settings() * 20))[0] == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "flood",
    [
        frame(DATA, 0, 1),
        frame(DATA, 8, 1, b"\x00"),
        frame(PRIORITY, 0, 1, bytes(5)),
        frame(0x77, 0, 0, b"?"),
        frame(PING, 1, 0, bytes(8)),
        frame(WINDOW, 0, 0, pack(">I", 1)),
        frame(WINDOW, 0, 1, pack(">I", 1)),
    ],
)
def test_floods_of_frames_without_work_end_the_connection(flood: bytes) -> None:
    server = Server(WireLimits(idle_frames_base=100, idle_frames_per_work=10))
    server.feed(frame(SETTINGS, 1, 0) + frame(HEADERS, 4, 1, server.block("/test.Echo/Chat")))
    server.feed(flood * 100)
    assert not server.machine.closing
    assert _goaway(server.feed(flood))[0] == ErrorCode.ENHANCE_YOUR_CALM


def test_window_updates_of_working_clients_are_not_a_flood() -> None:
    server = Server(WireLimits(idle_frames_base=10, idle_frames_per_work=10))
    for number in range(200):
        stream_id = 2 * number + 1
        server.feed(frame(WINDOW, 0, 0, pack(">I", 5)) * 4 + server.request(stream_id))
    assert not server.machine.closing


def test_one_byte_windows_reach_the_bound() -> None:
    server = Server(WireLimits(idle_frames_base=10, idle_frames_per_work=2))
    server.feed(settings((4, 0)))
    server.feed(server.request(1, body=bytes(10000)))
    for _ in range(5000):
        server.feed(frame(WINDOW, 0, 1, pack(">I", 1)))
        if server.machine.closing:
            break
    # each one-byte DATA frame counts as work too, so this game may go on; it costs the peer a frame for a frame
    assert server.machine._queued_bytes <= 10005


# -- keep-alive pings, grpc-go's rule --------------------------------------------------------------------------------


def _ping(server: Server) -> list[Frame]:
    return server.feed(frame(PING, 0, 0, bytes(8)))


def test_early_pings_without_streams_are_too_many_after_two_strikes() -> None:
    server = Server()
    _ping(server)
    for _ in range(2):
        server.clock.now += 60
        assert of(_ping(server), GOAWAY) == []
    server.clock.now += 60
    assert _goaway(_ping(server)) == (ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")


def test_pings_with_a_stream_may_come_every_five_seconds() -> None:
    server = Server()
    server.feed(frame(HEADERS, 4, 1, server.block("/test.Echo/Chat")))
    for _ in range(20):
        server.clock.now += 5
        assert of(_ping(server), GOAWAY) == []
    server.clock.now += 1
    _ping(server)
    server.clock.now += 1
    _ping(server)
    server.clock.now += 1
    assert _goaway(_ping(server))[1] == b"too_many_pings"


def test_answers_forgive_early_pings() -> None:
    server = Server()
    for number in range(20):
        for _ in range(2):
            server.clock.now += 0.1
            assert of(_ping(server), GOAWAY) == []
        server.feed(server.request(2 * number + 1, "/test.Echo/Fail" if number % 2 else "/test.Echo/Echo"))


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_peer_that_sends_beyond_its_windows_is_ended() -> None:
    server = Server(WireLimits(stream_window_bytes=20_000, message_bytes_max=1 << 20))
    server.feed(frame(HEADERS, 4, 1, server.block()))
    server.feed(frame(DATA, 0, 1, message(bytes(1 << 20))[:9_000]))
    out = server.feed(frame(DATA, 0, 1, bytes(12_000)))
    assert of(out, RST, 1)[0].code == ErrorCode.FLOW_CONTROL_ERROR
    server = Server(WireLimits(connection_window_bytes=70_000))
    out = server.feed(b"".join(server.request(stream_id, body=bytes(16_000)) for stream_id in range(1, 11, 2)))
    assert _goaway(out)[0] == ErrorCode.FLOW_CONTROL_ERROR


def test_unfinished_requests_are_bounded_together() -> None:
    server = Server(WireLimits(partial_bytes_max=20_000, message_bytes_max=1 << 20))
    for stream_id in (1, 3):
        server.feed(frame(HEADERS, 4, stream_id, server.block()))
        out = server.feed(frame(DATA, 0, stream_id, message(bytes(100_000))[:9_000]))
        assert of(out, HEADERS) == []
    server.feed(frame(HEADERS, 4, 5, server.block("/test.Echo/Chat")))
    out = server.feed(frame(DATA, 0, 5, message(bytes(100_000))[:9_000]))
    assert answer(out, 5)[1]["grpc-status"] == "8"
    assert server.machine._partial_bytes == 18_000
    server.feed(frame(HEADERS, 4, 7, server.block()))
    out = server.feed(frame(DATA, 0, 7, message(bytes(9_000))))  # whole, but the request has not ended
    assert answer(out, 7)[1]["grpc-status"] == "8"
    server.feed(frame(RST, 0, 1, bytes(4)) + frame(RST, 0, 3, bytes(4)))
    assert server.machine._partial_bytes == 0


def test_answers_nobody_takes_are_bounded() -> None:
    server = Server(WireLimits(queued_bytes_max=100_000))
    server.feed(settings((4, 0)))
    statuses = []
    for number in range(20):
        server.feed(server.request(2 * number + 1, "/test.Echo/Hold"))
        server.machine.respond(2 * number + 1, bytes(30_000))
        statuses.append(answer(server.out(), 2 * number + 1)[1].get("grpc-status"))
    assert statuses == [None] * 4 + ["8"] * 16
    assert server.machine._queued_bytes == 4 * 30_005
    server.machine.pause()
    server.feed(server.request(99, "/test.Echo/Hold"))
    server.machine.respond(99, bytes(30_000))
    assert server.machine._queued_bytes == 4 * 30_005


def test_a_stream_that_sends_on_regardless_is_reset() -> None:
    server = Server(WireLimits(queued_bytes_max=100_000))
    server.feed(settings((4, 0)))
    server.feed(frame(HEADERS, 4, 1, server.block("/test.Echo/Chat")))
    for _ in range(20):
        server.chats[0].stream.send(bytes(30_000))
    assert of(server.out(), RST, 1)[0].code == ErrorCode.ENHANCE_YOUR_CALM
    assert server.machine._queued_bytes == 0
    assert server.chats[0].events == ["closed"]


def test_remembered_blocks_and_closed_streams_are_bounded() -> None:
    server = Server()
    for number in range(3000):
        server.feed(server.request(2 * number + 1, "/test.Echo/Nope", token=f"{number}"))
    machine = server.machine
    assert not machine.closing
    assert len(machine._blocks) <= 64
    assert len(machine._heads) <= 64
    assert len(machine._unheard) <= 2000


def test_a_client_that_takes_nothing_is_dropped_and_one_that_takes_little_is_not() -> None:
    server = Server(WireLimits(high_water_bytes=1000, stall_seconds=60))
    server.feed(settings((4, 0)))
    server.feed(server.request(1, "/test.Echo/Hold"))
    server.machine.respond(1, bytes(3000))
    start = server.clock.now
    for second in range(0, 300, 10):
        server.feed(frame(WINDOW, 0, 1, pack(">I", 1)))
        assert server.machine.on_tick(start + second) is None
    assert server.machine.on_tick(start + 340) is None
    assert server.machine.on_tick(start + 361) == "the client takes nothing of what waits for it"


def test_acknowledged_keepalives_of_months_are_not_a_flood() -> None:
    server = Server(WireLimits(idle_frames_base=10))
    for _ in range(100):
        server.clock.now += 7201
        server.machine.on_tick(server.clock.now)
        for item in of(server.out(), PING):
            server.feed(frame(PING, 1, 0, item.payload))
    assert server.machine._expected_acks <= 1
    assert server.machine._idle_frames == 0
    assert not server.machine.closing
