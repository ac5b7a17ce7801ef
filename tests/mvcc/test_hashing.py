"""hash_kv: values that genuine etcd 3.5.1 answered, and independence of how far removal has come."""

from __future__ import annotations

import pytest

from kvserver import errors
from kvserver.mvcc import Store, hashing
from kvserver.mvcc.ranges import run


def known() -> Store:
    store = Store()
    for number in range(5):
        store.put(b"k%d" % number, b"v%d" % (9 - number))
    store.put(b"k1", b"x")
    return store


def test_the_hashes_of_etcd() -> None:
    store = known()
    assert store.hash_kv(3) == (2162198261, -1, 3)
    assert store.hash_kv(-1) == (1084519789, -1, -1)


def test_revisions_out_of_range() -> None:
    store = known()
    run(store.compact(4))
    with pytest.raises(errors.FutureRevisionError):
        store.hash_kv(8)
    with pytest.raises(errors.CompactedError):
        store.hash_kv(4)
    assert store.hash_kv(5)[1:] == (4, 5)
    assert store.hash_kv() == store.hash_kv(7)


@pytest.mark.parametrize("deleted", [False, True])
def test_removal_does_not_change_the_hash(deleted: bool) -> None:
    store, scheduled = known(), known()
    for each in (store, scheduled):
        each.delete_range(b"k2")
        if deleted:
            each.delete_range(b"\0", b"\0")
    run(store.compact(7))
    scheduled.compact(7)
    for revision in (0, 8, 9)[: 3 if deleted else 2]:
        assert store.hash_kv(revision) == scheduled.hash_kv(revision)


def test_a_sliced_hash_is_of_the_moment_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "SLICE_RECORDS", 1)
    store = known()
    for number in range(3000):
        store.put(b"k%d" % (number % 50), b"")
    wanted = store.hash_kv()
    slices = store.hash_kv_slices()
    steps = 0
    try:
        while True:
            next(slices)
            steps += 1
            store.put(b"k1", b"later")
            if steps == 1:
                job = store.compact(store.revision)
            next(job)
    except StopIteration as stop:
        assert stop.value == wanted  # noqa: PT017
    assert steps >= 3
