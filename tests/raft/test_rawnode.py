"""The surface of the core with one voter: what the node's engine relies on."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

import kvserver.raft
from kvserver.raft import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeType,
    Config,
    ConfState,
    Entry,
    HardState,
    InitialState,
    InvariantError,
    Message,
    MessageType,
    NotLeaderError,
    RawNode,
    Ready,
    Role,
    Snapshot,
    UncommittedLimitError,
)

ONE = InitialState(snapshot=Snapshot(0, 0, ConfState(voters=(1,))))


def make(initial: InitialState = ONE, **settings: int) -> RawNode:
    return RawNode(Config(id=1, rng=random.Random(1), **settings), initial)


def turn(node: RawNode) -> Ready:
    ready = node.ready()
    for entry in ready.committed_entries:
        if entry.type:
            node.apply_conf_change(ConfChange.decode(entry.data))
    if ready.committed_entries:
        node.applied_to(ready.committed_entries[-1].index)
    return ready


def settle(node: RawNode) -> list[Entry]:
    """Run turns until nothing is left to do; answer what was applied."""
    applied = []
    for _ in range(100):
        if not node.has_ready():
            return applied
        ready = turn(node)
        applied.extend(ready.committed_entries)
        if ready.needs_persist:
            node.persisted(ready)
    raise AssertionError("there is always something to do")


def leader(initial: InitialState = ONE, **settings: int) -> RawNode:
    node = make(initial, **settings)
    node.campaign()
    settle(node)
    assert node.is_leader
    return node


def test_indexes_are_given_at_once_and_come_back_in_order() -> None:
    node = leader()
    assert node.propose(b"a") == 2
    assert node.propose_batch([b"b", b"c"]) == 3
    assert node.propose(b"d") == 5
    assert [(entry.index, entry.data) for entry in settle(node)] == [(2, b"a"), (3, b"b"), (4, b"c"), (5, b"d")]
    with pytest.raises(ValueError, match="empty"):
        node.propose_batch([])


def test_nothing_is_committed_before_it_is_durable() -> None:
    """Thesis 10.2.1: a leader may write while it replicates, but counts itself only afterwards."""
    node = leader()
    node.propose(b"a")
    first = turn(node)
    assert [entry.data for entry in first.entries] == [b"a"]
    assert first.must_sync
    node.propose(b"b")
    second = turn(node)
    assert not second.entries
    assert second.hard_state is None
    assert not second.committed_entries
    assert not second.needs_persist
    node.persisted(first)
    third = turn(node)
    assert [entry.data for entry in third.committed_entries] == [b"a"]
    assert [entry.data for entry in third.entries] == [b"b"]


def test_only_the_ready_that_waits_can_be_reported_durable() -> None:
    node = leader()
    node.propose(b"a")
    ready = turn(node)
    with pytest.raises(InvariantError):
        node.persisted(Ready())
    node.persisted(ready)
    with pytest.raises(InvariantError):
        node.persisted(ready)


def test_a_restart_goes_on_from_hard_state_snapshot_and_entries() -> None:
    initial = InitialState(
        HardState(4, 1, 7),
        Snapshot(5, 3, ConfState(voters=(1,))),
        [Entry(3, 6, 0, b"six"), Entry(4, 7, 0, b"seven"), Entry(4, 8, 0, b"eight")],
    )
    node = make(initial)
    assert (node.term, node.commit_index, node.applied_index, node.first_index(), node.last_index()) == (4, 7, 5, 6, 8)
    assert [entry.data for entry in settle(node)] == [b"six", b"seven"]
    node.campaign()
    # Entry 8 is committed by the first entry of the new term, not by itself (paper 5.4.2).
    assert [(entry.index, entry.term) for entry in settle(node)] == [(8, 4), (9, 5)]
    assert node.propose(b"x") == 10


def test_damage_to_what_is_on_disk_is_refused() -> None:
    with pytest.raises(InvariantError, match="commit index"):
        make(InitialState(HardState(1, 0, 5), Snapshot(3, 1, ConfState(voters=(1,)))))
    with pytest.raises(InvariantError, match="term"):
        make(InitialState(HardState(1, 0, 0), ONE.snapshot, [Entry(2, 1, 0, b"")]))


def test_bootstrap_puts_the_founding_members_into_the_log() -> None:
    node = make(InitialState())
    node.bootstrap([(1, b"one")])
    node.campaign()
    applied = settle(node)
    change = ConfChange.decode(applied[0].data)
    assert change == ConfChange((ConfChangeSingle(ConfChangeType.ADD_NODE, 1),), context=b"one")
    assert node.conf_state == ConfState(voters=(1,))
    assert node.is_leader
    with pytest.raises(InvariantError):
        node.bootstrap([(1, b"")])


def test_reads_are_local_once_an_entry_of_the_term_is_committed() -> None:
    """Thesis 6.4: before that the leader's commit index may be behind."""
    node = make()
    node.campaign()
    node.persisted(turn(node))
    assert node.is_leader
    assert not node.reads_are_local()
    assert node.read_index(b"early")
    ready = turn(node)
    assert not ready.read_states
    node.persisted(ready)
    assert node.reads_are_local()
    assert [(state.index, state.context) for state in turn(node).read_states] == [(1, b"early")]
    settle(node)
    node.read_index(b"r")
    assert [(state.index, state.context) for state in turn(node).read_states] == [(1, b"r")]


