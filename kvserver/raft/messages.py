"""The values that go into and come out of the core: entries, messages, states, and ``Ready``.

Everything here is immutable by agreement. Entries and messages are shared between the log, several readies and the
network without copies, so nobody may change one after it was made. Ids are positive 64-bit numbers, 0 means nobody;
indexes and terms start at 1, 0 means none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class EntryType(IntEnum):
    """What an entry's data is; stands on disk, never renumber."""

    NORMAL = 0
    CONF_CHANGE = 1


class Entry:
    """One log entry. Hot: one is made for every client write (benchmark ``put``).

    A plain ``__slots__`` class, by measurement (Python 3.11, ns to make one and to read three fields): tuple 95 and 22,
    NamedTuple 650 and 80 (235 and 80 through ``tuple.__new__``), slots class 375 and 29. An entry is made once and read
    in at least three places (record, apply, append), and ``entry[3]`` reads badly: the slots class wins.
    """

    __slots__ = ("data", "index", "term", "type")

    def __init__(self, term: int, index: int, type: int, data: bytes) -> None:
        self.term = term
        self.index = index
        self.type = type
        self.data = data

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return (
            self.term == other.term
            and self.index == other.index
            and self.type == other.type
            and self.data == other.data
        )

    def __hash__(self) -> int:
        return hash((self.term, self.index))

    def __repr__(self) -> str:
        return f"Entry(term={self.term}, index={self.index}, type={self.type}, data={self.data!r})"


@dataclass(frozen=True, slots=True)
class HardState:
    """What must survive a crash besides entries (Raft paper, figure 2).

    ``commit`` is a hint that saves time after a restart; term and vote are promises.
    """

    term: int = 0
    vote: int = 0
    commit: int = 0


class Role(IntEnum):
    """What a member is at the moment."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


@dataclass(frozen=True, slots=True)
class SoftState:
    """What is worth knowing but need not be kept."""

    leader_id: int = 0
    role: Role = Role.FOLLOWER


@dataclass(frozen=True, slots=True)
class ConfState:
    """A configuration as it goes into snapshots; all ids sorted.

    Attributes:
        voters: the (incoming) voters.
        learners: receive the log but do not count.
        voters_outgoing: the voters being left, while the configuration is joint; else empty.
        learners_next: outgoing voters that become learners when the joint configuration is left.
        auto_leave: the leader proposes to leave the joint configuration by itself.
    """

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after ``index``, by name.

    ``data`` is opaque: small states and tests carry the state itself, everybody else sends it beside the messages and
    leaves ``data`` empty.
    """

    index: int = 0
    term: int = 0
    conf_state: ConfState = ConfState()
    data: bytes = b""


class MessageType(IntEnum):
    """What a message says; stands on the wire, never renumber.

    The fields that each type uses, besides ``to_id``, ``from_id`` and ``term``:

    ======================= =======================================================================================
    APPEND                  entries after (index, log_term), commit
    APPEND_RESPONSE         index = last matching index; or reject, index = the refused one, reject_hint and log_term
    HEARTBEAT               commit (never beyond what the follower is known to have), context = read round
    HEARTBEAT_RESPONSE      context as received
    VOTE, PRE_VOTE          index and log_term of the last entry, force = leadership is being handed over
    (PRE_)VOTE_RESPONSE     reject; then also index = commit index and log_term = its entry's term
    SNAPSHOT                snapshot
    PROPOSE                 entries (forwarded by a follower; their term and index are not set; term 0)
    READ_INDEX              context (forwarded by a follower; term 0)
    READ_INDEX_RESPONSE     index, context
    TRANSFER_LEADER         index = whom to hand over to (forwarded by a follower; term 0)
    TIMEOUT_NOW             campaign at once
    ======================= =======================================================================================
    """

    APPEND = 1
    APPEND_RESPONSE = 2
    HEARTBEAT = 3
    HEARTBEAT_RESPONSE = 4
    VOTE = 5
    VOTE_RESPONSE = 6
    PRE_VOTE = 7
    PRE_VOTE_RESPONSE = 8
    SNAPSHOT = 9
    PROPOSE = 10
    READ_INDEX = 11
    READ_INDEX_RESPONSE = 12
    TRANSFER_LEADER = 13
    TIMEOUT_NOW = 14


