"""The errors of the wire, split by blame.

* :class:`PeerFaultError`: the peer broke HTTP/2 or a limit; the connection ends with a GOAWAY of its code. It never
  leaves a machine: ``receive`` turns it into output and the ``fault`` attribute.
* :class:`StreamFaultError`: the peer broke the rules of one stream; that stream is reset, the connection goes on.
* :class:`UsageError`: our own caller used a closed or finished stream in a way that has no meaning.
* :class:`GrpcError`: how a call of the client role failed; not a fault of the wire by itself.
"""

from __future__ import annotations

from kvserver.wire.frames import ErrorCode


class WireError(Exception):
    """Base of all errors of this package."""


class PeerFaultError(WireError):
    """The peer broke the rules of the connection.

    Args:
        code: code for GOAWAY.
        message: what was wrong, sent as GOAWAY's debug data and logged.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


class StreamFaultError(WireError):
    """The peer broke the rules of one stream."""

    def __init__(self, stream_id: int, code: ErrorCode, message: str) -> None:
        super().__init__(f"stream {stream_id}: {code.name}: {message}")
        self.stream_id = stream_id
        self.code = code
        self.message = message


class UsageError(WireError):
    """The local caller asked for what the state of the connection or stream does not allow."""


class GrpcError(WireError):
    """A call failed.

    Args:
        code: gRPC status code.
        message: the status' text.
        sent: false when the request surely never reached the server's application, so that repeating it is safe.
    """

    def __init__(self, code: int, message: str, *, sent: bool = True) -> None:
        super().__init__(f"code {code}: {message}")
        self.code = code
        self.message = message
        self.sent = sent
