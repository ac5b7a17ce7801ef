"""The same gRPC calls on both servers, made with grpcio, odd ones too: code, text and answer are the same.

Left out is what ends a genuine 3.5.1 process: sort orders and targets that do not exist. Different by intent: a token
sent while authentication is off is ignored here, as in later releases; 3.5.1 calls it invalid.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from kvserver.proto import election_pb2, health_pb2, lock_pb2
from kvserver.proto import rpc_pb2 as pb
from tests.differential.calls import (
    cancel,
    ended_stream,
    half_close,
    lease_of,
    open_stream,
    receive,
    send,
    unary,
)
from tests.differential.harness import Pair, Scenario, Side, Step, cases

UNMARSHAL = [r"(?<=unmarshalling request).*", r"(?<=unmarshal the received message).*"]


def kv(name: str, request: Message | Callable[[Side], Message] | bytes, **options: object) -> Step:
    """Call the KV method that a request is for."""
    kinds = {
        pb.RangeRequest: ("Range", pb.RangeResponse),
        pb.PutRequest: ("Put", pb.PutResponse),
        pb.DeleteRangeRequest: ("DeleteRange", pb.DeleteRangeResponse),
        pb.TxnRequest: ("Txn", pb.TxnResponse),
        pb.CompactionRequest: ("Compact", pb.CompactionResponse),
    }
    method, response = kinds[type(request)]
    return unary(name, f"etcdserverpb.KV/{method}", request, response, **options)


def get(**fields: object) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(**fields))


def put(**fields: object) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(**fields))


def delete(**fields: object) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(**fields))


def nested(**fields: object) -> pb.RequestOp:
    return pb.RequestOp(request_txn=pb.TxnRequest(**fields))


def at(side: Side, offset: int) -> int:
    """Answer a revision from the scenario's start on."""
    return side.start_revision + offset


RANGES = Scenario(
    "range",
    [
        *(kv(f"put {key}", pb.PutRequest(key=key.encode(), value=key.encode() * 2)) for key in "abcd"),
        kv("put b again", pb.PutRequest(key=b"b", value=b"again")),
        kv("empty key", pb.RangeRequest()),
        kv("one key", pb.RangeRequest(key=b"a")),
        kv("no such key", pb.RangeRequest(key=b"nothing")),
        kv("a long key", pb.RangeRequest(key=b"k" * 200)),
        kv("everything", pb.RangeRequest(key=b"\0", range_end=b"\0")),
        kv("from key", pb.RangeRequest(key=b"b", range_end=b"\0")),
        kv("range", pb.RangeRequest(key=b"a", range_end=b"c")),
        kv("empty range", pb.RangeRequest(key=b"c", range_end=b"a")),
        kv("serializable", pb.RangeRequest(key=b"a", serializable=True)),
        kv("limit", pb.RangeRequest(key=b"\0", range_end=b"\0", limit=2)),
        kv("limit as many", pb.RangeRequest(key=b"\0", range_end=b"\0", limit=4)),
        kv("negative limit", pb.RangeRequest(key=b"\0", range_end=b"\0", limit=-2)),
        kv("count only", pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)),
        kv("count only with limit", pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True, limit=1)),
        kv("keys only", pb.RangeRequest(key=b"\0", range_end=b"\0", keys_only=True)),
        kv("count and keys only", pb.RangeRequest(key=b"a", keys_only=True, count_only=True)),
        kv("order without target", pb.RangeRequest(key=b"\0", range_end=b"\0", sort_order=2)),
        kv("target without order", pb.RangeRequest(key=b"\0", range_end=b"\0", sort_target=3)),
        kv("target value descending", pb.RangeRequest(key=b"\0", range_end=b"\0", sort_target=4, sort_order=2)),
        kv("sorted with limit", pb.RangeRequest(key=b"\0", range_end=b"\0", sort_target=1, sort_order=2, limit=1)),
        kv("min and max mod", pb.RangeRequest(key=b"\0", range_end=b"\0", min_mod_revision=1, max_mod_revision=2**40)),
        kv("max create of 1", pb.RangeRequest(key=b"\0", range_end=b"\0", max_create_revision=1)),
        kv(
            "max create of 1 counted",
            pb.RangeRequest(key=b"\0", range_end=b"\0", max_create_revision=1, count_only=True),
        ),
        kv("min mod huge with limit", pb.RangeRequest(key=b"\0", range_end=b"\0", min_mod_revision=2**40, limit=1)),
        kv("negative revision", pb.RangeRequest(key=b"a", revision=-5)),
        kv("future revision", pb.RangeRequest(key=b"a", revision=2**40)),
        kv("compacted revision", pb.RangeRequest(key=b"a", revision=1)),
        unary("malformed", "etcdserverpb.KV/Range", b"\x0a\x05ab", pb.RangeResponse, hide=UNMARSHAL),
        unary("malformed field number", "etcdserverpb.KV/Range", b"\x02\x00", pb.RangeResponse, hide=UNMARSHAL),
        unary("unknown field", "etcdserverpb.KV/Range", b"\x0a\x01a\xa2\x06\x01x", pb.RangeResponse),
        unary("no bytes", "etcdserverpb.KV/Range", b"", pb.RangeResponse),
        unary("unknown method", "etcdserverpb.KV/Scan", b"", pb.RangeResponse),
        unary("unknown service", "etcdserverpb.Things/Scan", b"", pb.RangeResponse),
        unary(
            "requires a leader",
            "etcdserverpb.KV/Range",
            pb.RangeRequest(key=b"a"),
            pb.RangeResponse,
            metadata=[("hasleader", "true"), ("client-api-version", "3.5.1")],
        ),
    ],
)

