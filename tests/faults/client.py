"""A foreign client for histories: grpcio (its C core), blocking calls, every call recorded.

Translates between the checker's terms and the protocol's messages. A call whose connection breaks, or that is not
answered in time, is recorded with an unknown outcome; nothing is ever repeated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import grpc

from kvserver.proto import kv_pb2, rpc_pb2
from tests.faults.checker import Answer, Call, Compare, Delete, Event, Get, KeyValue, Put, Request, Result, Revoke

CALL_SECONDS_MAX = 10.0
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.max_receive_message_length", -1),
]


class Api:
    """The RPCs that the tests use, on one channel."""

    def __init__(self, endpoint: str) -> None:
        self.channel = grpc.insecure_channel(endpoint, options=OPTIONS)
        self.range = self._unary("KV/Range", rpc_pb2.RangeResponse)
        self.put = self._unary("KV/Put", rpc_pb2.PutResponse)
        self.delete_range = self._unary("KV/DeleteRange", rpc_pb2.DeleteRangeResponse)
        self.txn = self._unary("KV/Txn", rpc_pb2.TxnResponse)
        self.compact = self._unary("KV/Compact", rpc_pb2.CompactionResponse)
        self.lease_grant = self._unary("Lease/LeaseGrant", rpc_pb2.LeaseGrantResponse)
        self.lease_revoke = self._unary("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeResponse)
        self.lease_time_to_live = self._unary("Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveResponse)
        self.lease_leases = self._unary("Lease/LeaseLeases", rpc_pb2.LeaseLeasesResponse)
        self.defragment = self._unary("Maintenance/Defragment", rpc_pb2.DefragmentResponse)
        self.watch = self.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=rpc_pb2.WatchResponse.FromString,
        )

    def _unary(self, path: str, response: Any) -> Callable[..., Any]:
        call = self.channel.unary_unary(
            f"/etcdserverpb.{path}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return lambda message, timeout=CALL_SECONDS_MAX: call(message, timeout=timeout)

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


# -- translation ------------------------------------------------------------------------------------------------------


def key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    """From the protocol."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def event(message: kv_pb2.Event) -> Event:
    """From the protocol."""
    gone = message.type == kv_pb2.Event.DELETE
    return Event(message.kv.key, message.kv.mod_revision, None if gone else key_value(message.kv))


def _operation(operation: Put | Delete | Get | Revoke) -> rpc_pb2.RequestOp:
    match operation:
        case Put(key, value, lease):
            return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease))
        case Delete(key, end):
            return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key, range_end=end))
        case Get(key, end):
            return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, range_end=end))
    raise ValueError(operation)


def _compare(compare: Compare) -> rpc_pb2.Compare:
    message = rpc_pb2.Compare(key=compare.key, result=rpc_pb2.Compare.EQUAL)
    if compare.target == "value":
        message.target, message.value = rpc_pb2.Compare.VALUE, compare.expected
    elif compare.target == "version":
        message.target, message.version = rpc_pb2.Compare.VERSION, compare.expected
    else:
        message.target, message.mod_revision = rpc_pb2.Compare.MOD, compare.expected
    return message


def _result(response: rpc_pb2.ResponseOp) -> Result:
    kind = response.WhichOneof("response")
    if kind == "response_put":
        return None
    if kind == "response_delete_range":
        return int(response.response_delete_range.deleted)
    return tuple(key_value(kv) for kv in response.response_range.kvs)


def perform(api: Api, request: Request) -> Answer:
    """Make a call: a plain one where the request is one operation, else a txn."""
    if not request.compares and len(request.success) == 1 and not request.failure:
        match request.success[0]:
            case Put(key, value, lease):
                answer = api.put(rpc_pb2.PutRequest(key=key, value=value, lease=lease))
                return Answer(answer.header.revision, True, (None,))
            case Delete(key, end):
                answer = api.delete_range(rpc_pb2.DeleteRangeRequest(key=key, range_end=end))
                return Answer(answer.header.revision, True, (int(answer.deleted),))
            case Get(key, end):
                answer = api.range(rpc_pb2.RangeRequest(key=key, range_end=end))
                return Answer(answer.header.revision, True, (tuple(key_value(kv) for kv in answer.kvs),))
            case Revoke(lease):
                answer = api.lease_revoke(rpc_pb2.LeaseRevokeRequest(ID=lease))
                return Answer(answer.header.revision, True, (None,))
    answer = api.txn(
        rpc_pb2.TxnRequest(
            compare=[_compare(compare) for compare in request.compares],
            success=[_operation(operation) for operation in request.success],
            failure=[_operation(operation) for operation in request.failure],
        )
    )
    return Answer(answer.header.revision, answer.succeeded, tuple(_result(each) for each in answer.responses))


