"""From a data directory to a member that can run: creating one, or reading it back after a stop or a crash.

Layout, below the data directory (0700)::

    member/lock            held by the process that uses the directory
    member/wal/*.wal       the write-ahead log (``--wal-dir`` puts it elsewhere, with a lock of its own)
    member/snap/*.snap     the newest snapshots of the state

Reading back: the newest snapshot whose marker is in the log and whose file verifies, then every record of the log in
order. A later record of entries overwrites earlier ones from its first index on, as Raft does when leaders change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from kvserver.errors import DataDirError
from kvserver.node import records
from kvserver.raft import Entry, HardState
from kvserver.storage import FileSystem, Lock, Position, SnapshotInfo, Snapshotter, Wal

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this data directory belongs to: written once, into every segment of the log."""

    cluster_id: int
    member_id: int

    def encode(self) -> bytes:
        """Answer the log's metadata."""
        return orjson.dumps(
            {"format": FORMAT, "cluster_id": f"{self.cluster_id:x}", "member_id": f"{self.member_id:x}"}
        )

    @classmethod
    def decode(cls, metadata: bytes, directory: str) -> Identity:
        """Read the log's metadata.

        Raises:
            DataDirError: it is of another format.
        """
        try:
            fields = orjson.loads(metadata)
            if fields["format"] != FORMAT:
                raise DataDirError(
                    f"{directory}: the log is of format {fields['format']!r}, this version reads format {FORMAT}; "
                    "use the version that wrote it, or restore a snapshot into a new directory"
                )
            return cls(int(fields["cluster_id"], 16), int(fields["member_id"], 16))
        except (ValueError, KeyError, TypeError) as error:
            raise DataDirError(f"{directory}: the log's metadata {metadata[:80]!r} is not a member's") from error


@dataclass(slots=True)
class DataDir:
    """An open data directory and what was read from it."""

    lock: Lock
    wal: Wal
    snapshotter: Snapshotter
    identity: Identity
    hard_state: HardState
    entries: list[Entry]
    snapshot: SnapshotRef | None
    segment_positions: list[tuple[int, Position]]


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """The snapshot the member starts from."""

    index: int
    term: int
    chunks: Iterator[bytes]


def open_data_dir(fs: FileSystem, data_path: Path, wal_path: Path, fresh: Identity) -> DataDir:
    """Open a member's directory, or create it for ``fresh``.

    Args:
        fs: the file system.
        data_path: the data directory.
        wal_path: the directory of the log.
        fresh: who to create it for, if it does not exist.

    Raises:
        DataDirError: it is locked, foreign, or damaged; the message names the file and says what to do.
    """
    member_path = data_path / "member"
    snap_path = member_path / "snap"
    try:
        for path in (data_path, member_path, snap_path):
            fs.mkdir(str(path))
        lock: Lock = fs.lock(str(member_path / "lock"))
    except OSError as error:
        raise DataDirError(f"{data_path}: cannot be used as --data-dir: {error}") from error
    try:
        if wal_path != member_path / "wal":
            lock = _with_log(fs, lock, str(wal_path))
        _refuse_foreign(fs, snap_path)
        snapshotter = Snapshotter(fs, str(snap_path))
        if not Wal.exists(fs, str(wal_path)):
            if snapshotter.list():
                raise DataDirError(
                    f"{snap_path} holds snapshots but {wal_path} holds no log: if the log is elsewhere give --wal-dir; "
                    "if it is lost, restore a snapshot into a new directory"
                )
            wal = Wal.create(fs, str(wal_path), fresh.encode())
            for _ in wal.replay():
                raise DataDirError(f"{wal_path}: a log that was created just now has records")
            return DataDir(lock, wal, snapshotter, fresh, HardState(0, 0, 0), [], None, [])
        return _read_back(fs, lock, str(wal_path), snapshotter)
    except BaseException:
        lock.release()
        raise


class _Locks:
    """The lock of a data directory and that of a log outside it, which another member may have been given too."""

    def __init__(self, *locks: Lock) -> None:
        self._locks = locks

    def release(self) -> None:
        """Give both up."""
        for lock in self._locks:
            lock.release()


def _with_log(fs: FileSystem, lock: Lock, wal_path: str) -> Lock:
    try:
        fs.mkdir(wal_path)
        return _Locks(lock, fs.lock(f"{wal_path}/lock"))
    except OSError as error:
        raise DataDirError(f"{wal_path}: cannot be used as --wal-dir: {error}") from error


