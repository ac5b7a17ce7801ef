"""Snapshot files: a state as a stream of chunks, compressed, each chunk checked on its own.

A file ``<term, 16 hex digits>-<index, 16 hex digits>.snap`` is a header, chunk frames and one footer::

    header   magic "KVSS", version u8, 3 zero bytes, term u64, index u64, CRC32-C of these bytes u32
    frame    kind u8 (1 chunk, 2 footer), 3 zero bytes, stored length u32, raw length u32, chain CRC32-C u32, payload
    footer   a frame whose payload is: chunks u64, their raw bytes u64, their stored bytes u64; then the file ends

A chunk's payload is one independent zstd frame, so a chunk is verified, then decompressed, within bounds and on its
own; memory is that of one chunk however large the snapshot. The chain CRC starts with the header's and runs through
all frames, the footer counts: nothing can be lost, exchanged or cut off unseen.

States of a file: being written it is ``<name>.tmp``; :meth:`SnapshotWriter.commit` makes it durable, then gives it its
name, then makes the name durable. A file with a name is therefore complete, unless the disk damaged it; such a one is
renamed to ``<name>.broken`` by :meth:`Snapshotter.newest_valid` and left for the operator. Temporary files of a
process that died are removed by the next one.

A snapshot counts only once the log says so: that record is the caller's, written after ``commit`` returned.
What must not live here: what chunks mean, and which snapshot the log knows of.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import zstandard

from kvserver import limits
from kvserver.storage.errors import CorruptionError, SnapshotError, StorageFailedError
from kvserver.storage.frame import crc32c_extend
from kvserver.storage.fs import File, FileSystem, join, write_all

log = logging.getLogger(__name__)

MAGIC = b"KVSS"
FORMAT_VERSION = 1
KIND_CHUNK = 1
KIND_FOOTER = 2
SUFFIX = ".snap"
TEMPORARY_SUFFIX = ".snap.tmp"
BROKEN_SUFFIX = ".broken"

_HEADER = struct.Struct("<4sB3xQQ")
_FRAME = struct.Struct("<B3xII")
_FOOTER = struct.Struct("<QQQ")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size
_FRAME_BYTES = _FRAME.size + _CRC.size
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.snap")
_STORED_BYTES_MAX = limits.SNAPSHOT_CHUNK_BYTES_MAX + limits.SNAPSHOT_CHUNK_BYTES_MAX // 128 + 1024
"""What zstd may make of the largest chunk when it does not compress."""

COMPRESSION_LEVEL = 1
"""A snapshot competes with the serving path for the processor."""

_HINT = "it is not used; an older snapshot or another member has the state"


@dataclass(frozen=True, slots=True, order=True)
class SnapshotInfo:
    """A snapshot file. Ordered by what it covers."""

    index: int
    term: int
    size_bytes: int
    """Length of the file."""

    @property
    def name(self) -> str:
        """The file's name.

        >>> SnapshotInfo(index=10, term=2, size_bytes=0).name
        '0000000000000002-000000000000000a.snap'
        """
        return f"{self.term:016x}-{self.index:016x}{SUFFIX}"


class SnapshotWriter:
    """A snapshot being written. One caller at a time, any thread; ends with :meth:`commit` or :meth:`abort`."""

    def __init__(self, fs: FileSystem, directory: str, index: int, term: int) -> None:
        """Not for callers: use :meth:`Snapshotter.create`."""
        self._fs = fs
        self._directory = directory
        self._index = index
        self._term = term
        self._path = join(directory, SnapshotInfo(index, term, 0).name)
        self._temporary = self._path.removesuffix(SUFFIX) + TEMPORARY_SUFFIX
        self._compress = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress
        self._chunks = 0
        self._raw_bytes = 0
        self._stored_bytes = 0
        self._offset = 0
        self._unsynced = 0
        self._chain = 0
        self._file: File | None = None
        try:
            try:
                self._file = fs.open(self._temporary, create=True)
            except FileExistsError:
                fs.unlink(self._temporary)
                self._file = fs.open(self._temporary, create=True)
            header = _HEADER.pack(MAGIC, FORMAT_VERSION, term, index)
            self._chain = crc32c_extend(0, header)
            self._put(header + _CRC.pack(self._chain))
        except OSError as error:
            raise self._failed(error) from error

    def write(self, chunk: bytes) -> None:
        """Adds a chunk; it comes back from :meth:`Snapshotter.open` with these very borders.

        Args:
            chunk: at most ``limits.SNAPSHOT_CHUNK_BYTES_MAX`` bytes.

        Raises:
            ValueError: the chunk is too large.
            StorageFailedError: the disk refused; the snapshot is gone, the log is not affected.
        """
        if len(chunk) > limits.SNAPSHOT_CHUNK_BYTES_MAX:
            raise ValueError(f"a snapshot chunk of {len(chunk)} bytes, at most {limits.SNAPSHOT_CHUNK_BYTES_MAX}")
        file = self._open_file()
        stored = self._compress(chunk)
        try:
            self._put_frame(KIND_CHUNK, stored, len(chunk))
            self._chunks += 1
            self._raw_bytes += len(chunk)
            self._stored_bytes += len(stored)
            if self._unsynced >= limits.SNAPSHOT_SYNC_BYTES:
                file.fdatasync()
                self._unsynced = 0
        except OSError as error:
            raise self._failed(error) from error

    def commit(self) -> SnapshotInfo:
        """Ends the file, makes it durable and gives it its name.

        Raises:
            StorageFailedError: the disk refused; the snapshot must be taken for not written.
        """
        file = self._open_file()
        footer = _FOOTER.pack(self._chunks, self._raw_bytes, self._stored_bytes)
        try:
            self._put_frame(KIND_FOOTER, footer, len(footer))
            file.fdatasync()
            file.close()
            self._fs.rename(self._temporary, self._path)
            self._fs.fsync_dir(self._directory)
        except OSError as error:
            raise self._failed(error) from error
        self._file = None
        return SnapshotInfo(self._index, self._term, self._offset)

    def abort(self) -> None:
        """Gives the snapshot up and removes what was written; does nothing after an end or a failure."""
        file, self._file = self._file, None
        if file is None:
            return
        file.close()
        with contextlib.suppress(OSError):  # the next process removes it
            self._fs.unlink(self._temporary)

    def _open_file(self) -> File:
        if self._file is None:
            raise SnapshotError(f"{self._temporary}: the snapshot was ended before")
        return self._file

    def _put_frame(self, kind: int, stored: bytes, raw_bytes: int) -> None:
        head = _FRAME.pack(kind, len(stored), raw_bytes)
        self._chain = crc32c_extend(crc32c_extend(self._chain, head), stored)
        self._put(b"".join((head, _CRC.pack(self._chain), stored)))

    def _put(self, data: bytes) -> None:
        write_all(self._open_file(), data, self._offset)
        self._offset += len(data)
        self._unsynced += len(data)

    def _failed(self, error: OSError) -> StorageFailedError:
        self.abort()
        space = " (free some space)" if error.errno == errno.ENOSPC else ""
        return StorageFailedError(f"{self._temporary}: cannot write the snapshot: {error}{space}")


class Snapshotter:
    """The snapshots of one directory. Calls may come from any thread, one at a time."""

    def __init__(self, fs: FileSystem, directory: str, *, read_only: bool = False) -> None:
        """Makes the directory if missing and removes temporary files that a process left behind.

        Args:
            fs: the file system.
            directory: where the snapshots lie.
            read_only: change nothing; for tools that look at the files of a running node.

        Raises:
            StorageFailedError: the disk refused.
        """
        self._fs = fs
        self.directory = directory
        if read_only:
            return
        try:
            fs.mkdir(directory)
            for name in fs.listdir(directory):
                if name.endswith(TEMPORARY_SUFFIX):
                    fs.unlink(join(directory, name))
        except OSError as error:
            raise StorageFailedError(f"{directory}: cannot use the snapshot directory: {error}") from error

    def create(self, index: int, term: int) -> SnapshotWriter:
        """Begins the snapshot of the state at an index.

        Raises:
            StorageFailedError: the disk refused.
        """
        return SnapshotWriter(self._fs, self.directory, index, term)

    def list(self) -> list[SnapshotInfo]:
        """The snapshots by name, newest first; their content is not looked at.

        Raises:
            StorageFailedError: the disk refused.
        """
        try:
            infos = []
            for name in self._fs.listdir(self.directory):
                if match := _NAME.fullmatch(name):
                    file = self._fs.open(join(self.directory, name))
                    try:
                        infos.append(SnapshotInfo(int(match[2], 16), int(match[1], 16), file.size()))
                    finally:
                        file.close()
        except OSError as error:
            raise StorageFailedError(f"{self.directory}: cannot read the snapshots: {error}") from error
        return sorted(infos, reverse=True)

    def open(self, info: SnapshotInfo) -> Iterator[bytes]:
        """The chunks as they were written, each verified before it is yielded.

        What was yielded is the whole snapshot only if the iterator ends without an error.

        Raises:
            SnapshotError: no such file, or another format.
            CorruptionError: damaged; says where.
            StorageFailedError: the disk refused to read.
        """
        path = join(self.directory, info.name)
        decompressor = zstandard.ZstdDecompressor()
        for offset, stored, raw_bytes in self._frames(info, path):
            try:
                if zstandard.frame_content_size(stored) != raw_bytes:
                    raise ValueError(f"a zstd frame of {zstandard.frame_content_size(stored)} bytes")
                chunk = decompressor.decompress(stored, max_output_size=raw_bytes)
            except (zstandard.ZstdError, ValueError) as error:
                raise CorruptionError(path, offset, f"a chunk of {raw_bytes} bytes", str(error), _HINT) from error
            yield chunk

    def verify(self, info: SnapshotInfo) -> None:
        """Reads a snapshot through, checking every checksum and the counts of the footer.

        Raises:
            SnapshotError, CorruptionError, StorageFailedError: as :meth:`open`.
        """
        for _ in self._frames(info, join(self.directory, info.name)):
            pass

    def newest_valid(self, accept: Callable[[SnapshotInfo], bool] | None = None) -> SnapshotInfo | None:
        """The newest snapshot that is accepted and whole; damaged ones met on the way are set aside.

        Args:
            accept: whether the log knows of this snapshot; None accepts all.

        Raises:
            SnapshotError: of another format.
            StorageFailedError: the disk refused.
        """
        for info in self.list():
            if accept is not None and not accept(info):
                continue
            try:
                self.verify(info)
            except CorruptionError as error:
                self.set_aside(info, str(error))
                continue
            return info
        return None

    def set_aside(self, info: SnapshotInfo, reason: str) -> None:
        """Renames a bad snapshot to ``<name>.broken``, so that it is not used and not lost.

        Raises:
            StorageFailedError: the disk refused.
        """
        path = join(self.directory, info.name)
        try:
            self._fs.rename(path, path + BROKEN_SUFFIX)
            self._fs.fsync_dir(self.directory)
        except OSError as error:
            raise StorageFailedError(f"{path}: cannot set the damaged snapshot aside: {error}") from error
        log.error("set aside a damaged snapshot as %s%s: %s", info.name, BROKEN_SUFFIX, reason)

    def prune(
        self, keep: int = limits.SNAPSHOTS_KEPT, accept: Callable[[SnapshotInfo], bool] | None = None
    ) -> Sequence[SnapshotInfo]:
        """Removes all but the newest snapshots. Errors of the disk are logged: an old file too many does no harm.

        Args:
            keep: how many stay, at least 1.
            accept: whether the log knows of this snapshot; others go, whatever their age. None accepts all.

        Returns:
            What was removed.
        """
        if keep < 1:
            raise ValueError(f"keep {keep} snapshots: at least 1")
        removed = []
        try:
            infos = self.list()
            kept = [info for info in infos if accept is None or accept(info)][:keep]
            for info in infos:
                if info in kept:
                    continue
                self._fs.unlink(join(self.directory, info.name))
                removed.append(info)
            if removed:
                self._fs.fsync_dir(self.directory)
        except (OSError, StorageFailedError) as error:
            log.warning("%s: cannot remove old snapshots: %s", self.directory, error)
        return removed

    def _frames(self, info: SnapshotInfo, path: str) -> Iterator[tuple[int, bytes, int]]:
        """(offset, stored payload, raw length) of each chunk, verified; ends after a footer that agrees."""
        try:
            file = self._fs.open(path)
        except FileNotFoundError as error:
            raise SnapshotError(f"{path}: no such snapshot") from error
        except OSError as error:
            raise StorageFailedError(f"{path}: cannot read the snapshot: {error}") from error
        try:
            yield from _read_frames(file, path, info)
        except OSError as error:
            raise StorageFailedError(f"{path}: cannot read the snapshot: {error}") from error
        finally:
            file.close()


def _read_frames(file: File, path: str, info: SnapshotInfo) -> Iterator[tuple[int, bytes, int]]:
    header = file.pread(_HEADER_BYTES, 0)
    if len(header) < _HEADER_BYTES:
        raise CorruptionError(path, len(header), "a snapshot header", "the end of the file", _HINT)
    magic, version, term, index = _HEADER.unpack_from(header)
    chain = crc32c_extend(0, header[: _HEADER.size])
    if chain != _CRC.unpack_from(header, _HEADER.size)[0]:
        raise CorruptionError(path, 0, "a snapshot header", header.hex(), _HINT)
    if magic != MAGIC or version != FORMAT_VERSION:
        raise SnapshotError(
            f"{path}: snapshot format {magic!r} version {version}, this program reads {MAGIC!r} version "
            f"{FORMAT_VERSION}; start the version that wrote it"
        )
    if (index, term) != (info.index, info.term):
        raise CorruptionError(path, 5, f"term {info.term}, index {info.index}", f"term {term}, index {index}", _HINT)
    offset = _HEADER_BYTES
    chunks = raw_total = stored_total = 0
    while True:
        head = file.pread(_FRAME_BYTES, offset)
        if len(head) < _FRAME_BYTES:
            raise CorruptionError(path, offset, "a chunk or the footer", "the end of the file", _HINT)
        kind, stored_bytes, raw_bytes = _FRAME.unpack_from(head)
        if stored_bytes > _STORED_BYTES_MAX or raw_bytes > limits.SNAPSHOT_CHUNK_BYTES_MAX:
            raise CorruptionError(path, offset, "a chunk or the footer", f"a length of {stored_bytes} bytes", _HINT)
        stored = file.pread(stored_bytes, offset + _FRAME_BYTES)
        chain = crc32c_extend(crc32c_extend(chain, head[: _FRAME.size]), stored)
        if len(stored) < stored_bytes or chain != _CRC.unpack_from(head, _FRAME.size)[0]:
            raise CorruptionError(path, offset, "a chunk or the footer", "a checksum that does not fit", _HINT)
        end = offset + _FRAME_BYTES + stored_bytes
        if kind == KIND_FOOTER:
            break
        if kind != KIND_CHUNK:
            raise CorruptionError(path, offset, "a chunk or the footer", f"a frame of kind {kind}", _HINT)
        yield offset, stored, raw_bytes
        chunks += 1
        raw_total += raw_bytes
        stored_total += stored_bytes
        offset = end
    if len(stored) != _FOOTER.size or _FOOTER.unpack(stored) != (chunks, raw_total, stored_total):
        raise CorruptionError(path, offset, f"a footer counting {chunks} chunks", stored.hex(), _HINT)
    if file.size() != end:
        raise CorruptionError(path, end, "the end of the file", f"{file.size() - end} more bytes", _HINT)
