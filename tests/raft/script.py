"""Interaction scripts: commands in, everything that happens out.

A script is text. A line that begins in the first column is a command; the indented lines below it are what came of it;
``#`` begins a comment, which stays. Times are ticks, ids small numbers, an entry is written ``index/term "data"``.

=================================== ==================================================================================
cluster voters=1,2,3 [settings]     makes the members; settings: learners=4, others=5 (not in the configuration yet),
                                    pre_vote, check_quorum, forward (0 or 1), inflight, message_bytes, uncommitted
bootstrap 1,2,3                     the same, but the configuration is put into the log
campaign N / tick N [times]         an election at once / time passes
propose N data / propose N 3 x 100  one entry / three entries of 100 bytes
conf N add=4 learner=5 remove=2     membership change; [joint=implicit] [joint=explicit], or `conf N leave`
read N context / transfer N to      ReadIndex / leadership transfer
ready N                             one ready: messages sent, entries applied, the write begun
persist N                           the write is durable; promises sent
deliver [to=N] [from=N] [type=T]    the messages under way now are delivered
drop [to=N] [from=N] [type=T]       they are lost
isolate N / join                    everything to and from N is lost from now on / nothing any more
stabilize [ids]                     ready, persist, deliver until nothing happens any more
quietly stabilize                   the same, not printed
compact N index                     drop log entries
crash N / restart N                 what is not durable is lost
unreachable N of / snapshot N to ok what transport reports
status N / log N                    what the member knows
=================================== ==================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvserver.raft import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    Config,
    ConfState,
    Entry,
    EntryType,
    HardState,
    InitialState,
    Message,
    MessageType,
    RaftError,
    RawNode,
    Ready,
    Role,
    Snapshot,
)


class FixedRng:
    """Each member's election timeout is election_ticks + id - 1."""

    def __init__(self, member_id: int) -> None:
        self._offset = member_id - 1

    def randrange(self, start: int, stop: int, /) -> int:
        return start + self._offset % (stop - start)


@dataclass
class Member:
    """A core, its disk, and what it applied."""

    config: Config
    hard_state: HardState = field(default_factory=HardState)
    snapshot: Snapshot = field(default_factory=Snapshot)
    entries: list[Entry] = field(default_factory=list)
    node: RawNode | None = None
    writing: Ready | None = None
    applied: list[bytes] = field(default_factory=list)