WRITES = Scenario(
    "writes",
    [
        kv("put", pb.PutRequest(key=b"a", value=b"1")),
        kv("put empty key", pb.PutRequest(value=b"1")),
        kv("put empty value", pb.PutRequest(key=b"e")),
        kv("get empty value", pb.RangeRequest(key=b"e")),
        kv("put prev_kv", pb.PutRequest(key=b"a", value=b"2", prev_kv=True)),
        kv("put prev_kv of nothing", pb.PutRequest(key=b"n", value=b"2", prev_kv=True)),
        kv("put ignore_value", pb.PutRequest(key=b"a", ignore_value=True, prev_kv=True)),
        kv("put ignore_value with a value", pb.PutRequest(key=b"a", value=b"x", ignore_value=True)),
        kv("put ignore_lease with a lease", pb.PutRequest(key=b"a", lease=5, ignore_lease=True)),
        kv("put ignore both of nothing", pb.PutRequest(key=b"zz", ignore_value=True, ignore_lease=True)),
        kv("put ignore_value of nothing with a lease", pb.PutRequest(key=b"zz", ignore_value=True, lease=9)),
        kv("put unknown lease", pb.PutRequest(key=b"a", lease=5)),
        kv("put negative lease", pb.PutRequest(key=b"a", lease=-5)),
        kv("put of nearly the largest size", pb.PutRequest(key=b"big", value=b"x" * 1_572_800)),
        kv("put too large", pb.PutRequest(key=b"big", value=b"x" * 1_573_000)),
        kv("put far too large", pb.PutRequest(key=b"big", value=b"x" * 2_200_000)),
        kv("put binary", pb.PutRequest(key=bytes(range(256)), value=bytes(range(255, -1, -1)))),
        kv("get binary", pb.RangeRequest(key=bytes(range(256)))),
        kv("delete big", pb.DeleteRangeRequest(key=b"big")),
        kv("delete nothing", pb.DeleteRangeRequest(key=b"nothing", prev_kv=True)),
        kv("delete empty key", pb.DeleteRangeRequest()),
        kv("delete empty range", pb.DeleteRangeRequest(key=b"z", range_end=b"a")),
        kv("delete with prev_kv", pb.DeleteRangeRequest(key=b"a", range_end=b"f", prev_kv=True)),
        kv("delete everything", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True)),
        kv("delete again", pb.DeleteRangeRequest(key=b"\0", range_end=b"\0")),
        unary("put malformed", "etcdserverpb.KV/Put", b"\x0a\x05ab", pb.PutResponse, hide=UNMARSHAL),
        kv("compact to 0", pb.CompactionRequest()),
        kv("compact to the future", pb.CompactionRequest(revision=2**40)),
        kv("compact to the past", pb.CompactionRequest(revision=1, physical=True)),
        kv("compact to a negative revision", pb.CompactionRequest(revision=-7)),
    ],
)

EQUAL, GREATER, LESS, NOT_EQUAL = range(4)


def compare(key: bytes, result: int, target: int, **union: object) -> pb.Compare:
    return pb.Compare(key=key, result=result, target=target, **union)  # type: ignore[arg-type]


