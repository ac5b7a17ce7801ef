"""A cluster of cores in memory, under a seeded storm of faults, with Raft's invariants checked after every step.

One seed is one run. An event is a tick of one member, a turn of one member (its ``ready``), a finished disk write, the
delivery of one message (or its loss, doubling, overtaking), a crash, a restart, a partition, a client's wish. Members
tick on their own, so clocks drift without bound. Disks lose what was not reported durable, wholly or in part.

What is checked (figure 3 of the paper, and what the surface of the core promises):

- election safety: one leader a term; a member grants one vote a term, crashes or not
- leader append-only: a leader drops nothing of its own log
- log matching: an entry is named by (index, term), and so is everything before it
- leader completeness: a new leader has all that was committed in earlier terms
- state machine safety: the same entry is applied at an index everywhere, and leads to the same state
- durability: when an index is first committed, a quorum has it on disk
- monotony: term, commit, applied of a member; match of a leader's members; next > match
- reads: an index is never below what was committed anywhere when the read was asked for
- a configuration never falls back behind one the member has acted on
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvserver.raft import (
    ConfChange,
    ConfChangeError,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    Config,
    ConfState,
    Entry,
    HardState,
    InitialState,
    Message,
    MessageType,
    ProgressState,
    ProposalDroppedError,
    RawNode,
    Ready,
    Role,
    Snapshot,
)
from kvserver.raft.confchange import apply_change
from kvserver.raft.quorum import VoteResult, joint_vote

FIRST_VOTERS = (1, 2, 3)
FIRST_CONF = ConfState(voters=FIRST_VOTERS)


class InvariantBrokenError(AssertionError):
    """The run found a violation."""


@dataclass
class Options:
    """What happens in a run, drawn from its seed."""

    members: int = 5
    pre_vote: bool = True
    check_quorum: bool = True
    forward_proposals: bool = False
    loss: float = 0.05
    duplication: float = 0.05
    in_order: bool = False
    crashes: float = 0.004
    partitions: float = 0.01
    membership: float = 0.01
    transfers: float = 0.005
    snapshots: float = 0.02
    slow_apply: bool = False
    ticks: float = 0.1
    deliveries: tuple[int, ...] = (0, 1, 2)
    bootstrap: bool = False
    message_bytes_max: int = 64
    inflight_messages_max: int = 4

    @classmethod
    def draw(cls, rng: random.Random) -> Options:
        """Draw the options of a run: of all kinds, or of one that concentrates on crashes, or on splits."""
        kind = rng.randrange(5)
        if kind == 0:
            return cls(
                members=3,
                pre_vote=False,
                check_quorum=False,
                crashes=0.01,
                partitions=0.03,
                membership=0.0,
                transfers=0.02,
                snapshots=0.0,
                message_bytes_max=1000,
                inflight_messages_max=256,
                ticks=0.3,
                deliveries=(0, 1),
            )
        if kind == 1:
            return cls(
                members=3,
                pre_vote=False,
                check_quorum=False,
                loss=0.0,
                duplication=0.5,
                crashes=0.0,
                partitions=0.02,
                membership=0.0,
                transfers=0.0,
                snapshots=0.0,
                message_bytes_max=1000,
                inflight_messages_max=256,
                ticks=0.2,
            )
        return cls(
            members=rng.choice([3, 4, 5]),
            pre_vote=rng.random() < 0.7,
            check_quorum=rng.random() < 0.7,
            forward_proposals=rng.random() < 0.5,
            loss=rng.choice([0.0, 0.02, 0.1, 0.3]),
            duplication=rng.choice([0.0, 0.05, 0.3]),
            in_order=rng.random() < 0.3,
            crashes=rng.choice([0.0, 0.002, 0.01]),
            partitions=rng.choice([0.0, 0.005, 0.02]),
            membership=rng.choice([0.0, 0.01, 0.03]),
            transfers=rng.choice([0.0, 0.005, 0.02]),
            snapshots=rng.choice([0.0, 0.02, 0.05]),
            slow_apply=rng.random() < 0.3,
            bootstrap=rng.random() < 0.3,
            ticks=rng.choice([0.05, 0.1, 0.3]),
            deliveries=rng.choice([(0, 1), (0, 1, 2), (0, 0, 0, 10)]),
            message_bytes_max=rng.choice([16, 64, 1000]),
            inflight_messages_max=rng.choice([1, 4, 256]),
        )


@dataclass
class Disk:
    """What a member finds when it starts again."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: Snapshot = field(default_factory=Snapshot)
    entries: list[Entry] = field(default_factory=list)

    def last(self) -> int:
        return self.entries[-1].index if self.entries else self.snapshot.index

    def write_entries(self, entries: list[Entry]) -> None:
        keep = entries[0].index - self.snapshot.index - 1
        if keep < 0:
            entries = entries[-keep:]
            keep = 0
        if entries:
            assert keep <= len(self.entries), "a gap in what is written"
            self.entries[keep:] = entries

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """As recovery does: entries after the snapshot count only if they follow it."""
        following = [entry for entry in self.entries if entry.index > snapshot.index]
        known = {entry.index: entry.term for entry in self.entries}
        if known.get(snapshot.index) != snapshot.term and (self.snapshot.index, self.snapshot.term) != (
            snapshot.index,
            snapshot.term,
        ):
            following = []
        self.snapshot, self.entries = snapshot, following

    def holds(self, index: int, term: int) -> bool:
        if index <= self.snapshot.index:
            return True
        at = index - self.snapshot.index - 1
        return at < len(self.entries) and self.entries[at].term == term

    def recover(self) -> InitialState:
        last_term = self.entries[-1].term if self.entries else self.snapshot.term
        state = self.hard_state
        return InitialState(
            HardState(
                max(state.term, last_term),
                state.vote if state.term >= last_term else 0,
                max(self.snapshot.index, min(state.commit, self.last())),
            ),
            self.snapshot,
            list(self.entries),
        )


