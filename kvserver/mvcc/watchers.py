"""Who watches what: groups of watchers found by key.

Watchers of the same key or the same range form a group; an event is composed once for a group and delivered to each of
its watchers. Groups of single keys stand in a dict, groups of prefixes in a dict that is asked for each prefix of the
key that has a length somebody watches, groups of other ranges in :class:`RangeIndex`.

Iteration is in the order of joining, never in hash order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from kvserver.limits import WATCH_REMEMBERED_KEYS as REMEMBERED_KEYS

if TYPE_CHECKING:
    from kvserver.mvcc.watch import Watcher


class Group:
    """The watchers of one key or one range; ``end`` b"" is the single key, None is unbounded."""

    __slots__ = ("end", "records", "start", "watchers")

    def __init__(self, start: bytes, end: bytes | None) -> None:
        self.start = start
        self.end = end
        # By variant (see ``watch``), as events are composed once a variant; dicts are ordered sets.
        self.watchers: dict[int, dict[Watcher, None]] = {}
        self.records: list[tuple[int, bytes]] = []

    def add(self, watcher: Watcher) -> None:
        """Let a watcher join."""
        self.watchers.setdefault(watcher.variant, {})[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        """Let a watcher leave."""
        members = self.watchers[watcher.variant]
        del members[watcher]
        if not members:
            del self.watchers[watcher.variant]


BLOCK_RANGES = 128
"""Ranges of a block after a split."""


class _Block:
    """Ranges with consecutive starts, and the largest of their ends."""

    __slots__ = ("ends", "groups", "largest_end", "starts")

    def __init__(self, starts: list[tuple[bytes, bytes]], groups: list[Group]) -> None:
        self.starts = starts
        self.groups = groups
        self.largest_end = b""
        self.measure()

    def measure(self) -> None:
        self.largest_end = max(end for _, end in self.starts)


class RangeIndex:
    """Distinct ranges, and which of them hold a key.

    Bounded ranges stand ordered by start in blocks; a block whose largest end is not above the key is passed over, and
    among the rest only ranges starting at or before the key are looked at. Unbounded ranges are ordered by start: those
    that hold a key are a prefix. With 10,000 disjoint ranges a lookup takes some 10 us, a remembered one 0.1 us.
    """

    __slots__ = ("_blocks", "_firsts", "_memory", "_open_groups", "_open_starts")

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._firsts: list[tuple[bytes, bytes]] = []
        self._open_starts: list[bytes] = []
        self._open_groups: list[Group] = []
        self._memory: dict[bytes, list[Group]] = {}

    def __len__(self) -> int:
        return len(self._blocks) + len(self._open_groups)

    def add(self, group: Group) -> None:
        """Insert a group whose range is not in the index."""
        self._memory.clear()
        if group.end is None:
            place = bisect_left(self._open_starts, group.start)
            self._open_starts.insert(place, group.start)
            self._open_groups.insert(place, group)
            return
        item = (group.start, group.end)
        if not self._blocks:
            self._blocks.append(_Block([item], [group]))
            self._firsts.append(item)
            return
        position = max(0, bisect_right(self._firsts, item) - 1)
        block = self._blocks[position]
        place = bisect_left(block.starts, item)
        block.starts.insert(place, item)
        block.groups.insert(place, group)
        if group.end > block.largest_end:
            block.largest_end = group.end
        if place == 0:
            self._firsts[position] = item
        if len(block.starts) > 2 * BLOCK_RANGES:
            upper = _Block(block.starts[BLOCK_RANGES:], block.groups[BLOCK_RANGES:])
            del block.starts[BLOCK_RANGES:]
            del block.groups[BLOCK_RANGES:]
            block.measure()
            self._blocks.insert(position + 1, upper)
            self._firsts.insert(position + 1, upper.starts[0])

    def remove(self, group: Group) -> None:
        """Remove a group that is in the index."""
        self._memory.clear()
        if group.end is None:
            place = bisect_left(self._open_starts, group.start)
            del self._open_starts[place]
            del self._open_groups[place]
            return
        item = (group.start, group.end)
        position = bisect_right(self._firsts, item) - 1
        block = self._blocks[position]
        place = bisect_left(block.starts, item)
        del block.starts[place]
        del block.groups[place]
        if not block.starts:
            del self._blocks[position]
            del self._firsts[position]
            return
        self._firsts[position] = block.starts[0]
        if group.end == block.largest_end:
            block.measure()

    def find(self, key: bytes) -> list[Group]:
        """Answer the groups whose range holds ``key``, ordered by start."""
        found = self._memory.get(key)
        if found is not None:
            return found
        found = self._open_groups[: bisect_right(self._open_starts, key)]
        # Above every range that starts at ``key``, below every later start.
        bound = (key + b"\0", b"")
        last = bisect_left(self._firsts, bound)
        for block in [block for block in self._blocks[:last] if block.largest_end > key]:
            place = bisect_left(block.starts, bound)
            found += [group for (_, end), group in zip(block.starts[:place], block.groups, strict=False) if end > key]
        if len(self._memory) >= REMEMBERED_KEYS:
            self._memory.clear()
        self._memory[key] = found
        return found


PREFIX_BYTES_MAX = 64
"""Longest prefix that is looked up by its bytes; bounds how many lengths a key is tried at."""


def is_prefix(start: bytes, end: bytes | None) -> bool:
    """Answer whether [start, end) is all keys that begin with ``start``."""
    return (
        end is not None
        and 0 < len(start) == len(end) <= PREFIX_BYTES_MAX
        and start[-1] + 1 == end[-1]
        and start[:-1] == end[:-1]
    )


class WatcherIndex:
    """All groups: by key, by prefix and by range."""

    __slots__ = ("_keys", "_lengths", "_prefixes", "_ranges", "_spans", "count")

    def __init__(self) -> None:
        self._keys: dict[bytes, Group] = {}
        self._prefixes: dict[bytes, Group] = {}
        self._lengths: dict[int, int] = {}  # of the prefixes, with how many there are
        self._spans: dict[tuple[bytes, bytes | None], Group] = {}
        self._ranges = RangeIndex()
        self.count = 0

    def add(self, watcher: Watcher) -> None:
        """Insert a watcher."""
        self.count += 1
        if watcher.end == b"":
            group = self._keys.get(watcher.key)
            if group is None:
                group = self._keys[watcher.key] = Group(watcher.key, b"")
        else:
            span = (watcher.key, watcher.end)
            group = self._spans.get(span)
            if group is None:
                group = self._spans[span] = Group(watcher.key, watcher.end)
                if is_prefix(watcher.key, watcher.end):
                    length = len(watcher.key)
                    self._prefixes[watcher.key] = group
                    self._lengths[length] = self._lengths.get(length, 0) + 1
                else:
                    self._ranges.add(group)
        group.add(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Remove a watcher."""
        self.count -= 1
        if watcher.end == b"":
            group = self._keys[watcher.key]
            group.remove(watcher)
            if not group.watchers:
                del self._keys[watcher.key]
        else:
            span = (watcher.key, watcher.end)
            group = self._spans[span]
            group.remove(watcher)
            if not group.watchers:
                del self._spans[span]
                if is_prefix(watcher.key, watcher.end):
                    length = len(watcher.key)
                    del self._prefixes[watcher.key]
                    self._lengths[length] -= 1
                    if not self._lengths[length]:
                        del self._lengths[length]
                else:
                    self._ranges.remove(group)

    def find(self, key: bytes) -> list[Group]:
        """Answer the groups that watch ``key``."""
        group = self._keys.get(key)
        found = [group] if group is not None else []
        if self._spans:
            prefixes = self._prefixes
            for length in self._lengths:
                group = prefixes.get(key[:length])
                if group is not None and length <= len(key):
                    found.append(group)
            if len(self._ranges):
                found += self._ranges.find(key)
        return found