def test_committed_entries_are_bounded_by_count_and_bytes() -> None:
    node = leader(committed_entries_max=3, committed_bytes_max=100)
    node.propose_batch([b"." * 10] * 5 + [b"." * 90, b"." * 90, b"." * 500])
    node.persisted(turn(node))
    batches = []
    while node.has_ready():
        ready = turn(node)
        if ready.committed_entries:
            batches.append([len(entry.data) for entry in ready.committed_entries])
    assert batches == [[10, 10, 10], [10, 10], [90], [90], [500]]


def test_uncommitted_bytes_are_bounded_and_freed_by_commits() -> None:
    node = leader(uncommitted_bytes_max=100)
    node.propose(b"." * 60)
    node.propose(b"." * 40)
    for data in (b".", b"." * 1000):
        with pytest.raises(UncommittedLimitError):
            node.propose(data)
    with pytest.raises(UncommittedLimitError):
        node.propose_batch([b".", b"."])
    settle(node)
    assert node.propose(b"." * 1000) == 4  # alone, whatever its size
    with pytest.raises(UncommittedLimitError):
        node.propose(b".")
    settle(node)
    assert node.propose(b".") == 5


def test_a_follower_refuses_and_names_the_leader() -> None:
    node = make(InitialState(snapshot=Snapshot(0, 0, ConfState(voters=(1, 2)))))
    with pytest.raises(NotLeaderError) as caught:
        node.propose(b"x")
    assert caught.value.leader_id == 0
    assert not node.can_read_index()
    assert not node.read_index(b"r")
    node.step(Message(MessageType.HEARTBEAT, 1, 2, 1))
    with pytest.raises(NotLeaderError) as caught:
        node.propose_batch([b"x", b"y"])
    assert caught.value.leader_id == 2
    assert node.can_read_index()


def test_compaction_may_not_outrun_the_state() -> None:
    node = leader()
    node.propose_batch([b"."] * 10)
    settle(node)
    node.compact(8)
    assert node.first_index() == 9
    node.compact(3)
    with pytest.raises(InvariantError):
        node.compact(12)


def test_a_membership_change_is_kept_before_it_takes_effect() -> None:
    node = leader()
    node.propose_conf_change(ConfChange((ConfChangeSingle(ConfChangeType.ADD_LEARNER_NODE, 2),)))
    node.persisted(turn(node))
    assert node.has_ready()
    ready = turn(node)
    assert ready.hard_state is not None
    assert ready.hard_state.commit == 2
    assert ready.must_sync
    assert not ready.committed_entries
    node.persisted(ready)
    assert [entry.index for entry in turn(node).committed_entries] == [2]
    assert node.conf_state == ConfState(voters=(1,), learners=(2,))


def test_the_commit_index_alone_is_written_with_the_next_tick() -> None:
    node = leader()
    node.propose(b"a")
    settle(node)
    node.tick()
    ready = turn(node)
    assert ready.hard_state == HardState(node.term, 1, 2)
    assert not ready.must_sync
    node.persisted(ready)
    node.tick()
    assert not node.has_ready()


def test_messages_that_make_no_sense_are_ignored() -> None:
    node = leader()
    before = node.status()
    node.step(Message(MessageType.APPEND, 7, 2, 99))
    node.step(Message(MessageType.VOTE, 1, 2))
    node.step(Message(MessageType.APPEND_RESPONSE, 1, 2, node.term, index=99))
    node.step(Message(MessageType.HEARTBEAT_RESPONSE, 1, 2, node.term, context=b"x"))
    node.step(Message(MessageType.READ_INDEX_RESPONSE, 1, 2, node.term - 1, index=5))
    node.transfer_leader(9)
    node.report_unreachable(9)
    node.report_snapshot(9, ok=True)
    assert node.status() == before
    assert not node.has_ready()


def test_two_leaders_of_one_term_stop_the_member() -> None:
    node = leader()
    with pytest.raises(InvariantError, match="both lead"):
        node.step(Message(MessageType.APPEND, 1, 2, node.term))


def test_status_is_a_copy() -> None:
    node = leader()
    status = node.status()
    assert (status.role, status.leader_id, status.progress[1].match) == (Role.LEADER, 1, 1)


@pytest.mark.parametrize(
    "settings",
    [{"id": 0}, {"heartbeat_ticks": 0}, {"election_ticks": 1}, {"message_bytes_max": 0}, {"inflight_messages_max": 0}],
)
def test_settings_without_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        Config(**{"id": 1, "rng": random.Random(1), **settings})  # type: ignore[arg-type]


def test_exports_are_all_there() -> None:
    for name in kvserver.raft.__all__:
        assert hasattr(kvserver.raft, name)


def test_the_core_is_pure() -> None:
    allowed = {
        "__future__",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "itertools",
        "struct",
        "typing",
        "kvserver",
    }
    for path in Path(kvserver.raft.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
            assert not isinstance(node, ast.Assert), f"{path.name} has an assert, which python -O drops"
