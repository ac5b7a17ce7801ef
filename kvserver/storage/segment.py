"""Reading one WAL segment: its frames in order, and the verdict on the place where they end.

A segment file is a header frame, frames, and zeros up to its preallocated size. The reader yields every frame that
verifies (header CRC, chain CRC, trailer) and stops at the first that does not. That place is one of

- the *clean end*: everything from there on is zero, or the file ends;
- a *torn tail*: what a power loss leaves of the one write that was in flight. It was never acknowledged and is cut off;
- *damage*: anything else. Raises :class:`CorruptionError`; nothing is cut, nothing behind it is served.

How torn and damaged are told apart. The writer has one frame in flight: it starts a frame only after the one before is
durable, and a segment gets its name only after its header is durable. So only the last frame of the last segment can
be torn, and a valid frame anywhere behind a bad one proves that the bad one had been durable: damage. For the last
frame, the assumption is the usual one about disks: a sector (512 bytes) is written whole or not at all, or the write
stops at some byte and nothing behind it is written. The file was all zeros there. The writer sees to it that no part of
a frame that lies in one sector is ever all zero (it starts with a magic, ends with a non-zero trailer, and a raw
payload is shorter than a sector or does not compress), hence:

- header valid, checksum wrong: torn if the file ends inside the frame, or the frame's last byte is zero, or some
  sector's part of it is all zero. Else every sector of it provably reached the disk: damage, although nothing follows.
- header not valid: torn if nothing behind the header's place is written, or one sector's part of the header is all
  zero. Else damage.

What this cannot see, and the layers above may (members compare hashes, and the commit index outlives the log): whole
frames at the very end zeroed exactly, the last segment file removed, or damage of the last frame that happens to look
like an unwritten sector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import zstandard

from kvserver import limits
from kvserver.storage.errors import CorruptionError, WalError
from kvserver.storage.frame import (
    CRCS,
    FLAG_SEGMENT_HEADER,
    FLAG_ZSTD,
    FORMAT_VERSION,
    FRAME_ALIGN,
    HEAD,
    HEAD_BYTES,
    HEADER_BYTES,
    KNOWN_FLAGS,
    MAGIC,
    MAGIC_BYTES,
    SEGMENT_HEAD,
    TRAILERS,
    crc32c_extend,
    frame_bytes,
    place_seed,
)
from kvserver.storage.fs import File

SECTOR_BYTES = 512

_ZEROS = bytes(limits.WAL_READ_BYTES)


class Frame(NamedTuple):
    """A frame that verified."""

    offset: int
    end: int
    record_type: int
    flags: int
    stored: bytes
    raw_bytes: int
    chain: int


class SegmentHeader(NamedTuple):
    """What a segment says of itself."""

    sequence: int
    previous_chain: int
    metadata: bytes
    chain: int
    end: int


class SegmentReader:
    """Reads one segment from its start.

    After :meth:`frames` is exhausted, ``end`` is the offset behind the last good frame, ``chain`` the CRC there,
    and ``torn`` says why the rest is to be cut off, or is None.
    """

    def __init__(self, file: File, path: str, sequence: int, *, last: bool) -> None:
        self._file = file
        self._path = path
        self._sequence = sequence
        self._last = last
        self._size = file.size()
        self.end = 0
        self.chain = 0
        self.last_start = 0
        """Offset of the last good frame; 0 is the header."""
        self.torn: str | None = None
        self.torn_end = 0
        """Behind the last byte of the torn tail that is not zero."""

    def header(self) -> SegmentHeader:
        """Reads the header frame.

        Raises:
            WalError: not a WAL segment, or of another format.
            CorruptionError: damaged, or the file has another segment's name.
        """
        start = self._file.pread(HEADER_BYTES, 0)
        expected = f"the header of WAL segment {self._sequence}"
        if len(start) < HEADER_BYTES:
            raise CorruptionError(self._path, 0, expected, f"a file of {self._size} bytes")
        magic, version, record_type, flags, reserved, stored_bytes, _ = HEAD.unpack_from(start)
        header_crc, chain = CRCS.unpack_from(start, HEAD_BYTES)
        intact = crc32c_extend(0, start[:HEAD_BYTES]) == header_crc
        if magic != MAGIC and not intact and crc32c_extend(0, MAGIC_BYTES + start[4:HEAD_BYTES]) != header_crc:
            if not start.strip(b"\0"):
                raise CorruptionError(self._path, 0, expected, "zeros")
            raise WalError(
                f"{self._path}: not a WAL segment: expected magic {MAGIC_BYTES.hex()} at byte 0, found "
                f"{start[:4].hex()}; if this is the right data directory the file is damaged or foreign"
            )
        if version != FORMAT_VERSION and intact:
            raise WalError(
                f"{self._path}: WAL format version {version} at byte 4, this program reads version {FORMAT_VERSION}; "
                "start the version that wrote it"
            )
        if not intact:
            other = f" (format version {version}?)" if version != FORMAT_VERSION else ""
            raise CorruptionError(self._path, 0, f"{expected} (header CRC)", start.hex() + other)
        if flags != FLAG_SEGMENT_HEADER or record_type or reserved or stored_bytes < SEGMENT_HEAD.size:
            raise CorruptionError(self._path, 0, expected, f"a frame with flags {flags}, type {record_type}")
        end = frame_bytes(stored_bytes)
        rest = self._file.pread(end - HEADER_BYTES, HEADER_BYTES)
        stored = rest[:stored_bytes]
        if len(stored) < SEGMENT_HEAD.size:
            raise CorruptionError(self._path, 0, expected, f"a file of {self._size} bytes")
        sequence, previous_chain = SEGMENT_HEAD.unpack_from(stored)
        if crc32c_extend(crc32c_extend(previous_chain, start[:HEAD_BYTES]), stored) != chain or rest[
            stored_bytes:
        ] != _trailer(stored_bytes):
            raise CorruptionError(self._path, HEADER_BYTES, f"{expected} (payload CRC)", "other bytes")
        if sequence != self._sequence:
            raise CorruptionError(
                self._path, HEADER_BYTES, expected, f"segment {sequence}: the file was renamed or copied"
            )
        return SegmentHeader(sequence, previous_chain, stored[SEGMENT_HEAD.size :], chain, end)

    def frames(self) -> Iterator[Frame]:
        """The frames behind the header, each verified before it is yielded; then sets the verdict.

        Raises:
            WalError: not a WAL segment, or of another format.
            CorruptionError: damage, see the module's rules.
        """
        header = self.header()
        offset, chain = header.end, header.chain
        self.end, self.chain = offset, chain
        window, base = b"", offset
        size, sequence = self._size, self._sequence
        while True:
            start = offset - base
            if start + HEADER_BYTES > len(window) and base + len(window) < size:
                window, base, start = self._file.pread(limits.WAL_READ_BYTES, offset), offset, 0
            if start + HEADER_BYTES > len(window):
                break
            head = window[start : start + HEAD_BYTES]
            header_crc, stored_chain = CRCS.unpack_from(window, start + HEAD_BYTES)
            if crc32c_extend(place_seed(sequence, offset), head) != header_crc:
                break
            magic, version, record_type, flags, reserved, stored_bytes, raw_bytes = HEAD.unpack(head)
            if magic != MAGIC:
                break
            self._check_head(offset, version, flags, reserved, stored_bytes, raw_bytes)
            end = offset + frame_bytes(stored_bytes)
            if end - base > len(window):
                if end > size:
                    break
                window = self._file.pread(max(end - offset, limits.WAL_READ_BYTES), offset)
                base, start = offset, 0
            payload_start = start + HEADER_BYTES
            stored = window[payload_start : payload_start + stored_bytes]
            chain = crc32c_extend(crc32c_extend(chain, head), stored)
            if chain != stored_chain or window[payload_start + stored_bytes : end - base] != _trailer(stored_bytes):
                break
            frame = Frame(offset, end, record_type, flags, stored, raw_bytes, chain)
            offset = end
            # Set before the yield: who stops here knows how far the log is good.
            self.end, self.chain, self.last_start = offset, chain, frame.offset
            yield frame
        self.torn = self._judge(offset)

    def _check_head(
        self, offset: int, version: int, flags: int, reserved: int, stored_bytes: int, raw_bytes: int
    ) -> None:
        """Refuses what an intact header of this program cannot say."""
        if version != FORMAT_VERSION or flags & ~KNOWN_FLAGS or reserved:
            raise WalError(
                f"{self._path}: frame at byte {offset} has format version {version}, flags {flags:#x}; this program "
                f"reads version {FORMAT_VERSION}; start the version that wrote it"
            )
        if raw_bytes > limits.WAL_FRAME_BYTES_MAX or stored_bytes > limits.WAL_FRAME_BYTES_MAX:
            raise WalError(
                f"{self._path}: frame at byte {offset} has {raw_bytes} bytes, at most {limits.WAL_FRAME_BYTES_MAX} are "
                "read; start the version that wrote it"
            )
        if flags & FLAG_SEGMENT_HEADER:
            raise CorruptionError(self._path, offset, "a frame of records", "a segment header")

    def _judge(self, offset: int) -> str | None:
        """Why the log ends at ``offset``: None for a clean end, a text for a torn tail; raises on damage."""
        nonzero_end = self._nonzero_end(offset)
        if nonzero_end == offset:
            return None
        header_end = offset + HEADER_BYTES
        header = self._file.pread(HEADER_BYTES, offset)
        end = None  # of the bad frame, where its header tells
        if (
            len(header) == HEADER_BYTES
            and header[:4] == MAGIC_BYTES
            and crc32c_extend(place_seed(self._sequence, offset), header[:HEAD_BYTES])
            == CRCS.unpack_from(header, 16)[0]
        ):
            end = offset + frame_bytes(HEAD.unpack_from(header)[5])
        what = "a valid frame or zeros to the end of the file"
        found = "a frame whose checksum does not fit" if end is not None else f"bytes {header.hex()}"
        if not self._last:
            raise CorruptionError(self._path, offset, what, f"{found}, in a segment that others follow")
        valid = self._find_valid_frame(offset + FRAME_ALIGN if end is None else end)
        if valid is not None:
            raise CorruptionError(self._path, offset, what, f"{found}, with a valid frame behind it at byte {valid}")
        self.torn_end = nonzero_end
        if end is None:
            if self._size < header_end or nonzero_end <= header_end:
                return "a frame header that was not written to its end"
            if self._zero_sector(offset, header_end, whole=True):
                return "a frame header of which a sector was not written"
            raise CorruptionError(self._path, offset, what, found)
        if end > self._size:
            return f"a frame that needs bytes up to {end} of a file of {self._size}"
        if nonzero_end > end:
            raise CorruptionError(self._path, end, "zeros to the end of the file", f"other bytes, behind {found}")
        if nonzero_end < end:
            return "a frame that was not written to its end"
        if self._zero_sector(offset, end):
            return "a frame of which a sector was not written"
        raise CorruptionError(self._path, offset, what, f"{found}, although all its sectors were written")

    def _belongs(self, header: bytes, offset: int) -> bool:
        """Whether these bytes are the header of a frame written at this offset of this segment."""
        return (
            len(header) == HEADER_BYTES
            and header.startswith(MAGIC_BYTES)
            and crc32c_extend(place_seed(self._sequence, offset), header[:HEAD_BYTES])
            == CRCS.unpack_from(header, HEAD_BYTES)[0]
        )

    def _zero_sector(self, start: int, end: int, *, whole: bool = False) -> bool:
        """Whether some sector's part of ``[start, end)`` is all zero.

        Args:
            start: first byte.
            end: behind the last byte.
            whole: the end is not known: judge the last sector by all its bytes.
        """
        while start < end:
            boundary = (start // SECTOR_BYTES + 1) * SECTOR_BYTES
            stop = boundary if whole else min(boundary, end)
            part = self._file.pread(stop - start, start)
            if not part.strip(b"\0"):
                return True
            start = boundary
        return False

    def _nonzero_end(self, start: int) -> int:
        """Behind the last non-zero byte from ``start`` on; ``start`` if all is zero."""
        result = start
        while start < self._size:
            window = self._file.pread(limits.WAL_READ_BYTES, start)
            if not window:
                break
            if window != _ZEROS[: len(window)]:
                result = start + len(window.rstrip(b"\0"))
            start += len(window)
        return result

    def _find_valid_frame(self, start: int) -> int | None:
        """Offset of the first frame header from ``start`` on that belongs where it lies."""
        while start < self._size:
            window = self._file.pread(limits.WAL_READ_BYTES, start)
            at = window.find(MAGIC_BYTES)
            while at >= 0:
                offset = start + at
                if offset % FRAME_ALIGN == 0 and self._belongs(window[at : at + HEADER_BYTES], offset):
                    return offset
                at = window.find(MAGIC_BYTES, at + 1)
            if len(window) <= HEADER_BYTES:
                break
            start += len(window) - HEADER_BYTES  # overlap: a header may lie across two windows
        return None


def raw_payload(frame: Frame, path: str, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """The frame's payload, decompressed if it was compressed; bounded by its raw length.

    Raises:
        CorruptionError: the checksum fits but the content does not (a writer's fault, or a forged file).
    """
    stored = frame.stored
    if frame.flags & FLAG_ZSTD:
        try:
            if zstandard.frame_content_size(stored) != frame.raw_bytes:
                raise ValueError(f"a zstd frame of {zstandard.frame_content_size(stored)} bytes")
            stored = decompressor.decompress(stored, max_output_size=frame.raw_bytes)
        except (zstandard.ZstdError, ValueError) as error:
            raise CorruptionError(path, frame.offset, f"a zstd frame of {frame.raw_bytes} bytes", str(error)) from error
    if len(stored) != frame.raw_bytes:
        raise CorruptionError(path, frame.offset, f"a payload of {frame.raw_bytes} bytes", f"{len(stored)} bytes")
    return stored


def _trailer(stored_bytes: int) -> bytes:
    return TRAILERS[FRAME_ALIGN - (stored_bytes & 7)]
