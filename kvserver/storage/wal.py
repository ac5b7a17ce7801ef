"""The write-ahead log: records in, durable in order; records out, verified.

Life of a log: :meth:`Wal.create` or :meth:`Wal.open`, then :meth:`Wal.replay` to its end (which finds the tail and cuts
off a torn one), then any number of ``append``, ``seal``, ``write``.

- ``append`` and ``seal`` belong to the loop thread and only collect. ``write`` belongs to one writer at a time, a disk
  thread or the loop itself; it may run while the loop appends the next batch. That is the group commit: everything that
  was appended while the last ``write`` ran goes out as one batch, with one system call.
- When ``write`` returns, the batch is durable. A batch is one frame, so it survives as a whole or not at all (a batch
  above ``limits.WAL_FRAME_BYTES_MAX`` is several frames, which survive as a prefix).
- The first error of a write or sync is final: :class:`StorageFailedError` from that call and from every later one. What
  the kernel kept of the pages is unknown; only a restart, which reads the disk, can tell.
- What a replay has yielded is durable when the replay ends: the process before may have been killed, or have failed,
  between writing a frame and its sync, and what is read back then is the page cache. So the last frame is written once
  more, byte for byte, and synced. Nothing that depends on the log (a vote, an acknowledgement) may leave before that.

A position names a frame: (segment, byte offset). Replaying from the position that ``write`` returned yields that batch
first. Records are opaque; their types are the caller's, 1..255.

Segments are files ``<sequence, 16 hex digits>.wal``, preallocated. The next one is prepared as ``next.tmp`` when the
current one is half full, and gets its name only after its header and its first batch are durable: a segment with a name
always has a sound beginning. The layout of a frame is in ``frame``, the rules for a torn end in ``segment``.

What must not live here: what records mean, which of them are obsolete, threads, and retries.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import zstandard

from kvserver import limits
from kvserver.storage.errors import CorruptionError, StorageFailedError, WalError
from kvserver.storage.frame import (
    FLAG_LIST,
    FLAG_ZSTD,
    FRAME_ALIGN,
    HEADER_BYTES,
    RECORD_HEAD,
    SEGMENT_HEAD,
    encode_frame,
    encode_segment_header,
    frame_bytes,
    pack_records,
    unpack_records,
)
from kvserver.storage.fs import File, FileSystem, join
from kvserver.storage.segment import SegmentHeader, SegmentReader, raw_payload

log = logging.getLogger(__name__)

SEGMENT_SUFFIX = ".wal"
NEXT_NAME = "next.tmp"
_SEGMENT_NAME = re.compile(r"[0-9a-f]{16}\.wal")

COMPRESSION_LEVEL = 1
"""60 KB of text: level 1 stores 21 % in 171 us; -1 stores 22 % in 160 us, 3 stores 22 % in 212 us. What does not
compress costs 11 us."""


class Position(NamedTuple):
    """Where a frame begins. Ordered as the log is."""

    segment: int
    offset: int


class Record(NamedTuple):
    """A record as replayed. ``position`` is that of its frame, which records of one batch share."""

    type: int
    payload: bytes
    position: Position


class WriteBatch:
    """Sealed records, for :meth:`Wal.write`. Hot: a plain slots class."""

    __slots__ = ("payload_bytes", "records")

    def __init__(self, records: list[tuple[int, bytes]], payload_bytes: int) -> None:
        self.records = records
        self.payload_bytes = payload_bytes
        """Sum of the payloads: tells a caller whether a thread is worth it."""

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, slots=True)
class WalOptions:
    """Sizes; the defaults are in ``kvserver.limits``, tests take tiny ones."""

    segment_bytes: int = limits.WAL_SEGMENT_BYTES
    zero_ahead_bytes: int = limits.WAL_ZERO_AHEAD_BYTES
    compress_bytes_min: int = limits.WAL_COMPRESS_BYTES_MIN
    frame_bytes_max: int = limits.WAL_FRAME_BYTES_MAX

    def __post_init__(self) -> None:
        if not 0 < self.compress_bytes_min <= limits.WAL_COMPRESS_BYTES_MIN:
            raise ValueError(f"compress_bytes_min must be 1..{limits.WAL_COMPRESS_BYTES_MIN}")
        if not 0 < self.frame_bytes_max <= limits.WAL_FRAME_BYTES_MAX:
            raise ValueError(f"frame_bytes_max must be 1..{limits.WAL_FRAME_BYTES_MAX}")


_DEFAULTS = WalOptions()


class Wal:
    """A write-ahead log in one directory. See the module for states and threads."""

    def __init__(
        self, fs: FileSystem, directory: str, metadata: bytes, headers: list[SegmentHeader], options: WalOptions
    ) -> None:
        """Not for callers: use :meth:`create` or :meth:`open`."""
        self.metadata = metadata
        """What :meth:`create` was given."""
        self.directory = directory
        self._fs = fs
        self._options = options
        self._headers = headers
        self._pending: list[tuple[int, bytes]] = []
        self._pending_bytes = 0
        self._failure: StorageFailedError | None = None
        self._compress = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress
        # The write position; the file is open once replay has found the tail.
        self._file: File | None = None
        self._next_file: File | None = None
        self._sequence = headers[-1].sequence
        self._offset = headers[-1].end
        self._chain = headers[-1].chain
        self._segment_size = 0
        self._zeroed_end = 0
        self._closed = False

    # -- making and opening ---------------------------------------------------------------------------------------

    @staticmethod
    def exists(fs: FileSystem, directory: str) -> bool:
        """Whether a log lies in this directory (sound or not)."""
        return fs.is_dir(directory) and any(name.endswith(SEGMENT_SUFFIX) for name in fs.listdir(directory))

    @staticmethod
    def create(fs: FileSystem, directory: str, metadata: bytes, options: WalOptions = _DEFAULTS) -> Wal:
        """Makes a new log; durable when it returns.

        Args:
            fs: the file system.
            directory: where; made if missing. Must hold no log.
            metadata: opaque bytes, at the head of every segment (whose log it is).
            options: sizes.

        Raises:
            WalError: there is a log already.
            StorageFailedError: the disk refused.
        """
        try:
            fs.mkdir(directory)
            if Wal.exists(fs, directory):
                raise WalError(f"{directory}: there is a write-ahead log already; open it or choose another directory")
            frame, chain = encode_segment_header(1, 0, metadata)
            header = SegmentHeader(1, 0, metadata, chain, len(frame))
            wal = Wal(fs, directory, metadata, [header], options)
            wal._remove_next()
            wal._prepare_next()
            wal._activate_next(1, frame)
            return wal
        except OSError as error:
            raise StorageFailedError(f"{directory}: cannot make the write-ahead log: {error}") from error

    @staticmethod
    def open(fs: FileSystem, directory: str, options: WalOptions = _DEFAULTS) -> Wal:
        """Opens a log and checks that its segments belong together; their frames are checked by :meth:`replay`.

        Raises:
            WalError: there is no log, or it is foreign or of another format.
            CorruptionError: a segment is missing, renamed, or its header damaged.
            StorageFailedError: the disk refused to read.
        """
        try:
            names = [name for name in fs.listdir(directory) if name.endswith(SEGMENT_SUFFIX)]
            sequences = []
            for name in names:
                if not _SEGMENT_NAME.fullmatch(name):
                    raise WalError(f"{join(directory, name)}: not the name of a WAL segment; move the file away")
                sequences.append(int(name[:16], 16))
            if not sequences:
                raise WalError(f"{directory}: there is no write-ahead log here (no file *{SEGMENT_SUFFIX})")
            headers: list[SegmentHeader] = []
            for sequence in sequences:
                path = segment_path(directory, sequence)
                if headers and sequence != headers[-1].sequence + 1:
                    missing = segment_path(directory, headers[-1].sequence + 1)
                    raise CorruptionError(missing, 0, "this WAL segment", f"no such file, but {path}")
                file = fs.open(path)
                try:
                    header = SegmentReader(file, path, sequence, last=False).header()
                finally:
                    file.close()
                if headers and header.metadata != headers[0].metadata:
                    raise CorruptionError(
                        path, HEADER_BYTES, f"metadata {headers[0].metadata.hex()}", header.metadata.hex()
                    )
                headers.append(header)
            return Wal(fs, directory, headers[0].metadata, headers, options)
        except FileNotFoundError as error:
            raise WalError(f"{directory}: there is no write-ahead log here: {error}") from error
        except OSError as error:
            raise StorageFailedError(f"{directory}: cannot read the write-ahead log: {error}") from error

    def close(self) -> None:
        """Closes the files. Records appended but not written are gone."""
        self._closed = True
        for file in (self._file, self._next_file):
            if file is not None:
                file.close()
        self._file = self._next_file = None

    # -- reading --------------------------------------------------------------------------------------------------

    @property
    def first_segment(self) -> int:
        """Sequence number of the oldest segment held."""
        return self._headers[0].sequence

    @property
    def position(self) -> Position:
        """Where the next frame goes, unless it has to begin a new segment. Valid once replayed."""
        return Position(self._sequence, self._offset)

    @property
    def segment_count(self) -> int:
        """Segments held."""
        return len(self._headers)

    def replay(self, from_position: Position | None = None) -> Iterator[Record]:
        """The records in order, each verified before it is yielded.

        At its end a torn tail is cut off (with a warning), after which the log can be written. Must be run to its end
        before the first write; a writer that did not is served by a silent replay. Not while a write runs.

        Args:
            from_position: begin at this frame; None for the oldest record held. Segments before it are not read.

        Raises:
            WalError: the position is not in the log.
            CorruptionError: durable bytes have changed; says where.
            StorageFailedError: the disk refused to read.
        """
        self._check()
        decompressor = zstandard.ZstdDecompressor()
        headers = list(self._headers)
        first = 0
        if from_position is not None:
            first = from_position.segment - headers[0].sequence
            if not 0 <= first < len(headers):
                raise WalError(
                    f"{self.directory}: the log holds segments {headers[0].sequence} to {headers[-1].sequence}, "
                    f"not {from_position.segment}; restore this member from a backup"
                )
        begin = from_position.offset if from_position is not None else 0
        chain = headers[first].previous_chain
        ending = (headers[first].sequence, headers[first].end)
        for header in headers[first:]:
            path = segment_path(self.directory, header.sequence)
            if header.previous_chain != chain:
                raise CorruptionError(
                    segment_path(self.directory, header.sequence - 1),
                    ending[1],
                    f"frames up to chain CRC {header.previous_chain:08x}, with which {path} goes on",
                    f"the end at chain CRC {chain:08x}",
                )
            last = header is headers[-1]
            try:
                file = self._fs.open(path)
            except OSError as error:
                raise StorageFailedError(f"{path}: cannot read the write-ahead log: {error}") from error
            try:
                reader = SegmentReader(file, path, header.sequence, last=last)
                found = begin <= header.end
                for frame in reader.frames():
                    if frame.offset < begin:
                        continue
                    found = found or frame.offset == begin
                    if not found:
                        break
                    position = Position(header.sequence, frame.offset)
                    payload = raw_payload(frame, path, decompressor)
                    if frame.flags & FLAG_LIST:
                        try:
                            for record_type, record in unpack_records(payload):
                                yield Record(record_type, record, position)
                        except ValueError as error:
                            raise CorruptionError(path, frame.offset, "a list of records", str(error)) from error
                    else:
                        yield Record(frame.record_type, payload, position)
                if not found and reader.end != begin:
                    raise WalError(f"{path}: no frame begins at byte {begin}; restore this member from a backup")
                begin = 0
                chain, ending = reader.chain, (header.sequence, reader.end)
                if last and self._file is None:
                    self._adopt_tail(path, reader)
            except OSError as error:
                raise StorageFailedError(f"{path}: cannot read the write-ahead log: {error}") from error
            finally:
                file.close()

    def _adopt_tail(self, path: str, reader: SegmentReader) -> None:
        """Cuts off what a power loss left of an unacknowledged write; makes what was read durable, the log writable."""
        try:
            file = self._fs.open(path, write=True)
            try:
                if reader.torn is not None:
                    log.warning(
                        "%s: cut back to byte %d: found %s, as a power loss leaves the write that was in flight "
                        "(%d bytes dropped, never acknowledged)",
                        path,
                        reader.end,
                        reader.torn,
                        reader.torn_end - reader.end,
                    )
                    # As one metadata change, which a second power loss cannot tear.
                    file.truncate(reader.end)
                    file.fdatasync()
                if file.size() < self._options.segment_bytes:
                    file.preallocate(self._options.segment_bytes)
                    file.fdatasync()
                last_frame = file.pread(reader.end - reader.last_start, reader.last_start)
                self._write_rest(file, last_frame, reader.last_start, 0)
                self._fs.fsync_dir(self.directory)
                self._remove_next()
                self._segment_size = max(file.size(), self._options.segment_bytes)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise self._fail(error) from error
        self._file = file
        self._offset, self._chain = reader.end, reader.chain
        self._zeroed_end = reader.end

    # -- writing --------------------------------------------------------------------------------------------------

    def append(self, record_type: int, payload: bytes) -> None:
        """Takes a record into the next batch. Loop thread. Hot: no copy, no encoding.

        Args:
            record_type: 1..255.
            payload: at most ``limits.WAL_FRAME_BYTES_MAX`` less 5 bytes.

        Raises:
            ValueError: type or length out of range.
            StorageFailedError: an earlier write failed.
        """
        if self._failure is not None:
            raise self._failure
        if not 0 < record_type < 256:
            raise ValueError(f"record type {record_type} is not in 1..255")
        length = len(payload)
        if length > self._options.frame_bytes_max - RECORD_HEAD.size:
            raise ValueError(f"a record of {length} bytes, at most {self._options.frame_bytes_max - RECORD_HEAD.size}")
        self._pending.append((record_type, payload))
        self._pending_bytes += length

    def seal(self) -> WriteBatch | None:
        """Takes what was appended since as one batch; None if there is nothing. Loop thread. Cheap.

        Batches must be written in the order they were sealed, each once.
        """
        if not self._pending:
            return None
        batch = WriteBatch(self._pending, self._pending_bytes)
        self._pending = []
        self._pending_bytes = 0
        return batch

    def write(self, batch: WriteBatch) -> Position:
        """Writes a batch; durable when it returns. One writer at a time, any thread. Hot.

        Returns:
            The position of the batch's first frame: ``replay`` from there begins with this batch.

        Raises:
            StorageFailedError: the disk refused; final.
        """
        if self._failure is not None or self._file is None:
            self._check()
            self._find_tail()
        records = batch.records
        try:
            if len(records) == 1:
                record_type, payload = records[0]
                return self._write_frame(record_type, 0, payload)
            if batch.payload_bytes + RECORD_HEAD.size * len(records) <= self._options.frame_bytes_max:
                return self._write_frame(0, FLAG_LIST, pack_records(records))
            first = None
            for part in self._split(records):
                position = self._write_frame(0, FLAG_LIST, pack_records(part))
                first = first or position
            assert first is not None
            return first
        except OSError as error:
            raise self._fail(error) from error
        except BaseException as error:  # out of memory, an interrupt: a later batch must not go out without this one
            self._fail(OSError(errno.ECANCELED, f"interrupted by {type(error).__name__}"))
            raise

    def _split(self, records: Sequence[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
        """Runs of records that fit a frame each."""
        part: list[tuple[int, bytes]] = []
        part_bytes = 0
        for record in records:
            record_bytes = RECORD_HEAD.size + len(record[1])
            if part and part_bytes + record_bytes > self._options.frame_bytes_max:
                yield part
                part, part_bytes = [], 0
            part.append(record)
            part_bytes += record_bytes
        yield part

    def _write_frame(self, record_type: int, flags: int, payload: bytes) -> Position:
        """Encodes and writes one frame, durably, beginning a new segment where it has to."""
        raw_bytes = len(payload)
        if raw_bytes >= self._options.compress_bytes_min:
            compressed = self._compress(payload)
            if len(compressed) < raw_bytes:
                payload = compressed
                flags |= FLAG_ZSTD
        offset = self._offset
        # The last frame of a segment leaves nothing behind it; one larger than a whole segment makes its file longer.
        if offset + frame_bytes(len(payload)) > self._segment_size and offset > self._headers[-1].end:
            return self._write_in_new_segment(record_type, flags, payload, raw_bytes)
        sequence = self._sequence
        frame, chain = encode_frame(sequence, offset, self._chain, record_type, flags, payload, raw_bytes)
        end = offset + len(frame)
        file = self._file
        assert file is not None
        if end > self._zeroed_end:
            self._write_zeroing(file, frame, offset, end)
        elif (written := file.pwritev((frame,), offset, durable=True)) != end - offset:
            self._write_rest(file, frame, offset, written)
        self._offset = end
        self._chain = chain
        if self._next_file is None and end > self._segment_size >> 1:
            self._prepare_next_early()
        return Position(sequence, offset)

    def _write_zeroing(self, file: File, frame: bytes, offset: int, end: int) -> None:
        """Writes a frame together with the zeros of the next stretch of the file."""
        zeroed_end = min(end + self._options.zero_ahead_bytes, self._segment_size)
        buffers = (frame, memoryview(_zeros(self._options.zero_ahead_bytes))[: max(zeroed_end - end, 0)])
        written = file.pwritev(buffers, offset, durable=True)
        if written < end - offset:
            self._write_rest(file, frame, offset, written)
            zeroed_end = end
        self._zeroed_end = max(min(zeroed_end, offset + written), end)

    @staticmethod
    def _write_rest(file: File, frame: bytes, offset: int, written: int) -> None:
        """Writes what is still missing of a frame, durably; what stopped a short write is raised by the next call."""
        while written < len(frame):
            taken = file.pwritev((memoryview(frame)[written:],), offset + written, durable=True)
            if taken <= 0:
                raise OSError(errno.EIO, "write returned 0")
            written += taken

    def _find_tail(self) -> None:
        """Replays silently: the caller writes without having read."""
        for _ in self.replay(None):
            pass

    # -- segments -------------------------------------------------------------------------------------------------

    def release_before(self, position: Position) -> int:
        """Removes the segments that lie wholly before a position; the one it is in stays.

        The caller has made sure that nothing before the position is needed: records that must outlive a snapshot (hard
        state, members) were written again behind it. One caller at a time; may run while another thread writes.

        Returns:
            How many segments were removed. Errors of the disk are logged and leave the rest for the next time: an old
            segment too many does no harm.
        """
        removed = 0
        while len(self._headers) > 1 and self._headers[0].sequence < position.segment:
            path = segment_path(self.directory, self._headers[0].sequence)
            try:
                self._fs.unlink(path)
                # One by one: were several removals in flight, a power loss might keep an older one and lose a newer.
                self._fs.fsync_dir(self.directory)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("%s: cannot remove the released segment: %s", path, error)
                break
            del self._headers[0]
            removed += 1
        return removed

    def _write_in_new_segment(self, record_type: int, flags: int, payload: bytes, raw_bytes: int) -> Position:
        """Begins a segment with its header and this frame, both durable before the file gets its name."""
        sequence = self._sequence + 1
        header_frame, header_chain = encode_segment_header(sequence, self._chain, self.metadata)
        offset = len(header_frame)
        frame, chain = encode_frame(sequence, offset, header_chain, record_type, flags, payload, raw_bytes)
        previous_chain = self._chain
        if self._next_file is None:
            self._prepare_next()
        self._activate_next(sequence, header_frame + frame)
        self._headers.append(SegmentHeader(sequence, previous_chain, self.metadata, header_chain, offset))
        self._chain = chain
        return Position(sequence, offset)

    def _prepare_next_early(self) -> None:
        """Prepares the next segment while there is time; when it is needed, an error is final, now it is not."""
        try:
            self._prepare_next()
        except OSError as error:
            log.warning("%s: cannot prepare the next WAL segment yet: %s", join(self.directory, NEXT_NAME), error)
            with contextlib.suppress(OSError):
                self._remove_next()

    def _prepare_next(self) -> None:
        """Makes the next segment's file and reserves its blocks."""
        path = join(self.directory, NEXT_NAME)
        try:
            file = self._fs.open(path, create=True)
        except FileExistsError:
            self._fs.unlink(path)
            file = self._fs.open(path, create=True)
        try:
            file.preallocate(self._options.segment_bytes)
        except BaseException:
            file.close()
            raise
        self._next_file = file

    def _remove_next(self) -> None:
        """Removes a prepared segment that no log goes on in."""
        if self._next_file is not None:
            self._next_file.close()
            self._next_file = None
        if NEXT_NAME in self._fs.listdir(self.directory):
            self._fs.unlink(join(self.directory, NEXT_NAME))

    def _activate_next(self, sequence: int, beginning: bytes) -> None:
        """Writes the beginning of the prepared segment and goes on in it."""
        file = self._next_file
        assert file is not None
        written = file.pwritev((beginning,), 0)
        if written != len(beginning):
            self._write_rest(file, beginning, 0, written)
        file.fdatasync()  # of all: the size too
        self._fs.rename(join(self.directory, NEXT_NAME), segment_path(self.directory, sequence))
        self._fs.fsync_dir(self.directory)
        old, self._file, self._next_file = self._file, file, None
        if old is not None:
            old.close()
        self._sequence = sequence
        self._offset = self._zeroed_end = len(beginning)
        self._segment_size = self._options.segment_bytes

    # -- failure --------------------------------------------------------------------------------------------------

    def _fail(self, error: OSError) -> StorageFailedError:
        """Makes the failure final."""
        path = segment_path(self.directory, self._sequence)
        if error.errno == errno.ENOSPC:
            advice = "no space left: free some, then restart the node; nothing acknowledged is lost"
        else:
            advice = "the disk refused; nothing is acknowledged from now on. Check the device, then restart the node"
        self._failure = StorageFailedError(f"{path}: cannot write the write-ahead log: {error}; {advice}")
        log.critical("%s", self._failure)
        return self._failure

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise WalError(f"{self.directory}: the write-ahead log is closed")


def segment_path(directory: str, sequence: int) -> str:
    """The file of a segment.

    >>> segment_path("data/wal", 255)
    'data/wal/00000000000000ff.wal'
    """
    return join(directory, f"{sequence:016x}{SEGMENT_SUFFIX}")


_zeros_cache = b""


def _zeros(count: int) -> bytes:
    """At least ``count`` zero bytes, kept between calls."""
    global _zeros_cache
    if len(_zeros_cache) < count:
        _zeros_cache = bytes(count)
    return _zeros_cache


# A frame must fit behind a header in the smallest segment a test may ask for.
assert HEADER_BYTES + SEGMENT_HEAD.size + FRAME_ALIGN < 512
