"""Both roles against ``h2``, an implementation that shares nothing with ours but ``hpack``."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.wire.client_machine import ClientConnection
from kvserver.wire.limits import WireLimits
from tests.wire.raw import FakeClock, Server, message
from tests.wire.test_client_machine import Outcome, Recorder

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class H2Client:
    """An ``h2`` client before our server machine."""

    def __init__(self, limits: WireLimits | None = None, window: int | None = None) -> None:
        self.server = Server(limits, greet=False)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.data: dict[int, bytes] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.exchange()

    def exchange(self, acknowledge: bool = True) -> None:
        for _ in range(10_000):
            out = self.h2.data_to_send()
            if out:
                self.server.machine.receive(out)
            back = self.server.machine.data_to_send()
            if not out and not back:
                return
            for event in self.h2.receive_data(back):
                self.on_event(event, acknowledge)
        raise AssertionError("the exchange does not end")

    def on_event(self, event: h2.events.Event, acknowledge: bool) -> None:
        if isinstance(event, h2.events.DataReceived):
            self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
            if acknowledge and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived):
            self.trailers.setdefault(event.stream_id, {}).update(event.headers)  # type: ignore[arg-type]
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event

    def call(self, path: str, body: bytes, *, end: bool = True) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, [HEADERS[0], (":path", path), *HEADERS[1:]])
        self.send(stream_id, message(body), end=end)
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end: bool) -> None:
        while data:
            if stream_id in self.ended or stream_id in self.resets:
                return  # answered before the request's end
            size = min(len(data), self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if not size:
                self.exchange()
                assert stream_id in self.ended or self.h2.local_flow_control_window(stream_id), "neither window nor end"
                continue
            self.h2.send_data(stream_id, data[:size])
            data = data[size:]
        if end:
            self.h2.end_stream(stream_id)
        self.exchange()


def test_h2_client_calls() -> None:
    client = H2Client()
    for number in range(20):
        stream_id = client.call("/test.Echo/Echo", b"%d" % number)
        assert client.data[stream_id] == message(b"%d" % number)
        assert client.trailers[stream_id]["grpc-status"] == "0"
        assert stream_id in client.ended


def test_h2_client_errors_and_padding_and_priority() -> None:
    client = H2Client()
    stream_id = client.h2.get_next_available_stream_id()
    client.h2.send_headers(
        stream_id, [HEADERS[0], (":path", "/test.Echo/Fail"), *HEADERS[1:]], priority_weight=3, priority_depends_on=0
    )
    client.h2.send_data(stream_id, message("über".encode()), end_stream=True, pad_length=99)
    client.exchange()
    assert client.trailers[stream_id] == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "5",
        "grpc-message": "%C3%BCber",
    }
    client.h2.ping(b"12345678")
    client.h2.prioritize(stream_id, weight=9)
    client.exchange()
    assert client.goaway is None


def test_large_messages_both_ways_over_small_windows() -> None:
    limits = WireLimits(stream_window_bytes=20_000, connection_window_bytes=70_000)
    client = H2Client(limits, window=5_000)
    body = bytes(range(256)) * 6_000
    stream_id = client.call("/test.Echo/Echo", body)
    assert client.data[stream_id] == message(body)
    assert client.trailers[stream_id]["grpc-status"] == "0"


def test_several_large_answers_share_the_connection() -> None:
    client = H2Client(window=1 << 20)
    ids = [client.call("/test.Echo/Hold", b"") for _ in range(5)]
    for stream_id in ids:
        client.server.machine.respond(stream_id, bytes([stream_id]) * 300_000)
    client.exchange()
    for stream_id in ids:
        assert client.data[stream_id] == message(bytes([stream_id]) * 300_000)


def test_a_client_that_grants_nothing_gets_nothing() -> None:
    client = H2Client(window=0)
    stream_id = client.call("/test.Echo/Echo", bytes(100))
    assert client.data == {}
    client.h2.increment_flow_control_window(1000, stream_id)
    client.exchange()
    assert client.data[stream_id] == message(bytes(100))


def test_window_changes_in_the_middle_of_a_stream() -> None:
    client = H2Client(window=1000)
    stream_id = client.call("/test.Echo/Hold", b"")
    client.server.machine.respond(stream_id, bytes(50_000))
    client.exchange(acknowledge=False)
    assert len(client.data[stream_id]) == 1000
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 500})
    client.exchange(acknowledge=False)
    assert len(client.data[stream_id]) == 1000
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 60_000})
    client.exchange(acknowledge=False)
    assert client.data[stream_id] == message(bytes(50_000))


def test_h2_client_streams_and_resets() -> None:
    client = H2Client()
    stream_id = client.call("/test.Echo/Chat", b"echo 1", end=False)
    assert client.data[stream_id] == message(b"echo 1")
    client.send(stream_id, message(b"echo 2"), end=False)
    client.h2.reset_stream(stream_id, 8)
    client.exchange()
    assert client.server.chats[0].events == [b"echo 1", b"echo 2", "closed"]
    stream_id = client.call("/test.Echo/Chat", b"echo", end=False)
    client.server.chats[1].stream.finish(3, "enough")
    client.exchange()
    assert client.trailers[stream_id]["grpc-status"] == "3"
    assert client.resets == {stream_id: 0}


# -- our client, h2 as the server --------------------------------------------------------------------------------------


class H2Server:
    """An ``h2`` server behind our client machine; echoes."""

    def __init__(self, limits: WireLimits | None = None, **settings_: int) -> None:
        self.machine = ClientConnection(
            "test",
            scheme="http",
            user_agent="tests",
            limits=limits or WireLimits(message_bytes_max=1 << 30),
            clock=FakeClock(),
            completion_type=Outcome,
        )
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = h2.settings.Settings(
            client=False, initial_values={getattr(h2.settings.SettingCodes, key): v for key, v in settings_.items()}
        )
        self.h2.initiate_connection()
        self.paths: dict[int, str] = {}
        self.bodies: dict[int, bytes] = {}
        self.waiting: dict[int, bytes] = {}
        self.resets: list[int] = []
        self.exchange()

    def exchange(self) -> None:
        for _ in range(10_000):
            back = self.h2.data_to_send()
            if back:
                self.machine.receive(back)
            out = self.machine.data_to_send()
            if not out and not back:
                return
            events = self.h2.receive_data(out)
            reset = {event.stream_id for event in events if isinstance(event, h2.events.StreamReset)}
            for event in events:
                if isinstance(event, h2.events.StreamReset) or getattr(event, "stream_id", None) not in reset:
                    self.on_event(event)
            self.pump()
        raise AssertionError("the exchange does not end")

    def on_event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.paths[event.stream_id] = dict(event.headers)[":path"]  # type: ignore[index,assignment]
            self.bodies[event.stream_id] = b""
            self.h2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            if event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.waiting[event.stream_id] = self.bodies[event.stream_id]
        elif isinstance(event, h2.events.StreamReset):
            self.resets.append(event.stream_id)
            self.waiting.pop(event.stream_id, None)

    def pump(self) -> None:
        for stream_id, body in list(self.waiting.items()):
            size = min(len(body), self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if size:
                self.h2.send_data(stream_id, body[:size])
                self.waiting[stream_id] = body[size:]
            if not self.waiting[stream_id]:
                del self.waiting[stream_id]
                self.h2.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)


def test_our_client_calls_h2() -> None:
    server = H2Server()
    for number in range(20):
        outcome = Outcome()
        server.machine.start_unary(outcome, b"/a.B/C%d" % (number % 3), b"%d" % number, 5.0)
        server.exchange()
        assert outcome.result == b"%d" % number
    assert set(server.paths.values()) == {"/a.B/C0", "/a.B/C1", "/a.B/C2"}


def test_our_client_sends_and_takes_large_messages_over_small_windows() -> None:
    server = H2Server(
        WireLimits(stream_window_bytes=10_000, connection_window_bytes=66_000, message_bytes_max=1 << 30),
        INITIAL_WINDOW_SIZE=3_000,
    )
    outcomes = [Outcome() for _ in range(3)]
    bodies = [bytes([number]) * 500_000 for number in range(3)]
    for outcome, body in zip(outcomes, bodies, strict=True):
        server.machine.start_unary(outcome, b"/a.B/C", body)
    server.exchange()
    assert [outcome.result for outcome in outcomes] == bodies


def test_our_client_obeys_h2s_limit_of_streams_and_table_size() -> None:
    server = H2Server(MAX_CONCURRENT_STREAMS=2, HEADER_TABLE_SIZE=0)
    outcomes = [Outcome() for _ in range(10)]
    for outcome in outcomes:
        server.machine.start_unary(outcome, b"/a.B/C", b"x")
    server.exchange()
    assert all(outcome.result == b"x" for outcome in outcomes)


def test_our_client_streams_and_cancels() -> None:
    server = H2Server()
    stream = Recorder(server.machine)
    server.machine.start_stream(stream, b"/a.B/S")
    stream.send_framed(message(b"1"))
    stream.send_framed(message(b"2"))
    stream.end_sending()
    server.exchange()
    assert stream.messages == [b"1", b"2"]
    assert stream.ends == [None]
    outcome = Outcome()
    server.machine.start_unary(outcome, b"/a.B/C", b"x")
    server.machine.cancel_unary(outcome)
    server.exchange()
    assert server.resets == [3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Echo", "Fail", "Hold", "Chat", "Nope"]),
            st.integers(0, 40_000),
            st.booleans(),
            st.integers(0, 200),
        ),
        max_size=12,
    ),
    st.sampled_from([0, 200, 900, 70_000]),
)
def test_any_mix_of_calls_ends_well_with_h2(calls: list[tuple[str, int, bool, int]], window: int) -> None:
    client = H2Client(WireLimits(stream_window_bytes=9_000, connection_window_bytes=70_000), window=window)
    ids = {}
    for method, size, reset, _pad in calls:
        stream_id = client.call(f"/test.Echo/{method}", (b"echo" * 10_000)[:size])
        ids[stream_id] = (method, size, reset)
        if reset and stream_id not in client.ended:
            client.h2.reset_stream(stream_id, 8)
    client.exchange()
    for conn, held, _, _ in client.server.calls:
        conn.respond(held, b"later")
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1 << 24})
    client.exchange()
    assert client.goaway is None
    assert client.server.machine._queued_bytes == 0
    assert client.server.machine._partial_bytes == 0
    assert client.server.machine.stream_count == 0
    for stream_id, (method, _, reset) in ids.items():
        if not reset:
            expected = {"Echo": "0", "Hold": "0", "Chat": "0", "Fail": "5", "Nope": "12"}[method]
            assert client.trailers[stream_id]["grpc-status"] == expected


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_530, 65_531, 100_000])
def test_sizes_around_frame_and_window_bounds(size: int) -> None:
    client = H2Client()
    stream_id = client.call("/test.Echo/Echo", bytes(size))
    assert client.data[stream_id] == message(bytes(size))
