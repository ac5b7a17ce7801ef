"""The store: writes, reads at any revision, large reads in slices."""

from __future__ import annotations

import pytest

from kvserver import errors
from kvserver.mvcc import RangeOptions, Store, ranges
from kvserver.mvcc import store as store_module
from kvserver.mvcc.ranges import run
from kvserver.mvcc.records import decode
from kvserver.proto.kv_pb2 import KeyValue
from kvserver.proto.rpc_pb2 import RangeRequest


def keys(records: list[bytes]) -> list[bytes]:
    return [decode(record).key for record in records]


def letters() -> Store:
    """Five keys, of which one was written twice, at revisions 2 to 7."""
    store = Store()
    for number, key in enumerate((b"a", b"b", b"c", b"d", b"e")):
        store.put(key, b"v%d" % (9 - number))
    store.put(b"b", b"x")
    return store


def test_an_empty_store_is_at_revision_1() -> None:
    store = Store()
    assert store.revision == 1
    assert store.compact_revision == -1
    assert len(store) == 0
    assert store.get(b"a") is None


def test_versions_count_from_creation() -> None:
    store = Store()
    assert store.put(b"a", b"1") is None
    replaced = store.put(b"a", b"2", 7)
    assert decode(replaced or b"") == KeyValue(key=b"a", value=b"1", create_revision=2, mod_revision=2, version=1)
    current = KeyValue(key=b"a", value=b"2", lease=7, create_revision=2, mod_revision=3, version=2)
    assert decode(store.get(b"a") or b"") == current
    assert keys(store.delete_range(b"a")) == [b"a"]
    assert store.revision == 4
    store.put(b"a", b"3")
    assert decode(store.get(b"a") or b"").version == 1
    assert decode(store.get_at(b"a", 3) or b"") == current
    assert store.get_at(b"a", 4) is None


def test_deleting_nothing_does_not_move_the_revision() -> None:
    store = letters()
    assert store.delete_range(b"x", b"z") == []
    assert store.delete_range(b"x") == []
    assert store.revision == 7


def test_a_txn_has_one_revision() -> None:
    store = letters()
    with store.txn():
        store.put(b"f", b"")
        store.delete_range(b"a", b"c")
        assert store.txn_changes == 3
        assert keys(store.range(b"\0", b"\0").kvs) == [b"c", b"d", b"e", b"f"]
    assert store.revision == 8
    with store.txn():
        pass
    assert store.revision == 8
    entry = store.log.get(8)
    assert isinstance(entry, tuple)
    assert len(entry) == 3


@pytest.mark.parametrize(
    ("key", "end", "found"),
    [
        (b"b", b"", [b"b"]),
        (b"x", b"", []),
        (b"b", b"d", [b"b", b"c"]),
        (b"b", b"\0", [b"b", b"c", b"d", b"e"]),
        (b"\0", b"\0", [b"a", b"b", b"c", b"d", b"e"]),
        (b"d", b"b", []),
        (b"b", b"b", []),
    ],
)
def test_ranges(key: bytes, end: bytes, found: list[bytes]) -> None:
    result = letters().range(key, end)
    assert keys(result.kvs) == found
    assert result.count == len(found)
    assert not result.more


def test_the_limit_cuts_and_the_count_ignores_it() -> None:
    store = letters()
    for revision, count in ((0, 5), (4, 3)):
        result = store.range(b"\0", b"\0", RangeOptions(limit=2, revision=revision))
        assert keys(result.kvs) == [b"a", b"b"]
        assert result.count == count
        assert result.more
    result = store.range(b"\0", b"\0", RangeOptions(limit=5))
    assert not result.more


def test_count_only_and_keys_only() -> None:
    store = letters()
    counted = store.range(b"\0", b"\0", RangeOptions(count_only=True, limit=2))
    assert counted.kvs == []
    assert counted.count == 5
    assert not counted.more
    named = store.range(b"b", b"", RangeOptions(keys_only=True))
    assert [decode(record) for record in named.kvs] == [
        KeyValue(key=b"b", create_revision=3, mod_revision=7, version=2)
    ]