class Member:
    """One core with its disk and its little state machine (a checksum over all it applied)."""

    def __init__(self, member_id: int) -> None:
        self.id = member_id
        self.disk = Disk()
        self.node: RawNode | None = None
        self.writing: Ready | None = None
        self.to_apply: list[Entry] = []
        self.applied = 0
        self.digest = 0
        self.conf_index = 0
        self.seen: tuple[int, int, int] = (0, 0, 0)
        self.checked: tuple[int, ...] = ()
        self.last_as_leader: tuple[int, int] = (0, 0)
        self.matches: dict[int, int] = {}
        self.conf_index_ever = 0
        self.rounds = 0


class Simulation:
    """A run; see the module's text."""

    def __init__(
        self,
        seed: int,
        *,
        options: Options | None = None,
        make_node: Callable[[Config, InitialState], RawNode] = RawNode,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.options = options or Options.draw(self.rng)
        self._make_node = make_node
        self.members = {number: Member(number) for number in range(1, self.options.members + 1)}
        self.network: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        self.trace = 0
        self.counts: dict[str, int] = {}
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.names: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        self.committed: dict[int, tuple[int, int]] = {}
        self.commit_max = 0
        self.states: dict[int, int] = {0: 0}
        self.confs: dict[int, ConfState] = {0: ConfState() if self.options.bootstrap else FIRST_CONF}
        self.reads: dict[bytes, int] = {}
        self.proposals = 0
        self.quiet = False
        for index in range(1, len(FIRST_VOTERS) + 1):
            if self.options.bootstrap:
                self.committed[index] = (1, 1)
        for member in self.members.values():
            if not self.options.bootstrap:
                member.disk.snapshot = Snapshot(0, 0, FIRST_CONF)
            self.start(member)

    # -- events ---------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Do ``steps`` events of the storm."""
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        """Do one event and check everything."""
        rng, options = self.rng, self.options
        draw = rng.random()
        member = self.members[rng.randrange(1, options.members + 1)]
        if member.node is None:
            if draw < 0.02:
                self.start(member)
        elif rng.random() < options.ticks:
            self.note("tick", member.id)
            member.node.tick()
        elif draw < 0.40:
            self.turn(member)
        elif draw < 0.80:
            self.finish_write(member)
        elif draw < 0.85:
            self.apply(member)
        elif draw < 0.91:
            self.propose(member)
        elif draw < 0.95:
            self.read(member)
        else:
            self.disturb(member)
        self.check(member)
        for _ in range(rng.choice(self.options.deliveries)):
            target = self.deliver()
            if target is not None:
                self.check(target)

    def disturb(self, member: Member) -> None:
        """Perhaps do one of the rare things."""
        rng, options = self.rng, self.options
        draw = rng.random() * 0.05
        for chance, action in (
            (options.crashes, self.crash),
            (options.partitions, self.partition),
            (options.membership, self.change_membership),
            (options.transfers, self.transfer),
            (options.snapshots, self.compact),
            (0.001, self.report_unreachable),
        ):
            if draw < chance:
                action(member)
                return
            draw -= chance

    def note(self, kind: str, *what: object) -> None:
        """Count an event, and put it into the trace's checksum."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.trace = zlib.crc32(repr((kind, *what)).encode(), self.trace)

    def start(self, member: Member) -> None:
        options = self.options
        config = Config(
            id=member.id,
            rng=random.Random(self.rng.getrandbits(32)),
            election_ticks=5,
            heartbeat_ticks=1,
            pre_vote=options.pre_vote,
            check_quorum=options.check_quorum,
            forward_proposals=options.forward_proposals,
            message_bytes_max=options.message_bytes_max,
            inflight_messages_max=options.inflight_messages_max,
            committed_entries_max=7,
            committed_bytes_max=200,
            uncommitted_bytes_max=2000,
        )
        snapshot = member.disk.snapshot
        member.node = self._make_node(config, member.disk.recover())
        if options.bootstrap and member.id in FIRST_VOTERS and member.disk.last() < len(FIRST_VOTERS):
            member.disk = Disk()
            member.node = self._make_node(config, InitialState())
            member.node.bootstrap([(voter, b"") for voter in FIRST_VOTERS])
        member.applied = snapshot.index
        member.digest = int.from_bytes(snapshot.data, "big")
        member.writing = None
        member.to_apply = []
        member.seen = (member.disk.hard_state.term, 0, 0)
        member.checked = ()
        member.last_as_leader = (0, 0)
        member.matches = {}
        self.note("start", member.id, member.node.term, member.node.log.last)

    def crash(self, member: Member) -> None:
        """Stop a member; what it was writing is lost, kept, or kept in part."""
        ready = member.writing
        fate = self.rng.randrange(4)
        self.note("crash", member.id, fate)
        if ready is not None and fate:
            pieces: list[Callable[[], None]] = []
            disk = member.disk
            if ready.snapshot is not None:
                snapshot = ready.snapshot
                pieces.append(lambda: disk.write_snapshot(snapshot))
            if ready.hard_state is not None:
                hard_state = ready.hard_state
                pieces.append(lambda: setattr(disk, "hard_state", hard_state))
            if ready.entries:
                cut = self.rng.randrange(len(ready.entries)) + 1 if fate == 1 else len(ready.entries)
                entries = ready.entries[:cut]
                pieces.append(lambda: disk.write_entries(entries))
            if fate == 2:
                del pieces[self.rng.randrange(len(pieces) + 1) :]
            for piece in pieces:
                piece()
        member.node = None
        member.writing = None

    def drop(self, at: int) -> None:
        self.report_snapshot(self.network.pop(at), ok=False)

    def report_snapshot(self, message: Message, *, ok: bool) -> None:
        """Whoever sends a snapshot finds out whether it arrived."""
        sender = self.members[message.from_id].node
        if message.type is MessageType.SNAPSHOT and sender is not None:
            sender.report_snapshot(message.to_id, ok=ok)

    def deliver(self) -> Member | None:
        """Deliver, lose or double a message; answer who got it."""
        network, rng = self.network, self.rng
        if not network:
            return None
        at = 0 if self.options.in_order or self.quiet else rng.randrange(len(network))
        message = network[at]
        draw = rng.random()
        if self.quiet or draw >= self.options.duplication:
            del network[at]
        target = self.members[message.to_id]
        lost = (message.from_id, message.to_id) in self.cut or target.node is None
        lost = lost or (not self.quiet and rng.random() < self.options.loss)
        self.note("lost" if lost else "deliver", message.type, message.from_id, message.to_id, message.term)
        if not lost:
            assert target.node is not None
            node = target.node
            before = (node.log.last, node.log.last_term, node.log.commit)
            is_late = message.term and message.term < node.term
            node.step(message)
            after = (node.log.last, node.log.last_term, node.log.commit)
            self.ensure(not is_late or before == after, "a message of an earlier term changed something")
        self.report_snapshot(message, ok=not lost)
        return None if lost else target

    def partition(self, member: Member) -> None:
        rng = self.rng
        ids = list(self.members)
        self.cut.clear()
        kind = rng.randrange(6)
        if kind == 0:  # one cut off
            self.cut = {(a, b) for a in ids for b in ids if a != b and member.id in (a, b)}
        elif kind == 1:  # halves
            half = set(rng.sample(ids, len(ids) // 2))
            self.cut = {(a, b) for a in ids for b in ids if (a in half) != (b in half)}
        elif kind == 2:  # ring
            size = len(ids)
            self.cut = {(a, b) for a in ids for b in ids if a != b and (a - b) % size not in (1, size - 1)}
        elif kind == 3:  # one way
            self.cut = {(a, b) for a in ids for b in ids if a != b and a == member.id}
        elif kind == 4:  # some links
            self.cut = {(a, b) for a in ids for b in ids if a != b and rng.random() < 0.3}
        self.note("partition", kind, len(self.cut))

    def report_unreachable(self, member: Member) -> None:
        assert member.node is not None
        member.node.report_unreachable(self.rng.randrange(1, self.options.members + 1))

    def propose(self, member: Member) -> None:
        if member.node is None:
            return
        count = self.rng.choice([1, 1, 1, 5])
        datas = []
        for _ in range(count):
            self.proposals += 1
            datas.append(b"%d" % self.proposals + b"." * self.rng.randrange(12))
        try:
            index = member.node.propose(datas[0]) if count == 1 else member.node.propose_batch(datas)
        except ProposalDroppedError:
            return
        self.note("propose", member.id, index)

    def read(self, member: Member) -> None:
        if member.node is None or not member.node.can_read_index():
            return
        member.rounds += 1
        context = b"%d-%d-%d" % (member.id, member.rounds, self.rng.getrandbits(30))
        self.reads[context] = self.commit_max
        self.note("read", member.id)
        member.node.read_index(context)

    def change_membership(self, member: Member) -> None:
        node, rng = member.node, self.rng
        assert node is not None
        # Mostly at a leader: elsewhere the wish is refused or forwarded.
        leaders = [other.node for other in self.members.values() if other.node and other.node.is_leader]
        if leaders and rng.random() < 0.8:
            node = rng.choice(leaders)
        changes = []
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            kind = rng.choice([ConfChangeType.ADD_NODE, ConfChangeType.REMOVE_NODE, ConfChangeType.ADD_LEARNER_NODE])
            changes.append(ConfChangeSingle(kind, rng.randrange(1, self.options.members + 1)))
        change = ConfChange(tuple(changes), rng.choice(list(ConfChangeTransition)))
        if not changes:
            change = ConfChange()
        try:
            node.propose_conf_change(change)
        except (ProposalDroppedError, ConfChangeError):
            return
        self.note("conf", node.id, repr(change))

    def transfer(self, member: Member) -> None:
        assert member.node is not None
        target = self.rng.randrange(1, self.options.members + 1)
        self.note("transfer", member.id, target)
        member.node.transfer_leader(target)

    def compact(self, member: Member) -> None:
        """Save the state, and drop the log up to somewhere before it."""
        node = member.node
        assert node is not None
        if node.log.applied != member.applied or node.log.applied <= member.disk.snapshot.index:
            return
        if member.applied > member.disk.last() or node.log.snapshot is not None:
            return
        term = node.log.term(member.applied)
        data = member.digest.to_bytes(4, "big")
        member.disk.write_snapshot(Snapshot(member.applied, term, node.conf_state, data))
        node.compact(self.rng.randrange(node.log.offset, member.applied + 1))
        self.note("compact", member.id, node.log.offset)

    # -- one member's turn ----------------------------------------------------------------------------------------

    def turn(self, member: Member) -> None:
        node = member.node
        if node is None or not node.has_ready():
            return
        ready = node.ready()
        self.note("turn", member.id, len(ready.entries), len(ready.committed_entries), len(ready.messages))
        for message in ready.messages:
            self.ensure(
                message.type
                not in (MessageType.APPEND_RESPONSE, MessageType.VOTE_RESPONSE, MessageType.PRE_VOTE_RESPONSE),
                "a promise leaves before it is durable",
            )
            if message.snapshot is not None:
                self.ensure(message.snapshot.index == member.applied, "a snapshot is not of the state as it is")
                message = replace(message, snapshot=replace(message.snapshot, data=member.digest.to_bytes(4, "big")))
            self.network.append(message)
        for state in ready.read_states:
            self.note("read state", member.id, state.index)
            self.ensure(state.index >= self.reads[state.context], "a read is stale")
        if ready.needs_persist:
            self.ensure(member.writing is None, "two readies wait to be persisted")
            member.writing = ready
        else:
            self.ensure(not ready.messages_after_persist, "a promise without a ready to persist")
        member.to_apply.extend(ready.committed_entries)
        if not self.options.slow_apply or self.quiet:
            self.apply(member)
        while len(self.network) > 300:
            self.drop(self.rng.randrange(len(self.network)))

    def finish_write(self, member: Member) -> None:
        node, ready = member.node, member.writing
        if node is None or ready is None:
            return
        self.note("persisted", member.id)
        disk = member.disk
        member.writing = None
        if ready.snapshot is not None:
            disk.write_snapshot(ready.snapshot)
        if ready.entries:
            disk.write_entries(ready.entries)
        if ready.hard_state is not None:
            disk.hard_state = ready.hard_state
        for message in ready.messages_after_persist:
            if message.type is MessageType.VOTE_RESPONSE and not message.reject:
                self.grant(member.id, message.term, message.to_id)
            if message.type is MessageType.VOTE:
                self.grant(member.id, message.term, member.id)
            self.network.append(message)
        node.persisted(ready)
        if ready.snapshot is not None:
            self.apply(member)
            if ready.snapshot.index > member.applied:
                member.applied = ready.snapshot.index
                member.digest = int.from_bytes(ready.snapshot.data, "big")
                self.state_is(member.applied, member.digest)
                node.applied_to(member.applied)

    def grant(self, voter: int, term: int, candidate: int) -> None:
        self.ensure(self.votes.setdefault((voter, term), candidate) == candidate, "two votes in one term")

    def apply(self, member: Member) -> None:
        node = member.node
        if node is None or not member.to_apply:
            return
        entries, member.to_apply = member.to_apply, []
        changes = []
        for entry in entries:
            self.ensure(entry.index == member.applied + 1, "an entry is applied out of order")
            self.ensure(member.disk.holds(entry.index, entry.term), "an entry is applied that is not durable here")
            member.applied = entry.index
            member.digest = zlib.crc32(entry.data, member.digest)
            self.state_is(entry.index, member.digest)
            if entry.type:
                self.ensure(member.disk.hard_state.commit >= entry.index, "a change takes effect before it is kept")
                change = ConfChange.decode(entry.data)
                changes.append(change)
                self.confs.setdefault(entry.index, self.conf_after(change, entry.index - 1))
        if self.rng.random() < 0.5:
            node.applied_to(member.applied)
            for change in changes:
                node.apply_conf_change(change)
        else:
            for change in changes:
                node.apply_conf_change(change)
            node.applied_to(member.applied)
        if node.log.applied >= node.log.offset:  # else a newer snapshot came in, its configuration is in force
            self.ensure(node.conf_state == self.conf_at(member.applied), "a member acts on another configuration")

    def conf_at(self, applied: int) -> ConfState:
        """The configuration in force once ``applied`` is applied."""
        return self.confs[max(index for index in self.confs if index <= applied)]

    def conf_after(self, change: ConfChange, applied: int) -> ConfState:
        try:
            return apply_change(self.conf_at(applied), change)
        except ConfChangeError:
            return self.conf_at(applied)

    # -- checks ---------------------------------------------------------------------------------------------------

    def ensure(self, condition: object, message: str) -> None:
        if not condition:
            raise InvariantBrokenError(f"seed {self.seed}: {message}")

    def state_is(self, index: int, digest: int) -> None:
        self.ensure(self.states.setdefault(index, digest) == digest, f"states differ at index {index}")

    def check(self, member: Member) -> None:
        """Check what must hold after every step that a member did."""
        node = member.node
        if node is None:
            return
        log = node.log
        seen = (node.term, log.commit, log.applied)
        if seen != member.seen:
            before = member.seen
            self.ensure(all(a >= b for a, b in zip(seen, before, strict=True)), "term, commit or applied go back")
            member.seen = seen
            for index in range(max(before[1], log.offset) + 1, log.commit + 1):
                self.commit_is(node, index, log.term(index))
        self.ensure(log.applied <= log.handed_committed <= log.commit <= log.last, "the marks are out of order")
        self.ensure(log.stable <= log.handed_stable <= log.last, "the marks are out of order")
        shape = (log.offset, log.last, log.last_term, id(log.entries[-1]) if log.entries else 0)
        if shape != member.checked:
            member.checked = shape
            self.check_log(node)
        if node.role is Role.LEADER:
            self.check_leader(member, node)
        else:
            member.matches = {}

    def commit_is(self, node: RawNode, index: int, term: int) -> None:
        known = self.committed.get(index)
        if known is not None:
            self.ensure(known[0] == term, f"entry {index} is committed with terms {known[0]} and {term}")
            return
        self.committed[index] = (term, node.term)
        self.commit_max = max(self.commit_max, index)
        self.ensure(node.role is Role.LEADER, f"entry {index} is committed first at a member that does not lead")
        holders = {other.id: other.disk.holds(index, term) for other in self.members.values()}
        # By the configuration that the log says is in force; bootstrapped members act on the founding one before.
        state = (
            node.conf_state if self.options.bootstrap and index <= 4 else self.conf_at(self.members[node.id].applied)
        )
        result = joint_vote(state.voters, state.voters_outgoing, holders)
        self.ensure(result is VoteResult.WON, f"entry {index} is committed and not durable at a quorum")

    def check_log(self, node: RawNode) -> None:
        log = node.log
        previous = log.offset_term
        names = self.names
        for position, entry in enumerate(log.entries):
            if entry.index != log.offset + 1 + position:
                self.ensure(False, "an entry stands at a wrong place")
            name = (entry.index, entry.term)
            value = (previous, int(entry.type), entry.data)
            if names.setdefault(name, value) != value:
                self.ensure(False, f"logs do not match at {name}")
            previous = entry.term
        for index in range(log.offset + 1, min(log.commit, log.last) + 1):
            self.ensure(self.committed[index][0] == log.term(index), f"committed entry {index} was lost")

    def check_leader(self, member: Member, node: RawNode) -> None:
        log = node.log
        if self.leaders.setdefault(node.term, node.id) != node.id:
            self.ensure(False, f"two leaders in term {node.term}")
        if member.last_as_leader[0] != node.term:
            self.note("leader", node.id, node.term)
            for index in range(log.offset + 1, self.commit_max + 1):
                term, committed_in = self.committed[index]
                self.ensure(
                    committed_in >= node.term or log.term(index) == term,
                    f"the leader of term {node.term} lacks entry {index}, committed in term {committed_in}",
                )
        else:
            self.ensure(log.last >= member.last_as_leader[1], "a leader dropped entries")
        member.last_as_leader = (node.term, log.last)
        if log.conf_change_index > log.applied:
            unapplied = log.entries[max(log.applied - log.offset, 0) :]
            own = [entry for entry in unapplied if entry.type and entry.term == node.term]
            self.ensure(len(own) <= 1, "a second membership change before the first is applied")
        matches = member.matches
        for other, progress in node._progress.items():
            self.ensure(progress.next > progress.match, "next is not above match")
            self.ensure(progress.match >= matches.get(other, 0), "match goes back")
            if progress.state is ProgressState.SNAPSHOT:
                self.ensure(progress.pending_snapshot <= log.commit, "a snapshot of what is not committed")
        member.matches = {other: progress.match for other, progress in node._progress.items()}

    # -- recovery -------------------------------------------------------------------------------------------------

    def heal(self, ticks_max: int = 300) -> int:
        """End all faults; run until all members have all there is, and then have applied a new proposal.

        Returns:
            How many ticks of each member it took.
        """
        self.quiet = True
        self.cut.clear()
        for member in self.members.values():
            if member.node is None:
                self.start(member)
        # Nothing new is proposed at first: what was lost has to be noticed without that.
        phase = target = target_term = 0
        for ticks in range(ticks_max):
            self.calm_tick()
            leader = max(
                (member.node for member in self.members.values() if member.node and member.node.is_leader),
                key=lambda node: node.term,
                default=None,
            )
            if leader is None:
                continue
            state = leader.conf_state
            members = [self.members[one] for one in {*state.voters, *state.voters_outgoing, *state.learners}]
            if phase == 0:
                if all(member.applied == leader.log.last for member in members):
                    phase = 1
            elif target_term != leader.term:
                try:
                    target, target_term = leader.propose(b"after the storm"), leader.term
                except ProposalDroppedError:
                    continue
            elif all(member.applied >= target for member in members):
                return ticks
        self.ensure(False, f"no progress within {ticks_max} ticks after the storm")
        return ticks_max

    def calm_tick(self) -> None:
        """One tick of every member, and all that follows from it."""
        for member in self.members.values():
            assert member.node is not None
            member.node.tick()
        for _ in range(12):
            for member in self.members.values():
                for action in (self.finish_write, self.turn, self.apply):
                    action(member)
                    self.check(member)
            while self.network:
                target = self.deliver()
                if target is not None:
                    self.check(target)
