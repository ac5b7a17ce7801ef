"""A member as its leader sees it: probe, replicate, snapshot, and the window."""

from __future__ import annotations

from kvserver.raft import ProgressState
from kvserver.raft.tracker import Progress


def progress(match: int, next: int) -> Progress:
    return Progress(match, next, is_learner=False)


def test_a_probe_waits_for_its_answer() -> None:
    one = progress(0, 5)
    assert not one.is_paused(10, 1000)
    one.sent(6, 2, 10)
    assert one.is_paused(10, 1000)
    assert one.next == 5  # where the logs match is not known: nothing is assumed to have arrived
    assert one.maybe_update(6)
    assert (one.match, one.next) == (6, 7)
    assert not one.is_paused(10, 1000)


def test_the_window_is_bounded_by_messages_and_bytes() -> None:
    one = progress(4, 5)
    one.become_replicate()
    one.sent(5, 1, 600)
    assert not one.is_paused(2, 1000)
    one.sent(6, 1, 600)
    assert one.is_paused(9, 1000)
    assert one.is_paused(2, 10_000)
    one.free_to(5)
    assert not one.is_paused(2, 1000)
    assert one.next == 7
    one.free_first()
    assert one.inflight_count == 0


def test_match_and_next_never_cross_and_match_never_goes_back() -> None:
    one = progress(0, 1)
    assert one.maybe_update(3)
    assert not one.maybe_update(2)
    assert (one.match, one.next) == (3, 4)
    assert not one.maybe_decrease(9, 0)  # not the probe that is under way
    assert one.maybe_decrease(3, 0)
    assert (one.match, one.next) == (3, 4)  # a hint below match is no reason to go below it


def test_a_stale_refusal_is_ignored_while_replicating() -> None:
    one = progress(5, 6)
    one.become_replicate()
    one.sent(9, 4, 10)
    assert not one.maybe_decrease(5, 2)
    assert one.next == 10
    assert one.maybe_decrease(7, 6)
    assert one.next == 6


def test_after_a_snapshot_probing_goes_on_behind_it() -> None:
    one = progress(2, 3)
    one.become_snapshot(9)
    assert one.is_paused(10, 1000)
    assert not one.maybe_decrease(2, 0)
    one.become_probe()
    assert (one.state, one.next) == (ProgressState.PROBE, 10)
    one.become_snapshot(20)
    one.pending_snapshot = 0  # it failed
    one.become_probe()
    assert one.next == 3
