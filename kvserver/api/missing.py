"""Calls of the protocol that are not there yet: each says so in words, with the code for it."""

from __future__ import annotations

from kvserver.errors import Code
from kvserver.wire.server import RequestHead, ServerConnection, UnaryHandler


def missing_call(what: str) -> UnaryHandler:
    """Make the handler of a unary call that answers UNIMPLEMENTED.

    Args:
        what: what is missing, for the client: a sentence without its full stop.
    """

    def handle(conn: ServerConnection, stream_id: int, head: RequestHead, message: bytes) -> None:
        conn.fail(stream_id, Code.UNIMPLEMENTED, f"kvserver: {what}")

    return handle
