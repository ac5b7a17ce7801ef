"""A lease that is kept alive while a command waits, and the waiting of locks and elections on it.

The keys are those of Go's concurrency package: ``<name>/<lease id in hex>``; whose key has the lowest create revision
owns. So etcdctl, Go programs, kvctl and the recipes exclude each other.

States: alive -> lost. It is lost when the server says so, or when its TTL has passed with no renewal answered.
"""

from __future__ import annotations

import time

from kvserver.errors import Code
from kvserver.proto import kv_pb2, rpc_pb2
from recipes.ctl.exits import EXIT_ERROR, CommandError
from recipes.ctl.following import Watcher, events_of
from recipes.ctl.ranges import prefix_end
from recipes.ctl.transport import CANCELLED_TEXT, CallError, Client, Stream

LOST_TEXT = "session expired"

_NO_PUTS = rpc_pb2.WatchCreateRequest.NOPUT

RECONNECT_SECONDS = 0.5
"""Pause before a broken keepalive stream is made again."""


class LeaseSession:
    """A lease, renewed every third of its TTL by :meth:`Client.wait`.

    Args:
        client: The client.
        ttl: Seconds.
        timeout: For granting and revoking it, in seconds.

    Raises:
        CommandError: it is not granted.
    """

    def __init__(self, client: Client, ttl: int, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._stream: Stream | None = None
        try:
            granted = client.call(
                "Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=ttl), rpc_pb2.LeaseGrantResponse, timeout
            )
        except CallError as error:
            raise CommandError(EXIT_ERROR, str(error)) from None
        self.lease_id = granted.ID
        self.lost = False
        self._ttl = granted.TTL
        self._sent_at = time.monotonic()
        self._next = self._sent_at  # the first renewal at once, as etcdctl
        self._expires = self._sent_at + self._ttl
        client.background = self

    def due(self) -> float:
        """Answer when something is to be done."""
        return min(self._next, self._expires)

    def do(self) -> None:
        """Read answers, renew, notice the loss."""
        if self.lost:
            self._next = self._expires = float("inf")
            return
        now = time.monotonic()
        stream = self._stream
        if stream is not None:
            self._read(stream)
            if stream.ended:
                self._stream = stream = None
                self._next = min(self._next, now + RECONNECT_SECONDS)
        if now >= self._expires:
            self.lost = True
        elif now >= self._next:
            self._next = now + RECONNECT_SECONDS
            try:
                if stream is None:
                    stream = self._stream = self._client.stream("Lease/LeaseKeepAlive", now + RECONNECT_SECONDS)
            except CallError:
                return
            stream.send(rpc_pb2.LeaseKeepAliveRequest(ID=self.lease_id))
            self._sent_at = now
            self._next = now + self._ttl / 3

    def _read(self, stream: Stream) -> None:
        while stream.messages:
            answer = rpc_pb2.LeaseKeepAliveResponse.FromString(stream.messages.popleft())
            stream.grant()
            if answer.TTL <= 0:
                self.lost = True
                return
            self._ttl = answer.TTL
            self._expires = self._sent_at + answer.TTL

    def next_events(self, request: rpc_pb2.WatchCreateRequest) -> list[kv_pb2.Event]:
        """Wait for what a watch tells next, as long as the session lives and the user does not interrupt.

        Raises:
            CallError: the watch failed, or the user interrupted.
            CommandError: the session was lost.
        """
        return next_events(self._client, request, self)

    def close(self) -> None:
        """Revoke the lease; its keys are deleted. Failures are left to its expiry."""
        self._client.background = None
        if self._stream is not None:
            self._stream.cancel()
        if self.lost:
            return
        try:
            self._client.call(
                "Lease/LeaseRevoke",
                rpc_pb2.LeaseRevokeRequest(ID=self.lease_id),
                rpc_pb2.LeaseRevokeResponse,
                self._timeout,
            )
        except CallError:
            return


def next_events(
    client: Client, request: rpc_pb2.WatchCreateRequest, session: LeaseSession | None = None
) -> list[kv_pb2.Event]:
    """Wait for what a watch tells next.

    Raises:
        CallError: the watch failed, or the user interrupted.
        CommandError: the session was lost.
    """
    watcher = Watcher(client)
    watch = watcher.add(request)

    def told() -> bool:
        watcher.pump()
        return bool(watch.responses) or client.interrupted or (session is not None and session.lost)

    try:
        while True:
            client.wait(told)
            if client.interrupted:
                raise CallError(Code.CANCELLED, CANCELLED_TEXT)
            if session is not None and session.lost:
                raise CommandError(EXIT_ERROR, LOST_TEXT)
            events = list(events_of(watch))
            if events:
                return events
    finally:
        watcher.close()


class Claim:
    """A key that claims a name: the lowest create revision below the name's prefix owns it.

    Args:
        client: The client.
        session: What keeps the key.
        name: What is claimed.
        value: The key's value.
        timeout: Seconds for each call.
    """

    def __init__(self, client: Client, session: LeaseSession, name: bytes, value: bytes, timeout: float) -> None:
        self._client = client
        self._session = session
        self._timeout = timeout
        self._prefix = name + b"/"
        self._value = value
        self.key = self._prefix + f"{session.lease_id:x}".encode()
        self.revision = 0

    def acquire(self) -> int:
        """Put the key, and wait until it owns the name.

        Returns:
            The store's revision at which it was seen to own.

        Raises:
            CallError: a call failed, or the user interrupted.
            CommandError: the session was lost.
        """
        answer = self._client.call("KV/Txn", self._claim_request(), rpc_pb2.TxnResponse, self._timeout)
        if answer.succeeded:
            self.revision = answer.header.revision
        else:
            self.revision = answer.responses[0].response_range.kvs[0].create_revision
        owners = answer.responses[1].response_range.kvs
        if not owners or owners[0].create_revision == self.revision:
            return answer.header.revision
        self._wait_for_earlier()
        mine = self._client.call("KV/Range", rpc_pb2.RangeRequest(key=self.key), rpc_pb2.RangeResponse, self._timeout)
        if not mine.kvs:
            raise CommandError(EXIT_ERROR, "mutex: session is expired")
        return mine.header.revision

    def _claim_request(self) -> rpc_pb2.TxnRequest:
        mine = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=self.key))
        put = rpc_pb2.RequestOp(
            request_put=rpc_pb2.PutRequest(key=self.key, value=self._value, lease=self._session.lease_id)
        )
        owner = rpc_pb2.RequestOp(request_range=first_created(self._prefix))
        compare = rpc_pb2.Compare(
            key=self.key, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=0
        )
        return rpc_pb2.TxnRequest(compare=[compare], success=[put, owner], failure=[mine, owner])

    def _wait_for_earlier(self) -> None:
        """Wait until every key made before ours is gone, looking only at the youngest of them."""
        request = rpc_pb2.RangeRequest(
            key=self._prefix,
            range_end=prefix_end(self._prefix),
            sort_target=rpc_pb2.RangeRequest.CREATE,
            sort_order=rpc_pb2.RangeRequest.DESCEND,
            limit=1,
            max_create_revision=self.revision - 1,
        )
        while True:
            earlier = self._client.call("KV/Range", request, rpc_pb2.RangeResponse, self._timeout)
            if not earlier.kvs:
                return
            watch = rpc_pb2.WatchCreateRequest(
                key=earlier.kvs[0].key, start_revision=earlier.header.revision + 1, filters=[_NO_PUTS]
            )
            self._session.next_events(watch)

    def release(self) -> None:
        """Delete the key, if it is still the one that was put.

        Raises:
            CallError: it failed.
        """
        compare = rpc_pb2.Compare(
            key=self.key, target=rpc_pb2.Compare.CREATE, result=rpc_pb2.Compare.EQUAL, create_revision=self.revision
        )
        delete = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=self.key))
        request = rpc_pb2.TxnRequest(compare=[compare] if self.revision else [], success=[delete])
        self._client.call("KV/Txn", request, rpc_pb2.TxnResponse, self._timeout)


def first_created(prefix: bytes) -> rpc_pb2.RangeRequest:
    """Answer the request for the oldest key below a prefix."""
    return rpc_pb2.RangeRequest(
        key=prefix,
        range_end=prefix_end(prefix),
        sort_target=rpc_pb2.RangeRequest.CREATE,
        sort_order=rpc_pb2.RangeRequest.ASCEND,
        limit=1,
    )
