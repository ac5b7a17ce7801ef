"""Snapshots: a store as a stream of chunks, and back.

A snapshot is the revision log: every kept record with its revision. Everything else of a store (current versions,
histories, order, what hangs on leases) follows from it. The log's chunks are never changed, so taking a snapshot is
copying the list of them; the bytes are made while the store goes on.

Format, little-endian. The first chunk is a header: magic, format, revision, compact revision, removed revision (how far
the physical removal had come). Then blocks of about 256 KiB::

    count:u32 flags:u32 | mains:i64*count | lengths:u32*count | subs:u32*count if flags & 1 | records joined

The last chunk is a block of count 0 whose flags are the number of
blocks, so that a truncated stream is noticed; each chunk's integrity is the carrier's concern.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from kvserver.limits import MVCC_SLICE_RECORDS as SLICE_KEYS
from kvserver.limits import MVCC_SNAPSHOT_BLOCK_BYTES as BLOCK_BYTES
from kvserver.mvcc.history import extended
from kvserver.mvcc.ordered import OrderedKeys
from kvserver.mvcc.records import decode, is_tombstone, key_of, mod_revision
from kvserver.mvcc.revision_log import Chunk, Entry, RevisionLog

if TYPE_CHECKING:
    from kvserver.mvcc.store import Store

_HEADER = struct.Struct("<8sIqqq")
_BLOCK = struct.Struct("<II")
_MAGIC = b"kvsmvcc\0"
_FORMAT = 1
_HAS_SUBS = 1
_LEASE_TAG = 0x30
_LEASE_BYTES_MAX = 11


class SnapshotFormatError(Exception):
    """The chunks are not a snapshot of a store that this version can read."""


def take(store: Store) -> Iterator[bytes]:
    """Take a snapshot of a store as it is at this call; the chunks are made as they are asked for."""
    header = _HEADER.pack(_MAGIC, _FORMAT, store.revision, store.compact_revision, store.removed_revision)
    return _chunks(header, store.log.view(0, store.revision + 1), store.revision)


def _chunks(header: bytes, chunks: list[Chunk], revision: int) -> Iterator[bytes]:
    yield header
    mains: list[int] = []
    subs: list[int] = []
    records: list[bytes] = []
    size = 0
    blocks = 0
    for chunk in chunks:
        for main, entry in chunk.items(0, revision + 1):
            if isinstance(entry, tuple):
                for sub, record in enumerate(entry):
                    if record is not None:
                        mains.append(main)
                        subs.append(sub)
                        records.append(record)
                        size += len(record)
            else:
                mains.append(main)
                subs.append(0)
                records.append(entry)
                size += len(entry)
            if size >= BLOCK_BYTES:
                yield _block(mains, subs, records)
                blocks += 1
                size = 0
                mains.clear()
                subs.clear()
                records.clear()
    if records:
        yield _block(mains, subs, records)
        blocks += 1
    yield _BLOCK.pack(0, blocks)


def _block(mains: list[int], subs: list[int], records: list[bytes]) -> bytes:
    lengths = list(map(len, records))
    # A txn whose only kept record is sub 0 needs no sub; two records of one revision do.
    has_subs = any(subs)
    parts = [_BLOCK.pack(len(records), _HAS_SUBS if has_subs else 0), _packed("q", mains), _packed("I", lengths)]
    if has_subs:
        parts.append(_packed("I", subs))
    parts += records
    return b"".join(parts)


def _packed(typecode: str, numbers: list[int]) -> bytes:
    column = array(typecode, numbers)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _column(typecode: str, chunk: bytes, start: int, count: int) -> tuple[array[int], int]:
    column = array(typecode)
    end = start + column.itemsize * count
    if end > len(chunk):
        raise SnapshotFormatError(f"a block of {len(chunk)} bytes is shorter than its {count} records need")
    column.frombytes(chunk[start:end])
    if sys.byteorder == "big":
        column.byteswap()
    return column, end


def load(store: Store, chunks: Iterable[bytes]) -> Generator[None, None, None]:
    """Fill an empty store from a snapshot's chunks, a slice a step.

    Args:
        store: an empty store.
        chunks: what :func:`take` yielded.

    Raises:
        SnapshotFormatError: the chunks are not a snapshot, or end early.
    """
    source = iter(chunks)
    header = next(source, b"")
    if len(header) != _HEADER.size or not header.startswith(_MAGIC):
        raise SnapshotFormatError("not a snapshot of a key-value store: wrong header")
    _, version, revision, compact_revision, removed_revision = _HEADER.unpack(header)
    if version != _FORMAT:
        raise SnapshotFormatError(f"snapshot format {version}; this version reads format {_FORMAT}")
    log = RevisionLog(2)
    blocks = 0
    for blocks, chunk in enumerate(source):
        if len(chunk) < _BLOCK.size:
            raise SnapshotFormatError("a block is shorter than its header")
        count, flags = _BLOCK.unpack_from(chunk)
        if count == 0:
            if flags != blocks:
                raise SnapshotFormatError(f"{blocks} blocks, but {flags} were written")
            break
        _load_block(store, log, chunk, count, flags)
        yield
    else:
        raise SnapshotFormatError(f"the snapshot ends early, after {blocks} blocks")
    log.skip_to(revision + 1)
    store._leased = True
    deleted: list[bytes] = []
    histories = iter(store._history)
    while part := list(islice(histories, SLICE_KEYS)):
        deleted += [key for key in part if key not in store._live]
        yield
    store._order = yield from OrderedKeys.build(store._live, SLICE_KEYS)
    store._deleted = yield from OrderedKeys.build(deleted, SLICE_KEYS)
    store._log = log
    store.revision = revision
    store.compact_revision = compact_revision
    store._compaction.done_revision = removed_revision


def _load_block(store: Store, log: RevisionLog, chunk: bytes, count: int, flags: int) -> None:
    mains, start = _column("q", chunk, _BLOCK.size, count)
    lengths, start = _column("I", chunk, start, count)
    subs: array[int] | None = None
    if flags & _HAS_SUBS:
        subs, start = _column("I", chunk, start, count)
    live, histories = store._live, store._history
    records: list[bytes] = []
    append = records.append
    for length in lengths:
        end = start + length
        record = chunk[start:end]
        start = end
        append(record)
        key = key_of(record)
        if is_tombstone(record):
            replaced = live.pop(key, None)
            if replaced is not None:
                histories[key] = extended(histories.get(key), mod_revision(replaced))
            histories[key] = extended(histories.get(key), mod_revision(record))
        else:
            replaced = live.get(key)
            if replaced is not None:
                histories[key] = extended(histories.get(key), mod_revision(replaced))
            live[key] = record
    if start != len(chunk):
        raise SnapshotFormatError(f"a block of {len(chunk)} bytes has records of {start} bytes")
    store.size_bytes += sum(map(len, records))
    if subs is None:
        log.load(mains, records)
        return
    kept_mains: array[int] = array("q")
    entries: list[Entry | None] = []
    place = 0
    while place < count:
        main = mains[place]
        following = place + 1
        while following < count and mains[following] == main:
            following += 1
        if following == place + 1 and subs[place] == 0:
            entries.append(records[place])
        else:
            members: list[bytes | None] = [None] * (subs[following - 1] + 1)
            for position in range(place, following):
                members[subs[position]] = records[position]
            entries.append(tuple(members))
        kept_mains.append(main)
        place = following
    log.load(kept_mains, entries)


def leased_keys(live: dict[bytes, bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (lease, key) of the keys that hang on a lease.

    The lease is a key-value's last field, so most records are passed over undecoded.
    """
    for key, record in live.items():
        if _LEASE_TAG in record[-_LEASE_BYTES_MAX:]:
            lease = decode(record).lease
            if lease:
                yield lease, key
