"""A channel: calls over several endpoints, as if they were one server.

One connection at a time carries everything; when it fails, the next endpoint is tried, after a jittered pause once
every endpoint has failed. A channel belongs to the event loop on which it is first used.

The rule for failures (the *unknown outcome* rule):

- a request that surely never reached a server (``GrpcError.sent`` is false) is sent again until its deadline;
- a request that only reads is sent again after any failure that says "not now", until its deadline;
- a write that was sent and not answered is never sent again: :class:`~recipes.errors.OutcomeUnknownError`.

``unary`` is hot: the path without failures makes no task, no timer of its own and no closure.
What must not live here: messages and their meaning (``rpc``), watches (``watch``).
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvserver.errors import Code
from kvserver.proto import rpc_pb2
from kvserver.wire.client import ClientStream, GrpcConnection, GrpcError
from recipes.client.endpoints import Endpoint, parse_endpoints
from recipes.errors import (
    ClientError,
    DeadlineExceededError,
    OutcomeUnknownError,
    UnavailableError,
    client_error,
)

logger = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 2.0
"""Pauses between rounds over all endpoints double between these, each drawn from [half, whole]: after an outage a
thousand clients do not arrive at once, and none waits long for a server that is back."""

RETIRED_SECONDS = 30.0
"""How long a connection that was given up but still works is kept for the calls under way on it."""

CLOSE_SECONDS_MAX = 2.0
"""How long closing a connection may take before it is dropped."""

PING_SECONDS = 10.0
"""A server that is silent for so long while calls are open is pinged; etcd allows a ping every 5 s."""

NO_LEADER_TEXT = "etcdserver: no leader"
INVALID_TOKEN_TEXT = "etcdserver: invalid auth token"

_DEFINITE = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.RESOURCE_EXHAUSTED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)
"""Codes with which a server says that it did not do what was asked."""

_AUTHENTICATE = b"/etcdserverpb.Auth/Authenticate"


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """How to reach the servers; the same value makes the same channel on another loop.

    Attributes:
        endpoints: The servers, in the order in which they are tried.
        timeout_seconds: Deadline of a call that names none.
        dial_timeout_seconds: How long connecting to one endpoint may take.
        tls: Context for TLS; needed for none of the endpoints when None, unless an address says ``https``.
        user: Name to authenticate with, None for no authentication.
        password: The user's password.
    """

    endpoints: tuple[Endpoint, ...]
    timeout_seconds: float = 5.0
    dial_timeout_seconds: float = 2.0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    user: str | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def parse(
        cls,
        endpoints: str | Sequence[str],
        *,
        timeout: float = 5.0,
        dial_timeout: float = 2.0,
        tls: ssl.SSLContext | None = None,
        user: str | None = None,
        password: str = "",
    ) -> ChannelConfig:
        """Make a configuration from addresses as people write them.

        Raises:
            ValueError: an address or a timeout makes no sense.
        """
        if timeout <= 0 or dial_timeout <= 0:
            raise ValueError(f"timeout ({timeout}) and dial_timeout ({dial_timeout}) must be above 0 seconds")
        return cls(parse_endpoints(endpoints), timeout, dial_timeout, tls, user, password)


class Channel:
    """Calls and streams over the endpoints of a configuration.

    Args:
        config: Where the servers are and how to reach them.
        rng: Chance for the pauses between attempts; tests give a seeded one.
    """

    __slots__ = (
        "_closed",
        "_connecting",
        "_connection",
        "_loop",
        "_metadata",
        "_next",
        "_retired",
        "_rng",
        "_rounds_failed",
        "_stream_metadata",
        "_timeout",
        "_token",
        "config",
        "connected_to",
    )

    def __init__(self, config: ChannelConfig, *, rng: random.Random | None = None) -> None:
        self.config = config
        self.connected_to: Endpoint | None = None
        self._timeout = config.timeout_seconds
        self._rng = rng if rng is not None else random.Random()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: GrpcConnection | None = None
        self._connecting: asyncio.Task[GrpcConnection] | None = None
        self._retired: set[GrpcConnection] = set()
        self._next = 0
        self._rounds_failed = 0
        self._closed = False
        self._token: bytes | None = None
        self._metadata: tuple[tuple[bytes, bytes], ...] = ()
        self._stream_metadata: tuple[tuple[bytes, bytes], ...] = ((b"hasleader", b"true"),)

    # calls

    async def unary(
        self, path: bytes, message: bytes, timeout: float | None = None, *, read_only: bool = False
    ) -> bytes:
        """Call a unary method.

        Args:
            path: ``/package.Service/Method``.
            message: The serialized request.
            timeout: Deadline in seconds; the channel's default when None.
            read_only: The request changes nothing, so it may be repeated.

        Returns:
            The serialized answer.

        Raises:
            OutcomeUnknownError: a write was sent and its answer lost.
            UnavailableError: no server could be reached in time.
            DeadlineExceededError: a read was not answered in time.
            ClientError: the server refused; code and text are its own.
        """
        connection = self._connection
        if timeout is None:
            timeout = self._timeout
        if connection is None or connection.closed or asyncio.get_running_loop() is not self._loop:
            return await self._unary_slowly(path, message, timeout, read_only, None)
        try:
            return await connection.unary(path, message, timeout_seconds=timeout, metadata=self._metadata)
        except GrpcError as error:
            if not self._may_repeat(error, read_only):
                raise self._error_of(error, read_only) from None
            failed = error
        self._give_up(connection, failed)
        return await self._unary_slowly(path, message, timeout, read_only, failed)

    async def _unary_slowly(
        self, path: bytes, message: bytes, timeout: float, read_only: bool, failed: GrpcError | None
    ) -> bytes:
        """Call while connecting, failing over and pausing, until the deadline."""
        deadline = time.monotonic() + timeout
        attempt = 0
        while True:
            if failed is not None and attempt > 0:
                pause = self._pause(attempt)
                if time.monotonic() + pause >= deadline:
                    raise self._error_of(failed, read_only)
                await asyncio.sleep(pause)
            attempt += 1
            connection = await self.connection(deadline - time.monotonic())
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise DeadlineExceededError(f"not connected in {timeout:g} s")
            try:
                return await connection.unary(path, message, timeout_seconds=remaining, metadata=self._metadata)
            except GrpcError as error:
                if not self._may_repeat(error, read_only):
                    raise self._error_of(error, read_only) from None
                failed = error
            self._give_up(connection, failed)

    async def stream(self, path: bytes, *, timeout: float | None = None) -> ClientStream:
        """Open a stream; it lives on one connection and ends with it.

        Args:
            path: ``/package.Service/Method``.
            timeout: How long to wait for a connection; the channel's default when None.
        """
        connection = self._connection
        if connection is None or connection.closed or asyncio.get_running_loop() is not self._loop:
            connection = await self.connection(self._timeout if timeout is None else timeout)
        return connection.stream(path, metadata=self._stream_metadata)

    # connections

    async def connection(self, timeout: float) -> GrpcConnection:
        """Answer an open connection, connecting to the next endpoint that works.

        Raises:
            UnavailableError: none could be reached in time.
        """
        self._check_usable()
        deadline = time.monotonic() + timeout
        while True:
            connection = self._connection
            if connection is not None and not connection.closed:
                return connection
            if self._connecting is None:
                self._connecting = asyncio.ensure_future(self._connect_round())
                self._connecting.add_done_callback(_mark_retrieved)
            task = self._connecting
            remaining = deadline - time.monotonic()
            done, _ = await asyncio.wait({task}, timeout=max(0.0, remaining))
            if not done:
                names = ", ".join(map(str, self.config.endpoints))
                raise UnavailableError(f"no server reached at {names} in {timeout:g} s: is one running there?")
            if task.cancelled():
                self._check_usable()
                continue
            error = task.exception()
            if error is None:
                continue
            if not isinstance(error, UnavailableError) or time.monotonic() >= deadline:
                raise error

    async def _connect_round(self) -> GrpcConnection:
        """Try every endpoint once, beginning with the next one; a pause first when the last round failed."""
        try:
            if self._rounds_failed:
                await asyncio.sleep(self._pause(self._rounds_failed))
            endpoints = self.config.endpoints
            reasons = []
            for _ in endpoints:
                endpoint = endpoints[self._next % len(endpoints)]
                try:
                    connection = await self._connect(endpoint)
                except (TimeoutError, OSError, GrpcError) as error:
                    self._next += 1
                    reasons.append(f"{endpoint} ({_reason(error)})")
                    continue
                if self._closed:
                    await _close_quietly(connection)
                    raise RuntimeError("the client is closed")
                self._rounds_failed = 0
                self._connection = connection
                self.connected_to = endpoint
                return connection
            self._rounds_failed += 1
            raise UnavailableError(f"no server reached: {', '.join(reasons)}; is one running there?")
        finally:
            self._connecting = None

    async def _connect(self, endpoint: Endpoint) -> GrpcConnection:
        config = self.config
        tls = config.tls
        if tls is None and endpoint.tls:
            tls = ssl.create_default_context()
        connection = await GrpcConnection.connect(
            endpoint.host,
            endpoint.port,
            ssl=tls,
            timeout_seconds=config.dial_timeout_seconds,
            keepalive_seconds=PING_SECONDS,
        )
        if config.user is not None and self._token is None:
            try:
                await self._authenticate(connection)
            except BaseException:
                await _close_quietly(connection)
                raise
        return connection

    async def _authenticate(self, connection: GrpcConnection) -> None:
        """Trade name and password for a token, which every later call carries."""
        request = rpc_pb2.AuthenticateRequest(name=self.config.user or "", password=self.config.password)
        try:
            answer = await connection.unary(
                _AUTHENTICATE, request.SerializeToString(), timeout_seconds=self.config.dial_timeout_seconds
            )
        except GrpcError as error:
            if error.code == Code.UNAVAILABLE or not error.sent:
                raise
            raise client_error(error.code, error.message) from None
        self._token = rpc_pb2.AuthenticateResponse.FromString(answer).token.encode()
        self._metadata = ((b"token", self._token),)
        self._stream_metadata = ((b"hasleader", b"true"), (b"token", self._token))

    def _give_up(self, connection: GrpcConnection, error: GrpcError) -> None:
        """Stop using a connection on which a call failed; the next call goes to the next endpoint."""
        if error.code == Code.UNAUTHENTICATED:
            self._token = None
        if self._connection is not connection:
            return
        self._connection = None
        self._next += 1
        if not connection.closed and self._loop is not None:
            self._retired.add(connection)
            self._loop.call_later(RETIRED_SECONDS, self._close_retired, connection)
        logger.info("leaving %s: %s", self.connected_to, error.message)

    def _close_retired(self, connection: GrpcConnection) -> None:
        if connection in self._retired and self._loop is not None and not self._closed:
            self._retired.discard(connection)
            task = self._loop.create_task(_close_quietly(connection))
            _BACKGROUND.add(task)
            task.add_done_callback(_BACKGROUND.discard)

    def leave(self, reason: str) -> None:
        """Give up the present connection, which seems dead; the next call goes to the next endpoint."""
        connection = self._connection
        if connection is not None:
            self._give_up(connection, GrpcError(Code.UNAVAILABLE, reason))

    def forget_token(self) -> None:
        """Authenticate again before the next call: the servers no longer take the token."""
        self._token = None
        self.leave("the token is no longer valid")

    def drop(self) -> None:
        """Cut the present connection hard, as a network failure would; for tests."""
        connection = self._connection
        if connection is not None:
            _abort(connection)

    async def close(self) -> None:
        """Close every connection; calls under way fail."""
        if self._closed:
            return
        self._closed = True
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            await asyncio.wait({connecting})
        connections = [*self._retired, *([self._connection] if self._connection is not None else [])]
        self._retired.clear()
        self._connection = None
        for connection in connections:
            await _close_quietly(connection)

    # rules

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed: open a new one")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                "the client belongs to another event loop: make one client per loop, or use recipes.sync from threads"
            )

    def _may_repeat(self, error: GrpcError, read_only: bool) -> bool:
        code = error.code
        if code == Code.UNAUTHENTICATED:
            # The server refused before doing anything; a fresh token is worth one attempt.
            return self.config.user is not None and self._token is not None and error.message == INVALID_TOKEN_TEXT
        if code == Code.DEADLINE_EXCEEDED:
            return False
        if not error.sent:
            return True
        return code == Code.UNAVAILABLE and (read_only or error.message == NO_LEADER_TEXT)

    @staticmethod
    def _error_of(error: GrpcError, read_only: bool) -> ClientError:
        code, message = error.code, error.message
        if read_only or not error.sent or code in _DEFINITE or message == NO_LEADER_TEXT:
            return client_error(code, message)
        return OutcomeUnknownError(code, f"{message} (the write was sent, and may or may not have happened)")

    def _pause(self, attempt: int) -> float:
        whole = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * (1 << min(attempt - 1, 16)))
        return whole * (0.5 + 0.5 * self._rng.random())


_BACKGROUND: set[asyncio.Task[None]] = set()
"""Keeps closing tasks alive until they are done."""


async def _close_quietly(connection: GrpcConnection) -> None:
    try:
        await asyncio.wait_for(connection.close(), CLOSE_SECONDS_MAX)
    except (TimeoutError, OSError, GrpcError):
        _abort(connection)


def _abort(connection: GrpcConnection) -> None:
    transport = connection._transport
    if transport is not None:
        transport.abort()


def _reason(error: Exception) -> str:
    if isinstance(error, GrpcError):
        return error.message
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _mark_retrieved(task: asyncio.Task[GrpcConnection]) -> None:
    """Keep asyncio from reporting a failure for which every waiter has left."""
    if not task.cancelled():
        task.exception()
