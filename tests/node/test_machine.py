"""The replicated state: equal entries give equal bytes, however they were come by."""

from __future__ import annotations

import logging
from random import Random

import orjson
import pytest

from kvserver import errors
from kvserver.errors import DataDirError, KvError
from kvserver.node import kinds
from kvserver.node.answers import HeaderEncoder
from kvserver.node.machine import Job, Result, StateMachine
from kvserver.node.membership import Member
from kvserver.proto import rpc_pb2 as pb
from kvserver.raft import ConfChange, ConfChangeSingle, ConfChangeType, Entry, EntryType
from tests.node.shell import CLUSTER, MEMBER, new_machine

KEYS = [b"a", b"b", b"c", b"d", b"e", b"f"]


def entry_of(index: int, kind: bytes, request: object) -> Entry:
    assert hasattr(request, "SerializeToString")
    return Entry(1, index, EntryType.NORMAL, kind + request.SerializeToString())


def random_operation(rng: Random, depth: int = 0) -> pb.RequestOp:
    """One operation of a txn; a txn may write a key once, so keys are drawn without coming back."""
    action = rng.randrange(4 if depth < 2 else 3)
    if action == 0:
        return pb.RequestOp(request_put=pb.PutRequest(key=rng.choice(KEYS), value=rng.randbytes(5), prev_kv=True))
    if action == 1:
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=rng.choice(KEYS), prev_kv=True))
    if action == 2:
        return pb.RequestOp(request_range=pb.RangeRequest(key=b"a", range_end=b"\0", limit=rng.randrange(4)))
    return pb.RequestOp(request_txn=random_txn(rng, depth + 1))


def random_txn(rng: Random, depth: int = 0) -> pb.TxnRequest:
    compare = pb.Compare(
        key=rng.choice(KEYS),
        target=pb.Compare.VERSION,
        result=rng.choice([pb.Compare.EQUAL, pb.Compare.GREATER]),
        version=rng.randrange(3),
    )
    return pb.TxnRequest(
        compare=[compare],
        success=[random_operation(rng, depth) for _ in range(rng.randrange(3))],
        failure=[random_operation(rng, depth) for _ in range(rng.randrange(2))],
    )


def random_request(rng: Random, revision: int) -> tuple[bytes, object]:
    lease = rng.randrange(1, 6)
    action = rng.randrange(25)
    key = rng.choice(KEYS)
    if action < 8:
        return kinds.PUT, pb.PutRequest(
            key=key, value=rng.randbytes(rng.randrange(30)), lease=rng.choice([0, 0, lease]), prev_kv=rng.random() < 0.5
        )
    if action == 8:
        return kinds.PUT, pb.PutRequest(key=key, value=b"kept lease", ignore_lease=True)
    if action == 9:
        return kinds.PUT, pb.PutRequest(key=key, lease=lease, ignore_value=True)
    if action < 12:
        return kinds.DELETE_RANGE, pb.DeleteRangeRequest(key=key, range_end=rng.choice([b"", b"\0", b"z"]))
    if action < 15:
        return kinds.TXN, random_txn(rng)
    if action == 15:
        return kinds.COMPACT, pb.CompactionRequest(
            revision=revision - rng.randrange(-2, 20), physical=rng.random() < 0.5
        )
    if action < 18:
        return kinds.LEASE_GRANT, pb.LeaseGrantRequest(ID=lease, TTL=rng.randrange(100))
    if action == 18:
        return kinds.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease)
    if action < 24:
        alarm, change = rng.choice([pb.NOSPACE, pb.CORRUPT]), pb.AlarmRequest.DEACTIVATE
    else:
        alarm, change = rng.choice([pb.NOSPACE, pb.NOSPACE, pb.CORRUPT]), pb.AlarmRequest.ACTIVATE
    return kinds.ALARM, pb.AlarmRequest(action=change, memberID=1, alarm=alarm)


