"""``python -m kvserver.storage.dump DIR``: what lies in a data directory, for operators.

Prints the segments of every log and the snapshots below DIR, each record with type, sizes and offset, and where a log
ends. Only reads; a node may be running, whose last frame may then look torn. Exit code 0 if all is sound (a torn tail
is: the next start cuts it off), 1 on damage, 2 if there is nothing to read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO

import zstandard

from kvserver.errors import DataDirError
from kvserver.storage.frame import FLAG_LIST, FLAG_ZSTD, unpack_records
from kvserver.storage.fs import FileSystem, OsFileSystem, join
from kvserver.storage.segment import SegmentReader, raw_payload
from kvserver.storage.snapshot import BROKEN_SUFFIX, Snapshotter
from kvserver.storage.snapshot import SUFFIX as SNAPSHOT_SUFFIX
from kvserver.storage.wal import SEGMENT_SUFFIX


def dump(fs: FileSystem, directory: str, out: TextIO, *, records: bool = True) -> int:
    """Prints a directory and those below it.

    Args:
        fs: the file system.
        directory: where to begin.
        out: where to print.
        records: every record, not only the segments.

    Returns:
        The exit code.
    """
    found, damaged = _dump_tree(fs, directory.rstrip("/") or "/", out, records=records)
    if not found:
        print(f"{directory}: no WAL segments (*{SEGMENT_SUFFIX}) or snapshots (*{SNAPSHOT_SUFFIX}) here", file=out)
        return 2
    return 1 if damaged else 0


def _dump_tree(fs: FileSystem, directory: str, out: TextIO, *, records: bool) -> tuple[int, int]:
    names = fs.listdir(directory)
    found = damaged = 0
    segments = [name for name in names if name.endswith(SEGMENT_SUFFIX)]
    if segments:
        found += len(segments)
        damaged += _dump_log(fs, directory, segments, out, records=records)
    if any(name.endswith((SNAPSHOT_SUFFIX, SNAPSHOT_SUFFIX + BROKEN_SUFFIX)) for name in names):
        found += 1
        damaged += _dump_snapshots(fs, directory, names, out)
    for name in names:
        path = join(directory, name)
        if fs.is_dir(path):
            below_found, below_damaged = _dump_tree(fs, path, out, records=records)
            found += below_found
            damaged += below_damaged
    return found, damaged


def _dump_log(fs: FileSystem, directory: str, names: list[str], out: TextIO, *, records: bool) -> int:
    damaged = 0
    previous: tuple[int, int] | None = None  # sequence and chain CRC at the end of the segment before, if it was sound
    print(f"log {directory}: {len(names)} segments", file=out)
    for name in names:
        path = join(directory, name)
        try:
            sequence = int(name.removesuffix(SEGMENT_SUFFIX), 16)
        except ValueError:
            print(f"  {name}: DAMAGED: not the name of a WAL segment", file=out)
            damaged += 1
            continue
        file = fs.open(path)
        try:
            reader = SegmentReader(file, path, sequence, last=name == names[-1])
            header = reader.header()
            print(
                f"  segment {sequence}: {file.size()} bytes, follows chain CRC {header.previous_chain:08x}, "
                f"metadata {header.metadata.hex() or '-'}",
                file=out,
            )
            if previous is not None and previous != (sequence - 1, header.previous_chain):
                print(
                    f"    DAMAGED: segment {previous[0]} ends with chain CRC {previous[1]:08x}: "
                    "frames or a whole segment are missing between the two",
                    file=out,
                )
                damaged += 1
            previous = None
            count = _dump_frames(reader, path, out, records=records)
            if reader.torn is not None:
                print(
                    f"    torn tail at byte {reader.end}: {reader.torn}; the next start cuts it off "
                    "(or a node is writing just now)",
                    file=out,
                )
            print(f"    {count} records, end at byte {reader.end}, chain CRC {reader.chain:08x}", file=out)
            previous = (sequence, reader.chain)
        except DataDirError as error:
            print(f"    DAMAGED: {error}", file=out)
            damaged += 1
        finally:
            file.close()
    return damaged


def _dump_frames(reader: SegmentReader, path: str, out: TextIO, *, records: bool) -> int:
    decompressor = zstandard.ZstdDecompressor()
    count = 0
    for frame in reader.frames():
        payload = raw_payload(frame, path, decompressor)
        try:
            items = list(unpack_records(payload)) if frame.flags & FLAG_LIST else [(frame.record_type, payload)]
        except ValueError as error:
            raise DataDirError(f"{path}: frame at byte {frame.offset}: {error}") from error
        for number, (record_type, record) in enumerate(items):
            count += 1
            if records:
                place = f"{frame.offset:>10} {frame.end - frame.offset:>9}" if number == 0 else " " * 20
                kind = "zstd" if frame.flags & FLAG_ZSTD else "raw"
                print(f"    {place}  type {record_type:<3} {len(record):>9} bytes  {kind:<4}  crc ok", file=out)
    return count


def _dump_snapshots(fs: FileSystem, directory: str, names: list[str], out: TextIO) -> int:
    damaged = 0
    snapshotter = Snapshotter(fs, directory, read_only=True)
    print(f"snapshots {directory}:", file=out)
    for info in snapshotter.list():
        try:
            chunks = raw_bytes = 0
            for chunk in snapshotter.open(info):
                chunks += 1
                raw_bytes += len(chunk)
            state = f"{chunks} chunks of {raw_bytes} bytes, crc ok"
        except DataDirError as error:
            state = f"DAMAGED: {error}"
            damaged += 1
        print(f"  {info.name}: index {info.index}, term {info.term}, {info.size_bytes} bytes, {state}", file=out)
    for name in names:
        if name.endswith(BROKEN_SUFFIX):
            print(f"  {name}: set aside earlier", file=out)
    return damaged


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m kvserver.storage.dump", description="Print a data directory.")
    parser.add_argument("directory", metavar="DIR", help="a data directory, or a log's or the snapshots' directory")
    parser.add_argument("-q", "--quiet", action="store_true", help="segments and snapshots only, not each record")
    options = parser.parse_args(arguments)
    try:
        return dump(OsFileSystem(), options.directory, sys.stdout, records=not options.quiet)
    except OSError as error:
        print(f"{options.directory}: {error.strerror or error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
