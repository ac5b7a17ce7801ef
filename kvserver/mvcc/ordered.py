"""OrderedKeys: a sorted set of keys in buckets.

A list of sorted buckets of at most ``2 * LOAD`` keys and, beside it, each bucket's largest key. A key is found by two
bisections; inserting moves at most one bucket's pointers. Beside the pointer no memory is spent on a key.

It is what ``sortedcontainers.SortedList`` does, reduced to what the store needs, and with what that lacks: building
from unsorted keys in bounded slices, and removing a whole range at once. Counting adds up bucket lengths (1,000 buckets
for a million keys: 15 us).

Invariants: no bucket is empty; ``_largest[i] is _buckets[i][-1]``; buckets are in order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Generator, Iterator
from itertools import islice

LOAD = 1000
"""Keys of a bucket after a split. Smaller makes more buckets to bisect and count, larger makes inserts move more."""


class OrderedKeys:
    """A sorted set of keys. Hot: ``add`` is in every put of a new key, ``range`` in every range."""

    __slots__ = ("_buckets", "_largest", "_length")

    def __init__(self) -> None:
        self._buckets: list[list[bytes]] = []
        self._largest: list[bytes] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        for bucket in self._buckets:
            yield from bucket

    def add(self, key: bytes) -> None:
        """Insert a key that is not in the set."""
        self._length += 1
        largest = self._largest
        if not largest:
            largest.append(key)
            self._buckets.append([key])
            return
        position = bisect_left(largest, key)
        if position == len(largest):
            position -= 1
            bucket = self._buckets[position]
            bucket.append(key)
            largest[position] = key
        else:
            bucket = self._buckets[position]
            insort(bucket, key)
        if len(bucket) > 2 * LOAD:
            self._split(position)

    def _split(self, position: int) -> None:
        bucket = self._buckets[position]
        upper = bucket[LOAD:]
        del bucket[LOAD:]
        self._buckets.insert(position + 1, upper)
        self._largest[position] = bucket[-1]
        self._largest.insert(position + 1, upper[-1])

    def add_range(self, keys: list[bytes]) -> None:
        """Insert keys that are in order and not in the set; at the cost of one key if none of the set is among them."""
        if not keys:
            return
        low, low_place, high, high_place = self._bounds(keys[0], keys[-1])
        if len(keys) == 1 or (low, low_place) != (high, high_place):
            for key in keys:
                self.add(key)
            return
        buckets = self._buckets
        parts = [keys[start : start + LOAD] for start in range(0, len(keys), LOAD)]
        if low < len(buckets) and low_place:
            # They belong into the middle of a bucket: its upper part becomes a bucket of its own.
            bucket = buckets[low]
            parts.append(bucket[low_place:])
            del bucket[low_place:]
            self._largest[low] = bucket[-1]
            low += 1
        buckets[low:low] = parts
        self._largest[low:low] = [part[-1] for part in parts]
        self._length += len(keys)

    def remove(self, key: bytes) -> None:
        """Remove a key that is in the set.

        Raises:
            KeyError: the key is not in the set.
        """
        position = bisect_left(self._largest, key)
        if position < len(self._largest):
            bucket = self._buckets[position]
            place = bisect_left(bucket, key)
            if bucket[place] == key:
                del bucket[place]
                self._length -= 1
                self._shrunk(position)
                return
        raise KeyError(key)

    def _shrunk(self, position: int) -> None:
        """Restore the invariants of a bucket that lost keys."""
        buckets = self._buckets
        bucket = buckets[position]
        if not bucket:
            del buckets[position]
            del self._largest[position]
            return
        self._largest[position] = bucket[-1]
        if len(bucket) < LOAD // 4 and len(buckets) > 1:
            if position == 0:
                position = 1
            if len(buckets[position - 1]) + len(buckets[position]) <= LOAD:
                buckets[position - 1].extend(buckets[position])
                self._largest[position - 1] = self._largest[position]
                del buckets[position]
                del self._largest[position]

    def _bounds(self, start: bytes, end: bytes | None) -> tuple[int, int, int, int]:
        """Answer (bucket, place) of the first key >= start and of the first key >= end (None: behind the last)."""
        buckets = self._buckets
        low = bisect_left(self._largest, start)
        if low == len(buckets):
            return low, 0, low, 0
        low_place = bisect_left(buckets[low], start)
        if end is None:
            return low, low_place, len(buckets), 0
        high = bisect_left(self._largest, end, low)
        if high == len(buckets):
            return low, low_place, high, 0
        return low, low_place, high, bisect_left(buckets[high], end)

    def range(self, start: bytes, end: bytes | None, limit: int = 0) -> list[bytes]:
        """Answer the keys of [start, end) in order; ``end`` None is no upper bound, ``limit`` 0 is all."""
        if end is not None and end <= start:
            return []
        low, low_place, high, high_place = self._bounds(start, end)
        buckets = self._buckets
        if low == high:
            if low == len(buckets):
                return []
            if limit:
                high_place = min(high_place, low_place + limit)
            return buckets[low][low_place:high_place]
        keys = buckets[low][low_place:]
        if limit and len(keys) >= limit:
            return keys[:limit]
        for position in range(low + 1, high):
            keys += buckets[position]
            if limit and len(keys) >= limit:
                return keys[:limit]
        if high_place:
            keys += buckets[high][:high_place]
        return keys[:limit] if limit else keys

    def count(self, start: bytes, end: bytes | None) -> int:
        """Answer how many keys [start, end) holds."""
        if end is not None and end <= start:
            return 0
        low, low_place, high, high_place = self._bounds(start, end)
        if low == 0 and low_place == 0 and end is None:
            return self._length
        return sum(map(len, self._buckets[low:high])) - low_place + high_place

    def remove_range(self, start: bytes, end: bytes | None) -> None:
        """Remove the keys of [start, end)."""
        if end is not None and end <= start:
            return
        low, low_place, high, high_place = self._bounds(start, end)
        if low == len(self._buckets):
            return
        if high < len(self._buckets):
            if low == high:
                self._length -= high_place - low_place
                del self._buckets[low][low_place:high_place]
                self._shrunk(low)
                return
            del self._buckets[high][:high_place]
            self._length -= high_place
        self._length -= sum(map(len, self._buckets[low:high])) - low_place
        del self._buckets[low][low_place:]
        del self._buckets[low + 1 : high]
        del self._largest[low + 1 : high]
        if low + 1 < len(self._buckets):
            self._shrunk(low + 1)
        self._shrunk(low)

    @classmethod
    def build(cls, keys: Collection[bytes], slice_keys: int) -> Generator[None, None, OrderedKeys]:
        """Build the set from distinct unsorted keys, a slice a step.

        A sample gives bounds of about even buckets, every key is thrown into its bucket, each bucket is sorted: no step
        sorts more than a few thousand keys, whereas one sort of a million takes most of a second.
        """
        built = cls()
        built._length = len(keys)
        sample: list[bytes] = []
        unread = iter(keys)
        while part := list(islice(unread, slice_keys)):
            sample += part[:: max(1, LOAD // 8)]
            yield
        sample.sort()
        bounds = sample[8::8]
        scattered: list[list[bytes]] = [[] for _ in range(len(bounds) + 1)]
        unread = iter(keys)
        while part := list(islice(unread, slice_keys)):
            for key in part:
                scattered[bisect_right(bounds, key)].append(key)
            yield
        done = 0
        for bucket in scattered:
            if not bucket:
                continue
            bucket.sort()
            for start in range(0, len(bucket), 2 * LOAD):
                part = bucket[start : start + 2 * LOAD]
                built._buckets.append(part)
                built._largest.append(part[-1])
            done += len(bucket)
            if done >= slice_keys:
                done = 0
                yield
        return built
