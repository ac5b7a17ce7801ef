"""A whole member on the simulated disk, without asyncio: the engine, its log and its snapshots, one step at a time.

:class:`Member` is the shell that ``kvserver.node.runner`` is in production, reduced to a table of steps that a seeded
generator draws from: propose, take a turn, finish the write under way, make a snapshot's next chunk, tick. The same
seed gives the same run, operation by operation of the disk. :func:`record_run` makes such a run and notes in the
disk's journal when each request was proposed and answered; :func:`states_of` says, by a model of its own, what the
state is after each of them. A recovery from any crash point must give one of these states, none older than what was
answered and none newer than what was proposed: :func:`check_recovery`.

:class:`Bug` names mistakes that a shell could make; tests let the member make them, and the checks must find them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from unittest import mock

from kvserver.config import Config
from kvserver.errors import KvError
from kvserver.node import kinds, recovery
from kvserver.node.assembly import assemble
from kvserver.node.engine import Persist, SnapshotOrder
from kvserver.node.runner import Runner
from kvserver.proto import kv_pb2, rpc_pb2
from kvserver.storage import Position, StorageFailedError, Wal, WalOptions, WriteBatch
from kvserver.storage.snapshot import SnapshotWriter
from tests.faults.checker import Compare, Delete, Get, KeyValue, Model, Put, Request, Revoke
from tests.faults.client import _compare, _operation
from tests.support.simfs import Image, SimFileSystem

OPTIONS = WalOptions(segment_bytes=4096, zero_ahead_bytes=512)
TURNS_MAX = 1000
KEYS = [b"a", b"b", b"c", b"d", b"e"]


@dataclass(frozen=True, slots=True)
class Grant:
    """Make a lease."""

    lease: int
    ttl: int


@dataclass(frozen=True, slots=True)
class Compaction:
    """Forget history."""

    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Save a snapshot now: what a defragmentation does."""


Step = Request | Grant | Compaction | Snapshot


class Bug(Enum):
    """A mistake for the checks to find."""

    ACKNOWLEDGE_BEFORE_WRITE = auto()
    MARKER_BEFORE_SNAPSHOT = auto()
    RELEASE_TOO_MUCH = auto()
    NO_SYNC = auto()


@dataclass(frozen=True, slots=True)
class State:
    """All that a client can find out."""

    revision: int
    compacted: int
    key_values: tuple[KeyValue, ...]
    leases: tuple[tuple[int, int, tuple[bytes, ...]], ...]


class _SmallLog:
    """``Wal`` with segments so small that a short run rolls over and releases some."""

    exists = staticmethod(Wal.exists)

    @staticmethod
    def create(fs: SimFileSystem, directory: str, metadata: bytes) -> Wal:
        return Wal.create(fs, directory, metadata, OPTIONS)

    @staticmethod
    def open(fs: SimFileSystem, directory: str) -> Wal:
        return Wal.open(fs, directory, OPTIONS)


class _AtOnce:
    """A thread that is none."""

    @staticmethod
    def submit(work: Callable[..., None], *args: object) -> None:
        work(*args)


def _serialized(step: Step) -> tuple[bytes, bytes, object]:
    """Answer (kind, raw, message) as the facade would propose it."""
    match step:
        case Grant(lease, ttl):
            kind, message = kinds.LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=lease, TTL=ttl)
        case Compaction(revision):
            kind, message = kinds.COMPACT, rpc_pb2.CompactionRequest(revision=revision)
        case Request((Put(key, value, lease),), (), ()):
            kind, message = kinds.PUT, rpc_pb2.PutRequest(key=key, value=value, lease=lease)
        case Request((Delete(key, end),), (), ()):
            kind, message = kinds.DELETE_RANGE, rpc_pb2.DeleteRangeRequest(key=key, range_end=end)
        case Request((Revoke(lease),), (), ()):
            kind, message = kinds.LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease)
        case Request(success, compares, failure):
            kind = kinds.TXN
            message = rpc_pb2.TxnRequest(
                compare=[_compare(compare) for compare in compares],
                success=[_operation(operation) for operation in success],
                failure=[_operation(operation) for operation in failure],
            )
        case _:
            raise ValueError(step)
    return kind, message.SerializeToString(), message


