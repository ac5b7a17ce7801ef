"""The log in memory: appending, overwriting, marks, sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.raft import ConfState, Entry, HardState, InitialState, InvariantError, Snapshot
from kvserver.raft.log import RaftLog


def entries(first: int, *terms: int, size: int = 1) -> list[Entry]:
    return [Entry(term, first + at, 0, b"." * size) for at, term in enumerate(terms)]


def log_of(*terms: int, commit: int = 0) -> RaftLog:
    return RaftLog(InitialState(HardState(9, 0, commit), Snapshot(), entries(1, *terms)))


def terms_of(log: RaftLog) -> list[int]:
    return [entry.term for entry in log.entries]


@pytest.mark.parametrize(
    ("index", "term", "sent", "last_new", "terms"),
    [
        (3, 3, [], 3, [1, 2, 3]),  # nothing new
        (3, 3, [4], 4, [1, 2, 3, 4]),  # follows
        (2, 2, [4], 3, [1, 2, 4]),  # overwrites
        (1, 1, [2, 3, 3], 4, [1, 2, 3, 3]),  # overlaps without contradiction
        (1, 1, [2], 2, [1, 2, 3]),  # an old append drops nothing (paper 5.3: only on conflict)
        (0, 0, [1, 3], 2, [1, 3]),  # from the beginning
        (3, 2, [4], None, [1, 2, 3]),  # another entry before
        (5, 3, [4], None, [1, 2, 3]),  # a gap
    ],
)
def test_what_a_leader_sends_is_appended_where_it_belongs(
    index: int, term: int, sent: list[int], last_new: int | None, terms: list[int]
) -> None:
    log = log_of(1, 2, 3)
    assert log.maybe_append(index, term, entries(index + 1, *sent)) == last_new
    assert terms_of(log) == terms


def test_committed_entries_are_never_overwritten() -> None:
    log = log_of(1, 2, 3, commit=2)
    with pytest.raises(InvariantError, match="committed"):
        log.maybe_append(1, 1, entries(2, 3))


def test_commit_index_never_goes_back_nor_beyond_the_end() -> None:
    log = log_of(1, 1, 1, commit=2)
    assert not log.commit_to(1)
    assert log.commit == 2
    assert log.commit_to(3)
    with pytest.raises(InvariantError, match="damaged or lost"):
        log.commit_to(4)


def test_up_to_date_compares_the_last_term_then_the_length() -> None:
    """Paper 5.4.1."""
    log = log_of(1, 2, 2)
    assert log.is_up_to_date(1, 3)
    assert log.is_up_to_date(3, 2)
    assert not log.is_up_to_date(2, 2)
    assert not log.is_up_to_date(9, 1)


def test_a_write_whose_entries_were_overwritten_does_not_count() -> None:
    log = log_of()
    log.append(entries(1, 1, 1, 1))
    assert len(log.take_unstable()) == 3
    log.maybe_append(1, 1, entries(2, 2))  # meanwhile
    log.persisted()
    assert log.stable == 1  # the first entry was not overwritten
    assert [entry.term for entry in log.take_unstable()] == [2]
    log.persisted()
    assert log.stable == 2


def test_an_overwritten_entry_that_comes_back_is_written_again() -> None:
    """Index and term alone do not tell that a write covers what is in the log now."""
    log = log_of()
    log.append(entries(1, 1))
    log.take_unstable()
    log.truncate(1)
    log.append(entries(1, 1))
    log.persisted()
    assert log.stable == 0
    assert len(log.take_unstable()) == 1


def test_only_durable_entries_are_handed_out_to_be_applied() -> None:
    log = log_of()
    log.append(entries(1, 1, 1))
    log.commit_to(2)
    assert log.committed_limit() == 0
    log.take_unstable()
    log.persisted()
    assert [entry.index for entry in log.take_committed(log.committed_limit(), 1, 100)] == [1]
    assert [entry.index for entry in log.take_committed(log.committed_limit(), 9, 100)] == [2]
    assert log.take_committed(log.committed_limit(), 9, 100) == []
    log.applied_to(2)
    with pytest.raises(InvariantError):
        log.applied_to(1)


def test_compaction_keeps_the_term_of_the_last_dropped_entry() -> None:
    log = log_of(1, 2, 2, 3, commit=3)
    log.take_committed(3, 9, 100)
    log.applied_to(3)
    with pytest.raises(InvariantError, match="not applied"):
        log.compact(4)
    log.compact(2)
    log.compact(1)
    assert (log.first, log.last, log.offset_term) == (3, 4, 2)
    assert [log.term(index) for index in range(6)] == [0, 0, 2, 2, 3, 0]
    assert log.matches(2, 2)
    assert not log.matches(1, 1)


def test_a_snapshot_replaces_everything_and_holds_back_entries_until_it_is_applied() -> None:
    log = log_of(1, 1, commit=1)
    with pytest.raises(InvariantError, match="undo"):
        log.restore(Snapshot(1, 1, ConfState()))
    snapshot = Snapshot(5, 2, ConfState(voters=(1,)))
    log.restore(snapshot)
    log.append(entries(6, 2))
    log.commit_to(6)
    log.take_unstable()
    assert log.committed_limit() == 5
    log.snapshot = None
    log.persisted()
    assert log.committed_limit() == 5  # durable, but not loaded
    log.applied_to(5)
    assert log.committed_limit() == 6


def test_initial_entries_must_follow_the_snapshot() -> None:
    with pytest.raises(InvariantError, match="gap"):
        RaftLog(InitialState(HardState(1), Snapshot(3, 1, ConfState()), entries(5, 1)))
    with pytest.raises(InvariantError, match="go back"):
        RaftLog(InitialState(HardState(2), Snapshot(), entries(1, 2, 1)))
    with pytest.raises(InvariantError, match="missing"):
        RaftLog(InitialState(HardState(1, 0, 3), Snapshot(), entries(1, 1)))


def test_conflicts_are_skipped_a_term_at_a_time() -> None:
    """End of paper 5.3."""
    log = log_of(1, 1, 3, 3, 5)
    assert log.conflict_by_term(5, 4) == (4, 3)
    assert log.conflict_by_term(5, 2) == (2, 1)
    assert log.conflict_by_term(5, 0) == (0, 0)


sizes = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=5), min_size=1, max_size=8)


@given(sizes, st.integers(1, 100), st.data())
def test_bounded_slices_are_within_the_limit_and_never_empty(
    batches: list[list[int]], limit: int, data: st.DataObject
) -> None:
    log = log_of()
    for batch in batches:
        log.append([Entry(1, log.last + 1 + at, 0, b"." * size) for at, size in enumerate(batch)])
        if data.draw(st.booleans()):
            log.truncate(data.draw(st.integers(log.commit + 1, log.last)))
    if not log.entries:
        return
    start = data.draw(st.integers(1, log.last))
    stop = data.draw(st.integers(start + 1, log.last + 1))
    found, size = log.slice_bounded(start, stop, limit)
    actual = sum(len(entry.data) for entry in found)
    assert found == log.slice(start, start + len(found))
    assert actual <= size
    assert len(found) == 1 or actual <= limit
    if start + len(found) < stop:
        assert actual + len(log.slice(start + len(found), stop)[0].data) > limit
    assert log.bytes_bound(start - 1, stop - 1) >= sum(len(entry.data) for entry in log.slice(start, stop))
