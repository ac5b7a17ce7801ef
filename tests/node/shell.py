"""A deterministic shell for the engine: no asyncio, no disk, one step at a time.

:class:`Shell` drives a real Raft core and a real state machine. It keeps what was written and is durable, checks the
rules of the engine's turns at every step (one write at a time, everything that waited goes into the next one), and
counts the answers. Ticks take a tenth of a second.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from google.protobuf.message import Message as Request

from kvserver.errors import KvError
from kvserver.node import kinds, records
from kvserver.node.answers import HeaderEncoder
from kvserver.node.engine import Engine, EngineSettings, Persist, SnapshotOrder
from kvserver.node.machine import Result, StateMachine
from kvserver.node.membership import Member
from kvserver.proto import rpc_pb2 as pb
from kvserver.raft import Config, Entry, HardState, InitialState, RawNode, Snapshot

MEMBER = 7
CLUSTER = 99
TURNS_MAX = 10_000

SETTINGS = EngineSettings(
    name="n",
    cluster_version="3.5.0",
    snapshot_count=1_000_000,
    snapshot_catchup_entries=20,
    request_timeout_ticks=50,
    lease_revokes_per_tick=3,
    election_timeout_seconds=1.0,
    quota_bytes=1 << 30,
)

_KINDS = {
    pb.PutRequest: kinds.PUT,
    pb.DeleteRangeRequest: kinds.DELETE_RANGE,
    pb.TxnRequest: kinds.TXN,
    pb.CompactionRequest: kinds.COMPACT,
    pb.LeaseGrantRequest: kinds.LEASE_GRANT,
    pb.LeaseRevokeRequest: kinds.LEASE_REVOKE,
    pb.AlarmRequest: kinds.ALARM,
}


class Ticket:
    """The completion of one request; complains when it is called twice."""

    def __init__(self, shell: Shell, name: object = None) -> None:
        self.name = name
        self._shell = shell
        self._results: list[Result | None] = []

    def __call__(self, result: Result | None) -> None:
        assert not self._results, f"{self.name} was answered twice: {self._results[0]!r}, {result!r}"
        self._results.append(result)
        self._shell.answered.append(self)

    @property
    def done(self) -> bool:
        return bool(self._results)

    @property
    def result(self) -> Result | None:
        (result,) = self._results
        return result

    def answer(self, kind: type[Request]) -> Request:
        """The response message, if it is one."""
        assert isinstance(self.result, bytes), self.result
        return kind.FromString(self.result)


class Shell:
    """One member, alone in its cluster."""

    def __init__(
        self,
        settings: EngineSettings = SETTINGS,
        *,
        entries: list[Entry] | None = None,
        hard_state: HardState | None = None,
        snapshot: list[bytes] | None = None,
        started: bool = True,
        **changes: object,
    ) -> None:
        settings = replace(settings, **changes)  # type: ignore[arg-type]
        self.machine = new_machine()
        if snapshot is not None:
            self.machine.restore(iter(snapshot), "the snapshot")
        machine = self.machine
        initial = InitialState(
            hard_state or HardState(),
            Snapshot(machine.applied_index, machine.applied_term, machine.conf_state),
            entries or [],
        )
        self.raft = RawNode(Config(id=MEMBER, rng=Random(0)), initial)
        if not self.raft.last_index():
            member = Member(MEMBER, ("http://127.0.0.1:2380",)).message()
            self.raft.bootstrap([(MEMBER, member.SerializeToString())])
        self.wakes = 0
        self.engine = Engine(self.raft, machine, settings, member_id=MEMBER, wake=self._woken)
        self.writing: Persist | None = None
        self.durable: list[tuple[int, bytes]] = []
        self.writes = 0
        self.snapshot: SnapshotOrder | None = None
        self.snapshots: list[tuple[int, list[bytes]]] = []
        self.answered: list[Ticket] = []
        self.now = 0.0
        if started:
            self.engine.start()
            self.settle()

    def _woken(self) -> None:
        self.wakes += 1

    # -- requests ---------------------------------------------------------------------------------------------------

    def propose(self, request: Request, *, parsed: bool = True) -> Ticket:
        """Propose a write."""
        ticket = Ticket(self, request)
        raw = request.SerializeToString()
        self.engine.propose(_KINDS[type(request)], raw, request if parsed else None, ticket)
        return ticket

    def put(self, key: bytes, value: bytes = b"v", lease: int = 0) -> Ticket:
        return self.propose(pb.PutRequest(key=key, value=value, lease=lease))

    def do(self, request: Request) -> Result | None:
        """Propose a write and see it through."""
        ticket = self.propose(request)
        self.settle()
        return ticket.result

    def read(self) -> Ticket:
        ticket = Ticket(self, "read")
        self.engine.read(ticket)
        return ticket

    def defragment(self) -> Ticket:
        ticket = Ticket(self, "defragment")
        self.engine.request_snapshot(ticket)
        return ticket

    # -- steps ------------------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Take one turn; False when there was nothing to do."""
        output = self.engine.ready()
        if output is None:
            return False
        if output.persist is not None:
            assert self.writing is None, "two writes at once"
            self.writing = output.persist
        if output.snapshot is not None:
            assert self.snapshot is None, "two snapshots at once"
            self.snapshot = output.snapshot
        for done, result in self.engine.apply():
            done(result)
        return True

    def turns(self) -> None:
        """Take turns as long as there is something to do without the disk."""
        for _ in range(TURNS_MAX):
            if not self.turn():
                return
        raise AssertionError("the engine does not come to rest")

    def written(self) -> bool:
        """Let the write under way be durable; False when there is none."""
        persist, self.writing = self.writing, None
        if persist is None:
            return False
        self.writes += 1
        self.durable += persist.records
        self.engine.persisted(persist)
        return True

    def saved(self) -> bool:
        """Let the snapshot under way be saved; False when there is none."""
        order, self.snapshot = self.snapshot, None
        if order is None:
            return False
        chunks = list(order.chunks)
        self.snapshots.append((order.index, chunks))
        self.engine.snapshot_saved(order, sum(map(len, chunks)))
        return True

    def settle(self, *, work: bool = True) -> None:
        """Take steps until nothing is left to do."""
        for _ in range(TURNS_MAX):
            if not (self.turn() or self.written() or self.saved() or (work and self.engine.work())):
                return
        raise AssertionError("the engine does not come to rest")

    def tick(self, count: int = 1, *, settled: bool = True) -> None:
        """Let ticks of a tenth of a second pass."""
        for _ in range(count):
            self.now += 0.1
            self.engine.tick(self.now)
            if settled:
                self.settle()

    # -- what came of it --------------------------------------------------------------------------------------------

    def durable_entries(self) -> list[Entry]:
        """The entries written so far; later ones replace earlier ones."""
        entries: dict[int, Entry] = {}
        for record_type, payload in self.durable:
            if record_type == records.ENTRIES:
                for entry in records.decode_entries(payload):
                    entries[entry.index] = entry
        return [entries[index] for index in sorted(entries)]

    def durable_hard_state(self) -> HardState:
        """The last hard state written."""
        return [records.decode_hard_state(payload) for kind, payload in self.durable if kind == records.HARD_STATE][-1]

    def markers(self) -> list[int]:
        """The indexes of the snapshots that count."""
        return [records.decode_marker(payload)[0] for kind, payload in self.durable if kind == records.SNAPSHOT_MARKER]

    def value(self, key: bytes) -> bytes | None:
        """What a key holds now."""
        answer = pb.RangeResponse.FromString(self.machine.range(pb.RangeRequest(key=key)))
        return answer.kvs[0].value if answer.kvs else None

    def data_of(self, ticket: Ticket) -> bytes:
        """What stands in the log for a proposal."""
        assert isinstance(ticket.name, Request)
        return _KINDS[type(ticket.name)] + ticket.name.SerializeToString()


def new_machine() -> StateMachine:
    """A state machine without state."""
    return StateMachine(HeaderEncoder(CLUSTER, MEMBER), lease_ttl_min_seconds=2, progress_interval_ticks=100)


def failed(ticket: Ticket, error: type[KvError]) -> bool:
    """Whether a request was answered by this error."""
    return ticket.done and type(ticket.result) is error
