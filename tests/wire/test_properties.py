"""Any bytes, any frames, any cuts: nothing but a connection error comes of it, and cuts do not matter."""

from __future__ import annotations

from struct import pack

from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.wire.limits import WireLimits
from tests.wire.raw import DATA, HEADERS, PREFACE, Server, frame, message
from tests.wire.raw import settings as settings_frame
from tests.wire.test_client_machine import Client, Recorder

_LIMITS = WireLimits(
    message_bytes_max=2_000,
    streams_max=5,
    stream_window_bytes=3_000,
    connection_window_bytes=70_000,
    partial_bytes_max=4_000,
    queued_bytes_max=5_000,
    high_water_bytes=500,
    low_water_bytes=100,
)

_stream_ids = st.sampled_from([0, 1, 2, 3, 5, 7, 9, 0x7FFFFFFF])
_block = Encoder().encode(
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/test.Echo/Echo"),
        ("content-type", "application/grpc"),
    ]
)
_payloads = st.one_of(
    st.binary(max_size=40),
    st.just(bytes(_block)),
    st.builds(message, st.binary(max_size=60)),
    st.builds(lambda size: message(bytes(size)), st.sampled_from([0, 100, 1_999, 2_000, 2_001, 9_000])),
    st.builds(lambda number: pack(">I", number), st.sampled_from([0, 1, 8, 1000, 0x7FFFFFFF, 0xFFFFFFFF])),
    st.just(bytes(8)),
    st.builds(lambda key, value: pack(">HI", key, value), st.integers(0, 7), st.sampled_from([0, 1, 100, 1 << 20])),
)
_frames = st.builds(frame, st.integers(0, 11), st.integers(0, 255), _stream_ids, _payloads)
_plausible = st.builds(
    frame,
    st.sampled_from([DATA, HEADERS, 3, 8, 9]),
    st.sampled_from([0, 1, 4, 5, 8, 0x25]),
    st.sampled_from([1, 3, 5, 7, 9]),
    _payloads,
)
_paths = ["/test.Echo/Echo", "/test.Echo/Hold", "/test.Echo/Chat", "/test.Echo/Fail", "/none"]
_block_of = {path: bytes(Server().block(path)) for path in _paths}


def _sound(server: Server) -> None:
    machine = server.machine
    assert machine._partial_bytes >= 0
    assert machine._queued_bytes >= 0
    assert machine._queued_bytes <= _LIMITS.queued_bytes_max + 16_384
    assert machine._partial_bytes <= _LIMITS.partial_bytes_max
    assert len(machine._streams) <= _LIMITS.streams_max
    if machine.closing:
        assert not machine._streams
        assert not machine._ready


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=10), st.booleans())
def test_garbage_never_raises(pieces: list[bytes], greeted: bool) -> None:
    server = Server(_LIMITS, greet=greeted)
    client = Client(_LIMITS)
    client.unary()
    for piece in pieces:
        server.feed(piece)
        client.feed(piece)
    _sound(server)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(_frames, _plausible), max_size=25), st.integers(0, 3))
def test_any_frames_never_raise_and_leave_the_server_sound(sent: list[bytes], answer_every: int) -> None:
    server = Server(_LIMITS)
    for number, data in enumerate(sent):
        server.feed(data)
        _sound(server)
        if answer_every and number % (answer_every + 1) == 0:
            for conn, stream_id, _, body in server.calls:
                conn.respond(stream_id, body)
            for chat in server.chats:
                chat.stream.send(b"x" * 300)
    server.machine.connection_failed("end")
    server.out()
    assert not server.machine._streams
    assert server.machine._partial_bytes == 0
    assert server.machine._queued_bytes == 0
    assert server.errors == []
    for chat in server.chats:
        assert chat.stream.closed


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(_frames, _plausible), max_size=25))
def test_any_frames_never_raise_and_leave_the_client_sound(sent: list[bytes]) -> None:
    client = Client(_LIMITS)
    calls = [client.unary() for _ in range(3)]
    stream = Recorder(client.machine)
    client.machine.start_stream(stream, b"/a.B/S")
    for data in sent:
        client.feed(data)
    client.machine.connection_failed("end")
    client.out()
    assert all(call.done() for call in calls)
    assert len(stream.ends) == 1
    assert not client.machine._streams
    assert client.machine._queued_bytes == 0


_valid_step = st.one_of(
    st.builds(lambda path, body: ("call", path, body), st.sampled_from(_paths), st.binary(max_size=300)),
    st.builds(lambda body, cut: ("pieces", body, cut), st.binary(max_size=300), st.integers(0, 300)),
    st.builds(lambda body: ("chat", body), st.binary(max_size=300)),
    st.builds(lambda size: ("window", size), st.integers(1, 1000)),
    st.just(("ping",)),
    st.builds(lambda size: ("settings", size), st.integers(0, 2000)),
    st.just(("reset",)),
)


def _script(steps: list[tuple[object, ...]]) -> bytes:
    """A client that keeps the rules."""
    out = [PREFACE + settings_frame()]
    stream_id = -1
    for step in steps:
        match step:
            case ("call", str(path), bytes(body)):
                stream_id += 2
                out.append(frame(HEADERS, 4, stream_id, _plain_block(path)) + frame(DATA, 1, stream_id, message(body)))
            case ("pieces", bytes(body), int(cut)):
                stream_id += 2
                framed = message(body)
                out.append(frame(HEADERS, 4, stream_id, _plain_block("/test.Echo/Echo")))
                out.append(frame(DATA, 0, stream_id, framed[:cut]) + frame(DATA, 1, stream_id, framed[cut:]))
            case ("chat", bytes(body)):
                stream_id += 2
                out.append(frame(HEADERS, 4, stream_id, _plain_block("/test.Echo/Chat")))
                out.append(frame(DATA, 0, stream_id, message(b"echo" + body)) + frame(DATA, 1, stream_id))
            case ("window", int(size)):
                out.append(frame(8, 0, 0, pack(">I", size)))
            case ("ping",):
                out.append(frame(6, 0, 0, b"12345678"))
            case ("settings", int(size)):
                out.append(settings_frame((4, size)))
            case ("reset",) if stream_id > 0:
                out.append(frame(3, 0, stream_id, pack(">I", 8)))
    return b"".join(out)


def _plain_block(path: str) -> bytes:
    raw = b"\x83\x86\x04" + bytes((len(path),)) + path.encode()
    return raw + b"\x0f\x10\x10application/grpc"


@settings(max_examples=200, deadline=None)
@given(st.lists(_valid_step, max_size=12), st.data())
def test_cuts_do_not_matter(steps: list[tuple[object, ...]], data: st.DataObject) -> None:
    script = _script(steps)
    limits = WireLimits(ping_strikes_max=1000)
    whole = Server(limits, greet=False)
    whole.machine.receive(script)
    expected = whole.machine.data_to_send()
    assert whole.machine.fault is None
    cut = Server(limits, greet=False)
    position = 0
    while position < len(script):
        size = data.draw(st.integers(1, 400))
        cut.machine.receive(script[position : position + size])
        position += size
    assert cut.machine.data_to_send() == expected
    assert [(call[1], call[3]) for call in cut.calls] == [(call[1], call[3]) for call in whole.calls]
    assert [chat.events for chat in cut.chats] == [chat.events for chat in whole.chats]
