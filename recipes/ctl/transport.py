"""A blocking client for one command: one connection, calls and streams over it, failing over between endpoints.

The frames are those of :mod:`kvserver.wire`'s client machine; this is a third shell around it, beside the asyncio ones,
because a command that makes one call should not spend most of its time on importing an event loop.

Rules for failures, as in the other client: what surely did not reach a server is sent again until the deadline; what
only reads is also sent again when a server is unavailable; anything else fails with the server's own code and text.

Nothing happens between calls: whoever waits (for an answer, an event, a child process) does it in :meth:`Client.wait`,
which keeps the connection and the ``background`` duty (a lease) going.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from google.protobuf.message import Message

from kvserver.errors import Code
from kvserver.proto import rpc_pb2
from kvserver.version import KVSERVER_VERSION
from kvserver.wire.client_machine import CallStream, ClientConnection
from kvserver.wire.faults import GrpcError
from kvserver.wire.limits import WireLimits
from kvserver.wire.messages import frame_message
from recipes.ctl.exits import EXIT_BAD_CONNECTION, CommandError

if TYPE_CHECKING:
    import ssl

Response = TypeVar("Response", bound=Message)

READ_BYTES = 1 << 18
"""Read from the socket at once."""

MESSAGE_BYTES_MAX = (1 << 31) - 1
"""Largest answer taken: a range may be as large as the store."""

RETRY_SECONDS = 0.1
"""Pause after all endpoints failed; a command is short, so it does not grow."""

DEADLINE_TEXT = "context deadline exceeded"
CANCELLED_TEXT = "context canceled"

READ_ONLY = frozenset(
    {
        "KV/Range",
        "Lease/LeaseTimeToLive",
        "Lease/LeaseLeases",
        "Cluster/MemberList",
        "Maintenance/Status",
        "Maintenance/HashKV",
        "Auth/AuthStatus",
        "Auth/UserGet",
        "Auth/UserList",
        "Auth/RoleGet",
        "Auth/RoleList",
    }
)

_CODE_NAMES = {Code.CANCELLED: "Canceled", Code.OK: "OK"}


class CallError(Exception):
    """A call failed.

    Attributes:
        code: gRPC status code.
        message: The server's text.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        """Answer what etcdctl prints: the server's text alone when it is one of etcd's errors."""
        if self.message.startswith(("etcdserver: ", "auth: ")):
            return self.message
        if self.code == Code.DEADLINE_EXCEEDED:
            return DEADLINE_TEXT
        if self.code == Code.CANCELLED and self.message == CANCELLED_TEXT:
            return CANCELLED_TEXT
        return f"rpc error: code = {_code_name(self.code)} desc = {self.message}"


def _code_name(code: int) -> str:
    try:
        known = Code(code)
    except ValueError:
        return f"Code({code})"
    return _CODE_NAMES.get(known) or "".join(part.capitalize() for part in known.name.split("_"))


class Credentials:
    """A user and a password."""

    __slots__ = ("password", "user")

    def __init__(self, user: str, password: str) -> None:
        self.user = user
        self.password = password


class Duty(Protocol):
    """Something that must be done now and then while a command waits."""

    def due(self) -> float:
        """Answer when, on the monotonic clock."""

    def do(self) -> None:
        """Do what is due; called often, also when nothing is."""


class _Unary:
    """Where the outcome of a unary call goes."""

    __slots__ = ("deadline", "error", "message", "result", "stream_id")

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.message: bytes | None = None
        self.stream_id = 0
        self.result: bytes | None = None
        self.error: GrpcError | None = None

    def done(self) -> bool:
        return self.result is not None or self.error is not None

    def set_result(self, result: bytes, /) -> None:
        self.result = result

    def set_exception(self, error: GrpcError, /) -> None:
        self.error = error


class Stream(CallStream):
    """A call with messages in both directions."""

    __slots__ = ("ended", "error", "messages")

    def __init__(self, machine: ClientConnection) -> None:
        super().__init__(machine)
        self.messages: deque[bytes] = deque()
        self.ended = False
        self.error: GrpcError | None = None

    def send(self, request: Message) -> None:
        """Send one message."""
        if not self.ended:
            self.send_framed(frame_message(request.SerializeToString()))

    def on_message(self, message: bytes) -> None:
        """Keep a message for the reader."""
        self.messages.append(message)

    def on_end(self, error: GrpcError | None) -> None:
        """Note the end."""
        self.ended = True
        self.error = error

    def unread_bytes(self) -> int:
        """Answer what the reader has not taken."""
        return sum(map(len, self.messages))

    def cancel(self) -> None:
        """End the call at once."""
        self.machine.cancel_stream(self, GrpcError(Code.CANCELLED, "cancelled"))


class Target:
    """An endpoint, taken apart."""

    __slots__ = ("address", "secure", "text")

    def __init__(self, text: str, tls_configured: bool) -> None:
        self.text = text
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "", text
        self.secure = scheme in ("https", "unixs") or (tls_configured and scheme not in ("http", "unix"))
        self.address: str | tuple[str, int] | None = None
        if scheme in ("unix", "unixs"):
            self.address = rest
        else:
            host, colon, port = rest.partition("/")[0].rpartition(":")
            if colon and port.isdigit():
                self.address = (host.strip("[]"), int(port))

    @property
    def authority(self) -> str:
        """The ``:authority`` of requests."""
        return self.text.partition("://")[2] or self.text