def apply(machine: StateMachine, entry: Entry, request: object) -> Result:
    """Apply an entry and all work it began; answer as the proposer would be."""
    result = machine.apply(entry, request)
    finished: list[bytes] = []
    for job in machine.jobs:
        try:
            while True:
                next(job.steps)
        except StopIteration as end:
            finished.append(end.value)
    machine.jobs.clear()
    machine.applied_index, machine.applied_term = entry.index, entry.term
    return finished[-1] if isinstance(result, Job) else result


def outcome(result: Result) -> tuple[object, ...]:
    return (type(result), result.message) if isinstance(result, KvError) else (result,)


@pytest.mark.parametrize("seed", range(10))
def test_machines_that_applied_the_same_entries_are_equal_to_the_byte(seed: int) -> None:
    """One has the parsed requests, one has the log alone, one leads, one was restored from a snapshot on the way."""
    rng = Random(seed)
    proposer, follower = new_machine(), new_machine()
    proposer.lessor.promote(100.0)
    proposer.now = 1e6
    restored = None
    for index in range(1, 400):
        kind, request = random_request(rng, proposer.store.revision)
        entry = entry_of(index, kind, request)
        answers = [outcome(apply(proposer, entry, request)), outcome(apply(follower, entry, None))]
        if restored is not None:
            answers.append(outcome(apply(restored, entry, None)))
        assert answers == [answers[0]] * len(answers), request
        if index == 200:
            restored = new_machine()
            restored.restore(follower.snapshot(), "in between")
    assert restored is not None
    for other in (follower, restored):
        assert other.store.hash_kv() == proposer.store.hash_kv()
        assert list(other.snapshot()) == list(proposer.snapshot())
    assert proposer.store.revision > 60  # alarms refuse a part of it


def test_an_entry_without_data_changes_nothing() -> None:
    machine = new_machine()
    before = list(machine.snapshot())
    assert machine.apply(Entry(1, 1, EntryType.NORMAL, b""), None) == b""
    assert list(machine.snapshot()) == before


def test_an_entry_of_an_unknown_kind_says_what_it_is() -> None:
    with pytest.raises(DataDirError, match="entry 12 is of kind 250, which this version does not know: a newer one"):
        new_machine().apply(Entry(1, 12, EntryType.NORMAL, b"\xfa..."), None)


def test_a_membership_change_brings_the_member_along(caplog: pytest.LogCaptureFixture) -> None:
    machine = new_machine()
    member = Member(MEMBER, ("http://127.0.0.1:2380",))
    change = ConfChange(
        (ConfChangeSingle(ConfChangeType.ADD_NODE, MEMBER),), context=member.message().SerializeToString()
    )
    assert machine.apply(Entry(1, 1, EntryType.CONF_CHANGE, change.encode()), None) == b""
    assert machine.conf_changes == [change]
    assert machine.membership.members() == [member]
    published = pb.Member(ID=MEMBER, name="n", clientURLs=["http://127.0.0.1:2379"])
    with caplog.at_level(logging.INFO):
        machine.apply(entry_of(2, kinds.MEMBER_PUBLISH, published), None)
        machine.apply(Entry(1, 3, EntryType.NORMAL, kinds.CLUSTER_VERSION + b"3.5.0"), "3.5.0")
    assert machine.membership.members()[0].name == "n"
    assert machine.membership.cluster_version == "3.5.0"
    assert "published" in caplog.text
    assert "enabled capabilities for version 3.5.0" in caplog.text


def test_alarms_are_listed_in_order_and_tell_what_changed() -> None:
    machine = new_machine()

    def alarm(action: pb.AlarmRequest.AlarmAction.ValueType, member: int, kind: pb.AlarmType.ValueType) -> int:
        request = pb.AlarmRequest(action=action, memberID=member, alarm=kind)
        result = machine.apply(entry_of(1, kinds.ALARM, request), request)
        assert isinstance(result, bytes)
        return len(pb.AlarmResponse.FromString(result).alarms)

    assert alarm(pb.AlarmRequest.ACTIVATE, 9, pb.NOSPACE) == 1
    assert alarm(pb.AlarmRequest.ACTIVATE, 3, pb.NOSPACE) == 1
    assert alarm(pb.AlarmRequest.DEACTIVATE, 4, pb.NOSPACE) == 0
    assert [item.memberID for item in machine.alarms()] == [3, 9]
    assert machine.no_space
    assert alarm(pb.AlarmRequest.DEACTIVATE, 9, pb.NOSPACE) == 1
    assert machine.no_space
    assert alarm(pb.AlarmRequest.DEACTIVATE, 3, pb.NOSPACE) == 1
    assert not machine.no_space