TXNS = Scenario(
    "txn",
    [
        *(kv(f"put {key}", pb.PutRequest(key=key.encode(), value=key.encode())) for key in "abc"),
        kv("empty", pb.TxnRequest()),
        kv("empty compare key", pb.TxnRequest(compare=[compare(b"", 0, 0, version=1)])),
        kv("empty put key", pb.TxnRequest(success=[put(value=b"1")])),
        kv("empty key in the branch not taken", pb.TxnRequest(failure=[put(value=b"1")])),
        kv("empty range key", pb.TxnRequest(success=[get()])),
        kv("empty delete key", pb.TxnRequest(success=[delete()])),
        kv("empty operation", pb.TxnRequest(success=[pb.RequestOp()])),
        kv("value provided inside", pb.TxnRequest(success=[put(key=b"a", value=b"1", ignore_value=True)])),
        kv("two puts", pb.TxnRequest(success=[put(key=b"k"), put(key=b"k")])),
        kv("put and delete", pb.TxnRequest(success=[put(key=b"k"), delete(key=b"k")])),
        kv("delete and put from key", pb.TxnRequest(success=[delete(key=b"k", range_end=b"\0"), put(key=b"z")])),
        kv("two deletes", pb.TxnRequest(success=[delete(key=b"k"), delete(key=b"k")])),
        kv("duplicate in the failure branch", pb.TxnRequest(failure=[put(key=b"k"), put(key=b"k")])),
        kv(
            "same key on both branches",
            pb.TxnRequest(success=[put(key=b"k", value=b"s")], failure=[put(key=b"k", value=b"f")]),
        ),
        kv("nested put of the same key", pb.TxnRequest(success=[put(key=b"k"), nested(success=[put(key=b"k")])])),
        kv(
            "nested puts on both branches",
            pb.TxnRequest(success=[nested(success=[put(key=b"k")], failure=[put(key=b"k")])]),
        ),
        kv(
            "two nested puts of one key",
            pb.TxnRequest(success=[nested(success=[put(key=b"k")]), nested(failure=[put(key=b"k")])]),
        ),
        kv(
            "nested put in a deleted range",
            pb.TxnRequest(success=[delete(key=b"a", range_end=b"z"), nested(success=[put(key=b"k")])]),
        ),
        kv(
            "nested delete of a put key",
            pb.TxnRequest(success=[put(key=b"k"), nested(success=[delete(key=b"a", range_end=b"z")])]),
        ),
        kv(
            "nested",
            pb.TxnRequest(
                compare=[compare(b"a", EQUAL, 3, value=b"a")],
                success=[
                    put(key=b"a", value=b"changed"),
                    nested(
                        compare=[compare(b"a", EQUAL, 3, value=b"a")],
                        success=[put(key=b"n", value=b"inner"), get(key=b"a"), get(key=b"n")],
                        failure=[put(key=b"m", value=b"wrong")],
                    ),
                    get(key=b"\0", range_end=b"\0", keys_only=True),
                    delete(key=b"b", prev_kv=True),
                ],
            ),
        ),
        kv("after nested", pb.RangeRequest(key=b"\0", range_end=b"\0")),
        kv(
            "three levels",
            pb.TxnRequest(success=[nested(success=[nested(success=[put(key=b"deep", value=b"1", prev_kv=True)])])]),
        ),
        kv("reads only", pb.TxnRequest(success=[get(key=b"a"), get(key=b"nothing"), nested(success=[get(key=b"c")])])),
        *(
            kv(
                f"compare {name}",
                pb.TxnRequest(compare=[condition], success=[get(key=b"a", count_only=True)]),
            )
            for name, condition in {
                "version 0 of a missing key": compare(b"none", EQUAL, 0, version=0),
                "version greater": compare(b"c", GREATER, 0, version=0),
                "version less": compare(b"c", LESS, 0, version=1),
                "version not equal": compare(b"c", NOT_EQUAL, 0, version=1),
                "create of a missing key": compare(b"none", LESS, 1, create_revision=1),
                "mod greater than a negative number": compare(b"none", GREATER, 2, mod_revision=-1),
                "value of a missing key with nothing": compare(b"none", EQUAL, 3, value=b""),
                "value of a missing key not equal": compare(b"none", NOT_EQUAL, 3, value=b"x"),
                "value less": compare(b"c", LESS, 3, value=b"d"),
                "value prefix greater": compare(b"c", GREATER, 3, value=b""),
                "lease of a missing key": compare(b"none", EQUAL, 4, lease=0),
                "target without union": compare(b"c", EQUAL, 0),
                "create without union": compare(b"c", GREATER, 1),
                "union of another target": compare(b"c", EQUAL, 0, value=b"c"),
                "unknown target": compare(b"c", EQUAL, 9, version=1),
                "unknown result": compare(b"c", 9, 0, version=1),
                "a range": pb.Compare(key=b"a", range_end=b"z", result=GREATER, target=0, version=0),
                "a range that differs": pb.Compare(key=b"a", range_end=b"z", result=EQUAL, target=3, value=b"c"),
                "an empty range": pb.Compare(key=b"x", range_end=b"z", result=EQUAL, target=0, version=5),
                "an empty range with zero": pb.Compare(key=b"x", range_end=b"z", result=EQUAL, target=0, version=0),
                "everything": pb.Compare(key=b"a", range_end=b"\0", result=GREATER, target=2, mod_revision=1),
            }.items()
        ),
        kv("future revision inside", pb.TxnRequest(success=[get(key=b"a", revision=2**40)])),
        kv(
            "future revision after a put",
            pb.TxnRequest(success=[put(key=b"lost", value=b"1"), get(key=b"a", revision=2**40)]),
        ),
        kv("nothing was put", pb.RangeRequest(key=b"lost")),
        kv("compacted revision inside", pb.TxnRequest(success=[get(key=b"a", revision=1)])),
        kv("unknown lease inside", pb.TxnRequest(success=[put(key=b"l", lease=77), put(key=b"l2")])),
        kv("ignore_value of nothing inside", pb.TxnRequest(success=[put(key=b"none", ignore_value=True)])),
        kv(
            "get between writes",
            pb.TxnRequest(
                success=[get(key=b"w"), put(key=b"w", value=b"1"), get(key=b"w"), delete(key=b"c"), get(key=b"c")]
            ),
        ),
        kv("delete that finds nothing", pb.TxnRequest(success=[delete(key=b"none")])),
        kv("128 puts", pb.TxnRequest(success=[put(key=b"p%d" % n) for n in range(128)])),
        kv("129 compares", pb.TxnRequest(compare=[compare(b"c", 0, 0, version=1)] * 129)),
        kv("129 gets", pb.TxnRequest(failure=[get(key=b"c")] * 129)),
        kv(
            "127 beside a nested one of two",
            pb.TxnRequest(success=[*[get(key=b"c")] * 126, nested(success=[get(key=b"c")] * 2)]),
        ),
        kv(
            "nested beyond what is left",
            pb.TxnRequest(success=[*[get(key=b"c")] * 126, nested(success=[get(key=b"c")] * 3)]),
        ),
        unary("malformed", "etcdserverpb.KV/Txn", b"\x0a\x7f", pb.TxnResponse, hide=UNMARSHAL),
    ],
)

