"""Histories: an int, then packed ints, against a list."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from kvserver.mvcc.history import extended, last_at, members, without_first

revisions = st.lists(st.integers(2, 2**62), min_size=1, max_size=8).map(sorted)


@given(revisions, st.integers(0, 9), st.integers(1, 2**62))
def test_histories_are_lists(numbers: list[int], count: int, revision: int) -> None:
    history = None
    for number in numbers:
        history = extended(history, number)
    assert history is not None
    assert list(members(history)) == numbers
    assert list(members(extended(None, *numbers))) == numbers
    assert last_at(history, revision) == max((number for number in numbers if number <= revision), default=None)
    left = without_first(history, count)
    assert (list(members(left)) if left is not None else []) == numbers[count:]


def test_the_garbage_collector_does_not_know_them() -> None:
    assert not gc.is_tracked(extended(None, 1))
    assert not gc.is_tracked(extended(None, 1, 2))
