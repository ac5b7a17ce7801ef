"""Snapshots: taken while the store goes on, restored to the same store, refused if damaged."""

from __future__ import annotations

import pytest

from kvserver.lease import Lessor
from kvserver.mvcc import RangeOptions, Store, snapshot
from kvserver.mvcc.ranges import run
from kvserver.mvcc.snapshot import SnapshotFormatError


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 500)


def lived_in() -> Store:
    lessor = Lessor()
    lessor.grant(7, 60)
    lessor.grant(8, 70)
    store = Store(lessor)
    for number in range(200):
        store.put(b"%03d" % (number % 40), b"v%d" % number, (0, 7, 8)[number % 3])
        if number % 11 == 0:
            store.delete_range(b"%03d" % (number % 40), b"%03d" % (number % 40 + 3))
        if number % 17 == 0:
            with store.txn():
                store.put(b"a", b"0" * 12)
                store.put(b"b", b"")
    run(store.compact(150))
    return store


def same(one: Store, other: Store) -> bool:
    revisions = range(one.compact_revision, one.revision + 1)
    return (
        one.hash_kv() == other.hash_kv()
        and one.size_bytes == other.size_bytes
        and one.removed_revision == other.removed_revision
        and all(
            one.range(b"\0", b"\0", RangeOptions(revision=revision))
            == other.range(b"\0", b"\0", RangeOptions(revision=revision))
            for revision in revisions
        )
    )


def test_a_restored_store_is_the_same() -> None:
    store = lived_in()
    chunks = list(store.snapshot())
    assert len(chunks) > 5
    lessor = Lessor()
    restored = Store.restore(chunks, lessor)
    lessor.restore(store.leases.snapshot(), restored.leased_keys())  # type: ignore[attr-defined]
    assert same(store, restored)
    for lease in (7, 8):
        wanted = store.leases.time_to_live(lease, 0, True)  # type: ignore[attr-defined]
        assert wanted.keys
        assert lessor.time_to_live(lease, 0, True) == wanted
    for each in (store, restored):
        each.put(b"a", b"1")
        each.delete_range(b"0", b"1")
        run(each.compact(each.revision))
    assert same(store, restored)
    assert list(restored.log.items(0, 1 << 40)) == list(store.log.items(0, 1 << 40))


def test_an_empty_store() -> None:
    restored = Store.restore(Store().snapshot())
    assert same(Store(), restored)
    restored.put(b"a", b"")
    assert restored.revision == 2


def test_a_snapshot_is_of_the_moment_it_was_taken() -> None:
    store = lived_in()
    before = Store.restore(list(store.snapshot()))
    taken = store.snapshot()
    chunks = []
    job = None
    for number, chunk in enumerate(taken):
        chunks.append(chunk)
        store.put(b"%03d" % number, b"later")
        store.delete_range(b"%03d" % (number + 1))
        if number == 2:
            job = store.compact(store.revision)
        if job is not None:
            run(job)
    assert same(Store.restore(chunks), before)


def test_a_compaction_that_was_under_way_is_resumed() -> None:
    store = lived_in()
    store.compact(180)
    restored = Store.restore(store.snapshot())
    assert restored.compact_revision == 180
    assert restored.removed_revision == 150
    job = restored.resume_compaction()
    assert job is not None
    run(job)
    assert restored.resume_compaction() is None
    assert restored.removed_revision == 180
    assert restored.hash_kv() == store.hash_kv()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda chunks: [], "wrong header"),
        (lambda chunks: [b"x" * len(chunks[0]), *chunks[1:]], "wrong header"),
        (lambda chunks: [chunks[0][:8] + b"\x09" + chunks[0][9:], *chunks[1:]], "format 9"),
        (lambda chunks: chunks[:-1], "ends early"),
        (lambda chunks: chunks[:2] + chunks[3:], "blocks, but"),
        (lambda chunks: [chunks[0], chunks[1][:-1], *chunks[2:]], "bytes"),
        (lambda chunks: [chunks[0], chunks[1][:20], *chunks[2:]], "shorter"),
        (lambda chunks: [chunks[0], b"abc"], "shorter"),
    ],
)
def test_what_is_not_a_snapshot_is_refused(damage: object, words: str) -> None:
    chunks = list(lived_in().snapshot())
    with pytest.raises(SnapshotFormatError, match=words):
        Store.restore(damage(chunks))  # type: ignore[operator]


def test_a_chunk_of_a_large_store_is_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 256 * 1024)
    store = Store()
    for number in range(10_000):
        store.put(b"%d" % number, b"v" * 64)
    sizes = [len(chunk) for chunk in store.snapshot()]
    assert max(sizes) < 320 * 1024
    assert Store.restore(store.snapshot()).hash_kv() == store.hash_kv()
