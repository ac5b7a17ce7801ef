"""The revision log: dense and sparse chunks, and views that stay as they were."""

from __future__ import annotations

import random
from array import array

import pytest

from kvserver.mvcc import revision_log
from kvserver.mvcc.records import first_version, frame_record
from kvserver.mvcc.revision_log import RevisionLog


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(revision_log, "CHUNK_ENTRIES", 8)
        yield


def record(revision: int, key: bytes = b"k") -> bytes:
    return frame_record(first_version(key, b"", 0, revision))


def filled(count: int) -> RevisionLog:
    log = RevisionLog(2)
    for revision in range(2, 2 + count):
        log.append(record(revision))
    return log


def test_entries_are_found_by_revision() -> None:
    log = filled(30)
    assert log.next_revision == 32
    for revision in range(2, 32):
        assert log.get(revision) == record(revision)
    assert log.get(1) is None
    assert log.get(32) is None
    assert [revision for revision, _ in log.items(5, 20)] == list(range(5, 20))


def test_a_txns_records_are_found_by_key() -> None:
    log = RevisionLog(2)
    entry = (record(2, b"a"), record(2, b"b"))
    log.append(entry)
    assert log.find(2, b"b") is entry[1]
    assert log.find(2, b"c") is None
    log.seal()
    log.remove([(2, entry[0])])
    assert log.get(2) == (None, entry[1])
    log.remove([(2, entry[1])])
    assert log.get(2) is None


@pytest.mark.parametrize("seed", range(5))
def test_removing_in_any_order_keeps_the_rest(seed: int) -> None:
    rng = random.Random(seed)
    log = filled(200)
    log.seal()
    records = dict(log.items(0, 1000))
    view = log.view(0, 500)
    order = list(records)
    rng.shuffle(order)
    kept = dict(records)
    while order:
        batch, order = order[:17], order[17:]
        log.remove([(revision, kept.pop(revision)) for revision in batch])  # type: ignore[misc]
        assert dict(log.items(0, 1000)) == kept
        assert all(log.get(revision) is entry for revision, entry in kept.items())
        assert all(log.get(revision) is None for revision in batch)
        assert log.firsts == [chunk.first for chunk in log.chunks]
        # Chunks are packed and joined as they empty, so that what is left costs what it needs.
        assert sum(len(chunk.entries) for chunk in log.chunks) <= 2 * len(kept) + 8
    assert len(log.chunks) == 1
    seen = {revision: entry for chunk in view for revision, entry in chunk.items(0, 500)}
    assert seen == records
    log.append(record(202))
    assert log.get(202) == record(202)


def test_loaded_columns_are_dense_where_they_can_be() -> None:
    log = RevisionLog(2)
    log.load(array("q", [4, 9, 12]), [record(4), record(9), record(12)])
    log.load(array("q", [13, 14, 15]), [record(13), record(14), record(15)])
    log.skip_to(21)
    assert [revision for revision, _ in log.items(0, 100)] == [4, 9, 12, 13, 14, 15]
    assert log.get(9) == record(9)
    assert log.get(10) is None
    assert log.next_revision == 21
    assert [chunk.mains is None for chunk in log.chunks] == [False, True, True]
