"""Steps that call both sides by gRPC with grpcio, unary and streaming, with any bytes."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message

from tests.differential.harness import STEP_SECONDS_MAX, Outcome, Side, Step, hide_in

Make = Callable[[Side], Message]
"""Makes a request for one side; for requests that carry what that side answered before."""


def _bytes_of(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def text_of_message(message: Message) -> str:
    """Print a message; every field that is not zero is there."""
    return text_format.MessageToString(message)


def unary(
    name: str,
    method: str,
    request: Message | bytes | Make,
    response: type[Message],
    *,
    capture: dict[str, str] | None = None,
    metadata: Sequence[tuple[str, str | bytes]] = (),
    hide: Sequence[str] = (),
    timeout_seconds: float = STEP_SECONDS_MAX,
    times_out: bool = False,
) -> Step:
    """Call a unary method.

    Args:
        name: the step's name.
        method: ``package.Service/Method``.
        request: the message, or bytes that are sent as they are.
        response: the answer's type.
        capture: fields of the answer to remember and mask, by name: dotted paths.
        metadata: of the call.
        hide: patterns masked in this step.
        timeout_seconds: the call's deadline.
        times_out: the call fails by its deadline; whose word is first, the server's or this client's, is a race.
    """

    def run(side: Side) -> Outcome:
        made = request(side) if callable(request) else request
        call = side.channel.unary_unary(
            f"/{method}", request_serializer=_bytes_of, response_deserializer=response.FromString
        )
        try:
            answer = call(made, timeout=timeout_seconds, metadata=metadata)
        except grpc.RpcError as error:
            if times_out:
                return {"failed": "yes"}
            return {"code": error.code().name, "message": hide_in(error.details() or "", hide)}
        for key, path in (capture or {}).items():
            value: Any = answer
            for part in path.split("."):
                value = getattr(value, part)
            side.captured[key] = value.decode() if isinstance(value, bytes) else f"{value:x}"
        return {"code": "OK", "response": hide_in(text_of_message(answer), hide)}

    return Step(name, run)


class Stream:
    """A streaming call; answers are collected as they come."""

    def __init__(self, side: Side, method: str, response: type[Message], timeout_seconds: float | None) -> None:
        self._requests: queue.SimpleQueue[Message | bytes | None] = queue.SimpleQueue()
        self.answers: list[Message] = []
        self.taken = 0
        self.ending: tuple[str, str] | None = None
        self._changed = threading.Condition()
        self._call = side.channel.stream_stream(
            f"/{method}", request_serializer=_bytes_of, response_deserializer=response.FromString
        )(self._iterate(), timeout=timeout_seconds)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _iterate(self) -> Iterator[Message | bytes]:
        while (request := self._requests.get()) is not None:
            yield request

    def _read(self) -> None:
        try:
            for answer in self._call:
                with self._changed:
                    self.answers.append(answer)
                    self._changed.notify_all()
            ending = ("OK", "")
        except grpc.RpcError as error:
            ending = (error.code().name, error.details() or "")
        with self._changed:
            self.ending = ending
            self._changed.notify_all()

    def send(self, request: Message | bytes | None) -> None:
        """Send a request; None half-closes."""
        self._requests.put(request)

    def wait(self, count: int) -> bool:
        """Wait until so many answers have come, or the call has ended."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.answers) >= count or self.ending is not None, STEP_SECONDS_MAX)
            return len(self.answers) >= count

    def wait_end(self) -> tuple[str, str]:
        """Wait for the end of the call; answers code and message."""
        with self._changed:
            self._changed.wait_for(lambda: self.ending is not None, STEP_SECONDS_MAX)
            return self.ending or ("did not end", "")

    def close(self) -> None:
        """Give the call up."""
        self._requests.put(None)
        with contextlib.suppress(Exception):
            self._call.cancel()
        self._reader.join(5)


def open_stream(name: str, method: str, response: type[Message], *, timeout_seconds: float | None = None) -> Step:
    """Begin a streaming call."""

    def run(side: Side) -> Outcome:
        side.background[name] = Stream(side, method, response, timeout_seconds)
        return {}

    return Step(f"open {name}", run)


def _stream(side: Side, name: str) -> Stream:
    stream = side.background[name]
    assert isinstance(stream, Stream)
    return stream


def send(label: str, name: str, request: Message | bytes | Make, *, answers: int = 1, hide: Sequence[str] = ()) -> Step:
    """Send a request on a stream and compare the answers that come next."""

    def run(side: Side) -> Outcome:
        stream = _stream(side, name)
        stream.send(request(side) if callable(request) else request)
        return _next(side, name, answers, hide)

    return Step(label, run)


def receive(label: str, name: str, answers: int, *, hide: Sequence[str] = (), any_order: bool = False) -> Step:
    """Compare the answers of a stream that come next; those of different watchers may come in any order."""

    def run(side: Side) -> Outcome:
        outcome = _next(side, name, answers, hide)
        return {"answers": "\n".join(sorted(outcome.values()))} if any_order else outcome

    return Step(label, run)


def _next(side: Side, name: str, answers: int, hide: Sequence[str]) -> Outcome:
    stream = _stream(side, name)
    stream.wait(stream.taken + answers)
    fresh = stream.answers[stream.taken : stream.taken + answers]
    stream.taken += len(fresh)
    outcome = {f"answer {number}": hide_in(text_of_message(answer), hide) for number, answer in enumerate(fresh)}
    if len(fresh) < answers:
        outcome["ended"] = repr(stream.ending)
    return outcome


def half_close(name: str) -> Step:
    """End the client's half of a stream; compares how the call ends, and what still comes."""

    def run(side: Side) -> Outcome:
        stream = _stream(side, name)
        stream.send(None)
        code, message = stream.wait_end()
        rest = "\n".join(text_of_message(answer) for answer in stream.answers[stream.taken :])
        return {"code": code, "message": message, "rest": rest}

    return Step(f"half-close {name}", run)


def ended_stream(name: str, *, hide: Sequence[str] = ()) -> Step:
    """Wait for a stream that the server ends; compares how."""

    def run(side: Side) -> Outcome:
        code, message = _stream(side, name).wait_end()
        return {"code": code, "message": hide_in(message, hide)}

    return Step(f"end of {name}", run)


def cancel(name: str) -> Step:
    """Give up a stream."""

    def run(side: Side) -> Outcome:
        side.background.pop(name).close()
        return {}

    return Step(f"cancel {name}", run)


def lease_of(side: Side, name: str) -> int:
    """Answer a captured lease id."""
    return int(side.captured[name], 16)


def unprefixed(text: str) -> str:
    """Drop what a parser says of its own about malformed bytes."""
    return re.sub(r"(unmarshall?(?:ing request| the received message)).*", r"\1", text)
