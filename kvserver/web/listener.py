"""One port, two protocols: accepts connections, looks at their first bytes, hands them to gRPC or HTTP.

The bytes are peeked (``MSG_PEEK``), so whoever gets the socket reads everything from the start. States of an accepted
connection: *waiting* for bytes (a reader callback on the loop, a deadline) -> *undecided* when too few have come (asked
again after a growing pause, since a peeked socket stays readable) -> handed over, or closed: garbage, a TLS hello on a
plain port, silence until the deadline, end of file.

Accepting never waits for any connection, and takes a bounded number at one go. It pauses when descriptors run out.

Not here: what the protocols do with their sockets, and the deadlines of the handed-over ones.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable

from kvserver import limits
from kvserver.config import Address, address_of
from kvserver.errors import StartupError

log = logging.getLogger(__name__)

_GRPC_FIRST = b"PRI * HTTP/2.0"
_HTTP_FIRSTS = tuple(
    method + b" "
    for method in (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT")
)
_PEEK_BYTES = 24
_RETRY_SECONDS_MIN, _RETRY_SECONDS_MAX = 0.005, 1.0
_BACKLOG = 4096
SWEEP_SECONDS = 1.0
_NO_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

Handover = Callable[[socket.socket, str], None]
"""Takes a connected non-blocking socket and the peer's name."""


class ListenError(StartupError):
    """A listen URL cannot be bound; names it and says what to do."""


class Protocol:
    """What first bytes say."""

    GRPC = "grpc"
    HTTP = "http"
    TLS = "tls"
    GARBAGE = "garbage"


def recognise(first: bytes) -> str | None:
    """Tell the protocol from a connection's first bytes; None while they are too few.

    >>> recognise(b"PRI * HTTP/2.0\\r\\n\\r\\nSM"), recognise(b"POST /v3"), recognise(b"P")
    ('grpc', 'http', None)
    """
    if first[:1] == b"\x16":
        return Protocol.TLS
    if first.startswith(_GRPC_FIRST):
        return Protocol.GRPC
    if first.startswith(_HTTP_FIRSTS):
        return Protocol.HTTP
    if _GRPC_FIRST.startswith(first) or any(method.startswith(first) for method in _HTTP_FIRSTS):
        return None
    return Protocol.GARBAGE


class _Waiting:
    """An accepted connection that has not shown its protocol."""

    __slots__ = ("deadline", "pause_seconds", "peer", "sock", "timer")

    def __init__(self, sock: socket.socket, peer: str, deadline: float) -> None:
        self.sock = sock
        self.peer = peer
        self.deadline = deadline
        self.pause_seconds = _RETRY_SECONDS_MIN
        self.timer: asyncio.TimerHandle | None = None


