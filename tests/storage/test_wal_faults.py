"""The n-th operation fails, for every n, once and from then on: nothing acknowledged is lost, no half batch stays."""

from __future__ import annotations

import errno
from random import Random
from typing import Literal

import pytest

from kvserver.storage import StorageFailedError, Wal
from tests.storage.logs import DIRECTORY, TINY, Item, create, flat, read, sample_batches, write
from tests.support.simfs import Fault, Loss, SimFileSystem

BATCHES = sample_batches(seed=60, count=16)


def run(fs: SimFileSystem) -> tuple[list[Item], list[Item]]:
    """Makes, writes, reopens, writes, releases nothing. Returns what was acknowledged and what was under way."""
    acknowledged: list[Item] = []
    wal: Wal | None = None
    try:
        wal = create(fs)
        for half in (BATCHES[:8], BATCHES[8:]):
            for batch in half:
                for record_type, payload in batch:
                    wal.append(record_type, payload)
                sealed = wal.seal()
                assert sealed is not None
                try:
                    wal.write(sealed)
                except StorageFailedError:
                    check_final(wal)
                    return acknowledged, batch
                acknowledged += batch
            if half is not BATCHES[8:]:
                wal.close()
                wal = Wal.open(fs, DIRECTORY, TINY)
                assert [(record.type, record.payload) for record in wal.replay()] == acknowledged
    except StorageFailedError:
        pass
    return acknowledged, []


def check_final(wal: Wal) -> None:
    """After a failure nothing works any more, even if the disk would."""
    with pytest.raises(StorageFailedError):
        wal.append(1, b"x")
    with pytest.raises(StorageFailedError):
        list(wal.replay())


def check_restart(fs: SimFileSystem, acknowledged: list[Item], under_way: list[Item]) -> None:
    """A restart on a sound disk finds everything acknowledged, and goes on."""
    if not Wal.exists(fs, DIRECTORY):
        assert not acknowledged
        create(fs).close()
    wal = Wal.open(fs, DIRECTORY, TINY)
    records = [(record.type, record.payload) for record in wal.replay()]
    assert records in (acknowledged, acknowledged + under_way)
    write(wal, (9, b"after"))
    fs.power_loss(Loss.ALL, Random(0))
    assert read(fs) == [*records, (9, b"after")]


@pytest.mark.parametrize("power", ["stays", "goes"])
@pytest.mark.parametrize("outcome", ["lost", "cached", "durable"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_the_nth_operation_fails(
    error: int, sticky: bool, outcome: Literal["lost", "cached", "durable"], power: str
) -> None:
    nth = 0
    while True:
        nth += 1
        fs = SimFileSystem()
        fault = fs.inject(Fault(nth=nth, error=error, sticky=sticky, outcome=outcome))
        acknowledged, under_way = run(fs)
        fs.heal()
        if power == "goes":
            fs.power_loss(Loss.ALL, Random(nth))
        else:
            fs.restart()
        check_restart(fs, acknowledged, under_way)
        if not fault.hits:
            assert acknowledged == flat(BATCHES)
            break
    assert nth > 40


@pytest.mark.parametrize("sticky", [False, True], ids=["goes on", "then no space"])
def test_the_nth_write_is_short(sticky: bool) -> None:
    nth = struck = 0
    while True:
        nth += 1
        fs = SimFileSystem()
        fault = fs.inject(Fault(nth=nth, error=errno.ENOSPC if sticky else errno.EIO, sticky=sticky, short=True))
        acknowledged, under_way = run(fs)
        struck += fault.hits > 0
        if not sticky:
            assert acknowledged == flat(BATCHES)
        fs.heal()
        fs.power_loss(Loss.SUFFIX, Random(nth))
        check_restart(fs, acknowledged, under_way)
        if nth > fs.operations:
            break
    assert struck > 10


def test_a_failed_sync_is_never_tried_again() -> None:
    """The second try would succeed and prove nothing: the kernel has dropped the pages."""
    fs = SimFileSystem(record=True)
    wal = create(fs)
    write(wal, (1, b"acknowledged"))
    fs.inject(Fault(nth=2))
    with pytest.raises(StorageFailedError, match="nothing is acknowledged from now on"):
        write(wal, (1, b"not"))
    assert fs.journal is not None
    operations = len(fs.journal)
    with pytest.raises(StorageFailedError):
        write(wal, (1, b"later"))
    assert len(fs.journal) == operations
    fs.power_loss(Loss.ALL, Random(0))
    assert read(fs) == [(1, b"acknowledged")]
