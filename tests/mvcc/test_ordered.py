"""OrderedKeys against a sorted set."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.mvcc import ordered
from kvserver.mvcc.ordered import OrderedKeys
from kvserver.mvcc.ranges import run


@pytest.fixture(autouse=True, scope="module")
def _small_buckets() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordered, "LOAD", 8)
        yield


def check(keys: OrderedKeys, model: set[bytes]) -> None:
    assert list(keys) == sorted(model)
    assert len(keys) == len(model)
    assert all(keys._buckets)
    assert keys._largest == [bucket[-1] for bucket in keys._buckets]


def test_random_inserts_and_removals() -> None:
    rng = random.Random(5)
    keys, model = OrderedKeys(), set()
    for number in range(3000):
        key = b"%04d" % rng.randrange(600)
        if key in model and rng.random() < 0.6:
            keys.remove(key)
            model.remove(key)
        elif key not in model:
            keys.add(key)
            model.add(key)
        if number % 250 == 0:
            check(keys, model)
    check(keys, model)
    for key in sorted(model):
        keys.remove(key)
    check(keys, set())


def test_removing_what_is_not_there_is_an_error() -> None:
    keys = OrderedKeys()
    with pytest.raises(KeyError):
        keys.remove(b"a")
    keys.add(b"b")
    with pytest.raises(KeyError):
        keys.remove(b"a")
    with pytest.raises(KeyError):
        keys.remove(b"c")


few = st.binary(max_size=2)


@given(st.sets(few, max_size=60), few, st.one_of(st.none(), few), st.integers(0, 20))
def test_ranges(names: set[bytes], start: bytes, end: bytes | None, limit: int) -> None:
    keys = run(OrderedKeys.build(sorted(names, key=lambda name: name[::-1]), 7))
    check(keys, names)
    inside = [key for key in sorted(names) if key >= start and (end is None or key < end)]
    assert keys.range(start, end) == inside
    assert keys.range(start, end, limit) == (inside[:limit] if limit else inside)
    assert keys.count(start, end) == len(inside)
    keys.remove_range(start, end)
    check(keys, names - set(inside))


@given(st.sets(few, max_size=60), st.sets(few, max_size=30))
def test_adding_ranges(names: set[bytes], more: set[bytes]) -> None:
    keys = run(OrderedKeys.build(sorted(names), 7))
    keys.add_range(sorted(more - names))
    check(keys, names | more)


@pytest.mark.parametrize("hole", [(0, 100), (100, 130), (150, 200), (3, 4)])
def test_a_range_moves_as_a_whole(hole: tuple[int, int]) -> None:
    names = [b"%03d" % number for number in range(200)]
    inside = names[slice(*hole)]
    keys = run(OrderedKeys.build(names, 50))
    keys.remove_range(inside[0], inside[-1] + b"\0")
    check(keys, set(names) - set(inside))
    keys.add_range(inside)
    check(keys, set(names))
    assert max(map(len, keys._buckets)) <= 2 * ordered.LOAD


def test_building_is_sliced() -> None:
    names = [b"%06d" % number for number in range(5000)]
    random.Random(1).shuffle(names)
    steps = OrderedKeys.build(names, 500)
    assert sum(1 for _ in steps) >= 10
    check(run(OrderedKeys.build(names, 500)), set(names))