class Listener:
    """Listens on the URLs of one list.

    Args:
        flag: the flag the URLs come from, for messages.
        urls: where to listen.
        grpc: takes gRPC connections; None: there is no gRPC here.
        http: takes HTTP connections.
        open_connections: how many connections were handed over and are still open.
        connections_max: accept no more than this many.
        reuse_port: set SO_REUSEPORT.
    """

    def __init__(
        self,
        flag: str,
        urls: Iterable[str],
        *,
        grpc: Handover | None,
        http: Handover,
        open_connections: Callable[[], int] = lambda: 0,
        connections_max: int = 1 << 30,
        reuse_port: bool = False,
    ) -> None:
        self._flag = flag
        self._wanted = tuple(urls)
        self._grpc = grpc
        self._http = http
        self._open_connections = open_connections
        self._connections_max = connections_max
        self._reuse_port = reuse_port
        self._sockets: list[socket.socket] = []
        self._unix_paths: list[str] = []
        self._waiting: set[_Waiting] = set()
        self._paused: dict[socket.socket, asyncio.TimerHandle] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._log_second = 0
        self._logged = 0
        self.urls: tuple[str, ...] = ()
        """The URLs as bound: a port 0 is replaced by the real one."""
        self.refused_total = 0
        """Connections closed because they spoke none of the protocols."""
        self._loop = asyncio.get_running_loop()

    def bind(self) -> None:
        """Bind all URLs, without accepting yet.

        Raises:
            ListenError: one cannot be bound; none is then.
        """
        urls = []
        try:
            for url in self._wanted:
                address = address_of(url)
                sock = self._bind_unix(url, address) if address.path else self._bind_tcp(url, address)
                if address.path:
                    urls.append(url)
                else:
                    urls.append(f"{url.rpartition(':')[0]}:{sock.getsockname()[1]}")
        except BaseException:
            self.close()
            raise
        self.urls = tuple(urls)

    def start(self) -> None:
        """Begin to accept."""
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def close(self) -> None:
        """Stop listening, and close the connections that have not shown their protocol."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        for timer in self._paused.values():
            timer.cancel()
        self._sockets.clear()
        self._paused.clear()
        for waiting in list(self._waiting):
            self._end(waiting)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for path in self._unix_paths:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        self._unix_paths.clear()

    # -- binding ------------------------------------------------------------------------------------------------------

    def _bind_tcp(self, url: str, address: Address) -> socket.socket:
        host = "127.0.0.1" if address.host == "localhost" else address.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # elsewhere the option lets two servers share a port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((host, address.port))
            self._listen(sock)
        except OSError as error:
            sock.close()
            raise self._error(url, f"tcp {host}:{address.port}", error) from error
        return sock

    def _bind_unix(self, url: str, address: Address) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                sock.bind(address.path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_dead_socket(address.path):
                    raise
                os.unlink(address.path)
                sock.bind(address.path)
            self._unix_paths.append(address.path)
            self._listen(sock)
        except OSError as error:
            sock.close()
            raise self._error(url, f"unix {address.path}", error) from error
        return sock

    def _listen(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        self._sockets.append(sock)

    def _error(self, url: str, where: str, error: OSError) -> ListenError:
        reason = (error.strerror or str(error)).lower()
        advice = {
            errno.EADDRINUSE: "another process listens there; stop it or choose another port",
            errno.EADDRNOTAVAIL: "this machine has no such address",
            errno.EACCES: "ports below 1024 and foreign directories need more rights",
        }.get(error.errno or 0, "")
        return ListenError(f"--{self._flag}={url}: listen {where}: bind: {reason}" + (f" ({advice})" if advice else ""))

    # -- accepting ----------------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(limits.ACCEPT_BATCH):
            if self._open_connections() + len(self._waiting) >= self._connections_max:
                self._pause(listening, f"{self._connections_max} connections are open, the most that are allowed")
                return
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_RESOURCES:
                    log.warning("accepting a connection failed: %s", error)
                    return
                self._pause(listening, str(error))
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            deadline = time.monotonic() + limits.HTTP_FIRST_BYTES_SECONDS
            waiting = _Waiting(sock, peer_name(address), deadline)
            if not self._look(waiting):
                self._waiting.add(waiting)
                self._loop.add_reader(sock.fileno(), self._readable, waiting)
                if self._sweeper is None:
                    self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _pause(self, listening: socket.socket, reason: str) -> None:
        """Stop accepting for a moment."""
        self._loop.remove_reader(listening.fileno())
        log.warning("accepting pauses: %s", reason)

        def resume() -> None:
            del self._paused[listening]
            self._loop.add_reader(listening.fileno(), self._accept, listening)

        self._paused[listening] = self._loop.call_later(limits.ACCEPT_PAUSE_SECONDS, resume)

    def _sweep(self) -> None:
        """Close what stayed silent. One timer for all, since nearly every connection speaks at once."""
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._waiting else None
        now = time.monotonic()
        for waiting in [one for one in self._waiting if one.deadline <= now]:
            self._note(waiting.peer, "sent too little to tell its protocol in time", _peek(waiting.sock) or b"")
            self._end(waiting)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _readable(self, waiting: _Waiting) -> None:
        self._loop.remove_reader(waiting.sock.fileno())
        if self._look(waiting):
            self._waiting.discard(waiting)
        else:
            # A peeked socket stays readable: ask again in a while instead of spinning.
            waiting.timer = self._loop.call_later(waiting.pause_seconds, self._retry, waiting)
            waiting.pause_seconds = min(2 * waiting.pause_seconds, _RETRY_SECONDS_MAX)

    def _retry(self, waiting: _Waiting) -> None:
        waiting.timer = None
        self._readable(waiting)

    def _look(self, waiting: _Waiting) -> bool:
        """Hand over or close the connection if its first bytes say what it is."""
        sock = waiting.sock
        try:
            first = _peek(sock)
        except OSError as error:
            log.debug("connection of %s failed before its first byte: %s", waiting.peer, error)
            sock.close()
            return True
        if first is None:
            return False
        if not first:
            log.debug("connection of %s closed before its first byte", waiting.peer)
            sock.close()
            return True
        protocol = recognise(first)
        if protocol is None:
            if waiting.pause_seconds == _RETRY_SECONDS_MIN or not _is_ended(sock, len(first)):
                return False
            self._note(waiting.peer, "ended after too little to tell its protocol", first)
            _close(sock)
            return True
        if protocol == Protocol.GRPC and self._grpc is not None:
            self._grpc(sock, waiting.peer)
        elif protocol == Protocol.HTTP:
            self._http(sock, waiting.peer)
        else:
            reason = {
                Protocol.TLS: "started a TLS handshake, but this port is not encrypted: use http:// in its endpoint",
                Protocol.GRPC: f"speaks gRPC to --{self._flag}, which serves HTTP only",
            }.get(protocol, "speaks neither gRPC (HTTP/2) nor HTTP/1.1")
            self._note(waiting.peer, reason, first)
            _close(sock)
        return True

    def _end(self, waiting: _Waiting) -> None:
        self._waiting.discard(waiting)
        if waiting.timer is not None:
            waiting.timer.cancel()
        else:
            self._loop.remove_reader(waiting.sock.fileno())
        _close(waiting.sock)

    def _note(self, peer: str, reason: str, first: bytes) -> None:
        """Log a refused connection, but not more lines a second than a disk can take."""
        self.refused_total += 1
        second = int(time.monotonic())
        if second != self._log_second:
            if self._logged > limits.REFUSED_CONNECTION_LOGS_PER_SECOND:
                extra = self._logged - limits.REFUSED_CONNECTION_LOGS_PER_SECOND
                log.warning("%d more connections were closed", extra)
            self._log_second, self._logged = second, 0
        self._logged += 1
        if self._logged <= limits.REFUSED_CONNECTION_LOGS_PER_SECOND:
            log.warning("closed the connection of %s: it %s; first bytes %r", peer, reason, first)


def peer_name(address: object) -> str:
    """Write a socket's peer address."""
    if isinstance(address, tuple):
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address or "unix")


def _peek(sock: socket.socket) -> bytes | None:
    """Answer the first bytes without taking them; None when there are none yet, empty at the end of the stream."""
    try:
        return sock.recv(_PEEK_BYTES, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return None


def _close(sock: socket.socket) -> None:
    """Close a connection, having read what is there: unread bytes would turn the close into a reset."""
    try:
        sock.recv(65_536)
    except OSError:
        pass
    sock.close()


def _is_ended(sock: socket.socket, size: int) -> bool:
    """Tell whether the peer has finished sending, though bytes are left to read."""
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except (OSError, AttributeError):
        return False  # not TCP, or not Linux: the deadline decides
    return state != 1  # TCP_ESTABLISHED


def _is_dead_socket(path: str) -> bool:
    """Tell whether a path is a socket that nobody listens on, left by a process that was killed."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
