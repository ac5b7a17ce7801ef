"""Power loss: after every crash point the log holds a prefix of the batches, with all that were acknowledged."""

from __future__ import annotations

import logging
from random import Random

import pytest

from kvserver.storage import Wal
from tests.storage.logs import DIRECTORY, TINY, Item, create, flat, read, sample_batches, write
from tests.support.simfs import Image, Loss, PowerLossError, SimFileSystem, crash_points


def check_survivors(image: Image, batches: list[list[Item]], acknowledged: int) -> int:
    """Recovers, checks, goes on writing, recovers again. Returns how many batches survived."""
    fs = SimFileSystem(image)
    wal = Wal.open(fs, DIRECTORY, TINY)
    records = [(record.type, record.payload) for record in wal.replay()]
    survived = next(
        (count for count in range(acknowledged, len(batches) + 1) if flat(batches[:count]) == records), None
    )
    assert survived is not None, f"{len(records)} records are no prefix with {acknowledged} batches"
    assert survived <= acknowledged + 1, "more than the one batch in flight"
    write(wal, (9, b"written after the recovery"))
    wal.close()
    assert read(fs) == [*records, (9, b"written after the recovery")]
    return survived


@pytest.mark.parametrize("seed", range(3))
def test_every_crash_point_and_every_unsynced_suffix_leaves_a_durable_prefix(seed: int) -> None:
    fs = SimFileSystem(record=True)
    wal = create(fs)
    batches = sample_batches(seed, count=24)
    fs.mark("created")
    for batch in batches:
        write(wal, *batch)
        fs.mark("acknowledged")
    assert wal.segment_count >= 3
    assert fs.journal is not None
    tried = torn = 0
    for marks, image in crash_points(fs.journal):
        if not marks:
            if Wal.exists(SimFileSystem(image), DIRECTORY):
                check_survivors(image, [], 0)
            continue
        acknowledged = marks.count("acknowledged")
        tried += 1
        torn += check_survivors(image, batches, acknowledged) == acknowledged
    assert tried > 300
    assert torn > 100


def test_a_crash_while_creating_leaves_no_log_or_an_empty_one() -> None:
    fs = SimFileSystem(record=True)
    create(fs)
    assert fs.journal is not None
    outcomes = set()
    for _, image in crash_points(fs.journal):
        again = SimFileSystem(image)
        outcomes.add(Wal.exists(again, DIRECTORY))
        wal = Wal.open(again, DIRECTORY, TINY) if Wal.exists(again, DIRECTORY) else create(again)
        write(wal, (1, b"x"))
        assert read(again) == [(1, b"x")]
    assert outcomes == {False, True}


@pytest.mark.parametrize("loss", Loss)
def test_crashes_at_random_operations_even_within_recoveries(loss: Loss) -> None:
    """One disk lives through many power losses, some of them while it recovers from the one before."""
    for seed in range(12):
        rng = Random(seed)
        fs = SimFileSystem()
        create(fs).close()
        durable: list[Item] = []
        for _ in range(25):
            in_flight: list[Item] = []
            fs.crash_at(rng.randint(1, 40))
            try:
                wal = Wal.open(fs, DIRECTORY, TINY)
                durable_now = [(record.type, record.payload) for record in wal.replay()]
                assert durable_now == durable
                for batch in sample_batches(rng.randrange(1 << 30), count=20):
                    in_flight = batch
                    write(wal, *batch)
                    durable += batch
                    in_flight = []
                    if rng.random() < 0.1:
                        wal.release_before(wal.position)
                        durable = [
                            (record.type, record.payload)
                            for record in Wal.open(SimFileSystem(fs.image()), DIRECTORY, TINY).replay()
                        ]
            except PowerLossError:
                pass
            fs.power_loss(loss, rng)
            survivors = read(SimFileSystem(fs.image()))
            # A release that was under way may have removed a whole number of old segments.
            candidates = [durable, durable + in_flight]
            matching = [
                candidate
                for candidate in candidates
                if survivors == candidate[len(candidate) - len(survivors) :] and len(survivors) <= len(candidate)
            ]
            assert matching
            durable = survivors


def test_a_torn_tail_is_cut_with_a_warning_that_names_file_and_byte(caplog: pytest.LogCaptureFixture) -> None:
    fs = SimFileSystem()
    wal = create(fs)
    write(wal, (1, b"kept"))
    end = wal.position.offset
    fs.crash_at(2)
    with pytest.raises(PowerLossError):
        write(wal, (1, b"lost" * 50))
    image = fs.disk.after([fs.disk.pending()[0].part(0, end + 100)])
    recovered = SimFileSystem(image)
    with caplog.at_level(logging.WARNING):
        assert read(recovered) == [(1, b"kept")]
    assert f"{DIRECTORY}/0000000000000001.wal: cut back to byte {end}" in caplog.text
    caplog.clear()
    assert read(recovered) == [(1, b"kept")]
    assert caplog.text == ""


def test_recovering_twice_gives_the_same_log() -> None:
    fs = SimFileSystem(record=True)
    wal = create(fs)
    for batch in sample_batches(seed=20, count=10):
        write(wal, *batch)
    assert fs.journal is not None
    for number, (_, image) in enumerate(crash_points(fs.journal)):
        if number % 5 or not Wal.exists(SimFileSystem(image), DIRECTORY):
            continue
        once = SimFileSystem(image)
        first = read(once)
        twice = SimFileSystem(once.image())
        assert read(twice) == first
        assert twice.image() == once.image()
        once.power_loss(Loss.ALL, Random(number))
        assert read(once) == first
