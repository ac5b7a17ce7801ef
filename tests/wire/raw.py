"""Raw frames for tests: a scripted peer of each role, with ``hpack`` used directly and nothing of our own framing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from struct import pack, unpack

from hpack import Decoder, Encoder

from kvserver.wire.limits import WireLimits
from kvserver.wire.server_machine import (
    RequestHead,
    Routes,
    ServerConnection,
    ServerStream,
    StreamMethod,
    UnaryMethod,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return pack(">I", len(payload))[1:] + bytes((kind, flags)) + pack(">I", stream_id) + payload


def message(body: bytes) -> bytes:
    return pack(">BI", 0, len(body)) + body


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(pack(">HI", *pair) for pair in pairs))


@dataclass
class Frame:
    kind: int
    flags: int
    stream_id: int
    payload: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def end_stream(self) -> bool:
        return self.kind in (DATA, HEADERS) and bool(self.flags & 1)

    @property
    def code(self) -> int:
        if self.kind == RST:
            return int(unpack(">I", self.payload)[0])
        assert self.kind == GOAWAY
        return int(unpack(">II", self.payload[:8])[1])


def parse(data: bytes, decoder: Decoder | None = None) -> list[Frame]:
    """Cut into frames; header blocks (whole ones) are decoded."""
    out = []
    while data:
        length = int.from_bytes(data[:3], "big")
        kind, flags, stream_id = data[3], data[4], int.from_bytes(data[5:9], "big")
        assert len(data) >= 9 + length, "output ends inside a frame"
        item = Frame(kind, flags, stream_id, data[9 : 9 + length])
        if kind == HEADERS and decoder is not None and flags & 4:
            item.headers = dict(decoder.decode(item.payload))
        out.append(item)
        data = data[9 + length :]
    return out


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Chat:
    """A stream handler that records, and echoes messages that start with "echo"."""

    def __init__(self, stream: ServerStream) -> None:
        self.stream = stream
        self.events: list[object] = []

    def on_message(self, body: bytes) -> None:
        self.events.append(body)
        if body.startswith(b"echo"):
            self.stream.send(body)
        elif body == b"raise":
            raise RuntimeError("handler")

    def on_half_close(self) -> None:
        self.events.append("half_close")
        self.stream.finish()

    def on_closed(self) -> None:
        self.events.append("closed")

    def on_drained(self) -> None:
        self.events.append("drained")


Calls = list[tuple[ServerConnection, int, RequestHead, bytes]]


class Server:
    """A server machine with a scripted client in front of it."""

    def __init__(self, limits: WireLimits | None = None, *, greet: bool = True) -> None:
        self.clock = FakeClock()
        self.calls: Calls = []
        self.chats: list[Chat] = []
        self.errors: list[Exception] = []

        def chat(stream: ServerStream) -> Chat:
            self.chats.append(Chat(stream))
            return self.chats[-1]

        def broken(conn: ServerConnection, stream_id: int, head: RequestHead, body: bytes) -> None:
            raise ValueError("broken handler")

        self.routes = Routes(
            {
                b"/test.Echo/Echo": UnaryMethod(lambda conn, sid, head, body: conn.respond(sid, body)),
                b"/test.Echo/Hold": UnaryMethod(lambda *call: self.calls.append(call)),
                b"/test.Echo/Fail": UnaryMethod(lambda conn, sid, head, body: conn.fail(sid, 5, body.decode())),
                b"/test.Echo/Broken": UnaryMethod(broken),
                b"/test.Echo/Chat": StreamMethod(chat),
            }
        )
        self.machine = _OpenServer(self.routes, limits or WireLimits(), self.clock)
        self.machine._report = self.errors.append  # type: ignore[method-assign]
        self.encoder = Encoder()
        self.decoder = Decoder()
        if greet:
            self.feed(PREFACE + settings())

    def feed(self, data: bytes) -> list[Frame]:
        self.machine.receive(data)
        return self.out()

    def out(self) -> list[Frame]:
        return parse(self.machine.data_to_send(), self.decoder)

    def block(self, path: str = "/test.Echo/Echo", extra: Mapping[str, str] | None = None, **changes: str) -> bytes:
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        headers.update({name.replace("_", "-"): value for name, value in changes.items()})
        headers.update(extra or {})
        return bytes(self.encoder.encode(sorted(headers.items(), key=lambda pair: not pair[0].startswith(":"))))

    def request(self, stream_id: int, path: str = "/test.Echo/Echo", body: bytes = b"hi", **changes: str) -> bytes:
        block = self.block(path, **changes)
        return frame(HEADERS, 4, stream_id, block) + frame(DATA, 1, stream_id, message(body))


class _OpenServer(ServerConnection):
    """A subclass with a dict, so that tests can replace methods."""


def of(frames: list[Frame], kind: int, stream_id: int | None = None) -> list[Frame]:
    return [item for item in frames if item.kind == kind and stream_id in (None, item.stream_id)]


def answer(frames: list[Frame], stream_id: int) -> tuple[bytes, dict[str, str]]:
    """The DATA bytes and all headers of a stream."""
    data = b"".join(item.payload for item in of(frames, DATA, stream_id))
    headers: dict[str, str] = {}
    for item in of(frames, HEADERS, stream_id):
        headers.update(item.headers)
    return data, headers


Step = Callable[[], bytes]