WATCH = "etcdserverpb.Watch/Watch"


def create(**fields: object) -> pb.WatchRequest:
    return pb.WatchRequest(create_request=pb.WatchCreateRequest(**fields))


def create_at(offset: int, **fields: object) -> Callable[[Side], Message]:
    return lambda side: create(start_revision=at(side, offset), **fields)


WATCHES = Scenario(
    "watch",
    [
        open_stream("w", WATCH, pb.WatchResponse),
        send("create", "w", create(key=b"a")),
        send("create a second", "w", create(key=b"b", range_end=b"c", prev_kv=True)),
        send("create with an id", "w", create(key=b"x", watch_id=7)),
        send("create with the same id", "w", create(key=b"y", watch_id=7)),
        send("create with an automatic id in use", "w", create(key=b"y", watch_id=1)),
        send("create with a negative id", "w", create(key=b"y", watch_id=-9)),
        send("create an empty range", "w", create(key=b"z", range_end=b"y")),
        send("create a range of the same ends", "w", create(key=b"z", range_end=b"z")),
        kv("put a", pb.PutRequest(key=b"a", value=b"1")),
        receive("event of a", "w", 1),
        kv("put b", pb.PutRequest(key=b"b", value=b"1")),
        receive("event of b", "w", 1),
        kv("put b again", pb.PutRequest(key=b"b", value=b"2")),
        receive("event of b with the previous", "w", 1),
        kv("put bb", pb.PutRequest(key=b"bb", value=b"2")),
        receive("event of bb", "w", 1),
        kv("delete b", pb.DeleteRangeRequest(key=b"b", range_end=b"c")),
        receive("deletes in one answer", "w", 1),
        kv(
            "txn",
            pb.TxnRequest(success=[put(key=b"b1", value=b"t"), put(key=b"b2", value=b"t"), put(key=b"other")]),
        ),
        receive("txn in one answer", "w", 1),
        send("cancel", "w", pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=0))),
        send(
            "cancel an unknown id, then create",
            "w",
            pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=99)),
            answers=0,
        ),
        send("an empty request, then create", "w", pb.WatchRequest(), answers=0),
        send("create after a cancel", "w", create(key=b"a")),
        send("create from everything", "w", create(range_end=b"\0")),
        kv("put for everything", pb.PutRequest(key=b"c", value=b"3")),
        receive("event for everything", "w", 1),
        cancel("w"),
        open_stream("past", WATCH, pb.WatchResponse),
        send("from the start", "past", create_at(1, key=b"\0", range_end=b"\0"), answers=2),
        send("from the start with previous", "past", create_at(1, key=b"b", range_end=b"c", prev_kv=True), answers=2),
        send("without puts", "past", create_at(1, key=b"b", range_end=b"c", filters=[0]), answers=2),
        send("without deletes", "past", create_at(1, key=b"b", range_end=b"c", filters=[1]), answers=2),
        send("without anything", "past", create_at(1, key=b"b", range_end=b"c", filters=[0, 1])),
        send("with an unknown filter", "past", create_at(1, key=b"a", filters=[5]), answers=2),
        send("a part", "past", create_at(5, key=b"b", range_end=b"c"), answers=2),
        send("from the current revision", "past", create_at(7, key=b"c"), answers=2),
        send("from the future", "past", create_at(9, key=b"f"), answers=1),
        kv("put before the future", pb.PutRequest(key=b"f", value=b"early")),
        kv("put in the future", pb.PutRequest(key=b"f", value=b"late")),
        receive("events of the future", "past", 3, any_order=True),
        cancel("past"),
        Step("compact", lambda side: _compact(side, 4)),
        open_stream("late", WATCH, pb.WatchResponse),
        send("from a compacted revision", "late", create_at(2, key=b"a"), answers=2),
        send("from just before the compaction", "late", create_at(3, key=b"a"), answers=2),
        send("from the compacted revision itself", "late", create_at(4, key=b"b"), answers=2),
        send("compacted previous", "late", create_at(4, key=b"bb", prev_kv=True), answers=2),
        cancel("late"),
        open_stream("fragments", WATCH, pb.WatchResponse),
        send("create with fragments", "fragments", create(key=b"frag", range_end=b"frah", fragment=True)),
        kv("put a large one", pb.PutRequest(key=b"frag", value=b"x" * 100_000)),
        receive("a large one whole", "fragments", 1, hide=[r"x{50,}"]),
        cancel("fragments"),
        open_stream("broken", WATCH, pb.WatchResponse),
        send("create before it breaks", "broken", create(key=b"a")),
        send("malformed", "broken", b"\x0a\x7f", answers=0),
        ended_stream("broken", hide=UNMARSHAL),
    ],
)


