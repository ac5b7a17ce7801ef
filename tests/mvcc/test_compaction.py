"""Compaction: what goes, what stays, and who waits."""

from __future__ import annotations

import pytest

from kvserver import errors
from kvserver.mvcc import RangeOptions, Store, compaction
from kvserver.mvcc.ranges import run
from kvserver.mvcc.records import decode


def revisions(store: Store) -> list[int]:
    return [revision for revision, _ in store.log.items(0, 1 << 40)]


def values(store: Store, revision: int) -> list[bytes]:
    return [decode(record).value for record in store.range(b"\0", b"\0", RangeOptions(revision=revision)).kvs]


def history() -> Store:
    store = Store()
    store.put(b"a", b"1")  # 2
    store.put(b"a", b"2")  # 3
    store.put(b"b", b"1")  # 4
    store.delete_range(b"a")  # 5
    store.put(b"a", b"3")  # 6
    store.delete_range(b"b")  # 7
    return store


def test_only_what_is_current_at_the_revision_stays() -> None:
    store = history()
    run(store.compact(4))
    assert revisions(store) == [3, 4, 5, 6, 7]
    assert values(store, 4) == [b"2", b"1"]
    with pytest.raises(errors.CompactedError):
        store.range(b"a", b"", RangeOptions(revision=3))


def test_a_tombstone_stays_at_its_own_revision_and_goes_with_the_next() -> None:
    store = history()
    run(store.compact(5))
    assert revisions(store) == [4, 5, 6, 7]
    run(store.compact(6))
    assert revisions(store) == [4, 6, 7]
    run(store.compact(7))
    assert revisions(store) == [6, 7]
    store.put(b"c", b"")
    run(store.compact(8))
    assert revisions(store) == [6, 8]
    assert store._history == {}
    assert len(store._deleted) == 0


@pytest.mark.parametrize(("revision", "error"), [(-1, errors.CompactedError), (8, errors.FutureRevisionError)])
def test_revisions_out_of_range(revision: int, error: type[errors.KvError]) -> None:
    with pytest.raises(error):
        history().compact(revision)


def test_compacting_twice_at_a_revision() -> None:
    store = history()
    store.compact(5)
    with pytest.raises(errors.CompactedError):
        store.compact(5)
    with pytest.raises(errors.CompactedError):
        store.compact(4)


def test_reads_below_fail_before_the_removal() -> None:
    store = history()
    store.compact(5)
    with pytest.raises(errors.CompactedError):
        store.range(b"a", b"", RangeOptions(revision=4))
    assert values(store, 5) == [b"1"]


def test_a_pin_keeps_what_its_reader_needs() -> None:
    store = history()
    pin = store.pin(3)
    job = store.compact(7)
    for _ in range(50):
        next(job)
    assert decode(store.get_at(b"a", 3) or b"").value == b"2"
    assert store.removed_revision == 3
    store.unpin(pin)
    run(job)
    assert revisions(store) == [6, 7]


def test_removal_is_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SLICE_RECORDS", 10)
    store = Store()
    for number in range(300):
        store.put(b"%d" % (number % 7), b"x")
    steps = sum(1 for _ in store.compact(store.revision))
    assert steps >= 30
    assert len(revisions(store)) == 7


def test_two_compactions_share_the_work() -> None:
    store = history()
    first = store.compact(4)
    next(first)
    second = store.compact(7)
    run(second)
    run(first)
    assert store.removed_revision == 7
    assert revisions(store) == [6, 7]


def test_put_and_delete_of_one_key_in_one_txn() -> None:
    store = Store()
    with store.txn():
        store.put(b"a", b"1")
        store.delete_range(b"a")
    store.put(b"b", b"")
    run(store.compact(2))
    assert len(store.log.get(2) or ()) == 2
    run(store.compact(3))
    assert revisions(store) == [3]