class Member:
    """One member; see the module.

    Raises:
        StartupError: the disk does not let it start.
    """

    _note_position = Runner._note_position
    _release_log = Runner._release_log
    _release_before = Runner._release_before
    _snapshot_thread = _AtOnce

    def __init__(self, fs: SimFileSystem, *, seed: int = 0, snapshot_count: int = 15, bug: Bug | None = None) -> None:
        self.fs = fs
        self.bug = bug
        config = Config(data_dir="/data", snapshot_count=snapshot_count, initial_advertise_peer_urls=("http://n:2380",))
        with mock.patch.object(recovery, "Wal", _SmallLog):
            self.assembly = assemble(config, fs, Random(seed), lambda: None)
        self.engine = self.assembly.engine
        self._wal = self.assembly.data_dir.wal
        self._snapshotter = self.assembly.data_dir.snapshotter
        self._release_positions: list[tuple[int, Position]] = self.assembly.data_dir.segment_positions
        self._snapshot_positions: list[Position] = []
        self._in_flight: tuple[Persist, WriteBatch] | None = None
        self._saving: tuple[SnapshotOrder, SnapshotWriter] | None = None
        self._now = 0.0
        self.failure: StorageFailedError | None = None
        self.snapshots = 0
        self.segments_released = 0
        self.engine.start()

    # -- steps ----------------------------------------------------------------------------------------------------

    def propose(self, step: Step, done: Callable[[bytes | KvError], None]) -> None:
        """Hand in a request."""
        if isinstance(step, Snapshot):
            self.engine.request_snapshot(done)
        else:
            kind, raw, message = _serialized(step)
            self.engine.propose(kind, raw, message, done)

    def turn(self) -> bool:
        """Take one turn; False when there was nothing to do."""
        if self.failure is not None:
            return False
        engine = self.engine
        output = engine.ready()
        if output is None:
            return False
        if output.persist is not None:
            for record_type, payload in output.persist.records:
                self._wal.append(record_type, payload)
            batch = self._wal.seal()
            assert batch is not None
            assert self._in_flight is None, "two writes at once"
            self._in_flight = output.persist, batch
            if self.bug is Bug.ACKNOWLEDGE_BEFORE_WRITE:
                engine.persisted(output.persist)
        if output.snapshot is not None:
            self._begin_snapshot(output.snapshot)
        for done, result in engine.apply():
            done(result)
        return True

    def finish_write(self) -> bool:
        """Carry out the write under way; False when there is none."""
        if self._in_flight is None or self.failure is not None:
            return False
        persist, batch = self._in_flight
        self._in_flight = None
        try:
            position = self._wal.write(batch)
        except StorageFailedError as error:
            self._fail(error)
            return True
        if persist.first_entry_index:
            self._note_position(persist.first_entry_index, position)
        if persist.marker_index:
            segments = self._wal.segment_count
            if self.bug is Bug.RELEASE_TOO_MUCH:
                self._wal.release_before(self._wal.position)
            else:
                self._release_log(persist.marker_index)
            self.segments_released += segments - self._wal.segment_count
        if self.bug is not Bug.ACKNOWLEDGE_BEFORE_WRITE:
            self.engine.persisted(persist)
        return True

    def _begin_snapshot(self, order: SnapshotOrder) -> None:
        assert self._saving is None, "two snapshots at once"
        if self.bug is Bug.MARKER_BEFORE_SNAPSHOT:
            self.engine.snapshot_saved(order, 0)
        try:
            self._saving = order, self._snapshotter.create(order.index, order.term)
        except StorageFailedError as error:
            self.engine.snapshot_failed(KvError(str(error)))

    def save_chunk(self) -> bool:
        """Write the next chunk of the snapshot under way, or complete it; False when there is none."""
        if self._saving is None or self.failure is not None:
            return False
        order, writer = self._saving
        try:
            chunk = next(order.chunks, None)
            if chunk is not None:
                writer.write(chunk)
                return True
            self._saving = None
            info = writer.commit()
        except StorageFailedError as error:
            self._saving = None
            writer.abort()
            self.engine.snapshot_failed(KvError(str(error)))
            return True
        self.snapshots += 1
        if self.bug is not Bug.MARKER_BEFORE_SNAPSHOT:
            self.engine.snapshot_saved(order, info.size_bytes)
        return True

    def tick(self) -> None:
        """Let time pass."""
        self._now += 0.1
        self.engine.tick(self._now)

    def settle(self) -> None:
        """Take steps until nothing is left to do."""
        for _ in range(TURNS_MAX):
            if not (self.turn() or self.finish_write() or self.save_chunk() or self.engine.work()):
                return
        raise AssertionError("the member does not come to rest")

    def _fail(self, error: StorageFailedError) -> None:
        self.failure = error
        self.engine.stop()

    # -- what it holds ----------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Answer what a client would find."""
        machine = self.engine.machine
        store = machine.watchable.store
        lessor = machine.lessor
        leases = []
        for lease in sorted(lessor.leases()):
            left = lessor.time_to_live(lease, self._now, keys=True)
            leases.append((lease, left.granted, tuple(left.keys)))
        return State(store.revision, max(store.compact_revision, 0), self.key_values(), tuple(leases))

    def hash(self) -> tuple[int, int, int]:
        """Answer the hash of all history that is left."""
        return self.engine.machine.watchable.store.hash_kv()

    def key_values(self, revision: int = 0) -> tuple[KeyValue, ...]:
        """Answer all keys, also of the past."""
        request = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", revision=revision)
        answer = rpc_pb2.RangeResponse.FromString(self.engine.machine.range(request))
        return tuple(_key_value(kv) for kv in answer.kvs)


