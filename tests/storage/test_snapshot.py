"""Snapshot files: chunks come back as written or not at all, whatever happens to the disk."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Iterable
from random import Random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver import limits
from kvserver.storage import (
    CorruptionError,
    OsFileSystem,
    SnapshotError,
    SnapshotInfo,
    Snapshotter,
    StorageFailedError,
)
from kvserver.storage.fs import FileSystem
from tests.support.simfs import Fault, Loss, PowerLossError, SimFileSystem, crash_points

DIRECTORY = "/data/member/snap"
CHUNKS = [b"header", b"", b"the same words " * 100, Random(1).randbytes(700), bytes(600)]


def save(fs: FileSystem, index: int, term: int = 1, chunks: Iterable[bytes] = CHUNKS) -> SnapshotInfo:
    writer = Snapshotter(fs, DIRECTORY).create(index, term)
    for chunk in chunks:
        writer.write(chunk)
    return writer.commit()


def load(fs: FileSystem, info: SnapshotInfo) -> list[bytes]:
    return list(Snapshotter(fs, DIRECTORY).open(info))


def path_of(info: SnapshotInfo) -> str:
    return f"{DIRECTORY}/{info.name}"


@settings(max_examples=50, deadline=None)
@given(chunks=st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 5000).map(bytes)), max_size=12))
def test_chunks_come_back_with_their_borders(chunks: list[bytes]) -> None:
    fs = SimFileSystem()
    info = save(fs, 7, chunks=chunks)
    fs.power_loss(Loss.ALL, Random(0))
    assert load(fs, info) == chunks


def test_names_carry_term_and_index_and_the_newest_comes_first() -> None:
    fs = SimFileSystem()
    for index, term in ((5, 1), (300, 2), (20, 1)):
        save(fs, index, term)
    snapshotter = Snapshotter(fs, DIRECTORY)
    infos = snapshotter.list()
    assert [(info.index, info.term) for info in infos] == [(300, 2), (20, 1), (5, 1)]
    assert infos[0].name == "0000000000000002-000000000000012c.snap"
    assert infos[0].size_bytes == len(fs.image().files[path_of(infos[0])])
    assert snapshotter.newest_valid() == infos[0]
    assert snapshotter.newest_valid(lambda info: info.index < 300) == infos[1]
    assert snapshotter.newest_valid(lambda info: False) is None


def test_pruning_keeps_the_newest_two() -> None:
    fs = SimFileSystem()
    for index in range(1, 6):
        save(fs, index)
    snapshotter = Snapshotter(fs, DIRECTORY)
    assert [info.index for info in snapshotter.prune()] == [3, 2, 1]
    fs.power_loss(Loss.ALL, Random(0))
    assert [info.index for info in Snapshotter(fs, DIRECTORY).list()] == [5, 4]
    assert snapshotter.prune() == []
    with pytest.raises(ValueError, match="at least 1"):
        snapshotter.prune(0)


def test_a_snapshot_is_invisible_until_committed_and_gone_when_aborted() -> None:
    fs = SimFileSystem()
    snapshotter = Snapshotter(fs, DIRECTORY)
    writer = snapshotter.create(9, 1)
    writer.write(b"chunk")
    assert snapshotter.list() == []
    writer.abort()
    writer.abort()
    assert fs.listdir(DIRECTORY) == []
    with pytest.raises(SnapshotError, match="ended before"):
        writer.write(b"more")
    writer = snapshotter.create(9, 1)
    writer.commit()
    writer.abort()
    assert len(snapshotter.list()) == 1


def test_leftovers_of_a_dead_process_are_removed() -> None:
    fs = SimFileSystem()
    Snapshotter(fs, DIRECTORY).create(9, 1).write(b"unfinished")
    again = Snapshotter(fs, DIRECTORY, read_only=True)
    assert fs.listdir(DIRECTORY) == ["0000000000000001-0000000000000009.snap.tmp"]
    assert again.create(9, 1).commit().index == 9  # over the leftover
    Snapshotter(fs, DIRECTORY).create(10, 1)
    Snapshotter(fs, DIRECTORY)
    assert fs.listdir(DIRECTORY) == ["0000000000000001-0000000000000009.snap"]


def test_a_chunk_above_the_bound_is_refused() -> None:
    writer = Snapshotter(SimFileSystem(), DIRECTORY).create(1, 1)
    with pytest.raises(ValueError, match="at most"):
        writer.write(bytes(limits.SNAPSHOT_CHUNK_BYTES_MAX + 1))
    writer.write(Random(2).randbytes(limits.SNAPSHOT_CHUNK_BYTES_MAX))  # incompressible: a little larger on disk
    writer.commit()


def test_every_crash_point_leaves_the_old_snapshot_and_the_new_one_whole_or_not_there() -> None:
    fs = SimFileSystem(record=True)
    save(fs, 1, chunks=[b"old"])
    fs.mark("old")
    new = Snapshotter(fs, DIRECTORY).create(2, 1)
    for chunk in CHUNKS:
        new.write(chunk)
    new.commit()
    fs.mark("new")
    Snapshotter(fs, DIRECTORY).prune(1)
    assert fs.journal is not None
    seen = set()
    for marks, image in crash_points(fs.journal):
        again = SimFileSystem(image)
        snapshotter = Snapshotter(again, DIRECTORY)
        found = snapshotter.newest_valid()
        assert not any(name.endswith(".broken") for name in again.listdir(DIRECTORY))
        assert found is not None or not marks
        seen.add(found.index if found else 0)
        if "new" in marks:
            assert found is not None
            assert found.index == 2
        if found is not None:
            assert load(again, found) == (CHUNKS if found.index == 2 else [b"old"])
    assert seen == {0, 1, 2}


def test_any_flipped_byte_is_noticed_before_its_chunk_is_used() -> None:
    fs = SimFileSystem()
    info = save(fs, 4)
    content = fs.image().files[path_of(info)]
    rng = Random(3)
    for byte in range(len(content)):
        damaged = bytearray(content)
        damaged[byte] ^= rng.randrange(1, 256)
        again = SimFileSystem(fs.image().with_file(path_of(info), bytes(damaged)))
        got = []
        with pytest.raises(CorruptionError, match="damaged at byte") as caught:
            for chunk in Snapshotter(again, DIRECTORY).open(info):
                got.append(chunk)
        assert got == CHUNKS[: len(got)]
        assert caught.value.path == path_of(info)


def test_a_cut_or_lengthened_file_is_noticed() -> None:
    fs = SimFileSystem()
    info = save(fs, 4)
    content = fs.image().files[path_of(info)]
    for damaged in [*(content[:size] for size in range(len(content))), content + b"\0"]:
        with pytest.raises(CorruptionError):
            load(SimFileSystem(fs.image().with_file(path_of(info), damaged)), info)


def test_a_renamed_snapshot_is_noticed() -> None:
    fs = SimFileSystem()
    info = save(fs, 4)
    other = SnapshotInfo(5, 1, info.size_bytes)
    fs.rename(path_of(info), path_of(other))
    with pytest.raises(CorruptionError, match="index 4"):
        load(fs, other)


def test_a_damaged_snapshot_is_set_aside_and_the_older_one_used(caplog: pytest.LogCaptureFixture) -> None:
    fs = SimFileSystem()
    old, new = save(fs, 4), save(fs, 8)
    fs.flip(path_of(new), 60, 3)
    snapshotter = Snapshotter(fs, DIRECTORY)
    assert snapshotter.newest_valid() == old
    assert "set aside a damaged snapshot" in caplog.text
    assert path_of(new) in caplog.text
    fs.power_loss(Loss.ALL, Random(0))
    assert fs.listdir(DIRECTORY) == [old.name, new.name + ".broken"]
    assert load(fs, old) == CHUNKS


def test_a_missing_snapshot_and_another_format_are_told() -> None:
    from kvserver.storage.frame import crc32c_extend
    from kvserver.storage.snapshot import _CRC, _HEADER, MAGIC

    fs = SimFileSystem()
    info = save(fs, 4)
    with pytest.raises(SnapshotError, match="no such snapshot"):
        load(fs, SnapshotInfo(5, 1, 0))
    header = _HEADER.pack(MAGIC, 2, 1, 4)
    newer = SimFileSystem(fs.image().with_file(path_of(info), header + _CRC.pack(crc32c_extend(0, header))))
    with pytest.raises(SnapshotError, match="version 2, this program reads"):
        load(newer, info)
    with pytest.raises(SnapshotError):
        Snapshotter(newer, DIRECTORY).newest_valid()


@pytest.mark.parametrize("outcome", ["cached", "durable"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_the_nth_operation_fails(error: int, sticky: bool, outcome: Literal["cached", "durable"]) -> None:
    nth = 0
    while True:
        nth += 1
        fs = SimFileSystem()
        old = save(fs, 1)
        fault = fs.inject(Fault(nth=nth, error=error, sticky=sticky, outcome=outcome))
        try:
            new = save(fs, 2)
        except StorageFailedError as failure:
            new = None
            assert DIRECTORY in str(failure)  # noqa: PT017
        fs.heal()
        fs.power_loss(Loss.ALL, Random(nth))
        snapshotter = Snapshotter(fs, DIRECTORY)
        assert not any(name.endswith(".tmp") for name in fs.listdir(DIRECTORY))
        assert snapshotter.newest_valid() == (new or old)
        assert load(fs, new or old) == CHUNKS
        if not fault.hits:
            break
    assert nth > 8


def test_a_short_write_is_continued() -> None:
    for nth in range(1, 20):
        fs = SimFileSystem()
        fs.inject(Fault(nth=nth, short=True))
        assert load(fs, save(fs, 2)) == CHUNKS


def test_power_lost_in_the_middle_leaves_nothing_broken() -> None:
    for nth in range(1, 25):
        for loss in Loss:
            fs = SimFileSystem()
            old = save(fs, 1)
            fs.crash_at(nth)
            try:
                save(fs, 2)
            except PowerLossError:
                pass
            fs.power_loss(loss, Random(nth))
            newest = Snapshotter(fs, DIRECTORY).newest_valid()
            assert newest is not None
            assert newest.index in (1, 2)
            assert load(fs, newest) == CHUNKS
            assert load(fs, old) == CHUNKS


def test_memory_is_that_of_a_chunk_not_of_the_snapshot(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = str(tmp_path_factory.mktemp("snap"))
    snapshotter = Snapshotter(OsFileSystem(), directory)
    chunk = Random(5).randbytes(1 << 18)
    tracemalloc.start()
    try:
        writer = snapshotter.create(1, 1)
        for _ in range(64):
            writer.write(chunk)
        info = writer.commit()
        assert sum(len(part) for part in snapshotter.open(info)) == 64 << 18
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert info.size_bytes > 16 << 20
    assert peak < 6 << 18