def _compact(side: Side, offset: int) -> dict[str, str]:
    side.call("KV/Compact", pb.CompactionRequest(revision=at(side, offset), physical=True), pb.CompactionResponse)
    return {}


LEASE = "etcdserverpb.Lease/"


def keepalive(name: str) -> Callable[[Side], Message]:
    return lambda side: pb.LeaseKeepAliveRequest(ID=lease_of(side, name))


LEASES = Scenario(
    "lease",
    [
        unary("grant", LEASE + "LeaseGrant", pb.LeaseGrantRequest(TTL=100), pb.LeaseGrantResponse, capture={"l": "ID"}),
        unary("grant an id", LEASE + "LeaseGrant", pb.LeaseGrantRequest(TTL=100, ID=4242), pb.LeaseGrantResponse),
        unary("grant it again", LEASE + "LeaseGrant", pb.LeaseGrantRequest(TTL=50, ID=4242), pb.LeaseGrantResponse),
        unary("grant a negative id", LEASE + "LeaseGrant", pb.LeaseGrantRequest(TTL=9, ID=-3), pb.LeaseGrantResponse),
        unary("grant TTL 0", LEASE + "LeaseGrant", pb.LeaseGrantRequest(ID=1), pb.LeaseGrantResponse),
        unary("grant TTL -7", LEASE + "LeaseGrant", pb.LeaseGrantRequest(ID=2, TTL=-7), pb.LeaseGrantResponse),
        unary("grant TTL 1", LEASE + "LeaseGrant", pb.LeaseGrantRequest(ID=3, TTL=1), pb.LeaseGrantResponse),
        unary(
            "grant the largest TTL",
            LEASE + "LeaseGrant",
            pb.LeaseGrantRequest(ID=5, TTL=9_000_000_000),
            pb.LeaseGrantResponse,
        ),
        unary(
            "grant beyond the largest TTL",
            LEASE + "LeaseGrant",
            pb.LeaseGrantRequest(ID=6, TTL=9_000_000_001),
            pb.LeaseGrantResponse,
        ),
        unary(
            "grant the largest id",
            LEASE + "LeaseGrant",
            pb.LeaseGrantRequest(TTL=100, ID=2**63 - 1),
            pb.LeaseGrantResponse,
        ),
        unary("grant malformed", LEASE + "LeaseGrant", b"\x08", pb.LeaseGrantResponse, hide=UNMARSHAL),
        kv("put with it", pb.PutRequest(key=b"k1", lease=4242)),
        kv("put another with it", pb.PutRequest(key=b"k2", lease=4242)),
        kv("get it", pb.RangeRequest(key=b"k1")),
        unary(
            "time to live",
            LEASE + "LeaseTimeToLive",
            pb.LeaseTimeToLiveRequest(ID=4242),
            pb.LeaseTimeToLiveResponse,
            hide=[r"\bTTL: \d+"],
        ),
        unary(
            "time to live of nothing",
            LEASE + "LeaseTimeToLive",
            pb.LeaseTimeToLiveRequest(ID=99, keys=True),
            pb.LeaseTimeToLiveResponse,
        ),
        unary("revoke", LEASE + "LeaseRevoke", pb.LeaseRevokeRequest(ID=4242), pb.LeaseRevokeResponse),
        unary("revoke again", LEASE + "LeaseRevoke", pb.LeaseRevokeRequest(ID=4242), pb.LeaseRevokeResponse),
        unary("revoke 0", LEASE + "LeaseRevoke", pb.LeaseRevokeRequest(), pb.LeaseRevokeResponse),
        kv("its keys are gone", pb.RangeRequest(key=b"k", range_end=b"l")),
        open_stream("keepalive", LEASE + "LeaseKeepAlive", pb.LeaseKeepAliveResponse),
        send("keepalive", "keepalive", keepalive("l")),
        send("keepalive of nothing", "keepalive", pb.LeaseKeepAliveRequest(ID=99)),
        send("keepalive of 0", "keepalive", pb.LeaseKeepAliveRequest()),
        send("keepalive of the largest TTL", "keepalive", pb.LeaseKeepAliveRequest(ID=5)),
        half_close("keepalive"),
        open_stream("keepalive broken", LEASE + "LeaseKeepAlive", pb.LeaseKeepAliveResponse),
        send("keepalive malformed", "keepalive broken", b"\x08", answers=0),
        ended_stream("keepalive broken", hide=UNMARSHAL),
    ],
)

