"""hash_kv: the hash by which members compare their history, by etcd's algorithm.

CRC-32C over ``"key"`` and then, in order of revisions, each record's revision key (main and sub as 8 big-endian bytes
around ``_``, and ``t`` behind a tombstone's) and its serialized key-value (of a tombstone: the key alone).

Which records count, for a hash at revision r of a store compacted at C:
- none above r;
- of those at or below C only what is current at r, unless no key exists at r, then all that compaction keeps;
- never a tombstone at exactly C: some versions of etcd remove it and some keep it.
So the hash does not depend on how far the physical removal has come.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from google_crc32c import extend

from kvserver import errors
from kvserver.limits import MVCC_HASH_SLICE_RECORDS as SLICE_RECORDS
from kvserver.mvcc.records import body_of, is_tombstone, key_of, varint
from kvserver.mvcc.revision_log import Chunk

if TYPE_CHECKING:
    from kvserver.mvcc.store import Store

_SUB_ZERO = b"_" + bytes(8)


def hash_slices(store: Store, revision: int) -> Generator[None, None, tuple[int, int, int]]:
    """Hash the history up to ``revision`` (0: the current one), a slice a step, as it is at the first step.

    Returns:
        (hash, compact revision, revision hashed).

    Raises:
        CompactedError: the revision is not above the compact revision.
        FutureRevisionError: the revision is above the current one.
    """
    compacted = store.compact_revision
    if 0 < revision <= compacted:
        raise errors.CompactedError
    if revision > store.revision:
        raise errors.FutureRevisionError
    if revision < 0:
        return extend(0, b"key"), compacted, revision  # nothing is at or below it
    if revision == 0:
        revision = store.revision
    pins = (store.pin(revision), store.pin(max(compacted, 0)))
    try:
        chunks = store.log.view(0, revision + 1)
        any_key = yield from _any_key(store, chunks, revision)
        crc = extend(0, b"key")
        parts: list[bytes] = []
        visible_at = revision if any_key else compacted
        seen = 0
        for chunk in chunks:
            for main, entry in chunk.items(0, revision + 1):
                if isinstance(entry, tuple):
                    for sub, record in enumerate(entry):
                        if record is not None and (main > compacted or _kept(store, record, main, visible_at)):
                            _write(parts, record, main, b"_" + sub.to_bytes(8, "big"))
                    seen += len(entry)
                else:
                    if main > compacted or _kept(store, entry, main, visible_at):
                        _write(parts, entry, main, _SUB_ZERO)
                    seen += 1
            if seen >= SLICE_RECORDS:
                seen = 0
                crc = extend(crc, b"".join(parts))
                parts.clear()
                yield
        crc = extend(crc, b"".join(parts))
    finally:
        for pin in pins:
            store.unpin(pin)
    return crc, compacted, revision


def _kept(store: Store, record: bytes, main: int, visible_at: int) -> bool:
    """Answer whether a record at or below the compact revision counts."""
    if is_tombstone(record):
        return False
    key = key_of(record)
    return store.get(key) is record or store.get_at(key, visible_at) is record


def _write(parts: list[bytes], record: bytes, main: int, sub: bytes) -> None:
    if is_tombstone(record):
        key = key_of(record)
        parts += (main.to_bytes(8, "big"), sub, b"t\x0a", varint(len(key)), key)
    else:
        parts += (main.to_bytes(8, "big"), sub, body_of(record))


def _any_key(store: Store, chunks: list[Chunk], revision: int) -> Generator[None, None, bool]:
    """Answer whether a key exists at ``revision``; the newest records most likely tell at once."""
    if revision == store.revision:
        return len(store) > 0
    for chunk in reversed(chunks):
        for _, entry in chunk.items(0, revision + 1):
            for record in entry if isinstance(entry, tuple) else (entry,):
                if record is not None and not is_tombstone(record) and store.get_at(key_of(record), revision) is record:
                    return True
        yield
    return False