class Script:
    """Runs commands; see the module's text."""

    def __init__(self, make_node: Callable[[Config, InitialState], RawNode] = RawNode) -> None:
        self._make_node = make_node
        self.members: dict[int, Member] = {}
        self.network: list[Message] = []
        self.isolated: set[int] = set()
        self.out: list[str] = []

    def run(self, text: str) -> str:
        """Run a whole script; answer it with the output as it is now."""
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("  "):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                lines.extend(f"  {output}" for output in self.do(line))
        return "\n".join(lines) + "\n"

    def do(self, line: str) -> list[str]:
        """Run one command; answer its output."""
        self.out = []
        name, *words = line.split()
        if name == "quietly":
            self.do(" ".join(words))
            return []
        getattr(self, f"do_{name}")(*words)
        return self.out

    def node(self, number: str | int) -> RawNode:
        node = self.members[int(number)].node
        assert node is not None
        return node

    # -- commands -------------------------------------------------------------------------------------------------

    def do_cluster(self, *words: str) -> None:
        settings = dict(word.split("=") for word in words)
        voters = numbers(settings.get("voters", ""))
        learners = numbers(settings.get("learners", ""))
        state = ConfState(voters=voters, learners=learners)
        for number in (*voters, *learners, *numbers(settings.get("others", ""))):
            self.make(number, settings, Snapshot(0, 0, state))

    def do_bootstrap(self, ids: str, *words: str) -> None:
        settings = dict(word.split("=") for word in words)
        for number in numbers(ids):
            self.make(number, settings, Snapshot())
            self.node(number).bootstrap([(peer, b"") for peer in numbers(ids)])

    def make(self, number: int, settings: dict[str, str], snapshot: Snapshot) -> None:
        config = Config(
            id=number,
            rng=FixedRng(number),
            election_ticks=5,
            heartbeat_ticks=1,
            pre_vote=settings.get("pre_vote", "1") == "1",
            check_quorum=settings.get("check_quorum", "1") == "1",
            forward_proposals=settings.get("forward", "0") == "1",
            inflight_messages_max=int(settings.get("inflight", "256")),
            message_bytes_max=int(settings.get("message_bytes", "100000")),
            uncommitted_bytes_max=int(settings.get("uncommitted", "100000")),
        )
        member = Member(config, snapshot=snapshot)
        self.members[number] = member
        self.start(member)

    def start(self, member: Member) -> None:
        initial = InitialState(member.hard_state, member.snapshot, list(member.entries))
        member.node = self._make_node(member.config, initial)
        member.writing = None

    def do_campaign(self, number: str) -> None:
        self.node(number).campaign()

    def do_tick(self, number: str, times: str = "1") -> None:
        for _ in range(int(times)):
            self.node(number).tick()

    def do_propose(self, number: str, *words: str) -> None:
        node = self.node(number)
        if len(words) == 3 and words[1] == "x":
            self.attempt(lambda: node.propose_batch([b"." * int(words[2])] * int(words[0])))
        else:
            self.attempt(lambda: node.propose(" ".join(words).encode()))

    def attempt(self, propose: Callable[[], int]) -> None:
        try:
            index = propose()
        except RaftError as error:
            self.out.append(f"{type(error).__name__}: {error}")
        else:
            self.out.append(f"index {index}" if index else "forwarded")

    def do_conf(self, number: str, *words: str) -> None:
        kinds = {
            "add": ConfChangeType.ADD_NODE,
            "learner": ConfChangeType.ADD_LEARNER_NODE,
            "remove": ConfChangeType.REMOVE_NODE,
        }
        changes = []
        transition = ConfChangeTransition.AUTO
        for word in words:
            if word == "leave":
                continue
            kind, value = word.split("=")
            if kind == "joint":
                transition = ConfChangeTransition[f"JOINT_{value.upper()}"]
            else:
                changes.append(ConfChangeSingle(kinds[kind], int(value)))
        change = ConfChange(tuple(changes), transition)
        self.attempt(lambda: self.node(number).propose_conf_change(change))

    def do_read(self, number: str, context: str) -> None:
        if not self.node(number).read_index(context.encode()):
            self.out.append("not started")

    def do_transfer(self, number: str, target: str) -> None:
        self.node(number).transfer_leader(int(target))

    def do_ready(self, number: str) -> None:
        member = self.members[int(number)]
        node = self.node(number)
        if not node.has_ready():
            self.out.append(f"{number} nothing")
            return
        ready = node.ready()
        self.out.extend(f"{number} {line}" for line in describe(ready))
        for message in ready.messages:
            if message.snapshot is not None:
                data = b",".join(member.applied)
                message = replace(message, snapshot=replace(message.snapshot, data=data))
            self.send(message)
        if ready.needs_persist:
            member.writing = ready
        for entry in ready.committed_entries:
            if entry.type:
                node.apply_conf_change(ConfChange.decode(entry.data))
                self.out.append(f"{number} configuration {describe_conf(node.conf_state)}")
            elif entry.data:
                member.applied.append(entry.data)
        if ready.committed_entries:
            node.applied_to(ready.committed_entries[-1].index)

    def do_persist(self, number: str) -> None:
        member = self.members[int(number)]
        node = self.node(number)
        ready = member.writing
        if ready is None:
            self.out.append(f"{number} nothing")
            return
        member.writing = None
        if ready.snapshot is not None:
            member.snapshot, member.entries = ready.snapshot, []
        if ready.hard_state is not None:
            member.hard_state = ready.hard_state
        if ready.entries:
            member.entries[ready.entries[0].index - member.snapshot.index - 1 :] = ready.entries
        for message in ready.messages_after_persist:
            self.send(message)
        node.persisted(ready)
        if ready.snapshot is not None:
            member.applied = ready.snapshot.data.split(b",")
            node.applied_to(ready.snapshot.index)

    def send(self, message: Message) -> None:
        self.out.append(describe_message(message))
        if message.from_id in self.isolated or message.to_id in self.isolated:
            self.out[-1] += " (lost)"
            self.report(message, ok=False)
        else:
            self.network.append(message)

    def report(self, message: Message, *, ok: bool) -> None:
        sender = self.members[message.from_id].node
        if message.snapshot is not None and sender is not None:
            sender.report_snapshot(message.to_id, ok=ok)

    def do_deliver(self, *words: str) -> None:
        for message in self.take(words):
            member = self.members[message.to_id]
            if member.node is None:
                self.out.append(f"{message.to_id} is down: {describe_message(message)}")
                self.report(message, ok=False)
                continue
            member.node.step(message)
            self.report(message, ok=True)

    def do_drop(self, *words: str) -> None:
        for message in self.take(words):
            self.out.append(f"dropped {describe_message(message)}")
            self.report(message, ok=False)

    def take(self, words: tuple[str, ...]) -> list[Message]:
        wanted = dict(word.split("=") for word in words)

        def matches(message: Message) -> bool:
            return (
                message.to_id == int(wanted.get("to", message.to_id))
                and message.from_id == int(wanted.get("from", message.from_id))
                and message.type.name == wanted.get("type", message.type.name)
            )

        taken = [message for message in self.network if matches(message)]
        self.network = [message for message in self.network if not matches(message)]
        return taken

    def do_isolate(self, number: str) -> None:
        self.isolated.add(int(number))
        self.network = [m for m in self.network if int(number) not in (m.from_id, m.to_id)]

    def do_join(self) -> None:
        self.isolated.clear()

    def do_stabilize(self, *ids: str) -> None:
        chosen = [int(word) for word in ids] or list(self.members)
        for _ in range(1000):
            busy = False
            for number in chosen:
                member = self.members[number]
                if member.node is not None and member.node.has_ready():
                    self.do_ready(str(number))
                    busy = True
            for number in chosen:
                if self.members[number].writing is not None:
                    self.do_persist(str(number))
                    busy = True
            for number in chosen:
                if any(message.to_id == number for message in self.network):
                    self.do_deliver(f"to={number}")
                    busy = True
            if not busy:
                return
        raise AssertionError("the cluster does not come to rest")

    def do_compact(self, number: str, index: str) -> None:
        member = self.members[int(number)]
        node = self.node(number)
        applied = node.applied_index
        data = b",".join(member.applied)
        member.entries = [entry for entry in member.entries if entry.index > applied]
        member.snapshot = Snapshot(applied, node.log.term(applied), node.conf_state, data)
        node.compact(int(index))

    def do_crash(self, number: str) -> None:
        self.members[int(number)].node = None

    def do_restart(self, number: str) -> None:
        member = self.members[int(number)]
        data = member.snapshot.data
        member.applied = data.split(b",") if data else []
        self.start(member)

    def do_unreachable(self, number: str, other: str) -> None:
        self.node(number).report_unreachable(int(other))

    def do_status(self, number: str) -> None:
        status = self.node(number).status()
        self.out.append(
            f"{status.role.name} term={status.term} vote={status.vote} leader={status.leader_id} "
            f"log={status.first_index}..{status.last_index} stable={status.stable_index} "
            f"commit={status.commit_index} applied={status.applied_index}"
        )
        for other, progress in status.progress.items():
            if other != int(number):
                self.out.append(
                    f"{other}: {progress.state.name} match={progress.match} next={progress.next}"
                    + (" learner" if progress.is_learner else "")
                    + (f" inflight={progress.inflight_count}" if progress.inflight_count else "")
                    + (f" pending_snapshot={progress.pending_snapshot}" if progress.pending_snapshot else "")
                )

    def do_log(self, number: str) -> None:
        log = self.node(number).log
        self.out.append(f"after {log.offset}/{log.offset_term}: {describe_entries(log.entries)}")
        self.out.append(f"applied {b','.join(self.members[int(number)].applied).decode()}")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def describe_entries(entries: list[Entry]) -> str:
    return " ".join(map(describe_entry, entries)) or "none"


