"""Unary calls: one shape for all of them, from the message's bytes to ``respond`` or ``fail``.

Ways for a call to fail, all ending in exactly one answer:

- the metadata asks for what cannot be given (:func:`metadata_error`);
- the bytes are no message: INTERNAL, in grpc-go's words;
- the request is refused by its check, or the node answers an error: that error's code and text;
- anything else is a fault of ours: logged with its traceback, UNKNOWN to the client.

A call whose stream is gone meanwhile needs nothing here: the connection drops its answer. So is the answer of a call
whose deadline has passed: the client resets the stream then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from kvserver import errors
from kvserver.errors import Code, KvError
from kvserver.wire.server import RequestHead, ServerConnection, UnaryHandler

log = logging.getLogger(__name__)

Result = bytes | KvError
Done = Callable[[Result], None]
Request = TypeVar("Request")

HAS_LEADER = b"hasleader"
VERSION = b"client-api-version"

INTERNAL_ERROR_TEXT = "kvserver: internal error, see the server's log"
"""What a client is told of a fault of ours: nothing of its inside."""


class Leadership(Protocol):
    """What the metadata checks need of the node."""

    @property
    def leader_id(self) -> int:
        """The leader's id, 0 when there is none."""


def metadata_error(node: Leadership, metadata: Mapping[bytes, bytes]) -> KvError | None:
    """Check what a call's metadata asks for: a leader (``hasleader``), a client API version that is text."""
    if VERSION in metadata:
        try:
            metadata[VERSION].decode()
        except UnicodeDecodeError:
            return errors.InvalidClientApiVersionError()
    if HAS_LEADER in metadata and metadata[HAS_LEADER] == b"true" and not node.leader_id:
        return errors.NoLeaderError()
    return None


def decode_error(error: DecodeError, *, streaming: bool = False) -> KvError:
    """Answer what a client is told whose bytes are no message, as grpc-go words it."""
    what = "failed to unmarshal the received message" if streaming else "error unmarshalling request:"
    return KvError(f"grpc: {what} {error}", Code.INTERNAL)


def internal_error(method: str) -> KvError:
    """Log the exception being handled, and answer what the client is told of it."""
    log.exception("%s failed", method)
    return KvError(INTERNAL_ERROR_TEXT, Code.UNKNOWN)


def answer(conn: ServerConnection, stream_id: int, result: Result) -> None:
    """Complete a unary call. Hot: one call an answer; ``partial(answer, conn, stream_id)`` is a facade's ``done``."""
    if isinstance(result, bytes):
        conn.respond(stream_id, result)
    else:
        conn.fail(stream_id, result.code, result.message)


def refuse(conn: ServerConnection, stream_id: int, method: str, error: Exception) -> None:
    """Fail a call for an exception that its handler caught."""
    if isinstance(error, DecodeError):
        error = decode_error(error)
    elif not isinstance(error, KvError):
        error = internal_error(method)
    conn.fail(stream_id, error.code, error.message)


def write_call(
    node: Leadership,
    name: str,
    parse: Callable[[bytes], Request],
    check: Callable[[Request], object],
    method: Callable[[bytes, Request, Done], None],
) -> UnaryHandler:
    """Make the handler of a call that may end in the log: the facade gets the bytes beside the message.

    Hot: one call a client write (benchmark ``put``).

    Args:
        node: the facade.
        name: the method's name, for the log.
        parse: decodes the request.
        check: raises a :class:`KvError` for a request that no state could make valid.
        method: the facade's method.
    """

    def handle(conn: ServerConnection, stream_id: int, head: RequestHead, message: bytes) -> None:
        try:
            metadata = head.metadata
            if HAS_LEADER in metadata or (VERSION in metadata and not metadata[VERSION].isascii()):
                error = metadata_error(node, metadata)
                if error is not None:
                    raise error
            request = parse(message)
            check(request)
            method(message, request, partial(answer, conn, stream_id))
        except Exception as error:
            refuse(conn, stream_id, name, error)

    return handle


def read_call(
    node: Leadership,
    name: str,
    parse: Callable[[bytes], Request],
    check: Callable[[Request], object],
    method: Callable[[Request, Done], None],
) -> UnaryHandler:
    """Make the handler of a call that is answered from the state. Hot: one call a client read (benchmark ``range``)."""

    def handle(conn: ServerConnection, stream_id: int, head: RequestHead, message: bytes) -> None:
        try:
            metadata = head.metadata
            if HAS_LEADER in metadata or (VERSION in metadata and not metadata[VERSION].isascii()):
                error = metadata_error(node, metadata)
                if error is not None:
                    raise error
            request = parse(message)
            check(request)
            method(request, partial(answer, conn, stream_id))
        except Exception as error:
            refuse(conn, stream_id, name, error)

    return handle


def unchecked(request: object) -> None:
    """The check of a request that cannot be wrong."""