@dataclass(slots=True)
class Message:
    """What one member says to another; :class:`MessageType` tells which fields count.

    Not frozen, because that more than doubles what it costs to make one, and a write on three members takes eight.
    """

    type: MessageType
    to_id: int
    from_id: int
    term: int = 0
    index: int = 0
    log_term: int = 0
    commit: int = 0
    reject: bool = False
    reject_hint: int = 0
    force: bool = False
    context: bytes = b""
    entries: list[Entry] = field(default_factory=list)
    snapshot: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read is linearizable once the state is applied up to ``index``."""

    index: int
    context: bytes


@dataclass(frozen=True, slots=True)
class InitialState:
    """What a member has on disk when it starts.

    Attributes:
        hard_state: the last one written.
        snapshot: index, term and configuration of the state that the application starts from; index 0 for none. A new
            cluster may be given its voters by ``Snapshot(0, 0, ConfState(voters=...))``; then every member that ever
            joins has to begin with the same, since it is not in the log. (``RawNode.bootstrap`` puts it there.)
        entries: those after the snapshot, without gaps.
    """

    hard_state: HardState = HardState()
    snapshot: Snapshot = Snapshot()
    entries: tuple[Entry, ...] | list[Entry] = ()


class Ready:
    """What the caller has to do now. Hot: one for every batch (benchmark ``put``).

    Order, after etcd-io/raft with asynchronous storage:

    1. ``messages`` may leave at once, before anything is durable.
    2. ``snapshot``, ``hard_state`` and ``entries`` are written, in one batch in this order. (If a crash can leave part
       of a batch, then a first part: a commit index beyond the last entry found is lowered to it.) Entries replace
       those of the same and higher indexes. If ``must_sync`` is false, the write counts as durable without a sync.
    3. When all of it is durable: ``messages_after_persist`` leave, and ``RawNode.persisted(ready)`` is called; not
       necessarily in this order. This holds for every ready for which ``needs_persist`` is true, even if it has
       nothing to write.
    4. ``committed_entries`` can be applied at any time after they were handed out (they are durable here), in order;
       then ``RawNode.applied_to`` is called. A snapshot is loaded first, once durable, and reported by
       ``applied_to(snapshot.index)``: no committed entries are handed out between it and that call.

    Attributes:
        hard_state: to write, or None if it did not change.
        entries: to write.
        snapshot: to write and to load, or None.
        committed_entries: to apply, bounded by count and bytes.
        messages: to send now.
        messages_after_persist: to send once this ready is durable: votes and acknowledgements.
        read_states: reads that became linearizable at an index.
        soft_state: role and leader, or None if they did not change.
        must_sync: whether the write has to be synced before anything else happens.
    """

    __slots__ = (
        "committed_entries",
        "entries",
        "hard_state",
        "messages",
        "messages_after_persist",
        "must_sync",
        "read_states",
        "snapshot",
        "soft_state",
    )

    def __init__(self) -> None:
        self.hard_state: HardState | None = None
        self.entries: list[Entry] = []
        self.snapshot: Snapshot | None = None
        self.committed_entries: list[Entry] = []
        self.messages: list[Message] = []
        self.messages_after_persist: list[Message] = []
        self.read_states: list[ReadState] = []
        self.soft_state: SoftState | None = None
        self.must_sync = False

    @property
    def needs_persist(self) -> bool:
        """Whether ``RawNode.persisted`` has to be called with this ready."""
        return bool(self.entries or self.hard_state or self.snapshot or self.messages_after_persist)