def record(client: str, request: Request, calls: list[Call], make: Callable[[], Answer]) -> Call:
    """Make a call and record when it began and ended and what came of it.

    Raises:
        grpc.RpcError: the server refused; an unknown outcome is no error.
    """
    call = Call(client, request, time.monotonic())
    calls.append(call)
    try:
        call.answer = make()
        call.ended = time.monotonic()
    except grpc.RpcError as error:
        if error.code() not in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        ):
            raise
    return call


# -- watchers ---------------------------------------------------------------------------------------------------------


class Watcher(threading.Thread):
    """Watches everything from a revision on, through restarts: resumes after the last revision that it got.

    Attributes:
        responses: (header revision, events) of each response with events.
        resumptions: how often it had to begin again.
        failure: what ended it against its will.
    """

    def __init__(self, endpoint: str, *, start: int = 1, key: bytes = b"\0", end: bytes = b"\0") -> None:
        super().__init__(name="watcher", daemon=True)
        self.responses: list[tuple[int, list[Event]]] = []
        self.resumptions = -1
        self.failure: BaseException | None = None
        self.seen = start - 1
        self._range = (key, end)
        self._endpoint = endpoint
        self._closing = threading.Event()
        self._progress = threading.Condition()
        self._call: Any = None

    def run(self) -> None:
        """Watch until closed."""
        api = Api(self._endpoint)
        try:
            while not self._closing.is_set():
                try:
                    grpc.channel_ready_future(api.channel).result(timeout=0.2)
                    self._watch(api)
                except grpc.FutureTimeoutError:
                    continue
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        raise
        except BaseException as error:
            self.failure = error
        finally:
            api.close()
            with self._progress:
                self._progress.notify_all()

    def _watch(self, api: Api) -> None:
        self.resumptions += 1
        requests: SimpleQueue[rpc_pb2.WatchRequest | None] = SimpleQueue()
        key, end = self._range
        requests.put(
            rpc_pb2.WatchRequest(
                create_request=rpc_pb2.WatchCreateRequest(key=key, range_end=end, start_revision=self.seen + 1)
            )
        )
        self._call = call = api.watch(iter(requests.get, None))
        try:
            for response in call:
                if response.canceled:
                    raise AssertionError(f"cancelled: {response}")
                if response.events:
                    events = [event(each) for each in response.events]
                    self.responses.append((response.header.revision, events))
                    with self._progress:
                        self.seen = events[-1].revision
                        self._progress.notify_all()
                if self._closing.is_set():
                    return
        finally:
            requests.put(None)
            call.cancel()

    def wait_for(self, revision: int, seconds_max: float = 30.0) -> None:
        """Wait until it has got a revision.

        Raises:
            AssertionError: it failed, or the revision did not come in time.
        """
        with self._progress:
            arrived = self._progress.wait_for(lambda: self.seen >= revision or not self.is_alive(), timeout=seconds_max)
        if self.failure is not None:
            raise AssertionError(f"a watcher failed: {self.failure!r}") from self.failure
        assert arrived, f"a watcher waits for revision {revision} and has seen {self.seen}"

    def close(self) -> None:
        """End it."""
        self._closing.set()
        if self._call is not None:
            self._call.cancel()
        self.join()


def read_log(endpoint: str, revision: int) -> list[Event]:
    """Answer all events up to a revision, through a watch from the beginning."""
    watcher = Watcher(endpoint)
    watcher.start()
    try:
        watcher.wait_for(revision)
    finally:
        watcher.close()
    events = [each for _, found in watcher.responses for each in found]
    return [each for each in events if each.revision <= revision]