def test_a_failed_entry_leaves_the_state_as_it_was() -> None:
    machine = new_machine()
    before = list(machine.snapshot())
    for kind, request, error in (
        (kinds.PUT, pb.PutRequest(key=b"k", lease=4), errors.LeaseNotFoundError),
        (kinds.PUT, pb.PutRequest(key=b"k", ignore_value=True), errors.KeyNotFoundError),
        (kinds.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=4), errors.LeaseNotFoundError),
        (kinds.LEASE_GRANT, pb.LeaseGrantRequest(ID=4, TTL=1 << 40), errors.LeaseTtlTooLargeError),
        (kinds.COMPACT, pb.CompactionRequest(revision=77), errors.FutureRevisionError),
    ):
        assert type(machine.apply(entry_of(1, kind, request), request)) is error
    assert list(machine.snapshot()) == before


# -- snapshots ---------------------------------------------------------------------------------------------------------


def changed(chunks: list[bytes], **fields: object) -> list[bytes]:
    return [orjson.dumps({**orjson.loads(chunks[0]), **fields}), *chunks[1:]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "here: snapshot format 2, this version reads 1"),
        ({"cluster_id": "64"}, "here: the snapshot is of cluster 64, the log of cluster 63: .* put together from two"),
        ({"members": None}, "here: the snapshot's header is not of this format"),
        ({"members": ["zz"]}, "here: the snapshot's header is not of this format"),
        ({"leases": [[1]]}, "here: the snapshot's header is not of this format"),
        ({"conf_state": {}}, "here: the snapshot's header is not of this format"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    assert CLUSTER == 0x63
    chunks = list(new_machine().snapshot())
    with pytest.raises(DataDirError, match=message):
        new_machine().restore(iter(changed(chunks, **fields)), "here")


@pytest.mark.parametrize("cut", [0, 1])
def test_a_snapshot_that_ends_early_is_refused(cut: int) -> None:
    chunks = list(new_machine().snapshot())
    with pytest.raises(DataDirError, match="here: the snapshot's"):
        new_machine().restore(iter(chunks[:cut]), "here")


def test_a_header_that_is_no_json_is_refused() -> None:
    with pytest.raises(DataDirError, match="here: the snapshot's header is not of this format"):
        new_machine().restore(iter([b"\0\1"]), "here")


def test_a_snapshot_is_of_the_moment_it_was_asked_for() -> None:
    machine = new_machine()
    request = pb.PutRequest(key=b"k", value=b"1")
    apply(machine, entry_of(1, kinds.PUT, request), request)
    taken = machine.snapshot()
    request = pb.PutRequest(key=b"k", value=b"2")
    apply(machine, entry_of(2, kinds.PUT, request), request)
    restored = new_machine()
    restored.restore(taken, "taken")
    assert restored.applied_index == 1
    assert restored.store.revision == 2


def test_headers_name_the_member_that_answers_not_the_one_that_applied_first() -> None:
    one = StateMachine(HeaderEncoder(CLUSTER, 1), lease_ttl_min_seconds=2, progress_interval_ticks=1)
    two = StateMachine(HeaderEncoder(CLUSTER, 2), lease_ttl_min_seconds=2, progress_interval_ticks=1)
    request = pb.PutRequest(key=b"k")
    results = [apply(machine, entry_of(1, kinds.PUT, request), request) for machine in (one, two)]
    assert [pb.PutResponse.FromString(result).header.member_id for result in results if isinstance(result, bytes)] == [
        1,
        2,
    ]
    assert list(one.snapshot()) == list(two.snapshot())