LOCK = "v3lockpb.Lock/"
ELECTION = "v3electionpb.Election/"


def leader_key(side: Side) -> election_pb2.LeaderKey:
    return election_pb2.LeaderKey(name=b"vote", key=b"vote/1001", rev=int(side.captured["rev"], 16), lease=0x1001)


LOCKS = Scenario(
    "lock and election",
    [
        *(
            unary(
                f"grant {number:x}",
                LEASE + "LeaseGrant",
                pb.LeaseGrantRequest(TTL=600, ID=number),
                pb.LeaseGrantResponse,
            )
            for number in (0x1001, 0x1002)
        ),
        unary("lock", LOCK + "Lock", lock_pb2.LockRequest(name=b"m", lease=0x1001), lock_pb2.LockResponse),
        unary("lock again", LOCK + "Lock", lock_pb2.LockRequest(name=b"m", lease=0x1001), lock_pb2.LockResponse),
        unary(
            "lock held by another",
            LOCK + "Lock",
            lock_pb2.LockRequest(name=b"m", lease=0x1002),
            lock_pb2.LockResponse,
            timeout_seconds=0.3,
            times_out=True,
        ),
        Step("waiter leaves no key", lambda side: _wait_count(side, b"m/", 1)),
        unary(
            "lock without lease",
            LOCK + "Lock",
            lock_pb2.LockRequest(name=b"o"),
            lock_pb2.LockResponse,
            capture={"key": "key"},
        ),
        unary(
            "lock with an unknown lease", LOCK + "Lock", lock_pb2.LockRequest(name=b"m", lease=5), lock_pb2.LockResponse
        ),
        unary(
            "lock with a negative lease",
            LOCK + "Lock",
            lock_pb2.LockRequest(name=b"m", lease=-5),
            lock_pb2.LockResponse,
        ),
        unary("lock without name", LOCK + "Lock", lock_pb2.LockRequest(lease=0x1001), lock_pb2.LockResponse),
        unary("lock malformed", LOCK + "Lock", b"\x0a\x7f", lock_pb2.LockResponse, hide=UNMARSHAL),
        unary("unlock", LOCK + "Unlock", lock_pb2.UnlockRequest(key=b"m/1001"), lock_pb2.UnlockResponse),
        unary("unlock again", LOCK + "Unlock", lock_pb2.UnlockRequest(key=b"m/1001"), lock_pb2.UnlockResponse),
        unary("unlock without key", LOCK + "Unlock", lock_pb2.UnlockRequest(), lock_pb2.UnlockResponse),
        unary(
            "lock by the other now", LOCK + "Lock", lock_pb2.LockRequest(name=b"m", lease=0x1002), lock_pb2.LockResponse
        ),
        unary("no leader", ELECTION + "Leader", election_pb2.LeaderRequest(name=b"vote"), election_pb2.LeaderResponse),
        open_stream("observe", ELECTION + "Observe", election_pb2.LeaderResponse),
        send("observe", "observe", election_pb2.LeaderRequest(name=b"vote"), answers=0),
        unary(
            "campaign",
            ELECTION + "Campaign",
            election_pb2.CampaignRequest(name=b"vote", lease=0x1001, value=b"first"),
            election_pb2.CampaignResponse,
            capture={"rev": "leader.rev"},
        ),
        receive("observe the first", "observe", 1),
        unary("leader", ELECTION + "Leader", election_pb2.LeaderRequest(name=b"vote"), election_pb2.LeaderResponse),
        unary(
            "campaign again with another value",
            ELECTION + "Campaign",
            election_pb2.CampaignRequest(name=b"vote", lease=0x1001, value=b"renamed"),
            election_pb2.CampaignResponse,
        ),
        receive("observe the new value", "observe", 1),
        unary(
            "campaign of another",
            ELECTION + "Campaign",
            election_pb2.CampaignRequest(name=b"vote", lease=0x1002, value=b"second"),
            election_pb2.CampaignResponse,
            timeout_seconds=0.3,
            times_out=True,
        ),
        Step("campaigner leaves no key", lambda side: _wait_count(side, b"vote/", 1)),
        unary(
            "campaign with an unknown lease",
            ELECTION + "Campaign",
            election_pb2.CampaignRequest(name=b"v", lease=5),
            election_pb2.CampaignResponse,
        ),
        unary(
            "proclaim",
            ELECTION + "Proclaim",
            lambda side: election_pb2.ProclaimRequest(leader=leader_key(side), value=b"proclaimed"),
            election_pb2.ProclaimResponse,
        ),
        receive("observe the proclaimed", "observe", 1),
        unary(
            "proclaim without leader",
            ELECTION + "Proclaim",
            election_pb2.ProclaimRequest(),
            election_pb2.ProclaimResponse,
        ),
        unary(
            "proclaim as a wrong leader",
            ELECTION + "Proclaim",
            election_pb2.ProclaimRequest(
                leader=election_pb2.LeaderKey(name=b"vote", key=b"vote/1001", rev=1, lease=0x1001)
            ),
            election_pb2.ProclaimResponse,
        ),
        unary("resign without leader", ELECTION + "Resign", election_pb2.ResignRequest(), election_pb2.ResignResponse),
        unary(
            "resign as a wrong leader",
            ELECTION + "Resign",
            election_pb2.ResignRequest(
                leader=election_pb2.LeaderKey(name=b"vote", key=b"vote/1001", rev=1, lease=0x1001)
            ),
            election_pb2.ResignResponse,
        ),
        unary(
            "resign",
            ELECTION + "Resign",
            lambda side: election_pb2.ResignRequest(leader=leader_key(side)),
            election_pb2.ResignResponse,
        ),
        unary(
            "no leader after",
            ELECTION + "Leader",
            election_pb2.LeaderRequest(name=b"vote"),
            election_pb2.LeaderResponse,
        ),
        unary(
            "campaign of the other now",
            ELECTION + "Campaign",
            election_pb2.CampaignRequest(name=b"vote", lease=0x1002, value=b"second"),
            election_pb2.CampaignResponse,
        ),
        receive("observe the second", "observe", 1),
        cancel("observe"),
    ],
)