def _refuse_foreign(fs: FileSystem, snap_path: Path) -> None:
    if "db" in fs.listdir(str(snap_path)):
        raise DataDirError(
            f"{snap_path / 'db'}: this is the data directory of another etcd server; "
            "start with an empty --data-dir and restore a snapshot into it"
        )


def _read_back(fs: FileSystem, lock: Lock, wal_path: str, snapshotter: Snapshotter) -> DataDir:
    wal = Wal.open(fs, wal_path)
    try:
        return _replay(lock, wal, snapshotter)
    except records.RecordError as error:
        wal.close()
        raise DataDirError(f"{wal_path}: {error}: it is foreign, or a newer version wrote it") from error
    except BaseException:
        wal.close()
        raise


def _replay(lock: Lock, wal: Wal, snapshotter: Snapshotter) -> DataDir:
    wal_path = wal.directory
    identity = Identity.decode(wal.metadata, wal_path)
    hard_state = HardState(0, 0, 0)
    batches = _Batches(wal_path)
    markers: set[tuple[int, int]] = set()
    positions: list[tuple[int, Position]] = []
    for record in wal.replay():
        if record.type == records.ENTRIES:
            first = batches.add(record.payload)
            if not positions or positions[-1][1].segment != record.position.segment:
                positions.append((first, record.position))
        elif record.type == records.HARD_STATE:
            hard_state = records.decode_hard_state(record.payload)
        elif record.type == records.SNAPSHOT_MARKER:
            markers.add(records.decode_marker(record.payload))
        else:
            raise DataDirError(
                f"{wal_path}: record of type {record.type} at {record.position} is unknown: a newer version wrote it"
            )

    def counts(info: SnapshotInfo) -> bool:
        return (info.index, info.term) in markers

    newest = snapshotter.newest_valid(counts)
    snapshot = None if newest is None else SnapshotRef(newest.index, newest.term, snapshotter.open(newest))
    begins = batches.first_index
    if begins > (snapshot.index if snapshot else 0) + 1:
        reach = f"the newest usable snapshot ends at {snapshot.index}" if snapshot else "there is no usable snapshot"
        raise DataDirError(
            f"{wal_path}: the log begins at entry {begins}, but {reach}; restore a snapshot into a new directory"
        )
    # A snapshot without a marker never counted; left there, it would take the place of one that does.
    snapshotter.prune(accept=counts)
    entries = batches.entries_after(snapshot.index if snapshot else 0)
    last_term = entries[-1].term if entries else (snapshot.term if snapshot else 0)
    last_index = entries[-1].index if entries else (snapshot.index if snapshot else 0)
    floor = snapshot.index if snapshot else 0
    # A batch that was cut off at the tail may have held the hard state of its last entries, or the entries of its hard
    # state; nothing of it was acknowledged, so both are brought within what is there.
    hard_state = HardState(
        max(hard_state.term, last_term),
        hard_state.vote if hard_state.term >= last_term else 0,
        max(floor, min(hard_state.commit, last_index)),
    )
    return DataDir(lock, wal, snapshotter, identity, hard_state, entries, snapshot, positions)


class _Batches:
    """The records of entries of a log, in order, decoded only as far as they are needed.

    Most of a log lies before the snapshot that the member starts from.
    """

    def __init__(self, wal_path: str) -> None:
        self._wal_path = wal_path
        self._batches: list[tuple[int, int, bytes]] = []  # first index, last index that still counts, payload

    def add(self, payload: bytes) -> int:
        """Take the next record and answer its first index; it replaces earlier entries from there on.

        Raises:
            DataDirError: entries between it and the ones before are missing.
        """
        first, last = records.entries_span(payload)
        batches = self._batches
        while batches and batches[-1][0] >= first:
            batches.pop()
        if batches:
            before = batches[-1]
            if before[1] + 1 < first:
                raise DataDirError(
                    f"{self._wal_path}: entry {first} follows entry {before[1]}: entries between them are missing; "
                    "restore a snapshot into a new directory"
                )
            batches[-1] = (before[0], first - 1, before[2])
        batches.append((first, last, payload))
        return first

    @property
    def first_index(self) -> int:
        """The first index there is, 0 for none."""
        return self._batches[0][0] if self._batches else 0

    def entries_after(self, index: int) -> list[Entry]:
        """Decode the entries after ``index``."""
        entries: list[Entry] = []
        for first, last, payload in self._batches:
            if last > index:
                batch = records.decode_entries(payload)
                entries.extend(batch[max(0, index + 1 - first) : last + 1 - first])
        return entries
