"""RevisionLog: every kept record in the order of revisions.

One entry a main revision: the record itself for the usual revision of one change, a tuple of records (index = sub
revision) for a txn of several. Entries stand in chunks. A chunk is dense (the entry of main revision r at place
``r - first``, None where compaction removed it) or, once compaction left less than half, sparse (an array of main
revisions beside the entries).

Invariants:
- Only the last chunk, the tail, grows; any other chunk is never changed. Compaction puts new chunks in their place.
  So a view is a copy of the list of chunks, and what it reads stays as it was (snapshots, hashes).
- Entries are a list in the tail and a tuple elsewhere: the garbage collector visits a tuple of bytes once and never
  again, where it would visit a list, and so every record there is, at each full collection.
- Chunks are in order of revisions and, but for the tail, not empty.
- ``None`` in an entry tuple is a removed record; a tuple never holds only None.

What must not live here: which records may be removed (see ``compaction``).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from kvserver.mvcc.records import key_of

Entry = bytes | tuple[bytes | None, ...]

CHUNK_ENTRIES = 1024
"""Entries of a chunk: what compaction copies to remove one record, and the least a view reads at a time."""


def find_last(members: Sequence[bytes | None], key: bytes) -> bytes | None:
    """Answer a key's last record among those of one txn."""
    for record in reversed(members):
        if record is not None and key_of(record) == key:
            return record
    return None


class Chunk:
    """Consecutive entries; dense while ``mains`` is None, else sparse."""

    __slots__ = ("entries", "first", "mains")

    def __init__(self, first: int, entries: Sequence[Entry | None], mains: array[int] | None = None) -> None:
        self.first = first
        self.entries = entries
        self.mains = mains

    def place(self, revision: int) -> int:
        """Answer the index of a revision's entry, or of the next later one."""
        if self.mains is None:
            return max(0, revision - self.first)
        return bisect_left(self.mains, revision)

    def items(self, start: int, end: int) -> Iterator[tuple[int, Entry]]:
        """Yield (revision, entry) of what is kept of revisions [start, end)."""
        low = self.place(start)
        high = self.place(end)
        if self.mains is None:
            revision = self.first + low
            for entry in self.entries[low:high]:
                if entry is not None:
                    yield revision, entry
                revision += 1
        else:
            for revision, entry in zip(self.mains[low:high], self.entries[low:high], strict=True):
                if entry is not None:
                    yield revision, entry


class RevisionLog:
    """Records by revision."""

    __slots__ = ("chunks", "firsts", "tail")

    def __init__(self, next_revision: int) -> None:
        """Start a log whose first entry will be at main revision ``next_revision``."""
        self.tail: list[Entry | None] = []
        self.chunks = [Chunk(next_revision, self.tail)]
        self.firsts = [next_revision]

    @property
    def next_revision(self) -> int:
        """The main revision that the next entry gets."""
        return self.firsts[-1] + len(self.tail)

    def append(self, entry: Entry) -> None:
        """Add the entry of the next main revision."""
        self.tail.append(entry)
        if len(self.tail) >= CHUNK_ENTRIES:
            self.seal()

    def load(self, mains: array[int], entries: Sequence[Entry | None]) -> None:
        """Add entries at the given later main revisions (restore).

        Args:
            mains: main revisions, ascending.
            entries: one for each.
        """
        for start in range(0, len(entries), CHUNK_ENTRIES):
            part = mains[start : start + CHUNK_ENTRIES]
            self.skip_to(part[0])
            dense = part[-1] - part[0] == len(part) - 1
            self.chunks[-1] = Chunk(part[0], tuple(entries[start : start + CHUNK_ENTRIES]), None if dense else part)
            self.chunks.append(Chunk(part[-1] + 1, self.tail))
            self.firsts.append(part[-1] + 1)

    def seal(self) -> None:
        """Close the tail for good and start a new one."""
        if self.tail:
            self.skip_to(self.next_revision)

    def skip_to(self, revision: int) -> None:
        """Start a new tail whose first entry will be at ``revision``."""
        if self.tail:
            self.chunks[-1] = Chunk(self.firsts[-1], tuple(self.tail))
        else:
            self.chunks.pop()
            self.firsts.pop()
        self.tail = []
        self.chunks.append(Chunk(revision, self.tail))
        self.firsts.append(revision)

    def get(self, revision: int) -> Entry | None:
        """Answer the entry of a main revision, None if there is none or it was removed."""
        position = bisect_right(self.firsts, revision) - 1
        if position < 0:
            return None
        chunk = self.chunks[position]
        place = chunk.place(revision)
        if place >= len(chunk.entries) or (chunk.mains is not None and chunk.mains[place] != revision):
            return None
        return chunk.entries[place]

    def find(self, revision: int, key: bytes) -> bytes | None:
        """Answer the record that a key got last at a main revision; None if there is none or it was removed."""
        entry = self.get(revision)
        if not isinstance(entry, tuple):
            return entry
        return find_last(entry, key)

    def view(self, start: int, end: int) -> list[Chunk]:
        """Answer the chunks that hold revisions [start, end): what they hold of them never changes."""
        low = max(0, bisect_right(self.firsts, start) - 1)
        return self.chunks[low : bisect_left(self.firsts, end, low)]

    def items(self, start: int, end: int) -> Iterator[tuple[int, Entry]]:
        """Yield (revision, entry) of what is kept of revisions [start, end)."""
        for chunk in self.view(start, end):
            yield from chunk.items(start, end)

    def remove(self, dead: Sequence[tuple[int, bytes]]) -> None:
        """Remove records, given as (main revision, record) and found by identity; the tail must be sealed behind them.

        Chunks that are left nearly empty are packed and joined with their neighbour.
        """
        by_chunk: dict[int, list[tuple[int, bytes]]] = {}
        for item in dead:
            position = bisect_right(self.firsts, item[0]) - 1
            by_chunk.setdefault(position, []).append(item)
        for position in sorted(by_chunk, reverse=True):
            self._rewrite(position, by_chunk[position])

    def _rewrite(self, position: int, dead: list[tuple[int, bytes]]) -> None:
        chunk = self.chunks[position]
        entries = list(chunk.entries)
        for revision, record in dead:
            place = chunk.place(revision)
            entry = entries[place]
            if isinstance(entry, tuple):
                left = tuple(None if member is record else member for member in entry)
                entries[place] = left if any(left) else None
            else:
                entries[place] = None
        kept = len(entries) - entries.count(None)
        if kept == 0:
            del self.chunks[position]
            del self.firsts[position]
            return
        replacement = Chunk(chunk.first, tuple(entries), chunk.mains)
        if chunk.mains is not None or 2 * kept < len(entries):
            replacement = self._packed([replacement])
        self.chunks[position] = replacement
        following = position + 1
        if following < len(self.chunks) - 1:
            neighbour = self.chunks[following]
            if kept + len(neighbour.entries) <= CHUNK_ENTRIES // 2:
                self.chunks[position] = self._packed([replacement, neighbour])
                del self.chunks[following]
                del self.firsts[following]

    @staticmethod
    def _packed(chunks: list[Chunk]) -> Chunk:
        mains = array("q")
        entries: list[Entry | None] = []
        for chunk in chunks:
            for revision, entry in chunk.items(chunk.first, 1 << 62):
                mains.append(revision)
                entries.append(entry)
        return Chunk(chunks[0].first, tuple(entries), mains)