def _wait_count(side: Side, prefix: bytes, count: int) -> dict[str, str]:
    """Wait until so many keys are below a prefix."""
    request = pb.RangeRequest(key=prefix, range_end=prefix[:-1] + bytes((prefix[-1] + 1,)), count_only=True)
    deadline = time.monotonic() + 5
    while (found := side.call("KV/Range", request, pb.RangeResponse).count) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"count": str(found)}


MAINTENANCE = "etcdserverpb.Maintenance/"
AUTH = "etcdserverpb.Auth/"
HEALTH = "grpc.health.v1.Health/"

SERVER = Scenario(
    "server",
    [
        unary(
            "status",
            MAINTENANCE + "Status",
            pb.StatusRequest(),
            pb.StatusResponse,
            hide=[r"dbSize\w*: \d+", r"raft\w*: \d+"],
        ),
        unary("alarms", MAINTENANCE + "Alarm", pb.AlarmRequest(), pb.AlarmResponse),
        unary("hash", MAINTENANCE + "Hash", pb.HashRequest(), pb.HashResponse, hide=[r"hash: \d+"]),
        unary("hash kv", MAINTENANCE + "HashKV", pb.HashKVRequest(), pb.HashKVResponse),
        unary("hash kv of the future", MAINTENANCE + "HashKV", pb.HashKVRequest(revision=2**40), pb.HashKVResponse),
        unary("hash kv of the past", MAINTENANCE + "HashKV", pb.HashKVRequest(revision=1), pb.HashKVResponse),
        unary("defragment", MAINTENANCE + "Defragment", pb.DefragmentRequest(), pb.DefragmentResponse),
        unary(
            "move leader to nobody", MAINTENANCE + "MoveLeader", pb.MoveLeaderRequest(targetID=5), pb.MoveLeaderResponse
        ),
        unary(
            "members", "etcdserverpb.Cluster/MemberList", pb.MemberListRequest(linearizable=True), pb.MemberListResponse
        ),
        unary("members as known", "etcdserverpb.Cluster/MemberList", pb.MemberListRequest(), pb.MemberListResponse),
        *(
            unary(name, AUTH + name, request, response)
            for name, request, response in (
                ("AuthStatus", pb.AuthStatusRequest(), pb.AuthStatusResponse),
                ("AuthEnable", pb.AuthEnableRequest(), pb.AuthEnableResponse),
                ("AuthDisable", pb.AuthDisableRequest(), pb.AuthDisableResponse),
                ("Authenticate", pb.AuthenticateRequest(name="root", password="x"), pb.AuthenticateResponse),
                ("UserList", pb.AuthUserListRequest(), pb.AuthUserListResponse),
                ("RoleList", pb.AuthRoleListRequest(), pb.AuthRoleListResponse),
                ("UserGet", pb.AuthUserGetRequest(name="x"), pb.AuthUserGetResponse),
                ("UserDelete", pb.AuthUserDeleteRequest(name="x"), pb.AuthUserDeleteResponse),
                ("UserChangePassword", pb.AuthUserChangePasswordRequest(name="x"), pb.AuthUserChangePasswordResponse),
                ("UserGrantRole", pb.AuthUserGrantRoleRequest(user="x", role="y"), pb.AuthUserGrantRoleResponse),
                ("UserRevokeRole", pb.AuthUserRevokeRoleRequest(name="x", role="y"), pb.AuthUserRevokeRoleResponse),
                ("RoleGet", pb.AuthRoleGetRequest(role="x"), pb.AuthRoleGetResponse),
                ("RoleDelete", pb.AuthRoleDeleteRequest(role="x"), pb.AuthRoleDeleteResponse),
                (
                    "RoleRevokePermission",
                    pb.AuthRoleRevokePermissionRequest(role="x", key=b"k"),
                    pb.AuthRoleRevokePermissionResponse,
                ),
                ("UserAdd", pb.AuthUserAddRequest(), pb.AuthUserAddResponse),
                ("RoleAdd", pb.AuthRoleAddRequest(), pb.AuthRoleAddResponse),
            )
        ),
        unary("health", HEALTH + "Check", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse),
        unary(
            "health of a service",
            HEALTH + "Check",
            health_pb2.HealthCheckRequest(service="x"),
            health_pb2.HealthCheckResponse,
        ),
        open_stream("health", HEALTH + "Watch", health_pb2.HealthCheckResponse),
        send("health watch", "health", health_pb2.HealthCheckRequest()),
        cancel("health"),
        open_stream("health of a service", HEALTH + "Watch", health_pb2.HealthCheckResponse),
        send("health watch of a service", "health of a service", health_pb2.HealthCheckRequest(service="x")),
    ],
    masks=((r"(peerURLs|clientURLs): .*", r"\1: <url>"),),
)

SCENARIOS = [RANGES, WRITES, TXNS, WATCHES, LEASES, LOCKS, SERVER]


@pytest.mark.parametrize(("scenario", "step"), cases(SCENARIOS))
def test_grpc(pair: Pair, scenario: Scenario, step: Step) -> None:
    ours, genuine = pair.run(scenario)[step.name]
    assert ours == genuine
