"""Bytes on disk: the write-ahead log, snapshot files, and the file-system seam below them.

Knows neither Raft nor the store: records and chunks are opaque bytes.
"""

from __future__ import annotations

from kvserver.storage.errors import CorruptionError, SnapshotError, StorageFailedError, WalError
from kvserver.storage.fs import File, FileSystem, Lock, OsFileSystem
from kvserver.storage.snapshot import SnapshotInfo, Snapshotter, SnapshotWriter
from kvserver.storage.wal import Position, Record, Wal, WalOptions, WriteBatch

__all__ = [
    "CorruptionError",
    "File",
    "FileSystem",
    "Lock",
    "OsFileSystem",
    "Position",
    "Record",
    "SnapshotError",
    "SnapshotInfo",
    "SnapshotWriter",
    "Snapshotter",
    "StorageFailedError",
    "Wal",
    "WalError",
    "WalOptions",
    "WriteBatch",
]