@pytest.mark.parametrize(
    ("target", "order", "found"),
    [
        (RangeRequest.KEY, RangeRequest.NONE, b"abcde"),
        (RangeRequest.KEY, RangeRequest.DESCEND, b"edcba"),
        (RangeRequest.VERSION, RangeRequest.NONE, b"acdeb"),
        (RangeRequest.VERSION, RangeRequest.DESCEND, b"bacde"),
        (RangeRequest.CREATE, RangeRequest.DESCEND, b"edcba"),
        (RangeRequest.MOD, RangeRequest.NONE, b"acdeb"),
        (RangeRequest.MOD, RangeRequest.DESCEND, b"bedca"),
        (RangeRequest.VALUE, RangeRequest.ASCEND, b"edcab"),
    ],
)
@pytest.mark.parametrize("slice_keys", [1, 2, 100])
def test_sorting(target: int, order: int, found: bytes, slice_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SLICE_KEYS", slice_keys)
    monkeypatch.setattr(ranges, "SLICE_RECORDS", slice_keys)
    store = letters()
    options = RangeOptions(sort_target=target, sort_order=order)
    assert b"".join(keys(store.range(b"\0", b"\0", options).kvs)) == found
    limited = store.range(b"\0", b"\0", options._replace(limit=2))
    assert b"".join(keys(limited.kvs)) == found[:2]
    assert limited.count == 5
    assert limited.more
    named = store.range(b"\0", b"\0", options._replace(keys_only=True))
    assert b"".join(keys(named.kvs)) == found
    assert not any(decode(record).value for record in named.kvs)


@pytest.mark.parametrize("option", [{"sort_order": 3}, {"sort_order": -1}, {"sort_target": 5}])
def test_unknown_sorting(option: dict[str, int]) -> None:
    with pytest.raises(errors.InvalidSortOptionError):
        RangeOptions(**option).check()


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ({"min_mod_revision": 5}, b"bde"),
        ({"max_mod_revision": 5}, b"acd"),
        ({"min_create_revision": 4}, b"cde"),
        ({"max_create_revision": 3}, b"ab"),
        ({"min_mod_revision": 4, "max_mod_revision": 5}, b"cd"),
    ],
)
def test_filters(option: dict[str, int], found: bytes) -> None:
    result = letters().range(b"\0", b"\0", RangeOptions(**option))
    assert b"".join(keys(result.kvs)) == found
    assert result.count == 5
    limited = letters().range(b"\0", b"\0", RangeOptions(limit=1, **option))
    assert b"".join(keys(limited.kvs)) == found[:1]
    assert limited.more


def test_a_future_revision() -> None:
    with pytest.raises(errors.FutureRevisionError):
        letters().range(b"a", b"", RangeOptions(revision=8))


def test_a_large_range_is_of_one_revision_though_the_store_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SLICE_KEYS", 10)
    store = Store()
    for number in range(100):
        store.put(b"%03d" % number, b"old")
    before = store.range(b"\0", b"\0").kvs
    slices = store.range_slices(b"\0", b"\0")
    steps = 0
    try:
        while True:
            next(slices)
            steps += 1
            store.delete_range(b"%03d" % (steps * 7 % 100))
            store.put(b"%03d" % (steps * 13 % 100), b"new")
            store.put(b"%03dx" % (steps * 9), b"new")
            if steps == 3:
                job = store.compact(store.revision)
            if steps > 3:
                next(job)
    except StopIteration as stop:
        result = stop.value
    assert steps >= 10
    assert result.kvs == before
    assert result.count == 100
    assert store._pins == {}
    run(job)


def test_a_range_that_is_closed_early_releases_its_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SLICE_KEYS", 2)
    store = letters()
    slices = store.range_slices(b"\0", b"\0")
    next(slices)
    assert store.oldest_pin(100) == 7
    slices.close()
    assert store.oldest_pin(100) == 100


def test_a_large_range_with_a_limit_reads_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SLICE_KEYS", 10)
    store = Store()
    for number in range(100):
        store.put(b"%03d" % number, b"")
    slices = store.range_slices(b"\0", b"\0", RangeOptions(limit=25))
    assert sum(1 for _ in slices) <= 3
    result = store.range(b"\0", b"\0", RangeOptions(limit=25))
    assert len(result.kvs) == 25
    assert result.more
    assert result.count == 100


def test_estimates_are_not_below_the_truth() -> None:
    store = letters()
    assert store.estimate(b"a", b"") == 1
    assert store.estimate(b"b", b"d") == 2
    assert store.estimate(b"b", b"\0") == 4
    store.delete_range(b"c")
    assert store.estimate(b"b", b"d") == 2


def test_an_adopted_store_is_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SLICE_KEYS", 2)
    store, other = letters(), Store()
    for number in range(20):
        other.put(b"%d" % number, b"")
    wanted = other.hash_kv()
    removal = store.compact(5)
    next(removal)
    slices = store.range_slices(b"\0", b"\0", RangeOptions(revision=6))
    next(slices)
    store.adopt(other)
    assert store.hash_kv() == wanted
    run(removal)
    with pytest.raises(errors.CompactedError):
        run(slices)
    store.put(b"a", b"")
    run(store.compact(store.revision))
    assert store.removed_revision == store.revision