class Connection:
    """One connection: the machine and its socket."""

    def __init__(self, target: Target, tls: ssl.SSLContext | None, timeout: float) -> None:
        """Connect.

        Raises:
            OSError: not connected in time.
        """
        address = target.address
        if address is None:
            raise OSError(f"address {target.text}: missing port in address")
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.secure:
            if tls is None:
                import ssl

                tls = ssl.create_default_context()
                tls.set_alpn_protocols(["h2"])
            try:
                self.socket = tls.wrap_socket(
                    self.socket, server_hostname=address[0] if isinstance(address, tuple) else "localhost"
                )
            except BaseException:
                self.socket.close()
                raise
        self.socket.settimeout(None)
        self.target = target
        self.machine = ClientConnection(
            target.authority,
            scheme="https" if target.secure else "http",
            user_agent=f"kvctl/{KVSERVER_VERSION}",
            limits=WireLimits(message_bytes_max=MESSAGE_BYTES_MAX),
            clock=time.monotonic,
            completion_type=_Unary,
        )

    @property
    def usable(self) -> bool:
        """Whether a new call may start."""
        return not (self.machine.closing or self.machine.draining)

    def flush(self) -> None:
        """Send what there is to send."""
        data = self.machine.data_to_send()
        if data:
            try:
                self.socket.sendall(data)
            except OSError as error:
                self.machine.connection_failed(str(error))

    def read(self) -> None:
        """Take what has arrived; call it when there is something."""
        try:
            data = self.socket.recv(READ_BYTES)
            while True:
                if not data:
                    self.machine.connection_failed("error reading from server: EOF")
                    return
                self.machine.receive(data)
                pending = getattr(self.socket, "pending", None)
                if pending is None or not pending():
                    return
                data = self.socket.recv(READ_BYTES)
        except OSError as error:
            self.machine.connection_failed(str(error))

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


