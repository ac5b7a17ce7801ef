"""Store: the multi-version key-value state of a member.

State, for every key:
- ``_live``: key -> record of its current version. Deleted keys are not in it.
- ``_order``: the live keys in order.
- ``_history``: key -> the main revisions of what its current version replaced, oldest first. It
  holds what compaction has not removed; a deleted key's last one is that of its tombstone. See ``history``.
- ``_deleted``: the keys in ``_history`` that are not live, in order, for reads in the past.
- ``_log``: the records of all kept versions in the order of revisions, for reads in the past, watchers that catch up,
  hashes and snapshots.
A key that was written once costs its key, its record, a place in the dict and two pointers: 270 bytes for a key of 22
bytes and a value of 64. Nothing of it is a container, so the cyclic garbage collector has nothing to walk.

Invariants:
- Revisions are dense: every write txn that changes something takes the next main revision, its changes sub revisions 0,
  1, ... An empty store is at revision 1.
- ``_history[key]`` is in order of revisions, and all of it is older than ``_live[key]``.
- Reads at revision r need ``compact_revision <= r <= revision``. Compaction removes nothing that a read at or above its
  revision, or above the oldest pin, could see.
- The outcome of a write depends on the state and the arguments alone: every member computes the same bytes.

What must not live here: requests and answers (``requests``, ``txn``), watchers (``watch``), time, and any idea of Raft.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from kvserver import errors
from kvserver.limits import MVCC_SLICE_RECORDS as SLICE_KEYS
from kvserver.mvcc import snapshot
from kvserver.mvcc.compaction import CompactionJob
from kvserver.mvcc.hashing import hash_slices
from kvserver.mvcc.history import MEMBER_BYTES, NATIVE, History, extended, last_at
from kvserver.mvcc.ordered import OrderedKeys
from kvserver.mvcc.ranges import RangeOptions, RangeResult, Shape, run
from kvserver.mvcc.records import (
    PREFIXES,
    body_of,
    body_offset,
    first_version,
    is_tombstone,
    mod_revision,
    parse_key_value,
    tombstone,
    varint,
)
from kvserver.mvcc.revision_log import CHUNK_ENTRIES, Entry, RevisionLog


class Leases(Protocol):
    """What the store needs of the lessor: keys hang on leases."""

    def exists(self, lease_id: int) -> bool:
        """Answer whether there is such a lease."""

    def attach(self, lease_id: int, key: bytes) -> None:
        """Hang a key on a lease."""

    def detach(self, lease_id: int, key: bytes) -> None:
        """Take a key off a lease."""


class NoLeases:
    """The lessor of a store that has none (tools, tests): every lease exists."""

    def exists(self, lease_id: int) -> bool:
        """Answer True."""
        return True

    def attach(self, lease_id: int, key: bytes) -> None:
        """Do nothing."""

    def detach(self, lease_id: int, key: bytes) -> None:
        """Do nothing."""


_ALL = RangeOptions()


class Store:
    """The key-values of a member and their history."""

    SLICE_KEYS = SLICE_KEYS

    def __init__(self, leases: Leases | None = None) -> None:
        """Make an empty store.

        Args:
            leases: told of keys that are put with a lease, and asked whether a lease exists.
        """
        self.revision = 1
        self.compact_revision = -1
        self.size_bytes = 0
        self.leases: Leases = NoLeases() if leases is None else leases
        self.before_compaction: list[Callable[[], None]] = []
        self._live: dict[bytes, bytes] = {}
        self._history: dict[bytes, History] = {}
        self._order = OrderedKeys()
        self._deleted = OrderedKeys()
        self._log = RevisionLog(2)
        self._open: list[bytes] | None = None
        self._leased = False  # whether any key may hang on a lease
        self._pins: dict[int, int] = {}
        self._next_pin = 0
        self._compaction = CompactionJob(self)

    # -- reading ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Answer how many keys there are now."""
        return len(self._live)

    def get(self, key: bytes) -> bytes | None:
        """Answer the current record of a key. Hot: the whole of a plain read (benchmark ``range``)."""
        return self._live.get(key)

    def get_at(self, key: bytes, revision: int) -> bytes | None:
        """Answer the record of a key as of ``revision``, which must not be compacted; None if it did not exist."""
        record = self._live.get(key)
        if record is not None and mod_revision(record) <= revision:
            return record
        history = self._history.get(key)
        if history is None:
            return None
        main = last_at(history, revision)
        if main is None:
            return None
        record = self._log.find(main, key)
        return None if record is None or is_tombstone(record) else record

    def estimate(self, key: bytes, range_end: bytes) -> int:
        """Answer cheaply about how many keys a range would touch, to choose between ``range`` and ``range_slices``."""
        if not range_end:
            return 1
        end = None if range_end == b"\0" else range_end
        return self._order.count(key, end) + self._deleted.count(key, end)

    def range(self, key: bytes, range_end: bytes = b"", options: RangeOptions = _ALL) -> RangeResult:
        """Read [key, range_end) at once.

        Args:
            key: first key.
            range_end: end of the range; empty for the single key, ``b"\\0"`` for every key >= ``key``.
            options: revision, limit, sorting and filters; ``options.check()`` is the caller's.

        Raises:
            CompactedError: the revision is below the compact revision.
            FutureRevisionError: the revision is above the current one.
        """
        if options is _ALL and not range_end:
            record = self._live.get(key)
            return RangeResult([], 0, False) if record is None else RangeResult([record], 1, False)
        return run(self.range_slices(key, range_end, options))

    def range_slices(
        self, key: bytes, range_end: bytes, options: RangeOptions = _ALL
    ) -> Generator[None, None, RangeResult]:
        """Read [key, range_end) as of now, one bounded slice a step, while the store goes on changing.

        Arguments and errors are those of :meth:`range`; errors are raised by the first step. The revision is pinned
        from the first step until the generator ends or is closed.
        """
        # Within a txn the changes already made are visible, at the revision that the txn is going to have.
        current = self.revision + 1 if self._open else self.revision
        revision = options.revision
        if revision > current:
            raise errors.FutureRevisionError
        if revision <= 0:
            revision = current
        if revision < self.compact_revision:
            raise errors.CompactedError
        if not range_end:
            record = self._live.get(key) if revision == current else self.get_at(key, revision)
            found = [] if record is None else [record]
            return self._shaped(found, len(found), options)
        end = None if range_end == b"\0" else range_end
        # How many keys have to be fetched, 0 if all: the limit comes last, behind filters and sorting.
        limit = 0 if options.sorted or options.filtered else max(0, options.limit)
        if revision == current:
            count = self._order.count(key, end)
            if options.count_only:
                return RangeResult([], count, False)
            if (limit or count) <= SLICE_KEYS:
                live = self._live
                keys = self._order.range(key, end, limit)
                return self._shaped([live[k] for k in keys], count, options)
        else:
            count = -1
        shape = Shape(options)
        pin = self.pin(revision)
        log = self._log
        try:
            cursor: bytes | None = key
            total = 0
            while cursor is not None:
                if self._log is not log:
                    raise errors.CompactedError
                if revision == (self.revision + 1 if self._open else self.revision):
                    live = self._live
                    keys = self._order.range(cursor, end, SLICE_KEYS)
                    records = [live[k] for k in keys]
                    cursor = keys[-1] + b"\0" if len(keys) == SLICE_KEYS else None
                else:
                    records, cursor = self._slice_at(cursor, end, revision)
                total += len(records)
                if not shape.full:
                    shape.take(records)
                elif count >= 0:
                    break
                yield
        finally:
            self.unpin(pin)
        result = yield from shape.result(total if count < 0 else count)
        return result

    def _slice_at(self, cursor: bytes, end: bytes | None, revision: int) -> tuple[list[bytes], bytes | None]:
        """Read about SLICE_KEYS keys from ``cursor`` as of ``revision``; answers records and the next cursor."""
        keys = self._order.range(cursor, end, SLICE_KEYS)
        full = len(keys) == SLICE_KEYS
        deleted = self._deleted.range(cursor, keys[-1] if full else end, SLICE_KEYS)
        if deleted:
            full = full or len(deleted) == SLICE_KEYS
            keys = sorted(keys + deleted)[:SLICE_KEYS] if full else sorted(keys + deleted)
        get_at = self.get_at
        records = [record for key in keys if (record := get_at(key, revision)) is not None]
        return records, keys[-1] + b"\0" if full else None

    @staticmethod
    def _shaped(records: list[bytes], count: int, options: RangeOptions) -> RangeResult:
        """Filter, sort and limit what was fetched."""
        if options is _ALL:
            return RangeResult(records, count, False)
        shape = Shape(options)
        shape.take(records)
        return run(shape.result(count))

    # -- pins -------------------------------------------------------------------------------------------------------

    def pin(self, revision: int) -> int:
        """Keep compaction from removing what a read at ``revision`` sees; answers a handle for :meth:`unpin`."""
        handle = self._next_pin
        self._next_pin += 1
        self._pins[handle] = revision
        return handle

    def unpin(self, handle: int) -> None:
        """Release a pin."""
        self._pins.pop(handle, None)

    def oldest_pin(self, default: int) -> int:
        """Answer the oldest pinned revision, at most ``default``."""
        return min(min(self._pins.values()), default) if self._pins else default

    # -- writing ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open a write txn: all writes until :meth:`end` share one main revision."""
        assert self._open is None
        self._open = []

    def end(self) -> int:
        """Close the write txn; answers the store's revision, which moved if something was written."""
        changes = self._open
        assert changes is not None
        self._open = None
        if changes:
            self._append(changes[0] if len(changes) == 1 else tuple(changes))
        return self.revision

    @contextmanager
    def txn(self) -> Iterator[Store]:
        """Group the writes of a ``with`` block into one main revision."""
        self.begin()
        try:
            yield self
        finally:
            self.end()

    @property
    def txn_changes(self) -> int:
        """How many changes the open write txn has made."""
        return len(self._open) if self._open else 0

    def _append(self, entry: Entry) -> None:
        self.revision += 1
        self._log.append(entry)

    def put(self, key: bytes, value: bytes, lease: int = 0) -> bytes | None:
        """Write a key; answers the record it replaces.

        Hot: the most of a client write (benchmark ``put``). The new version is made by changing the decoded old one:
        three C calls, where composing it field by field takes as many as there are fields.
        """
        revision = self.revision + 1
        live = self._live
        previous = live.get(key)
        if previous is None:
            body = first_version(key, value, lease, revision)
            if lease:
                self._leased = True
                self.leases.attach(lease, key)
            self._order.add(key)
            if key in self._history:
                self._deleted.remove(key)
        else:
            message = parse_key_value(
                previous[2:]
                if previous[1] < 0x80
                else previous[3:]
                if previous[2] < 0x80
                else previous[body_offset(previous) :]
            )
            replaced = message.mod_revision
            message.mod_revision = revision
            message.version += 1
            message.value = value
            if lease or self._leased:
                self._leased = True
                old_lease = message.lease
                if old_lease != lease:
                    message.lease = lease
                    if old_lease:
                        self.leases.detach(old_lease, key)
                    if lease:
                        self.leases.attach(lease, key)
            histories = self._history
            history = histories.get(key)
            if history is None:
                histories[key] = replaced
            elif isinstance(history, int):
                histories[key] = extended(history, replaced)
            else:
                history += replaced.to_bytes(MEMBER_BYTES, NATIVE)
            body = message.SerializeToString()
        length = len(body)
        record = PREFIXES[length] + body if length < 0x4000 else b"\x12" + varint(length) + body
        live[key] = record
        self.size_bytes += len(record)
        if self._open is not None:
            self._open.append(record)
        else:
            self.revision = revision
            tail = self._log.tail
            tail.append(record)
            if len(tail) >= CHUNK_ENTRIES:
                self._log.seal()
        return previous

    def delete_range(self, key: bytes, range_end: bytes = b"") -> list[bytes]:
        """Delete [key, range_end); answers the records deleted, in key order."""
        if not range_end:
            return self.delete_keys((key,))
        end = None if range_end == b"\0" else range_end
        keys = self._order.range(key, end)
        if not keys:
            return []
        self._order.remove_range(key, end)
        self._deleted.add_range(keys)
        return self._delete(keys)

    def delete_keys(self, keys: Iterable[bytes]) -> list[bytes]:
        """Delete the given keys in the given order as one txn; keys that do not exist are passed over."""
        present = [key for key in dict.fromkeys(keys) if key in self._live]
        for key in present:
            self._order.remove(key)
            self._deleted.add(key)
        return self._delete(present) if present else []

    def _delete(self, keys: list[bytes]) -> list[bytes]:
        """Delete live keys that are out of the order already."""
        revision = self.revision + 1
        number = varint(revision)
        live = self._live
        histories = self._history
        changes: list[bytes] = []
        deleted: list[bytes] = []
        for key in keys:
            previous = live.pop(key)
            record = tombstone(key, number)
            message = parse_key_value(body_of(previous))
            histories[key] = extended(histories.get(key), message.mod_revision, revision)
            if message.lease:
                self.leases.detach(message.lease, key)
            changes.append(record)
            deleted.append(previous)
        self.size_bytes += sum(map(len, changes))
        if self._open is not None:
            self._open += changes
        else:
            self._append(changes[0] if len(changes) == 1 else tuple(changes))
        return deleted

    # -- compaction -------------------------------------------------------------------------------------------------

    def check_compaction(self, revision: int) -> None:
        """Check that the history below ``revision`` may be forgotten.

        Raises:
            CompactedError: it has been already.
            FutureRevisionError: the revision is above the current one.
        """
        if revision <= self.compact_revision:
            raise errors.CompactedError
        if revision > self.revision:
            raise errors.FutureRevisionError

    def compact(self, revision: int) -> Generator[None, None, None]:
        """Forget the history below ``revision``.

        From this call on reads below it fail. The generator removes what is not needed any more, a slice a step;
        it must be run, by the caller's leisure.

        Raises:
            CompactedError: it has been forgotten already.
            FutureRevisionError: the revision is above the current one.
        """
        self.check_compaction(revision)
        for callback in self.before_compaction:
            callback()
        self.compact_revision = revision
        return self._compaction.run(revision)

    @property
    def removed_revision(self) -> int:
        """How far the physical removal has come: it is done for this compact revision."""
        return self._compaction.done_revision

    def resume_compaction(self) -> Generator[None, None, None] | None:
        """Answer the work that a restored store's last compaction left undone, None if there is none."""
        if self.removed_revision >= self.compact_revision:
            return None
        return self._compaction.run(self.compact_revision)

    # -- hashes and snapshots ---------------------------------------------------------------------------------------

    def hash_kv(self, revision: int = 0) -> tuple[int, int, int]:
        """Hash the history up to ``revision`` at once; see :meth:`hash_kv_slices`."""
        return run(hash_slices(self, revision))

    def hash_kv_slices(self, revision: int = 0) -> Generator[None, None, tuple[int, int, int]]:
        """Hash the history up to ``revision`` (0: the current one) by etcd's algorithm, a slice a step.

        Returns:
            (hash, compact revision, revision hashed).

        Raises:
            CompactedError, FutureRevisionError: by the first step; the revision must be above the compact revision.
        """
        return hash_slices(self, revision)

    def snapshot(self) -> Iterator[bytes]:
        """Take a snapshot of the store as it is at this call; its chunks are made as they are asked for."""
        return snapshot.take(self)

    @classmethod
    def restore(cls, chunks: Iterable[bytes], leases: Leases | None = None) -> Store:
        """Rebuild a store at once; see :meth:`restore_slices`."""
        return run(cls.restore_slices(chunks, leases))

    @classmethod
    def restore_slices(cls, chunks: Iterable[bytes], leases: Leases | None = None) -> Generator[None, None, Store]:
        """Rebuild a store from the chunks of a snapshot, a slice a step.

        Args:
            chunks: what :meth:`snapshot` yielded.
            leases: as for a new store; it learns its keys from :meth:`leased_keys`.

        Raises:
            SnapshotFormatError: the chunks are not a snapshot, or end early.
        """
        store = cls(leases)
        yield from snapshot.load(store, chunks)
        return store

    def leased_keys(self) -> Iterator[tuple[int, bytes]]:
        """Yield (lease, key) of the keys that hang on a lease: what a lessor forgets over a restart."""
        return snapshot.leased_keys(self._live)

    def adopt(self, other: Store) -> None:
        """Take over the whole state of another store, which must not be used any more.

        For a member that is sent a snapshot: who holds this store goes on with it. Watchers are told by
        ``WatchableStore.adopted``. Hashes and snapshots begun before go on as they were; ranges in slices fail.
        """
        kept = self.before_compaction
        self._compaction.abandon()
        self.__dict__.update(other.__dict__)
        self.before_compaction = kept
        self._compaction.rebind(self)

    # -- the log ----------------------------------------------------------------------------------------------------

    @property
    def log(self) -> RevisionLog:
        """The records by revision; read only."""
        return self._log