def _key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


# -- a run, and what it should come to --------------------------------------------------------------------------------


@dataclass(slots=True)
class Book:
    """The model's side of a run: the state after each step, and the keys at each revision."""

    steps: list[Step] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    at_revision: dict[int, tuple[KeyValue, ...]] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    leases: dict[int, int] = field(default_factory=dict)
    compacted: int = 0

    def __post_init__(self) -> None:
        self._enter()

    @classmethod
    def replay(cls, book: Book, count: int) -> Book:
        """Answer a book of another's first steps only."""
        again = cls()
        for step in book.steps[:count]:
            again.carry_out(step)
        return again

    def carry_out(self, step: Step) -> None:
        """Enter a step."""
        self.steps.append(step)
        match step:
            case Grant(lease, ttl):
                self.leases[lease] = ttl
            case Compaction(revision):
                self.compacted = revision
            case Request():
                self.model.run(step)
                for operation in step.success:
                    if isinstance(operation, Revoke):
                        del self.leases[operation.lease]
        self._enter()

    def _enter(self) -> None:
        kvs = self.model.find(b"\0", b"\0")
        self.at_revision[self.model.revision] = kvs
        leases = tuple(
            (lease, ttl, tuple(kv.key for kv in kvs if kv.lease == lease)) for lease, ttl in sorted(self.leases.items())
        )
        self.states.append(State(self.model.revision, self.compacted, kvs, leases))