def describe_entry(entry: Entry) -> str:
    name = f"{entry.index}/{entry.term}"
    if entry.type == EntryType.CONF_CHANGE:
        change = ConfChange.decode(entry.data)
        what = ",".join(f"{single.type.name.lower()}:{single.node_id}" for single in change.changes) or "leave_joint"
        return f"{name} [{what}]"
    if len(entry.data) > 20:
        return f"{name} ({len(entry.data)} bytes)"
    return f'{name} "{entry.data.decode()}"'


def describe_conf(state: ConfState) -> str:
    parts = [f"voters={list(state.voters)}"]
    for name in ("voters_outgoing", "learners", "learners_next"):
        ids = getattr(state, name)
        if ids:
            parts.append(f"{name}={list(ids)}")
    if state.auto_leave:
        parts.append("auto_leave")
    return " ".join(parts)


def describe_message(message: Message) -> str:
    parts = [f"{message.from_id}->{message.to_id} {message.type.name}"]
    if message.term:
        parts.append(f"term={message.term}")
    if message.type in (MessageType.APPEND, MessageType.VOTE, MessageType.PRE_VOTE):
        parts.append(f"after={message.index}/{message.log_term}")
    elif message.index:
        parts.append(f"index={message.index}")
    if message.commit:
        parts.append(f"commit={message.commit}")
    if message.reject:
        parts.append("reject")
        if message.type is MessageType.APPEND_RESPONSE:
            parts.append(f"hint={message.reject_hint}/{message.log_term}")
    if message.force:
        parts.append("force")
    if message.context:
        is_round = message.type in (MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESPONSE)
        parts.append(
            f"round={int.from_bytes(message.context, 'big')}" if is_round else f"context={message.context.decode()}"
        )
    if message.entries:
        parts.append(describe_entries(message.entries))
    if message.snapshot is not None:
        parts.append(describe_snapshot(message.snapshot))
    return " ".join(parts)


def describe_snapshot(snapshot: Snapshot) -> str:
    return f"snapshot {snapshot.index}/{snapshot.term} {describe_conf(snapshot.conf_state)}"


def describe(ready: Ready) -> list[str]:
    lines = []
    if ready.soft_state is not None:
        state = ready.soft_state
        lines.append(f"is {state.role.name}" + (f" of {state.leader_id}" if state.role is Role.FOLLOWER else ""))
    if ready.hard_state is not None:
        lines.append(
            f"writes term={ready.hard_state.term} vote={ready.hard_state.vote} commit={ready.hard_state.commit}"
            + ("" if ready.must_sync else " (no sync)")
        )
    if ready.snapshot is not None:
        lines.append(f"writes {describe_snapshot(ready.snapshot)}")
    if ready.entries:
        lines.append(f"writes {describe_entries(ready.entries)}")
    if ready.committed_entries:
        lines.append(f"applies {describe_entries(ready.committed_entries)}")
    lines.extend(f"may read {state.context.decode()} at {state.index}" for state in ready.read_states)
    return lines
