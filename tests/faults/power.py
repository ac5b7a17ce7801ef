"""Tries what power losses leave of a recorded run: every crash point, or a sample of them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.faults.member import Book, Bug, Member, check_recovery, record_run, window, without_sync
from tests.support.simfs import Image, SimFileSystem, crash_points


@dataclass(slots=True)
class Tried:
    """What was tried.

    Attributes:
        images: recoveries.
        lost_something: recoveries that held less than was proposed.
        snapshots: snapshots that the run took.
        segments_released: log segments that the run gave back.
    """

    images: int = 0
    lost_something: int = 0
    snapshots: int = 0
    segments_released: int = 0


def power_losses(fs: SimFileSystem, sample: int | None, seed: int) -> list[tuple[list[object], Image]]:
    """Answer all that a loss at any crash point of a recorded run may leave, or ``sample`` of it, in order."""
    assert fs.journal is not None
    if sample is None:
        return list(crash_points(fs.journal))
    rng = Random(seed)
    kept: list[tuple[int, list[object], Image]] = []
    for number, (marks, image) in enumerate(crash_points(fs.journal)):
        if len(kept) < sample:
            kept.append((number, marks, image))
        elif (place := rng.randrange(number + 1)) < sample:
            kept[place] = (number, marks, image)
    return [(marks, image) for _, marks, image in sorted(kept, key=lambda item: item[0])]


def try_crash_points(seed: int, *, steps: int, sample: int | None, bug: Bug | None = None) -> Tried:
    """Record a run and recover from its crash points; every tenth recovery goes on writing and loses power again.

    Args:
        seed: of the run and of the sample.
        steps: how long a run.
        sample: how many crash points, all if None.
        bug: a mistake that the running member makes.

    Raises:
        AssertionError: a recovery does not hold a durable prefix with all that was acknowledged.
        StartupError: a recovery was refused.
    """
    fs = SimFileSystem(record=True)
    book = Book()
    if bug is Bug.NO_SYNC:
        with without_sync(fs):
            member = Member(fs)
            record_run(member, seed=seed, steps=steps, book=book)
    else:
        member = Member(fs, bug=bug)
        record_run(member, seed=seed, steps=steps, book=book)
    tried = Tried(snapshots=member.snapshots, segments_released=member.segments_released)
    for marks, image in power_losses(fs, sample, seed):
        bounds = window(marks)
        _, number = check_recovery(image, book, bounds)
        tried.lost_something += number < bounds[1]
        if tried.images % 10 == 0:
            _go_on(image, Book.replay(book, number), seed + tried.images)
        tried.images += 1
    return tried


def _go_on(image: Image, book: Book, seed: int) -> None:
    """Recover, write on, lose power somewhere in between, recover again."""
    start = len(book.states) - 1
    fs = SimFileSystem(image, record=True)
    member, _ = check_recovery(fs, book, (start, start))
    record_run(member, seed=seed, steps=5, book=book)
    assert fs.journal is not None
    rng = Random(seed)
    cut = rng.randrange(len(fs.journal) + 1)
    again = SimFileSystem(image)
    for operation in fs.journal[:cut]:
        again.disk.apply(operation)
    marks = [operation[1] for operation in fs.journal[:cut] if operation[0] == "mark"]
    pending = again.disk.pending()
    left = again.disk.after(pending[: rng.randint(0, len(pending))])
    check_recovery(left, book, window(marks, start))