def random_step(rng: Random, number: int, book: Book) -> Step:
    """Any step that the model accepts."""
    value = (b"value %d " % number) * rng.choice((1, 1, 3, 30))
    key, other = rng.sample(KEYS, 2)
    lease = rng.choice([0, *book.leases])
    kind = rng.random()
    if kind < 0.4:
        return Request((Put(key, value, lease),))
    if kind < 0.5:
        return Request((Delete(key, rng.choice((b"", b"", b"e"))),))
    if kind < 0.7:
        compare = Compare(key, "version", rng.randrange(3))
        return Request((Put(key, value), Put(other, value, lease)), (compare,), (Delete(key), Get(b"a", b"z")))
    if kind < 0.8:
        return Grant(number + 1, 1000 + number)
    if kind < 0.86 and book.leases:
        return Request((Revoke(rng.choice(sorted(book.leases))),))
    if kind < 0.92 and book.model.revision > book.compacted + 2:
        return Compaction(rng.randrange(book.compacted + 1, book.model.revision + 1))
    if kind < 0.95:
        return Snapshot()
    return Request((Put(key, value),))


def record_run(member: Member, *, seed: int, steps: int, book: Book) -> None:
    """Run a member with random steps in random order, with marks ``("proposed", n)`` and ``("answered", n)``.

    n is the number of the book's state in which the request is carried out. The answer to a snapshot promises nothing
    about writes that were not answered themselves, so it is not marked. Ends early when the disk fails.
    """
    rng = Random(seed)
    fs = member.fs

    def answered(number: int) -> Callable[[bytes | KvError], None]:
        def done(result: bytes | KvError) -> None:
            if isinstance(book.steps[number - 1], Snapshot) or member.failure is not None:
                return
            assert isinstance(result, bytes), result
            fs.mark(("answered", number))

        return done

    member.settle()
    for _ in range(steps):
        for _ in range(rng.choice((1, 1, 2, 5))):
            step = random_step(rng, len(book.states), book)
            book.carry_out(step)
            number = len(book.states) - 1
            fs.mark(("proposed", number))
            member.propose(step, answered(number))
        for _ in range(rng.randrange(1, 6)):
            action = rng.random()
            if action < 0.45:
                member.turn()
            elif action < 0.75:
                member.finish_write()
            elif action < 0.9:
                member.save_chunk()
            elif action < 0.95:
                member.engine.work()
            else:
                member.tick()
            if member.failure is not None:
                return
    member.settle()


def window(marks: Sequence[object], start: int = 0) -> tuple[int, int]:
    """Answer which states a recovery may give, after these marks: from the last answered to the last proposed."""
    answered = proposed = start
    for mark in marks:
        if isinstance(mark, tuple):
            what, number = mark
            if what == "answered":
                answered = max(answered, number)
            else:
                proposed = max(proposed, number)
    return answered, proposed


def check_recovery(
    image: Image | SimFileSystem, book: Book, bounds: tuple[int, int], *, bug: Bug | None = None
) -> tuple[Member, int]:
    """Start a member from what a crash left, and judge what it holds.

    Returns:
        The member, and the number of the state that it holds.

    Raises:
        AssertionError: it holds less than was answered, more than was proposed, or anything else.
        StartupError: it does not start.
    """
    fs = image if isinstance(image, SimFileSystem) else SimFileSystem(image)
    member = Member(fs, seed=1, bug=bug)
    member.settle()
    assert member.failure is None
    assert member.engine.reads_are_local, "it does not serve"
    found = member.state()
    first, last = bounds
    number = next((at for at in range(last, first - 1, -1) if book.states[at] == found), None)
    if number is None:
        near = [at for at, state in enumerate(book.states) if state.revision == found.revision]
        raise AssertionError(f"recovered to {found}, expected one of the states {first}..{last}; nearest are {near}")
    compacted = max(found.compacted, 1)
    for revision in {compacted, (compacted + found.revision) // 2, found.revision - 1}:
        if compacted <= revision < found.revision:
            assert member.key_values(revision) == book.at_revision[revision], f"history at {revision} differs"
    return member, number


@contextlib.contextmanager
def without_sync(fs: SimFileSystem) -> Iterator[None]:
    """Lets no write become durable by itself: what a forgotten flag would do."""
    apply = fs.apply
    with mock.patch.object(fs, "apply", lambda operation: None if operation[0] == "sync_range" else apply(operation)):
        yield
