"""The engine, driven one step at a time: what it writes, when it answers, what it does by itself."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from random import Random

import pytest

from kvserver import errors, limits
from kvserver.errors import KvError
from kvserver.node import records
from kvserver.proto import rpc_pb2 as pb
from kvserver.raft import Message, MessageType
from tests.node.shell import MEMBER, Shell, Ticket, failed

OTHER = 8


def put(key: bytes, value: bytes = b"v") -> pb.PutRequest:
    return pb.PutRequest(key=key, value=value)


# -- writes ------------------------------------------------------------------------------------------------------------


def test_nothing_is_answered_or_applied_before_its_write_is_durable() -> None:
    shell = Shell()
    ticket = shell.put(b"k")
    shell.turns()
    assert shell.writing is not None
    assert not ticket.done
    assert shell.value(b"k") is None
    shell.tick(3, settled=False)
    shell.turns()
    assert not ticket.done
    shell.written()
    shell.turns()
    assert ticket.answer(pb.PutResponse).header.revision == 2  # type: ignore[attr-defined]
    assert shell.value(b"k") == b"v"


def test_what_arrives_while_a_write_is_outstanding_goes_into_the_next_one() -> None:
    shell = Shell()
    writes = shell.writes
    first = shell.put(b"first")
    shell.turns()
    rest = []
    for number in range(50):
        rest.append(shell.put(b"%d" % number))
        shell.turns()
    shell.written()
    shell.turns()
    assert shell.answered[-1] is first
    assert shell.writing is not None
    (payload,) = [payload for kind, payload in shell.writing.records if kind == records.ENTRIES]
    assert [entry.data for entry in records.decode_entries(payload)] == [shell.data_of(ticket) for ticket in rest]
    shell.written()
    shell.turns()
    assert shell.writes - writes == 2
    assert shell.answered[-50:] == rest


@pytest.mark.parametrize("seed", range(20))
def test_answers_come_in_order_each_once_and_only_for_what_is_durable(seed: int) -> None:
    rng = Random(seed)
    shell = Shell(snapshot_count=30)
    begun = len(shell.answered)
    tickets: list[Ticket] = []
    for step in range(400):
        action = rng.randrange(6)
        if action <= 1:
            tickets.append(shell.put(b"%d" % step, bytes(rng.randrange(40))))
        elif action == 2:
            shell.turn()
        elif action == 3:
            shell.written()
        elif action == 4:
            shell.saved()
        else:
            shell.tick(settled=False)
        answered = [ticket for ticket in shell.answered[begun:] if ticket in tickets]
        assert answered == tickets[: len(answered)]
        durable = {entry.data for entry in shell.durable_entries()}
        assert all(shell.data_of(ticket) in durable for ticket in answered)
    shell.settle()
    assert all(ticket.done for ticket in tickets)
    revisions = [ticket.answer(pb.PutResponse).header.revision for ticket in tickets]  # type: ignore[attr-defined]
    assert revisions == list(range(2, 2 + len(tickets)))


def test_the_shell_is_woken_once_until_the_next_turn() -> None:
    shell = Shell()
    wakes = shell.wakes
    for number in range(10):
        shell.put(b"%d" % number)
    assert shell.wakes == wakes + 1
    shell.settle()
    shell.put(b"again")
    assert shell.wakes > wakes + 1


def test_a_failed_request_is_answered_like_any_other_and_changes_nothing() -> None:
    shell = Shell()
    first, bad, last = shell.put(b"a"), shell.put(b"b", lease=404), shell.put(b"c")
    shell.settle()
    assert shell.answered[-3:] == [first, bad, last]
    assert failed(bad, errors.LeaseNotFoundError)
    assert last.answer(pb.PutResponse).header.revision == 3  # type: ignore[attr-defined]


def test_without_a_leader_writes_are_refused_at_once() -> None:
    shell = Shell(started=False)
    ticket = shell.put(b"k")
    assert failed(ticket, errors.NoLeaderError)
    assert shell.engine.proposals_failed == 1
    assert shell.engine.pending_count == 0


def test_too_many_waiting_writes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvserver.node.engine.PENDING_PROPOSALS_MAX", 3)
    shell = Shell()
    tickets = [shell.put(b"%d" % number) for number in range(5)]
    assert [failed(ticket, errors.TooManyRequestsError) for ticket in tickets] == [False] * 3 + [True] * 2
    shell.settle()
    assert isinstance(shell.do(put(b"again")), bytes)


def test_a_write_that_waits_too_long_is_told_and_its_late_result_dropped() -> None:
    shell = Shell(request_timeout_ticks=50)
    early = shell.put(b"early")
    shell.turns()
    shell.tick(20, settled=False)
    late = shell.put(b"late")
    shell.tick(29, settled=False)
    assert not early.done
    shell.tick(1, settled=False)
    assert failed(early, errors.RequestTimeoutError)
    assert not late.done
    shell.settle()
    assert shell.value(b"early") == b"v"
    assert isinstance(late.result, bytes)


# -- leadership --------------------------------------------------------------------------------------------------------


def depose(shell: Shell) -> None:
    """Let another member lead a higher term."""
    term = shell.raft.term + 1
    shell.engine.step(
        Message(MessageType.HEARTBEAT, to_id=MEMBER, from_id=OTHER, term=term, commit=shell.raft.commit_index)
    )
    shell.settle()
    assert not shell.engine.is_leader


def test_a_leader_that_steps_down_ends_the_requests_whose_outcome_it_cannot_know() -> None:
    shell = Shell()
    changes = shell.engine.leader_changes
    waiting = shell.put(b"k")
    shell.turns()
    depose(shell)
    assert failed(waiting, errors.TimeoutLeaderFailError)
    assert failed(shell.put(b"l"), errors.NoLeaderError)
    assert shell.engine.leader_changes == changes + 1
    assert not shell.engine.reads_are_local


def test_reads_wait_until_the_member_leads_and_has_applied_in_its_term() -> None:
    shell = Shell(started=False)
    early = shell.read()
    assert not early.done
    shell.engine.start()
    while not shell.engine.reads_are_local:
        assert not early.done
        assert shell.turn() or shell.written()
    shell.turns()
    assert early.result is None
    late = Ticket(shell)
    shell.engine.read(late)
    assert late.result is None


def test_reads_asked_of_a_leader_that_is_gone_are_asked_again() -> None:
    shell = Shell()
    depose(shell)
    waiting = [shell.read() for _ in range(3)]
    shell.settle()
    assert not any(ticket.done for ticket in waiting)
    # Nobody answers; the only voter is elected again after its election timeout.
    while not shell.engine.is_leader:
        shell.tick()
    assert [ticket.result for ticket in waiting] == [None] * 3
    assert shell.answered[-3:] == waiting


def test_a_read_that_waits_too_long_is_told_and_its_late_result_dropped() -> None:
    shell = Shell(request_timeout_ticks=5)
    depose(shell)
    early = shell.read()
    shell.settle()
    shell.tick(3)
    late = shell.read()
    shell.tick(2)
    assert failed(early, errors.RequestTimeoutError)
    assert not late.done
    assert shell.engine.reads_failed == 1
    shell.tick(3)
    assert failed(late, errors.RequestTimeoutError)
    while not shell.engine.is_leader:
        shell.tick()


def test_too_many_waiting_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PENDING_READS_MAX", 2)
    shell = Shell(started=False)
    tickets = [shell.read() for _ in range(3)]
    assert [ticket.done for ticket in tickets] == [False, False, True]
    assert failed(tickets[2], errors.TooManyRequestsError)


def test_a_new_leader_publishes_itself_and_the_clusters_version_once() -> None:
    shell = Shell(started=False)
    shell.engine.client_urls = ("http://127.0.0.1:2379",)
    shell.engine.start()
    shell.settle()
    member = shell.machine.membership.get(MEMBER)
    assert member is not None
    assert (member.name, member.client_urls) == ("n", ("http://127.0.0.1:2379",))
    assert shell.machine.membership.cluster_version == "3.5.0"
    shell.tick()  # what is committed is written down at leisure
    last = shell.raft.last_index()
    restarted = Shell(
        entries=shell.durable_entries(), hard_state=shell.durable_hard_state(), snapshot=None, started=False
    )
    restarted.engine.client_urls = ("http://127.0.0.1:2379",)
    restarted.engine.start()
    restarted.settle()
    assert restarted.raft.last_index() == last + 1  # its own first entry
    assert restarted.engine.is_serving


# -- leases ------------------------------------------------------------------------------------------------------------


def grant(shell: Shell, lease: int, ttl: int) -> None:
    assert isinstance(shell.do(pb.LeaseGrantRequest(ID=lease, TTL=ttl)), bytes)


def revokes(shell: Shell) -> list[int]:
    """The leases whose revoke stands in the log, in order."""
    return [
        pb.LeaseRevokeRequest.FromString(entry.data[1:]).ID
        for entry in shell.durable_entries()
        if entry.data[:1] == b"\6"
    ]


def test_leases_are_granted_for_the_minimum_at_least() -> None:
    shell = Shell()
    answer = pb.LeaseGrantResponse.FromString(shell.do(pb.LeaseGrantRequest(ID=5, TTL=1)))
    assert (answer.ID, answer.TTL) == (5, 2)


def test_an_expired_lease_is_revoked_through_the_log_and_takes_its_keys_along() -> None:
    shell = Shell()
    grant(shell, 5, 2)
    shell.put(b"leased", lease=5)
    shell.settle()
    shell.tick(19)
    assert shell.value(b"leased") == b"v"
    shell.tick(2)
    assert shell.value(b"leased") is None
    assert revokes(shell) == [5]
    assert not shell.machine.lessor.exists(5)
    assert (shell.engine.leases_expired, shell.machine.leases_revoked) == (1, 1)


def test_the_revoke_of_a_lease_is_not_proposed_twice() -> None:
    shell = Shell()
    grant(shell, 5, 2)
    shell.tick(22, settled=False)
    shell.turns()
    shell.tick(22, settled=False)
    shell.settle()
    assert revokes(shell) == [5]


def test_a_storm_of_expiries_is_rate_limited() -> None:
    shell = Shell(lease_revokes_per_tick=3)
    for lease in range(1, 11):
        grant(shell, lease, 2)
    counts = []
    for _ in range(30):
        shell.tick()
        counts.append(len(revokes(shell)))
    steps = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    assert max(steps) == 3
    assert counts[-1] == 10
    assert sorted(revokes(shell)) == list(range(1, 11))


def test_a_revoke_that_failed_is_proposed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvserver.node.engine.PENDING_PROPOSALS_MAX", 2)
    shell = Shell()
    grant(shell, 5, 2)
    shell.put(b"a")
    shell.put(b"b")
    shell.tick(21, settled=False)
    assert revokes(shell) == []
    shell.settle()
    shell.tick()
    assert revokes(shell) == [5]


def test_only_the_leader_revokes() -> None:
    shell = Shell()
    grant(shell, 5, 2)
    depose(shell)
    last = shell.raft.last_index()
    shell.tick(9)
    assert shell.raft.last_index() == last
    assert shell.machine.lessor.exists(5)
    while not shell.engine.is_leader:
        shell.tick()
    # The new leader gives every lease its whole time again, and an election timeout.
    shell.tick(25)
    assert shell.machine.lessor.exists(5)
    shell.tick(6)
    assert not shell.machine.lessor.exists(5)


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_due_after_so_many_entries_and_counts_once_it_is_durable() -> None:
    shell = Shell(snapshot_count=30)
    while shell.snapshot is None:
        shell.put(b"k")
        shell.turns()
        shell.written()
        shell.turns()
    order = shell.snapshot
    assert order.index == shell.machine.applied_index >= 30
    for _ in range(40):  # no second one while it runs, and no marker
        shell.put(b"l")
        shell.turns()
        shell.written()
        shell.turns()
    assert shell.snapshot is order
    assert shell.markers() == []
    shell.saved()
    shell.turns()
    assert shell.writing is not None
    assert [kind for kind, _ in shell.writing.records] == [records.HARD_STATE, records.SNAPSHOT_MARKER]
    shell.written()
    assert shell.markers() == [order.index]
    assert shell.durable_hard_state().commit >= order.index
    assert shell.durable_hard_state().term == shell.raft.term


def test_the_marker_goes_along_with_the_next_write_of_a_busy_member() -> None:
    """It must not wait for a pause: until it is durable no log is released and no other snapshot begins."""
    shell = Shell()
    asked = shell.defragment()
    shell.put(b"a")
    shell.turns()
    shell.put(b"b")
    shell.saved()
    shell.turns()
    assert not asked.done
    shell.written()
    shell.turns()
    assert shell.writing is not None
    kinds = [kind for kind, _ in shell.writing.records]
    assert kinds[0] == records.ENTRIES
    assert kinds[-2:] == [records.HARD_STATE, records.SNAPSHOT_MARKER]
    assert shell.writing.first_entry_index
    shell.put(b"c")
    shell.written()
    shell.turns()
    assert asked.result == b""
    shell.settle()


def test_writes_wait_while_a_marker_is_written_alone() -> None:
    shell = Shell()
    shell.defragment()
    shell.turns()
    shell.saved()
    shell.turns()
    ticket = shell.put(b"k")
    shell.turns()
    assert shell.writing is not None
    assert shell.writing.ready is None
    shell.written()
    shell.turns()
    shell.written()
    shell.turns()
    assert isinstance(ticket.result, bytes)


def test_large_states_are_saved_when_the_log_has_grown_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_SMALL_BYTES", 100)
    shell = Shell(snapshot_count=10)
    for number in range(200):
        shell.do(put(b"%d" % number, bytes(1000)))
    indexes = [index for index, _ in shell.snapshots]
    gaps = [later - earlier for earlier, later in pairwise(indexes)]
    assert gaps[0] >= 10
    assert gaps == sorted(gaps)
    assert gaps[-1] > 50


def test_the_log_is_kept_when_a_snapshot_fails_and_the_next_is_tried_in_its_time() -> None:
    shell = Shell(snapshot_count=30)
    waiting = shell.defragment()
    shell.turns()
    shell.snapshot = None
    shell.engine.snapshot_failed(KvError("no space"))
    assert isinstance(waiting.result, KvError)
    shell.settle()
    assert shell.markers() == []
    failed_at = shell.machine.applied_index
    while not shell.snapshots:
        shell.do(put(b"k"))
    assert shell.snapshots[0][0] == failed_at + 30


def test_who_asks_for_a_snapshot_gets_one_that_began_after_the_question() -> None:
    shell = Shell()
    first = shell.defragment()
    shell.turns()
    ticket = shell.put(b"later")
    shell.turns()
    shell.written()
    shell.turns()
    assert ticket.done
    second, third = shell.defragment(), shell.defragment()
    shell.turns()
    shell.saved()
    shell.turns()
    shell.written()
    shell.turns()
    assert first.result == b""
    assert not second.done
    assert not third.done
    shell.settle()
    assert second.result == third.result == b""
    assert len(shell.snapshots) == 2
    assert shell.snapshots[1][0] > shell.snapshots[0][0]


def test_a_member_goes_on_from_a_snapshot_and_the_log_behind_it() -> None:
    shell = Shell(snapshot_count=40)
    grant(shell, 5, 60)
    for number in range(100):
        shell.put(b"%d" % (number % 30), b"%d" % number)
        shell.settle()
    shell.put(b"leased", lease=5)
    shell.do(pb.CompactionRequest(revision=50))
    index, chunks = shell.snapshots[-1]
    entries = [entry for entry in shell.durable_entries() if entry.index > index]
    restarted = Shell(entries=entries, hard_state=shell.durable_hard_state(), snapshot=chunks)
    assert restarted.machine.store.hash_kv() == shell.machine.store.hash_kv()
    assert restarted.machine.lessor.snapshot() == shell.machine.lessor.snapshot()
    assert restarted.machine.lessor.time_to_live(5, 0.0, keys=True).keys == [b"leased"]
    assert restarted.machine.membership.members() == shell.machine.membership.members()
    assert isinstance(restarted.do(put(b"more")), bytes)


def test_applied_entries_leave_memory_but_those_that_lagging_members_may_need() -> None:
    shell = Shell(snapshot_catchup_entries=20)
    for number in range(2000):
        shell.put(b"k%d" % number)
    shell.settle()
    kept = shell.raft.last_index() - shell.raft.first_index() + 1
    assert kept <= limits.RAFT_LOG_SLACK_ENTRIES + 1
    # The same in a cluster of two, where the other one may lag.
    shell.machine.conf_state = type(shell.machine.conf_state)((MEMBER,), (OTHER,))
    for number in range(2000):
        shell.put(b"k%d" % number)
    shell.settle()
    kept = shell.raft.last_index() - shell.raft.first_index() + 1
    assert 20 <= kept <= 20 + limits.RAFT_LOG_SLACK_ENTRIES + 1


# -- compaction --------------------------------------------------------------------------------------------------------


def test_a_compaction_answers_at_once_and_a_physical_one_when_the_removal_is_done() -> None:
    shell = Shell()
    for number in range(20_000):
        shell.put(b"k", b"%d" % number)
    shell.settle()
    at_once = shell.propose(pb.CompactionRequest(revision=5000))
    physical = shell.propose(pb.CompactionRequest(revision=15_000, physical=True))
    shell.turns()
    shell.written()
    shell.turns()
    assert isinstance(at_once.result, bytes)
    assert not physical.done
    assert shell.engine.has_work
    slices = 0
    while not physical.done:
        assert shell.engine.work() or physical.done
        slices += 1
    assert slices > 1
    assert isinstance(physical.result, bytes)
    assert shell.machine.store.removed_revision == 15_000


def test_history_is_compacted_automatically_by_the_leader() -> None:
    shell = Shell(auto_compaction_revisions=10)
    for number in range(50):
        shell.do(put(b"k", b"%d" % number))
    shell.now = 1000.0
    shell.tick()
    shell.now = 1301.0
    shell.tick()
    assert shell.machine.store.compact_revision == shell.machine.store.revision - 10


# -- alarms ------------------------------------------------------------------------------------------------------------


def disarm(shell: Shell, alarm: pb.AlarmType.ValueType) -> None:
    request = pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=MEMBER, alarm=alarm)
    answer = pb.AlarmResponse.FromString(shell.do(request))
    assert [(item.memberID, item.alarm) for item in answer.alarms] == [(MEMBER, alarm)]


def txn(*operations: pb.RequestOp, failure: tuple[pb.RequestOp, ...] = ()) -> pb.TxnRequest:
    return pb.TxnRequest(success=operations, failure=failure)


PUT_OPERATION = pb.RequestOp(request_put=put(b"t"))
DELETE_OPERATION = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"t"))


def test_a_store_above_its_quota_refuses_what_makes_it_grow_until_it_is_disarmed() -> None:
    shell = Shell(quota_bytes=2000)
    shell.do(pb.LeaseGrantRequest(ID=1, TTL=60))
    shell.do(put(b"big", bytes(3000)))
    assert shell.machine.alarms() == []
    shell.tick()
    assert [(alarm.memberID, alarm.alarm) for alarm in shell.machine.alarms()] == [(MEMBER, pb.NOSPACE)]
    nested = pb.RequestOp(request_txn=txn(DELETE_OPERATION, failure=(PUT_OPERATION,)))
    for request in (
        put(b"k"),
        txn(PUT_OPERATION),
        txn(DELETE_OPERATION, failure=(PUT_OPERATION,)),
        txn(nested),
        pb.LeaseGrantRequest(ID=2, TTL=60),
    ):
        assert type(shell.do(request)) is errors.NoSpaceError, request
    assert shell.read().result is None
    for request in (
        txn(DELETE_OPERATION),
        pb.DeleteRangeRequest(key=b"big"),
        pb.LeaseRevokeRequest(ID=1),
        pb.CompactionRequest(revision=3, physical=True),
    ):
        assert isinstance(shell.do(request), bytes), request
    assert type(shell.do(put(b"k"))) is errors.NoSpaceError
    disarm(shell, pb.NOSPACE)
    assert isinstance(shell.do(put(b"k")), bytes)
    shell.tick(3)
    assert shell.machine.alarms() == []


def test_the_alarm_comes_back_when_it_is_disarmed_above_the_quota() -> None:
    shell = Shell(quota_bytes=2000)
    shell.do(put(b"big", bytes(3000)))
    shell.tick()
    disarm(shell, pb.NOSPACE)
    shell.tick()
    assert [alarm.alarm for alarm in shell.machine.alarms()] == [pb.NOSPACE]


def test_an_alarm_that_could_not_be_raised_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(quota_bytes=2000)
    shell.do(put(b"big", bytes(3000)))
    monkeypatch.setattr("kvserver.node.engine.PENDING_PROPOSALS_MAX", 0)
    shell.tick()
    assert shell.machine.alarms() == []
    monkeypatch.undo()
    shell.tick()
    assert [alarm.alarm for alarm in shell.machine.alarms()] == [pb.NOSPACE]


def test_a_corrupt_store_serves_nothing_but_its_alarms() -> None:
    shell = Shell()
    shell.do(put(b"k"))
    shell.do(pb.LeaseGrantRequest(ID=1, TTL=2))
    activate = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=MEMBER, alarm=pb.CORRUPT)
    assert [alarm.alarm for alarm in pb.AlarmResponse.FromString(shell.do(activate)).alarms] == [pb.CORRUPT]
    for request in (
        put(b"k"),
        pb.DeleteRangeRequest(key=b"k"),
        txn(DELETE_OPERATION),
        pb.CompactionRequest(revision=2),
        pb.LeaseGrantRequest(ID=2, TTL=60),
        pb.LeaseRevokeRequest(ID=1),
    ):
        assert type(shell.do(request)) is errors.CorruptError, request
    for read in (shell.machine.range, shell.machine.range_slices):
        with pytest.raises(errors.CorruptError):
            read(pb.RangeRequest(key=b"k"))
    assert type(shell.machine.read_txn(pb.TxnRequest())) is errors.CorruptError
    assert not shell.engine.reads_are_local
    last = shell.raft.last_index()
    shell.tick(30)
    assert shell.raft.last_index() == last  # the expired lease waits
    disarm(shell, pb.CORRUPT)
    assert shell.engine.reads_are_local
    assert shell.value(b"k") == b"v"


def test_alarms_survive_a_restart_and_can_be_disarmed_after_it() -> None:
    shell = Shell()
    activate = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=MEMBER, alarm=pb.CORRUPT)
    shell.do(activate)
    shell.defragment()
    shell.settle()
    index, chunks = shell.snapshots[-1]
    entries = [entry for entry in shell.durable_entries() if entry.index > index]
    restarted = Shell(entries=entries, hard_state=shell.durable_hard_state(), snapshot=chunks)
    assert [alarm.alarm for alarm in restarted.machine.alarms()] == [pb.CORRUPT]
    assert restarted.engine.is_serving
    assert not restarted.engine.reads_are_local
    disarm(restarted, pb.CORRUPT)
    assert isinstance(restarted.do(put(b"k")), bytes)


# -- long work ---------------------------------------------------------------------------------------------------------


def counting(count: int, log: list[str], name: str) -> Generator[None, None, bytes]:
    for _ in range(count):
        log.append(name)
        yield
    return name.encode()


def test_long_reads_take_turns_and_a_few_run_at_once() -> None:
    shell = Shell()
    log: list[str] = []
    count = limits.JOBS_AT_ONCE + 2
    tickets = [Ticket(shell, number) for number in range(count)]
    for number, ticket in enumerate(tickets):
        shell.engine.add_job(counting(3, log, str(number)), ticket)
    for _ in range(limits.JOBS_AT_ONCE):
        assert shell.engine.work()
    assert log == [str(number) for number in range(limits.JOBS_AT_ONCE)]
    while shell.engine.work():
        pass
    assert [ticket.result for ticket in tickets] == [b"%d" % number for number in range(count)]
    assert not shell.engine.has_work


def test_a_long_read_that_fails_is_answered_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Generator[None, None, bytes]:
        yield
        raise ZeroDivisionError

    def refused() -> Generator[None, None, bytes]:
        yield
        raise errors.CompactedError

    shell = Shell()
    bad, expected, good = Ticket(shell), Ticket(shell), Ticket(shell)
    shell.engine.add_job(broken(), bad)
    shell.engine.add_job(refused(), expected)
    shell.engine.add_job(counting(3, [], "good"), good)
    shell.settle()
    assert isinstance(bad.result, KvError)
    assert "internal error" in str(bad.result)
    assert "ZeroDivisionError" in caplog.text
    assert failed(expected, errors.CompactedError)
    assert good.result == b"good"


def test_too_many_long_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PENDING_JOBS_MAX", 1)
    shell = Shell()
    tickets = [Ticket(shell) for _ in range(2)]
    for ticket in tickets:
        shell.engine.add_job(counting(1, [], "x"), ticket)
    assert failed(tickets[1], errors.TooManyRequestsError)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_stopping_answers_everybody_who_waits() -> None:
    shell = Shell()
    for number in range(20_000):
        shell.put(b"k", b"%d" % number)
    shell.settle()
    closed: list[str] = []

    def long_read() -> Generator[None, None, bytes]:
        try:
            while True:
                yield
        finally:
            closed.append("yes")

    job, waiting_job = Ticket(shell, "job"), Ticket(shell, "waiting job")
    physical = shell.propose(pb.CompactionRequest(revision=15_000, physical=True))
    shell.turns()
    shell.written()
    shell.turns()
    shell.engine.add_job(long_read(), job)
    for _ in range(3):
        shell.engine.work()
    shell.engine.add_job(long_read(), waiting_job)
    running_snapshot = shell.defragment()
    shell.turns()
    wished_snapshot = shell.defragment()
    write = shell.put(b"written")
    shell.turns()
    unwritten = shell.put(b"unwritten")
    shell.engine.reads_are_local = False
    read = shell.read()
    shell.engine.stop()
    late_write, late_read, late_snapshot, late_job = shell.put(b"x"), shell.read(), shell.defragment(), Ticket(shell)
    shell.engine.add_job(long_read(), late_job)
    everybody = [job, waiting_job, physical, running_snapshot, wished_snapshot, write, unwritten, read]
    everybody += [late_write, late_read, late_snapshot, late_job]
    assert all(failed(ticket, errors.StoppedError) for ticket in everybody), [t.name for t in everybody if not t.done]
    assert closed == ["yes"]
    shell.engine.stop()
    shell.settle()  # what was under way may still end
    assert not shell.engine.has_work


def test_draining_refuses_what_is_new_and_lets_the_rest_end() -> None:
    shell = Shell()
    write = shell.put(b"k")
    shell.turns()
    shell.engine.drain()
    assert failed(shell.put(b"late"), errors.StoppedError)
    assert not shell.engine.is_drained
    shell.settle()
    assert isinstance(write.result, bytes)
    assert shell.engine.is_drained


def test_an_answer_may_be_asked_for_by_nobody() -> None:
    shell = Shell()
    request = put(b"k")
    shell.engine.propose(b"\1", request.SerializeToString(), request, None)
    shell.engine.propose(b"\4", pb.CompactionRequest(revision=1, physical=True).SerializeToString(), None, None)
    shell.settle()
    assert shell.value(b"k") == b"v"
    shell.engine.propose(b"\1", request.SerializeToString(), request, None)
    shell.engine.stop()
    shell.engine.propose(b"\1", request.SerializeToString(), request, None)
