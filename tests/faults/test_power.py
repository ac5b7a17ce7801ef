"""Power loss and failing disks under a whole member: crash points of recorded runs, and the n-th I/O for many n."""

from __future__ import annotations

import contextlib
import errno
from random import Random
from typing import Literal

import pytest

from kvserver.errors import StartupError
from kvserver.mvcc import compaction
from tests.faults.checker import Put, Request
from tests.faults.member import Book, Bug, Compaction, Member, Snapshot, check_recovery, record_run, window
from tests.faults.power import try_crash_points
from tests.support.simfs import Fault, Loss, PowerLossError, SimFileSystem

SAMPLE = 350


@pytest.mark.parametrize("seed", range(2))
def test_every_crash_point_recovers_to_a_durable_prefix_with_all_that_was_acknowledged(seed: int) -> None:
    tried = try_crash_points(seed, steps=60, sample=SAMPLE)
    assert tried.images >= SAMPLE
    assert tried.snapshots >= 3
    assert tried.segments_released >= 1
    assert tried.lost_something > 20, "unsynced writes were really lost"


def test_two_runs_of_one_seed_are_the_same_operation_by_operation() -> None:
    journals = []
    for _ in range(2):
        fs = SimFileSystem(record=True)
        record_run(Member(fs), seed=5, steps=30, book=Book())
        journals.append(fs.journal)
    assert journals[0] == journals[1]


@pytest.mark.parametrize("bug", Bug)
def test_a_member_that_makes_a_known_mistake_is_found_out(bug: Bug) -> None:
    with pytest.raises((AssertionError, StartupError)):
        for seed in range(4):
            try_crash_points(seed, steps=60, sample=SAMPLE, bug=bug)


@pytest.mark.parametrize("outcome", ["lost", "cached", "durable"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_the_nth_operation_of_the_disk_fails_for_many_n(
    error: int, outcome: Literal["lost", "cached", "durable"]
) -> None:
    rng = Random(error)
    struck = stopped = 0
    for nth in range(1, 160, 4):
        fs = SimFileSystem(record=True)
        book = Book()
        fault = fs.inject(Fault(nth, error, sticky=True, outcome=outcome))
        member = None
        with contextlib.suppress(StartupError, OSError):
            member = Member(fs)
        if member is not None:
            record_run(member, seed=nth, steps=40, book=book)
            stopped += member.failure is not None
        struck += fault.hits > 0
        fs.heal()
        assert fs.journal is not None
        marks = [operation[1] for operation in fs.journal if operation[0] == "mark"]
        if rng.random() < 0.5:
            fs.restart()
        else:
            fs.power_loss(Loss.ALL, rng)
        check_recovery(fs, book, window(marks))
    assert struck > 20
    assert stopped > 10


@pytest.mark.parametrize("loss", Loss)
def test_one_disk_lives_through_many_power_losses_also_while_it_recovers(loss: Loss) -> None:
    for seed in range(6):
        rng = Random(seed)
        fs = SimFileSystem()
        book = Book()
        number = 0
        for generation in range(8):
            fs.crash_at(rng.randint(1, 150))
            fs.journal = []
            try:
                member, number = check_recovery(fs, book, (number, len(book.states) - 1))
                # What was proposed and did not survive never happened.
                book = Book.replay(book, number)
                record_run(member, seed=rng.randrange(1 << 30), steps=30, book=book)
            except PowerLossError:
                pass
            marks = [operation[1] for operation in fs.journal if operation[0] == "mark"]
            number = window(marks, number)[0]
            fs.power_loss(loss, rng)
            assert generation >= 0
        fs.crash_at(None)
        check_recovery(fs, book, (number, len(book.states) - 1))


def test_dying_twice_between_a_snapshot_and_its_marker_loses_nothing() -> None:
    """A snapshot whose marker is not in the log does not count; it must not push out those that do."""
    fs = SimFileSystem()
    book = Book()
    member = Member(fs)
    seed = 0
    while not member.segments_released:
        seed += 1
        record_run(member, seed=seed, steps=20, book=book)
    for _ in range(3):
        # Something new, so that the next snapshot is another file.
        record_run(member, seed=seed, steps=1, book=book)
        member.propose(Snapshot(), lambda result: None)
        saved = member.snapshots
        member.turn()
        while member.snapshots == saved:
            assert member.save_chunk()
        fs.power_loss(Loss.NOTHING, Random(0))
        last = len(book.states) - 1
        member, _ = check_recovery(fs, book, (last, last))


@pytest.mark.parametrize("seed", range(3))
def test_a_recovered_member_has_the_hash_of_one_that_never_stopped(seed: int) -> None:
    fs = SimFileSystem()
    book = Book()
    record_run(Member(fs), seed=seed, steps=40, book=book)
    fs.power_loss(Loss.ALL, Random(seed))
    last = len(book.states) - 1
    recovered, _ = check_recovery(fs, book, (last, last))
    twin = Member(SimFileSystem())
    twin.settle()
    for step in book.steps:
        twin.propose(step, lambda result: None)
    twin.settle()
    assert twin.state() == recovered.state()
    assert twin.hash() == recovered.hash()


def test_a_compaction_that_a_restart_interrupted_is_finished_by_the_restarted_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compaction, "SLICE_RECORDS", 1)
    fs = SimFileSystem()
    book = Book()
    member = Member(fs, snapshot_count=1000)
    member.settle()
    for number in range(10):
        for step in (Request((Put(b"a", b"%d" % number),)), Request((Put(b"b", b"%d" % number),))):
            book.carry_out(step)
            member.propose(step, lambda result: None)
    book.carry_out(Compaction(15))
    member.propose(Compaction(15), lambda result: None)
    while member.turn() or member.finish_write():
        pass
    member.propose(Snapshot(), lambda result: None)
    while member.turn() or member.finish_write() or member.save_chunk():
        pass  # all but the long work
    assert member.snapshots == 1
    fs.power_loss(Loss.ALL, Random(0))
    last = len(book.states) - 1
    recovered, _ = check_recovery(fs, book, (last, last))
    store = recovered.engine.machine.watchable.store
    member.settle()
    assert store.removed_revision == 15
    assert store.size_bytes == member.engine.machine.watchable.store.size_bytes