class Client:
    """Calls and streams over the first endpoint that works.

    Args:
        endpoints: The servers as on the command line.
        tls: Context for TLS.
        credentials: Whom to authenticate as.
        dial_timeout: How long connecting may take, in seconds.
        keepalive_seconds: Ping a server that is silent for so long while a stream is open.
        keepalive_timeout_seconds: Give it up when it has not answered after so long.
        warn: Told why a server cannot be reached.
    """

    def __init__(
        self,
        endpoints: list[str],
        *,
        tls: ssl.SSLContext | None,
        credentials: Credentials | None,
        dial_timeout: float,
        keepalive_seconds: float,
        keepalive_timeout_seconds: float,
        warn: Callable[[str], None],
    ) -> None:
        self.endpoints = endpoints
        self.background: Duty | None = None
        self.interrupted = False
        self._tls = tls
        self._targets = [Target(endpoint, tls is not None) for endpoint in endpoints]
        self._credentials = credentials
        self._metadata: tuple[tuple[bytes, bytes], ...] = ()
        self._dial_timeout = dial_timeout
        # etcd drops clients that ping more often than every five seconds; its own client rounds up to ten.
        self._keepalive = (max(10.0, keepalive_seconds), keepalive_timeout_seconds)
        self._warn = warn
        self._warned = ""
        self._next = 0
        self._connection: Connection | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_read = self._wake_write = -1

    def only(self, endpoint: str) -> Client:
        """Answer a client like this one for one endpoint."""
        client = Client(
            [endpoint],
            tls=self._tls,
            credentials=self._credentials,
            dial_timeout=self._dial_timeout,
            keepalive_seconds=self._keepalive[0],
            keepalive_timeout_seconds=self._keepalive[1],
            warn=self._warn,
        )
        client._metadata = self._metadata
        return client

    # calls

    def call(self, method: str, request: Message, response_type: type[Response], timeout: float | None) -> Response:
        """Call a unary method.

        Args:
            method: ``Service/Method`` of ``etcdserverpb``.
            request: The request.
            response_type: The answer's type.
            timeout: Seconds for all of it, pauses and repetitions included; None for as long as it takes.

        Raises:
            CallError: it failed.
        """
        path = b"/etcdserverpb." + method.encode()
        payload = request.SerializeToString()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            connection = self._connect(deadline)
            unary = _Unary()
            remaining = None if deadline is None else max(0.001, deadline - time.monotonic())
            connection.machine.start_unary(unary, path, payload, remaining, self._metadata)
            if not self.wait(unary.done, deadline):
                connection.machine.cancel_unary(unary)
                raise CallError(Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)
            if unary.result is not None:
                return response_type.FromString(unary.result)
            error = unary.error
            assert error is not None
            unavailable = error.code == Code.UNAVAILABLE and method in READ_ONLY
            if error.sent and not unavailable:
                raise CallError(error.code, error.message)
            if error.sent and connection.usable:
                self.pause(deadline)
            else:
                self._leave(connection)

    def stream(self, method: str, deadline: float | None = None) -> Stream:
        """Open a stream; it lives on one connection and ends with it.

        Raises:
            CallError: no server was reached until the deadline.
        """
        connection = self._connect(deadline)
        stream = Stream(connection.machine)
        connection.machine.start_stream(
            stream, b"/etcdserverpb." + method.encode(), None, ((b"hasleader", b"true"), *self._metadata)
        )
        return stream

    def receive(self, stream: Stream, deadline: float | None = None) -> bytes | None:
        """Answer a stream's next message, None at its end.

        Raises:
            CallError: it failed, or the deadline passed.
        """
        if not self.wait(lambda: bool(stream.messages) or stream.ended, deadline):
            raise CallError(Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)
        if stream.messages:
            message = stream.messages.popleft()
            stream.grant()
            return message
        if stream.error is not None:
            raise CallError(stream.error.code, stream.error.message)
        return None

    def authenticate(self) -> None:
        """Trade user and password for a token, if there are any.

        Raises:
            CommandError: the server refuses them, or none is reached.
        """
        credentials = self._credentials
        if credentials is None:
            return
        request = rpc_pb2.AuthenticateRequest(name=credentials.user, password=credentials.password)
        try:
            answer = self.call("Auth/Authenticate", request, rpc_pb2.AuthenticateResponse, self._dial_timeout)
        except CallError as error:
            if error.message == "etcdserver: authentication is not enabled":
                return
            raise CommandError(EXIT_BAD_CONNECTION, str(error)) from None
        self._metadata = ((b"token", answer.token.encode()),)

    # waiting

    def wait(self, until: Callable[[], bool], deadline: float | None = None) -> bool:
        """Keep things going until ``until()`` holds; answer False when the deadline passed first."""
        while True:
            duty = self.background
            if duty is not None:
                self.background = None  # its own calls wait too, without coming back here
                try:
                    duty.do()
                finally:
                    self.background = duty
            if until():
                return True
            # Only now: asking may have connected, or given it something to send.
            connection = self._connection
            if connection is not None:
                connection.flush()
                if connection.machine.closing and until():
                    return True
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            times = [moment for moment in (deadline, duty.due() if duty else None) if moment is not None]
            if connection is not None and connection.machine.stream_count:
                times.append(now + 1.0)
            self._select(max(0.0, min(times) - now) if times else None, connection)

    def _select(self, timeout: float | None, connection: Connection | None) -> None:
        if connection is not None and connection.machine.closing:
            connection = None
        if connection is not None:
            self._selector.register(connection.socket, selectors.EVENT_READ)
        try:
            for key, _ in self._selector.select(timeout):
                if key.fd == self._wake_read:
                    os.read(self._wake_read, 4096)
                elif connection is not None:
                    connection.read()
        finally:
            if connection is not None:
                self._selector.unregister(connection.socket)
        if connection is not None:
            reason = connection.machine.on_tick(time.monotonic(), *self._keepalive)
            if reason is not None:
                connection.machine.connection_failed(reason)

    def wake(self) -> None:
        """Make :meth:`wait` look again; from any thread."""
        os.write(self.wake_descriptor(), b"\0")

    def wake_descriptor(self) -> int:
        """Answer the descriptor that wakes :meth:`wait` when a byte is written to it."""
        if self._wake_write < 0:
            self._wake_read, self._wake_write = os.pipe()
            os.set_blocking(self._wake_write, False)
            self._selector.register(self._wake_read, selectors.EVENT_READ)
        return self._wake_write

    # connections

    def _connect(self, deadline: float | None) -> Connection:
        while True:
            connection = self._connection
            if connection is not None:
                if connection.usable:
                    return connection
                self._leave(connection)
            for _ in self._targets:
                target = self._targets[self._next % len(self._targets)]
                limit = self._dial_timeout
                if deadline is not None:
                    limit = min(limit, max(0.001, deadline - time.monotonic()))
                try:
                    self._connection = Connection(target, self._tls, limit)
                    return self._connection
                except OSError as error:
                    self._next += 1
                    self._warn_once(f"cannot reach {target.text}: {error.strerror or error}")
            self.pause(deadline)

    def pause(self, deadline: float | None = None) -> None:
        """Wait a moment before trying again.

        Raises:
            CallError: the deadline passed.
        """
        moment = time.monotonic() + RETRY_SECONDS
        if deadline is not None and moment >= deadline:
            self.wait(lambda: self.interrupted, deadline)
            raise CallError(Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)
        self.wait(lambda: self.interrupted, moment)
        if self.interrupted:
            raise CallError(Code.CANCELLED, CANCELLED_TEXT)

    def _leave(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            self._next += 1
        connection.close()

    def _warn_once(self, text: str) -> None:
        if text != self._warned:
            self._warned = text
            from recipes.ctl.gotext import json_string

            self._warn(f'{{"level":"warn","logger":"kvctl","msg":{json_string(text)}}}')

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.flush()
            self._leave(self._connection)
        self._selector.close()
        if self._wake_write >= 0:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = self._wake_write = -1
